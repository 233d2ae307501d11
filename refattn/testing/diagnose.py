"""Which mistake explains what failed? See `diagnose`."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention import (  # noqa: F401 (each enters its hypotheses)
    hypotheses_arrays,
    hypotheses_gradients,
    hypotheses_lengths,
    hypotheses_masks,
    hypotheses_results,
    hypotheses_scores,
    hypotheses_tiles,
)
from refattn.testing.attention.cases import Case
from refattn.testing.attention.evidence import Evidence
from refattn.testing.attention.hypotheses import HYPOTHESES, Given, Mistake
from refattn.testing.attention.hypotheses_factors import FACTORS, SHIFTS, STEPS, Factor, Shift, fit
from refattn.testing.checks import Run
from refattn.testing.verdicts import BAD, FAIL, PASS, SUSPECT, UNDECLARED, Diagnosis, Report

MOST = 12
"""How many of the failed checks, and of the passed ones, a hypothesis is held against at first."""
LARGE = 40_000
"""Numbers in a result that is looked at only if there is no smaller one of its kind."""
LIKELY = 0.25
"""The score from which on a hypothesis is worth a word."""
SMALLEST = 1e-6
"""By what factor something must be off to be worth a word."""
AWKWARD = (
    "needle",
    "stairs",
    "scores_1e4",
    "values_",
    "rows_wide",
    "hidden_large",
    "ties",
    "all_negative",
    "cotangent",
)
"""Cases in which many mistakes look the same, or errors are huge."""


@dataclass(eq=False)
class Suspicion:
    """A hypothesis, and how it does."""

    name: str
    sentence: str
    ways: tuple[Mistake, ...]
    explained: set[str] = field(default_factory=set)
    missed: set[str] = field(default_factory=set)
    """Failed checks that it does not explain, or has nothing to do with."""
    against: set[str] = field(default_factory=set)
    """Passed checks that it would have made fail."""
    held: set[str] = field(default_factory=set)
    """Passed checks that it was held against."""

    @property
    def score(self) -> float:
        """Return the share that it explains of what failed, or should have."""
        return len(self.explained) / max(1, len(self.explained) + len(self.missed) + len(self.against))

    def plausible(self, failed: list[Evidence], patience: int) -> bool:
        """Keep the ways that explain one of the first failed checks that they touch; say whether there are any."""
        kept = []
        for way in self.ways:
            missed = 0
            for evidence in failed:
                results = evidence.predicted(way)
                if results is None:
                    continue
                if evidence.explained(results):
                    kept.append(way)
                    break
                missed += 1
                if missed == patience:
                    break
        if kept:
            self.ways = tuple(kept)
        return bool(kept)

    def explain(self, failed: Iterable[Evidence]) -> None:
        """Hold it against failed checks."""
        for evidence in failed:
            if evidence.name not in self.explained | self.missed:
                predicted = (evidence.predicted(way) for way in self.ways)
                fits = any(results is not None and evidence.explained(results) for results in predicted)
                (self.explained if fits else self.missed).add(evidence.name)

    def defend(self, passed: Iterable[Evidence], most: int) -> None:
        """Hold it against those of the passed checks that it has to do with."""
        for evidence in passed:
            if len(self.held) >= most:
                return
            if evidence.name in self.held:
                continue
            found = [results for way in self.ways if (results := evidence.predicted(way)) is not None]
            if found:
                self.held.add(evidence.name)
                if all(evidence.differs(results) for results in found):
                    self.against.add(evidence.name)


def diagnose(report: Report) -> list[Diagnosis]:
    """Return the mistakes that explain what failed, the likeliest first; they are entered in the report, too.

    Each hypothesis says what a kernel that makes one mistake would have returned for the problems that failed, and for
    those that passed. It explains a failure if the output is that, within the bound; it is contradicted where it would
    have made a check fail that passed.

    Parameters
    ----------
    report : Report
        What `check` returned in this process.

    Returns
    -------
    list of Diagnosis
        Empty if nothing failed, or if nothing explains it.

    Raises
    ------
    ValueError
        If the report does not come from `check`.

    Examples
    --------
    >>> from refattn import attention, masks
    >>> from refattn.testing import Contract, check
    >>> def kernel(q, k, v, *, causal=False):
    ...     return attention(q, k, v, mask=masks.causal(0) if causal else None, return_lse=True)
    >>> diagnose(check(kernel, level="quick"))[0].sentence
    'the causal mask is aligned to the top left: query i sees keys up to i, as in torch and JAX'
    """
    if report.context is None:
        raise ValueError("diagnose: the report holds no outputs; wanted one that `check` returned in this process")
    _, _, chosen, run = report.context
    cases = {check.id: check.case for check in chosen if isinstance(check.case, Case)}
    judged = [r for r in report.results if r.check in cases and r.check in run.outputs]
    failed = _collected([r.check for r in judged if r.verdict in (FAIL, SUSPECT)], cases, run)
    found: list[Diagnosis] = []
    undeclared = [r for r in report.results if r.verdict == UNDECLARED]
    if undeclared:
        share = len(undeclared) / len([r for r in report.results if r.verdict in BAD])
        found.append(Diagnosis("undeclared precision", undeclared[0].message.partition(". ")[0], share))
    if failed:
        passed = _collected([r.check for r in judged if r.verdict == PASS], cases, run)
        found += [Diagnosis(s.name, s.sentence, s.score) for s in _suspicions(failed, passed)]
        if all(d.explained < 0.5 for d in found):
            found += _estimates(report)
    found.sort(key=lambda d: -d.explained)
    report.diagnoses[:] = found
    return found


def _collected(ids: list[str], cases: dict[str, Case], run: Run) -> list[Evidence]:
    """Return the evidence of some checks: one of each choice of options first, the clearer and smaller ones before."""

    def given(case: Case) -> Given:
        return Given(case.problem(run.contract, run.seed), run.contract)

    found = [Evidence(id, functools.partial(given, cases[id]), run.outputs[id]) for id in ids]
    found = sorted((e for e in found if e.size), key=lambda e: (_awkward(e, cases[e.name]), e.size))
    before: dict[tuple[str, ...], int] = {}
    rank = {}
    for e in found:
        case = cases[e.name]
        before[case.needs] = before.get(case.needs, 0) + 1
        rank[e.name] = (before[case.needs] + 4 * _awkward(e, case), len(case.needs))
    return sorted(found, key=lambda e: rank[e.name])


def _awkward(evidence: Evidence, case: Case) -> int:
    unclear = case.name.startswith(AWKWARD) or any(feature in case.features for feature in ("nan", "empty"))
    return int(unclear) + 2 * (evidence.size > LARGE)


def _suspicions(failed: list[Evidence], passed: list[Evidence]) -> list[Suspicion]:
    """Return the hypotheses that explain something, the likeliest first."""
    first = failed[:MOST]
    all_ = [Suspicion(h.name, h.sentence, h.ways) for h in HYPOTHESES.values()]
    found: list[Suspicion] = []
    for patience in (1, 3):
        new = [s for s in all_ if s not in found and s.plausible(first, patience)]
        for s in new:
            s.explain(first)
        found += new
        if max((s.score for s in found), default=0) > 0.7:
            break
    if max((s.score for s in found), default=0) < 0.5:
        fitted = [*(_fitted(factor, first) for factor in FACTORS), *(_shifted(shift, first) for shift in SHIFTS)]
        found += [s for s in fitted if s is not None]
    for s in found:
        s.defend(passed, MOST)
    best = max((s.score for s in found), default=0)
    close = [s for s in found if s.score > best - 0.2]
    if len(close) > 1:
        for s in close:
            s.explain(failed[: 3 * MOST])
            s.defend(passed, 3 * MOST)
    found = sorted((s for s in found if s.explained), key=lambda s: -s.score)
    kept: list[Suspicion] = []
    for s in found:
        open_ = (s.explained | s.missed) - set().union(*(other.explained for other in kept))
        news = len(s.explained & open_) / max(1, len(open_) + len(s.against))
        if s.score >= max(LIKELY, 0.9 * found[0].score) or (s.score >= 0.1 and news >= 0.5):
            kept.append(s)
    return kept


def _fitted(factor: Factor, failed: list[Evidence]) -> Suspicion | None:
    """Return the factor that most of the outputs agree on, if there is one."""
    estimates: list[float] = []
    touched = [e for e in failed if e.predicted(factor.mistake(0.1)) is not None]
    for tried, evidence in enumerate(touched, 1):
        x = fit(functools.partial(_error, evidence, factor), evidence.deviations(evidence.given.right))
        if x is not None:
            estimates.append(x)
        if len(estimates) == 5 or tried - len(estimates) == 3:
            break
    x = float(np.median(estimates)) if estimates else 0.0
    if abs(x) < SMALLEST:
        return None
    found = Suspicion(factor.name, factor.says(x), (factor.mistake(x),))
    found.explain(failed)
    return found if found.score >= 0.5 else None


def _shifted(shift: Shift, failed: list[Evidence]) -> Suspicion | None:
    """Return by how many keys something is off, if a number explains the first failed checks that it touches."""
    touched = [e for e in failed if any(e.predicted(way) is not None for way in shift.ways(1))][:3]
    for n in (sign * step for step in STEPS for sign in (1, -1)):
        found = Suspicion(shift.name, shift.says(n), shift.ways(n))
        if touched and all(found.plausible([evidence], 1) for evidence in touched):
            found.explain(failed)
            return found
    return None


def _error(evidence: Evidence, factor: Factor, x: float) -> Array | None:
    results = evidence.predicted(factor.mistake(x))
    return None if results is None else evidence.deviations(results)


def _estimates(report: Report) -> list[Diagnosis]:
    """Return what the score tests estimate, where they agree."""
    bad = [r for r in report.results if r.verdict in (FAIL, SUSPECT)]
    found = []
    for factor in FACTORS:
        estimates = [r.figures[factor.score] for r in bad if factor.score in r.figures]
        if not estimates:
            continue
        x = float(np.median(estimates))
        agree = sum(abs(e - x) < 0.3 * abs(x) for e in estimates)
        share = agree / (len(bad) + 0.5)
        if share >= 0.5:
            found.append(Diagnosis(factor.name, factor.says(x), share))
    return found
