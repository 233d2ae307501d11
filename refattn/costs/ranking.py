"""Which option is the quickest at a length, from which length on another one is, and what else would change that."""

import itertools
import math
from dataclasses import replace

from refattn.costs.options import Candidate, Case


def best_at(ways: list[Candidate], case: Case, seq: int) -> Candidate:
    """Return the quickest at a length."""
    return min(ways, key=lambda way: case.time(way, seq).seconds)


def flips(ways: list[Candidate], case: Case, p95: int) -> list[tuple[int, str, str]]:
    """Return where the quickest changes, up to four times p95 and 4,096 tokens at least, to a sixteenth."""
    found = []
    lengths = [2**n for n in range(4, max(12, math.ceil(math.log2(4 * p95))) + 1)]
    before = best_at(ways, case, lengths[0])
    for low, high in itertools.pairwise(lengths):
        after = best_at(ways, case, high)
        if after is not before:
            left, right = low, high
            while right - left > max(1, left // 16):
                middle = (left + right) // 2
                left, right = (left, middle) if best_at(ways, case, middle) is not before else (middle, right)
            found.append((right, before.name, after.name))
            before = after
    return found


def sensitive(ways: list[Candidate], case: Case, p95: int, chosen: str) -> list[str]:
    """Return which other inputs would bring another option to the front."""
    others = {f"batches of {8 * case.batch}": replace(case, batch=8 * case.batch)}
    for phase in ("prefill", "decode"):
        if phase != case.phase:
            others[f"the phase {phase}"] = replace(case, phase=phase)
    lines = []
    for what, other in others.items():
        best = best_at(ways, other, p95)
        if best.name != chosen:
            lines.append(f"with {what}, {best.name} is ahead")
    return lines
