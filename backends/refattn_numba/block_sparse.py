"""Attention between blocks on the CPU: a mask whose tiles the flash kernels read.

A tile is 64 queries by 128 keys: blocks that are multiples of both cost what they show, smaller ones more.
"""

from typing import Any

from refattn import masks
from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.attention import attention, attention_vjp


def block_sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    layout: Array,
    block_size: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.block_sparse_attention`."""
    mask = masks.block(layout, block_size)
    return attention(q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


def block_sparse_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    layout: Array,
    block_size: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.block_sparse_attention_vjp`."""
    mask = masks.block(layout, block_size)
    return attention_vjp(do, q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)
