"""Merging parts, and attention over runs of keys: many (head, run) items where there are few queries."""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn_numba.few import attend_few
from refattn_numba.flash import attend
from refattn_numba.layout import problem, tiles_of_keys
from refattn_numba.merge import add_sinks, merge_into


def merge_attention(*parts: tuple[Array, Array], sinks: Array | None = None) -> tuple[Array, Array]:
    """As `refattn.merge_attention`, one part after the other; see `refattn_numba.merge`."""
    first, dtype = parts[0][0], parts[0][0].dtype
    compute = compute_dtype(dtype)
    o, lse = np.zeros(first.shape, compute), np.full(first.shape[:-1], -np.inf, compute)
    for o_n, lse_n in parts:
        merge_into(o, lse, o_n, lse_n)
    if sinks is not None:
        add_sinks(o, lse, sinks)
    return o.astype(dtype, copy=False), lse


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
