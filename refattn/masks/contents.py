"""Patterns that name what they show: lengths, documents, chosen tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.given import Given, extremes, number, per_sequence


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

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return np.asarray((j < number(self.lengths.array, n, 0)) & (np.asarray(i) >= 0))

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints]:
        stop = np.minimum(number(self.lengths.array, n, 0), Tk) + np.zeros_like(i)
        return np.zeros_like(stop), stop

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

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        queries, keys = self._ids(Tq)
        return np.asarray(queries[n, i] == keys[n, j])

    def runs(self, n: Index, i: Ints, Tq: int, Tk: int) -> tuple[Ints, Ints] | None:
        places, in_one_run = self._places
        if not in_one_run:
            return None
        first = self._first(n, i, Tq, Tk)
        start, end = np.searchsorted(places, first), np.searchsorted(places, first + Tk)
        start_key = np.append(places, 0)[start] % (Tk + 1)
        return start_key, start_key + end - start

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        first = self._first(n, i, Tq, Tk)
        return np.searchsorted(self._places[0], first + stop) - np.searchsorted(self._places[0], first)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        if self._places[1]:
            return super().tiles(n, i, Tq, Tk, block_q, block_k)
        queries, keys = self._ids(Tq)
        q_low, q_high = extremes(queries[n][..., i], block_q)
        k_low, k_high = extremes(keys[n], block_k)
        some = (q_low[..., :, None] <= k_high[..., None, :]) & (k_low[..., None, :] <= q_high[..., :, None])
        one_each = (q_low == q_high)[..., :, None] & (k_low == k_high)[..., None, :]
        return some, one_each & (q_low[..., :, None] == k_low[..., None, :])

    def _ids(self, Tq: int) -> tuple[Ints, Ints]:
        """Return the ids of the queries (sequences, Tq) and of the keys (sequences, Tk)."""
        batch = math.prod(self.lead)
        queries, keys = (ids.array.reshape(batch, ids.array.shape[-1]) for ids in (self.query_ids, self.ids))
        return queries[:, queries.shape[-1] - Tq :] if self.queries_are_last else queries, keys

    @cached_property
    def _documents(self) -> Ints:
        return np.unique(self.ids.array)

    @cached_property
    def _places(self) -> tuple[Ints, bool]:
        """Return all keys, document by document, and whether those of each document stand one after another.

        Key j of sequence n and document d is (n * documents + d) * (Tk + 1) + j.
        """
        _, keys = self._ids(0)
        Tk = keys.shape[-1]
        document = np.searchsorted(self._documents, keys) + np.arange(len(keys))[:, None] * len(self._documents)
        places = np.sort((document * (Tk + 1) + np.arange(Tk)).ravel())
        changes = np.count_nonzero(keys[:, 1:] != keys[:, :-1]) + len(keys) * (Tk > 0)
        return places, bool(changes == len(np.unique(places // (Tk + 1))))

    def _first(self, n: Index, i: Ints, Tq: int, Tk: int) -> Ints:
        """Return where in `_places` the document of each query would have its key 0; beyond all, if it has no keys."""
        queries, _ = self._ids(Tq)
        known = np.isin(queries[n, i], self._documents)
        document = np.searchsorted(self._documents, queries[n, i]) + n * len(self._documents)
        return np.where(known, document, math.prod(self.lead) * len(self._documents)) * (Tk + 1)

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

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        return np.asarray(np.isin(j, self.indices.array) | np.isin(np.asarray(i) + Tk - Tq, self.indices.array))

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        columns = np.searchsorted(np.unique(self.indices.array), stop)
        return np.where(np.isin(i + Tk - Tq, self.indices.array), stop, columns)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        (row_all, row_some) = extremes(np.isin(i + Tk - Tq, self.indices.array), block_q)
        (col_all, col_some) = extremes(np.isin(np.arange(Tk), self.indices.array), block_k)
        return row_some[:, None] | col_some, row_all[:, None] | col_all

    def __repr__(self) -> str:
        return f"global_tokens({self.indices!r})"
