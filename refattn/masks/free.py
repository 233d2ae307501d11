"""Patterns without a shape: a bool array, a function."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refattn.arrays import check_broadcasts
from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.given import Given, extremes

COUNTED = 1 << 22  # pairs of an array counted at a time


def from_array(visible: ArrayLike) -> Mask:
    """The pattern stands in a bool array (..., Tq, Tk), True where query i may look at key j; axes of 1 broadcast.

    Examples
    --------
    >>> print(from_array([[True, False], [True, True]]).picture(2, 2))
    █·
    ██
    """
    return FromArray(Given.bools("mask", visible))


@dataclass(frozen=True, repr=False)
class FromArray(Mask):
    """See `from_array`."""

    visible: Given

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.visible.array.shape[:-2]

    @property
    def cacheable(self) -> bool:  # type: ignore[override]
        return self.visible.array.size <= 1 << 16

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        rows, columns = self.visible.array.shape[-2:]
        seen = self._flat()[n, i if rows == Tq else np.minimum(i, 0), j if columns == Tk else np.minimum(j, 0)]
        return np.asarray(seen)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        found = np.zeros(i.shape, np.int64)
        j, stops = np.arange(Tk), np.broadcast_to(stop, i.shape)
        for part in np.array_split(np.arange(len(i)), -(-i.size * Tk // COUNTED) or 1):
            found[part] = np.count_nonzero(self.at(n, i[part, None], j, Tq, Tk) & (j < stops[part, None]), axis=-1)
        return found

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        seen: Any = self._flat()[n]
        seen = seen if seen.shape[-2] == 1 else seen[..., i, :]
        every, some = extremes(seen, block_k if seen.shape[-1] == Tk else 1)
        every, some = every.swapaxes(-1, -2), some.swapaxes(-1, -2)
        step = block_q if seen.shape[-2] == len(i) else 1
        return extremes(some, step)[1].swapaxes(-1, -2), extremes(every, step)[0].swapaxes(-1, -2)

    def _flat(self) -> Bools:
        array = self.visible.array
        return array.reshape(math.prod(self.lead), *array.shape[-2:])

    def check(self, Tq: int, Tk: int) -> None:
        check_broadcasts("mask", "array", self.visible.array.shape, (*self.lead, Tq, Tk), "(..., Tq, Tk)")

    def __repr__(self) -> str:
        return f"from_array({self.visible.shortly()})"


def from_function(see: Callable[[Ints, Ints], Any]) -> Mask:
    """``see(i, j)`` says, for an int array (n, 1) of query and one (m,) of key indices, which pairs (n, m) are visible.

    Examples
    --------
    >>> print(from_function(lambda i, j: (i + j) % 2 == 0).picture(2, 4))
    █·█·
    ·█·█
    """
    if not callable(see):
        raise TypeError(f"from_function: wanted a function of (i, j), got {type(see).__name__}")
    return FromFunction(see)


@dataclass(frozen=True, repr=False)
class FromFunction(Mask):
    """See `from_function`."""

    function: Callable[[Ints, Ints], Any]

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        if i.ndim == 2 and i.shape[1] == 1 and j.ndim == 1:
            return self._ask(i, j)
        shape = np.broadcast_shapes(i.shape, j.shape)
        seen = np.zeros(shape, bool)
        for place in np.ndindex(shape[:-1]):
            queries, keys = (np.broadcast_to(x, shape)[place] for x in (i, j))
            same = (queries == queries[:1]).all()
            seen[place] = self._ask(queries[:1, None], keys) if same else self._ask(queries[:, None], keys).diagonal()
        return seen

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        seen = np.zeros((len(q), block_k, block_q), bool)
        for top in np.unique(q):  # one call for all tiles of a row
            row = np.flatnonzero(q == top)
            i, j = np.arange(top, min(top + block_q, Tq)), (k[row, None] + np.arange(block_k)).ravel()
            part = np.zeros((len(j), len(i)), bool)
            part[j < Tk] = self._ask(i[:, None], j[j < Tk]).T
            seen[row, :, : len(i)] = part.reshape(len(row), block_k, len(i))
        return seen

    def _ask(self, i: Ints, j: Ints) -> Bools:
        try:
            seen = np.asarray(self.function(i, j))
        except ValueError as error:
            raise ValueError(f"from_function: the function failed on i {i.shape}, j {j.shape}: {error}") from error
        if seen.dtype != bool:
            raise TypeError(f"from_function: the function returned {seen.dtype}; wanted bool, True = may look")
        check_broadcasts("from_function", "its result", seen.shape, (i.shape[0], j.shape[0]), "(n, m)")
        return np.broadcast_to(seen, (i.shape[0], j.shape[0]))

    def __repr__(self) -> str:
        return f"from_function({getattr(self.function, '__name__', self.function)!s})"


def as_mask(mask: Mask | Bools | None) -> Mask | None:
    """Return a mask value for what an operation's ``mask=`` accepts: a mask, a bool array (..., Tq, Tk), or None."""
    return mask if mask is None or isinstance(mask, Mask) else from_array(mask)
