"""The matrix-state recurrences, a token at a time, with the state in the first cache.

An item of work is one head of o and `width_of` columns of values: columns of S depend on nobody. Its part of S, D rows,
is loaded, all tokens pass through it, and it is written back. So nothing is kept per chunk, no decay is ever divided
by, and who takes an item, or where a sequence is cut, changes no bit.
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
from refattn_numba.scan_simd import TOKENS, columns_of, dot, exp_row, walk_many, walk_one, width_of
from refattn_numba.simd import fetch_add, lanes_of
from refattn_numba.threads import run

BLOCK = 16
"""Tokens whose decays are computed together."""


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
    o, state = (np.empty(math.prod(shape), call.dtype) for shape in (call.o_shape, call.state_shape))
    run(
        _scan,
        len(call.heads) * -(-call.Dv // columns_of(call.dtype)),
        3.0 * call.tokens * call.D * call.Dv,
        workspace(call, BLOCK * (call.D + 1)),
        call.dtype,
        call.heads,
        *(flat(x, call.dtype) for x in (q, k, v)),
        None if log_decay is None else gates(call, log_decay, per_key),
        constant,
        None if u is None else flat(u, call.dtype),
        None if share is None else flat(share, call.dtype),
        first_states(call, initial_state),
        o,
        state,
        call.readers,
        call.D,
        call.Dv,
        scale_of(call, scale),
    )
    o = o.reshape(call.o_shape)
    return Recurrent(o.astype(q.dtype, copy=False) if rounded else o, state.reshape(call.state_shape))


def scale_of(call: Layout, scale: float | None) -> Any:
    """Return the scale in the dtype of computation: 1/sqrt(D) unless given."""
    return call.dtype.type(1 / math.sqrt(call.D) if scale is None else scale)


def workspace(call: Layout, more: int) -> int:
    """Return how many numbers an item needs: S, v and o of a block of tokens, a row of keys, and `more`."""
    return (call.D + 2 * BLOCK) * columns_of(call.dtype) + call.D + more + 64


@njit(nogil=True)
def load_columns(S, rows, x, at, row, width):
    """S[r, n] = x[at + r * row + n] for n < width, and 0 in the other columns."""
    W = width_of(S)
    for r in range(rows):
        for n in range(width):
            S[r * W + n] = x[at + r * row + n]
        for n in range(width, W):
            S[r * W + n] = 0


@njit(nogil=True)
def store_columns(S, rows, x, at, row, width):
    """x[at + r * row + n] = S[r, n] for n < width."""
    W = width_of(S)
    for r in range(rows):
        for n in range(width):
            x[at + r * row + n] = S[r * W + n]


@njit(nogil=True)
def weigh(v, tokens, share, row):
    """Multiply the values of each token by its share."""
    W = width_of(v)
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
def forget(S, D, g, row):
    """Set to 0 the rows of S whose decay is exactly 0, whatever they hold."""
    W = width_of(S)
    if g is None:
        return
    numbers = g.reshape(-1)
    for d in range(D):
        if numbers[row if g.ndim == 1 else row * D + d] == -math.inf:
            S[d * W : (d + 1) * W] = 0


@njit(nogil=True)
def renew(S, D, g, row, k, k_at, v, v_at):
    """Set to k vᵀ the rows of S whose decay is exactly 0, whatever they hold."""
    W = width_of(S)
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
def _scan(counter, items, space, heads, q, k, v, g, constant, u, share, start, o, state, readers, D, Dv, scale):
    W = width_of(space)
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
        load_columns(S, D, start, state_at, Dv, width)
        for t0 in range(0, T, BLOCK):
            tokens = min(BLOCK, T - t0)
            q_at, k_at = (heads[head, Q_ROW] + t0) * D, (heads[head, K_ROW] + t0) * D
            v_at, o_at = (heads[head, V_ROW] + t0) * Dv + column, (heads[head, O_ROW] + t0) * Dv + column
            g_row = heads[head, HEAD] if constant else heads[head, V_ROW] + t0
            wild = decays(g, g_row, moves, tokens, D, a)
            bonuses(q, q_at, k, k_at, u, heads[head, HEAD] * D, tokens, D, own, c)
            load_columns(v_block, tokens, v, v_at, Dv, width)
            weigh(v_block, tokens, share, heads[head, V_ROW] + t0)
            t = 0
            while t < tokens:
                a_at = t if g is None or g.ndim == 1 else t * D
                if t + TOKENS <= tokens and not wild:
                    walk_many(
                        S, D, q, q_at + t * D, k, k_at + t * D, v_block, t * W, W, g, a, a_at, u, c, t,
                        o_block, t * W, W, scale,
                    )  # fmt: skip
                    t += TOKENS
                    continue
                if wild and u is None:
                    forget(S, D, g, g_row + t * moves)
                walk_one(
                    S, D, q, q_at + t * D, k, k_at + t * D, v_block, t * W, W, g, a, a_at, u, c, t,
                    o_block, t * W, W, scale,
                )  # fmt: skip
                if wild and u is not None:
                    renew(S, D, g, g_row + t * moves, k, k_at + t * D, v_block, t * W)
                t += 1
            store_columns(o_block, tokens, o, o_at, Dv, width)
        if head % readers == readers - 1:
            store_columns(S, D, state, state_at, Dv, width)
