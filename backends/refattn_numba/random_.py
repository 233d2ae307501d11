"""Drawn keys on the CPU: each query reads its own list (see `gather`)."""

from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.masks.drawn import Random
from refattn.results import AttentionGradients
from refattn_numba.gather import Lists, attend_lists, lists, pull_back_lists
from refattn_numba.layout import heads_of
from refattn_numba.parts import finish


def random_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.random_attention`."""
    found = attend_lists(q, k, v, drawn(q, k, n_keys, seed, per_head), scale=scale, softcap=softcap, sinks=sinks)
    return finish(q, found, return_lse)


def random_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.random_attention_vjp`."""
    return pull_back_lists(
        do, q, k, v, drawn(q, k, n_keys, seed, per_head), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse
    )


def drawn(q: Array, k: Array, n_keys: int, seed: int, per_head: bool) -> Lists:
    """Return the keys that each query draws."""
    heads = heads_of(q)
    return of_mask(q, k, Random(n_keys, seed, heads[-1] if per_head else None))


def of_mask(q: Array, k: Array, mask: Random) -> Lists:
    """Return the lists of a mask that is drawn."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    return lists(mask.keys(Tq, Tk), 1, np.full(Tq, Tk), heads_of(q))
