"""Flash attention on the CPU, forward and backward; `forward` and `backward` hold the kernels.

Differences from the reference that rounding can show: tiles are 64 queries by 128 keys whatever `tile_q` and `tile_k`
say; weights below 2^-125 (float32) of a row's largest are taken as 0; 16-bit inputs are computed in float32, P too; a
row whose every score is at finfo.min (a bias that hides) has equal weights, an lse that is off, and no gradient.
Memory beside the results: 64 · (D + Dv + 132) numbers a thread, the bits of tiles that the mask cuts, copies of inputs
that are strided or of 16 bits, the o of each split; backward, up to four shares of dQ.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.backward import backward, backward_bias, finite
from refattn_numba.few import attend_few
from refattn_numba.forward import forward
from refattn_numba.layout import TILE_K, Problem, flat, problem, tiles_of
from refattn_numba.merge import sinks_gradient
from refattn_numba.threads import SMALL, get_num_threads, run
from refattn_numba.vectors import LANES, VECTOR_BYTES


def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    tile_q: int = 64,
    tile_k: int = 64,
    on_tile: Any = None,
) -> tuple[Array, Array]:
    """As `refattn.flash_attention`; few queries take another kernel, see `refattn_numba.few`."""
    few = attend_few(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask
    )
    if few is not None:
        return few
    call = problem(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    ((o, lse),) = attend(call, q, k, v)
    return o.reshape(*q.shape[:-1], v.shape[-1]).astype(q.dtype, copy=False), lse


def attend(call: Problem, q: Array, k: Array, v: Array, splits: int = 1) -> list[tuple[Array, Array]]:
    """Return (o, lse), in the compute dtype, for each of `splits` runs of the keys; the first one holds the sinks."""
    o = np.zeros((splits, *q.shape[:-1], v.shape[-1]), call.dtype)
    lse = np.full((splits, *q.shape[:-1]), -np.inf, call.dtype)
    if call.Tk == 0 and call.sinks.size > 0:
        lse[0] = call.sinks[:, None] if q.ndim > 2 else call.sinks
    items = call.heads * tiles_of(call.Tq) * splits
    if items and call.Tk:
        work, space = call.pairs * (call.D + call.Dv), LANES * (call.D + call.Dv + TILE_K + 4)
        run(
            forward, items, work, space, call.dtype, call.order(), splits, *(flat(x, call.dtype) for x in (q, k, v)),
            o.reshape(-1), lse.reshape(-1), call.H, call.Hk, call.Tq, call.Tk, call.D, call.Dv, call.scale,
            call.softcap, call.sinks, call.all_visible, *call.tiles, call.mask_of, call.bias, call.bias_of, call.keep,
            call.keep_of, call.keep_scale,
        )  # fmt: skip
    return list(zip(o, lse, strict=True))


def peak_attention_bytes(B: int, H: int, Hk: int, T: int, D: int, Dv: int, dtype: str) -> int:
    """Return what a call of `attention` on T queries and keys of B sequences allocates: results, copies, workspaces.

    16-bit inputs are copied to float32. The bits of tiles that a mask cuts come on top.
    """
    size = max(4, np.dtype(dtype).itemsize if dtype != "bfloat16" else 2)
    copies = B * T * (H * D + Hk * (D + Dv)) if dtype in ("float16", "bfloat16") else 0
    alone = B * H * T * T * (D + Dv) < SMALL
    threads = 1 if alone else min(get_num_threads(), B * H * tiles_of(T))
    return size * (B * H * T * (Dv + 1) + copies + threads * LANES * (D + Dv + TILE_K + 4))


def flash_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
    tile_q: int = 64,
    tile_k: int = 64,
) -> AttentionGradients:
    """As `refattn.flash_attention_vjp`."""
    call = problem(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    return pull_back(call, do, q, k, v, o, lse, bias, sinks, dlse)


def pull_back(
    call: Problem,
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    bias: Array | None,
    sinks: Array | None,
    dlse: Array | None,
) -> AttentionGradients:
    """Return the gradients in the dtypes of their inputs; o and lse may be more precise than those."""
    dtype = call.dtype
    do_o = do.astype(dtype, copy=False) * o.astype(dtype, copy=False)
    delta = do_o.sum(axis=-1)  # Σ_d do_id o_id
    if not np.isfinite(delta).all():
        delta = np.where(o == 0, 0, do_o).sum(axis=-1)  # select: a blind row's do may be NaN
    if dlse is not None:
        delta = delta - dlse.astype(dtype)
    lse = lse.astype(dtype, copy=False)
    dq, dk, dv, dbias = gradients(call, do, q, k, v, lse, delta)
    dsinks = None if sinks is None else sinks_gradient(sinks, lse, delta)
    return AttentionGradients(
        dq.reshape(q.shape).astype(q.dtype, copy=False),
        dk.reshape(k.shape).astype(k.dtype, copy=False),
        dv.reshape(v.shape).astype(v.dtype, copy=False),
        None if bias is None else dbias.reshape(bias.shape).astype(bias.dtype, copy=False),
        dsinks,
    )


def gradients(
    call: Problem, do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array
) -> tuple[Array, Array, Array, Array]:
    """Return dq, dk, dv and dbias in the compute dtype."""
    dtype, key_heads = call.dtype, call.heads // call.H * call.Hk
    dbias = np.zeros(call.bias.shape)  # in float64: one entry may be the sum of millions
    if call.heads == 0 or call.Tq == 0 or call.Tk == 0:
        return np.zeros(q.shape, dtype), np.zeros(k.shape, dtype), np.zeros(v.shape, dtype), dbias
    q, do = _padded(q, dtype), _padded(do, dtype)
    Dp, Dvp = q.shape[-1], do.shape[-1]
    chunks = min(4, -(-call.Tk // (4 * TILE_K)))  # of Tk alone: a sequence's sums do not depend on its batch mates
    inputs = (*(flat(x, dtype) for x in (do, q, k, v, lse, delta)),)
    sizes = (Dp, Dvp, call.H, call.Hk, call.Tq, call.Tk, call.D, call.Dv, call.scale, call.softcap)
    tables = (
        call.all_visible, *call.tiles, call.mask_of, call.bias, call.bias_of, call.keep, call.keep_of, call.keep_scale,
    )  # fmt: skip
    work = call.pairs * (3 * call.D + 2 * call.Dv)
    space = LANES * (2 * call.D + call.Dv + 4 * TILE_K + 2)
    for careful in (False, True):
        dq = np.zeros((chunks, call.heads * call.Tq * call.D), dtype)
        dk, dv = np.zeros(key_heads * call.Tk * Dp, dtype), np.zeros(key_heads * call.Tk * Dvp, dtype)
        run(
            backward,
            key_heads * chunks,
            work,
            space,
            dtype,
            chunks,
            careful,
            *inputs,
            dq.reshape(-1),
            dk,
            dv,
            *sizes,
            *tables,
        )
        if len(call.tiles[2]) == 0 or (finite(dq.reshape(-1)) and finite(dk) and finite(dv)):
            break  # else 0 · NaN may have leaked from what the mask hides: go again and look at every pair
    if call.bias.size:
        items = len(dbias) * (tiles_of(call.Tq) if dbias.shape[1] > 1 else 1)
        run(backward_bias, items, work, space, dtype, dbias, *inputs, *sizes, *tables)
    dq = (dq[0] if chunks == 1 else dq.sum(axis=0)) * dtype.type(call.scale)
    dk = dk.reshape(key_heads * call.Tk, Dp)[:, : call.D] * dtype.type(call.scale)
    return dq, dk, dv.reshape(key_heads * call.Tk, Dvp)[:, : call.Dv], dbias


def _padded(x: Array, dtype: Any) -> Array:
    """Return `x` in `dtype` with its rows filled up with zeros to whole vector registers."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    missing = -x.shape[-1] % lanes
    x = x.astype(dtype, copy=False)
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
