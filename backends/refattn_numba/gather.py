"""Attention over lists of keys: each query names the runs of keys that it reads, and nothing else is touched.

A list entry b stands for the keys b * width <= j < (b + 1) * width below the query's limit; -1 stands for none. Scores
of one query lie side by side, dot products run along D where keys are contiguous, and weights are powers of two as in
`forward`. An item is LANES queries of one head; backward, a whole key head, since lists of different queries meet in
the same keys. A pair costs D + Dv multiply-adds on D + Dv numbers that the list scatters: memory sets the pace.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array, compute_dtype
from refattn.results import AttentionGradients
from refattn_numba.layout import cap_of, flat, planes, read_only
from refattn_numba.merge import sinks_gradient
from refattn_numba.simd import exp2_columns, fetch_add
from refattn_numba.threads import run
from refattn_numba.vectors import LANES

LOG2E = math.log2(math.e)
REORDERED = {"reassoc", "contract", "nsz"}  # dot products may be added up in lanes; NaN and inf keep their meaning


@dataclass(frozen=True)
class Lists:
    """Which keys each query reads."""

    index: Array
    """(planes, Tq, n) int64: runs of keys, -1 for none."""
    plane_of: Array
    """(B * H,): which plane a head of a sequence uses."""
    width: int
    """Keys in a run."""
    limit: Array
    """(Tq,) int64: keys from here on do not exist for a query."""


def lists(index: Array, width: int, limit: Array, heads: tuple[int, ...]) -> Lists:
    """Describe lists (*lead, Tq, n) whose leading axes broadcast to `heads` = (*batch, H)."""
    *lead, Tq, n = index.shape
    index = np.ascontiguousarray(index, np.int64).reshape(math.prod(lead), Tq, n)
    return Lists(read_only(index), planes(tuple(lead), heads), width, np.asarray(limit, np.int64))


def attend_lists(
    q: Array,
    k: Array,
    v: Array,
    found: Lists,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, Array]:
    """Return (o, lse) in the compute dtype."""
    dtype = compute_dtype(q.dtype)
    H, Hk = (q.shape[-3], k.shape[-3]) if q.ndim > 2 else (1, 1)
    (Tq, D), (Tk, Dv) = q.shape[-2:], v.shape[-2:]
    o, lse = np.zeros((*q.shape[:-1], Dv), dtype), np.full(q.shape[:-1], -np.inf, dtype)
    heads, n = len(found.plane_of), found.index.shape[-1]
    space = _rows(n * found.width) * LANES + 2 * LANES
    run(
        _forward, heads * -(-Tq // LANES), float(heads) * Tq * n * found.width * (D + Dv), space, dtype,
        *(flat(x, dtype) for x in (q, k, v)), o.reshape(-1), lse.reshape(-1), H, Hk, Tq, Tk, D, Dv,
        *_numbers(dtype, D, scale, softcap, sinks), found.index, found.plane_of, found.width, found.limit,
    )  # fmt: skip
    return o, lse


def pull_back_lists(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    found: Lists,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """Return the gradients of `attend_lists`, in the dtypes of their inputs."""
    dtype = compute_dtype(q.dtype)
    o, lse = attend_lists(q, k, v, found, scale, softcap, sinks)
    H, Hk = (q.shape[-3], k.shape[-3]) if q.ndim > 2 else (1, 1)
    (Tq, D), (Tk, Dv) = q.shape[-2:], v.shape[-2:]
    delta = np.where(o == 0, 0, do.astype(dtype) * o).sum(axis=-1)  # select: a blind row's do may be NaN
    if dlse is not None:
        delta = delta - dlse.astype(dtype)
    dq, dk, dv = (np.zeros(x.shape, dtype) for x in (q, k, v))
    heads = len(found.plane_of)
    scale, cap, _ = _numbers(dtype, D, scale, softcap, None)
    work = float(heads) * Tq * found.index.shape[-1] * found.width * (3 * D + 2 * Dv)
    run(
        _backward, heads // H * Hk, work, 1, dtype,
        *(flat(x, dtype) for x in (do, q, k, v, lse, delta)), dq.reshape(-1), dk.reshape(-1), dv.reshape(-1), H, Hk, Tq,
        Tk, D, Dv, scale, cap, found.index, found.plane_of, found.width, found.limit,
    )  # fmt: skip
    dsinks = None if sinks is None else sinks_gradient(sinks, lse, delta)
    return AttentionGradients(dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, dsinks)


def _numbers(
    dtype: Any, D: int, scale: float | None, softcap: float | None, sinks: Array | None
) -> tuple[Any, Any, Array]:
    return (
        dtype.type(1 / math.sqrt(D) if scale is None else scale),
        cap_of(softcap, dtype),
        flat(np.zeros(0) if sinks is None else sinks, dtype),
    )


def _rows(n: int) -> int:
    return max(1, -(-n // LANES))


@njit(nogil=True, fastmath=REORDERED)
def _dot(a, a_at, b, b_at, D):
    a, b = a[a_at : a_at + D], b[b_at : b_at + D]
    total = a.dtype.type(0)
    for d in range(D):
        total += a[d] * b[d]
    return total


@njit(nogil=True, fastmath=REORDERED)
def _add(p, x, x_at, y, y_at, D):
    """Y += p x, along D numbers each."""
    x, y = x[x_at : x_at + D], y[y_at : y_at + D]  # one offset each: the compiler sees that they are contiguous
    for d in range(D):
        y[d] += p * x[d]


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(
    counter, items, space, q, k, v, o, lse, H, Hk, Tq, Tk, D, Dv, scale, softcap, sinks, index, plane_of, width, limit,
):  # fmt: skip
    """Fill o (heads, Tq, Dv) and lse (heads, Tq)."""
    shift, total, scores = space[:LANES], space[LANES : 2 * LANES], space[2 * LANES :]
    one, zero = space.dtype.type(1), space.dtype.type(0)
    nq = -(-Tq // LANES)
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        head, first = item // nq, item % nq * LANES
        keys_at = head // (H // Hk) * Tk
        plane = plane_of[head]
        for i in range(first, min(first + LANES, Tq)):
            m = sinks[head % H] * LOG2E if sinks.size > 0 else -math.inf
            count = 0
            for e in range(index.shape[2]):
                start = index[plane, i, e] * width
                if start < 0:
                    continue
                for j in range(start, min(start + width, limit[i])):
                    s = scale * _dot(q, (head * Tq + i) * D, k, (keys_at + j) * D, D)
                    if softcap > 0:
                        s = softcap * math.tanh(s / softcap)
                    s *= LOG2E
                    scores[count] = s
                    count += 1
                    if s > m:
                        m = s
            rows = -(-count // LANES)
            for c in range(count, rows * LANES):
                scores[c] = -math.inf
            top = zero if m == -math.inf else space.dtype.type(m)
            shift[:] = top
            total[:] = 0
            if rows > 0:
                exp2_columns(scores, rows, LANES, one, shift, total)
            l = zero
            for n in range(LANES):
                l += total[n]
            if sinks.size > 0:
                l += space.dtype.type(2.0 ** (sinks[head % H] * LOG2E - top))
            if l == 0:
                continue
            lse[head * Tq + i] = (top + math.log2(l)) / LOG2E
            inverse = one / l
            out = (head * Tq + i) * Dv
            count = 0
            for e in range(index.shape[2]):
                start = index[plane, i, e] * width
                if start < 0:
                    continue
                for j in range(start, min(start + width, limit[i])):
                    p = scores[count] * inverse
                    count += 1
                    _add(p, v, (keys_at + j) * Dv, o, out, Dv)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    counter, items, space, do, q, k, v, lse, delta, dq, dk, dv, H, Hk, Tq, Tk, D, Dv, scale, softcap, index, plane_of,
    width, limit,
):  # fmt: skip
    """Add up dq (heads, Tq, D), dk and dv (key heads, Tk, D or Dv)."""
    group = H // Hk
    while True:
        kv_head = fetch_add(counter)
        if kv_head >= items:
            break
        for head in range(kv_head * group, (kv_head + 1) * group):
            plane = plane_of[head]
            for i in range(Tq):
                row = head * Tq + i
                if lse[row] == -math.inf:
                    continue
                for e in range(index.shape[2]):
                    start = index[plane, i, e] * width
                    if start < 0:
                        continue
                    for j in range(start, min(start + width, limit[i])):
                        key = kv_head * Tk + j
                        s = scale * _dot(q, row * D, k, key * D, D)
                        slope = scale
                        if softcap > 0:
                            t = math.tanh(s / softcap)
                            s = softcap * t
                            slope = scale * (1 - t * t)
                        p = math.exp(s - lse[row])
                        ds = slope * p * (_dot(do, row * Dv, v, key * Dv, Dv) - delta[row])
                        _add(p, do, row * Dv, dv, key * Dv, Dv)
                        _add(ds, k, key * D, dq, row * D, D)
                        _add(ds, q, row * D, dk, key * D, D)
