"""RWKV-4 on the CPU: an item of work is one sequence and a block of channels, whose state stays in registers.

A state is three rows of a block: num, den, and the running maximum that both are divided by.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from refattn.arrays import Array, compute_dtype
from refattn.results import Recurrent, Rwkv4Gradients, Rwkv4State
from refattn_numba.channels import cut, padded, rows, sequences
from refattn_numba.channels_simd import Body, channels_of
from refattn_numba.layout import read_only
from refattn_numba.selective_scan import CHUNK, move
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run


def rwkv4(w: Array, u: Array, k: Array, v: Array, *, initial_state: Rwkv4State | None = None) -> Recurrent:
    """As `refattn.rwkv4`."""
    dtype = compute_dtype(k.dtype)
    shape, wide, table = (*k.shape[:-2], 3, k.shape[-1]), padded(k.shape[-1], dtype), read_only(sequences(k.shape))
    arrays, W = [rows(x, dtype) for x in (w, u, k, v)], channels_of(dtype)
    start = _states(initial_state, shape, dtype)
    o, state = np.empty(arrays[2].size, dtype), np.empty(start.size, dtype)
    run(_walk_all, len(table) * (wide // W), 80.0 * o.size, 3 * W, dtype, table, *arrays, start, o, state, wide, W)
    return Recurrent(cut(o, k.shape).astype(k.dtype, copy=False), _parts(state, shape))


def rwkv4_recurrent(w: Array, u: Array, k: Array, v: Array, *, initial_state: Rwkv4State | None = None) -> Recurrent:
    """As `refattn.rwkv4_recurrent`."""
    return rwkv4(w, u, k, v, initial_state=initial_state)


def _states(given: Rwkv4State | None, shape: tuple[int, ...], dtype: Any, most: float = -math.inf) -> Array:
    """Return num, den and max as rows (..., 3, E); 0, 0 and `most` for None."""
    if given is not None:
        return rows(np.stack([x.astype(dtype, copy=False) for x in given], axis=-2), dtype)
    x = np.zeros(shape, dtype)
    x[..., 2, :] = most
    return rows(x, dtype)


def _parts(x: Array, shape: tuple[int, ...]) -> Rwkv4State:
    """Return what `_states` made flat as three arrays."""
    return Rwkv4State(*(x.copy() for x in np.moveaxis(cut(x, shape), -2, 0)))


def rwkv4_vjp(
    do: Array,
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    *,
    initial_state: Rwkv4State | None = None,
    dstate: Rwkv4State | None = None,
) -> Rwkv4Gradients:
    """As `refattn.rwkv4_vjp`."""
    dtype, E = compute_dtype(k.dtype), k.shape[-1]
    shape, wide, table = (*k.shape[:-2], 3, E), padded(E, dtype), read_only(sequences(k.shape))
    arrays, S, W = [rows(x, dtype) for x in (w, u, k, v, do)], len(table), channels_of(dtype)
    start, last = _states(initial_state, shape, dtype), _states(dstate, shape, dtype, 0.0)
    dk, dv = (np.empty(arrays[2].size, dtype) for _ in range(2))
    dstart, ends = np.empty(start.size, dtype), np.empty(S * 2 * wide, dtype)
    chunk = max(CHUNK, math.isqrt(k.shape[-2]) // 2)
    space = W * (5 + 3 * (chunk + 2 + k.shape[-2] // chunk) + chunk)
    run(_walk_back_all, S * (wide // W), 200.0 * dk.size, space, dtype, table, *arrays, start, last, dk, dv, dstart,
        ends, chunk, wide, W)  # fmt: skip
    dw, du = ends.reshape(S, 2, wide)[..., :E].sum(axis=0)
    first = None
    if initial_state is not None:
        pairs = zip(_parts(dstart, shape), initial_state, strict=True)
        first = Rwkv4State(*(x.astype(y.dtype, copy=False) for x, y in pairs))
    dk, dv = cut(dk, k.shape).astype(k.dtype, copy=False), cut(dv, v.shape).astype(v.dtype, copy=False)
    return Rwkv4Gradients(dw.astype(w.dtype, copy=False), du.astype(u.dtype, copy=False), dk, dv, first)


def _top(s, now):
    """Return the larger of two exponents, NaN if there is one."""
    larger = s.compared(">", now).where(s, now)
    return s.compared("==", s).where(larger, s)


def _weights(at, s, now):
    """Return the functions x -> e^{s - top} x and x -> e^{now - top} x, without x where that is e^-inf."""
    top = _top(s, now)
    top = top.compared("==", -math.inf).where(0.0, top)

    def weight(exponent):
        below = exponent - top
        gone, size = below.compared("==", -math.inf), at.exp(below)
        return lambda x: gone.where(0.0, size * x)

    return weight(s), weight(now)


def _faded(m, w):
    """Return m - w, -inf where w is inf."""
    return w.compared("==", math.inf).where(-math.inf, m - w)


@intrinsic
def _walk(typing, w, u, k, v, row, tokens, e, E, h, h_at, h_row, o, o_at, o_row):
    """Take some tokens through a state; each state is written h_row after the one before it."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "w u k v row tokens e E h h_at h_row o o_at o_row", signature, args)
        rate, bonus, one = at.load(at.pointer("w", at["e"])), at.load(at.pointer("u", at["e"])), at.number(1.0)
        with at.loop(at["tokens"]) as token:
            t = token.index
            mine = at.sum(at.product(at.sum(at["row"], t), at["E"]), at["e"])
            now, value = at.load(at.pointer("k", mine)), at.load(at.pointer("v", mine))
            before = at.pointer("h", at["h_at"], at.product(t, at["h_row"]))
            num, den, m = (at.load(at.moved(before, n * at.width)) for n in range(3))
            old, new = _weights(at, m, bonus + now)
            total = old(den) + new(one)
            at.store(_divided(old(num) + new(value), total), at.pointer("o", at["o_at"], at.product(t, at["o_row"])))
            last = _faded(m, rate)
            old, new = _weights(at, last, now)
            after = at.moved(before, at["h_row"])
            for n, x in enumerate((old(num) + new(value), old(den) + new(one), _top(last, now))):
                at.store(x, at.moved(after, n * at.width))
        return context.get_dummy_value()

    i = types.intp
    return types.void(w, u, k, v, i, i, i, i, h, i, i, o, i, i), generate


def _divided(x, total):
    """Return x / total, and 0 where total is 0."""
    return total.compared("==", 0.0).where(0.0, x / total)


@intrinsic
def _walk_back(typing, w, u, k, v, do, row, tokens, e, E, h, h_at, dh, dh_at, dk, dv):
    """Take the gradients of num, den and max, and those of w and u, back through some tokens, the last first."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "w u k v do row tokens e E h h_at dh dh_at dk dv", signature, args)
        rate, bonus, one = at.load(at.pointer("w", at["e"])), at.load(at.pointer("u", at["e"])), at.number(1.0)
        kept = [at.pointer("dh", at["dh_at"], n * at.width) for n in range(5)]
        places = [at.place(at.load(cell)) for cell in kept]
        with at.loop(at["tokens"]) as loop:
            t = at.backwards(at["tokens"])(loop)
            mine = at.sum(at.product(at.sum(at["row"], t), at["E"]), at["e"])
            now, value, do = (at.load(at.pointer(name, mine)) for name in ("k", "v", "do"))
            before = at.pointer("h", at["h_at"], at.product(t, 3 * at.width))
            num, den, m = (at.load(at.moved(before, n * at.width)) for n in range(3))
            dnum, dden, dm, dw, du = (place.get() for place in places)
            last = _faded(m, rate)
            through = last.compared(">=", now)
            old, new = _weights(at, last, now)  # was: num' = e^{m - w - m'} num + e^{k - m'} v
            dw = dw - old(num * dnum + den * dden)
            dw = dw - through.where(rate.compared("==", math.inf).where(0.0, dm), 0.0)
            share = new(one)
            dk, dv = share * (value * dnum + dden) + through.where(0.0, dm), share * dnum
            dnum, dden, dm = old(dnum), old(dden), through.where(dm, 0.0)
            old, new = _weights(at, m, bonus + now)  # was: o = n / d
            share = new(one)
            n, d = old(num) + new(value), old(den) + share
            dn = _divided(do, d)
            dd = -(dn * _divided(n, d))
            own = share * (value * dn + dd)
            at.store(dk + own, at.pointer("dk", mine))
            at.store(dv + share * dn, at.pointer("dv", mine))
            share = old(one)
            for place, x in zip(places, (dnum + share * dn, dden + share * dd, dm, dw, du + own), strict=True):
                place.set(x)
        for cell, place in zip(kept, places, strict=True):
            at.store(place.get(), cell)
        return context.get_dummy_value()

    i = types.intp
    return types.void(w, u, k, v, do, i, i, i, i, h, i, dh, i, dk, dv), generate


@njit(nogil=True, cache=True)
def _walk_all(counter, items, space, table, w, u, k, v, start, o, state, E, W):
    blocks = E // W
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, e = item // blocks, item % blocks * W
        move(space, 0, W, start, s * 3 * E + e, E, 3, W)
        _walk(w, u, k, v, table[s, 0], table[s, 1], e, E, space, 0, 0, o, table[s, 0] * E + e, E)
        move(state, s * 3 * E + e, E, space, 0, W, 3, W)


@njit(nogil=True)
def _add_moved(space, dh_at, h_at, W, sign):
    """Add sign * (num dnum + den dden) to the gradient of max."""
    for n in range(W):
        moved = space[h_at + n] * space[dh_at + n] + space[h_at + W + n] * space[dh_at + W + n]
        space[dh_at + 2 * W + n] += sign * moved


@njit(nogil=True, cache=True)
def _walk_back_all(counter, items, space, table, w, u, k, v, do, start, last, dk, dv, dstart, ends, chunk, E, W):
    blocks = E // W
    o_at = 5 * W
    h_at = o_at + chunk * W
    marks_at = h_at + 3 * (chunk + 1) * W
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, e = item // blocks, item % blocks * W
        first, T, state_at = table[s, 0], table[s, 1], s * 3 * E + e
        move(space, 0, W, last, state_at, E, 3, W)
        space[3 * W : 5 * W] = 0
        move(space, marks_at, W, start, state_at, E, 3, W)
        chunks = -(-T // chunk)
        for c in range(2 * chunks - 1):
            n = min(c, 2 * chunks - 2 - c)
            back, t0 = c >= chunks - 1, n * chunk
            tokens = min(chunk, T - t0)
            move(space, h_at, W, space, marks_at + n * 3 * W, W, 3, W)
            _walk(w, u, k, v, first + t0, tokens, e, E, space, h_at, 3 * W if back else 0, space, o_at, W)
            if not back:
                move(space, marks_at + (n + 1) * 3 * W, W, space, h_at, W, 3, W)
                continue
            if n == chunks - 1:
                _add_moved(space, 0, h_at + tokens * 3 * W, W, space.dtype.type(-1))
            _walk_back(w, u, k, v, do, first + t0, tokens, e, E, space, h_at, space, 0, dk, dv)
            if n == 0:
                _add_moved(space, 0, h_at, W, space.dtype.type(1))
        move(dstart, state_at, E, space, 0, W, 3, W)
        move(ends, s * 2 * E + e, E, space, 3 * W, W, 2, W)
