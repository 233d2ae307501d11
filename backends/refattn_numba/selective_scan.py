"""The selective scan of Mamba on the CPU: an item of work is one sequence and a block of channels.

Its states, N rows of a block, stay in the first cache while all tokens pass through them. Backwards, the states of
every CHUNK tokens are kept, those between are computed again, and sums over channels are added up block by block.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array, compute_dtype
from refattn.results import Recurrent, SelectiveScanGradients
from refattn_numba.channels import batch, cut, padded, rows, sequences
from refattn_numba.channels_scan import advance, retreat
from refattn_numba.channels_simd import LOG2E, channels_of
from refattn_numba.layout import flat, read_only
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

CHUNK = 32
"""Tokens between states that are kept for the way back, at least."""


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.selective_scan`."""
    dtype, (E, N), wide = compute_dtype(u.dtype), A.shape, padded(A.shape[0], compute_dtype(u.dtype))
    given = _given(dtype, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    table, before = read_only(sequences(u.shape, cu_seqlens)), (*batch(u.shape, cu_seqlens), E, N)
    start, W = _states(initial_state, before, dtype), channels_of(dtype)
    o, state = np.empty(given[0].size, dtype), np.empty(start.size, dtype)
    items, work = len(table) * (wide // W), 20.0 * N * o.size
    run(_scan, items, work, N * W + W, dtype, table, *given, start, o, state, wide, N)
    return Recurrent(cut(o, u.shape).astype(u.dtype, copy=False), _back(state, before))


def _given(
    dtype: Any, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array | None, z: Array | None,
    bias: Array | None, soft: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the arguments as `advance` takes them."""
    u_ = rows(u, dtype)
    own = [rows(np.zeros(u.shape[-1]) if x is None else x, dtype) for x in (D, bias)]
    rates = rows(A.T.astype(dtype) * dtype.type(LOG2E), dtype)
    arrays = u_, rows(delta, dtype), u_ if z is None else rows(z, dtype), flat(B, dtype), flat(C, dtype), rates
    return *arrays, *own, D is not None, z is not None, bias is not None, bool(soft)


def _states(x: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return states (..., E, N) as kernels have them, (..., N, E) flat; zeros for None."""
    return rows((np.zeros(shape, dtype) if x is None else x).swapaxes(-1, -2), dtype)


def _back(x: Array, shape: tuple[int, ...]) -> Array:
    """Return what `_states` made flat as (..., E, N)."""
    return np.ascontiguousarray(cut(x, (*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2))


@njit(nogil=True, cache=True)
def _scan(
    counter, items, space, table, u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, start, o, state, E, N
):
    W = space.size // (N + 1)
    blocks = E // W
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, e = item // blocks, item % blocks * W
        move(space, 0, W, start, s * N * E + e, E, N, W)
        at = table[s, 0] * E + e
        advance(
            u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, table[s, 0], table[s, 1], e, E, N,
            space, 0, 0, space, 0, False, o, at, E,
        )  # fmt: skip
        move(state, s * N * E + e, E, space, 0, W, N, W)


@njit(nogil=True)
def move(to, to_at, to_row, x, at, row, count, width):
    """to[to_at + r * to_row + n] = x[at + r * row + n] for r < count and n < width."""
    for r in range(count):
        for n in range(width):
            to[to_at + r * to_row + n] = x[at + r * row + n]


def selective_scan_recurrent(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.selective_scan_recurrent`."""
    options: dict[str, Any] = {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
    return selective_scan(u, delta, A, B, C, D=D, z=z, initial_state=initial_state, cu_seqlens=cu_seqlens, **options)


def selective_scan_chunked(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.selective_scan_chunked`; there are no chunks here."""
    options: dict[str, Any] = {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
    return selective_scan(u, delta, A, B, C, D=D, z=z, initial_state=initial_state, cu_seqlens=cu_seqlens, **options)


def selective_scan_vjp(
    do: Array,
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> SelectiveScanGradients:
    """As `refattn.selective_scan_vjp`."""
    dtype, (E, N), wide = compute_dtype(u.dtype), A.shape, padded(A.shape[0], compute_dtype(u.dtype))
    given = _given(dtype, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    table, before = read_only(sequences(u.shape, cu_seqlens)), (*batch(u.shape, cu_seqlens), E, N)
    start, last, W = _states(initial_state, before, dtype), _states(dstate, before, dtype), channels_of(dtype)
    du, ddelta, dz = (np.empty(given[0].size, dtype) for _ in range(3))
    blocks, S = wide // W, len(table)
    dB, dC = (np.empty((blocks, B.size), dtype) for _ in range(2))
    dstart, dA, ends = (np.empty((S, n, wide), dtype) for n in (N, N, 2))
    longest = int(table[:, 1].max(initial=0))
    chunk = max(CHUNK, math.isqrt(longest) // 2)
    space = W * (N * (4 + 2 * chunk + longest // chunk) + chunk + 2)
    gradients = (x.reshape(-1) for x in (du, ddelta, dz, dB, dC, dstart, dA, ends))
    run(_scan_back, S * blocks, 80.0 * N * du.size, space, dtype, table, *given, start, rows(do, dtype), last,
        *gradients, chunk, wide, N, W)  # fmt: skip
    given_ = {"delta": delta, "A": A, "D": D, "delta_bias": delta_bias}
    dD, dbias = ends[..., :E].sum(axis=0)
    parts = {"delta": cut(ddelta, u.shape), "A": dA[..., :E].sum(axis=0).T, "D": dD, "delta_bias": dbias}
    found = {n: None if x is None else parts[n].astype(x.dtype, copy=False) for n, x in given_.items()}
    return SelectiveScanGradients(
        cut(du, u.shape).astype(u.dtype, copy=False),
        found["delta"],
        np.ascontiguousarray(found["A"]),
        dB.sum(axis=0).reshape(B.shape).astype(B.dtype, copy=False),
        dC.sum(axis=0).reshape(C.shape).astype(C.dtype, copy=False),
        found["D"],
        None if z is None else cut(dz, u.shape).astype(z.dtype, copy=False),
        found["delta_bias"],
        None if initial_state is None else _back(dstart.reshape(-1), before).astype(initial_state.dtype, copy=False),
    )


@njit(nogil=True, cache=True)
def _scan_back(
    counter, items, space, table, u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, start, do, last, du,
    ddelta, dz, dB, dC, dstart, dA, ends, chunk, E, N, W,
):  # fmt: skip
    blocks, size, all_rows = E // W, N * W, du.size // E
    dh_at, dA_at, ends_at = 0, size, 2 * size
    y_at = ends_at + 2 * W
    kept_at = y_at + chunk * W
    h_at = kept_at + chunk * size
    marks_at = h_at + (chunk + 1) * size
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, block = item // blocks, item % blocks
        e, first, T = block * W, table[s, 0], table[s, 1]
        states_at, chunks = s * N * E + e, -(-T // chunk)
        move(space, dh_at, W, last, states_at, E, N, W)
        space[dA_at:y_at] = 0
        move(space, marks_at, W, start, states_at, E, N, W)
        for c in range(2 * chunks - 1):
            k = min(c, 2 * chunks - 2 - c)
            back = c >= chunks - 1
            t0 = k * chunk
            tokens = min(chunk, T - t0)
            move(space, h_at, W, space, marks_at + k * size, W, N, W)
            advance(
                u, delta, z, B, C, A, skip, bias, skips, False, biased, soft, first + t0, tokens, e, E, N, space, h_at,
                size if back else 0, space, kept_at, back, space, y_at, W,
            )  # fmt: skip
            if not back:
                move(space, marks_at + (k + 1) * size, W, space, h_at, W, N, W)
                continue
            retreat(
                u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, first + t0, tokens, e, E, N, space, h_at,
                space, kept_at, space, y_at, do, space, dh_at, dA_at, ends_at, du, ddelta, dz, dB, dC,
                block * all_rows + first + t0,
            )  # fmt: skip
        move(dstart, states_at, E, space, dh_at, W, N, W)
        move(dA, states_at, E, space, dA_at, W, N, W)
        move(ends, s * 2 * E + e, E, space, ends_at, W, 2, W)
