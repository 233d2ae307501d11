import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from refattn.cli import main, measure, problem
from tests.cli.imitations import QUICK, SMALL, imitation, records


def test_npz_with_everything(arrays, saved, backends, capsys):
    rng = np.random.default_rng(0)
    options = {
        "mask": rng.random((9, 11)) < 0.7,
        "bias": rng.standard_normal((4, 9, 11), np.float32),
        "sinks": np.ones(4, np.float32),
        "scale": np.float64(0.5),
        "softcap": 30,
    }
    content, _ = records(capsys, "--npz", saved(**arrays, **options), *QUICK)
    assert content["facts"]["options"] == "scale 0.5, softcap 30, bias (4, 9, 11), sinks (4,)"
    assert f"{4 * options['mask'].sum()} visible pairs" in content["facts"]["mask"]
    assert all(row["error"] < 1e-6 for row in content["rows"])


def test_npz_without_mask_sees_everything(arrays, saved, backends, capsys):
    content, _ = records(capsys, "--npz", saved(**arrays), *QUICK)
    assert content["facts"]["mask"] == "none: 396 visible pairs over all heads, 100 % of all"
    content, _ = records(capsys, "--npz", saved(**arrays), "--mask", "causal()", "--dtype", "float64", *QUICK)
    assert content["facts"]["mask"].startswith("causal(): 252 visible pairs")
    assert content["facts"]["shapes"].endswith("float64")


def test_two_dimensional_npz(saved, backends, capsys):
    x = np.ones((3, 2))
    content, _ = records(capsys, "--npz", saved(q=x, k=x, v=x), *QUICK)
    assert [row["error"] for row in content["rows"]] == [0, 0, 0]


def test_nan_in_the_input_is_no_error(arrays, saved, backends, capsys, tmp_path):
    arrays["v"][:, 3, 2] = np.nan
    arrays["k"][:, 5] = np.inf
    html = str(tmp_path / "a.html")
    content, _ = records(capsys, "--npz", saved(**arrays), "--mask", "causal()", "--html", html, *QUICK)
    assert all(row["error"] < 1e-6 for row in content["rows"])


def test_a_nan_that_is_lost_is_wrong(arrays, saved, backends, capsys):
    arrays["v"][:, 3] = np.nan
    backends("tidy", imitation(np.nan_to_num, names=("attention",)))
    words = ("--npz", saved(**arrays), "--variants", "attention", *QUICK)
    content, _ = records(capsys, *words, status=1)
    assert [row["error"] for row in content["rows"]] == [pytest.approx(0, abs=1e-6), "inf"]


@pytest.mark.parametrize("shape", ["1,1,1,1,1", "2,3,1,1,4"])
def test_one_token(shape, backends, capsys):
    content, _ = records(capsys, "--shape", shape, *QUICK)
    assert [row["error"] for row in content["rows"]] == [0, 0, 0]


def test_layers_and_seeds_differ():
    first, second = (problem.bundled_inputs(layer, 8)[0] for layer in (0, 1))
    assert not np.array_equal(first, second)
    one, same, other = (problem.random_inputs("1,1,1,4,4", seed, np.dtype("f4"))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_too_large_for_the_memory(backends, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "free_memory", lambda: 1000)
    content, err = records(capsys, *SMALL, "--html", str(tmp_path / "a.html"))
    reasons = {row["variant"]: row["reason"] for row in content["rows"]}
    assert reasons["attention"] == "it holds 0.0 GiB of scores; 0.0 GiB are free"
    assert reasons["flash_attention"] is None
    assert all(row["times_faster"] is None for row in content["rows"])
    assert "not run (1)" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "1,4,2,8"], "--shape is '1,4,2,8'; wanted five positive integers"),
        (["--shape", "1,4,2,8,x"], "wanted five positive integers"),
        (["--shape", "1,4,2,0,8"], "wanted five positive integers"),
        (["--shape", "1,4,2,-8,8"], "wanted five positive integers"),
        (["--shape", "1,4,3,8,8"], "compare: 4 query heads cannot share 3 key heads evenly"),
        (["--shape", "1,1,1,8,8", "--dtype", "int8"], "--dtype is 'int8'; wanted one of float16, bfloat16,"),
        (["--shape", "1,1,1,8,8", "--npz", "a.npz"], "two inputs"),
        (["--shape", "1,1,1,8,8", "--tokens", "5"], "--tokens belongs to the bundled GPT, not to --shape"),
        (["--shape", "1,1,1,8,8", "--layer", "0"], "--layer belongs to the bundled GPT"),
        (["--shape", "1,1,1,8,8", "--seed", "-1"], "--seed is -1"),
        (["--shape", "1,1,1,8,8", "--seconds", "-1"], "--seconds is -1.0; wanted 0 or more"),
        (["--shape", "1,1,1,8,8", "--seconds", "nan"], "--seconds is nan"),
        (["--shape", "1,1,1,8,8", "--mask", "causal() & windo(3, 0)"], "no pattern 'windo'; there are bigbird"),
        (["--shape", "1,1,1,8,8", "--mask", "document([0, 1])"], "ids has 2 entries, but there are 8 keys"),
        (["--shape", "1,1,1,8,8", "--mask", "padding([3, 4])"], "compare: mask has shape"),
        (["--shape", "1,1,1,8,8", "--backends", "numpy,nunba"], "no backend 'nunba'; there are: numpy"),
        (["--shape", "1,1,1,8,8", "--backends", "auto"], "no backend 'auto' (auto is a choice among them)"),
        (["--shape", "1,1,1,8,8", "--backends", ","], "--backends names none"),
        (["--shape", "1,1,1,8,8", "--variants", "flash"], "no variant 'flash'; there are: attention, flash_attent"),
        (["--tokens", "0"], "--tokens is 0; wanted at least 1"),
        (["--tokens", "100000000"], "but the bundled text has"),
        (["--layer", "99"], "--layer is 99; the bundled GPT has the layers 0 to"),
        (["--layer", "-1"], "--layer is -1"),
        (["--npz", "missing.npz"], "missing.npz: No such file or directory"),
    ],
)
def test_bad_input(words, message, never, backends, capsys):
    assert main(["compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refattn: error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": None}, "there is no k; wanted q, k, v"),
        ({"K": np.ones(3), "k": None}, "there is no k and an unknown K"),
        ({"q": np.ones((4, 9, 8), np.int64)}, "q has dtype int64"),
        ({"q": np.ones((4, 9, 8), ml_dtypes.bfloat16)}, "q has dtype |V2; wanted one of float16"),
        ({"q": np.ones((4, 9, 8))}, "the dtypes differ"),
        ({"q": np.ones((4, 9, 7), np.float32)}, "the last axis of q and k must be one D"),
        ({"q": np.ones((3, 9, 8), np.float32)}, "3 query heads cannot share 2 key heads"),
        ({"v": np.ones((2, 10, 5), np.float32)}, "k has 11 keys and v has 10 values"),
        ({"mask": np.ones((9, 11), np.float32)}, "mask has dtype float32; wanted bool"),
        ({"mask": np.ones((9, 10), bool)}, "mask: array has shape (9, 10)"),
        ({"mask": np.ones(11, bool)}, "mask has shape (11,)"),
        ({"bias": np.ones((5, 9, 11), np.float32)}, "bias has shape (5, 9, 11)"),
        ({"bias": np.ones((9, 11), bool)}, "bias has dtype bool"),
        ({"sinks": np.ones(3, np.float32)}, "sinks has shape (3,)"),
        ({"scale": np.ones(2)}, "scale is float64 (2,); wanted one number"),
        ({"scale": np.array("x")}, "wanted one number"),
        ({"scale": np.float64("nan")}, "scale is nan; wanted a finite number"),
        ({"softcap": np.float64(0)}, "softcap is 0.0; wanted a finite number above 0"),
        ({"q": np.array([None, {}])}, "not a readable npz file"),
    ],
)
def test_bad_npz(change, message, arrays, saved, never, backends, capsys):
    merged = {name: x for name, x in {**arrays, **change}.items() if x is not None}
    assert main(["compare", "--npz", saved(**merged)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_two_masks(arrays, saved, never, backends, capsys):
    path = saved(**arrays, mask=np.ones((9, 11), bool))
    assert main(["compare", "--npz", path, "--mask", "causal()"]) == 2
    assert "has a mask of its own" in capsys.readouterr().err


def test_a_damaged_npz_is_refused(arrays, saved, never, backends, capsys):
    path = saved(**arrays)
    with open(path, "rb") as file:
        content = file.read()
    damaged = [b"", b"PK\x03\x04", b"nonsense", content[:100], content[: len(content) // 2], content[:-30]]
    for content in damaged:
        with open(path, "wb") as file:
            file.write(content)
        assert main(["compare", "--npz", path]) == 2
        err = capsys.readouterr().err
        assert "not a readable npz file" in err and err.count("\n") == 1


def test_any_damaged_byte_gives_an_answer_or_one_line(arrays, saved, backends, capsys):
    path = saved(**arrays)
    with open(path, "rb") as file:
        content = file.read()
    rng = np.random.default_rng(0)
    statuses = []
    for place in rng.integers(0, len(content), 150):
        with open(path, "wb") as file:
            file.write(content[:place] + bytes([content[place] ^ rng.integers(1, 256)]) + content[place + 1 :])
        try:
            problem.from_npz(path, None, None)
            statuses.append(0)
        except (ValueError, TypeError):
            statuses.append(2)
    assert set(statuses) == {0, 2} or set(statuses) == {2}


def test_other_files_are_no_npz(tmp_path, never, backends, capsys):
    np.save(tmp_path / "a.npy", np.ones(3))
    assert main(["compare", "--npz", str(tmp_path / "a.npy")]) == 2
    assert "a single array, not an npz file" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("q", "text")
    assert main(["compare", "--npz", str(tmp_path / "a.zip")]) == 2
    assert "a.zip: " in capsys.readouterr().err
    assert main(["compare", "--npz", str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "words", "install"),
    [
        ("rich", SMALL, 'this command needs rich: python -m pip install "refattn[cli]"'),
        (
            "matplotlib",
            (*SMALL, "--html", "a.html"),
            '--html needs matplotlib: python -m pip install "refattn[viz]"',
        ),
        ("ml_dtypes", (*SMALL, "--dtype", "bfloat16"), "needs ml_dtypes: python -m pip install ml_dtypes"),
    ],
)
def test_missing_packages(package, words, install, never, backends, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["compare", *words]) == 2
    err = capsys.readouterr().err
    assert install in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_not_needed_without_html(backends, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", *SMALL]) == 0
