"""One check at a time: what it finds, and the verdict."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from refattn.testing.attention.judge import Findings
from refattn.testing.exclusions import ruled_out
from refattn.testing.faults import KernelFault
from refattn.testing.session import Session, captured_output
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, Picture, Result

FRESH = (1, 2, 3)
"""A statistical finding counts when two of three runs on other numbers make it too."""


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
