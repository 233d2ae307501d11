"""What every mask can answer, and how two masks combine.

A pattern (see `positions` and `contents`) says one thing, `see`: may query i look at key j? Everything else follows.
Two shortcuts make the answers cheap where the pattern has a shape: `spans`, when each query sees one interval of keys,
and `tiles`, bounds that decide most tiles of the score matrix without looking into them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count
from refattn.masks import blocks, picture

if TYPE_CHECKING:
    import scipy.sparse

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Mask:
    """Which query may look at which key. Combine masks with ``&``, ``|`` and ``~``."""

    lead: tuple[int, ...] = ()
    """Shape of the axes before (Tq, Tk); it broadcasts against (..., H): (B, 1) for one pattern per sequence."""

    cacheable: bool = False
    """Whether a backend may keep what it derived from this mask: equal masks mean the same, and it is not large."""

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        """Return, for query indices `i` (n, 1) and key indices `j` (m,), bools that broadcast to (*lead, n, m)."""
        raise NotImplementedError

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        """Return (start, stop), each (*lead, Tq), if query i sees exactly the keys start <= j < stop; else None."""
        return None

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        """Return (some, all), each broadcasting to (*lead, tiles of queries, tiles of keys): bounds for each tile.

        Where ``some`` is False the tile is certainly empty; where ``all`` is True it is certainly full.
        """
        spans = self.spans(Tq, Tk)
        if spans is None:
            return np.ones((1, 1), bool), np.zeros((1, 1), bool)
        return blocks.tiles_of_spans(*spans, Tk, block_q, block_k)

    def check(self, Tq: int, Tk: int) -> None:
        """Raise ValueError if this mask cannot describe Tq queries and Tk keys."""

    def _check_all(self, Tq: int, Tk: int) -> None:
        check_count("mask", "Tq", Tq, least=0)
        check_count("mask", "Tk", Tk, least=0)
        self.check(Tq, Tk)

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

        Linear in Tq where each query sees one interval, else by tiles; the matrix is never built.
        """
        self._check_all(Tq, Tk)
        spans = self.spans(Tq, Tk)
        if spans is None:
            return self.blocks(Tq, Tk, 128, 128).pairs
        start, stop = spans
        return int(np.maximum(stop - start, 0).sum())

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

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return Not(self)


@dataclass(frozen=True, repr=False)
class Both(Mask):
    """Two masks that are asked together."""

    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        try:
            np.broadcast_shapes(self.left.lead, self.right.lead)
        except ValueError:
            raise ValueError(
                f"the leading axes of two masks differ: {self.left.lead} of {self.left!r}, "
                f"{self.right.lead} of {self.right!r}"
            ) from None

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return np.broadcast_shapes(self.left.lead, self.right.lead)

    @property
    def cacheable(self) -> bool:  # type: ignore[override]
        return self.left.cacheable and self.right.cacheable

    def check(self, Tq: int, Tk: int) -> None:
        self.left.check(Tq, Tk)
        self.right.check(Tq, Tk)


class And(Both):
    """What both masks let through."""

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return self.left.see(i, j, Tq, Tk) & self.right.see(i, j, Tq, Tk)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        left, right = self.left.spans(Tq, Tk), self.right.spans(Tq, Tk)
        if left is None or right is None:
            return None
        return np.maximum(left[0], right[0]), np.minimum(left[1], right[1])

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        some, every = self.left.tiles(Tq, Tk, block_q, block_k)
        some_too, every_too = self.right.tiles(Tq, Tk, block_q, block_k)
        return some & some_too, every & every_too

    def __repr__(self) -> str:
        return f"{_nested(self.left)} & {_nested(self.right)}"


class Or(Both):
    """What either mask lets through."""

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return self.left.see(i, j, Tq, Tk) | self.right.see(i, j, Tq, Tk)

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        some, every = self.left.tiles(Tq, Tk, block_q, block_k)
        some_too, every_too = self.right.tiles(Tq, Tk, block_q, block_k)
        return some | some_too, every | every_too

    def __repr__(self) -> str:
        return f"{_nested(self.left)} | {_nested(self.right)}"


@dataclass(frozen=True, repr=False)
class Not(Mask):
    """What the mask hides."""

    mask: Mask

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.mask.lead

    @property
    def cacheable(self) -> bool:  # type: ignore[override]
        return self.mask.cacheable

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return ~self.mask.see(i, j, Tq, Tk)

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        some, every = self.mask.tiles(Tq, Tk, block_q, block_k)
        return ~every, ~some

    def check(self, Tq: int, Tk: int) -> None:
        self.mask.check(Tq, Tk)

    def __repr__(self) -> str:
        return f"~{_nested(self.mask)}"


def _nested(mask: Mask) -> str:
    return f"({mask!r})" if isinstance(mask, And | Or) else repr(mask)
