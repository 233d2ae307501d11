"""Mamba-2 on the CPU: `scan` with q = C, k = B, v = Δ x and a decay e^{Δ A}; then the skip and the gate."""

import math
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array, compute_dtype
from refattn.results import Recurrent
from refattn_numba.layout import flat
from refattn_numba.scan import scanned
from refattn_numba.scan_simd import exp_row
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

TOKENS = 256
"""Tokens of a head that are gated as one item of work."""
BLOCK = 1024
"""Numbers whose e^-z are computed together."""


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.ssd`."""
    dtype = compute_dtype(x.dtype)
    step = step_sizes(dt.astype(dtype, copy=False), dt_bias, dt_softplus, dt_limit)
    g = step * of_head(A, dt).astype(dtype)
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
    found = scanned(C, B, x, g, share=step, scale=1.0, rounded=D is None and z is None, **options)
    if D is None and z is None:
        return found
    return Recurrent(skip_and_gate(found.o, x, D, z).astype(x.dtype, copy=False), found.state)


def step_sizes(dt: Array, bias: Array | None, soft: bool, limit: tuple[float, float]) -> Array:
    """Return Δ: dt with its bias, then through softplus, then within its limits."""
    step = dt if bias is None else dt + of_head(bias, dt).astype(dt.dtype)
    step = np.logaddexp(dt.dtype.type(0), step) if soft else step
    return np.clip(step, *(dt.dtype.type(border) for border in limit))


def of_head(x: Array, dt: Array) -> Array:
    """Give a number of each head an axis for tokens: (H,) beside (..., H, T)."""
    return x[:, None] if dt.ndim > 1 else x


def skip_and_gate(y: Array, x: Array, D: Array | None, z: Array | None) -> Array:
    """Return (y + D x) silu(z), without what is not given; y is written to."""
    (T, P), heads = y.shape[-2:], math.prod(y.shape[:-2])
    args = [None if a is None else flat(a, y.dtype) for a in (x, z, D)]
    H = y.shape[-3] if y.ndim > 2 else 1
    run(_skip_and_gate, heads * -(-T // TOKENS), 8.0 * y.size, BLOCK, y.dtype, y.reshape(-1), *args, H, T, P)
    return y


@njit(nogil=True, cache=True, error_model="numpy")
def _skip_and_gate(counter, items, space, y, x, z, D, H, T, P):
    runs = -(-T // TOKENS)
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        head, first = item // runs, item % runs * TOKENS
        at, stop = (head * T + first) * P, (head * T + min(T, first + TOKENS)) * P
        if D is not None:
            skip = D[head % H]
            for n in range(at, stop):
                y[n] += skip * x[n]
        if z is not None:
            for begin in range(at, stop, BLOCK):
                size = min(BLOCK, stop - begin)
                for n in range(size):
                    space[n] = -z[begin + n]
                space[size:] = 0
                exp_row(space, BLOCK)
                for n in range(size):
                    y[begin + n] *= z[begin + n] * (1 / (1 + space[n]))


def ssd_recurrent(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.ssd_recurrent`."""
    options: dict[str, Any] = {"dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit}
    return ssd(x, dt, A, B, C, D=D, z=z, initial_state=initial_state, cu_seqlens=cu_seqlens, **options)


def ssd_chunked(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.ssd_chunked`; there are no chunks here."""
    options: dict[str, Any] = {"dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit}
    return ssd(x, dt, A, B, C, D=D, z=z, initial_state=initial_state, cu_seqlens=cu_seqlens, **options)
