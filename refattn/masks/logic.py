"""Two masks asked together: ``a & b`` shows what both show, ``a | b`` what either shows, ``~a`` what `a` hides."""

import math
from dataclasses import dataclass

import numpy as np

from refattn.masks import counts
from refattn.masks.algebra import Bools, Index, Ints, Mask


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

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.left.shifts and self.right.shifts

    def check(self, Tq: int, Tk: int) -> None:
        self.left.check(Tq, Tk)
        self.right.check(Tq, Tk)

    def _sides(self, n: Index) -> tuple[tuple[Mask, Index], tuple[Mask, Index]]:
        """Return both masks, each with which of its own patterns pattern `n` of the two together is made from."""
        return (self.left, self._index(self.left, n)), (self.right, self._index(self.right, n))

    def _index(self, side: Mask, n: Index) -> Index:
        if side.lead in ((), self.lead):
            return n if side.lead else 0
        own = np.arange(math.prod(side.lead)).reshape(side.lead)
        index: Ints = np.broadcast_to(own, self.lead).reshape(-1)[n]
        return index


class And(Both):
    """What both masks let through."""

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        (left, a), (right, b) = self._sides(n)
        return left.at(a, i, j, Tq, Tk) & right.at(b, i, j, Tq, Tk)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        (left, a), (right, b) = self._sides(n)
        return left.patch(a, q, k, Tq, Tk, block_q, block_k) & right.patch(b, q, k, Tq, Tk, block_q, block_k)

    def band(self, n: int, Tq: int, Tk: int) -> tuple[int, int] | None:
        left, right = (side.band(int(m), Tq, Tk) for side, m in self._sides(n))
        return None if left is None or right is None else (max(left[0], right[0]), min(left[1], right[1]))

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        left, right = (side.runs(m, i, Tq, Tk) for side, m in self._sides(n))
        if left is None or right is None:
            return None
        return np.maximum(left[0], right[0]), np.minimum(left[1], right[1])

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints | None:
        return counts.below_all(self.factors(n), i, stop, Tq, Tk)

    def factors(self, n: Index) -> list[tuple[Mask, Index]]:
        """Return the masks that all must let a pair through, each with its own index: ``a & (b & c)`` has three."""
        found = []
        for side, m in self._sides(n):
            found += side.factors(m) if isinstance(side, And) else [(side, m)]
        return found

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        (some, every), (some_too, every_too) = (m.tiles(a, i, Tq, Tk, block_q, block_k) for m, a in self._sides(n))
        return some & some_too, every & every_too

    def __repr__(self) -> str:
        return f"{_nested(self.left)} & {_nested(self.right)}"


class Or(Both):
    """What either mask lets through."""

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        (left, a), (right, b) = self._sides(n)
        return left.at(a, i, j, Tq, Tk) | right.at(b, i, j, Tq, Tk)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        (left, a), (right, b) = self._sides(n)
        return left.patch(a, q, k, Tq, Tk, block_q, block_k) | right.patch(b, q, k, Tq, Tk, block_q, block_k)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints | None:
        both = And(self.left, self.right).below(n, i, stop, Tq, Tk)
        if both is None:
            return None
        left, right = (side.below(m, i, stop, Tq, Tk) for side, m in self._sides(n))
        return None if left is None or right is None else left + right - both  # |A or B| = |A| + |B| - |A and B|

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        (some, every), (some_too, every_too) = (m.tiles(a, i, Tq, Tk, block_q, block_k) for m, a in self._sides(n))
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

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.mask.shifts

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return ~self.mask.at(n, i, j, Tq, Tk)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        return ~self.mask.patch(n, q, k, Tq, Tk, block_q, block_k)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints | None:
        seen = self.mask.below(n, i, stop, Tq, Tk)
        return None if seen is None else stop - seen

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        some, every = self.mask.tiles(n, i, Tq, Tk, block_q, block_k)
        return ~every, ~some

    def check(self, Tq: int, Tk: int) -> None:
        self.mask.check(Tq, Tk)

    def __repr__(self) -> str:
        return f"~{_nested(self.mask)}"


def _nested(mask: Mask) -> str:
    return f"({mask!r})" if isinstance(mask, And | Or) else repr(mask)
