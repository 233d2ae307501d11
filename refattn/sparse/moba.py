"""Mixture of block attention: each query picks chunks of the past by the mean of their keys.

Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025, arXiv:2502.13189: the choice of blocks,
eqs. 2 to 6; no block of the future, and the current one always, section 2.2. It is one of the `top_k`.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, compute_dtype
from refattn.dense.common import check_attention, heads_of, repeat_heads
from refattn.dispatch import dispatched
from refattn.masks.given import within
from refattn.results import SelectedAttention
from refattn.sparse.select import Indices, attend_each, best, check_indices, keys_of, selected_keys


def _check_moba(
    q: Any, k: Any, v: Any, *, chunk: Any, top_k: Any, scale: Any = None, indices: Any = None, **_rest: Any
) -> None:
    check_attention(q, k, v, scale=scale, operation="moba_attention")
    check_count("moba_attention", "chunk", chunk)
    check_count("moba_attention", "top_k", top_k)
    if indices is not None:
        want = (*q.shape[:-1], int(top_k))
        check_indices("moba_attention", indices, want, "(..., H, Tq, top_k)", -(-k.shape[-2] // chunk))


@dispatched(_check_moba)
def moba_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    chunk: int,
    top_k: int,
    scale: float | None = None,
    indices: Indices | None = None,
    backend: str = "numpy",
) -> SelectedAttention:
    r"""Attend with each query to its own chunk, causally, and to the best `top_k` - 1 of the chunks before it.

    .. math::
        g_{ic} = q_i \cdot \text{mean}_{j \in \text{chunk } c} \, k_j, \quad
        C_i = \{ c(i) \} \cup \text{the } n - 1 \text{ chunks } c < c(i) \text{ with the largest } g_{ic}, \quad
        o_i = \sum_{j \le t(i), \, c(j) \in C_i} p_{ij} v_j

    Query i stands at t(i) = i + Tk - Tq, in chunk c(i) = t(i) // chunk. The gate has no scale, and chooses only: it
    does not weigh. Equal gates go to the earliest chunk, and a NaN counts as the largest.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
        Queries of the last Tq tokens; 2-D is one head.
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        Keys and values, in the dtype of q; query head h reads head h // (H // Hk), and chooses for itself.
    chunk : int
        How many keys a chunk has; the last one may have fewer.
    top_k : int
        How many chunks each query looks at, its own included.
    scale : float, optional
        Of the scores: 1 / sqrt(D) unless given.
    indices : int array, (..., H, Tq, top_k), optional
        Look at these chunks (-1 is none) instead of choosing; the query's own is then no exception. What lies in the
        future stays hidden.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    SelectedAttention
        (o, lse, indices): o (..., H, Tq, Dv) in the dtype of q; lse (..., H, Tq); the chunks that were used, int64
        (..., H, Tq, top_k), ascending, -1 last.

    Raises
    ------
    TypeError, ValueError
        As `attention`; for chunk or top_k below 1, and indices of another shape, out of range, or twice the same.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> q, k = np.ones((5, 1)), np.array([[0.0], [0.0], [7.0], [1.0], [0.0]])
    >>> moba_attention(q, k, k, chunk=2, top_k=2).indices  # the last query prefers chunk 1 to chunk 0
    array([[ 0, -1],
           [ 0, -1],
           [ 0,  1],
           [ 0,  1],
           [ 1,  2]])
    """
    dtype, compute, H = q.dtype, compute_dtype(q.dtype), heads_of(q)
    q, k, v = (x.astype(compute) for x in (q, repeat_heads(k, H), repeat_heads(v, H)))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype
    Tq, Tk = q.shape[-2], k.shape[-2]
    chunk = within(chunk, Tq, Tk)

    chunks = np.arange(-(-Tk // chunk))
    means = np.zeros((*k.shape[:-2], len(chunks), k.shape[-1]), compute)  # (..., H, chunks, D)
    for c in chunks:
        means[..., c, :] = k[..., c * chunk : (c + 1) * chunk, :].mean(axis=-2)
    gate = q @ means.swapaxes(-1, -2)  # g_ic = q_i · mean of chunk c                 (..., H, Tq, chunks)

    position = np.arange(Tq) + (Tk - Tq)  # t(i)
    current = position[:, None] // chunk  # c(i)
    allowed = chunks <= current
    if indices is not None:
        allowed = allowed & selected_keys(indices, len(chunks))  # all that is left has room
    indices = best(gate, top_k, allowed, forced=chunks == current)  # C_i             (..., H, Tq, top_k)
    o, lse = attend_each(q, k, v, keys_of(indices, chunk, position), scale=scale)
    return SelectedAttention(o.astype(dtype), lse, indices)
