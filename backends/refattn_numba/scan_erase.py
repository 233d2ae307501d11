"""The recurrences that erase before they write: the delta rules and RWKV-7, an item of work as in `scan`.

What a token erases is what the state holds under its key, and that needs all rows of S before the first of them may
change. So the pass that takes token t through S also reads S under the key of token t + 1, row by row as they are
written: each row is loaded and stored once a token. Only at the start of a block of tokens is S read by itself.
"""

from typing import Any

from numba import njit

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.layout import flat
from refattn_numba.scan import BLOCK, decays, forget, launch, load_columns, store_columns
from refattn_numba.scan_layout import K_ROW, O_ROW, Q_ROW, STATE, V_ROW, gates, layout
from refattn_numba.scan_layout import TOKENS as COUNT
from refattn_numba.scan_simd import read_state, step
from refattn_numba.simd import fetch_add, lanes_of


def erased(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    *,
    per_key: bool = False,
    beta: Array | None = None,
    kappa: Array | None = None,
    share: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """Return o and the last state of S = e^g S, S = S + k (β (v - Sᵀ k))ᵀ, o = scale Sᵀ q.

    Without beta it is RWKV-7's rule: S = e^g S - (share ⊙ kappa) (Sᵀ kappa)ᵀ + k vᵀ.

    Parameters
    ----------
    q, k, v, scale, initial_state, cu_seqlens
        As in `refattn.delta_rule`.
    log_decay : array, optional
        (..., Hv, T) or, if `per_key`, (..., Hv, T, D).
    beta : array, (..., Hv, T), optional
        How much is replaced.
    kappa, share : array, (..., Hv, T, D), optional
        Under which key is erased, and how much of each of its dimensions.
    """
    call = layout(q, k, v, cu_seqlens)
    gates_ = None if log_decay is None else gates(call, log_decay, per_key)
    given = [None if x is None else flat(x, call.dtype) for x in (beta, kappa, share)]
    arrays = [flat(x, call.dtype) for x in (q, k, v)]
    found = launch(_erase, call, 4, 3 * BLOCK * call.D, scale, initial_state, *arrays, gates_, *given)
    return found._replace(o=found.o.astype(q.dtype, copy=False))


@njit(nogil=True)
def erasing_keys(k, k_at, v_row, g, a, kappa, share, tokens, D, found, gone):
    """Put the keys under which each token erases into `found`, and RWKV-7's share ⊙ kappa into `gone`."""
    n = tokens * D
    if kappa is not None:
        found[:n] = kappa[v_row * D : v_row * D + n]
        gone[:n] = share[v_row * D : v_row * D + n]
        gone[:n] *= found[:n]
    elif g is not None and g.ndim == 2:
        for i in range(n):
            found[i] = a[i] * k[k_at + i]
    else:
        found[:n] = k[k_at : k_at + n]


@njit(nogil=True, cache=True, error_model="numpy")
def _erase(
    counter, items, space, heads, q, k, v, g, beta, kappa, share, start, o, state, readers, D, Dv, scale, registers
):  # fmt: skip
    W = len(registers) * lanes_of(space)
    blocks = -(-Dv // W)
    S, space = space[: D * W], space[D * W :]
    v_block, space = space[: BLOCK * W], space[BLOCK * W :]
    o_block, space = space[: BLOCK * W], space[BLOCK * W :]
    r, space = space[:W], space[W:]
    found, space = space[: BLOCK * D], space[BLOCK * D :]
    gone, a = space[: BLOCK * D], space[BLOCK * D :]
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
            q_at, k_at, v_row = (heads[head, Q_ROW] + t0) * D, (heads[head, K_ROW] + t0) * D, heads[head, V_ROW] + t0
            wild = decays(g, v_row, 1, tokens, D, a)
            erasing_keys(k, k_at, v_row, g, a, kappa, share, tokens, D, found, gone)
            load_columns(registers, v_block, tokens, v, v_row * Dv + column, Dv, width)
            read_state(registers, S, D, found, 0, r)
            for t in range(tokens):
                if wild:
                    forget(registers, S, D, g, v_row + t)
                    if kappa is None:
                        read_state(registers, S, D, found, t * D, r)
                a_at = t if g is None or g.ndim == 1 else t * D
                then = min(t + 1, tokens - 1)
                step(
                    registers, S, D, q, q_at + t * D, k, k_at + t * D, v_block, t * W, found, then * D,
                    g, a, a_at, beta, v_row + t, kappa, gone, t * D, r, o_block, t * W, scale,
                )  # fmt: skip
            store_columns(registers, o_block, tokens, o, (heads[head, O_ROW] + t0) * Dv + column, Dv, width)
        if head % readers == readers - 1:
            store_columns(registers, S, D, state, state_at, Dv, width)
