"""`refattn advise` and `refattn calibrate`: what they print, write and refuse."""

import json
import shlex
from pathlib import Path

import pytest

from refattn.cli import _parser, advise, calibrate, main
from refattn.costs import measuring
from refattn.costs.calibration import Calibration
from tests.costs.ideal import ideal


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "canary", lambda c: {})
    ideal().save(tmp_path / "c.json")
    return str(tmp_path / "c.json")


class TestAdvise:
    def test_the_verdict_comes_first(self, file, capsys):
        assert main(["advise", "--model", "minilm-l6", "--lengths", "512", "--calibration", file, "--no-causal"]) == 0
        out = capsys.readouterr().out
        assert out.lstrip().startswith("Attention is") and "attention on numba" in out and "holds 4 of 5 cases" in out

    def test_json_has_every_number(self, file, capsys, tmp_path):
        command = [
            "advise",
            "--model",
            "llama-3-8b",
            "--lengths",
            "uniform:100..4000",
            "--hw",
            "h200",
            "--phase",
            "decode",
        ]
        assert main([*command, "--exactness", "retrain", "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {"verdict", "options", "flips", "attention_share"} <= found.keys()
        assert all(
            option["p95"]["low"] <= option["p95"]["seconds"] <= option["p95"]["high"] for option in found["options"]
        )
        assert {option["exactness"] for option in found["options"]} == {"exact", "approximate", "retrain"}

    @pytest.mark.parametrize("where", [["--calibration"], ["--hw", "h200"]])
    def test_every_command_that_it_names_can_be_given(self, file, where, capsys):
        where = [*where, file] if where == ["--calibration"] else where
        words = ["--model", "minilm-l6", "--lengths", "512", "--exactness", "retrain", *where]
        assert main(["advise", *words, "--json", "-"]) == 0
        for option in json.loads(capsys.readouterr().out)["options"]:
            command = shlex.split(option["check"])
            assert command[0] == "refattn" and _parser().parse_args(command[1:]).model == "minilm-l6"

    def test_a_config_and_a_csv_of_lengths(self, file, tmp_path, capsys):
        config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 512}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "lengths.csv").write_text("tokens\n100\n200\n300\n")
        model, lengths = str(tmp_path / "config.json"), str(tmp_path / "lengths.csv")
        assert main(["advise", "--model", model, "--lengths", lengths, "--calibration", file]) == 0
        assert "p95 (300 tokens)" in capsys.readouterr().out.replace("\n", " ")

    @pytest.mark.parametrize(("words", "message"), [
        (["--model", "lama-3-8b", "--lengths", "9", "--hw", "h200"], "did you mean llama-3-8b"),
        (["--model", "gpt2", "--lengths", "9", "--hw", "h20"], "did you mean h200"),
        (["--model", "gpt2", "--lengths", "-4", "--hw", "h200"], "-4"),
        (["--model", "gpt2", "--lengths", "no.csv", "--hw", "h200"], "no.csv"),
        (["--model", "gpt2", "--lengths", "9", "--calibration", "none.json"], "none.json"),
        (["--model", "gpt2", "--lengths", "9", "--hw", "h200", "--memory", "lots"], "wanted a size"),
        (["--model", "gpt2", "--lengths", "9", "--hw", "h200", "--latency-p95", "0"], "latency_p95 is 0"),
        (["--model", "gpt2", "--lengths", "9", "--hw", "h200", "--json", "/no/such/x.json"], "no such folder"),
    ])  # fmt: skip
    def test_refused(self, words, message, capsys):
        assert main(["advise", *words]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""

    def test_a_line_of_the_csv_is_named(self, tmp_path, capsys):
        (tmp_path / "lengths.csv").write_text("tokens\n100\nmany\n")
        assert main(["advise", "--model", "gpt2", "--lengths", str(tmp_path / "lengths.csv"), "--hw", "h200"]) == 2
        assert "line 3" in capsys.readouterr().err

    def test_sizes(self):
        with pytest.raises(ValueError, match="16GiB"):
            advise.bytes_of("16GB7")


class TestCalibrate:
    def test_it_writes_what_it_measured(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(calibrate, "calibrate", lambda **keywords: ideal())
        path = str(tmp_path / "c.json")
        assert main(["calibrate", "--out", path]) == 0
        assert Calibration.load(path, check=False).to_json() == ideal().to_json()
        assert "FLOP/s" in capsys.readouterr().out

    def test_an_interruption_leaves_the_old_file(self, file, monkeypatch, capsys):
        def interrupted(**keywords):
            raise KeyboardInterrupt

        before = Path(file).read_text()
        monkeypatch.setattr(calibrate, "calibrate", interrupted)
        assert main(["calibrate", "--out", file]) == 130
        assert Path(file).read_text() == before

    def test_check(self, file, monkeypatch, capsys):
        assert main(["calibrate", "--check", file]) == 0
        monkeypatch.setattr(measuring, "canary", lambda c: {"a matrix product": 3.0})
        assert main(["calibrate", "--check", file]) == 1
        assert "3 times as long" in capsys.readouterr().out

    @pytest.mark.parametrize(("words", "message"), [
        (["--backends", "nunba"], "did you mean numba"), (["--mechanisms", "retenton"], "did you mean retention"),
        (["--out", "/no/such/c.json"], "no such folder"), (["--check", "none.json"], "none.json"),
    ])  # fmt: skip
    def test_refused(self, words, message, capsys, monkeypatch):
        assert main(["calibrate", *words]) == 2
        assert message in capsys.readouterr().err
