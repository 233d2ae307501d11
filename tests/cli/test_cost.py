import csv
import io
import json
import re

import pytest

from refattn.cli import cost_sweep, main
from refattn.costs import machine, prediction
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import hardware
from refattn.costs.presets import preset

ARTICLE = ("--heads", "12", "--head-dim", "64", "--seq", "1000", "--dtype", "float32", "--ffn", "3072")
SMALL = ("--heads", "4", "--head-dim", "16", "--seq", "300")
LLAMA = ("--model", "llama-3-8b", "--seq", "8192", "--phase", "prefill", "--causal", "--hw", "h200")


def counted(capsys, *words):
    """Return the JSON of a call, and what was printed beside it."""
    assert main(["cost", *words, "--json", "-"]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def leaves(tree):
    """Yield every number, wherever it stands."""
    if isinstance(tree, dict) and "value" in tree:
        yield tree
    elif isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


class TestTheCount:
    def test_of_the_article(self, capsys):
        content, printed = counted(capsys, *ARTICLE)
        memory = content["numbers"]["memory"]
        assert memory["scores, one head"] == {"value": 4_000_000, "unit": "B", "kind": "exact"}
        assert memory["scores, one layer"]["value"] == 48_000_000
        assert "48,000,000" in printed and "45.8 MiB" in printed
        assert content["numbers"]["pairs"]["softmax, 1 layer"]["a head"]["value"] == 500_500

    def test_is_that_of_the_library(self, capsys):
        content, _ = counted(capsys, *LLAMA)
        numbers, m = content["numbers"], preset("llama-3-8b")
        assert numbers["model"]["parameters"]["value"] == m.params() == 8_030_261_248
        flops = m.forward_flops(seq=8192)
        assert {part: row["FLOPs"]["value"] for part, row in numbers["flops"].items() if part in flops} == flops
        for way in ("flash", "materialised"):
            moved = m.bytes_moved(seq=8192, algorithm=way)
            assert {part: numbers["moved"][part][way]["value"] for part in moved} == moved
            assert numbers["moved"]["intensity"][way]["value"] == flops["total"] / moved["total"]
        assert numbers["memory"]["KV cache, each further token"]["value"] == 128 * 1024
        assert numbers["model"]["crossover length"]["value"] == m.crossover_length()
        assert numbers["flops"]["exponentials"]["FLOPs"]["value"] == 32 * 32 * 8192 * 8193 // 2

    def test_roofs(self, capsys):
        content, printed = counted(capsys, *LLAMA)
        roofs, h = content["numbers"]["roofs"], hardware("h200")
        m = preset("llama-3-8b")
        times = {name: row["time"]["value"] for name, row in roofs.items()}
        assert times["matrix products"] == m.forward_flops(seq=8192)["total"] / h.rate("bfloat16")
        assert times["exponentials"] == 32 * 32 * 8192 * 8193 // 2 / h.exp_rate
        assert times["bandwidth, flash"] == m.bytes_moved(seq=8192)["total"] / h.bandwidth
        assert times["at least"] == max(t for name, t in times.items() if name != "bandwidth, materialised")
        assert "Bound by matrix products" in printed
        assert {row["time"]["kind"] for row in roofs.values()} == {"bound"}
        parts = content["numbers"]["components"]
        assert parts["total"]["time"]["value"] == pytest.approx(
            sum(row["time"]["value"] for name, row in parts.items() if name != "total")
        )

    def test_a_matrix_of_scores_in_memory_bounds_only_who_writes_one(self, capsys):
        numbers = counted(capsys, "--model", "llama-3-8b", "--seq", "32768", "--hw", "h200")[0]["numbers"]
        times = {name: row["time"]["value"] for name, row in numbers["roofs"].items()}
        assert times["bandwidth, materialised"] > times["at least"] == times["matrix products"]

    def test_decoding_is_bound_by_bandwidth_and_an_unknown_rate_bounds_nothing(self, capsys):
        words = ("--model", "llama-3-8b", "--seq", "8192", "--phase", "decode")
        _, printed = counted(capsys, *words, "--hw", "h200")
        assert "Bound by bandwidth" in printed and "1 token behind 8,191 cached" in printed
        content, printed = counted(capsys, *words, "--hw", "tpu-v5e")
        assert "exponentials" not in content["numbers"]["roofs"] and "not known" in printed

    def test_memory_that_does_not_fit(self, capsys):
        _, printed = counted(capsys, "--model", "llama-3-70b", "--seq", "8192", "--hw", "h100-sxm")
        assert re.search(r"weights +131 GiB +176[.]. % +does not fit +bound", printed)

    def test_on_a_calibration(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(Calibration, "doubts", lambda self: ["it was another machine"])
        rates = {"bandwidth": 1e10, "exp_rate": 1e9, "memory": 2**30, "overhead": 1e-6, "peak": {"float32": 1e11}}
        matmul = {"rows": [1], "inner": [8], "columns": [8], "seconds": [[[1e-6]]]}
        Calibration(machine={"processor": "P"}, date="2026-01-01", matmul=matmul, **rates).save(tmp_path / "here.json")
        asked = []

        def predict(m, *, on, **call):
            asked.append((on.peak, call["seq"], call["phase"]))
            return prediction.Prediction(2.0, 1.5, 3.0, {"ffn": 2.0}, {"ffn": "bandwidth"}, "predicted")

        monkeypatch.setattr(prediction, "predict", predict)
        content, printed = counted(capsys, *SMALL, "--dtype", "float32", "--hw", str(tmp_path / "here.json"))
        numbers = content["numbers"]
        assert numbers["roofs"]["matrix products"]["rate"] == {"value": 1e11, "unit": "FLOP/s", "kind": "measured"}
        assert {row["time"]["kind"] for row in numbers["components"].values()} == {"predicted"}
        low, middle, high = (numbers["components"][name]["time"]["value"] for name in ("from", "total", "to"))
        assert (low, middle, high) == (1.5, 2.0, 3.0) and asked == [({"float32": 1e11}, 300, "prefill")]
        assert "refattn: warning:" in printed and "it was another machine" in printed
        assert main(["cost", *SMALL, "--dtype", "float32", "--hw", str(tmp_path / "no.json")]) == 2

    def test_of_both_forms_of_mla(self, capsys):
        content, _ = counted(capsys, "--model", "deepseek-v3", "--seq", "4096", "--phase", "decode")
        flops = content["numbers"]["flops"]
        heads, keys = 128 * 61, 4096
        assert flops["scores"]["expanded"]["value"] == 2 * keys * heads * (128 + 64)
        assert flops["values"]["expanded"]["value"] == 2 * keys * heads * 128
        assert flops["scores"]["absorbed"]["value"] == 2 * keys * heads * (512 + 64)
        assert flops["values"]["absorbed"]["value"] == 2 * keys * heads * 512
        assert content["numbers"]["memory"]["KV cache, each further token"]["value"] == 61 * 576 * 2

    def test_of_training(self, capsys):
        content, _ = counted(capsys, "--model", "gpt2", "--seq", "1024", "--batch", "2", "--phase", "train")
        numbers, m = content["numbers"], preset("gpt2")
        for recompute in ("none", "attention", "selective", "full"):
            flops = m.train_flops(batch=2, seq=1024, recompute=recompute)
            assert {part: numbers["flops"][part][recompute]["value"] for part in flops} == flops
            kept = m.activation_bytes(batch=2, seq=1024, recompute=recompute)
            assert numbers["activations"][recompute]["bytes"]["value"] == kept
        assert numbers["state"]["adam-mixed"]["bytes"]["value"] == 16 * m.params()

    @pytest.mark.parametrize(
        ("words", "pairs"),
        [
            (("--no-causal",), 300 * 300),
            (("--window", "10"), 300 * 10 - 45),
            (("--window", "10", "--no-causal"), 300 * 19 - 90),
            (("--mask", "global_tokens([0])"), 300),
            (("--past", "7"), 300 * 301 // 2 + 7 * 300),
            (("--phase", "decode"), 300),
            (("--batch", "3"), 300 * 301 // 2),
        ],
    )
    def test_of_pairs(self, capsys, words, pairs):
        content, _ = counted(capsys, *SMALL, *words)
        (row,) = content["numbers"]["pairs"].values()
        assert row["a head"]["value"] == pairs
        assert row["a layer"]["value"] == pairs * 4 * (3 if "--batch" in words else 1)
        assert row["tiles 128"]["value"] >= row["tiles 64"]["value"] >= row["a layer"]["value"]
        assert row["waste 64"]["value"] == pytest.approx(
            100 * (row["tiles 64"]["value"] / row["a layer"]["value"] - 1), abs=1e-9
        )

    def test_of_scores_behind_a_past(self, capsys):
        content, _ = counted(capsys, *SMALL, "--past", "100", "--hw", "a100-80gb")
        assert content["numbers"]["memory"]["scores, one head"]["value"] == 300 * 400 * 2
        assert "moved" not in content["numbers"]
        assert content["numbers"]["roofs"]["bandwidth"]["work"]["kind"] == "bound"

    def test_encoders_are_bidirectional_unless_told(self, capsys):
        assert counted(capsys, "--model", "bert-base", "--seq", "9")[0]["arguments"]["causal"] is False
        assert counted(capsys, "--model", "bert-base", "--seq", "9", "--causal")[0]["arguments"]["causal"] is True
        assert counted(capsys, "--model", "gpt2", "--seq", "9")[0]["arguments"]["causal"] is True

    def test_reads_a_folder_with_a_config(self, capsys, tmp_path):
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 11, "n_positions": 8}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
        for place in (tmp_path, tmp_path / "config.json"):
            content, _ = counted(capsys, "--model", str(place), "--seq", "8")
            assert "2 layers of width 32: softmax, 2 heads of 16" in content["model"]

    def test_nothing_follows_an_encoder(self, capsys):
        content, printed = counted(capsys, "--model", "bert-base", "--seq", "64", "--hw", "h200")
        assert "cache" not in printed and list(content["numbers"]["device"])[:1] == ["weights"]

    def test_more_tokens_than_positions_are_noted(self, capsys):
        assert "could not run this" in counted(capsys, "--model", "gpt2", "--seq", "1025")[1]
        assert "could not run this" not in counted(capsys, "--model", "gpt2", "--seq", "1024")[1]

    def test_a_window_narrows_each_layer_that_has_scores(self, capsys):
        content, _ = counted(capsys, "--model", "gemma-2-9b", "--seq", "8192", "--window", "100")
        assert list(content["numbers"]["pairs"]) == ["softmax window 100, 42 layers"]


class TestTheOutputs:
    def test_every_number_has_a_unit_and_a_kind(self, capsys):
        for words in (LLAMA, ("--model", "jamba-v0.1", "--seq", "64", "--phase", "train", "--hw", "h200")):
            found = list(leaves(counted(capsys, *words)[0]["numbers"]))
            assert len(found) > 50
            assert all(set(number) == {"value", "unit", "kind"} and number["unit"] for number in found)
            assert {number["kind"] for number in found} == {"exact", "bound"}

    def test_csv_has_the_numbers_of_json(self, capsys):
        content, _ = counted(capsys, *LLAMA)
        assert main(["cost", *LLAMA, "--csv", "-"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert list(rows[0]) == ["section", "row", "column", "value", "unit", "kind"]
        found = list(leaves(content["numbers"]))
        assert [float(row["value"]) for row in rows] == [number["value"] for number in found]
        assert [row["unit"] for row in rows] == [number["unit"] for number in found]

    def test_a_sweep(self, capsys):
        words = ("--model", "llama-3-8b", "--sweep", "seq=512..4096", "--hw", "h200")
        content, printed = counted(capsys, *words)
        m = preset("llama-3-8b")
        assert [point["seq"] for point in content["sweep"]] == [512, 1024, 2048, 4096]
        for point in content["sweep"]:
            assert point["FLOPs"] == {
                "value": m.forward_flops(seq=point["seq"])["total"],
                "unit": "FLOP",
                "kind": "exact",
            }
            assert point["at least"]["kind"] == "bound" and point["bound by"] == "matrix products"
        bars = [line for line in printed.splitlines() if line.endswith("% attention")]
        assert len(bars) == 4 and len({sum(line.count(mark) for mark in "▒█▚░·") for line in bars}) == 1
        assert main(["cost", *words, "--csv", "-"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [int(row["FLOPs (FLOP, exact)"]) for row in rows] == [x["FLOPs"]["value"] for x in content["sweep"]]

    @pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
    def test_a_sweep_of_batches(self, capsys, phase):
        content, _ = counted(capsys, *SMALL, "--phase", phase, "--sweep", "batch=4,1")
        one, four = content["sweep"]
        assert (one["batch"], four["batch"], one["seq"]) == (1, 4, 300)
        assert four["FLOPs"]["value"] == 4 * one["FLOPs"]["value"]

    @pytest.mark.parametrize(
        "words",
        [
            ARTICLE,
            LLAMA,
            ("--model", "deepseek-v3", "--seq", "64", "--phase", "decode"),
            ("--model", "gemma-2-9b", "--seq", "131072"),
            ("--model", "jamba-v0.1", "--sweep", "seq=4096,131072", "--hw", "h200"),
            ("--model", "gpt2", "--sweep", "seq=4096,131072", "--hw", "h200", "--phase", "train"),
        ],
    )
    def test_piped_output_is_plain_and_narrow(self, capsys, monkeypatch, words):
        monkeypatch.delenv("COLUMNS", raising=False)
        assert main(["cost", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines) <= 100
        assert not any("\x1b" in line or line != line.rstrip() or "…" in line for line in lines)

    def test_a_page_is_whole_and_needs_nothing(self, capsys, tmp_path):
        path = tmp_path / "cost.html"
        assert main(["cost", *LLAMA, "--html", str(path)]) == 0
        page = path.read_text(encoding="utf-8")
        assert "<script" not in page and "http" not in page.replace("http-equiv", "")
        assert page.count("data:image/png;base64,") == 1
        assert all(text in page for text in ("141 TFLOP", "8,030,261,248", "matrix products", "h200"))

    def test_a_page_of_a_mask_has_no_curves(self, capsys, tmp_path):
        path = tmp_path / "cost.html"
        words = ("--mask", "document([0, 0, 1])", "--html", str(path))
        assert main(["cost", "--heads", "1", "--head-dim", "8", "--seq", "3", *words]) == 0
        page = path.read_text(encoding="utf-8")
        assert "document" in page and "<img" not in page

    @pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_a_plot(self, capsys, tmp_path, form, magic):
        path = tmp_path / f"cost.{form}"
        assert main(["cost", *SMALL, "--plot", str(path)]) == 0
        data = path.read_bytes()
        assert data.startswith(magic) and len(data) > 10_000
        assert [item.name for item in tmp_path.iterdir()] == [path.name]

    def test_the_list_names_sources(self, capsys):
        assert main(["cost", "--list"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^llama-3-8b +8[.]03 G +.*arXiv:2407[.]21783", out, re.M)
        assert re.search(r"^h200 +131 GiB +4[.]80 TB/s +.*datasheet", out, re.M)
        assert "inf" not in re.findall(r"^tpu-v5e.*$", out, re.M)[0]
        assert "gated_delta_rule" in out


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--seq", "9"), "no model; give --model"),
            (("--heads", "4", "--seq", "9"), "give --model NAME, or --heads N and --head-dim N"),
            (("--heads", "4", "--head-dim", "8"), "no length; give --seq N"),
            ((*SMALL[:4], "--seq", "0"), "--seq is 0; wanted at least 1"),
            ((*SMALL[:4], "--seq", "-3"), "--seq is -3"),
            ((*SMALL, "--batch", "0"), "--batch is 0"),
            ((*SMALL, "--layers", "0"), "--layers is 0"),
            ((*SMALL, "--kv-heads", "3"), "kv_heads that divide"),
            ((*SMALL, "--window", "0"), "--window is 0"),
            (("--model", "llama3-8b", "--seq", "9"), "did you mean llama-3-8b"),
            (("--model", "gpt2", "--heads", "4", "--gated", "--seq", "9"), "--model and --heads, --gated both"),
            (("--model", "mamba-130m", "--window", "4", "--seq", "9"), "no layer has scores"),
            (("--model", "nowhere/config.json", "--seq", "9"), "no such file"),
            ((*SMALL, "--mechanism", "mambo"), "did you mean mamba"),
            ((*SMALL, "--mask", "cauzal()"), "no pattern 'cauzal'"),
            ((*SMALL, "--mask", "document([0, 1])"), "300"),
            ((*SMALL, "--phase", "decoding"), "wanted one of prefill, decode, train"),
            ((*SMALL, "--phase", "decode", "--past", "5"), "--past is of a prefill"),
            ((*SMALL, "--dtype", "bf16"), "did you mean bfloat16"),
            ((*SMALL, "--hw", "h20"), "did you mean h200"),
            ((*SMALL, "--hw", "v100"), "v100 has no rate for 'bfloat16'"),
            ((*SMALL, "--sweep", "seq=1..4"), "--sweep and --seq both"),
            ((*SMALL[:4], "--sweep", "sq=1..4"), "did you mean seq"),
            ((*SMALL[:4], "--sweep", "seq=8..4"), "the smaller end first"),
            ((*SMALL[:4], "--sweep", "seq=0,4"), "not '0'"),
            ((*SMALL[:4], "--sweep", "seq"), "wanted such as seq=512..131072"),
            ((*SMALL, "--plot", "a.gif"), "ends in .png or .svg"),
            ((*SMALL, "--plot", "a.png", "--mask", "window(3, 0)"), "needs --sweep"),
        ],
    )
    def test_one_line_and_no_file(self, capsys, tmp_path, monkeypatch, words, said):
        monkeypatch.chdir(tmp_path)
        assert main(["cost", *words, "--json", "numbers.json", "--html", "page.html"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_written(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for words in (("--csv", "no/where.csv"), ("--csv", "numbers.json"), ("--plot", "no/where.png")):
            assert main(["cost", *SMALL, "--json", "numbers.json", *words]) == 2
            assert capsys.readouterr().err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_without_matplotlib(self, capsys, tmp_path, monkeypatch):
        def need(package, extra, purpose):
            if package == "matplotlib":
                raise ImportError(f"{purpose} needs {package}")

        monkeypatch.setattr(machine, "need", need)
        assert main(["cost", *SMALL, "--html", str(tmp_path / "a.html")]) == 2
        assert capsys.readouterr().err == "refattn: error: --html needs matplotlib\n"
        assert main(["cost", *SMALL, "--json", str(tmp_path / "a.json")]) == 0


def test_doubling_ends_where_it_is_told():
    assert cost_sweep.read("seq=512..131072") == ("seq", [2**n for n in range(9, 18)])
    assert cost_sweep.read("batch=7..7") == ("batch", [7])
