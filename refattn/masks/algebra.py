"""What every mask can answer.

A pattern (see `positions`, `steps`, `drawn`, `tiled`, `contents`) says one thing, `Mask.at`: may query i look at key j?
Everything else follows. What else a pattern may define are shortcuts, which make answers cheap where it has a shape:
`band`, `runs`, `below`, `listed` for counting, `tiles` and `patch` for cutting it into tiles. `logic` combines masks.

With leading axes, `n` is an index into the flattened `lead`: which of the patterns is asked.
"""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count
from refattn.masks import blocks, counts, picture, svg

if TYPE_CHECKING:
    import scipy.sparse

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Index: TypeAlias = Ints | int


class Mask:
    """Which query may look at which key. Combine masks with ``&``, ``|`` and ``~``."""

    lead: tuple[int, ...] = ()
    """Shape of the axes before (Tq, Tk); it broadcasts against (..., H): (B, 1) for one pattern per sequence."""

    cacheable: bool = False
    """Whether a backend may keep what it derived from this mask: equal masks mean the same, and it is not large."""

    shifts: bool = False
    """Whether a pair is visible or not by i - j alone, so that tiles with the same distance hold the same bits."""

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        """Return whether, in pattern `n`, query `i` sees key `j`, pair by pair; n, i, j and the result broadcast."""
        raise NotImplementedError

    def band(self, n: int, Tq: int, Tk: int) -> tuple[int, int] | None:
        """Return (low, high) if key j is visible to query i exactly when low <= j - i <= high; else None."""
        return None

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        """Return (start, stop), n and i broadcast, if query `i` sees exactly the keys start <= j < stop; else None."""
        return None

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints | None:
        """Return how many keys j < stop each query `i` sees, 0 <= stop <= Tk; None if that takes each pair."""
        run = self.runs(n, i, Tq, Tk)
        return None if run is None else np.maximum(np.minimum(run[1], stop) - run[0], 0)

    def listed(self, n: Index, i: Ints, Tq: int, Tk: int) -> Ints | None:
        """Return the keys that each query `i` (r,) sees, each once, (r, m), if they are a table; else None."""
        return None

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        """Return (some, all), which broadcast to (patterns `n`, tiles of queries, tiles of keys): bounds of each tile.

        The queries `i` follow each other, from the first of a tile. Where ``some`` is False the tile is certainly
        empty; where ``all`` is True it is certainly full.
        """
        run = self.runs(np.asarray(n)[..., None], i, Tq, Tk)
        if run is None:
            return np.ones((1, 1), bool), np.zeros((1, 1), bool)
        return blocks.tiles_of_runs(*run, Tk, block_q, block_k)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        """Return what is visible in the tiles that begin at the queries `q` (t,) and keys `k` (t,), a key in a row.

        The result broadcasts to (t, block_k, block_q); what it holds for pairs beyond Tq or Tk does not matter.
        """
        i = np.minimum(q[:, None, None] + np.arange(block_q), Tq - 1)  # (t, 1, block_q)
        j = np.minimum(k[:, None, None] + np.arange(block_k)[:, None], Tk - 1)  # (t, block_k, 1)
        return self.at(np.asarray(n)[..., None, None], i, j, Tq, Tk)

    def check(self, Tq: int, Tk: int) -> None:
        """Raise ValueError if this mask cannot describe Tq queries and Tk keys."""

    def _check_all(self, Tq: int, Tk: int) -> None:
        check_count("mask", "Tq", Tq, least=0)
        check_count("mask", "Tk", Tk, least=0)
        self.check(Tq, Tk)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        """Return, for query indices `i` (n, 1) and key indices `j` (m,), bools that broadcast to (*lead, n, m)."""
        n = np.arange(math.prod(self.lead)).reshape(*self.lead, 1, 1) if self.lead else 0
        return self.at(n, i, j, Tq, Tk)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        """Return (start, stop), each (*lead, Tq), if query i sees exactly the keys start <= j < stop; else None."""
        n = np.arange(math.prod(self.lead)).reshape(*self.lead, 1) if self.lead else 0
        run = self.runs(n, np.arange(Tq), Tq, Tk)
        return (
            None
            if run is None
            else (np.broadcast_to(run[0], (*self.lead, Tq)), np.broadcast_to(run[1], (*self.lead, Tq)))
        )

    def dense(self, Tq: int, Tk: int) -> Bools:
        """Return the whole pattern, bool (*lead, Tq, Tk), True where query i may look at key j.

        Examples
        --------
        >>> from refattn.masks import causal
        >>> causal().dense(2, 3).astype(int)
        array([[1, 1, 0],
               [1, 1, 1]])
        """
        self._check_all(Tq, Tk)
        seen = self.see(np.arange(Tq)[:, None], np.arange(Tk), Tq, Tk)
        return np.array(np.broadcast_to(seen, (*self.lead, Tq, Tk)))

    def pairs(self, Tq: int, Tk: int) -> int:
        """Return how many (query, key) pairs are visible, over all of ``lead``: ``dense(Tq, Tk).sum()``, exactly.

        The matrix is never built: a formula for what `band` describes, else a count for each query, else tiles.

        Examples
        --------
        >>> from refattn.masks import causal
        >>> causal().pairs(10**9, 10**9)
        500000000500000000
        """
        self._check_all(Tq, Tk)
        return counts.pairs(self, Tq, Tk)

    def density(self, Tq: int, Tk: int, block_q: int, block_k: int) -> NDArray[np.float64]:
        """Return the visible share of each tile, float64 (*lead, tiles of queries, tiles of keys).

        Examples
        --------
        >>> from refattn.masks import causal
        >>> causal().density(4, 4, 2, 2)
        array([[0.75, 0.  ],
               [1.  , 0.75]])
        """
        self._check_all(Tq, Tk)
        check_count("density", "block_q", block_q)
        check_count("density", "block_k", block_k)
        return counts.density(self, Tq, Tk, block_q, block_k)

    def blocks(self, Tq: int, Tk: int, block_q: int, block_k: int) -> "blocks.Blocks":
        """Return the tiles that are not empty, row by row, with the bits of those that are only partly visible."""
        self._check_all(Tq, Tk)
        return blocks.build(self, Tq, Tk, block_q, block_k)

    def to_scipy(self, Tq: int, Tk: int) -> "scipy.sparse.csr_array[Any]":
        """Return the pattern as a SciPy CSR array of bools (Tq, Tk); a mask with ``lead`` axes is refused."""
        if self.lead:
            raise ValueError(f"to_scipy: this mask has leading axes {self.lead}; SciPy's arrays are two-dimensional")
        return self.blocks(Tq, Tk, 128, 128).to_scipy()

    def picture(self, Tq: int, Tk: int, width: int = 64) -> str:
        """Return the pattern drawn in characters, at most `width` columns; see `refattn.masks.picture`."""
        return picture.draw(self, Tq, Tk, width)

    def svg(self, Tq: int, Tk: int, size: int = 480) -> str:
        """Return the pattern drawn as SVG text, `size` pixels wide; see `refattn.masks.svg`."""
        return svg.draw(self, Tq, Tk, size)

    def __and__(self, other: "Mask") -> "Mask":
        from refattn.masks.logic import And  # which needs this class

        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        from refattn.masks.logic import Or  # which needs this class

        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        from refattn.masks.logic import Not

        return Not(self)
