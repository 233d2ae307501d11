"""Patterns of positions: which key a query may look at depends on where both stand.

Query i of Tq and key j of Tk stand at the positions i + offset and j of one sequence, where offset = Tk - Tq unless it
is given: the last query is the last token (bottom-right alignment), so decoding with a cache needs no special case.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Ints, Mask
from refattn.masks.given import Given, column, per_sequence


def causal(offset: ArrayLike | None = None) -> Mask:
    """Key j is visible to query i when j <= i + offset.

    Parameters
    ----------
    offset : int or int array (B,), optional
        Tk - Tq unless given; one per sequence makes a mask with ``lead = (B, 1)``.

    Examples
    --------
    >>> print(causal().picture(3, 4))
    ██··
    ███·
    ████
    """
    return Causal(Given.integers("causal", "offset", offset))


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """See `causal`."""

    offset: Given
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return per_sequence(self.offset.array)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return j <= i + self._offset(Tq, Tk)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.arange(Tq) + self._offset(Tq, Tk)[..., 0] + 1
        return np.zeros(Tq, np.int64), np.clip(stop, 0, Tk)

    def _offset(self, Tq: int, Tk: int) -> Ints:
        return np.clip(column(self.offset.array, Tk - Tq), -Tq - Tk, Tq + Tk)  # further out says no more

    def __repr__(self) -> str:
        return f"causal({self.offset!r})"


def window(left: int | None, right: int | None) -> Mask:
    """Key j is visible when i + offset - left <= j <= i + offset + right; None leaves that side unbounded.

    The query's own position is always inside, so ``window(255, 0)`` spans 256 keys.

    Examples
    --------
    >>> print(window(1, 0).picture(3, 3))
    █··
    ██·
    ·██
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None:
            check_count("window", name, size, least=0)
    return Window(left, right)


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """See `window`."""

    left: int | None
    right: int | None
    cacheable = True

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        back = i + (Tk - Tq) - j  # how far key j lies behind query i
        seen = np.ones(np.broadcast_shapes(i.shape, j.shape), bool)
        if self.left is not None:
            seen &= back <= self.left
        if self.right is not None:
            seen &= -back <= self.right
        return seen

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        position, most = np.arange(Tq) + (Tk - Tq), Tq + Tk
        start = np.zeros(Tq, np.int64) if self.left is None else np.clip(position - min(self.left, most), 0, Tk)
        stop = np.full(Tq, Tk) if self.right is None else np.clip(position + min(self.right, most) + 1, 0, Tk)
        return start, stop

    def __repr__(self) -> str:
        return f"window({self.left}, {self.right})"
