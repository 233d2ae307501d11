"""BigBird on the CPU: a mask whose tiles the flash kernels read."""

from collections.abc import Sequence
from typing import Any

from refattn import masks
from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.layout import heads_of


def bigbird_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    block_size: int,
    n_window: int = 3,
    global_blocks: Sequence[int] = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.bigbird_attention`."""
    mask = _mask(q, block_size, n_window, global_blocks, n_random, seed, per_head)
    return attention(q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


def bigbird_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    block_size: int,
    n_window: int = 3,
    global_blocks: Sequence[int] = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.bigbird_attention_vjp`."""
    mask = _mask(q, block_size, n_window, global_blocks, n_random, seed, per_head)
    return attention_vjp(do, q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def _mask(
    q: Array, block_size: int, n_window: int, global_blocks: Sequence[int], n_random: int, seed: int, per_head: bool
) -> masks.Mask:
    heads = heads_of(q)[-1]
    return masks.bigbird(block_size, n_window, global_blocks, n_random, seed, heads if per_head else None)
