"""Windows on the CPU: a mask whose tiles the flash kernels read, so that those outside are never touched."""

from typing import Any

from refattn import masks
from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.attention import attention, attention_vjp


def local_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    left: int | None,
    right: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.local_attention`."""
    mask = masks.window(left, right)
    return attention(q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


def local_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    left: int | None,
    right: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.local_attention_vjp`."""
    mask = masks.window(left, right)
    return attention_vjp(do, q, k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)
