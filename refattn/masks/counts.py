"""How many pairs a mask shows: by a formula, by a count for each query, or, failing that, tile by tile."""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from refattn.masks.algebra import Mask

Ints: TypeAlias = NDArray[np.int64]
Factor: TypeAlias = tuple["Mask", Ints | int]

ROWS = 1 << 18  # queries counted at a time: bounds memory


def pairs(mask: "Mask", Tq: int, Tk: int) -> int:
    """Return how many pairs `mask` shows, over all of its ``lead``."""
    total = 0
    for n in range(math.prod(mask.lead)):
        band = mask.band(n, Tq, Tk)
        if band is not None:
            total += pairs_of_band(*band, Tq, Tk)
            continue
        for first in range(0, Tq, ROWS):
            seen = mask.below(n, np.arange(first, min(first + ROWS, Tq)), Tk, Tq, Tk)
            if seen is None:
                return mask.blocks(Tq, Tk, 64, 128).pairs
            total += int(seen.sum())
    return total


def pairs_of_band(low: int, high: int, Tq: int, Tk: int) -> int:
    """Return for how many pairs low <= j - i <= high, in a time that does not depend on how many there are.

    Examples
    --------
    >>> pairs_of_band(-1, 1, 3, 3)
    7
    """
    return max(0, _up_to(high, Tq, Tk) - _up_to(low - 1, Tq, Tk))


def _up_to(d: int, Tq: int, Tk: int) -> int:
    """Return for how many pairs j - i <= d: the sum of i + d + 1, clipped to 0 ... Tk, over all i."""
    first, beyond = max(0, -d), max(0, min(Tq, Tk - d))  # the queries that see some keys, and those that see all
    some = max(0, beyond - first)
    return some * (first + beyond - 1 + 2 * (d + 1)) // 2 + (Tq - max(first, beyond)) * Tk * (first < Tq)


def below_all(factors: list[Factor], i: Ints, stop: Any, Tq: int, Tk: int) -> Ints | None:
    """Return how many keys below `stop` each query sees through all of `factors`; None if that takes each pair."""
    start: Any = 0
    rest = []
    for mask, n in factors:
        run = mask.runs(n, i, Tq, Tk)
        if run is None:
            rest.append((mask, n))
        else:
            start, stop = np.maximum(start, run[0]), np.minimum(stop, run[1])
    start = np.minimum(start, stop)
    if not rest:
        between: Ints = stop - start
        return between
    if len(rest) == 1:
        mask, n = rest[0]
        upper = mask.below(n, i, stop, Tq, Tk)
        lower = mask.below(n, i, start, Tq, Tk)
        return None if upper is None or lower is None else upper - lower
    for place, (mask, n) in enumerate(rest):
        keys = mask.listed(n, i, Tq, Tk)
        if keys is not None:
            seen = (keys >= np.asarray(start)[..., None]) & (keys < np.asarray(stop)[..., None])
            for other, m in rest[:place] + rest[place + 1 :]:
                seen = seen & other.at(m, i[:, None], keys, Tq, Tk)
            return np.count_nonzero(seen, axis=-1)
    return None


def density(mask: "Mask", Tq: int, Tk: int, block_q: int, block_k: int) -> NDArray[np.float64]:
    """Return the visible share of each tile; see `Mask.density`."""
    nq, nk = -(-Tq // block_q), -(-Tk // block_k)
    seen = np.zeros((math.prod(mask.lead), nq, nk))
    heights = np.minimum(block_q, Tq - np.arange(nq) * block_q)
    widths = np.minimum(block_k, Tk - np.arange(nk) * block_k)
    rows = max(1, ROWS // block_q)  # tiles of queries at a time
    for n, a in np.ndindex(len(seen), -(-nq // rows)):
        i = np.arange(a * rows * block_q, min((a + 1) * rows * block_q, Tq))
        before: Any = 0
        for b, stop in enumerate(np.cumsum(widths)):
            now = mask.below(n, i, int(stop), Tq, Tk)
            if now is None:
                tiles = mask.blocks(Tq, Tk, block_q, block_k)
                seen[tiles.row_of_tile() // nq, tiles.row_of_tile() % nq, tiles.columns] = tiles.visible()
                return (seen / (heights[:, None] * widths)).reshape(*mask.lead, nq, nk)
            tile = np.add.reduceat(now - before, np.arange(0, len(i), block_q))
            seen[n, a * rows : (a + 1) * rows, b] = tile
            before = now
    return (seen / (heights[:, None] * widths)).reshape(*mask.lead, nq, nk)
