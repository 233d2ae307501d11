"""The matrix-state recurrences, a token at a time, with the state in the first cache.

An item of work is one head of o and a few columns of values: columns of S depend on nobody. Its part of S, D rows, is
loaded, all tokens pass through it, and it is written back. So nothing is kept per chunk, no decay is ever divided by,
and who takes an item, how wide it is, or where a sequence is cut, changes no bit.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.layout import flat
from refattn_numba.scan_layout import HEAD, K_ROW, O_ROW, Q_ROW, STATE, V_ROW, Layout, first_states, gates, layout
from refattn_numba.scan_layout import TOKENS as COUNT
from refattn_numba.scan_simd import NARROW, TOKENS, WIDE, columns_of, dot, exp_row, walk_many, walk_one
from refattn_numba.simd import fetch_add, lanes_of
from refattn_numba.threads import SMALL, get_num_threads, run

BLOCK = 16
"""Tokens whose decays are computed together."""
PAD = 64
"""At least the numbers of a register."""


def scanned(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None = None,
    *,
    per_key: bool = False,
    constant: bool = False,
    u: Array | None = None,
    share: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    rounded: bool = True,
) -> Recurrent:
    """Return o and the last state of S = e^g S + k vᵀ, o = scale Sᵀ q.

    Parameters
    ----------
    q, k, v, scale, initial_state, cu_seqlens
        As in `refattn.simple_gla`.
    log_decay : array, optional
        (..., Hv, T) or, if `per_key`, (..., Hv, T, D); if `constant`, without the axes before Hv and without T.
    u : array, (Hv, D), optional
        A bonus: o = scale (S + (u ⊙ k) vᵀ)ᵀ q of the state before.
    share : array, (..., Hv, T), optional
        What each value is multiplied by.
    rounded : bool
        Whether o is in the dtype of q; else it is in that of computation.
    """
    call = layout(q, k, v, cu_seqlens)
    gates_ = None if log_decay is None else gates(call, log_decay, per_key)
    given = [None if x is None else flat(x, call.dtype) for x in (u, share)]
    arrays = [flat(x, call.dtype) for x in (q, k, v)]
    more = BLOCK * (call.D + 1) + call.D
    found = launch(_scan, call, 3, more, scale, initial_state, *arrays, gates_, constant, *given)
    return found._replace(o=found.o.astype(q.dtype, copy=False)) if rounded else found


def launch(
    kernel: Any, call: Layout, operations: int, more: int, scale: float | None, initial_state: Array | None, *args: Any
) -> Recurrent:
    """Run a kernel on all heads and columns, and return its o, in the dtype of computation, and its states.

    `operations` are those on each number of S, `more` says how many numbers an item needs besides S, v and o.
    """
    o, state = (np.empty(math.prod(shape), call.dtype) for shape in (call.o_shape, call.state_shape))
    work = float(operations) * call.tokens * call.D * call.Dv
    registers = WIDE
    if work >= SMALL and len(call.heads) * -(-call.Dv // columns_of(WIDE, call.dtype)) < get_num_threads():
        registers = NARROW  # there would not be an item for each thread
    W = columns_of(registers, call.dtype)
    scale = call.dtype.type(1 / math.sqrt(call.D) if scale is None else scale)
    arrays = (call.heads, *args, first_states(call, initial_state), o, state)
    items, space = len(call.heads) * -(-call.Dv // W), (call.D + 2 * BLOCK + 1) * W + more + PAD
    run(kernel, items, work, space, call.dtype, *arrays, call.readers, call.D, call.Dv, scale, registers)
    return Recurrent(o.reshape(call.o_shape), state.reshape(call.state_shape))


@njit(nogil=True)
def load_columns(registers, S, rows, x, at, row, width):
    """S[r, n] = x[at + r * row + n] for n < width, and 0 in the other columns."""
    W = len(registers) * lanes_of(S)
    for r in range(rows):
        for n in range(width):
            S[r * W + n] = x[at + r * row + n]
        for n in range(width, W):
            S[r * W + n] = 0


@njit(nogil=True)
def store_columns(registers, S, rows, x, at, row, width):
    """x[at + r * row + n] = S[r, n] for n < width."""
    W = len(registers) * lanes_of(S)
    for r in range(rows):
        for n in range(width):
            x[at + r * row + n] = S[r * W + n]


@njit(nogil=True)
def weigh(registers, v, tokens, share, row):
    """Multiply the values of each token by its share."""
    W = len(registers) * lanes_of(v)
    if share is None:
        return
    for t in range(tokens):
        for n in range(W):
            v[t * W + n] *= share[row + t]


@njit(nogil=True)
def decays(g, row, moves, tokens, D, a):
    """Put e^g of `tokens` tokens into a; return whether one is -inf."""
    if g is None:
        return False
    width = 1 if g.ndim == 1 else D
    numbers = g.reshape(-1)
    for t in range(tokens):
        at = (row + t * moves) * width
        for d in range(width):
            a[t * width + d] = numbers[at + d]
    size = -(-tokens * width // lanes_of(a)) * lanes_of(a)
    a[tokens * width : size] = 0
    return exp_row(a, size)


@njit(nogil=True)
def forget(registers, S, D, g, row):
    """Set to 0 the rows of S whose decay is exactly 0, whatever they hold."""
    W = len(registers) * lanes_of(S)
    if g is None:
        return
    numbers = g.reshape(-1)
    for d in range(D):
        if numbers[row if g.ndim == 1 else row * D + d] == -math.inf:
            S[d * W : (d + 1) * W] = 0


@njit(nogil=True)
def renew(registers, S, D, g, row, k, k_at, v, v_at):
    """Set to k vᵀ the rows of S whose decay is exactly 0, whatever they hold."""
    W = len(registers) * lanes_of(S)
    if g is None:
        return
    numbers = g.reshape(-1)
    for d in range(D):
        if numbers[row if g.ndim == 1 else row * D + d] == -math.inf:
            for n in range(W):
                S[d * W + n] = k[k_at + d] * v[v_at + n]


@njit(nogil=True)
def bonuses(q, q_at, k, k_at, u, u_at, tokens, D, own, c):
    """Put Σ_d q_d u_d k_d of each token into c: how much of its own value a token sees."""
    if u is None:
        return
    for t in range(tokens):
        for d in range(D):
            own[d] = u[u_at + d] * k[k_at + t * D + d]
        c[t] = dot(q, q_at + t * D, own, 0, D)


@njit(nogil=True, cache=True, error_model="numpy")
def _scan(
    counter, items, space, heads, q, k, v, g, constant, u, share, start, o, state, readers, D, Dv, scale, registers
):
    W = len(registers) * lanes_of(space)
    blocks = -(-Dv // W)
    S, space = space[: D * W], space[D * W :]
    v_block, space = space[: BLOCK * W], space[BLOCK * W :]
    o_block, space = space[: BLOCK * W], space[BLOCK * W :]
    c, space = space[:BLOCK], space[BLOCK:]
    own, a = space[:D], space[D:]
    moves = 0 if constant else 1
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        head, column = item // blocks, item % blocks * W
        width, T = min(W, Dv - column), heads[head, COUNT]
        state_at = heads[head, STATE] * D * Dv + column
        load_columns(registers, S, D, start, state_at, Dv, width)
        for t0 in range(0, T, BLOCK):
            tokens = min(BLOCK, T - t0)
            q_at, k_at = (heads[head, Q_ROW] + t0) * D, (heads[head, K_ROW] + t0) * D
            v_at, o_at = (heads[head, V_ROW] + t0) * Dv + column, (heads[head, O_ROW] + t0) * Dv + column
            g_row = heads[head, HEAD] if constant else heads[head, V_ROW] + t0
            wild = decays(g, g_row, moves, tokens, D, a)
            bonuses(q, q_at, k, k_at, u, heads[head, HEAD] * D, tokens, D, own, c)
            load_columns(registers, v_block, tokens, v, v_at, Dv, width)
            weigh(registers, v_block, tokens, share, heads[head, V_ROW] + t0)
            t = 0
            while t < tokens:
                a_at = t if g is None or g.ndim == 1 else t * D
                if t + TOKENS <= tokens and not wild:
                    walk_many(
                        registers, S, D, q, q_at + t * D, k, k_at + t * D, v_block, t * W, W, g, a, a_at, u, c, t,
                        o_block, t * W, W, scale,
                    )  # fmt: skip
                    t += TOKENS
                    continue
                if wild and u is None:
                    forget(registers, S, D, g, g_row + t * moves)
                walk_one(
                    registers, S, D, q, q_at + t * D, k, k_at + t * D, v_block, t * W, W, g, a, a_at, u, c, t,
                    o_block, t * W, W, scale,
                )  # fmt: skip
                if wild and u is not None:
                    renew(registers, S, D, g, g_row + t * moves, k, k_at + t * D, v_block, t * W)
                t += 1
            store_columns(registers, o_block, tokens, o, o_at, Dv, width)
        if head % readers == readers - 1:
            store_columns(registers, S, D, state, state_at, Dv, width)
