"""The patterns themselves. Each is a function that returns a `Mask`, checked when it is made.

Query i of Tq and key j of Tk stand at the positions i + offset and j of one sequence, where offset = Tk - Tq unless it
is given: the last query is the last token (bottom-right alignment), so decoding with a cache needs no special case.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn.arrays import check_broadcasts, check_count
from refattn.masks.algebra import Bools, Ints, Mask


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
    return Causal(_Given.integers("causal", "offset", offset))


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


def padding(lengths: ArrayLike) -> Mask:
    """Keys j < length are visible; one length per sequence, int (B,), makes a mask with ``lead = (B, 1)``.

    Examples
    --------
    >>> print(padding([1, 3]).dense(1, 3)[:, 0].astype(int))
    [[[1 0 0]]
     [[1 1 1]]]
    """
    given = _Given.integers("padding", "lengths", lengths)
    if (given.array < 0).any():
        raise ValueError(f"padding: lengths holds {given.array.min()}; wanted 0 or more")
    return Padding(given)


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
    keys = _Given.integers("document", "ids", ids, axes=1)
    queries = keys if query_ids is None else _Given.integers("document", "query_ids", query_ids, axes=1)
    if keys.array.shape[:-1] != queries.array.shape[:-1]:
        raise ValueError(f"document: ids {keys.array.shape} and query_ids {queries.array.shape} differ in batch")
    return Document(keys, queries, query_ids is None)


def global_tokens(indices: Sequence[int]) -> Mask:
    """The named positions see every key and are seen by every query.

    Examples
    --------
    >>> print(global_tokens([1]).picture(3, 3))
    ·█·
    ███
    ·█·
    """
    given = _Given.integers("global_tokens", "indices", indices, axes=1)
    if given.array.ndim != 1 or (given.array < 0).any():
        raise ValueError(f"global_tokens: indices is {indices!r}; wanted a list of positions, each 0 or more")
    return GlobalTokens(given)


def from_array(visible: ArrayLike) -> Mask:
    """The pattern stands in a bool array (..., Tq, Tk), True where query i may look at key j; axes of 1 broadcast.

    Examples
    --------
    >>> print(from_array([[True, False], [True, True]]).picture(2, 2))
    █·
    ██
    """
    return FromArray(_Given.bools("mask", visible))


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


@dataclass(frozen=True)
class _Given:
    """An array that a mask was made from: read-only, compared and hashed by its content."""

    array: Any  # an NDArray, or None for an argument left out

    @classmethod
    def integers(cls, pattern: str, name: str, values: ArrayLike | None, axes: int = 0) -> "_Given":
        if values is None:
            return cls(None)
        array = np.array(values)
        if array.size > 0 and array.dtype.kind not in "iu":
            raise TypeError(f"{pattern}: {name} has dtype {array.dtype}; wanted integers")
        if array.ndim < axes:
            raise ValueError(f"{pattern}: {name} has shape {array.shape}; wanted at least {axes} axes")
        return cls._frozen(array.astype(np.int64))

    @classmethod
    def bools(cls, name: str, values: ArrayLike) -> "_Given":
        array = np.array(values)
        if array.dtype != bool:
            raise TypeError(f"{name} has dtype {array.dtype}; wanted bool, True = may look (floats go to bias=)")
        if array.ndim < 2:
            raise ValueError(f"{name} has shape {array.shape}; wanted (..., Tq, Tk)")
        return cls._frozen(array)

    @classmethod
    def _frozen(cls, array: NDArray[Any]) -> "_Given":
        array.flags.writeable = False
        return cls(array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash(None if self.array is None else (self.array.shape, self.array.tobytes()))

    def __repr__(self) -> str:
        return "" if self.array is None else repr(self.array.tolist())


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """See `causal`."""

    offset: _Given

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return _per_sequence(self.offset.array)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return j <= i + _column(self.offset.array, Tk - Tq)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.arange(Tq) + _column(self.offset.array, Tk - Tq)[..., 0] + 1
        return np.zeros(Tq, np.int64), np.clip(stop, 0, Tk)

    def __repr__(self) -> str:
        return f"causal({self.offset!r})"


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """See `window`."""

    left: int | None
    right: int | None

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        back = i + (Tk - Tq) - j  # how far key j lies behind query i
        seen = np.ones(np.broadcast_shapes(i.shape, j.shape), bool)
        if self.left is not None:
            seen &= back <= self.left
        if self.right is not None:
            seen &= -back <= self.right
        return seen

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        position = np.arange(Tq) + (Tk - Tq)
        start = np.zeros(Tq, np.int64) if self.left is None else np.clip(position - self.left, 0, Tk)
        stop = np.full(Tq, Tk) if self.right is None else np.clip(position + self.right + 1, 0, Tk)
        return start, stop

    def __repr__(self) -> str:
        return f"window({self.left}, {self.right})"


@dataclass(frozen=True, repr=False)
class Padding(Mask):
    """See `padding`."""

    lengths: _Given

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return _per_sequence(self.lengths.array)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return (j < _column(self.lengths.array, 0)) & (i >= 0)

    def spans(self, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.minimum(_column(self.lengths.array, 0)[..., 0], Tk)
        return np.zeros(Tq, np.int64), np.broadcast_to(stop, (*self.lead, Tq))

    def check(self, Tq: int, Tk: int) -> None:
        longest = int(self.lengths.array.max(initial=0))
        if longest > Tk:
            raise ValueError(f"padding: a length is {longest}, but there are {Tk} keys")

    def __repr__(self) -> str:
        return f"padding({self.lengths!r})"


@dataclass(frozen=True, repr=False)
class Document(Mask):
    """See `document`."""

    ids: _Given
    query_ids: _Given
    queries_are_last: bool

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
        q_low, q_high = _extremes(self._queries(Tq), block_q)
        k_low, k_high = _extremes(self.ids.array, block_k)
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


@dataclass(frozen=True, repr=False)
class GlobalTokens(Mask):
    """See `global_tokens`."""

    indices: _Given

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return np.isin(j, self.indices.array) | np.isin(i + Tk - Tq, self.indices.array)

    def tiles(self, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        rows = np.isin(np.arange(Tq) + Tk - Tq, self.indices.array)
        (row_all, row_some) = _extremes(rows, block_q)
        (col_all, col_some) = _extremes(np.isin(np.arange(Tk), self.indices.array), block_k)
        return row_some[:, None] | col_some, row_all[:, None] | col_all

    def __repr__(self) -> str:
        return f"global_tokens({self.indices!r})"


@dataclass(frozen=True, repr=False)
class FromArray(Mask):
    """See `from_array`."""

    visible: _Given

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


@dataclass(frozen=True, repr=False)
class FromFunction(Mask):
    """See `from_function`."""

    function: Callable[[Ints, Ints], Any]
    cacheable = False  # what the function reads may change

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        seen = np.asarray(self.function(i, j))
        if seen.dtype != bool:
            raise TypeError(f"from_function: the function returned {seen.dtype}; wanted bool, True = may look")
        check_broadcasts("from_function", "its result", seen.shape, (i.shape[0], j.shape[0]), "(n, m)")
        return np.broadcast_to(seen, (i.shape[0], j.shape[0]))

    def __repr__(self) -> str:
        return f"from_function({getattr(self.function, '__name__', self.function)!s})"


def _per_sequence(values: NDArray[Any] | None) -> tuple[int, ...]:
    return () if values is None or values.ndim == 0 else (*values.shape, 1)


def _column(values: NDArray[Any] | None, default: int) -> Ints:
    """Return one number per sequence, shaped so that it broadcasts against (..., H, Tq, Tk)."""
    array = np.asarray(default if values is None else values, np.int64)
    return array.reshape((*_per_sequence(array), 1, 1))


def _extremes(values: NDArray[Any], block: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and the greatest value in each run of `block` entries of the last axis."""
    starts = np.arange(0, values.shape[-1], block)
    return np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)
