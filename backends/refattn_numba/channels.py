"""Operations on channels, (..., T, E): where their sequences lie, and arrays as kernels read them.

Arrays are flat and of the dtype of computation, the numbers of one token's channels side by side. E is filled up to
whole blocks of channels (`channels_simd`) with channels of zeros, which are cut off in the end.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn_numba.channels_simd import channels_of
from refattn_numba.layout import flat, read_only


def padded(E: int, dtype: Any) -> int:
    """Return E filled up to whole blocks."""
    W = channels_of(np.dtype(dtype))
    return -(-E // W) * W


def rows(x: Array, dtype: Any) -> Array:
    """Return (..., E) flat, filled up to whole blocks."""
    E = x.shape[-1]
    more = padded(E, dtype) - E
    if more == 0:
        return flat(x, dtype)
    y = np.zeros((*x.shape[:-1], E + more), dtype)
    y[..., :E] = x
    return read_only(y.reshape(-1))


def cut(x: Array, shape: tuple[int, ...]) -> Array:
    """Return what `rows` made flat as (..., E) again."""
    E, wide = shape[-1], padded(shape[-1], x.dtype)
    x = x.reshape(*shape[:-1], wide)
    return x if wide == E else np.ascontiguousarray(x[..., :E])


def sequences(shape: tuple[int, ...], cu_seqlens: Any = None) -> Array:
    """Return (S, 2): the first row of each sequence of (..., T, E), and how many it has."""
    if cu_seqlens is not None:
        borders = np.asarray(cu_seqlens, np.int64)
        return np.stack([borders[:-1], np.diff(borders)], axis=1)
    S, T = math.prod(shape[:-2]), shape[-2]
    return np.stack([T * np.arange(S, dtype=np.int64), np.full(S, T, np.int64)], axis=1)


def batch(shape: tuple[int, ...], cu_seqlens: Any = None) -> tuple[int, ...]:
    """Return the axes of sequences of the states that belong to (..., T, E)."""
    return shape[:-2] if cu_seqlens is None else (len(cu_seqlens) - 1,)


def runs(table: Array, tokens: int, more: int = 0) -> Array:
    """Return (items, 5): the first row, the tokens and the number of a sequence, and where a run in it starts and ends.

    A run has up to `tokens` tokens, of which a sequence has `more` than it says.
    """
    lines = [
        (first, count, n, start, min(start + tokens, count + more))
        for n, (first, count) in enumerate(table.tolist())
        for start in range(0, count + more, tokens)
    ]
    return read_only(np.array(lines, np.int64).reshape(-1, 5))
