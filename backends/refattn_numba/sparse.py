"""Attention under any mask on the CPU: by the form that suits its pattern, else by the tiles that the mask has.

Strides and drawn keys touch almost every tile with a few pairs each; `parts` and `gather` lay them out so that work
grows with the pairs. A bias or dropout belongs to pairs in their places, and those the tiles know.
"""

from typing import Any

from refattn.arrays import Array
from refattn.masks.drawn import Random
from refattn.masks.steps import Dilated, Fixed, Strided
from refattn.results import AttentionGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.dilated import dilated_parts
from refattn_numba.fixed import fixed_parts
from refattn_numba.gather import attend_lists, pull_back_lists
from refattn_numba.parts import Part, attend_parts, finish, pull_back_parts
from refattn_numba.random_ import of_mask
from refattn_numba.strided import strided_parts


def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Any,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """As `refattn.sparse_attention`."""
    plain = bias is None and dropout_mask is None
    if plain and isinstance(mask, Random):
        found = attend_lists(q, k, v, of_mask(q, k, mask), scale=scale, softcap=softcap, sinks=sinks)
        return finish(q, found, return_lse)
    parts = parts_of(mask, q, k) if plain else None
    if parts is not None:
        found = attend_parts(q, k, v, parts, scale=scale, softcap=softcap, sinks=sinks)
        return finish(q, found, return_lse)
    return attention(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p, return_lse=return_lse,
    )  # fmt: skip


def sparse_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Any,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.sparse_attention_vjp`."""
    plain = bias is None and dropout_mask is None
    if plain and isinstance(mask, Random):
        lists = of_mask(q, k, mask)
        return pull_back_lists(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)
    parts = parts_of(mask, q, k) if plain else None
    if parts is not None:
        return pull_back_parts(do, q, k, v, parts, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)
    return attention_vjp(
        do, q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p, dlse=dlse,
    )  # fmt: skip


def parts_of(mask: Any, q: Array, k: Array) -> list[Part] | None:
    """Return the parts of a mask that is made of strides, or None."""
    if isinstance(mask, Strided):
        return strided_parts(q, k, mask.local, mask.stride)
    if isinstance(mask, Fixed):
        return fixed_parts(q, k, mask.block, mask.summary)
    if isinstance(mask, Dilated):
        return dilated_parts(q, k, mask.window, mask.step)
    return None
