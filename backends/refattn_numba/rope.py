"""Rotary position embedding on the CPU: one pass over x, the angles of each position computed once for all heads."""

import math

import numpy as np
from numba import njit

from refattn.arrays import Array, compute_dtype
from refattn_numba.layout import flat
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run


def rope(
    x: Array,
    positions: Array,
    *,
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    frequencies: Array | None = None,
) -> Array:
    """As `refattn.rope`."""
    n = x.shape[-1] if rotary_dim is None else rotary_dim
    compute = compute_dtype(x.dtype)
    if frequencies is None:
        frequencies = theta ** (-np.arange(0, n, 2) / n) if n else np.zeros(0)
    angle = positions[..., None] * frequencies
    cos, sin = flat(np.cos(angle), compute), flat(np.sin(angle), compute)
    heads = x.shape[-3] if x.ndim > 2 else 1
    items = math.prod(x.shape[:-2])
    table_of = np.zeros(items, np.int64) if positions.ndim == 1 else np.arange(items) // heads
    y = np.empty(x.size, compute)
    run(_rotate, items, x.size, 0, compute, table_of, flat(x, compute), y, cos, sin, *x.shape[-2:], n, interleaved)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def rope_vjp(
    dy: Array,
    positions: Array,
    *,
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    frequencies: Array | None = None,
) -> Array:
    """As `refattn.rope_vjp`: the same rotation, backwards."""
    back = -positions.astype(np.int64)
    return rope(dy, back, theta=theta, rotary_dim=rotary_dim, interleaved=interleaved, frequencies=frequencies)


@njit(nogil=True, cache=True)
def _rotate(counter, items, space, table_of, x, y, cos, sin, T, D, n, interleaved):
    half = n // 2
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        for t in range(T):
            row, angle = (item * T + t) * D, (table_of[item] * T + t) * half
            for pair in range(half):
                a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
                c, s = cos[angle + pair], sin[angle + pair]
                y[row + a] = x[row + a] * c - x[row + b] * s
                y[row + b] = x[row + a] * s + x[row + b] * c
            for d in range(n, D):
                y[row + d] = x[row + d]
