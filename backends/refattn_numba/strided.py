"""Strided attention on the CPU: a band of the sequence, and the earlier tokens of each remainder (see `parts`)."""

from typing import Any

from refattn import masks
from refattn.arrays import Array
from refattn.masks.given import within
from refattn.results import AttentionGradients
from refattn_numba.parts import AS_THEY_ARE, Part, attend_parts, by_remainder, finish, pull_back_parts


def strided_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    local: int,
    stride: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.strided_attention`."""
    found = attend_parts(q, k, v, strided_parts(q, k, local, stride), scale=scale, softcap=softcap, sinks=sinks)
    return finish(q, found, return_lse)


def strided_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    local: int,
    stride: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.strided_attention_vjp`."""
    return pull_back_parts(
        do, q, k, v, strided_parts(q, k, local, stride), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse
    )


def strided_parts(q: Array, k: Array, local: int, stride: int) -> list[Part]:
    """Return what is local, and the strided keys that are not."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    local, stride = within(local, Tq, Tk), within(stride, Tq, Tk)
    queries, keys, start, _ = by_remainder(Tq, Tk, stride)
    return [
        Part(AS_THEY_ARE, AS_THEY_ARE, masks.causal() & masks.window(local - 1, 0)),
        Part(queries, keys, masks.causal(start - -(-local // stride))),
    ]
