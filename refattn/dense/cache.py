"""The cache behind `paged_attention`: a pool of pages from which sequences take what they need, and which they share.

Kwon et al., "PagedAttention", 2023, arXiv:2309.06180, sections 4.2 to 4.4: pages are taken one at a time as a sequence
grows, counted by how many sequences hold them, and copied when one of several holders writes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn.arrays import FLOATS, Array, check_count, check_floats, check_shape
from refattn.dense.paged import pages_for
from refattn.dense.varlen import Ints


class PagedKVCache:
    """Keys and values of many sequences, in pages allocated once.

    A page has a number of holders: the sequences whose tables name it. One with no holder is free. What lies in it is
    never wiped; `paged_attention` reads no further than the length of each sequence.

    Parameters
    ----------
    n_pages, page_size : int
        How many pages there are, and how many tokens each has room for.
    kv_heads, head_dim : int
        Hk, D.
    v_head_dim : int, optional
        Dv, head_dim unless given.
    dtype : dtype
        Of what is kept, and of what `append` accepts.

    Examples
    --------
    >>> cache = PagedKVCache(n_pages=3, page_size=2, kv_heads=1, head_dim=4)
    >>> prompt = cache.allocate()
    >>> cache.append(prompt, np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32))
    >>> answer = cache.fork(prompt)
    >>> cache.pages_free  # three tokens take two pages, and the fork holds the same ones
    1
    >>> cache.append(answer, np.ones((1, 1, 4), np.float32), np.ones((1, 1, 4), np.float32))
    >>> cache.page_table([prompt, answer])  # the page that was half full is no longer shared
    array([[0, 1],
           [0, 2]], dtype=int32)
    >>> cache.seqlens([prompt, answer])
    array([3, 4], dtype=int32)
    """

    def __init__(
        self,
        n_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        sizes = {"n_pages": n_pages, "page_size": page_size, "kv_heads": kv_heads}
        for name, size in (sizes | {"head_dim": head_dim, "v_head_dim": v_head_dim}).items():
            check_count("PagedKVCache", name, size)
        if str(np.dtype(dtype)) not in FLOATS:
            raise TypeError(f"PagedKVCache: dtype is {np.dtype(dtype)}; wanted one of {', '.join(FLOATS)}")
        self._k = np.zeros((n_pages, page_size, kv_heads, head_dim), dtype)
        self._v = np.zeros((n_pages, page_size, kv_heads, v_head_dim), dtype)
        self._holders = np.zeros(n_pages, np.int64)
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0

    @property
    def k_pages(self) -> Array:
        """All keys, (n_pages, page_size, Hk, D): a view that later calls of `append` write to."""
        return self._k.view()

    @property
    def v_pages(self) -> Array:
        """All values, (n_pages, page_size, Hk, Dv)."""
        return self._v.view()

    @property
    def page_size(self) -> int:
        """How many tokens a page has room for."""
        return self._k.shape[1]

    @property
    def pages_free(self) -> int:
        """How many pages no sequence holds."""
        return int((self._holders == 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        return self._k.nbytes + self._v.nbytes

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences there are, oldest first."""
        return tuple(self._tables)

    def allocate(self) -> int:
        """Begin an empty sequence, which holds no page, and return its number; numbers are not used again."""
        return self._begin([], 0)

    def fork(self, sequence: int) -> int:
        """Begin a sequence with the tokens of another, in the same pages, and return its number.

        No token is copied now, and a full page never is. A page with room left is copied when one of its holders
        appends to it.

        Parameters
        ----------
        sequence : int
            From `allocate` or `fork`.

        Raises
        ------
        LookupError
            If there is no such sequence.
        """
        table = self._table("fork", sequence)
        self._holders[table] += 1
        return self._begin(list(table), self._lengths[sequence])

    def free(self, sequence: int) -> None:
        """End a sequence; the pages that nobody else holds become free.

        Parameters
        ----------
        sequence : int
            From `allocate` or `fork`.

        Raises
        ------
        LookupError
            If there is no such sequence.
        """
        self._holders[self._table("free", sequence)] -= 1
        del self._tables[sequence], self._lengths[sequence]

    def append(self, sequence: int, k: Array, v: Array) -> None:
        """Add the keys and values of the next tokens of one sequence.

        Parameters
        ----------
        sequence : int
            From `allocate` or `fork`.
        k, v : array, (Hk, T, D), (Hk, T, Dv)
            In the dtype of the cache.

        Raises
        ------
        LookupError
            If there is no such sequence.
        TypeError, ValueError
            If dtype or shape do not fit, or the free pages do not suffice. The cache is then as it was.
        """
        operation, (_, P, Hk, D) = "PagedKVCache.append", self._k.shape
        table, length = self._table("append", sequence), self._lengths[sequence]
        check_floats(operation, 3, k=k, v=v, cache=self._k)
        T = k.shape[-2]
        check_shape(operation, "k", k, (Hk, T, D), "(Hk, T, D)")
        check_shape(operation, "v", v, (Hk, T, self._v.shape[-1]), "(Hk, T, Dv)")

        writes_to_shared = T > 0 and length % P > 0 and self._holders[table[-1]] > 1
        wanted = pages_for(length + T, P) - len(table) + writes_to_shared
        free = np.flatnonzero(self._holders == 0)
        if wanted > len(free):
            raise ValueError(f"{operation}: {T} tokens do not fit: they need {wanted} pages and {len(free)} are free")
        taken = free[:wanted].tolist()
        self._holders[taken] = 1
        if writes_to_shared:
            shared, own = table.pop(), taken[0]
            self._k[own], self._v[own] = self._k[shared], self._v[shared]
            self._holders[shared] -= 1
        table.extend(taken)

        page, slot = np.divmod(np.arange(length, length + T), P)
        places = np.array(table, np.int64)[page], slot
        self._k[places], self._v[places] = k.swapaxes(0, 1), v.swapaxes(0, 1)
        self._lengths[sequence] = length + T

    def page_table(self, sequences: Sequence[int]) -> Ints:
        """Return the pages of each sequence, int32 (B, the most that one has), -1 where one has fewer.

        Parameters
        ----------
        sequences : sequence of int
            From `allocate` or `fork`.

        Raises
        ------
        LookupError
            If there is no such sequence.
        """
        tables = [self._table("page_table", sequence) for sequence in sequences]
        padded = np.full((len(tables), max(map(len, tables), default=0)), -1, np.int32)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        return padded

    def seqlens(self, sequences: Sequence[int]) -> Ints:
        """Return how many tokens each sequence has, int32 (B,).

        Parameters
        ----------
        sequences : sequence of int
            From `allocate` or `fork`.

        Raises
        ------
        LookupError
            If there is no such sequence.
        """
        for sequence in sequences:
            self._table("seqlens", sequence)
        return np.array([self._lengths[sequence] for sequence in sequences], np.int32)

    def view(self, sequences: Sequence[int]) -> tuple[Array, Array, Ints, Ints]:
        """Return (k_pages, v_pages, page_table, seqlens_k): ``paged_attention(q, *cache.view(sequences))``.

        Parameters
        ----------
        sequences : sequence of int
            From `allocate` or `fork`, one for each entry of the batch axis of q.

        Raises
        ------
        LookupError
            If there is no such sequence.
        """
        return self.k_pages, self.v_pages, self.page_table(sequences), self.seqlens(sequences)

    def _begin(self, table: list[int], length: int) -> int:
        sequence, self._next = self._next, self._next + 1
        self._tables[sequence], self._lengths[sequence] = table, length
        return sequence

    def _table(self, method: str, sequence: int) -> list[int]:
        if sequence not in self._tables:
            there = ", ".join(map(str, self._tables)) or "none"
            raise LookupError(f"PagedKVCache.{method}: no sequence {sequence!r}; there are: {there}")
        return self._tables[sequence]
