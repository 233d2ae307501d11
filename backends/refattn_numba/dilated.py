"""Dilated windows on the CPU: laid out by remainder, each is an ordinary window (see `parts.by_remainder`)."""

from typing import Any

from refattn import masks
from refattn.arrays import Array
from refattn.masks.given import within
from refattn.results import AttentionGradients
from refattn_numba.parts import Part, attend_parts, by_remainder, finish, pull_back_parts


def dilated_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    step: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.dilated_attention`."""
    found = attend_parts(q, k, v, dilated_parts(q, k, window, step), scale=scale, softcap=softcap, sinks=sinks)
    return finish(q, found, return_lse)


def dilated_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    step: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.dilated_attention_vjp`."""
    return pull_back_parts(
        do, q, k, v, dilated_parts(q, k, window, step), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse
    )


def dilated_parts(q: Array, k: Array, window: int, step: int) -> list[Part]:
    """Return the window of each row."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    queries, keys, _, count = by_remainder(Tq, Tk, within(step, Tq, Tk))
    return [Part(queries, keys, masks.window(window, window) & masks.padding(count))]
