"""Multi-head latent attention on the CPU: NumPy's matrix products around the kernels.

Absorbed, the heads are the rows of one matrix of queries that reads one key head of width L + Dr, and its values are
the first L columns of the same array, so a tile of the cache is fetched once for keys, values and all heads; see
`refattn_numba.few`. Expanded, it is ordinary attention, `refattn_numba.flash`.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import LatentGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.few import attend_few
from refattn_numba.layout import problem, seen_keys


def mla_attention(
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.mla_attention`."""
    dtype, L, scale = q_nope.dtype, c_kv.shape[-1], _scale(q_nope, q_rope, scale)
    q_nope, q_rope, w_uk, w_uv = _computed(q_nope, q_rope, w_uk, w_uv)
    q = np.concatenate([q_nope @ w_uk.swapaxes(-1, -2), q_rope], axis=-1)  # (..., H, Tq, L + Dr)
    k = np.concatenate([c_kv, k_rope], axis=-1)[..., None, :, :]  # (..., 1, Tk, L + Dr)
    found = attend_few(q, k, k[..., :L], mask=mask, scale=scale)  # a cache of 16 bits stays one
    if found is None:
        (k,) = _computed(k)
        found = attention(q, k, k[..., :L], mask=mask, scale=scale, return_lse=True)
    o, lse = found
    o = np.where(np.isneginf(lse)[..., None], 0, o @ w_uv).astype(dtype)
    return (o, lse) if return_lse else o


def mla_attention_expanded(
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.mla_attention_expanded`."""
    dtype, scale = q_nope.dtype, _scale(q_nope, q_rope, scale)
    q, k, v = _expand(*_computed(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv))
    o, lse = attention(q, k, v, mask=mask, scale=scale, return_lse=True)
    o = o.astype(dtype, copy=False)
    return (o, lse) if return_lse else o


def mla_attention_vjp(
    do: Array,
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    dlse: Array | None = None,
) -> LatentGradients:
    """As `refattn.mla_attention_vjp`, by the expanded form."""
    dtype, Dn, scale = q_nope.dtype, q_nope.shape[-1], _scale(q_nope, q_rope, scale)
    do, q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = _computed(do, q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)
    q, k, v = _expand(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)
    g = attention_vjp(do, q, k, v, mask=mask, scale=scale, dlse=dlse)
    # A token that a head's queries do not see has zero dk and dv there; 0 · NaN must not make more of it.
    seen = seen_keys(problem(q, k, v, mask=mask)).reshape(*k.shape[:-1], 1)  # (..., H, Tk, 1)
    c = np.where(seen, c_kv[..., None, :, :], 0).swapaxes(-1, -2)
    dk_nope = g.dk[..., :Dn]
    dc = np.where(seen, dk_nope @ w_uk.swapaxes(-1, -2) + g.dv @ w_uv.swapaxes(-1, -2), 0).sum(axis=-3)
    dw_uk, dw_uv = (
        (c @ dx).sum(axis=tuple(range(c.ndim - 3))) for dx in (dk_nope, g.dv)
    )  # was: k_nope, v = c @ w_uk, c @ w_uv
    gradients = (g.dq[..., :Dn], g.dq[..., Dn:], dc, g.dk[..., Dn:].sum(axis=-3), dw_uk, dw_uv)
    return LatentGradients(*(np.asarray(dx).astype(dtype) for dx in gradients))


def _scale(q_nope: Array, q_rope: Array, scale: float | None) -> float:
    return 1 / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1]) if scale is None else scale


def _computed(*arrays: Array) -> list[Array]:
    return [x.astype(compute_dtype(x.dtype), copy=False) for x in arrays]


def _expand(
    q_nope: Array, q_rope: Array, c_kv: Array, k_rope: Array, w_uk: Array, w_uv: Array
) -> tuple[Array, Array, Array]:
    """Return q, k, v of ordinary attention: a key and a value of its own for each head."""
    c = c_kv[..., None, :, :]
    k_nope = c @ w_uk  # (..., H, Tk, Dn)
    k_rope = np.broadcast_to(k_rope[..., None, :, :], (*k_nope.shape[:-1], k_rope.shape[-1]))
    return np.concatenate([q_nope, q_rope], axis=-1), np.concatenate([k_nope, k_rope], axis=-1), c @ w_uv
