"""Global tokens on the CPU: a mask where they stand close together; scattered, two small dense parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.layout import TILE_K
from refattn_numba.parts import AS_THEY_ARE, Part, attend_parts, finish, picked, pull_back_parts


def global_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    indices: Sequence[int],
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.global_attention`."""
    found = attend_parts(q, k, v, global_parts(q, k, indices), scale=scale, softcap=softcap, sinks=sinks)
    return finish(q, found, return_lse)


def global_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    indices: Sequence[int],
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.global_attention_vjp`."""
    return pull_back_parts(
        do, q, k, v, global_parts(q, k, indices), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse
    )


FEW = 8
"""Tiles of keys that are read by every query sooner than keys are picked out and results merged."""


def in_few_tiles(indices: Sequence[int]) -> bool:
    """Return whether the tokens stand in FEW tiles of keys at most."""
    return len({int(n) // TILE_K for n in indices}) <= FEW


def global_parts(q: Array, k: Array, indices: Sequence[int]) -> list[Part]:
    """Return the mask as one part, or the chosen tokens picked out where they are scattered."""
    named = tuple(int(n) for n in indices)
    if in_few_tiles(named):
        return [Part(AS_THEY_ARE, AS_THEY_ARE, masks.global_tokens(named))]
    return picked_parts(q, k, named)


def picked_parts(q: Array, k: Array, indices: Sequence[int]) -> list[Part]:
    """Return the global keys for every other query, and all keys for the global ones."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    keys, rows, others = global_and_others(Tq, Tk, indices)
    return [Part(picked(Tq, others), picked(Tk, keys), None), Part(picked(Tq, rows), AS_THEY_ARE, None)]


def global_and_others(Tq: int, Tk: int, indices: Sequence[int]) -> tuple[Array, Array, Array]:
    """Return the keys that are global, the queries that are, and the queries that are not."""
    keys = np.unique(np.asarray(indices, np.int64))
    keys = keys[keys < Tk]
    is_global = np.isin(np.arange(Tq) + Tk - Tq, keys)
    return keys, np.flatnonzero(is_global), np.flatnonzero(~is_global)
