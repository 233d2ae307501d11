"""Choosing keys on the CPU: the places of the largest scores of each row, as `refattn.sparse` pins them.

Equal scores go to the lowest index, a NaN counts as the largest, what is forced comes first; places are ascending, with
-1 after them. The n-th largest score is found by partition, so a row of m scores costs O(m) whatever n is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

ALLOWED, FORCED = 1, 2
STRIP = 1 << 22  # scores held at a time


def strips(rows: int, width: int) -> Iterator[slice]:
    """Cut rows of `width` numbers into runs that hold at most STRIP of them, and one row at least."""
    step = max(1, STRIP // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def best(scores: Array, n: int, state: Array) -> Array:
    """Return the places of the n best of each row, int64 (rows, n).

    Parameters
    ----------
    scores : array, (rows, m)
    n : int
    state : uint8 array, (rows, m)
        0 for what may not be chosen, ALLOWED, or FORCED for what comes before all others.
    """
    rows, m = scores.shape
    places = np.full((rows, n), -1, np.int64)
    run(_best, rows, float(rows) * m * 8, m, scores.dtype, np.ascontiguousarray(scores), state, places)
    return places


@njit(nogil=True, cache=True)
def _best(counter, items, space, scores, state, places):
    m, n = scores.shape[1], places.shape[1]
    while True:
        row = fetch_add(counter)
        if row >= items:
            break
        forced = 0
        for j in range(m):
            forced += state[row, j] == FORCED
        short = forced >= n  # not all that is forced has room: the best of it
        rivals, left, free = (FORCED, n, 0) if short else (ALLOWED, n - forced, 0)
        for j in range(m):
            if state[row, j] == rivals:
                s = scores[row, j]
                space[free] = np.inf if np.isnan(s) else s
                free += 1
        border, ties = -np.inf, free
        if left < free:
            border = np.partition(space[:free], free - left)[free - left]
            above = 0
            for c in range(free):
                above += space[c] > border
            ties = left - above  # of the scores at the border, the first ones
        taken = 0
        for j in range(m):
            chosen = state[row, j] == FORCED and not short
            if state[row, j] == rivals:
                s = np.inf if np.isnan(scores[row, j]) else scores[row, j]
                chosen = s > border
                if s == border and ties > 0:
                    chosen = True
                    ties -= 1
            if chosen:
                places[row, taken] = j
                taken += 1


def named(indices: Array, m: int) -> Array:
    """Return which of m places the indices (..., n) of each row name, bool (..., m)."""
    found = np.zeros((*indices.shape[:-1], m + 1), bool)  # the last one is for -1
    np.put_along_axis(found, np.where(indices < 0, m, indices).astype(np.int64), True, axis=-1)
    return found[..., :m]


def as_state(allowed: Any, forced: Any = False) -> Array:
    """Return what `best` reads of two bool arrays that broadcast."""
    return np.where(allowed, np.where(forced, FORCED, ALLOWED), 0).astype(np.uint8)
