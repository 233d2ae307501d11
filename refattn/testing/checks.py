"""One check at a time: whether the contract rules it out, what it finds, and the verdict."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.testing.attention.judge import Findings
from refattn.testing.contract import Contract
from refattn.testing.faults import KernelFault
from refattn.testing.session import Session, captured_output
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, Picture, Result

FRESH = (1, 2, 3)
"""A statistical finding counts when two of three runs on other numbers make it too."""
EXACT = (
    *("stale_memory", "changes_of_options", "powers_of_values", "powers_of_scores", "negated_values"),
    *("permuted_heads", "permuted_batch", "batch_invariance", "grouped_heads", "linear_in_do"),
    *("hidden_causal", "hidden_window", "hidden_seqlens", "future"),
)
"""The relations that compare bits, which takes a kernel that repeats them."""
MOVING = ("permuted_keys", "merged_halves", "some_queries", "nan_value")
"""Those in which tokens stand elsewhere than in the call they are compared with, or all keys must be seen."""
POSITIONAL = ("causal", "window", "alibi_slopes", "q_offset", "seqlens_k", "mask", "bias")
"""The options to which it matters where a token stands."""


@dataclass(frozen=True)
class Check:
    """Something to find out about a kernel."""

    id: str
    run: Callable[["Run"], Findings]
    needs: tuple[str, ...] = ()
    """The options that it passes to the kernel."""
    features: tuple[str, ...] = ()
    """What the contract must not rule out, each the name of one of its fields."""
    level: str = "quick"
    case: Any = None
    """The case that it judges, if it judges one."""


class Run:
    """What a check may use: the kernel, and the analyses that several kernels share."""

    def __init__(self, session: Session, cache: dict[Hashable, Any] | None = None) -> None:
        self.session, self.cache, self.contract, self.seed = session, cache, session.contract, session.seed
        self.outputs: dict[str, Any] = {}
        """The outputs of the cases, by check id, for the diagnosis."""
        self._key = repr(replace(self.contract, options=None))

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, made once for every kernel under the same contract."""
        if self.cache is None:
            return make()
        key = (self._key, self.seed, name)
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


def ruled_out(check: Check, session: Session) -> str | None:
    """Return why the contract rules the check out, or None."""
    missing = [name for name in check.needs if not session.takes(name)]
    if missing:
        return f"the kernel does not take {', '.join(missing)}"
    refused = [name for name in check.features if not getattr(session.contract, name)]
    if refused:
        return f"the contract says {refused[0]}=False"
    return _contradicted(check, session) or _senseless(check, session.contract)


def _contradicted(check: Check, session: Session) -> str | None:
    """Return which option the check gives a value that it never has."""
    contract = session.contract
    fixed = [name for name in check.needs if name in contract.always and name not in (contract.options or ())]
    if not fixed or not contract.op.startswith("attention"):
        return None
    built: Any = {"causal": True}  # what checks without a case pass, when they pass it
    if check.case is not None:
        built = check.case.problem(replace(contract, always={}), session.seed).options
    other = [name for name in fixed if not np.array_equal(built.get(name), contract.always[name])]
    return f"{other[0]} is always {contract.always[other[0]]!r}" if other else None


def _senseless(check: Check, contract: Contract) -> str | None:
    """Return why a relation between calls does not hold under the contract, though its options are taken."""
    name = check.id.rpartition("/")[2]
    if check.case is not None or not contract.op.startswith("attention"):
        return None
    held = {option: x for option, x in contract.always.items() if x is not None and x is not False}
    placed = [option for option in POSITIONAL if option in held]
    if name in MOVING and placed:
        return f"{placed[0]} is always {contract.always[placed[0]]!r}: tokens may not change places"
    if name == "powers_of_scores" and _underflows(contract):
        return "numbers on the way to the scores are rounded to float16, and small ones lose digits"
    if name == "some_queries" and contract.seq_multiple > 2:
        return f"the contract says seq_multiple={contract.seq_multiple}: there are too few queries to take some of them"
    if name == "decoded" and contract.causal != "bottom_right":
        return f"the contract says causal={contract.causal!r}: a query by itself would see the first key only"
    if name in EXACT and not contract.deterministic:
        return "the contract says deterministic=False, and this compares bits"
    return None


def _underflows(contract: Contract) -> bool:
    n = contract.numerics
    prescaled = n["q_prescaled"] and contract.dtype == "float16"
    return prescaled or "float16" in (n["s"], n["products"], n["acc"])


def perform(check: Check, run: Run) -> Result:
    """Return the result of one check; whatever the kernel does is its verdict, and the next check runs."""
    reason = ruled_out(check, run.session)
    if reason is not None:
        return Result(check.id, NOT_RUN, reason)
    start = time.perf_counter()
    wrong: list[str] = []
    suspect: dict[str, str] = {}
    figures: dict[str, float] = {}
    pictures: tuple[Picture, ...] = ()
    with captured_output() as printed:
        try:
            findings = check.run(run)
            wrong, suspect = findings.wrong, findings.suspect
            figures, pictures = findings.figures, tuple(findings.pictures)
        except KernelFault as fault:
            wrong = [str(fault)]
    if printed():
        if not wrong and not suspect:
            run.outputs.pop(check.id, None)  # the numbers are right: there is nothing to explain about them
        wrong = [*wrong, f"wrote to standard output: {printed()[:80]!r}"]
    seconds = time.perf_counter() - start
    if wrong:  # what statistics say besides stands in the figures
        return Result(check.id, FAIL, "\n".join(wrong), figures, seconds, pictures)
    if suspect:
        return Result(check.id, SUSPECT, "\n".join(suspect.values()), figures, seconds, pictures)
    return Result(check.id, PASS, "", figures, seconds)


def confirmed(findings: Findings, again: Callable[[int], Findings]) -> Findings:
    """Keep of the statistical findings those that at least two of three runs on fresh numbers make too."""
    if findings.wrong or not findings.suspect:
        return findings
    others = [again(n) for n in FRESH]
    kept = {
        name: text
        for name, text in findings.suspect.items()
        if sum(name in o.suspect or bool(o.wrong) for o in others) > 1
    }
    return replace(findings, suspect=kept)
