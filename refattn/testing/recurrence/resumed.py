"""A sequence may be cut anywhere: pieces, each begun with the state of the one before, are the whole.

The pieces together are held against the same oracle, bound and statistics as the whole would be.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refattn.testing.attention.judge import Findings
from refattn.testing.checks import Check, Run, confirmed
from refattn.testing.contract import Contract
from refattn.testing.formats import decode
from refattn.testing.recurrence.judge import analyse, judge
from refattn.testing.recurrence.problem import Problem, coded, take
from refattn.testing.recurrence.properties import base
from refattn.testing.session import Output


def joined(pieces: list[Output], p: Problem, contract: Contract) -> Output:
    """Return the outputs of pieces of a sequence as one."""
    o = np.concatenate([piece.parts["o"] for piece in pieces], axis=p.family.o.index("T"))
    return Output({**pieces[-1].parts, "o": o}, contract)


def resumed(cuts: Callable[[int], list[int]], initial: bool, sizes: dict[str, int]) -> Callable[[Run, int], Findings]:
    """Return the check that pieces, each begun with the state of the last one, are the whole."""

    def run_check(run: Run, seed: int) -> Findings:
        p = run.kept(("resumed", seed, initial, tuple(sizes.items())), lambda: base(run.contract, seed, sizes, initial))
        analysis = run.kept(
            ("resumed", seed, initial, tuple(sizes.items()), "analysis"), lambda: analyse(p, run.contract)
        )
        T, m = p.sizes["T"], run.contract.seq_multiple
        borders = sorted({0, T, *(n // m * m for n in cuts(T))})
        pieces, states = [], p.initial
        for begin, end in itertools.pairwise(borders):
            piece = take(replace(p, options={}), "T", slice(begin, end)).starting(states)
            pieces.append(run.session.call(piece))
            states = tuple(pieces[-1].parts[f.name] for f in p.family.states)
            if p.family.states[0].axes == "BJE":
                states = tuple(coded(decode(x, run.contract.dtype), run.contract, True) for x in states)
        found = judge(analysis, joined(pieces, p, run.contract), run.contract)
        spread = f"cut at {', '.join(map(str, borders[1:-1][:6]))}"
        found.wrong = [f"{spread}: {text}" for text in found.wrong]
        found.suspect = {name: f"{spread}: {text}" for name, text in found.suspect.items()}
        return found

    return run_check


CUTS: dict[str, Callable[[int], list[int]]] = {
    "half": lambda T: [T // 2],
    "first": lambda T: [1],
    "last": lambda T: [T - 1],
    "chunks": lambda T: [16, 32, 64],
    "odd": lambda T: [17, 18, 33, 65],
}


def resumed_checks(op: str) -> list[Check]:
    """Return the checks that cut a sequence."""
    found = [_resumed(f"{op}/resumed_{name}", cuts, False, {"T": 70}) for name, cuts in CUTS.items()]
    found.append(_resumed(f"{op}/resumed_initial", lambda T: [11, 40], True, {"T": 50}))
    found.append(_resumed(f"{op}/decoded", lambda T: list(range(T)), False, {"T": 20}))
    return found


def _resumed(id: str, cuts: Callable[[int], list[int]], initial: bool, sizes: dict[str, int]) -> Check:
    one = resumed(cuts, initial, sizes)

    def run_check(run: Run) -> Findings:
        return confirmed(one(run, run.seed), lambda n: one(run, run.seed + 1_000_003 * n))

    return Check(id, run_check, ("initial_state",))
