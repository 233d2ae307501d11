"""`check`: hold a kernel against its contract, check by check."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from refattn.testing import recurrence, undeclared
from refattn.testing.attention import cases as attention_cases
from refattn.testing.attention import properties, properties_backward, xray
from refattn.testing.attention.cases import LEVELS, Case
from refattn.testing.attention.judge import Findings, analyse, judge
from refattn.testing.attention.relations import times
from refattn.testing.checks import Check, Run, confirmed, perform
from refattn.testing.contract import ATTENTION_OPTIONS, Contract
from refattn.testing.session import TIMEOUT, Session
from refattn.testing.verdicts import Report, Result


@dataclass(frozen=True)
class Operation:
    """How kernels of one operation are judged."""

    checks: Callable[[Contract], list[Check]]
    """Every check of the operation, of all levels."""
    options: tuple[str, ...]
    """The keywords that its kernels may take."""


OPERATIONS: dict[str, Operation] = {}
"""The operations that the kit judges, by the name that a contract's `op` gives."""


def attention_checks(contract: Contract) -> list[Check]:
    """Return the checks of attention, forward or backward."""
    op = contract.op
    backward = op.endswith("_vjp")
    found = [case_check(op, c) for c in attention_cases.CASES.values() if (c.backward if backward else c.forward)]
    relations = properties_backward if backward else properties
    return [*found, *xray.xray_checks(op), *relations.relation_checks()]


def case_check(op: str, case: Case) -> Check:
    """Return the check that judges one curated case."""

    def run(r: Run) -> Findings:
        if case.dirty:
            p = case.problem(r.contract, r.seed)
            loud = replace(p, options={}, v=times(p.v, 64, r) if r.contract.nan else p.v)
            if not any(name in case.features for name in ("nan", "empty")) and p.v.size:
                r.session.call(loud)
        return confirmed(one(r, r.seed), lambda n: one(r, r.seed + 1_000_003 * n))

    def one(r: Run, seed: int) -> Findings:
        p = r.kept((case.name, seed, "problem"), lambda: case.problem(r.contract, seed))
        analysis = r.kept((case.name, seed), lambda: analyse(p, r.contract))
        output = r.session.call(p)
        if seed == r.seed:
            r.outputs[f"{op}/{case.name}"] = output
        return judge(analysis, output, r.contract)

    return Check(f"{op}/{case.name}", run, case.needs, case.features, case.level, case)


for _op in ("attention", "attention_vjp"):
    OPERATIONS[_op] = Operation(attention_checks, (*ATTENTION_OPTIONS, "dlse") if "vjp" in _op else ATTENTION_OPTIONS)
OPERATIONS |= {name: Operation(family.checks, family.options) for name, family in recurrence.OPERATIONS.items()}


def operation(name: str) -> Operation:
    """Return how an operation's kernels are judged; raise LookupError for a name that the kit does not know."""
    if name not in OPERATIONS:
        raise LookupError(f"the kit judges no operation {name!r}; there are: {', '.join(sorted(OPERATIONS))}")
    return OPERATIONS[name]


def checks(contract: Contract, level: str = "standard") -> list[Check]:
    """Return the checks of a level, in the order in which they run.

    Parameters
    ----------
    contract : Contract
        Its `op` decides which; what it rules out is listed here and comes out as NOT RUN.
    level : str
        "quick" (about a second), "standard" or "deep".

    Returns
    -------
    list of Check
        Each has an `id`, stable between versions.

    Raises
    ------
    LookupError, ValueError
        For an operation or a level that the kit does not know.

    Examples
    --------
    >>> [check.id for check in checks(Contract(), "quick")][:2]
    ['attention/normal_plain', 'attention/normal_causal']
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; wanted one of {', '.join(LEVELS)}")
    allowed = LEVELS[: LEVELS.index(level) + 1]
    return [check for check in operation(contract.op).checks(contract) if check.level in allowed]


def check(
    kernel: Callable[..., Any],
    contract: Contract | None = None,
    level: str = "standard",
    *,
    seed: int = 0,
    only: Callable[[str], bool] | None = None,
    fail_fast: bool = False,
    timeout: float = TIMEOUT,
    on_result: Callable[[Result], object] | None = None,
    cache: dict[Hashable, Any] | None = None,
) -> Report:
    """Hold a kernel against its contract.

    Parameters
    ----------
    kernel : callable
        (q, k, v, **options) -> o or (o, lse); a backward kernel is (do, q, k, v, **options) -> (dq, dk, dv, ...).
        See `refattn.testing.contract.ATTENTION_OPTIONS` for the options, and the adapters for other layouts,
        libraries and languages.
    contract : Contract, optional
        What the kernel claims; that of `refattn.attention` in float32 unless given.
    level : str
        "quick" (about a second), "standard" or "deep".
    seed : int
        Of everything that is drawn: the same seed gives the same inputs on every machine.
    only : function, optional
        Takes the id of a check and says whether to run it.
    fail_fast : bool
        Stop at the first result that counts against the kernel.
    timeout : float
        Seconds that one call may take.
    on_result : function, optional
        Called with each `Result`, for progress.
    cache : dict, optional
        Keeps what does not depend on the kernel, for the next one under the same contract.

    Returns
    -------
    Report
        One result per check; `report.ok` says whether nothing failed.

    Raises
    ------
    LookupError, ValueError, TypeError
        For an operation or a level that the kit does not know, or a kernel that cannot be called. Whatever the kernel
        itself does wrong is a verdict.

    Examples
    --------
    >>> from refattn import attention
    >>> def kernel(q, k, v, *, scale=None):
    ...     return attention(q, k, v, scale=scale, return_lse=True)
    >>> report = check(kernel, level="quick", only=lambda id: "scale" in id)
    >>> report.ok, report.count("PASS") >= 3
    (True, True)
    """
    contract = Contract() if contract is None else contract
    chosen = checks(contract, level)
    if not callable(kernel):
        raise TypeError(f"kernel is {type(kernel).__name__}; wanted something to call")
    adapted = kernel
    if contract.layout != "bhtd":
        from refattn.testing.adapters.layouts import from_layout

        adapted = from_layout(kernel, contract.layout)
    contract = contract.with_options_of(adapted, operation(contract.op).options)
    session = Session(adapted, contract, seed, timeout)
    run = Run(session, cache)
    report = Report(name_of(kernel), contract, level, seed)
    for one in chosen:
        if only is not None and not only(one.id):
            continue
        result = perform(one, run)
        report.results.append(result)
        if on_result is not None:
            on_result(result)
        if fail_fast and result.bad:
            break
    report.context = (kernel, contract, chosen, run)
    if not report.ok and not fail_fast:
        undeclared.reconsider(report)
    return report


def name_of(kernel: Any) -> str:
    """Return what to call a kernel in a report."""
    name = getattr(kernel, "__qualname__", None) or getattr(kernel, "__name__", None) or type(kernel).__name__
    return str(name).replace("<locals>.", "")
