"""Fixed attention on the CPU: blocks on the diagonal, and a thin part of the summaries picked out."""

from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.masks.given import within
from refattn.results import AttentionGradients
from refattn_numba.parts import AS_THEY_ARE, Below, Part, attend_parts, finish, picked, pull_back_parts


def fixed_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    block: int,
    summary: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.fixed_attention`."""
    found = attend_parts(q, k, v, fixed_parts(q, k, block, summary), scale=scale, softcap=softcap, sinks=sinks)
    return finish(q, found, return_lse)


def fixed_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    block: int,
    summary: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.fixed_attention_vjp`."""
    return pull_back_parts(
        do, q, k, v, fixed_parts(q, k, block, summary), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse
    )


def fixed_parts(q: Array, k: Array, block: int, summary: int) -> list[Part]:
    """Return the own block, and the summaries of those before."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    block = within(block, Tq, Tk)
    places = np.flatnonzero(np.arange(Tk) % block >= block - summary)
    before = np.maximum(0, (np.arange(Tq) + Tk - Tq) // block) * summary
    return [
        Part(AS_THEY_ARE, AS_THEY_ARE, masks.causal() & masks.chunked(block)),
        Part(AS_THEY_ARE, picked(Tk, places), Below(before)),
    ]
