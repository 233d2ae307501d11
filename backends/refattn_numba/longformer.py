"""Longformer on the CPU: windows without the global tokens, and these by themselves (see `parts`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array, compute_dtype
from refattn.results import LongformerGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.global_ import global_and_others, in_few_tiles, picked_parts
from refattn_numba.parts import AS_THEY_ARE, Part, attend_parts, finish, pull_back_parts


def longformer_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.longformer_attention`."""
    o: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks}
    Tq, Tk, own = q.shape[-2], k.shape[-2], any(x is not None for x in (q_global, k_global, v_global))
    parts = longformer_parts(q, k, window, global_indices, own)
    if not own:
        return finish(q, attend_parts(q, k, v, parts, **o), return_lse)
    out, lse = finish(q, attend_parts(q, k, v, parts[:-1], **o), True)
    _, rows, _ = global_and_others(Tq, Tk, global_indices)
    if len(rows):
        given = _of_global(q, k, v, q_global, k_global, v_global, rows, Tk - Tq, global_indices)
        out[..., rows, :], lse[..., rows] = attention(*given, return_lse=True, **o)
    return (out, lse) if return_lse else out


def longformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> LongformerGradients:
    """As `refattn.longformer_attention_vjp`."""
    o: dict[str, Any] = {"scale": scale, "softcap": softcap}
    Tq, Tk, dtype = q.shape[-2], k.shape[-2], compute_dtype(q.dtype)
    _, rows, _ = global_and_others(Tq, Tk, global_indices)
    parts = longformer_parts(q, k, window, global_indices, own=True)[:-1]
    given = [None if x is None else x.astype(dtype) for x in (q_global, k_global, v_global)]
    out, wide = q.dtype, [x.astype(dtype) for x in (do, q, k, v)]
    sink = None if sinks is None else sinks.astype(dtype)
    dlse_rest = None if dlse is None else dlse.copy()  # what comes back to the global rows belongs to their own call
    if dlse_rest is not None:
        dlse_rest[..., rows] = 0
    ordinary = pull_back_parts(*wide, parts, sinks=sink, dlse=dlse_rest, **o)
    own = _of_global(*wide[1:], *given, rows, Tk - Tq, global_indices)
    special = attention_vjp(
        wide[0][..., rows, :], *own, sinks=sink, dlse=None if dlse is None else dlse[..., rows], **o
    )  # fmt: skip
    dq, dk, dv = ordinary.dq, ordinary.dk, ordinary.dv
    named = _named(rows, Tk - Tq, global_indices)
    dq_global = None
    if given[0] is None:
        dq[..., rows, :] = special.dq
    else:
        dq_global = np.zeros_like(given[0])
        dq_global[..., named, :] = special.dq
    found = [dq, dk + special.dk if given[1] is None else dk, dv + special.dv if given[2] is None else dv, dq_global]
    found += [None if x is None else dx for x, dx in ((given[1], special.dk), (given[2], special.dv))]
    dsinks = None if sinks is None else (ordinary.dsinks + special.dsinks).astype(sinks.dtype)
    return LongformerGradients(*(None if x is None else x.astype(out, copy=False) for x in found), dsinks)


def longformer_parts(q: Array, k: Array, window: int, indices: Sequence[int], own: bool) -> list[Part]:
    """Return the windows without the global tokens, the global keys, and, last, the global queries.

    Where the global keys stand in few tiles, those tiles cost less than to merge: then it is one part, with all of it,
    unless the global tokens have projections of their `own`, so that their rows are not read here.
    """
    named = tuple(int(n) for n in indices)
    if not own and in_few_tiles(named):
        return [Part(AS_THEY_ARE, AS_THEY_ARE, masks.longformer(window, named))]
    near = masks.window(window, window) & ~masks.global_tokens(named)
    return [Part(AS_THEY_ARE, AS_THEY_ARE, near), *picked_parts(q, k, named)]


def _named(rows: Array, behind: int, indices: Sequence[int]) -> Array:
    """Return which row of q_global belongs to each of the global queries."""
    given = np.asarray(indices, np.int64)
    order = np.argsort(given, kind="stable")
    return order[np.searchsorted(given[order], rows + behind)] if len(rows) else np.zeros(0, np.int64)


def _of_global(
    q: Array,
    k: Array,
    v: Array,
    q_global: Array | None,
    k_global: Array | None,
    v_global: Array | None,
    rows: Array,
    behind: int,
    indices: Sequence[int],
) -> tuple[Array, Array, Array]:
    """Return the queries, keys and values of the global tokens."""
    own = q[..., rows, :] if q_global is None else q_global[..., _named(rows, behind, indices), :]
    return own, k if k_global is None else k_global, v if v_global is None else v_global
