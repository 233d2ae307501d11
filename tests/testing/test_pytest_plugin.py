"""pytest's view of the kit: a test per check, the fixture, the options. Each test runs pytest inside of pytest."""

import subprocess
import sys

import pytest

# What a run inside imports first, it also takes out of sys.modules at its end.
import refattn.testing.diagnose
import refattn.testing.parametrize
import refattn.testing.reports.html
import refattn.testing.reports.terminal
import refattn.testing.waivers  # noqa: F401
from refattn.testing import pytest_plugin

pytest_plugins = ["pytester"]

KERNELS = """
import numpy as np
import pytest
from refattn import attention
from refattn.testing.contract import Contract
from refattn.testing.parametrize import parametrize_with_checks

def good(q, k, v):
    return attention(q, k, v, return_lse=True)

def doubled(q, k, v):
    o, lse = attention(q, k, v, return_lse=True)
    return 2 * o, lse
"""
LEDGER = '[[waiver]]\ncheck = "{check}"\nreason = "twice as large"\nlink = "#12"\n'


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on a test file, with no plugin but ours."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(source, *options):
        pytester.makepyfile(KERNELS + source)
        return pytester.runpytest_inprocess("-p", "refattn.testing.pytest_plugin", "-ra", *options)

    return run


PER_CHECK = """
@parametrize_with_checks({})
def test_kernel(check):
    check()
"""
FEW = ("-k", "memory_fortran or mask_causal")  # mask_causal needs options


def test_a_good_kernel_passes_and_says_what_was_not_run(run):
    result = run(PER_CHECK.format("good"), *FEW)
    result.assert_outcomes(passed=1, skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["SKIPPED*the kernel does not take mask, causal"])


def test_a_bad_kernel_fails_with_the_report_of_the_check(run):
    result = run(PER_CHECK.format("doubled"), "-k", "memory_fortran", "--attention-seed", "7")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*test_kernel?attention/memory_fortran?*",
            ">       check()",
            "E*AssertionError: doubled: attention, float32, level quick, seed 7: FAIL",
            "E*FAIL attention/memory_fortran*",
            "E*to repeat: rt.check(kernel, rt.Contract(dtype='float32', options=()), level='quick', seed=7)",
        ]
    )
    assert "parametrize.py" not in result.stdout.str()


def test_several_kernels_have_their_names_in_the_ids(run):
    result = run(PER_CHECK.format("[good, doubled, good]"), "--collect-only", "-q", "-k", "memory_fortran")
    ids = [line.partition("[")[2] for line in result.outlines if "[" in line]
    assert ids == [f"{name}/attention/memory_fortran]" for name in ("good0", "doubled", "good1")]


def test_the_level_is_that_of_the_decorator_or_the_option(run):
    def number(source, *options):
        return sum("::test_kernel[" in line for line in run(source, "--collect-only", "-q", *options).outlines)

    quick, fixed = PER_CHECK.format("good"), PER_CHECK.format("good, level='standard'")
    assert number(quick) < number(fixed) == number(quick, "--attention-level", "standard")
    assert number(fixed, "--attention-level", "quick") == number(fixed)


def test_what_the_decorator_refuses(run):
    for source, message in (("3", "kernel is int"), ("good, level='thorough'", "level is 'thorough'")):
        result = run(PER_CHECK.format(source))
        assert result.ret == 2
        result.stdout.fnmatch_lines([f"E*{message}*"])


def test_a_waived_failure_is_expected(run, pytester):
    pytester.path.joinpath("known.toml").write_text(LEDGER.format(check="attention/memory_fortran"))
    result = run(PER_CHECK.format("doubled"), *FEW, "--attention-waivers", "known.toml")
    outcomes = result.parseoutcomes()
    assert (outcomes["xfailed"], outcomes["skipped"], outcomes.get("failed")) == (1, 1, None)
    result.stdout.fnmatch_lines(["XFAIL*waived, FAIL: twice as large (#12)"])
    own = run(PER_CHECK.format("doubled, waivers='known.toml'"), *FEW)
    assert own.parseoutcomes()["xfailed"] == 1


def test_a_waiver_that_is_not_needed_fails(run, pytester):
    pytester.path.joinpath("known.toml").write_text(LEDGER.format(check="attention/memory_fortran"))
    result = run(PER_CHECK.format("good"), *FEW, "--attention-waivers", "known.toml")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["E*the waiver for attention/memory_fortran*is not needed any more:*"])


def test_a_pattern_is_not_needed_only_when_all_its_checks_pass(run, pytester):
    pytester.path.joinpath("known.toml").write_text(LEDGER.format(check="attention/memory_*"))
    result = run(PER_CHECK.format("good"), "-k", "memory_fortran", "--attention-waivers", "known.toml")
    assert result.parseoutcomes()["passed"] == 1


def test_a_waiver_of_no_check_is_told_once(run, pytester):
    pytester.path.joinpath("known.toml").write_text(LEDGER.format(check="attention/memory_fortan"))
    result = run(PER_CHECK.format("good"), "-k", "memory_fortran or ties", "--attention-waivers", "known.toml")
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1 and outcomes["passed"] >= 1
    result.stdout.fnmatch_lines(["E*attention/memory_fortan*matches no check*"])


FIXTURE = """
def unscaled(q, k, v):
    return attention(q, k, v, scale=1.0, return_lse=True)

def only(id):
    return id == "attention/memory_fortran"

def test_good(attention_check):
    report = attention_check(good, Contract(), only=only)
    assert report.ok and (report.level, report.seed) == ("quick", 3)

def test_bad(attention_check):
    attention_check(unscaled, only=only)

def test_nothing(attention_check):
    attention_check(good, only=lambda id: False)
"""


def test_the_fixture(run):
    result = run(FIXTURE, "--attention-seed", "3")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["E*unscaled: attention, float32, level quick, seed 3: FAIL", "E*most likely: *scale*"])
    result.stdout.fnmatch_lines(["E*Nothing was checked*"])


def test_the_fixture_knows_the_waivers(run, pytester):
    pytester.path.joinpath("known.toml").write_text(LEDGER.format(check="attention/memory_fortran"))
    result = run(FIXTURE, "-k", "bad", "--attention-waivers", "known.toml")
    assert result.parseoutcomes()["passed"] == 1


def test_one_page_for_one_kernel(run, pytester):
    result = run(PER_CHECK.format("good"), *FEW, "--attention-html", "page.html")
    result.stdout.fnmatch_lines(["attention kernels: page.html"])
    assert [path.name for path in pytester.path.glob("*.html")] == ["page.html"]
    assert "<h1>good</h1>" in pytester.path.joinpath("page.html").read_text(encoding="utf-8")


def test_a_page_for_each_of_several_kernels(run, pytester):
    run(FIXTURE, "-k", "good or bad", "--attention-html", "page.html")
    assert sorted(path.name for path in pytester.path.glob("*.html")) == ["page-1.html", "page-2.html", "page.html"]
    page = pytester.path.joinpath("page.html").read_text(encoding="utf-8")
    assert '<a href="page-1.html">good</a>' in page and '<a href="page-2.html">unscaled</a>' in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attention-waivers", "none.toml"), "*--attention-waivers: *none.toml*"),
        (("--attention-html", "none/page.html"), "*--attention-html: there is no folder none"),
        (("--attention-seed", "-1"), "*--attention-seed is -1; wanted 0 or more"),
        (("--attention-level", "thorough"), "*invalid choice: 'thorough'*"),
    ],
)
def test_options_are_refused_at_once(run, options, message):
    before = pytest_plugin.settings()
    result = run(PER_CHECK.format("good"), *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    assert pytest_plugin.settings() is before


def test_a_run_inside_leaves_the_settings_of_the_outer_one(run):
    before = pytest_plugin.settings()
    source = "from refattn.testing.pytest_plugin import settings\ndef test_seed():\n    assert settings().seed == 5\n"
    run(source, "--attention-seed", "5").assert_outcomes(passed=1)
    assert pytest_plugin.settings() is before


def test_the_plugin_brings_in_nothing_optional():
    code = "import sys, refattn.testing.pytest_plugin; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pytest" in loaded
    assert not {"numba", "rich", "matplotlib", "ml_dtypes", "torch", "safetensors", "hypothesis"} & set(loaded)
