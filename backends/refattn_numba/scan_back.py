"""The matrix-state recurrences backwards: the gradient of the state is carried from the last token to the first.

An item of work is one state and some of its columns, a tile at a time (`scan_back_simd`). A tile is first taken
forwards, keeping S before every chunk of tokens; then, chunk by chunk from the last, the states of one chunk are made
again, into the second cache, and its tokens undone. So memory grows with the tokens over the length of a chunk.

Sums over columns (of dq, dk, and decays) are added up tile by tile by the item itself, or, where there are few states,
by several items into slices of their own, which are added up afterwards. How many depends on shapes alone, so who takes
an item changes no bit.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from refattn.arrays import Array
from refattn_numba.layout import flat
from refattn_numba.scan_back_simd import advance, answer, fill, kept_back, put, put_added, read, total, written
from refattn_numba.scan_layout import K_ROW, O_ROW, Q_ROW, TOKENS, V_ROW, first_states, layout
from refattn_numba.scan_simd import dot, exp_row
from refattn_numba.simd import fetch_add, lanes_of
from refattn_numba.threads import run
from refattn_numba.vectors import VECTOR_BYTES

CHUNK = 16, 64
"""Tokens of a chunk, at least and at most."""
CACHE = 262144
"""Bytes that the states of a chunk may take, where that is not fewer tokens than the least."""
ITEMS = 8
"""Items of work that a call should have."""


class Pulls(NamedTuple):
    """The gradients of one call in the dtype of computation; heads that share q or k are not added up yet."""

    dq: Array
    """(..., Ho, T, D)."""
    dk: Array
    """(..., Hv, T, D)."""
    dv: Array
    dg: Array | None
    dbeta: Array | None
    dkappa: Array | None
    dgap: Array | None
    """Of what is multiplied with what was read, RWKV-7's share ⊙ kappa."""
    dstate: Array


def scanned_back(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None = None,
    *,
    bonus: bool = False,
    beta: Array | None = None,
    kappa: Array | None = None,
    gap: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> Pulls:
    """Return the gradients of S = e^g S + k vᵀ, o = scale Sᵀ q.

    Parameters
    ----------
    do, q, k, v, scale, initial_state, cu_seqlens, dstate
        As in `refattn.simple_gla_vjp`.
    log_decay : array, optional
        (..., Hv, T) or (..., Hv, T, D).
    bonus : bool
        Whether o reads the state before its token; what it sees of its own token is left to the caller.
    beta : array, (..., Hv, T), optional
        S = e^g S, then S = S + k (β (v - Sᵀ k))ᵀ.
    kappa, gap : array, (..., Hv, T, D), optional
        S = e^g S - gap (Sᵀ kappa)ᵀ + k vᵀ.
    """
    call = layout(q, k, v, cu_seqlens)
    lanes = VECTOR_BYTES // call.dtype.itemsize
    size = -(-call.D // lanes) * lanes
    states, tiles = len(call.heads) // call.readers, -(-call.Dv // lanes)
    groups = max(1, min(tiles, -(-ITEMS // max(states, 1))))
    chunk = min(max(CACHE // (size * VECTOR_BYTES), CHUNK[0]), CHUNK[1])
    longest = int(call.heads[:, TOKENS].max(initial=0))
    shapes = {"q": (*call.o_shape[:-1], call.D), "k": (*v.shape[:-1], call.D), "g": None, "beta": None}
    shapes |= {"g": None if log_decay is None else log_decay.shape, "beta": None if beta is None else beta.shape}
    shapes |= dict.fromkeys(("kappa", "gap"), None if kappa is None else kappa.shape)
    sums = {name: np.zeros(groups * math.prod(shape or (0,)), call.dtype) for name, shape in shapes.items()}
    dv, first = np.empty(v.size, call.dtype), np.empty(math.prod(call.state_shape), call.dtype)
    erases = beta is not None or kappa is not None
    run(
        _back,
        states * groups,
        (10.0 + 4.0 * erases) * call.tokens * call.D * call.Dv,
        workspace(size, lanes, chunk, longest),
        call.dtype,
        call.heads,
        *(flat(x, call.dtype) for x in (do, q, k, v)),
        flat(np.zeros(0) if log_decay is None else log_decay, call.dtype),
        0 if log_decay is None else call.D if log_decay.ndim == v.ndim else 1,
        True if bonus else None,
        *(None if x is None else flat(x, call.dtype) for x in (beta, kappa, gap)),
        first_states(call, initial_state),
        first_states(call, dstate),
        *sums.values(),
        dv,
        first,
        groups,
        call.readers,
        call.D,
        size,
        call.Dv,
        chunk,
        longest,
        call.dtype.type(1 / math.sqrt(call.D) if scale is None else scale),
    )
    found = {name: None if shape is None else _total(sums[name], groups, shape) for name, shape in shapes.items()}
    return Pulls(
        found["q"], found["k"], dv.reshape(v.shape), found["g"], found["beta"], found["kappa"], found["gap"],
        first.reshape(call.state_shape),
    )  # fmt: skip


def _total(x: Array, groups: int, shape: tuple[int, ...]) -> Array:
    return (x if groups == 1 else x.reshape(groups, -1).sum(axis=0)).reshape(shape)


def workspace(size: int, lanes: int, chunk: int, longest: int) -> int:
    """Return how many numbers a thread needs."""
    tiles = chunk + 3 + -(-longest // chunk)
    return tiles * size * lanes + (4 * chunk + 7) * size + chunk + (3 * chunk + 5 + 2 * lanes) * lanes


def heads_added(dx: Array, like: Array) -> Array:
    """Add up the heads that read the same head of `like`, and return the sum in its dtype."""
    if like.ndim > 2 and dx.shape[-3] != like.shape[-3]:
        H = like.shape[-3]
        dx = dx.reshape(*dx.shape[:-3], H, dx.shape[-3] // H, *dx.shape[-2:]).sum(axis=-3)
    return dx.astype(like.dtype, copy=False)


@njit(nogil=True, _nrt=False)
def load_tile(tile, size, x, x_at, D, Dv, width):
    """Put `width` columns of a state (D, Dv) into a tile."""
    for n in range(width):
        for d in range(D):
            tile[n * size + d] = x[x_at + d * Dv + n]
        tile[n * size + D : (n + 1) * size] = 0


@njit(nogil=True, _nrt=False)
def load_rows(rows, size, x, row, tokens, D):
    """Put rows of D numbers into rows of `size` numbers; what is beyond D stays."""
    for t in range(tokens):
        put(rows, t * size, x, (row + t) * D, D)


@njit(nogil=True, _nrt=False)
def load_decays(a, size, g, g_width, row, tokens, D, own):
    """Put e^g of each token and key into rows of `size` numbers, -1 where that is exactly 0 and beyond D."""
    lanes = lanes_of(a)
    if g_width == 1:
        put(own, 0, g, row, tokens)
        for t in range(tokens, -(-tokens // lanes) * lanes):
            own[t] = 0
        if exp_row(own, -(-tokens // lanes) * lanes):
            for t in range(tokens):
                if g[row + t] == -math.inf:
                    own[t] = -1
    elif g_width > 1:
        for t in range(tokens):
            put(a, t * size, g, (row + t) * D, D)
            a[t * size + D : (t + 1) * size] = 0
        if exp_row(a, tokens * size):
            for t in range(tokens):
                for d in range(D):
                    if g[(row + t) * D + d] == -math.inf:
                        a[t * size + d] = -1
    for t in range(tokens):
        if g_width < 2:
            fill(a, t * size, own[t] if g_width == 1 else a.dtype.type(1), size)
        a[t * size + D : (t + 1) * size] = -1


@njit(nogil=True, _nrt=False)
def move(old, old_at, new, new_at, size, width, t, keys, a, u, beta, row, kappas, gaps, found, miss, sums):
    """Take a tile past token t of the chunk; leave what is read before it in found, and what is written in u."""
    W = lanes_of(u)
    if kappas is not None:
        read(old, old_at, size, width, kappas, t * size, None, found, t * W, sums)
        advance(old, old_at, new, new_at, size, width, keys, a, t * size, u, t * W, gaps, found, t * W)
    else:
        if beta is not None:
            read(old, old_at, size, width, keys, t * size, a, found, t * W, sums)
            for n in range(t * W, t * W + width):
                miss[n] = u[n] - found[n]
                u[n] = beta[row + t] * miss[n]
        advance(old, old_at, new, new_at, size, width, keys, a, t * size, u, t * W, None, None, 0)


@njit(nogil=True, _nrt=False)
def undo(dS, S, t, size, width, a, g_row, beta, kappa, keys, kappas, dr, e_row, q, do, q_row, scale):
    """Take dS back past the decay of token t of the chunk, and past what was read there."""
    at, row = t * size * lanes_of(dS), t * size
    if beta is not None:
        kept_back(dS, S, at, size, width, a, row, g_row, keys, dr, e_row, True, q, do, q_row, scale)
    elif kappa is not None:
        kept_back(dS, S, at, size, width, a, row, g_row, kappas, dr, e_row, None, q, do, q_row, scale)
    else:
        kept_back(dS, S, at, size, width, a, row, g_row, None, None, None, None, q, do, q_row, scale)


@njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
def _back(
    counter, items, space, heads, do, q, k, v, g, g_width, bonus, beta, kappa, gap, start, last, dq, dk, dg, dbeta,
    dkappa, dgap, dv, first, groups, readers, D, size, Dv, chunk, longest, scale,
):  # fmt: skip
    W = lanes_of(space)
    tile, rows = size * W, chunk * size
    space[:] = 0
    states, space = space[: (chunk + 1) * tile], space[(chunk + 1) * tile :]
    marks, space = space[: -(-longest // chunk) * tile], space[-(-longest // chunk) * tile :]
    S, space = space[:tile], space[tile:]
    dS, space = space[:tile], space[tile:]
    keys, space = space[:rows], space[rows:]
    a, space = space[:rows], space[rows:]
    kappas, space = space[:rows], space[rows:]
    gaps, space = space[:rows], space[rows:]
    query, space = space[:size], space[size:]
    q_row, space = space[:size], space[size:]
    k_row, space = space[:size], space[size:]
    g_row, space = space[:size], space[size:]
    e_row, space = space[:size], space[size:]
    gap_row, space = space[:size], space[size:]
    u, space = space[: chunk * W], space[chunk * W :]
    found, space = space[: chunk * W], space[chunk * W :]
    miss, space = space[: chunk * W], space[chunk * W :]
    pull, space = space[:W], space[W:]
    du, space = space[:W], space[W:]
    dr, space = space[:W], space[W:]
    own, sums = space[:chunk], space[chunk:]
    tiles, o_rows, k_rows = -(-Dv // W), dq.size // (groups * D), dv.size // Dv
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        state, group = item // groups, item % groups
        head = state * readers
        T, v_row, k_first = heads[head, TOKENS], heads[head, V_ROW], heads[head, K_ROW]
        for n_tile in range(group * tiles // groups, (group + 1) * tiles // groups):
            column = n_tile * W
            width, state_at = min(W, Dv - column), state * D * Dv + column
            load_tile(S, size, start, state_at, D, Dv, width)
            load_tile(dS, size, last, state_at, D, Dv, width)
            chunks = -(-T // chunk)
            for step in range(2 * chunks):
                back = step >= chunks
                n = 2 * chunks - 1 - step if back else step
                if not back:
                    put(marks, n * tile, S, 0, tile)
                    if n == chunks - 1:
                        continue
                else:
                    put(states, 0, marks, n * tile, tile)
                t0 = n * chunk
                tokens, row = min(chunk, T - t0), v_row + t0
                load_rows(keys, size, k, k_first + t0, tokens, D)
                load_decays(a, size, g, g_width, row, tokens, D, own)
                if kappa is not None:
                    load_rows(kappas, size, kappa, row, tokens, D)
                    load_rows(gaps, size, gap, row, tokens, D)
                for t in range(tokens):
                    put(u, t * W, v, (row + t) * Dv + column, width)
                for t in range(tokens):
                    old, new = (states, states) if back else (S, S)
                    from_, to = (t * tile, (t + 1) * tile) if back else (0, 0)
                    move(
                        old, from_, new, to, size, width, t, keys, a, u, beta, row,
                        None if kappa is None else kappas, gaps, found, miss, sums,
                    )  # fmt: skip
                if not back:
                    continue
                if bonus is None and n == chunks - 1:
                    for reader in range(head, head + readers):
                        q_at, o_at = heads[reader, Q_ROW] + T - 1, heads[reader, O_ROW] + T - 1
                        put(query, 0, q, q_at * D, D)
                        put(pull, 0, do, o_at * Dv + column, width)
                        answer(dS, states, tokens * tile, size, width, query, pull, q_row, scale)
                        put_added(dq, (group * o_rows + o_at) * D, q_row, 0, D)
                for t in range(tokens - 1, -1, -1):
                    at = group * k_rows + row + t
                    if kappa is not None:
                        written(
                            dS, size, width, keys, t * size, u, t * W, k_row, du, gaps, found, t * W, gap_row, dr, sums
                        )
                        put_added(dgap, at * D, gap_row, 0, D)
                    else:
                        written(dS, size, width, keys, t * size, u, t * W, k_row, du, None, None, 0, None, None, sums)
                    if beta is not None:
                        dbeta[at] += dot(du, 0, miss, t * W, width)
                        for w in range(W):
                            du[w] *= beta[row + t]
                            dr[w] = -du[w]
                    put(dv, (row + t) * Dv + column, du, 0, width)
                    token = t0 + t - (1 if bonus is None else 0)  # whose query the state before this token answered
                    for reader in range(head, head + (readers if token >= 0 else 0)):
                        q_at, o_at = heads[reader, Q_ROW] + token, heads[reader, O_ROW] + token
                        put(query, 0, q, q_at * D, D)
                        put(pull, 0, do, o_at * Dv + column, width)
                        if reader == head:
                            undo(
                                dS, states, t, size, width, a, g_row, beta, kappa, keys, kappas, dr, e_row, query, pull,
                                q_row, scale,
                            )  # fmt: skip
                        else:
                            answer(dS, states, t * tile, size, width, query, pull, q_row, scale)
                        put_added(dq, (group * o_rows + o_at) * D, q_row, 0, D)
                    if token < 0:
                        undo(
                            dS, states, t, size, width, a, g_row, beta, kappa, keys, kappas, dr, e_row, None, pull,
                            q_row, scale,
                        )  # fmt: skip
                    if beta is not None:
                        put_added(k_row, 0, e_row, 0, D)
                    if kappa is not None:
                        put_added(dkappa, at * D, e_row, 0, D)
                    put_added(dk, at * D, k_row, 0, D)
                    if g_width > 1:
                        put_added(dg, at * D, g_row, 0, D)
                    elif g_width == 1:
                        dg[at] += total(g_row, size)
            for d in range(D):
                for w in range(width):
                    first[state_at + d * Dv + w] = dS[w * size + d]
