"""The audit tells a test that notices from one that does not, and refuses what is no test of a kernel."""

import functools
import re
import time

import numpy as np
import pytest

from refattn.testing.audit import audit
from refattn.testing.audit_report import HINTS, page
from refattn.testing.mutants import MUTANTS, correct, mutants

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((1, 2, 5, 8), np.float32) for _ in range(3))


def nothing(kernel):
    kernel(Q, K, V)


def plain(kernel):
    s = Q @ K.swapaxes(-1, -2) / np.sqrt(8)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(kernel(Q, K, V)[0], p @ V / p.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-5)


def thorough(kernel):
    """Dropout as it should be tested: a share that is not a half, every head and sequence, two tiles, lse."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, 2, T, 8), np.float32) for T in (3, 70, 70))
    keep = rng.random((2, 2, 3, 70)) < 0.7
    o, lse = kernel(q, k, v, dropout_mask=keep, dropout_p=0.3)
    p = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(8))
    total = p.sum(axis=-1)
    np.testing.assert_allclose(o, keep * p @ v / (0.7 * total[..., None]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, np.log(total), rtol=1e-5)


def test_a_test_that_looks_at_nothing_kills_nothing():
    report = audit(nothing, groups=["dropout"])
    assert report.killed == [] and len(report.survived) == len(mutants("attention", "dropout"))
    assert not report.ok
    assert report.headline == "your suite (nothing) kills 0 of 10 mutants of attention in float32; it misses 10"


def test_a_thorough_test_kills_all():
    told = []
    report = audit(thorough, groups=["dropout"], on_mutant=lambda mutant, noticed: told.append((mutant.name, noticed)))
    assert report.ok and report.survived == []
    assert report.headline == "your suite (thorough) kills 10 of 10 mutants of attention in float32"
    assert [name for name, _ in told] == [mutant.name for mutant in report.killed]
    assert all(noticed == report.noticed[name] for name, noticed in told)
    assert all(re.match("thorough: AssertionError", noticed) for noticed in report.noticed.values())


def test_of_several_tests_one_has_to_notice():
    alone = audit(plain, groups=["semantics"])
    report = audit([nothing, plain], groups=["semantics"])
    assert [m.name for m in report.killed] == [m.name for m in alone.killed] != []
    assert report.subject == "nothing, plain"
    assert all(noticed.startswith("plain: ") for noticed in report.noticed.values())


def test_what_is_printed():
    report = audit(plain, groups=["semantics", "dropout"])
    text = str(report)
    for mutant in report.survived:
        assert f"  {mutant.name}\n    -" in text
    assert all(f"\n  {mutant.name}\n" not in text for mutant in report.killed)
    killed, total = report.groups["semantics"]
    assert re.search(rf"^semantics +{killed} of +{total}$", text, re.MULTILINE) and 0 < killed < total
    assert text.splitlines()[-1].startswith(report.headline)
    assert all(mutant.name in page(report).replace("&#x27;", "'") for mutant in MUTANTS if mutant in report.survived)


def test_for_programs():
    report = audit(plain, groups=["dropout"])
    data = report.as_dict()
    assert data["groups"] == {"dropout": {"killed": 0, "of": 10}}
    assert [entry["name"] for entry in data["survived"]] == [mutant.name for mutant in report.survived]


def test_what_nobody_could_notice_does_not_count():
    report = audit(nothing, dtype="bfloat16", groups=["precision"])
    every = mutants("attention", "precision")
    assert [m.name for m in report.equivalent] == [m.name for m in every if "bfloat16" in m.equivalent] != []
    assert len(report.survived) == len(every) - len(report.equivalent)
    assert f"{len(report.equivalent)} more are as good as correct in bfloat16" in str(report)


def test_a_test_that_hangs_has_noticed():
    def hangs(kernel):
        wrong = not np.array_equal(kernel(Q, K, V, dropout_mask=MASK, dropout_p=0.5)[0], right)
        while wrong:
            time.sleep(0.001)

    MASK = RNG.random((1, 2, 5, 5)) < 0.5
    right = correct()(Q, K, V, dropout_mask=MASK, dropout_p=0.5)[0]
    every = mutants("attention", "dropout")
    report = audit(hangs, groups=["dropout"], timeout=0.05)
    assert 0 < len(report.killed) <= len(every)
    assert all("did not return within 0.05 s" in noticed for noticed in report.noticed.values())
    assert "because the test did not end" in str(report)


def test_backward():
    def finite(kernel):
        assert all(np.isfinite(x).all() for x in kernel(Q, Q, K, V))

    report = audit(finite, "attention_vjp")
    assert len(report.killed) + len(report.survived) + len(report.equivalent) == len(mutants("attention_vjp"))


def test_false_is_a_failure():
    report = audit(lambda kernel: bool(np.isfinite(kernel(Q, K, V)[0]).all()), groups=["dropout"])
    assert report.killed == []


@pytest.mark.parametrize("outcome", [pytest.skip, pytest.xfail])
def test_a_skip_notices_nothing(outcome):
    calls = []

    def skips(kernel):
        calls.append(kernel)
        if len(calls) > 1:
            outcome("not today")

    assert audit(skips, groups=["dropout"]).killed == []


def fails(kernel):
    raise AssertionError("o is wrong\nthe rest")


def skipped(kernel):
    pytest.skip("not here")


def returns(kernel):
    return kernel(Q, K, V)


def two(kernel, rng):
    """Take a fixture, too."""


def none():
    """Take no kernel."""


@pytest.mark.parametrize("T", [1, 2])
def over_lengths(kernel, T):
    """Be called twice."""


async def later(kernel):
    """Be awaited."""


def stepwise(kernel):
    yield kernel


class Holder:
    def method(self, kernel):
        """Belong to a class."""


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (fails, "your test fails on the correct kernel: fails: AssertionError: o is wrong"),
        (skipped, "your test fails on the correct kernel: skipped: Skipped: not here"),
        (returns, "your test fails on the correct kernel: returns: it returned tuple; wanted an assert"),
        (two, "two takes rng besides the kernel"),
        (none, "none takes no kernel"),
        (over_lengths, "over_lengths is parametrised over T"),
        (later, "later is a coroutine"),
        (stepwise, "stepwise is a coroutine or a generator"),
        (Holder.method, "Holder.method is a method of a class"),
        ([], "there is no test"),
    ],
)
def test_what_is_no_test(test, message):
    with pytest.raises(ValueError, match=f"^audit: {re.escape(message)}"):
        audit(test)


def test_other_refusals():
    with pytest.raises(TypeError, match="the test is int"):
        audit(3)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        audit(nothing, dtype="int8")
    with pytest.raises(ValueError, match="no mutants of the group 'mask'; did you mean 'masks'"):
        audit(nothing, groups=["mask"])
    with pytest.raises(ValueError, match="op is 'conv'"):
        audit(nothing, op="conv")


@pytest.mark.parametrize("kernel", [None])
def over_kernels(kernel):
    nothing(kernel)


@pytest.mark.parametrize(
    "test",
    [
        lambda k: nothing(k),
        lambda *, kernel: nothing(kernel),
        lambda kernel=None: nothing(kernel),
        lambda x, /: nothing(x),
        lambda kernel, times=1: nothing(kernel),
        functools.partial(lambda kernel, T: nothing(kernel), T=4),
        over_kernels,
    ],
)
def test_ways_to_take_a_kernel(test):
    assert audit(test, groups=["dropout"]).killed == []


def test_every_group_of_attention_has_a_hint():
    assert {mutant.group for mutant in MUTANTS if mutant.op.startswith("attention")} <= set(HINTS)
