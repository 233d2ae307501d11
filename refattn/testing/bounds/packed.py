"""How far packed and paged attention may lie from the reference: each sequence as far as dense attention."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn.testing.bounds import dense


def attention_varlen(
    eps: float, q: Array, k: Array, v: Array, *cu_seqlens: Array, return_lse: bool = False, **options: Any
) -> Any:
    """Bound `attention_varlen`."""
    o, row = np.zeros((*q.shape[:2], v.shape[-1])), np.zeros((q.shape[1], len(q)))
    for i, j in _sequences(*cu_seqlens):
        q_b, k_b, v_b = (x.swapaxes(0, 1) for x in (q[i], k[j], v[j]))
        o_b, row[:, i] = dense.attention(eps, q_b, k_b, v_b, **options)
        o[i] = o_b.swapaxes(0, 1)
    return (o, row) if return_lse else o


def attention_varlen_vjp(
    eps: float, do: Array, q: Array, k: Array, v: Array, *cu_seqlens: Array, dlse: Array | None = None, **options: Any
) -> AttentionGradients:
    """Bound `attention_varlen_vjp`."""
    dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
    dsinks = None if options.get("sinks") is None else np.zeros(q.shape[1])
    for i, j in _sequences(*cu_seqlens):
        sequence = (x.swapaxes(0, 1) for x in (do[i], q[i], k[j], v[j]))
        g = dense.attention_vjp(eps, *sequence, **options, dlse=None if dlse is None else dlse[:, i])
        dq[i], dk[j], dv[j] = (x.swapaxes(0, 1) for x in (g.dq, g.dk, g.dv))
        dsinks = None if dsinks is None else dsinks + g.dsinks
    return AttentionGradients(dq, dk, dv, None, dsinks)


def paged_attention(
    eps: float,
    q: Array,
    k_pages: Array,
    v_pages: Array,
    page_table: Array,
    seqlens_k: Array,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Any:
    """Bound `paged_attention`."""
    o, row = np.zeros((*q.shape[:-1], v_pages.shape[-1])), np.zeros(q.shape[:-1])
    for b, length in enumerate(seqlens_k):
        page, slot = np.divmod(np.arange(int(length)), k_pages.shape[1])
        k, v = (x[page_table[b, page], slot].swapaxes(0, 1) for x in (k_pages, v_pages))
        o[b], row[b] = dense.attention(eps, q[b], k, v, **options)
    return (o, row) if return_lse else o


def _sequences(cu_seqlens_q: Array, cu_seqlens_k: Array) -> list[tuple[slice, slice]]:
    queries, keys = (itertools.pairwise(cu.tolist()) for cu in (cu_seqlens_q, cu_seqlens_k))
    return [(slice(*i), slice(*j)) for i, j in zip(queries, keys, strict=True)]


BOUNDS: dict[str, Callable[..., Any]] = {
    "attention_varlen": attention_varlen,
    "attention_varlen_vjp": attention_varlen_vjp,
    "paged_attention": paged_attention,
}
