"""The commands that judge: check, infer, audit, vectors. What they compute is tested in tests/testing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import refattn.testing
from refattn.cli import claims, main, verdict
from refattn.testing import kit
from refattn.testing.contract import Contract
from refattn.testing.loading import load_object, nearest
from refattn.testing.verdicts import Report, Result

KERNELS = """
import os
from refattn import attention, masks

VALUE = 3

def good(q, k, v):
    return attention(q, k, v, return_lse=True)

def swa(q, k, v):
    return attention(q, k, v, mask=masks.causal() & masks.window(7, 0), return_lse=True)

def top_left(q, k, v, *, causal=False):
    return attention(q, k, v, mask=masks.causal(0) if causal else None)

def tokens_first(q, k, v):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return attention(q, k, v).swapaxes(1, 2).copy()

def crash(q, k, v):
    os.abort()

class Kernels:
    good = staticmethod(good)
"""
ONLY = ("--level", "quick", "--only", "memory_fortran")
FOREIGN = Path(__file__).parents[1] / "testing" / "foreign"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with kernels_of_mine.py, and modules and their path as before afterwards."""
    (tmp_path / "kernels_of_mine.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


def check(*words):
    return main(["check", *words, *ONLY])


@pytest.mark.parametrize("kernel", ["kernels_of_mine:good", "kernels_of_mine.py:good", "kernels_of_mine:Kernels.good"])
def test_a_good_kernel(kernel, capsys):
    assert check(kernel) == 0
    out, err = capsys.readouterr()
    assert out.startswith("good: attention, float32, level quick, seed 0: PASS")
    assert "1 check: 1 PASS" in out and err == ""


def test_a_bad_kernel(capsys):
    assert check("kernels_of_mine:swa", "--seed", "4") == 1
    out = capsys.readouterr().out
    assert "seed 4: FAIL" in out and "FAIL attention/memory_fortran" in out


def test_what_holds_in_every_call():
    assert check("kernels_of_mine:swa", "--causal", "--window", "7", "0") == 0
    assert check("kernels_of_mine:swa", "--window", "7", "0", "--set", "always.causal=true") == 0
    assert check("kernels_of_mine:swa", "--window", "6", "0") == 1


def test_nothing_checked_is_no_success(capsys):
    assert main(["check", "kernels_of_mine:good", "--level", "quick", "--only", "mask_causal"]) == 1
    assert "Nothing was checked" in capsys.readouterr().out


def test_reports_in_files(here, capsys):
    words = ("--html", "a.html", "--json", "a.json", "--junit", "a.xml")
    assert check("kernels_of_mine:swa", *words) == 1
    assert "<h1>swa</h1>" in (here / "a.html").read_text(encoding="utf-8")
    assert json.loads((here / "a.json").read_text())["counts"] == {"FAIL": 1}
    assert ElementTree.parse(here / "a.xml").getroot().tag == "testsuites"
    capsys.readouterr()
    assert check("kernels_of_mine:good", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is True and "1 PASS" in err


def test_waivers(here, capsys):
    ledger = here / "known.toml"
    ledger.write_text('[[waiver]]\ncheck = "attention/memory_*"\nreason = "known"\nlink = "#12"\n')
    assert check("kernels_of_mine:swa", "--waivers", "known.toml") == 0
    assert "known (#12)" in capsys.readouterr().out
    assert check("kernels_of_mine:good", "--waivers", "known.toml") == 0  # the other memory_ checks have not run
    ledger.write_text(ledger.read_text().replace("memory_*", "memory_fortran"))
    assert check("kernels_of_mine:good", "--waivers", "known.toml") == 1
    assert "is not needed any more" in capsys.readouterr().out


def test_other_layouts():
    assert check("kernels_of_mine:tokens_first", "--layout", "bthd") == 0
    assert check("kernels_of_mine:tokens_first") == 1


def test_a_crash_in_a_process_of_its_own(capsys):
    assert check("kernels_of_mine:crash", "--isolate", "--timeout", "20") == 1
    assert "the kernel died: SIGABRT" in capsys.readouterr().out


def test_arrays_of_another_library():
    assert check("kernels_of_mine:good", "--arrays", "numpy") == 0


def test_a_program():
    serve = "from refattn import attention; from refattn.testing.adapters import serve; serve(attention)"
    command = f"{sys.executable} -c '{serve}'"
    assert check("--command", command) == 0
    assert main(["check", "--command", command, "--takes", "scale", "--level", "quick", "--only", "normal_scale"]) == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library(here, capsys):
    built = str(here / "kernel.so")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(FOREIGN / "attention.c"), "-o", built, "-lm"], check=True)
    signature = "q k v o lse B H Hk Tq Tk D Dv scale causal -> int"
    assert check("--library", built, "--symbol", "attention", "--signature", signature) == 0
    assert "attention: attention, float32" in capsys.readouterr().out


def test_a_backend(monkeypatch, capsys):
    asked = []

    def check_backend(name, *, level):
        asked.append((name, level))
        return Report(name, None, level, 0, [Result("rope/plain", "FAIL", "wrong")])

    monkeypatch.setattr(refattn.testing, "check_backend", check_backend)
    assert main(["check", "--backend", "mine", "--level", "quick"]) == 1
    assert asked == [("mine", "quick")]
    assert "FAIL rope/plain" in capsys.readouterr().out


def test_fail_fast(here):
    words = ["check", "kernels_of_mine:swa", "--level", "quick", "--only", "memory_*", "--json", "a.json"]
    assert main(words) == main([*words[:-1], "b.json", "--fail-fast"]) == 1
    every, some = (json.loads((here / name).read_text())["counts"]["FAIL"] for name in ("a.json", "b.json"))
    assert some == 1 < every


REFUSED = {
    "wanted one kernel: MODULE:FUNCTION, --command, --library or --backend; got none": [],
    "got MODULE:FUNCTION and --backend": ["kernels_of_mine:good", "--backend", "numba"],
    "--takes belongs to --command, not to MODULE:FUNCTION": ["kernels_of_mine:good", "--takes", "causal"],
    "--arrays belongs to a Python kernel, not to --command": ["--command", "x", "--arrays", "torch"],
    "--library wants --symbol and --signature": ["--library", "x.so"],
    "--isolate is for kernels in this process": ["--command", "x", "--isolate"],
    "--dtype does not go with --backend": ["--backend", "numba", "--dtype", "float16"],
    "--seed does not go with --backend": ["--backend", "numba", "--seed", "1"],
    "--timeout is 0": ["kernels_of_mine:good", "--timeout", "0"],
    "--seed is -1": ["kernels_of_mine:good", "--seed", "-1"],
    "'kernels_of_mine' names no function; wanted module:function": ["kernels_of_mine"],
    "there is no module 'kernels_of_min', neither here nor installed; did you mean 'kernels_of_mine'?": [
        "kernels_of_min:good"
    ],
    "there is no file other.py": ["other.py:good"],
    "kernels_of_mine has no 'goood'; did you mean 'good'?": ["kernels_of_mine:goood"],
    "kernels_of_mine:VALUE is int; wanted something to call": ["kernels_of_mine:VALUE"],
    "no operation 'attentoin'": ["kernels_of_mine:good", "--op", "attentoin"],
    "dtype is 'bf16'; wanted one of 'float32'": ["kernels_of_mine:good", "--dtype", "bf16"],
    "--set: a contract has no field 'causl'; did you mean 'causal'?": ["kernels_of_mine:good", "--set", "causl=1"],
    "no field 'always' (always.NAME=VALUE sets an option)": ["kernels_of_mine:good", "--set", "always=1"],
    "no option 'casual' that could hold in every call; did you mean 'causal'?": [
        *("kernels_of_mine:good", "--set", "always.casual=true")
    ],
    "--set wants NAME=VALUE; got 'tile'": ["kernels_of_mine:good", "--set", "tile"],
    "--set tile is 'x'; wanted a whole number": ["kernels_of_mine:good", "--set", "tile=x"],
    "--window wants two whole numbers": ["kernels_of_mine:good", "--window", "a", "0"],
    "no option 'caus'; did you mean 'causal'?": ["--command", sys.executable, "--takes", "caus"],
    "--only nedle: no check of this level is called so; did you mean 'needle_65'": [
        *("kernels_of_mine:good", "--only", "nedle")
    ],
    "--html cannot be written": ["kernels_of_mine:good", "--html", "nowhere/a.html"],
    "none.toml: No such file": ["kernels_of_mine:good", "--waivers", "none.toml"],
    "from.toml: No such file": ["kernels_of_mine:good", "--contract", "from.toml"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message, capsys, monkeypatch):
    def judged(*args, **kwargs):
        raise AssertionError("it judged before it refused")

    monkeypatch.setattr(kit, "check", judged)
    monkeypatch.setattr(refattn.testing, "check_backend", judged)
    assert main(["check", *REFUSED[message], "--level", "quick"]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


class TestClaims:
    @pytest.fixture
    def contract(self):
        def parsed(*words):
            import argparse

            parser = argparse.ArgumentParser()
            claims.add_arguments(parser)
            return claims.contract_of(parser.parse_args(words))

        return parsed

    def test_options(self, contract):
        assert contract() == Contract()
        made = contract(
            "--op", "attention_vjp", "--dtype", "float16", "--layout", "bthd", "--softcap", "20", "--scale", "1"
        )
        always = {"softcap": 20.0, "scale": 1.0}
        assert made == Contract("attention_vjp", "float16", layout="bthd", always=always)
        assert contract("--causal", "--window", "127", "none").always == {"causal": True, "window": (127, None)}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("lse=none", None),
            ("lse_blind=-inf", "-inf"),
            ("gqa=false", False),
            ("tile=32", 32),
            ("exp_ulp=1", 1.0),
            ("exp_ulp=1e-1", 0.1),
            ("head_dims=64,128", (64, 128)),
            ("head_dims=64", (64,)),
            ("max_keys=none", None),
            ("options=causal, scale", ("causal", "scale")),
            ("options=", ()),
            ("p = bfloat16", "bfloat16"),
        ],
    )
    def test_set(self, contract, text, value):
        name = text.partition("=")[0].strip()
        made = getattr(contract("--set", text), name)
        assert made == value and type(made) is type(value)

    @pytest.mark.parametrize("text", ["gqa=maybe", "gqa=1", "tile=1.5", "tile=none", "exp_ulp=true", "head_dims=64,a"])
    def test_set_refuses_other_types(self, contract, text):
        with pytest.raises(ValueError, match=f"--set {text.partition('=')[0]} is .*; wanted "):
            contract("--set", text)

    def test_a_file_comes_first(self, contract, here):
        (here / "a.toml").write_text('dtype = "bfloat16"\nlse = "none"\nhead_dims = [64]\n[always]\ncausal = true\n')
        assert contract("--contract", "a.toml") == Contract(
            dtype="bfloat16", lse=None, head_dims=(64,), always={"causal": True}
        )
        made = contract("--contract", "a.toml", "--dtype", "float16", "--set", "lse=base2", "--scale", "2")
        assert (made.dtype, made.lse, made.always) == ("float16", "base2", {"causal": True, "scale": 2.0})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dtype = ", "a.toml is not TOML"),
            ("causl = 1", "a.toml: a contract has no field 'causl'; did you mean 'causal'"),
            ("tile = '64'", "a.toml: tile is '64'; wanted a whole number"),
            ("head_dims = ['a']", "a.toml: head_dims is 'a'; wanted a whole number"),
            ("always = 1", "a.toml: always is 1; wanted a table"),
        ],
    )
    def test_a_file_that_is_none(self, contract, here, text, message):
        (here / "a.toml").write_text(text)
        with pytest.raises((ValueError, LookupError), match=message):
            contract("--contract", "a.toml")

    def test_what_is_written_is_read(self, contract, here):
        always = {"causal": True, "window": (127, None), "scale": 0.5}
        made = Contract(dtype="float16", lse=None, head_dims=(64, 128), options=(), exp_ulp=1.0, always=always)
        (here / "a.toml").write_text(claims.toml(made))
        assert contract("--contract", "a.toml") == made


def test_only():
    ids = [check.id for check in kit.checks(Contract(), "quick")]
    assert verdict.chosen(ids, ["attention/ties"]) == ["attention/ties"]
    assert verdict.chosen(ids, ["needle_6?"]) == ["attention/needle_65"]
    assert verdict.chosen(ids, ["*"]) == ids
    assert {"attention/needle_65", "attention/needle_200"} < set(verdict.chosen(ids, ["needle"]))


def test_progress_is_for_terminals(capsys, monkeypatch):
    with verdict.progress(2) as tell:
        tell("attention/ties PASS")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with verdict.progress(2) as tell:
        tell("attention/ties PASS")
    assert "1 of 2  attention/ties PASS" in capsys.readouterr().err


def test_infer(here, capsys):
    assert main(["infer", "kernels_of_mine:top_left"]) == 0
    out = capsys.readouterr().out
    assert "'top_left'" in out and "refattn check kernels_of_mine:top_left --contract contract.toml" in out
    assert main(["infer", "kernels_of_mine:top_left", "--toml"]) == 0
    out, err = capsys.readouterr()
    assert 'causal = "top_left"' in out and "# unknown: " in err
    (here / "contract.toml").write_text(out)
    words = ["check", "kernels_of_mine:top_left", "--level", "quick", "--only", "square_65_causal"]
    assert main([*words, "--contract", "contract.toml"]) == 0


def test_infer_of_what_is_no_attention(here, capsys):
    (here / "kernels_of_mine.py").write_text("def mean(q, k, v):\n    return v.mean(axis=2, keepdims=True) + 0 * q\n")
    assert main(["infer", "kernels_of_mine:mean", "--toml"]) == 1
    assert "# unknown: layout" in capsys.readouterr().err


TESTS = """
import numpy as np

def test_finite(kernel):
    x = np.ones((1, 2, 3, 8), np.float32)
    assert np.isfinite(kernel(x, x, x)[0]).all()

def test_ones(kernel):
    x = np.ones((1, 2, 3, 8), np.float32)
    assert np.allclose(kernel(x, x, x)[0], 1)

def test_without(rng):
    assert rng

class TestMore:
    def test_method(self, kernel):
        assert kernel
"""


class TestAudit:
    @pytest.fixture(autouse=True)
    def tests(self, here):
        (here / "test_of_mine.py").write_text(TESTS)

    def test_one_test(self, capsys):
        assert main(["audit", "test_of_mine.py::test_finite", "--groups", "dropout"]) == 1
        out, err = capsys.readouterr()
        assert "your suite (test_finite) kills 0 of 10 mutants of attention in float32; it misses 10" in out
        assert "dropout is ignored" in out and err == ""

    def test_a_file(self, here, capsys):
        words = ["audit", "test_of_mine.py", "--groups", "dropout,semantics", "--dtype", "bfloat16"]
        assert main([*words, "--json", "a.json", "--html", "a.html"]) == 1
        data = json.loads((here / "a.json").read_text())
        assert data["subject"] == "test_finite, test_ones" and data["dtype"] == "bfloat16"
        assert data["groups"]["dropout"] == {"killed": 0, "of": 10}
        assert "dropout is ignored" in (here / "a.html").read_text(encoding="utf-8")
        capsys.readouterr()
        assert main([*words, "--json", "-"]) == 1
        assert json.loads(capsys.readouterr().out)["groups"] == data["groups"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["test_of_mine.py::TestMore::test_method"], "is a method of a class"),
            (["test_of_mine.py::test_ones[3]"], "is one case of a parametrised test"),
            (["test_of_mine.py::test_one"], "has no 'test_one'; did you mean 'test_ones'"),
            (["kernels_of_mine.py"], "has no function test_... with an argument `kernel`"),
            (["test_of_mine.py", "--groups", "drop"], "no mutants of the group 'drop'"),
            (["test_of_mine.py", "--op", "conv"], "op is 'conv'"),
            (["test_of_mine.py", "--timeout", "-1"], "--timeout is -1"),
            (["test_of_mine.py", "--html", "nowhere/a.html"], "--html cannot be written"),
        ],
    )
    def test_what_is_refused(self, words, message, capsys):
        assert main(["audit", *words]) == 2
        assert message in capsys.readouterr().err


def test_vectors(here, capsys):
    words = ["vectors", "export", "cases", "--ops", "rope", "--dtypes", "float32"]
    assert main(words) == 0
    assert "wrote cases" in capsys.readouterr().out
    entries = json.loads((here / "cases" / "manifest.json").read_text())["entries"]
    (here / "cases" / "outputs").mkdir()
    for entry in entries:
        np.savez(here / "cases" / "outputs" / f"{entry['id'].replace('/', '__')}.npz", wrong=np.zeros(1))
    assert main(["vectors", "check", "cases", "--json", "a.json"]) == 1
    assert json.loads((here / "a.json").read_text())["counts"]["FAIL"] == len(entries)
    assert main(["vectors", "check", "nowhere"]) == 2


class TestLoading:
    def test_a_file_of_a_package(self, here):
        (here / "pkg").mkdir()
        (here / "pkg" / "__init__.py").write_text("")
        (here / "pkg" / "other.py").write_text("def f():\n    return 5\n")
        (here / "pkg" / "mine.py").write_text("from .other import f\n")
        assert load_object("pkg/mine.py:f")() == 5
        assert load_object("pkg.mine:f") is load_object("pkg/mine.py::f")

    def test_a_path_without_its_end(self, here):
        (here / "sub").mkdir()
        (here / "sub" / "mine.py").write_text("")
        with pytest.raises(ImportError, match=r"there is no file sub/mine; did you mean sub/mine[.]py"):
            load_object("sub/mine:f")

    def test_a_file_with_the_name_of_a_module_that_is_there(self, here):
        (here / "json.py").write_text("def f():\n    return 5\n")
        assert load_object("json.py:f")() == 5
        assert load_object("json.py:f") is load_object("json.py:f")
        assert sys.modules["json"] is json

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import nowhere_to_be_found", r"No module named 'nowhere_to_be_found' \(broken.py, line 1\)"),
            ("\nraise KeyError('x')", r"KeyError: 'x' \(broken.py, line 2\)"),
            ("def f(:", r"SyntaxError: .*\(broken.py, line 1\)"),
            ("import sys; sys.exit(3)", r"SystemExit: 3 \(broken.py, line 1\)"),
        ],
    )
    @pytest.mark.parametrize("named", ["broken:f", "broken.py:f"])
    def test_a_module_that_fails(self, here, source, message, named):
        (here / "broken.py").write_text(source)
        with pytest.raises(ImportError, match=f"cannot be imported: .*{message}"):
            load_object(named)
        assert "broken" not in sys.modules

    def test_nothing_to_offer(self):
        with pytest.raises(ValueError, match="names no function"):
            load_object(":f")
        with pytest.raises(ImportError, match=r"there is no file a/b$"):
            load_object("a/b:f")
        assert nearest("x", []) == "; there is none"
