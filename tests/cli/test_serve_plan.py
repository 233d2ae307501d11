"""refattn serve-plan: what it prints and writes, its exit status, and what it refuses before anything is written."""

import csv
import io
import json
import os

import pytest

from refattn.cli import main

QUICK = ("--requests", "200", "--seeds", "2")
ASKED = ("--model", "llama-3-8b", "--hw", "h200", "--lengths", "1000", "--output", "100", "--rps", "4", *QUICK)
LARGE = ("--model", "llama-3-70b", "--hw", "h200", "--lengths", "4000", "--rps", "1", *QUICK)


@pytest.fixture
def command(capsys, monkeypatch):
    """Return a function that runs the command: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        status = main(["serve-plan", *words])
        return status, *capsys.readouterr()

    return run


class TestPrinted:
    def test_everything_with_its_kind(self, command):
        status, out, err = command(*ASKED, "--ttft-p95", "0.5", "--tpot-p95", "0.05")
        assert (status, err) == (0, "")
        assert out.splitlines()[1].startswith("Kept at 4 requests/s: TTFT p95 ")
        lines = {line.split("  ")[0]: line for line in out.splitlines()}
        assert "weights 15.0 GiB (exact), activations 765 MiB (predicted)" in lines["memory"]
        assert "keeps 128 KiB a token at the end (exact)" in lines["a request"]
        assert lines["at once"].endswith("fit (bound)")
        assert "bounds: times are at least" in out
        for name in ("capacity", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "TTFT mean", "running", "highest"):
            assert "(simulated, " in lines[name], name
        assert "promised 500 ms" in lines["TTFT p95"] and "promised 50.0 ms" in lines["TPOT p95"]
        assert "arrivals are Poisson" in out and "real engines are slower" in out

    def test_the_table(self, command):
        _, out, _ = command(*ASKED)
        rows = [line.split() for line in out.splitlines() if line.endswith(("weights", "KV cache", "compute"))]
        assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32", "64", "128", "256"]
        assert "no end" in next(line for line in out.splitlines() if line.lstrip().startswith("256 "))

    def test_what_does_not_fit(self, command):
        status, out, err = command(*LARGE)
        assert (status, err) == (1, "")
        assert "does not fit on 1 × h200" in out and "it needs 2" in out and "At 1 requests/s" not in out

    def test_a_rate_beyond_capacity(self, command):
        status, out, _ = command(*ASKED, "--rps", "10000", "--ttft-p50", "1")
        assert status == 1 and "Unstable: 10000 requests/s are asked and " in out
        assert "times the capacity" in out and "TTFT p50 " not in out

    def test_a_broken_promise(self, command):
        status, out, _ = command(*ASKED, "--tpot-p95", "0.001")
        assert status == 1 and "Missed at 4 requests/s" in out and "No rate keeps all" in out

    def test_reached_rates_have_an_interval(self, command):
        _, out, _ = command(*ASKED, "--efficiency", "0.5")
        assert "predicted: times may be 0.50 to 1.43 times these" in out
        assert "50% of what h200 can do is reached" in out


class TestWritten:
    def test_json(self, command, tmp_path):
        path = tmp_path / "plan.json"
        status, out, _ = command(*ASKED, "--ttft-p95", "0.5", "--json", str(path))
        content = json.loads(path.read_text())
        assert status == 0 and content["meets"] is True and content["verdict"] in out.replace("\n", " ")
        assert content["slo"] == {"ttft_p95": 0.5}
        assert content["memory"]["weights"] == {"value": 16060522496, "unit": "B", "kind": "exact"}
        low, value, high = (content["simulated"]["ttft_p95"][name] for name in ("low", "value", "high"))
        assert 0 < low <= value <= high < 0.5
        assert content["rows"][0]["tpot"]["kind"] == "bound" and "low" not in content["rows"][0]["tpot"]

        def numbers(x):
            if isinstance(x, dict) and "value" in x:
                yield x
            elif isinstance(x, dict | list):
                for inside in x.values() if isinstance(x, dict) else x:
                    yield from numbers(inside)

        found = list(numbers(content))
        assert len(found) > 50 and {x["kind"] for x in found} == {"exact", "bound", "predicted", "simulated"}
        assert all("unit" in x for x in found)

    def test_csv_to_standard_output(self, command):
        status, out, err = command(*ASKED, "--csv", "-")
        rows = list(csv.DictReader(io.StringIO(out)))
        assert status == 0 and [row["running"] for row in rows][:3] == ["1", "2", "4"]
        for row in rows:
            assert float(row["tokens_per_second"]) == pytest.approx(int(row["running"]) / float(row["seconds_a_token"]))
        assert rows[-1]["seconds_to_first_token"] == "" and rows[0]["kind"] == "bound"
        assert "nothing is promised" in err

    def test_what_does_not_fit(self, command):
        status, out, _ = command(*LARGE, "--json", "-")
        content = json.loads(out)
        assert status == 1 and content["fits"] is False and content["needed_devices"]["value"] == 2
        assert content["rows"] == [] and content["simulated"] is None


def test_a_config_and_lengths_out_of_files(command, tmp_path):
    config, lengths = tmp_path / "config.json", tmp_path / "asked.csv"
    sizes = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    config.write_text(json.dumps({"model_type": "gpt2"} | sizes))
    lengths.write_text("prompt,answer\n100,10\n300,30\n")
    words = ("--model", str(config), "--hw", "t4", "--dtype", "float16", "--rps", "1", *QUICK)
    status, out, _ = command(*words, "--lengths", f"{lengths}:prompt", "--output", f"{lengths}:answer")
    assert status == 0 and "2 lengths of asked.csv: p50 100, p95 300, mean 200" in out
    lengths.write_text("prompt,answer\n100,10\n300,many\n")
    status, out, err = command(*words, "--lengths", f"{lengths}:prompt", "--output", f"{lengths}:answer")
    assert (status, out) == (2, "") and "asked.csv, line 3: 'many' is not a whole number" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "lama-3-8b"), "no model 'lama-3-8b'; did you mean llama-3-8b"),
        (("--hw", "h20"), "no hardware 'h20'; did you mean h200"),
        (("--rps", "0"), "requests_per_second is 0.0"),
        (("--rps", "nan"), "requests_per_second is nan"),
        (("--ttft-p95", "-1"), "slo ttft_p95 is -1.0"),
        (("--lengths", "none.csv"), "none.csv: No such file"),
        (("--lengths", "uniform:5..1"), "has 5 above 1"),
        (("--dtype", "int2"), "no dtype 'int2'"),
        (("--devices", "0"), "devices is 0"),
        (("--seeds", "1"), "seeds is 1"),
    ],
)
def test_refused_before_anything_is_written(command, tmp_path, words, message):
    status, out, err = command(*ASKED, *words, "--json", str(tmp_path / "plan.json"))
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written(command, tmp_path):
    status, out, err = command(*ASKED, "--csv", str(tmp_path / "none" / "plan.csv"))
    assert (status, out) == (2, "") and "no such folder" in err
    status, _, err = command(*ASKED, "--csv", "-", "--json", "-")
    assert status == 2 and "both write to -" in err
