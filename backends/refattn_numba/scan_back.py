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
from refattn_numba.scan_back_rows import put
from refattn_numba.scan_back_tiles import load_decays, load_rows, load_tile, move, own_space, store_tile, take_back
from refattn_numba.scan_layout import K_ROW, TOKENS, V_ROW, first_states, layout
from refattn_numba.simd import fetch_add, lanes_of
from refattn_numba.threads import run
from refattn_numba.vectors import VECTOR_BYTES

CHUNK = 16, 64
"""Tokens of a chunk, at least and at most; a multiple of the least, which fills whole registers."""
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
    chunk = min(max(CACHE // (size * VECTOR_BYTES) // CHUNK[0] * CHUNK[0], CHUNK[0]), CHUNK[1])
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
        (3 * lanes + 4 * size) * chunk
        + own_space.py_func(size, lanes, chunk)
        + (chunk + 1 + -(-tiles // groups) * (1 + max(1, -(-longest // chunk)))) * size * lanes,
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
        call.dtype.type(1 / math.sqrt(call.D) if scale is None else scale),
    )
    found = {name: None if shape is None else _total(sums[name], groups, shape) for name, shape in shapes.items()}
    return Pulls(
        found["q"], found["k"], dv.reshape(v.shape), found["g"], found["beta"], found["kappa"], found["gap"],
        first.reshape(call.state_shape),
    )  # fmt: skip


def _total(x: Array, groups: int, shape: tuple[int, ...]) -> Array:
    return (x if groups == 1 else x.reshape(groups, -1).sum(axis=0)).reshape(shape)


def heads_added(dx: Array, like: Array) -> Array:
    """Add up the heads that read the same head of `like`, and return the sum in its dtype."""
    if like.ndim > 2 and dx.shape[-3] != like.shape[-3]:
        H = like.shape[-3]
        dx = dx.reshape(*dx.shape[:-3], H, dx.shape[-3] // H, *dx.shape[-2:]).sum(axis=-3)
    return dx.astype(like.dtype, copy=False)


@njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
def _back(
    counter, items, space, heads, do, q, k, v, g, g_width, bonus, beta, kappa, gap, start, last, dq, dk, dg, dbeta,
    dkappa, dgap, dv, first, groups, readers, D, size, Dv, chunk, scale,
):  # fmt: skip
    W = lanes_of(space)
    tiles, tile, rows = -(-Dv // W), size * W, chunk * size
    u, space = space[: chunk * W], space[chunk * W :]
    found, space = space[: chunk * W], space[chunk * W :]
    miss, space = space[: chunk * W], space[chunk * W :]
    keys, space = space[:rows], space[rows:]
    a, space = space[:rows], space[rows:]
    kappas, space = space[:rows], space[rows:]
    gaps, space = space[:rows], space[rows:]
    own, space = space[: own_space(size, W, chunk)], space[own_space(size, W, chunk) :]
    states, space = space[: (chunk + 1) * tile], space[(chunk + 1) * tile :]
    for x in (u, found, miss, keys, a, kappas, gaps, own):
        x[:] = 0
    o_rows, k_rows = dq.size // (groups * D), dv.size // Dv
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        state, group = item // groups, item % groups
        head, low, high = state * readers, group * tiles // groups, (group + 1) * tiles // groups
        dS, marks = space[: (high - low) * tile], space[(high - low) * tile :]
        T, v_row, k_row = heads[head, TOKENS], heads[head, V_ROW], heads[head, K_ROW]
        for i in range(high - low):
            column, width = (low + i) * W, min(W, Dv - (low + i) * W)
            load_tile(marks, i * tile, size, start, state * D * Dv + column, D, Dv, width)
            load_tile(dS, i * tile, size, last, state * D * Dv + column, D, Dv, width)
        chunks = -(-T // chunk)
        for step in range(1, 2 * chunks):
            back = step >= chunks
            n = 2 * chunks - 1 - step if back else step - 1
            t0 = n * chunk
            tokens, row = min(chunk, T - t0), v_row + t0
            load_rows(keys, size, k, k_row + t0, tokens, D)
            load_decays(a, size, g, g_width, row, tokens, D, own[own.size - chunk :])
            if kappa is not None:
                load_rows(kappas, size, kappa, row, tokens, D)
                load_rows(gaps, size, gap, row, tokens, D)
            for i in range(high - low):
                column, width = (low + i) * W, min(W, Dv - (low + i) * W)
                here, coming = (n * (high - low) + i) * tile, ((n + 1) * (high - low) + i) * tile
                for t in range(tokens):
                    put(u, t * W, v, (row + t) * Dv + column, width)
                move(
                    marks, here, states if back else marks, 0 if back else coming, tile if back else 0, size, width,
                    tokens, keys, a, u, beta, row, kappa, kappas, gaps, found, miss, own,
                )  # fmt: skip
                if back:
                    take_back(
                        dS[i * tile : (i + 1) * tile], states, width, tokens, keys, a, u, found, miss, kappas, gaps,
                        own, do, q, beta, kappa, bonus, dq, dk, dg, dbeta, dkappa, dgap, dv, heads, head, readers, t0,
                        g_width > 1, g_width > 0, group * o_rows, group * k_rows + row, column, D, size, Dv, scale,
                    )  # fmt: skip
        for i in range(high - low):
            column, width = (low + i) * W, min(W, Dv - (low + i) * W)
            store_tile(dS, i * tile, size, first, state * D * Dv + column, D, Dv, width)
