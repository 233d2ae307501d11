"""What the dialects share: layouts, rotations from tables, and caches that are written in place."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_floats, compute_dtype
from refattn.dense.attention import attention

Ints = NDArray[np.integer[Any]]


def heads_first(x: Array) -> Array:
    """Turn (..., T, H, D) into (..., H, T, D), or back: the two axes change places."""
    return x.swapaxes(-3, -2)


def nothing_seen(lse: Array, value: float) -> Array:
    """Return `lse` with `value` where it is -inf or NaN, as kernels do that test the sum of exponentials."""
    return np.where(np.isneginf(lse) | np.isnan(lse), lse.dtype.type(value), lse)


def rotate(x: Array, cos: Array, sin: Array, positions: Ints, interleaved: bool) -> Array:
    """Rotate the first pairs of dimensions of x (T, H, D) by the table rows (rows, rotary_dim / 2) at `positions`.

    Pair n is (2n, 2n + 1) if `interleaved`, else (n, n + rotary_dim / 2); what lies beyond rotary_dim stays.
    """
    compute = compute_dtype(x.dtype)
    n = 2 * cos.shape[-1]
    c, s = (table[positions][:, None, :].astype(compute) for table in (cos, sin))  # (T, 1, rotary_dim / 2)
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    y = x.astype(compute)
    left, right = x[..., a].astype(compute), x[..., b].astype(compute)
    y[..., a], y[..., b] = left * c - right * s, left * s + right * c
    return y.astype(x.dtype)


def check_lengths(operation: str, name: str, values: Any, batch: int, most: int) -> Ints:
    """Return one length per sequence, int64 (batch,), from a number or an int array; each 0 ... most."""
    lengths = np.asarray(values)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} has dtype {lengths.dtype}; wanted integers")
    if lengths.shape not in ((), (batch,)):
        raise ValueError(f"{operation}: {name} has shape {lengths.shape}; wanted one length for each of {batch}")
    if lengths.size and (lengths.min() < 0 or lengths.max() > most):
        raise ValueError(f"{operation}: {name} is {lengths.tolist()}; wanted lengths of 0 ... {most}")
    return np.broadcast_to(lengths, (batch,)).astype(np.int64)


def check_borders(operation: str, name: str, values: Any, total: int | None) -> Ints:
    """Return cumulative lengths, int64 (B + 1,): from 0, never falling, up to `total` where that is known."""
    borders = np.asarray(values)
    if borders.dtype.kind not in "iu" or borders.ndim != 1 or borders.size < 2:
        raise TypeError(f"{operation}: {name} is {borders.dtype} {borders.shape}; wanted integers (B + 1,)")
    if borders[0] != 0 or (np.diff(borders.astype(np.int64)) < 0).any():
        raise ValueError(f"{operation}: {name} is {borders.tolist()}; wanted 0 first, and nothing that falls")
    if total is not None and borders[-1] > total:
        raise ValueError(f"{operation}: {name} ends at {borders[-1]}; there are {total} rows")
    return borders.astype(np.int64)


def bounds(name: str, window: Any) -> tuple[int, int]:
    """Return the (left, right) of a window, which is argument `name`."""
    two = isinstance(window, tuple | list) and len(window) == 2
    if not two or not all(isinstance(size, int | np.integer) for size in window):
        raise TypeError(f"{name} is {window!r}; wanted two integers, (left, right)")
    return int(window[0]), int(window[1])


def spans(borders: Ints) -> Iterator[slice]:
    """Yield the rows of each sequence."""
    for start, stop in itertools.pairwise(borders):
        yield slice(int(start), int(stop))


def check_pages(operation: str, name: str, table: Any, batch: int, n_pages: int) -> Ints:
    """Return a table of pages as an int array (batch, n)."""
    pages = np.asarray(table)
    if pages.dtype.kind not in "iu" or pages.ndim != 2 or len(pages) != batch:
        raise TypeError(f"{operation}: {name} is {pages.dtype} {pages.shape}; wanted integers ({batch}, n)")
    return pages


class Cache:
    """Keys or values of a batch, (rows, T, Hk, D) with a row per sequence, or pages (n, page, Hk, D) with a table.

    Parameters
    ----------
    store : array
        Written by `write`, so that the caller sees it.
    rows : int array (B,), or None with a table
        Which row of `store` belongs to each sequence.
    table : int array (B, n), optional
        The pages of each sequence, in order.
    """

    def __init__(self, store: Array, rows: Ints | None, table: Ints | None) -> None:
        self._store, self._rows, self._table = store, rows, table

    @property
    def capacity(self) -> int:
        """The most tokens that a sequence can have."""
        size = self._store.shape[1]
        return size if self._table is None else size * self._table.shape[1]

    def read(self, b: int, start: int, stop: int) -> Array:
        """Return the tokens start ... stop - 1 of sequence b, (T, Hk, D): a copy."""
        return self._store[self._places(b, start, stop)]

    def write(self, b: int, start: int, new: Array) -> None:
        """Put `new` (T, Hk, D) into the store, from token `start` on."""
        self._store[self._places(b, start, start + len(new))] = new

    def check(self, operation: str, b: int, stop: int) -> None:
        """Raise unless every page that holds a token of sequence b before `stop` exists."""
        if stop > self.capacity:
            raise ValueError(f"{operation}: sequence {b} needs {stop} tokens; the cache holds {self.capacity}")
        pages = self._places(b, 0, stop)[0]
        if pages.size and (pages.min() < 0 or pages.max() >= len(self._store)):
            raise ValueError(f"{operation}: sequence {b} lies in {sorted(set(pages.tolist()))} of {len(self._store)}")

    def _places(self, b: int, start: int, stop: int) -> tuple[Ints, Ints]:
        token = np.arange(start, stop)
        if self._table is None:
            assert self._rows is not None
            return np.full(len(token), self._rows[b]), token
        page = self._store.shape[1]
        return self._table[b, token // page].astype(np.int64), token % page


def attend(q: Array, k: Array, v: Array, *, backend: str, **options: Any) -> tuple[Array, Array]:
    """Return o (..., Tq, H, Dv) and lse (..., H, Tq) of `attention` for inputs whose heads follow the tokens."""
    o, lse = attention(*map(heads_first, (q, k, v)), return_lse=True, backend=backend, **options)
    return heads_first(o), lse


def check_append(
    operation: str, q: Array, new: tuple[Any, Any], tables: tuple[Any, Any], seqlens: Any, capacity: int
) -> None:
    """Refuse what the caches of FlashAttention refuse: parts of a pair, an append without lengths, short tables."""
    k, v = new
    cos, sin = tables
    if (k is None) != (v is None):
        raise ValueError(f"{operation}: if a key is supplied, the value must be, too, and the other way round")
    if (cos is None) != (sin is None):
        raise ValueError(f"{operation}: rotary_cos and rotary_sin go together")
    if cos is not None and k is None:
        raise ValueError(f"{operation}: rotary_cos without a new key to append")
    if cos is not None and (cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > q.shape[-1]):
        raise ValueError(
            f"{operation}: rotary_cos {cos.shape}, rotary_sin {sin.shape}; wanted (rows, rotary_dim / 2), "
            f"rotary_dim at most {q.shape[-1]}"
        )
    if cos is not None and len(cos) < capacity:
        raise ValueError(f"{operation}: rotary_cos has {len(cos)} rows; the cache has places for {capacity}")
    if k is not None and seqlens is None:
        raise ValueError(f"{operation}: if a key is supplied, cache_seqlens must be, too")
    if k is not None:
        check_floats(operation, q.ndim, q=q, k=k, v=v)


def check_rows(operation: str, indices: Any, batch: int, rows: int) -> Ints:
    """Return which row of a cache belongs to each sequence: 0, 1, 2 ... unless given."""
    if indices is None and rows != batch:
        raise ValueError(f"{operation}: the cache has {rows} rows for {batch} sequences, and no cache_batch_idx")
    return check_lengths(
        operation, "cache_batch_idx", np.arange(batch) if indices is None else indices, batch, rows - 1
    )


def append(
    b: int,
    q: Array,
    new: tuple[Array, Array],
    caches: tuple[Cache, Cache],
    at: int,
    rotary: tuple[Array, Array, bool, int] | None,
    moving: bool,
) -> Array:
    """Rotate q (Tq, H, D) and the new keys (T, Hk, D) of sequence b, write the new from token `at` on; return q.

    `rotary` is (cos, sin, interleaved, position of the first new key); the queries stand at successive positions if
    `moving`, else all at the first.
    """
    k, v = new
    if rotary is not None:
        cos, sin, interleaved, first = rotary
        k = rotate(k, cos, sin, first + np.arange(len(k)), interleaved)
        q = rotate(q, cos, sin, first + np.arange(len(q)) * moving, interleaved)
    caches[0].write(b, at, k)
    caches[1].write(b, at, v)
    return q
