"""The linear-time family under judgement: linear attention, retention, gated and delta rules, state spaces, RWKV.

`OPERATIONS` has, for each operation, its checks and the keywords that its kernels may take. A kernel takes the arrays
by position and returns (o, state); see `family`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from refattn.testing.attention.judge import Findings
from refattn.testing.checks import Check, Run, confirmed
from refattn.testing.contract import Contract
from refattn.testing.recurrence.cases import Case
from refattn.testing.recurrence.cases_values import CASES
from refattn.testing.recurrence.family import FAMILIES
from refattn.testing.recurrence.judge import analyse, judge
from refattn.testing.recurrence.relations import relation_checks
from refattn.testing.recurrence.resumed import resumed_checks

__all__ = ["CASES", "FAMILIES", "OPERATIONS", "Recurrence"]


@dataclass(frozen=True)
class Recurrence:
    """How kernels of one operation are judged."""

    checks: Callable[[Contract], list[Check]]
    """Every check of the operation, of all levels."""
    options: tuple[str, ...]
    """The keywords that its kernels may take."""


def case_check(op: str, case: Case) -> Check:
    """Return the check that judges one curated case."""

    def run(r: Run) -> Findings:
        if case.dirty:
            r.session.call(
                case.loud(r.kept((case.name, r.seed, "problem"), lambda: case.problem(r.contract, r.seed)), r.contract)
            )
        return confirmed(one(r, r.seed), lambda n: one(r, r.seed + 1_000_003 * n))

    def one(r: Run, seed: int) -> Findings:
        p = r.kept((case.name, seed, "problem"), lambda: case.problem(r.contract, seed))
        analysis = r.kept((case.name, seed), lambda: analyse(p, r.contract))
        return judge(analysis, r.session.call(p), r.contract)

    return Check(f"{op}/{case.name}", run, case.needs, case.features, case.level)


def checks_of(op: str) -> list[Check]:
    """Return every check of an operation."""
    return [
        *(case_check(op, case) for case in CASES.values() if case.suits(op)),
        *relation_checks(op),
        *resumed_checks(op),
    ]


def _recurrence(op: str) -> Recurrence:
    return Recurrence(lambda contract: checks_of(op), FAMILIES[op].keywords)


OPERATIONS: dict[str, Recurrence] = {op: _recurrence(op) for op in FAMILIES}
"""By the name that a contract's `op` gives."""
