import base64
import csv
import io
import re
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest

from refattn import dispatch
from refattn.cli import compare, main, measure
from refattn.costs import machine
from tests.cli.imitations import QUICK, SMALL, forward, imitation, records


class TestTheTable:
    def test_default_input_is_a_layer_of_the_bundled_gpt(self, backends, capsys):
        assert main(["compare", "--tokens", "40", *QUICK]) == 0
        out, err = capsys.readouterr()
        assert re.search(r"^input +layer \d of \d of the bundled GPT, reading 40 characters of its text$", out, re.M)
        assert "causal(): " in out
        assert err == ""
        lines = [line.split() for line in out.splitlines()]
        assert [line[:2] for line in lines[4:7]] == [[variant, "numpy"] for variant in measure.VARIANTS]

    def test_piped_output_is_plain_and_narrow(self, backends, capsys, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        backends("copy", imitation())
        assert main(["compare", *SMALL]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines) <= 100
        assert not any("\x1b" in line or line != line.rstrip() for line in lines)
        table = lines[1 : lines.index("", 1)]
        assert max(len(line) for line in table) <= 80
        text = "\n".join(lines)
        assert all(word in text for word in ("machine", "cores", "Python", "NumPy", np.__version__, "seed", "date"))

    def test_a_narrow_terminal_cuts_no_number(self, backends, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        assert main(["compare", *SMALL]) == 0
        out = capsys.readouterr().out
        assert "…" not in out and "attention_split_kv  numpy" in out

    def test_rows_say_why_they_have_no_numbers(self, backends, capsys, monkeypatch):
        ghost = EntryPoint("ghost", "no_such_module_of_refattn", dispatch.GROUP)
        monkeypatch.setattr(dispatch, "_announced", lambda: {"ghost": ghost})
        backends("far", SimpleNamespace(unavailable=lambda: "there is no GPU"))
        backends("partial", imitation(names=("attention",), LIMITS={"flash_attention": "tiles are not its thing"}))
        content, err = records(capsys, *SMALL)
        rows = {(row["variant"], row["backend"]): row for row in content["rows"]}
        assert "No module named 'no_such_module_of_refattn'" in rows["all", "ghost"]["reason"]
        assert rows["all", "far"]["reason"] == "there is no GPU"
        assert rows["flash_attention", "partial"]["reason"] == "tiles are not its thing"
        assert rows["attention_split_kv", "partial"]["reason"] == "it has no attention_split_kv"
        assert rows["attention", "partial"]["reason"] is None
        assert len(rows) == len(content["rows"]) == 3 + 2 + 3
        assert err.count("not run (") == 4 and "flash_attention on partial: tiles are not its thing" in err

    def test_an_argument_that_is_not_covered(self, backends, capsys, arrays, saved):
        backends("partial", imitation(LIMITS={"attention(sinks)": "no sinks"}))
        content, _ = records(capsys, "--npz", saved(**arrays, sinks=np.zeros(4, np.float32)), *QUICK)
        reasons = {(row["variant"], row["backend"]): row["reason"] for row in content["rows"]}
        assert reasons["attention", "partial"] == "sinks=: no sinks"
        assert reasons["flash_attention", "partial"] is None

    def test_unsupported_while_running(self, backends, capsys):
        def refuse(*args, **kwargs):
            raise dispatch.Unsupported("not on Sundays")

        backends("picky", SimpleNamespace(attention=refuse))
        content, _ = records(capsys, *SMALL, "--variants", "attention")
        assert [row["reason"] for row in content["rows"]] == [None, "not on Sundays"]
        assert not content["rows"][1]["wrong"]

    def test_choices(self, backends, capsys):
        backends("imitation", imitation())
        content, _ = records(capsys, *SMALL, "--variants", "flash_attention", "--backends", "imitation,imitation")
        assert [(row["variant"], row["backend"]) for row in content["rows"]] == [
            measure.BASELINE,
            ("flash_attention", "imitation"),
        ]

    def test_numbers_of_the_reference(self, backends, capsys):
        content, _ = records(capsys, "--shape", "2,4,2,130,8", *QUICK)
        rows = {row["variant"]: row for row in content["rows"]}
        assert content["rounds"] == 5
        assert all(len(row["seconds"]) == 5 and min(row["seconds"]) > 0 for row in rows.values())
        assert rows["attention"]["times_faster"] == 1
        assert rows["attention"]["pairs"] == 2 * 4 * 130 * 130
        assert rows["flash_attention"]["pairs"] == 2 * 4 * (64 * 64 + 64 * 128 + 2 * 130)
        assert all(0 < row["error"] < 1e-6 for row in rows.values())
        assert rows["attention"]["extra_bytes"] > 3 * 4 * 2 * 4 * 130 * 130 > rows["flash_attention"]["extra_bytes"]
        median = np.median(rows["attention"]["seconds"])
        assert rows["flash_attention"]["times_faster"] == pytest.approx(
            median / np.median(rows["flash_attention"]["seconds"])
        )

    def test_the_tiles_of_a_backend(self, backends, capsys):
        backends("imitation", imitation(TILES={"attention": (16, 32)}))
        content, err = records(capsys, *SMALL, "--backends", "imitation")
        rows = {row["variant"]: row for row in content["rows"][1:]}
        assert rows["attention"]["pairs"] == 4 * (16 * 32 + 16 * 32 + 1 * 33)
        assert not rows["attention"]["pairs_are_least"]
        assert rows["flash_attention"]["pairs"] == 4 * 33 * 34 // 2
        assert rows["flash_attention"]["pairs_are_least"] and "≥2.24 k" in err

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_dtypes(self, dtype, backends, capsys):
        backends("imitation", imitation())
        content, _ = records(capsys, *SMALL, "--dtype", dtype)
        assert f", {dtype}" in content["facts"]["shapes"]
        assert content["limit"] < 0.1
        assert len(content["rows"]) == 6

    def test_installed_backends_run(self, capsys):
        content, _ = records(capsys, "--tokens", "100", *QUICK)
        assert {row["backend"] for row in content["rows"]} == set(dispatch.backends())
        assert not any(row["wrong"] for row in content["rows"])

    @pytest.mark.parametrize(("load", "note"), [(0.5, False), (1000.0, True), (None, False)])
    def test_a_busy_machine_is_noted(self, load, note, backends, capsys, monkeypatch):
        monkeypatch.setattr(machine, "load", lambda: load)
        content, _ = records(capsys, *SMALL)
        assert ("others were at work" in content["facts"].get("note", "")) == note
        assert (f"load {load}" in content["facts"]["machine"]) == (load is not None)


class TestAWrongBackend:
    @pytest.mark.parametrize(
        "change",
        [
            lambda o: o * 1.001,
            lambda o: np.roll(o, 1, axis=-3),
            lambda o: np.where(np.arange(o.shape[-2])[:, None] == 7, o + 1e-3, o).astype(o.dtype),
            lambda o: np.where(np.arange(o.shape[-2])[:, None] == 7, np.nan, o).astype(o.dtype),
            lambda o: np.where(np.arange(o.shape[-2])[:, None] == 7, np.inf, o).astype(o.dtype),
            lambda o: o.astype(np.float64),
            lambda o: o[..., :-1, :],
            lambda o: 1 / 0,
        ],
        ids=["scale", "heads", "one row", "nan", "inf", "dtype", "shape", "exception"],
    )
    def test_does_not_look_fine(self, change, backends, capsys, tmp_path):
        backends("broken", imitation(change))
        content, err = records(capsys, *SMALL, "--variants", "attention", "--html", str(tmp_path / "a.html"), status=1)
        assert [row["wrong"] for row in content["rows"]] == [False, True]
        assert "WRONG" in err.split("max_d")[0] or "failed (1)" in err
        assert '<tr class="wrong">' in (tmp_path / "a.html").read_text(encoding="utf-8")

    def test_an_exception_is_named_and_the_others_run(self, backends, capsys):
        backends("broken", imitation(lambda o: 1 / 0))
        content, err = records(capsys, *SMALL, status=1)
        reasons = {row["reason"] for row in content["rows"] if row["backend"] == "broken"}
        assert reasons == {"failed: ZeroDivisionError: division by zero"}
        assert all(row["seconds"] for row in content["rows"] if row["backend"] == "numpy")
        assert "attention on broken: failed: ZeroDivisionError" in err

    def test_a_failure_in_a_later_round(self, backends, capsys):
        calls = []

        def tire(o):
            calls.append(1)
            return o if len(calls) < 5 else 1 / 0

        backends("broken", imitation(tire))
        content, _ = records(capsys, *SMALL, "--variants", "attention", status=1)
        assert content["rows"][1]["seconds"] == []
        assert len(content["rows"][0]["seconds"]) == content["rounds"] == 5

    def test_nan_and_inf_in_json_are_texts(self, backends, capsys):
        backends("broken", imitation(lambda o: np.full_like(o, np.nan)))
        content, _ = records(capsys, *SMALL, "--variants", "attention", status=1)
        assert content["rows"][1]["error"] == "nan"

    def test_large_scores_are_not_an_error(self, backends, capsys, arrays, saved):
        backends("reordered", SimpleNamespace(attention=forward("attention_split_kv")))
        content, _ = records(capsys, "--npz", saved(**arrays, scale=300.0), "--variants", "attention", *QUICK)
        assert content["rows"][0]["error"] > 2e-6
        assert content["limit"] > 100 * np.finfo(np.float32).eps


class TestOutputs:
    def test_csv(self, backends, capsys, tmp_path):
        path = tmp_path / "a.csv"
        assert main(["compare", *SMALL, "--csv", str(path), "--variants", "flash_attention"]) == 0
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        assert [row["variant"] for row in rows] == ["attention", "flash_attention"]
        assert float(rows[1]["median_seconds"]) > 0 and rows[1]["wrong"] == "False" and rows[1]["reason"] == ""
        assert "flash_attention" in capsys.readouterr().out

    def test_csv_on_standard_output_moves_the_table(self, backends, capsys):
        assert main(["compare", *SMALL, "--csv", "-"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("variant,backend,error,") and len(out.splitlines()) == 4
        assert "machine" in err

    @pytest.mark.parametrize("mask", ["causal() & window(3, 0)", "none", "padding([33, 20])"])
    def test_html_is_one_readable_file(self, mask, backends, capsys, tmp_path):
        backends("a<b", imitation(names=("attention",), LIMITS={"flash_attention": "<script>"}))
        path = tmp_path / "a.html"
        assert main(["compare", "--shape", "2,4,2,33,8", *QUICK, "--mask", mask, "--html", str(path)]) == 0
        page = path.read_text(encoding="utf-8")
        images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', page)
        assert len(images) == 4 + (mask != "none")
        assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in images)
        assert "errors of attention on a&lt;b" in [alt for alt, _ in images]
        assert "<script" not in page and "&lt;script&gt;" in page
        assert not re.search(r"\\b(src|href)=\"(?!data:)", page) and "@import" not in page and "url(" not in page
        assert "standard normal, seed 0" in page and "cores" in page

    def test_html_of_long_input_stays_small(self, backends, tmp_path):
        path = tmp_path / "a.html"
        words = ("--shape", "1,1,1,3000,2", "--mask", "window(3, 0)", "--variants", "attention")
        assert main(["compare", *words, *QUICK, "--html", str(path)]) == 0
        assert path.stat().st_size < 500_000

    @pytest.mark.parametrize("option", ["--json", "--csv", "--html"])
    @pytest.mark.parametrize("path", ["missing/file", "."])
    def test_an_unwritable_path_is_found_first(self, option, path, never, backends, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["compare", *SMALL, option, path]) == 2
        assert option in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_no_file(self, backends, tmp_path, monkeypatch):
        def fail(*args):
            raise ValueError("no table today")

        monkeypatch.setattr(compare.compare_report, "to_json", fail)
        assert main(["compare", *SMALL, "--json", str(tmp_path / "a.json")]) == 2
        assert list(tmp_path.iterdir()) == []
