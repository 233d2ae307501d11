"""Hold a backend of refattn against the reference, and its kernels against their contract; see `check_backend`."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

import refattn
from refattn.dispatch import OPERATIONS, REFERENCE, Unsupported, known, load
from refattn.testing import kit
from refattn.testing.backends import CARRIED, KERNELS, backend_kernel
from refattn.testing.calls import Call
from refattn.testing.cases import Case, case, cases, dtypes_here
from refattn.testing.comparison import Wrong, arrays, compare_with_reference, leaves, quietly
from refattn.testing.contract import Contract
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, Report, Result


def check_backend(
    backend: str,
    operations: Iterable[str] | None = None,
    level: str = "standard",
    on_result: Callable[[Result], object] | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Try a backend on the cases of every operation, and hold its attention kernels against their contract.

    Two kinds of checks, each with an id that ends in a dtype. The *cases* of every operation are calls as a user makes
    them, masks and layouts of all kinds included: a case passes if the result has the structure, shapes and dtypes of
    the reference's, NaN and inf in the same places, values within the bound (see `refattn.testing.bounds`), if inputs
    are read and not written, if the result is no view of an input and outlives the next call, and if the same call
    gives the same bits again. And what `check` does for any kernel it does for those of the backend: the error model,
    statistics, relations between calls, X-rays. A backend says in ``CONTRACT`` what it claims beyond the defaults,
    such as ``{"p": "float32"}``: weights that are not rounded.

    A refusal (`Unsupported`) is in order only where the backend's ``LIMITS`` announces it, and an entry of ``LIMITS``
    is in order only as long as what it excludes does not work.

    Parameters
    ----------
    backend : str
        A backend's name; "numpy" tests the reference against itself in float64.
    operations : names, optional
        All of them unless given.
    level : str
        "quick", "standard" or "deep"; see `refattn.testing.cases.cases` and `check`.
    on_result : function, optional
        Called with each `Result`, for progress.
    seed : int
        Of what `check` draws.

    Returns
    -------
    Report
        With one result per check; what the backend's ``LIMITS`` excludes is NOT RUN.

    Raises
    ------
    LookupError
        For an unknown backend or operation.
    ImportError
        If the backend's package is missing.

    Examples
    --------
    >>> report = check_backend("numpy", ["rope"], level="quick")
    >>> report.ok, report.count("FAIL")
    (True, 0)
    """
    known(backend)
    implementation = None if backend == REFERENCE else load(backend)
    limits: dict[str, str] = getattr(implementation, "LIMITS", {})
    call = f"rt.check_backend({backend!r}, level={level!r}, seed={seed})"
    report = Report(f"backend {backend}", None, level, seed, call=call)

    def tell(result: Result) -> None:
        report.results.append(result)
        if on_result is not None:
            on_result(result)

    for operation in sorted(OPERATIONS) if operations is None else list(operations):
        if operation not in OPERATIONS:
            raise LookupError(f"no operation {operation!r}; there are: {', '.join(sorted(OPERATIONS))}")
        found = cases(operation, "quick" if level == "quick" else "standard")
        if not found:
            report.complaints.append(f"{operation} has no cases in refattn.testing")
        for one in found:
            tell(judge(one, backend, limits))
        if operation in KERNELS and operation not in limits:
            claims = {"p": "float32"} if backend == REFERENCE else getattr(implementation, "CONTRACT", {})
            for result in _kernel_results(operation, backend, level, seed, claims, limits):
                tell(result)
    if operations is None:
        report.complaints += false_limits(limits)
    report.complaints += needless_limits(implementation, limits, report.results)
    return report


def _kernel_results(
    operation: str, backend: str, level: str, seed: int, claims: dict[str, Any], limits: dict[str, str]
) -> Iterable[Result]:
    """Yield what the kit says of one operation in each dtype; float64 is left to the cases."""
    kernel = backend_kernel(operation, backend)
    for dtype in dtypes_here():
        if dtype == "float64":
            continue
        contract = Contract(op=KERNELS[operation], dtype=dtype, **claims)
        contract = contract.with_options_of(kernel, kit.operation(contract.op).options)
        excluded = [name for name in contract.options or () if f"{operation}({CARRIED.get(name, name)})" in limits]
        options = tuple(name for name in contract.options or () if name not in excluded)
        for result in kit.check(kernel, replace(contract, options=options), level, seed=seed).results:
            name = result.check.partition("/")[2]
            yield replace(result, check=f"{operation}/{name}/{dtype}")


def judge(case: Case, backend: str, limits: dict[str, str]) -> Result:
    """Return the result of one case."""
    kwargs = case.call()[1]
    try:
        error = _try(case, lambda a, k: quietly(getattr(refattn, case.operation), a, {**k, "backend": backend}))
    except Unsupported as refusal:
        if _limit(case.operation, kwargs, limits) is None:
            return Result(case.id, FAIL, f"refused, and LIMITS does not say so: {refusal}")
        return Result(case.id, NOT_RUN, str(refusal))
    except Wrong as wrong:
        return Result(case.id, FAIL, str(wrong))
    except Exception as failure:  # whatever a backend raises is its failure, and the next case runs
        return Result(case.id, FAIL, f"raised {type(failure).__name__}: {failure}")
    return Result(case.id, PASS, figures={"bound": error})


def _try(case: Case, call: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> float:
    """Return the largest error as a share of what is allowed; raise Wrong where a check fails."""
    args, kwargs = _frozen(case.call())
    before = [x.tobytes() for x in arrays((args, kwargs))]
    result = call(args, kwargs)
    if before != [x.tobytes() for x in arrays((args, kwargs))]:
        raise Wrong("an input was written to")
    error = compare_with_reference(case, result)
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


def needless_limits(implementation: object, limits: dict[str, str], results: list[Result]) -> list[str]:
    """Return the entries of LIMITS whose every case works when dispatch does not stand in between."""
    works: dict[str, bool] = {}
    for result in results if limits else ():
        try:
            one = case(result.check)
        except LookupError:
            continue  # a check of the kit
        key = _limit(one.operation, one.call()[1], limits)
        if key is None or works.get(key) is False:
            continue
        function = getattr(implementation, one.operation, None)
        works[key] = function is not None and _works(one, function)
    return [f"LIMITS excludes {key!r}, which works" for key, all_work in works.items() if all_work]


def _works(case: Case, function: Callable[..., Any]) -> bool:
    try:
        _try(case, lambda args, kwargs: quietly(function, args, kwargs))
    except Exception:  # a refusal of any kind is what LIMITS announces
        return False
    return True
