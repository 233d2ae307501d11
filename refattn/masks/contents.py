"""Patterns that are given: lengths, documents, chosen tokens, an array, a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refattn.arrays import check_broadcasts
from refattn.masks.algebra import Bools, Ints, Mask
from refattn.masks.given import Given, column, extremes, per_sequence


def padding(lengths: ArrayLike) -> Mask:
    """Keys j < length are visible; one length per sequence, int (B,), makes a mask with ``lead = (B, 1)``.

    Examples
    --------
    >>> print(padding([1, 3]).dense(1, 3)[:, 0].astype(int))
    [[[1 0 0]]
     [[1 1 1]]]
    """
    given = Given.integers("padding", "lengths", lengths)
    if (given.array < 0).any():
        raise ValueError(f"padding: lengths holds {given.array.min()}; wanted 0 or more")
    return Padding(given)


@dataclass(frozen=True, repr=False)
class Padding(Mask):
    """See `padding`."""

    lengths: Given
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return per_sequence(self.lengths.array)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return (j < column(self.lengths.array, 0)) & (i >= 0)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.minimum(column(self.lengths.array, 0)[..., 0], Tk)
        return np.zeros(Tq, np.int64), np.broadcast_to(stop, (*self.lead, Tq))

    def check(self, Tq: int, Tk: int) -> None:
        longest = int(self.lengths.array.max(initial=0))
        if longest > Tk:
            raise ValueError(f"padding: a length is {longest}, but there are {Tk} keys")

    def __repr__(self) -> str:
        return f"padding({self.lengths!r})"


def document(ids: ArrayLike, query_ids: ArrayLike | None = None) -> Mask:
    """Only keys of the query's own document are visible.

    Parameters
    ----------
    ids : int array (Tk,) or (B, Tk)
        The document to which each key belongs.
    query_ids : int array (Tq,) or (B, Tq), optional
        The same for the queries; by default the queries are the last Tq tokens.

    Examples
    --------
    >>> print(document([7, 7, 8]).picture(3, 3))
    ██·
    ██·
    ··█
    """
    keys = Given.integers("document", "ids", ids, axes=1)
    queries = keys if query_ids is None else Given.integers("document", "query_ids", query_ids, axes=1)
    if keys.array.shape[:-1] != queries.array.shape[:-1]:
        raise ValueError(f"document: ids {keys.array.shape} and query_ids {queries.array.shape} differ in batch")
    return Document(keys, queries, query_ids is None)


@dataclass(frozen=True, repr=False)
class Document(Mask):
    """See `document`."""

    ids: Given
    query_ids: Given
    queries_are_last: bool
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        batch = self.ids.array.shape[:-1]
        return (*batch, 1) if batch else ()

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        queries = self._queries(Tq)[..., i[:, 0], None]  # (*batch, n, 1)
        keys = self.ids.array[..., None, j]  # (*batch, 1, m)
        seen: Bools = queries == keys
        return seen[..., None, :, :] if self.lead else seen

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        q_low, q_high = extremes(self._queries(Tq), block_q)
        k_low, k_high = extremes(self.ids.array, block_k)
        some = (q_low[..., :, None] <= k_high[..., None, :]) & (k_low[..., None, :] <= q_high[..., :, None])
        one_each = (q_low == q_high)[..., :, None] & (k_low == k_high)[..., None, :]
        every = one_each & (q_low[..., :, None] == k_low[..., None, :])
        return (some[..., None, :, :], every[..., None, :, :]) if self.lead else (some, every)

    def _queries(self, Tq: int) -> Ints:
        queries = self.query_ids.array
        return queries[..., queries.shape[-1] - Tq :] if self.queries_are_last else queries

    def check(self, Tq: int, Tk: int) -> None:
        if self.ids.array.shape[-1] != Tk:
            raise ValueError(f"document: ids has {self.ids.array.shape[-1]} entries, but there are {Tk} keys")
        have = self.query_ids.array.shape[-1]
        if have < Tq if self.queries_are_last else have != Tq:
            raise ValueError(f"document: there are {Tq} queries, but ids for {have}; give query_ids of that length")

    def __repr__(self) -> str:
        return f"document({self.ids!r})" if self.queries_are_last else f"document({self.ids!r}, {self.query_ids!r})"


def global_tokens(indices: Sequence[int]) -> Mask:
    """The named positions see every key and are seen by every query.

    Examples
    --------
    >>> print(global_tokens([1]).picture(3, 3))
    ·█·
    ███
    ·█·
    """
    given = Given.integers("global_tokens", "indices", indices, axes=1)
    if given.array.ndim != 1 or (given.array < 0).any():
        raise ValueError(f"global_tokens: indices is {indices!r}; wanted a list of positions, each 0 or more")
    return GlobalTokens(given)


@dataclass(frozen=True, repr=False)
class GlobalTokens(Mask):
    """See `global_tokens`."""

    indices: Given
    cacheable = True

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return np.isin(j, self.indices.array) | np.isin(i + Tk - Tq, self.indices.array)

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        rows = np.isin(np.arange(Tq) + Tk - Tq, self.indices.array)
        (row_all, row_some) = extremes(rows, block_q)
        (col_all, col_some) = extremes(np.isin(np.arange(Tk), self.indices.array), block_k)
        return row_some[:, None] | col_some, row_all[:, None] | col_all

    def __repr__(self) -> str:
        return f"global_tokens({self.indices!r})"


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

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        whole = np.broadcast_to(self.visible.array, (*self.lead, Tq, Tk))
        seen: Bools = whole[..., i, j]
        return seen

    def check(self, Tq: int, Tk: int) -> None:
        check_broadcasts("mask", "array", self.visible.array.shape, (*self.lead, Tq, Tk), "(..., Tq, Tk)")

    def __repr__(self) -> str:
        array = self.visible.array
        if array.size > 4096:  # a repr is to be read; beyond this size it no longer round-trips
            return f"from_array(<bool {array.shape}, {int(array.sum())} visible>)"
        return f"from_array({self.visible!r})"


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

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
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
