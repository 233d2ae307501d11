"""Packed sequences on the CPU: the kernels on each sequence by itself, long ones one by one, short ones side by side.

A sequence is computed exactly as a call of its own, so its bits depend neither on the others nor on the threads. One
that would keep a thread busy after the others are done is cut into tiles for all threads (its own launch); the rest are
dealt out whole, the longest first. Nothing is padded.
"""

import itertools
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import AttentionGradients
from refattn_numba.attention import attention_vjp
from refattn_numba.flash import flash_attention
from refattn_numba.threads import deal


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.attention_varlen`."""
    o = np.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    lse = np.full(q.shape[1::-1], -np.inf, compute_dtype(q.dtype))
    runs = _runs(cu_seqlens_q, cu_seqlens_k)

    def one(n: int) -> None:
        i, j = runs[n]
        o_n, lse[:, i] = flash_attention(
            *(x.swapaxes(0, 1) for x in (q[i], k[j], v[j])), mask=mask, scale=scale, softcap=softcap, sinks=sinks
        )
        o[i] = o_n.swapaxes(0, 1)

    deal(one, _work(runs, q.shape[1] * (q.shape[2] + v.shape[2])))
    return (o, lse) if return_lse else o


def attention_varlen_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.attention_varlen_vjp`."""
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    runs = _runs(cu_seqlens_q, cu_seqlens_k)
    dsinks = np.zeros((len(runs), q.shape[1]), compute_dtype(q.dtype))
    wide = None if sinks is None else sinks.astype(dsinks.dtype, copy=False)  # each one's share is not rounded

    def one(n: int) -> None:
        i, j = runs[n]
        g = attention_vjp(
            *(x.swapaxes(0, 1) for x in (do[i], q[i], k[j], v[j])), mask=mask, scale=scale, softcap=softcap, sinks=wide,
            dlse=None if dlse is None else dlse[:, i],
        )  # fmt: skip
        dq[i], dk[j], dv[j] = (x.swapaxes(0, 1) for x in (g.dq, g.dk, g.dv))
        if wide is not None:
            dsinks[n] = g.dsinks

    deal(one, _work(runs, q.shape[1] * (3 * q.shape[2] + 2 * v.shape[2])))
    return AttentionGradients(dq, dk, dv, None, None if sinks is None else dsinks.sum(axis=0).astype(sinks.dtype))


def _runs(cu_seqlens_q: Array, cu_seqlens_k: Array) -> list[tuple[slice, slice]]:
    """Return which rows of the queries and which of the keys belong to each sequence."""
    queries, keys = (itertools.pairwise(cu.tolist()) for cu in (cu_seqlens_q, cu_seqlens_k))
    return [(slice(*i), slice(*j)) for i, j in zip(queries, keys, strict=True)]


def _work(runs: list[tuple[slice, slice]], per_pair: int) -> list[float]:
    return [float(i.stop - i.start) * (j.stop - j.start) * per_pair for i, j in runs]
