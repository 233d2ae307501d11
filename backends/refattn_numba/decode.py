"""Merging parts, and attention over runs of keys: many (head, run) items where there are few queries."""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn_numba.few import attend_few
from refattn_numba.flash import attend
from refattn_numba.layout import problem, tiles_of_keys


def merge_attention(*parts: tuple[Array, Array], sinks: Array | None = None) -> tuple[Array, Array]:
    """As `refattn.merge_attention`: one pass over the parts, weights relative to the largest lse."""
    dtype = parts[0][0].dtype
    compute = compute_dtype(dtype)
    m = np.full(parts[0][1].shape, -np.inf, compute)
    if sinks is not None:
        sink = sinks.astype(compute).reshape(-1, 1) if parts[0][0].ndim > 2 else sinks.astype(compute)
        m = np.maximum(m, sink)
    l = np.where(np.isneginf(m), 0, 1).astype(compute)
    o = np.zeros(parts[0][0].shape, compute)
    for o_n, lse_n in ((o_n, lse_n.astype(compute, copy=False)) for o_n, lse_n in parts):
        m_new = np.maximum(m, lse_n)
        top = np.where(np.isneginf(m_new), 0, m_new)
        shrink, weight = np.exp(m - top), np.exp(lse_n - top)
        l = shrink * l + weight
        o = shrink[..., None] * o + np.where((weight == 0)[..., None], 0, weight[..., None] * o_n)
        m = m_new
    lse = m + np.log(l)
    return (o / np.where(l == 0, 1, l)[..., None]).astype(dtype), lse


def attention_split_kv(
    q: Array,
    k: Array,
    v: Array,
    *,
    num_splits: int = 4,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """As `refattn.attention_split_kv`; runs begin and end at whole tiles of keys, so there are no more than tiles.

    Few queries (`refattn_numba.few`) are split into runs of one length, whatever `num_splits` says.
    """
    few = attend_few(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask
    )
    if few is not None:
        return few if return_lse else few[0]
    call = problem(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    o, lse = merge_attention(*attend(call, q, k, v, min(num_splits, tiles_of_keys(k.shape[-2]))))
    o = o.astype(q.dtype, copy=False)
    return (o, lse) if return_lse else o
