"""Patterns of positions: which key a query may look at depends on where both stand.

Query i of Tq and key j of Tk stand at the positions i + offset and j of one sequence, where offset = Tk - Tq unless it
is given: the last query is the last token (bottom-right alignment), so decoding with a cache needs no special case.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.given import Given, number, per_sequence, within


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
    return Causal(Given(None) if offset is None else Given.integers("causal", "offset", offset))


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """See `causal`."""

    offset: Given
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return per_sequence(self.offset.array)

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.lead == ()

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        seen: Bools = j <= i + self._offset(n, Tq, Tk)
        return seen

    def band(self, n: int, Tq: int, Tk: int) -> tuple[int, int]:
        return -Tq, int(self._offset(n, Tq, Tk))

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.clip(i + self._offset(n, Tq, Tk) + 1, 0, Tk)
        return np.zeros_like(stop), stop

    def _offset(self, n: Index, Tq: int, Tk: int) -> Index:
        offset = number(self.offset.array, n, Tk - Tq)
        return np.clip(offset, -Tq - Tk, Tq + Tk)  # further out says no more

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
    return Window(None if left is None else int(left), None if right is None else int(right))


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """See `window`."""

    left: int | None
    right: int | None
    cacheable = True
    shifts = True

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        low, high = self.band(0, Tq, Tk)
        seen: Bools = (j >= i + low) & (j <= i + high)
        return seen

    def band(self, n: int, Tq: int, Tk: int) -> tuple[int, int]:
        most = 2 * (Tq + Tk)  # further out says no more
        left = most if self.left is None else min(self.left, most)
        right = most if self.right is None else min(self.right, most)
        return Tk - Tq - left, Tk - Tq + right

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        low, high = self.band(0, Tq, Tk)
        return np.clip(i + low, 0, Tk), np.clip(i + high + 1, 0, Tk)

    def __repr__(self) -> str:
        return f"window({self.left}, {self.right})"


def prefix_lm(n: ArrayLike) -> Mask:
    """The first `n` keys are visible to every query, the others causally: j < n or j <= i + offset.

    Raffel et al. 2019, arXiv:1910.10683, section 3.2.1: a fully visible prefix before what the model continues.

    Parameters
    ----------
    n : int or int array (B,)
        Length of the prefix, 0 or more; one per sequence makes a mask with ``lead = (B, 1)``.

    Examples
    --------
    >>> print(prefix_lm(2).picture(4, 4))
    ██··
    ██··
    ███·
    ████
    """
    if n is None:
        raise TypeError("prefix_lm: n must be an integer or integers, got NoneType")
    given = Given.integers("prefix_lm", "n", n)
    if (given.array < 0).any():
        raise ValueError(f"prefix_lm: n holds {given.array.min()}; wanted 0 or more")
    return PrefixLM(given)


@dataclass(frozen=True, repr=False)
class PrefixLM(Mask):
    """See `prefix_lm`."""

    n: Given
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return per_sequence(self.n.array)

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        seen: Bools = j < np.maximum(number(self.n.array, n, 0), i + (Tk - Tq + 1))
        return seen

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.clip(np.maximum(number(self.n.array, n, 0), i + (Tk - Tq + 1)), 0, Tk)
        return np.zeros_like(stop), stop

    def __repr__(self) -> str:
        return f"prefix_lm({self.n!r})"


def chunked(size: int) -> Mask:
    """Keys in the query's own chunk of positions are visible: j // size == (i + offset) // size.

    With ``causal() &`` before it, the local layers of Llama 4 (Meta 2025, ``attention_chunk_size``).

    Examples
    --------
    >>> print((causal() & chunked(2)).picture(4, 4))
    █···
    ██··
    ··█·
    ··██
    """
    check_count("chunked", "size", size)
    return Chunked(int(size))


@dataclass(frozen=True, repr=False)
class Chunked(Mask):
    """See `chunked`."""

    size: int
    cacheable = True

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        size = within(self.size, Tq, Tk)
        seen: Bools = (i + (Tk - Tq)) // size == j // size
        return seen

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        size, position = within(self.size, Tq, Tk), i + (Tk - Tq)
        start = position - position % size
        return np.clip(start, 0, Tk), np.clip(start + size, 0, Tk)

    def __repr__(self) -> str:
        return f"chunked({self.size})"
