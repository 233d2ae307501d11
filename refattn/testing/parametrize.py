"""One pytest test per check: `parametrize_with_checks`."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from refattn.testing.checks import Check, Run, perform
from refattn.testing.contract import Contract
from refattn.testing.kit import checks, name_of, operation
from refattn.testing.ledger import apply_ledger
from refattn.testing.session import TIMEOUT, Session
from refattn.testing.verdicts import NOT_RUN, Report, Result
from refattn.testing.waivers import WaiverRule, load_waivers

Test = TypeVar("Test", bound=Callable[..., Any])


def parametrize_with_checks(
    kernel: Callable[..., Any] | Sequence[Callable[..., Any]],
    contract: Contract | None = None,
    level: str | None = None,
    *,
    seed: int | None = None,
    waivers: str | Path | None = None,
    timeout: float = TIMEOUT,
) -> Callable[[Test], Test]:
    """Make of one test function a pytest test per check.

    The function takes one argument, `check`, and calls it. The test fails if the check does, with the report of that
    check as its message; it is skipped, with the reason, if the contract rules the check out; it is an expected failure
    if a ledger waives it. Nothing is computed before the test runs.

    Parameters
    ----------
    kernel : callable, or a list of them
        (q, k, v, **options) -> o or (o, lse); with several, the ids of the tests begin with their names.
    contract : Contract, optional
        What the kernel claims; that of `refattn.attention` in float32 unless given.
    level : str, optional
        "quick", "standard" or "deep"; unless given, what pytest's option --attention-level says, or "quick".
    seed : int, optional
        Of everything that is drawn; unless given, what --attention-seed says, or 0.
    waivers : str or Path, optional
        A ledger, see `refattn.testing.waivers`; unless given, that of --attention-waivers.
    timeout : float
        Seconds that one call of the kernel may take.

    Returns
    -------
    function
        A decorator for a test function.

    Raises
    ------
    LookupError, ValueError, TypeError
        For an operation or a level that the kit does not know, a kernel that cannot be called, or a ledger that is
        none.

    Examples
    --------
    >>> from refattn import attention
    >>> @parametrize_with_checks(lambda q, k, v: attention(q, k, v), Contract(lse=None), level="quick")
    ... def test_kernel(check):
    ...     check()
    >>> test_kernel.pytestmark[0].kwargs["ids"][0]
    'attention/normal_plain'
    """
    import pytest

    from refattn.testing.pytest_plugin import settings

    contract = Contract() if contract is None else contract
    level = settings().level if level is None else level
    seed = settings().seed if seed is None else seed
    ledger = settings().waivers if waivers is None else waivers
    rules = [] if ledger is None else load_waivers(ledger)
    several = isinstance(kernel, list | tuple)
    kernels: list[Any] = list(kernel) if isinstance(kernel, list | tuple) else [kernel]
    cache: dict[Hashable, Any] = {}
    tests = []
    for name, one in zip(_names(kernels), kernels, strict=True):
        judged = _Judged(one, name, contract, level, seed, rules, timeout, cache)
        tests += [KernelCheck(check, judged, f"{name}/{check.id}" if several else check.id) for check in judged.checks]
    return pytest.mark.parametrize("check", tests, ids=[test.id for test in tests])


class KernelCheck:
    """One check of one kernel: call it in a test."""

    def __init__(self, check: Check, judged: "_Judged", id: str) -> None:
        self.check, self._judged, self.id = check, judged, id

    def __repr__(self) -> str:
        return f"<check {self.id}>"

    def __call__(self) -> Result:
        """Run the check; AssertionError if it fails, and pytest's skip or xfail where those are in order."""
        __tracebackhide__ = True
        import pytest

        report = self._judged.judge(self.check)
        result = report.results[0]
        if not report.ok:
            raise AssertionError(str(report))
        if result.verdict == NOT_RUN:
            pytest.skip(result.message)
        if result.waiver is not None:
            pytest.xfail(f"waived, {result.verdict}: {result.waiver.reason} ({result.waiver.link})")
        return result


class _Judged:
    """One kernel, what its checks share, and their results so far."""

    def __init__(
        self,
        kernel: Callable[..., Any],
        name: str,
        contract: Contract,
        level: str,
        seed: int,
        rules: list[WaiverRule],
        timeout: float,
        cache: dict[Hashable, Any],
    ) -> None:
        self.checks = checks(contract, level)
        if not callable(kernel):
            raise TypeError(f"parametrize_with_checks: kernel is {type(kernel).__name__}; wanted something to call")
        contract = contract.with_options_of(kernel, operation(contract.op).options)
        self._run = Run(Session(kernel, contract, seed, timeout), cache)
        self._report = Report(name, contract, level, seed)
        self._rules = rules

    def judge(self, check: Check) -> Report:
        """Return a report on one check: its result, and the complaints that it brings about."""
        from refattn.testing.pytest_plugin import settings

        everything = self._report
        result = perform(check, self._run)
        self._run.outputs.clear()
        everything.results = [other for other in everything.results if other.check != check.id] + [result]
        reports = settings().reports
        if not any(report is everything for report in reports):
            reports.append(everything)
        alone = Report(everything.subject, everything.contract, everything.level, everything.seed, [result])
        for rule in self._rules:
            trial = Report(alone.subject, alone.contract, alone.level, alone.seed, list(everything.results))
            apply_ledger(trial, [rule])
            concerned = rule.covers(alone, result) or not any(rule.covers(alone, r) for r in everything.results)
            fresh = [text for text in trial.complaints if concerned and text not in everything.complaints]
            everything.complaints += fresh
            alone.complaints += fresh
            if trial.results[-1].waiver is not None:
                alone.results[0] = everything.results[-1] = trial.results[-1]
        return alone


def _names(kernels: Sequence[Any]) -> list[str]:
    """Return the kernels' names, numbered where two have the same."""
    names = [name_of(kernel) for kernel in kernels]
    return [name if names.count(name) == 1 else f"{name}{names[:n].count(name)}" for n, name in enumerate(names)]
