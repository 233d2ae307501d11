"""Run cases on a backend and compare with the reference in float64; see `check_backend`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import refattn
from refattn.dispatch import OPERATIONS, REFERENCE, Unsupported, known, load
from refattn.testing.calls import Call
from refattn.testing.cases import Case, cases
from refattn.testing.comparison import Wrong, arrays, compare, leaves, quietly

PASSED, FAILED, LIMITED = "passed", "failed", "limited"


@dataclass(frozen=True)
class Verdict:
    """What became of one case on one backend."""

    case: Case
    status: str
    """passed, failed, or limited: refused with a reason that the backend's LIMITS gives."""
    why: str = ""
    error: float = 0.0
    """The largest error, as a share of what was allowed."""


@dataclass
class Report:
    """What `check_backend` found."""

    backend: str
    verdicts: list[Verdict] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What is wrong with the backend apart from any case: its LIMITS, operations without cases."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.complaints and not self.failures

    @property
    def failures(self) -> list[Verdict]:
        """The failed cases."""
        return [verdict for verdict in self.verdicts if verdict.status == FAILED]

    def count(self, operation: str, status: str) -> int:
        """Return how many cases of the operation ended so."""
        return sum(verdict.case.operation == operation and verdict.status == status for verdict in self.verdicts)

    def __str__(self) -> str:
        lines = [f"{self.backend}: {verdict.case.id}: {verdict.why}" for verdict in self.failures]
        return "\n".join(lines + [f"{self.backend}: {complaint}" for complaint in self.complaints])


def check_backend(
    backend: str,
    operations: Iterable[str] | None = None,
    level: str = "standard",
    on_verdict: Callable[[Verdict], object] | None = None,
) -> Report:
    """Try a backend on the cases of every operation.

    Each case passes if the result has the structure, shapes and dtypes of the reference's, NaN and inf in the same
    places, values within the bound (see `refattn.testing.bounds`), if inputs are read and not written, if the result is
    no view of an input and outlives the next call, and if the same call gives the same bits again.

    A refusal (`Unsupported`) is in order only where the backend's ``LIMITS`` announces it, and an entry of ``LIMITS``
    is in order only as long as what it excludes does not work.

    Parameters
    ----------
    backend : str
        A backend's name; "numpy" tests the reference against itself in float64.
    operations : names, optional
        All of them unless given.
    level : str
        "quick" or "standard"; see `refattn.testing.cases.cases`.
    on_verdict : function, optional
        Called with each `Verdict`, for progress.

    Returns
    -------
    Report
        With one verdict per case.

    Raises
    ------
    LookupError
        For an unknown backend or operation.
    ImportError
        If the backend's package is missing.

    Examples
    --------
    >>> report = check_backend("numpy", ["rope"], level="quick")
    >>> report.ok, report.count("rope", "failed")
    (True, 0)
    """
    known(backend)
    implementation = None if backend == REFERENCE else load(backend)
    limits: dict[str, str] = getattr(implementation, "LIMITS", {})
    report = Report(backend)
    chosen = sorted(OPERATIONS) if operations is None else list(operations)
    for operation in chosen:
        if operation not in OPERATIONS:
            raise LookupError(f"no operation {operation!r}; there are: {', '.join(sorted(OPERATIONS))}")
        found = cases(operation, level)
        if not found:
            report.complaints.append(f"{operation} has no cases in refattn.testing")
        for case in found:
            verdict = judge(case, backend, limits)
            report.verdicts.append(verdict)
            if on_verdict is not None:
                on_verdict(verdict)
    if operations is None:
        report.complaints += false_limits(limits)
    report.complaints += needless_limits(implementation, limits, report.verdicts)
    return report


def judge(case: Case, backend: str, limits: dict[str, str]) -> Verdict:
    """Return the verdict on one case."""
    kwargs = case.call()[1]
    try:
        error = _try(case, lambda a, k: quietly(getattr(refattn, case.operation), a, {**k, "backend": backend}))
    except Unsupported as refusal:
        if _limit(case.operation, kwargs, limits) is None:
            return Verdict(case, FAILED, f"refused, and LIMITS does not say so: {refusal}")
        return Verdict(case, LIMITED, str(refusal))
    except Wrong as wrong:
        return Verdict(case, FAILED, str(wrong))
    except Exception as failure:  # whatever a backend raises is its failure, and the next case runs
        return Verdict(case, FAILED, f"raised {type(failure).__name__}: {failure}")
    return Verdict(case, PASSED, error=error)


def _try(case: Case, call: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> float:
    """Return the largest error as a share of what is allowed; raise Wrong where a check fails."""
    args, kwargs = _frozen(case.call())
    before = [x.tobytes() for x in arrays((args, kwargs))]
    result = call(args, kwargs)
    if before != [x.tobytes() for x in arrays((args, kwargs))]:
        raise Wrong("an input was written to")
    error = compare(case, result)
    got = [x for _, x in leaves(result) if x is not None]
    if any(np.shares_memory(x, y) for x in got for y in arrays((args, kwargs))):
        raise Wrong("the result is a view of an input")
    kept = [x.tobytes() for x in got]
    call(*_frozen(case.call(again=1)))
    if kept != [x.tobytes() for x in got]:
        raise Wrong("the next call changed the result of this one")
    if kept != [x.tobytes() for _, x in leaves(call(args, kwargs)) if x is not None]:
        raise Wrong("the same call gave other bits")
    return error


def _frozen(call: Call) -> Call:
    for x in arrays(call):
        x.flags.writeable = False
    return call


def _limit(operation: str, kwargs: dict[str, Any], limits: dict[str, str]) -> str | None:
    """Return the entry of LIMITS that excludes a call of the operation with these keywords, or None."""
    given = [name for name, value in kwargs.items() if value is not None and value is not False]
    return next((key for key in (operation, *(f"{operation}({name})" for name in given)) if key in limits), None)


def false_limits(limits: dict[str, str]) -> list[str]:
    """Return what is wrong with entries of LIMITS that name nothing there is."""
    complaints = []
    for key, reason in limits.items():
        operation, _, argument = key.removesuffix(")").partition("(")
        code = getattr(OPERATIONS.get(operation), "__code__", None)
        if code is None or (argument and argument not in code.co_varnames):
            complaints.append(f"LIMITS names {key!r}, which does not exist")
        elif not str(reason).strip():
            complaints.append(f"LIMITS gives no reason for {key!r}")
    return complaints


def needless_limits(implementation: object, limits: dict[str, str], verdicts: list[Verdict]) -> list[str]:
    """Return the entries of LIMITS whose every case works when dispatch does not stand in between."""
    works: dict[str, bool] = {}
    for verdict in verdicts:
        key = _limit(verdict.case.operation, verdict.case.call()[1], limits)
        if key is None or works.get(key) is False:
            continue
        function = getattr(implementation, verdict.case.operation, None)
        works[key] = function is not None and _works(verdict.case, function)
    return [f"LIMITS excludes {key!r}, which works" for key, all_work in works.items() if all_work]


def _works(case: Case, function: Callable[..., Any]) -> bool:
    try:
        _try(case, lambda args, kwargs: quietly(function, args, kwargs))
    except Exception:  # a refusal of any kind is what LIMITS announces
        return False
    return True
