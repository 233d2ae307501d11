"""Softmax attention and its derivative.

Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, eq. 1. Grouped heads: Ainslie et al., 2023,
arXiv:2305.13245. Soft caps: Gemma 2, 2024, arXiv:2408.00118. Sinks: a logit without a value, as in gpt-oss, 2025,
arXiv:2508.10925.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import (
    Bools,
    check_attention,
    check_attention_vjp,
    heads_of,
    per_head,
    repeat_heads,
    select_matmul,
    sinks_gradient,
    sum_heads,
    sum_to,
    visible_pairs,
)
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import AttentionGradients


@dispatched(check_attention)
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Mix the values v_j for each query i, weighed by how well its key k_j matches.

    .. math::
        s_{ij} = \text{scale} \cdot q_i \cdot k_j, \quad
        s_{ij} \leftarrow c \tanh(s_{ij} / c) + b_{ij}, \quad
        p_{ij} = e^{s_{ij} - \text{lse}_i}, \quad
        \text{lse}_i = \log \sum_j e^{s_{ij}}, \quad
        o_i = \sum_j p_{ij} v_j

    with the sums over the visible keys, and one more term e^sink in lse where there are sinks.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
        Queries; 2-D is one head. float16, bfloat16, float32 or float64.
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        Keys and values, in the dtype of q; query head h reads head h // (H // Hk).
    mask : Mask or bool array that broadcasts to (..., H, Tq, Tk), optional
        True where query i may look at key j; see `refattn.masks`. What is masked influences nothing, NaN included.
    bias : array that broadcasts to (..., H, Tq, Tk), optional
        Added to the scores after the soft cap.
    scale : float, optional
        1 / sqrt(D) unless given.
    softcap : float, optional
        c: the scores saturate at ± c.
    sinks : array, (H,), optional
        A logit per head that takes its share of the softmax and has no value.
    dropout_mask : bool array that broadcasts to (..., H, Tq, Tk), optional
        True keeps p_ij, divided by 1 - dropout_p; lse stays as it was.
    dropout_p : float
        The probability with which `dropout_mask` was drawn.
    return_lse : bool
        Return (o, lse) instead of o.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o : array, (..., H, Tq, Dv)
        In the dtype of q. A query that sees no key gets 0.
    lse : array, (..., H, Tq)
        Natural logarithm of the sum of exponentials, sinks included, in the dtype of computation (float32 for 16-bit
        inputs); -inf for a query that sees nothing.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, naming the argument.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((3, 2)), np.array([[0.0], [3.0], [6.0]])
    >>> attention(q, k, v)  # equal scores: the mean of v
    array([[3.]])
    >>> o, lse = attention(q, k, v, mask=np.array([[True, True, False]]), return_lse=True)
    >>> o, np.exp(lse)
    (array([[1.5]]), array([2.]))
    """
    dtype, compute = q.dtype, compute_dtype(q.dtype)
    q, k, v = (x.astype(compute) for x in (q, repeat_heads(k, heads_of(q)), repeat_heads(v, heads_of(q))))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype

    s = scale * (q @ k.swapaxes(-1, -2))  # s_ij = scale q_i·k_j                     (..., H, Tq, Tk)
    if softcap is not None:
        s = float(softcap) * np.tanh(s / float(softcap))
    if bias is not None:
        s = s + bias.astype(compute)
    visible = visible_pairs(mask, s)
    p, lse = softmax(s, visible, sinks)  # p_ij = e^(s_ij - lse_i)
    if dropout_mask is not None:
        p = np.where(dropout_mask, p / (1 - float(dropout_p)), 0)
    o = select_matmul(p, v, visible).astype(dtype)  # o_i = Σ_j p_ij v_j              (..., H, Tq, Dv)
    return (o, lse) if return_lse else o


@dispatched(check_attention_vjp)
def attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    r"""Pull cotangents of `attention`'s results back to its inputs.

    .. math::
        dv_j = \sum_i p_{ij} do_i, \quad
        dp_{ij} = do_i \cdot v_j, \quad
        ds_{ij} = p_{ij} (dp_{ij} - \sum_j p_{ij} dp_{ij} + dlse_i)

    and from ds on through the soft cap to dq_i = scale Σ_j ds_ij k_j and dk_j = scale Σ_i ds_ij q_i.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, mask, bias, scale, softcap, sinks, dropout_mask, dropout_p
        As given to `attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        (dq, dk, dv, dbias, dsinks); heads that share a key head, and the axes along which bias was broadcast, are
        summed. A query that sees nothing has zero gradient.

    Raises
    ------
    TypeError, ValueError
        As `attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> attention_vjp(np.ones((1, 1)), q, k, v).dv
    array([[0.5],
           [0.5]])
    """
    dtype, compute, H = q.dtype, compute_dtype(q.dtype), heads_of(q)
    kv_heads = heads_of(k)
    q, do = q.astype(compute), do.astype(compute)
    k, v = (repeat_heads(x, H).astype(compute) for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype

    s = scale * (q @ k.swapaxes(-1, -2))
    slope: Array | float = 1.0
    if softcap is not None:
        t = np.tanh(s / float(softcap))
        s, slope = float(softcap) * t, 1 - t**2  # d(c tanh(s/c))/ds
    if bias is not None:
        s = s + bias.astype(compute)
    visible = visible_pairs(mask, s)
    p, lse = softmax(s, visible, sinks)
    keep = 1.0 if dropout_mask is None else np.where(dropout_mask, 1 / (1 - dropout_p), 0).astype(compute)

    seen_by = visible.swapaxes(-1, -2)
    dv = select_matmul((p * keep).swapaxes(-1, -2), do, seen_by)  # was: o = (p * keep) @ v
    dp = np.where(visible, do @ v.swapaxes(-1, -2) * keep, 0)
    pull = (p * dp).sum(axis=-1, keepdims=True)  # what the normalisation takes back: Σ_j p_ij dp_ij
    if dlse is not None:
        pull = pull - dlse[..., None].astype(compute)
    ds = np.where(visible, p * (dp - pull), 0)  # was: p = e^(s - lse)
    ds_product = np.where(visible, scale * slope * ds, 0)  # was: s = softcap(scale * q @ k.T) + bias
    dq = select_matmul(ds_product, k, visible)
    dk = select_matmul(ds_product.swapaxes(-1, -2), q, seen_by)

    dbias = None if bias is None else sum_to(ds, bias.shape).astype(bias.dtype)
    dsinks = None if sinks is None else sinks_gradient(sinks, lse, pull[..., 0])
    return AttentionGradients(
        dq.astype(dtype), sum_heads(dk, kv_heads).astype(dtype), sum_heads(dv, kv_heads).astype(dtype), dbias, dsinks
    )


def softmax(s: Array, visible: Bools, sinks: Array | None) -> tuple[Array, Array]:
    """Return p_ij = e^(s_ij - lse_i), 0 where not visible, and lse_i = log(Σ_j e^s_ij + e^sink) over what is."""
    s = np.where(visible, s, -np.inf)
    m = s.max(axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        sink = per_head(sinks.astype(s.dtype), s.ndim)
        m = np.maximum(m, sink)
    m = np.where(np.isneginf(m), 0, m)  # nothing seen: keep e^-inf, not e^nan
    p = np.exp(s - m)
    l = p.sum(axis=-1, keepdims=True)
    if sinks is not None:
        l = l + np.exp(sink - m)
    lse = (m + np.log(l))[..., 0]
    return np.where(visible, p / np.where(l == 0, 1, l), 0), lse  # select: a NaN in l is the seen keys' alone
