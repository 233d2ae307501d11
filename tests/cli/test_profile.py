import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from refattn import costs
from refattn.cli import main
from refattn.cli import profile as command
from refattn.watch import needs
from refattn.watch.network import Network
from tests.models import tiny_bert

GPT = ["profile", "gpt", "--seq", "24", "--rounds", "2"]


@pytest.fixture
def no_work(monkeypatch):
    """A test in which nothing may be drawn or run."""

    def worked(*args, **kwargs):
        raise AssertionError("it worked before it refused")

    monkeypatch.setattr(command, "profile", worked)
    monkeypatch.setattr(Network, "random", worked)


def content(capsys, *words):
    assert main([*words, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


class TestWhatItSays:
    def test_the_table_and_the_verdict(self, capsys):
        assert main(GPT) == 0
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert re.match(r"verdict +attention is \d+% of the time \(measured, ", lines[1])
        names = [line.split()[0] for line in lines if line and not line.startswith(("─", " "))]
        order = [
            "embedding",
            "norm",
            "projection",
            "rope",
            "attention",
            "ffn",
            "head",
            "other",
            "model",
            "pass",
            "whole",
        ]
        start = names.index("embedding")
        assert names[start : start + len(order)] == order
        assert [line.split()[0] for line in lines if line.startswith("  ")][:3] != []
        assert re.search(r"^  softmax +\d", out, re.M) and re.search(r"^  scores +\d", out, re.M)
        assert "a GPT's weights: all 4 layers of width 128, softmax, float32" in out
        assert "(measured; half of 2 rounds" in out
        assert all(word in out for word in ("exact:", "bound:", "measured:", "machine", "NumPy"))
        assert max(len(line) for line in lines) <= 100

    def test_json_has_every_number_with_its_kind(self, capsys):
        found, err = content(capsys, *GPT, "--batch", "2")
        assert "verdict" in err
        assert (found["layers"], found["model_layers"], found["seq"], found["batch"]) == (4, 4, 24, 2)
        m = Network.from_gpt(command.GPT.bundled()).sizes
        counted = m.forward_flops(batch=2, seq=24)
        flops = {part["component"]: part["flops"] for part in found["parts"]}
        assert flops["ffn"] == counted["ffn"] and flops["attention"] == counted["scores"] + counted["values"]
        assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
        assert found["most_speedup"] == pytest.approx(1 / (1 - found["attention_share"]))
        assert found["peak_bytes"] > 0 and found["seconds"] > 0
        numbers = {name for name, value in found["parts"][0].items() if isinstance(value, float | int)}
        assert numbers <= set(found["kinds"]) and found["kinds"]["flops"] == "exact"

    def test_csv_and_html(self, capsys, tmp_path):
        paths = [str(tmp_path / name) for name in ("a.csv", "a.html", "a.json")]
        assert main([*GPT, "--csv", paths[0], "--html", paths[1], "--json", paths[2]]) == 0
        rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
        parts = json.loads((tmp_path / "a.json").read_text())["parts"]
        assert [row["component"] for row in rows] == [part["component"] for part in parts]
        assert float(rows[1]["seconds"]) == parts[1]["seconds"]
        page = (tmp_path / "a.html").read_text()
        assert "<script" not in page and "http" not in page.replace("<!doctype html>", "")
        assert all(f'<td class="name">{row["component"]}</td>' in page for row in rows)
        assert "&emsp;softmax" in page and 'class="verdict">attention is' in page
        HTMLParser().feed(page)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html", "a.json"]

    def test_training_has_forward_and_backward(self, capsys):
        found, err = content(capsys, *GPT, "--phase", "train")
        assert re.search(r"time +forward +backward +spread", err)
        for part in found["parts"]:
            assert 0 <= part["backward_seconds"] <= part["upper_quartile_seconds"]
        m = Network.from_gpt(command.GPT.bundled()).sizes
        total = m.train_flops(seq=24, recompute="attention")["total"]
        assert sum(part["flops"] for part in found["parts"]) == total

    def test_decoding(self, capsys):
        found, err = content(capsys, *GPT, "--phase", "decode")
        assert "decode: 1 × 1 token after 23" in err
        assert {part["component"]: part["calls"] for part in found["parts"]}["attention"] == 4

    def test_another_backend(self, capsys):
        pytest.importorskip("numba")
        found, err = content(capsys, *GPT, "--backend", "numba")
        assert found["backend"] == "numba" and found["inside_attention"] == {}
        assert "scores, softmax and values are fused by numba" in err and "Numba" in err


class TestModels:
    def test_minilm_without_a_folder_is_random_and_says_so(self, capsys):
        found, _ = content(capsys, "profile", "minilm", "--layers", "1", "--seq", "8", "--rounds", "1")
        assert found["model"] == "random weights in the sizes of minilm"
        assert (found["layers"], found["model_layers"]) == (1, 6)
        assert found["whole_model_seconds"] > found["parts"][0]["seconds"]

    def test_minilm_with_a_folder(self, capsys, tmp_path):
        folder = str(tiny_bert.write(tmp_path / "tiny"))
        found, _ = content(capsys, "profile", "minilm", "--model-dir", folder, "--seq", "16", "--rounds", "1")
        assert (found["model"], found["layers"]) == ("a MiniLM's weights", 2)
        assert "rope" not in [part["component"] for part in found["parts"]]

    def test_a_preset_and_the_layers_that_fit(self, capsys, monkeypatch):
        monkeypatch.setattr(needs, "DRAWN", 10 * 2**20 * 4)  # ten million parameters in layers
        found, err = content(capsys, "profile", "gpt2", "--seq", "8", "--rounds", "1")
        assert (found["layers"], found["model_layers"]) == (1, 12)
        assert "1 of 12 layers" in err and "(predicted: the layers that ran × 12/1)" in err
        assert "share      of the time of all 12 layers (predicted)" in err

    def test_a_config_file(self, capsys, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(tiny_bert.CONFIG))
        found, _ = content(capsys, "profile", str(path), "--seq", "8", "--rounds", "1")
        assert found["layers"] == 2

    @pytest.mark.parametrize(("mechanism", "component", "weights"), [
        ("window(3, 0)", "attention", "a GPT's weights"),
        ("retention", "scan", "random weights in the sizes of gpt"),
        ("mla", "attention", "random weights in the sizes of gpt"),
        ("rwkv7", "scan", "random weights in the sizes of gpt"),
    ])  # fmt: skip
    def test_another_mechanism(self, capsys, mechanism, component, weights):
        found, err = content(capsys, *GPT, "--mechanism", mechanism, "--layers", "1")
        assert found["model"] == weights and component in [part["component"] for part in found["parts"]]
        assert ("FLOPs of the recurrence" in err) == (component == "scan")
        assert found["verdict"].startswith(f"{component} is ")

    def test_a_calibration_says_the_roofs(self, capsys, tmp_path, monkeypatch):
        given = {"peak": {"float32": 5e9}, "bandwidth": 6e9, "exp_rate": 7e8, "memory": 1, "overhead": 1e-6}
        calibration = costs.Calibration(machine={}, date="2026-01-01", **given)
        monkeypatch.setattr(costs.Calibration, "load", lambda path, check: calibration)
        monkeypatch.setattr(costs.Calibration, "doubts", lambda self: [])
        found, err = content(capsys, *GPT, "--calibration", "any.json")
        assert found["rates"]["matmul"] == 5e9 and found["rates"]["exps"] == 7e8
        assert "calibration calibration: 5.00 GFLOP/s" in err


class TestRefused:
    @pytest.mark.parametrize(("words", "why"), [
        (["lama-3-8b"], "no model 'lama-3-8b'; did you mean llama-3-8b"),
        (["gtp"], "no model 'gtp'; did you mean gpt"),
        (["gpt", "--seq", "0"], "--seq is 0; wanted 1 or more"),
        (["gpt", "--batch", "-2"], "--batch is -2"),
        (["gpt", "--rounds", "0"], "--rounds is 0"),
        (["gpt", "--seed", "-1"], "--seed is -1"),
        (["gpt", "--seconds", "nan"], "--seconds is nan"),
        (["gpt", "--layers", "0"], "--layers is 0"),
        (["gpt", "--layers", "5"], "--layers is 5; the model has 4"),
        (["minilm", "--seq", "513"], "seq is 513; the model has 512 positions"),
        (["gpt", "--backend", "nunba"], "no backend 'nunba'; did you mean num"),
        (["gpt", "--mechanism", "retension"], "no mechanism 'retension'; did you mean retention"),
        (["gpt", "--mechanism", "windw(3)"], "windw"),
        (["gpt", "--phase", "trian"], "no phase 'trian'; did you mean train"),
        (["minilm", "--phase", "decode"], "phase is decode"),
        (["mixtral-8x7b"], "mixtral-8x7b has experts"),
        (["gpt", "--model-dir", "x"], "--model-dir is of minilm"),
        (["minilm", "--model-dir", "/no/such/folder"], "/no/such/folder"),
        (["no-such.json"], "no-such.json"),
        (["gpt", "--json", "/no/such/folder/a.json"], "--json cannot be written"),
        (["gpt", "--json", "-", "--csv", "-"], "both write to -"),
        (["gpt", "--calibration", "/no/such/file"], "/no/such/file"),
        (["llama-3-8b", "--seq", "200000", "--batch", "64", "--phase", "train"], "are free"),
    ])  # fmt: skip
    def test_one_line_before_any_work(self, capsys, no_work, words, why):
        assert main(["profile", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("refattn: error: ") and err.count("\n") == 1
        assert why in err

    def test_layers_that_do_not_fit(self, capsys, no_work, monkeypatch):
        monkeypatch.setattr(command.machine, "free_memory", lambda: 10**9)
        assert main(["profile", "gpt2", "--layers", "12", "--phase", "train", "--seq", "8"]) == 2
        assert re.search(r"12 layers need about .* GiB; 954 MiB are free", capsys.readouterr().err)
