"""S4D on the CPU: an item of work is one sequence and a block of channels, and goes through it token by token.

A state is 2 N rows of a block, the real and the imaginary part of each oscillation. Complex numbers are written out.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from refattn.arrays import Array, compute_dtype
from refattn.results import Recurrent, S4dGradients
from refattn_numba.channels import cut, padded, rows, sequences
from refattn_numba.channels_simd import Body, channels_of
from refattn_numba.layout import read_only
from refattn_numba.selective_scan import CHUNK, move
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run


def s4d(
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
) -> Recurrent:
    """As `refattn.s4d`."""
    dtype, (E, N) = compute_dtype(u.dtype), A_real.shape
    shape, wide, table = (*u.shape[:-2], E, N, 2), padded(E, dtype), read_only(sequences(u.shape))
    step, A, C = _parameters(dtype, delta, A_real, A_imag, C_real, C_imag)
    factors, skip = _factors(step, A, C, dtype), rows(np.zeros(E) if D is None else D, dtype)
    start, u_, W = _states(initial_state, shape, dtype), rows(u, dtype), channels_of(dtype)
    o, state = np.empty(u_.size, dtype), np.empty(start.size, dtype)
    run(_turn_all, len(table) * (wide // W), 8.0 * N * o.size, 2 * N * W, dtype, table, u_, factors, skip,
        D is not None, start, o, state, wide, N, W)  # fmt: skip
    return Recurrent(cut(o, u.shape).astype(u.dtype, copy=False), _back(state, shape))


def s4d_recurrent(
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
) -> Recurrent:
    """As `refattn.s4d_recurrent`."""
    return s4d(u, delta, A_real, A_imag, C_real, C_imag, D=D, initial_state=initial_state)


def _parameters(dtype: Any, delta: Array, *parts: Array) -> tuple[Array, Array, Array]:
    """Return Δ (E, 1), and A and C as complex numbers."""
    numbers = []
    for real, imag in (parts[:2], parts[2:]):
        x = np.empty(real.shape, np.result_type(dtype, np.complex64))
        x.real, x.imag = real, imag
        numbers.append(x)
    return delta.astype(dtype, copy=False)[:, None], numbers[0], numbers[1]


def _factors(step: Array, A: Array, C: Array, dtype: Any) -> Array:
    """Return the real and imaginary parts of e^{ΔA}, B̄ and 2 C, (N, 6, E) flat."""
    numbers = (np.exp(step * A), step * _phi(step * A), 2 * C)
    return rows(np.stack([part.T for x in numbers for part in (x.real, x.imag)], axis=1), dtype)


def _phi(x: Array) -> Array:
    """Return (e^x - 1) / x, and 1 at 0."""
    return np.asarray(np.where(x == 0, 1, np.expm1(x) / np.where(x == 0, 1, x)))


def _phi_slope(x: Array) -> Array:
    """Return the derivative of `_phi`: (e^x - φ) / x, or its series where that cancels."""
    series, term = np.zeros_like(x), np.full_like(x, 0.5)  # x^m / (m + 2)!
    for m in range(20):
        series = series + (m + 1) * term
        term = term * x / (m + 3)
    near = abs(x) < 1
    return np.where(near, series, (np.exp(x) - _phi(x)) / np.where(near, 1, x))


def _states(x: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return states (..., E, N, 2) as kernels have them, (..., 2 N, E) flat; zeros for None."""
    x = np.zeros(shape, dtype) if x is None else x
    return rows(x.reshape(*shape[:-2], 2 * shape[-2]).swapaxes(-1, -2), dtype)


def _back(x: Array, shape: tuple[int, ...]) -> Array:
    """Return what `_states` made flat as (..., E, N, 2)."""
    *lead, E, N, _ = shape
    return np.ascontiguousarray(cut(x, (*lead, 2 * N, E)).swapaxes(-1, -2)).reshape(shape)


def s4d_vjp(
    do: Array,
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
    dstate: Array | None = None,
) -> S4dGradients:
    """As `refattn.s4d_vjp`."""
    dtype, (E, N), T = compute_dtype(u.dtype), A_real.shape, u.shape[-2]
    shape, wide, table = (*u.shape[:-2], E, N, 2), padded(E, dtype), read_only(sequences(u.shape))
    step, A, C = _parameters(dtype, delta, A_real, A_imag, C_real, C_imag)
    factors, skip = _factors(step, A, C, dtype), rows(np.zeros(E) if D is None else D, dtype)
    (start, last), (u_, do_) = (
        (_states(x, shape, dtype) for x in (initial_state, dstate)),
        (rows(x, dtype) for x in (u, do)),
    )
    S, W, chunk = len(table), channels_of(dtype), max(CHUNK, math.isqrt(T) // 2)
    du, dstart, sums = (np.empty(size, dtype) for size in (u_.size, start.size, S * (6 * N + 1) * wide))
    space = W * (8 * N + 1 + 2 * N * (chunk + 2 + T // chunk) + chunk)
    run(_turn_back_all, S * (wide // W), 30.0 * N * du.size, space, dtype, table, u_, factors, skip, D is not None,
        do_, start, last, du, dstart, sums, chunk, wide, N, W)  # fmt: skip
    sums = sums.reshape(S, 6 * N + 1, wide)[..., :E].sum(axis=0)
    parts = sums[:-1].reshape(N, 6, E).transpose(1, 2, 0)  # (6, E, N)
    dA_bar, dB_bar = parts[0] + 1j * parts[1], parts[2] + 1j * parts[3]
    log_A_bar, A_bar = step * A, np.exp(step * A)
    dlog = A_bar.conj() * dA_bar + step * _phi_slope(log_A_bar).conj() * dB_bar  # was: Ā = e^{ΔA}, B̄ = Δ φ(ΔA)
    ddelta = (A.conj() * dlog + _phi(log_A_bar).conj() * dB_bar).real.sum(axis=-1)
    dA = step * dlog
    return S4dGradients(
        cut(du, u.shape).astype(u.dtype, copy=False),
        ddelta.astype(delta.dtype),
        dA.real.astype(A_real.dtype),
        dA.imag.astype(A_imag.dtype),
        (2 * parts[4]).astype(C_real.dtype),
        (-2 * parts[5]).astype(C_imag.dtype),
        None if D is None else sums[-1].astype(D.dtype),
        None if initial_state is None else _back(dstart, shape).astype(initial_state.dtype, copy=False),
    )


def _pair(at, pointer, n=0):
    """Return two blocks that stand side by side: the real and the imaginary part."""
    return at.load(at.moved(pointer, 2 * n * at.width)), at.load(at.moved(pointer, (2 * n + 1) * at.width))


def _parts_of(at, n):
    """Return Ā, B̄ and 2 C of oscillation n, each as two blocks."""
    line = [at.sum(at.product(at.sum(at.product(n, 6), part), at["E"]), at["e"]) for part in range(6)]
    parts = [at.load(at.pointer("f", cell)) for cell in line]
    return parts[:2], parts[2:4], parts[4:]


@intrinsic
def _turn(typing, u, f, skip, skips, row, tokens, e, E, N, h, h_at, h_row, o, o_at, o_row):
    """H = Ā h + B̄ u and o = 2 Re C h + D u, of some tokens; each state is written h_row after the one before it."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "u f skip skips row tokens e E N h h_at h_row o o_at o_row", signature, args)
        with at.loop(at["tokens"]) as token:
            t = token.index
            mine = at.sum(at.product(at.sum(at["row"], t), at["E"]), at["e"])
            u, y = at.load(at.pointer("u", mine)), at.place(at.number(0.0))
            before = at.pointer("h", at["h_at"], at.product(t, at["h_row"]))
            with at.loop(at["N"]) as loop:
                here = at.moved(before, at.product(loop.index, 2 * at.width))
                (a, ai), (b, bi), (c, ci) = _parts_of(at, loop.index)
                x, y_ = _pair(at, here)
                real = at.fma(a, x, b * u) - ai * y_
                imag = at.fma(a, y_, bi * u) + ai * x
                after = at.moved(here, at["h_row"])
                at.store(real, after)
                at.store(imag, at.moved(after, at.width))
                y.set(at.fma(c, real, y.get()) - ci * imag)
            with at.if_("skips"):
                y.set(y.get() + at.load(at.pointer("skip", at["e"])) * u)
            at.store(y.get(), at.pointer("o", at["o_at"], at.product(t, at["o_row"])))
        return context.get_dummy_value()

    i = types.intp
    return types.void(u, f, skip, types.boolean, i, i, i, i, i, h, i, i, o, i, i), generate


@intrinsic
def _turn_back(typing, u, f, skip, skips, do, row, tokens, e, E, N, h, h_at, dh, dh_at, sums_at, du):
    """Take the gradient of the state back through some tokens, the last first; dh also has the sums for parameters."""

    def generate(context, builder, signature, args):
        names = "u f skip skips do row tokens e E N h h_at dh dh_at sums_at du"
        at = Body(context, builder, names, signature, args)
        for_skip = at.pointer("dh", at["sums_at"], at.product(at["N"], 6 * at.width))
        with at.loop(at["tokens"]) as loop:
            t = at.backwards(at["tokens"])(loop)
            mine = at.sum(at.product(at.sum(at["row"], t), at["E"]), at["e"])
            u, dy, du = at.load(at.pointer("u", mine)), at.load(at.pointer("do", mine)), at.place(at.number(0.0))
            row = at.product(at["N"], 2 * at.width)
            before = at.pointer("h", at["h_at"], at.product(t, row))
            with at.loop(at["N"]) as state:
                there = at.product(state.index, 2 * at.width)
                here, place = at.moved(before, there), at.pointer("dh", at["dh_at"], there)
                (a, ai), (b, bi), (c, ci) = _parts_of(at, state.index)
                (x, y), (x_next, y_next), (dx, dy_) = (_pair(at, p) for p in (here, at.moved(here, row), place))
                dx, dy_ = at.fma(c, dy, dx), dy_ - ci * dy  # was: y = 2 Re C h
                du.set(at.fma(b, dx, at.fma(bi, dy_, du.get())))  # was: h = Ā h + B̄ u
                found = (x * dx + y * dy_, x * dy_ - y * dx, u * dx, u * dy_, x_next * dy, y_next * dy)
                line = at.pointer("dh", at["sums_at"], at.product(state.index, 6 * at.width))
                for n, term in enumerate(found):
                    cell = at.moved(line, n * at.width)
                    at.store(at.load(cell) + term, cell)
                at.store(a * dx + ai * dy_, place)
                at.store(a * dy_ - ai * dx, at.moved(place, at.width))
            at.store(at.fma(dy, u, at.load(for_skip)), for_skip)
            with at.if_("skips"):
                du.set(at.fma(at.load(at.pointer("skip", at["e"])), dy, du.get()))
            at.store(du.get(), at.pointer("du", mine))
        return context.get_dummy_value()

    i = types.intp
    return types.void(u, f, skip, types.boolean, do, i, i, i, i, i, h, i, dh, i, i, du), generate


@njit(nogil=True, cache=True)
def _turn_all(counter, items, space, table, u, f, skip, skips, start, o, state, E, N, W):
    blocks = E // W
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, e = item // blocks, item % blocks * W
        at = s * 2 * N * E + e
        move(space, 0, W, start, at, E, 2 * N, W)
        _turn(u, f, skip, skips, table[s, 0], table[s, 1], e, E, N, space, 0, 0, o, table[s, 0] * E + e, E)
        move(state, at, E, space, 0, W, 2 * N, W)


@njit(nogil=True, cache=True)
def _turn_back_all(counter, items, space, table, u, f, skip, skips, do, start, last, du, dstart, sums, chunk, E, N, W):
    blocks, size = E // W, 2 * N * W
    o_at = 4 * size + W
    h_at = o_at + chunk * W
    marks_at = h_at + (chunk + 1) * size
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        s, e = item // blocks, item % blocks * W
        first, T, state_at = table[s, 0], table[s, 1], s * 2 * N * E + e
        move(space, 0, W, last, state_at, E, 2 * N, W)
        space[size:o_at] = 0
        move(space, marks_at, W, start, state_at, E, 2 * N, W)
        chunks = -(-T // chunk)
        for c in range(2 * chunks - 1):
            n = min(c, 2 * chunks - 2 - c)
            back, t0 = c >= chunks - 1, n * chunk
            tokens = min(chunk, T - t0)
            move(space, h_at, W, space, marks_at + n * size, W, 2 * N, W)
            _turn(u, f, skip, skips, first + t0, tokens, e, E, N, space, h_at, size if back else 0, space, o_at, W)
            if not back:
                move(space, marks_at + (n + 1) * size, W, space, h_at, W, 2 * N, W)
                continue
            _turn_back(u, f, skip, skips, do, first + t0, tokens, e, E, N, space, h_at, space, 0, size, du)
        move(dstart, state_at, E, space, 0, W, 2 * N, W)
        move(sums, s * (6 * N + 1) * E + e, E, space, size, W, 6 * N + 1, W)
