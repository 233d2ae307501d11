"""What a tile of a scan backwards goes through: it is loaded, taken past the tokens of a chunk, and taken back.

A tile and its rows are as in `scan_back_simd`, the arrays of a call as in `scan_layout`. These functions count no
references to arrays: that would take longer than their work.
"""

import math

from numba import njit

from refattn_numba.scan_back_rows import fill, put, put_added, total
from refattn_numba.scan_back_simd import advance, answer, kept_back, read, written
from refattn_numba.scan_layout import O_ROW, Q_ROW, TOKENS, V_ROW
from refattn_numba.scan_simd import dot, exp_row
from refattn_numba.simd import lanes_of


@njit(nogil=True, _nrt=False)
def own_space(size, lanes, chunk):
    """Return how many numbers one token backwards needs."""
    return chunk + (3 + 2 * lanes) * lanes + 6 * size


@njit(nogil=True, _nrt=False)
def load_tile(tile, at, size, x, x_at, D, Dv, width):
    """Put `width` columns of a state (D, Dv) into a tile."""
    for n in range(width):
        for d in range(D):
            tile[at + n * size + d] = x[x_at + d * Dv + n]
        for d in range(D, size):
            tile[at + n * size + d] = 0


@njit(nogil=True, _nrt=False)
def store_tile(tile, at, size, x, x_at, D, Dv, width):
    """Put a tile into `width` columns of a state (D, Dv)."""
    for d in range(D):
        for n in range(width):
            x[x_at + d * Dv + n] = tile[at + n * size + d]


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
def move(
    marks, here, states, at, stride, size, width, tokens, keys, a, u, beta, row, kappa, kappas, gaps, found, miss, own
):
    """Take a tile past the tokens of a chunk, from a mark into `states`: one after another, or each over the last.

    What is read before each token is left in found, and what is written in u.
    """
    W = lanes_of(u)
    sums = own[: W * W]
    if stride > 0:
        put(states, at, marks, here, width * size)
    for t in range(tokens):
        old, old_at, new_at = states, at + t * stride, at + (t + 1) * stride
        if t == 0 and stride == 0:
            old, old_at = marks, here
        if kappa is not None:
            read(old, old_at, size, width, kappas, t * size, None, found, t * W, sums)
            advance(old, old_at, states, new_at, size, width, keys, a, t * size, u, t * W, gaps, found, t * W)
        else:
            if beta is not None:
                read(old, old_at, size, width, keys, t * size, a, found, t * W, sums)
                for n in range(t * W, t * W + width):
                    miss[n] = u[n] - found[n]
                    u[n] = beta[row + t] * miss[n]
            advance(old, old_at, states, new_at, size, width, keys, a, t * size, u, t * W, None, None, 0)


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


@njit(nogil=True, _nrt=False)
def take_back(
    dS, states, width, tokens, keys, a, u, found, miss, kappas, gaps, own, do, q, beta, kappa, bonus, dq, dk, dg, dbeta,
    dkappa, dgap, dv, heads, head, readers, t0, per_key, decays, o_rows, at, column, D, size, Dv, scale,
):  # fmt: skip
    """Take dS of a tile back past the tokens of a chunk, and add what its columns make of the other gradients."""
    W = lanes_of(dS)
    pull, own = own[:W], own[W:]
    du, own = own[:W], own[W:]
    dr, own = own[:W], own[W:]
    sums, own = own[: 2 * W * W], own[2 * W * W :]
    query, q_row, k_row, g_row = own[:size], own[size : 2 * size], own[2 * size : 3 * size], own[3 * size : 4 * size]
    e_row, gap_row = own[4 * size : 5 * size], own[5 * size : 6 * size]
    T, v_row = heads[head, TOKENS], heads[head, V_ROW] + t0
    if bonus is None and t0 + tokens == T:
        for reader in range(head, head + readers):
            o_at = heads[reader, O_ROW] + T - 1
            put(query, 0, q, (heads[reader, Q_ROW] + T - 1) * D, D)
            put(pull, 0, do, o_at * Dv + column, width)
            answer(dS, states, tokens * size * W, size, width, query, pull, q_row, scale)
            put_added(dq, (o_rows + o_at) * D, q_row, 0, D)
    for t in range(tokens - 1, -1, -1):
        row = (at + t) * D
        if kappa is not None:
            written(dS, size, width, keys, t * size, u, t * W, k_row, du, gaps, found, t * W, gap_row, dr, sums)
            put_added(dgap, row, gap_row, 0, D)
        else:
            written(dS, size, width, keys, t * size, u, t * W, k_row, du, None, None, 0, None, None, sums)
        if beta is not None:
            dbeta[at + t] += dot(du, 0, miss, t * W, width)
            for n in range(W):
                du[n] *= beta[v_row + t]
                dr[n] = -du[n]
        put(dv, (v_row + t) * Dv + column, du, 0, width)
        token = t0 + t if bonus is not None else t0 + t - 1  # whose query the state before this token answered
        for reader in range(head, head + readers):
            if token >= 0:
                put(query, 0, q, (heads[reader, Q_ROW] + token) * D, D)
                put(pull, 0, do, (heads[reader, O_ROW] + token) * Dv + column, width)
            if reader > head and token >= 0:
                answer(dS, states, t * size * W, size, width, query, pull, q_row, scale)
            elif token >= 0:
                undo(
                    dS, states, t, size, width, a, g_row, beta, kappa, keys, kappas, dr, e_row, query, pull, q_row,
                    scale,
                )  # fmt: skip
            elif reader == head:
                undo(
                    dS, states, t, size, width, a, g_row, beta, kappa, keys, kappas, dr, e_row, None, pull, q_row, scale
                )
            if token >= 0:
                put_added(dq, (o_rows + heads[reader, O_ROW] + token) * D, q_row, 0, D)
        if beta is not None:
            put_added(k_row, 0, e_row, 0, D)
        if kappa is not None:
            put_added(dkappa, row, e_row, 0, D)
        put_added(dk, row, k_row, 0, D)
        if decays and per_key:
            put_added(dg, row, g_row, 0, D)
        elif decays:
            dg[at + t] += total(g_row, size)
