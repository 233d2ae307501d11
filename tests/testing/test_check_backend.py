"""What `check_backend` says of backends that break a rule, and the command around it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import refattn
from refattn.testing import check_backend
from refattn.testing.__main__ import main
from refattn.testing.calls import FAMILIES
from refattn.testing.conformance import false_limits
from refattn.testing.verdicts import NOT_RUN, PASS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def judged():
    """Register a backend of these functions and check it on rope, quickly."""

    def check(operations=("rope",), **members):
        refattn.register("judged", SimpleNamespace(**members))
        return check_backend("judged", operations, level="quick")

    yield check
    refattn.unregister("judged")


def said(report):
    """Everything that counts against a backend, a line each."""
    return "\n".join([*(f"{r.check}: {r.message}" for r in report.failures), *report.complaints])


def rope(*args, **options):
    return refattn.rope(*args, **options, backend="numpy")


def test_a_right_backend_passes(judged):
    report = judged(rope=rope)
    assert report.ok
    assert report.count(PASS, "rope/") == len(report.results) > 5


def test_what_is_missing_without_a_word_fails(judged):
    report = judged()
    assert not report.ok
    assert "refused, and LIMITS does not say so: backend 'judged' does not cover this call" in said(report)


def test_what_limits_announce_is_in_order(judged):
    report = judged(LIMITS={"rope": "it cannot turn"})
    assert report.ok
    assert report.count(NOT_RUN, "rope/") == len(report.results)


def test_a_limit_of_an_argument_covers_the_cases_that_give_it(judged):
    def halves_only(x, positions, *, interleaved=False, **options):
        return rope(x, positions, **options)  # ignores it

    report = judged(rope=halves_only, LIMITS={"rope(interleaved)": "halves only"})
    assert report.ok, said(report)
    assert 0 < report.count(NOT_RUN) < report.count(PASS)
    assert "rope/interleaved/float32: result[" in said(judged(rope=halves_only))


def test_a_limit_that_is_none_fails(judged):
    assert said(judged(rope=rope, LIMITS={"rope": "too slow"})) == "LIMITS excludes 'rope', which works"
    assert "excludes 'rope(theta)', which works" in said(judged(rope=rope, LIMITS={"rope(theta)": "one theta only"}))


def test_a_refusal_from_inside_must_be_announced(judged):
    def refuses(*args, **options):
        raise refattn.Unsupported("not today")

    assert "LIMITS does not say so: not today" in said(judged(rope=refuses))
    assert judged(rope=refuses, LIMITS={"rope": "not today"}).ok


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"ropes": "x"}, "LIMITS names 'ropes', which does not exist"),
        ({"rope(phase)": "x"}, r"LIMITS names 'rope\(phase\)', which does not exist"),
        ({"rope(theta)": " "}, r"LIMITS gives no reason for 'rope\(theta\)'"),
    ],
)
def test_limits_that_say_nothing_fail(limits, says):
    (complaint,) = false_limits(limits)
    assert re.search(says, complaint)


def writes(x, positions, **options):
    x[...] = 0
    return x


def views(x, positions, **options):
    return x


def raises(*args, **options):
    raise RuntimeError("a kernel died")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (writes, "raised ValueError: assignment destination is read-only"),
        (views, "rope/(plain|rotary_dim_zero)/.*(too far off|a view of an input)"),
        (raises, "raised RuntimeError: a kernel died"),
        (lambda *args, **options: None, "result is NoneType"),
        (lambda *args, **options: (rope(*args, **options), 1), "returned tuple of o, lse; wanted ndarray"),
    ],
)
def test_a_failure_has_its_reason(judged, function, says):
    assert re.search(says, said(judged(rope=function)))


def test_a_writer_that_lifts_the_protection_is_caught(judged):
    def sneaks(x, positions, **options):
        result = rope(x, positions, **options)
        x.flags.writeable = True
        x[...] = 0
        return result

    assert "an input was written to" in said(judged(rope=sneaks))


def test_an_operation_without_cases_fails(judged, monkeypatch):
    monkeypatch.delitem(FAMILIES, "rope")
    assert said(judged(rope=rope)) == "rope has no cases in refattn.testing"


def test_unknown_names_are_refused():
    with pytest.raises(LookupError, match="no backend 'numbaa'"):
        check_backend("numbaa")
    with pytest.raises(LookupError, match="no operation 'ropes'"):
        check_backend("numpy", ["ropes"])


def test_progress_is_reported():
    seen = []
    report = check_backend("numpy", ["rope"], level="quick", on_result=seen.append)
    assert seen == report.results


def test_the_command_prints_a_table(capsys):
    assert main(["--backend", "numpy", "--operation", "rope", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["operation", "numpy"]
    assert lines[1].startswith("rope ") and "passed" in lines[1]


def test_the_command_fails_with_a_backend(capsys, judged):
    judged(rope=raises)
    assert main(["--backend", "judged", "--operation", "rope", "--quick", "--failures", "2"]) == 1
    out = capsys.readouterr().out
    assert "0 passed" in out and "FAILED" in out
    assert out.count("a kernel died") == 2
    assert "more" in out


def test_the_command_says_what_it_could_not_try(capsys, judged):
    judged(rope=rope, unavailable=lambda: "no such processor")
    assert main(["--backend", "judged", "--operation", "rope", "--quick"]) == 1
    assert "not tried: backend 'judged' cannot run here: no such processor" in capsys.readouterr().out
    assert main(["--backend", "absent", "--operation", "rope", "--quick"]) == 1
    assert "not tried: no backend 'absent'" in capsys.readouterr().out


def test_the_command_runs_from_anywhere_without_pytest(tmp_path):
    (tmp_path / "pytest.py").write_text("raise ImportError('no pytest here')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [
        sys.executable,
        "-m",
        "refattn.testing",
        "--quick",
        "--backend",
        "numpy",
        "--operation",
        "merge_attention",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "merge_attention" in done.stdout
