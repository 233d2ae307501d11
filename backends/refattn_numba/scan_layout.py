"""Where the heads of a matrix-state recurrence lie: one line of a table for each state and for each head that reads it.

Arrays are flat, of the dtype of computation. A *row* is one token of one head: row r of q is
``q[r * D : (r + 1) * D]``, row r of v ``v[r * Dv : (r + 1) * Dv]``; gates have one axis, rows, or two, rows and D.
Token t of a head stands t rows after its first. Packed sequences are shorter runs of the same rows.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn_numba.layout import flat, read_only

Q_ROW, K_ROW, V_ROW, O_ROW, STATE, TOKENS, HEAD = range(7)
"""Columns of `Layout.heads`."""


@dataclass(frozen=True)
class Layout:
    """One call: S sequences (of the batch, or packed), Ho heads of o each."""

    heads: Array
    """(S * Ho, 7) int64: for each head of o of each sequence, the first rows of its q, its k, its v (and gates), its o;
    the number of its state; how many tokens; which value head it reads (for what is the same for all sequences).
    Sequence by sequence; the Ho / Hv heads that read one state stand together."""
    readers: int
    """Ho / Hv: how many heads read one state."""
    D: int
    Dv: int
    dtype: np.dtype[Any]
    state_shape: tuple[int, ...]
    """(..., Hv, D, Dv) or (N, Hv, D, Dv)."""
    o_shape: tuple[int, ...]
    """(..., Ho, T, Dv)."""

    @property
    def tokens(self) -> int:
        """How many tokens all heads of o have together."""
        return int(self.heads[:, TOKENS].sum())


def layout(q: Array, k: Array, v: Array, cu_seqlens: Any = None) -> Layout:
    """Return where the heads of q (..., H, T, D), k (..., Hk, T, D) and v (..., Hv, T, Dv) lie."""
    borders = None if cu_seqlens is None else tuple(int(border) for border in cu_seqlens)
    return _layout(q.shape, k.shape, v.shape, compute_dtype(q.dtype), borders)


@lru_cache(maxsize=64)
def _layout(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: np.dtype[Any], borders: tuple[int, ...] | None
) -> Layout:
    """Return the layout of arrays of these shapes."""
    H, Hk, Hv = (shape[-3] if len(shape) > 2 else 1 for shape in (q, k, v))
    Ho, (T, D), Dv, batch = max(H, Hv), q[-2:], v[-1], q[:-3]
    if borders is None:
        b, sequences = np.arange(math.prod(batch))[:, None], v[:-2]
        first, count = np.zeros_like(b), np.full_like(b, T)
    else:
        first, count = np.array(borders)[:-1, None], np.diff(borders)[:, None]
        b, sequences = np.zeros_like(first), (len(first), *v[:-2])
    n = np.arange(Ho)
    m = n // (Ho // Hv)
    s = np.arange(len(b))[:, None]
    heads = np.stack(
        np.broadcast_arrays(
            (b * H + n // (Ho // H)) * T + first,
            (b * Hk + m // (Hv // Hk)) * T + first,
            (b * Hv + m) * T + first,
            (b * Ho + n) * T + first,
            s * Hv + m,
            count,
            m,
        ),
        axis=-1,
    ).reshape(-1, 7)
    return Layout(
        heads=read_only(heads.astype(np.int64)),
        readers=Ho // Hv,
        D=D,
        Dv=Dv,
        dtype=dtype,
        state_shape=(*sequences, D, Dv),
        o_shape=(*(v if Ho == Hv else q)[:-1], Dv),
    )


def first_states(call: Layout, given: Array | None) -> Array:
    """Return the state of each head before its first token, flat: those given, or zeros."""
    return flat(np.zeros(call.state_shape, call.dtype) if given is None else given, call.dtype)


def gates(call: Layout, x: Array, per_key: bool) -> Array:
    """Return gates as kernels read them: one axis for a number per row, two for D numbers per row."""
    x = flat(x, call.dtype)
    return read_only(x.reshape(-1, call.D)) if per_key else x
