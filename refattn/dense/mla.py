r"""Multi-head latent attention: the cache holds one short vector a token, from which each head makes its key and value.

DeepSeek-AI, "DeepSeek-V2", 2024, arXiv:2405.04434, eq. 37-47. Keys and values are c_kv W_UK and c_kv W_UV (eq. 42, 45);
one rotated key beside them, shared by all heads, carries the position (eq. 43). Section 2.1.2 notes that W_UK may be
absorbed into the queries and W_UV into the output: `mla_attention` does that, `mla_attention_expanded` does not.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_number, check_shape, compute_dtype
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import Bools, check_mask, visible_pairs
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import LatentGradients


def _check(
    q_nope: Any,
    q_rope: Any,
    c_kv: Any,
    k_rope: Any,
    w_uk: Any,
    w_uv: Any,
    *,
    mask: Any = None,
    scale: Any = None,
    return_lse: Any = False,
    operation: str = "mla_attention",
) -> None:
    arrays = {"q_nope": q_nope, "q_rope": q_rope, "c_kv": c_kv, "k_rope": k_rope, "w_uk": w_uk, "w_uv": w_uv}
    check_floats(operation, 2, **arrays)
    check_floats(operation, 3, q_nope=q_nope, w_uk=w_uk, w_uv=w_uv)
    *batch, H, Tq, Dn = q_nope.shape
    Dr, Tk, L, Dv = q_rope.shape[-1], c_kv.shape[-2], c_kv.shape[-1], w_uv.shape[-1]
    check_shape(operation, "q_rope", q_rope, (*batch, H, Tq, Dr), "(..., H, Tq, Dr)")
    check_shape(operation, "c_kv", c_kv, (*batch, Tk, L), "(..., Tk, L)")
    check_shape(operation, "k_rope", k_rope, (*batch, Tk, Dr), "(..., Tk, Dr)")
    check_shape(operation, "w_uk", w_uk, (H, L, Dn), "(H, L, Dn)")
    check_shape(operation, "w_uv", w_uv, (H, L, Dv), "(H, L, Dv)")
    for meaning, size in (("H", H), ("L", L), ("Dn + Dr", Dn + Dr)):
        if size == 0:
            raise ValueError(f"{operation}: {meaning} is 0; wanted at least 1")
    check_mask(operation, mask, (*batch, H, Tq, Tk))
    if scale is not None:
        check_number(operation, "scale", scale)


def _check_expanded(*args: Any, **options: Any) -> None:
    _check(*args, **options, operation="mla_attention_expanded")


def _check_vjp(
    do: Any,
    q_nope: Any,
    q_rope: Any,
    c_kv: Any,
    k_rope: Any,
    w_uk: Any,
    w_uv: Any,
    *,
    dlse: Any = None,
    **options: Any,
) -> None:
    operation = "mla_attention_vjp"
    _check(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, **options, operation=operation)
    check_floats(operation, 3, do=do, q_nope=q_nope)
    check_shape(operation, "do", do, (*q_nope.shape[:-1], w_uv.shape[-1]), "(..., H, Tq, Dv)")
    if dlse is not None:
        check_floats(operation, 2, dlse=dlse)
        check_shape(operation, "dlse", dlse, q_nope.shape[:-1], "(..., H, Tq)")


@dispatched(_check)
def mla_attention(
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Mask | Bools | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to a cache of latent vectors without making a key or a value from them (the absorbed form).

    .. math::
        s_{hij} = \text{scale} \left( (q^\text{nope}_{hi} W^{UK\top}_h) \cdot c_j + q^\text{rope}_{hi} \cdot
        k^\text{rope}_j \right), \quad
        p_{hij} = e^{s_{hij} - \text{lse}_{hi}}, \quad
        o_{hi} = \Big( \sum_j p_{hij} c_j \Big) W^{UV}_h

    To every head the pair (c_j, k_rope_j) is the one key, and c_j the one value: multi-query attention of width L + Dr.

    Parameters
    ----------
    q_nope : array, (..., H, Tq, Dn)
        The part of the queries without position. float16, bfloat16, float32 or float64, and so all the others.
    q_rope : array, (..., H, Tq, Dr)
        The part of the queries that carries the position: already rotated, see `rope`.
    c_kv : array, (..., Tk, L)
        The latent of each token, without an axis of heads; what the model normalises comes normalised.
    k_rope : array, (..., Tk, Dr)
        The rotated key of each token, shared by all heads.
    w_uk, w_uv : array, (H, L, Dn), (H, L, Dv)
        What makes a head's key and value of a latent: k_h = c_kv w_uk[h], v_h = c_kv w_uv[h].
    mask : Mask or bool array that broadcasts to (..., H, Tq, Tk), optional
        As in `attention`. What is masked influences nothing, NaN included.
    scale : float, optional
        1 / sqrt(Dn + Dr) unless given: the width of the keys that are never made, not of the latent.
    return_lse : bool
        Return (o, lse) instead of o.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o : array, (..., H, Tq, Dv)
        In the dtype of q_nope. A query that sees no token gets 0.
    lse : array, (..., H, Tq)
        As that of `attention`.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, naming the argument.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> q_nope, q_rope, w_uk = np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    >>> c_kv, k_rope, w_uv = np.array([[1.0], [3.0]]), np.ones((2, 2)), np.array([[[10.0]]])
    >>> mla_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)  # equal scores: the mean latent, times 10
    array([[[20.]]])
    """
    dtype, compute = q_nope.dtype, compute_dtype(q_nope.dtype)
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (x.astype(compute) for x in (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv))
    scale = 1 / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1]) if scale is None else float(scale)

    q_latent = q_nope @ w_uk.swapaxes(-1, -2)  # q_nope W_UK^T                         (..., H, Tq, L)
    q = np.concatenate([q_latent, q_rope], axis=-1)  # (..., H, Tq, L + Dr)
    k = np.concatenate([c_kv, k_rope], axis=-1)[..., None, :, :]  # one key head for all     (..., 1, Tk, L + Dr)
    o, lse = attention(q, k, c_kv[..., None, :, :], mask=mask, scale=scale, return_lse=True)  # (..., H, Tq, L)
    o = np.where(np.isneginf(lse)[..., None], 0, o @ w_uv).astype(dtype)  # select: a NaN in w_uv is no blind row's
    return (o, lse) if return_lse else o


@dispatched(_check_expanded)
def mla_attention_expanded(
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Mask | Bools | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Compute `mla_attention` the way the paper writes it: make every head's keys and values, then attend.

    .. math::
        k_{hj} = [c_j W^{UK}_h ; k^\text{rope}_j], \quad
        v_{hj} = c_j W^{UV}_h, \quad
        o_h = \text{attention}([q^\text{nope}_h ; q^\text{rope}_h], k_h, v_h)

    Cheaper where there are many queries (training, prefill): a pair costs products of width Dn + Dr and Dv instead of
    L + Dr and L. But it holds H (Dn + Dv) + Dr numbers a token instead of L + Dr.

    Parameters
    ----------
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, mask, scale, return_lse, backend
        As in `mla_attention`.

    Returns
    -------
    o, lse
        As `mla_attention`, up to rounding.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `mla_attention`.

    Examples
    --------
    >>> q_nope, q_rope, w_uk = np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    >>> c_kv, k_rope, w_uv = np.array([[1.0], [3.0]]), np.ones((2, 2)), np.array([[[10.0]]])
    >>> mla_attention_expanded(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)  # the mean of the values 10 and 30
    array([[[20.]]])
    """
    dtype, compute = q_nope.dtype, compute_dtype(q_nope.dtype)
    q, k, v = expand(*(x.astype(compute) for x in (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)))
    o, lse = attention(q, k, v, mask=mask, scale=scale, return_lse=True)
    return (o.astype(dtype), lse) if return_lse else o.astype(dtype)


@dispatched(_check_vjp)
def mla_attention_vjp(
    do: Array,
    q_nope: Array,
    q_rope: Array,
    c_kv: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    mask: Mask | Bools | None = None,
    scale: float | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> LatentGradients:
    r"""Pull cotangents of the results of `mla_attention`, in either form, back to its inputs.

    .. math::
        dc_j = \sum_h dk^\text{nope}_{hj} W^{UK\top}_h + dv_{hj} W^{UV\top}_h, \quad
        dk^\text{rope}_j = \sum_h dk^\text{rope}_{hj}, \quad
        dW^{UK}_h = \sum_j c_j^\top dk^\text{nope}_{hj}, \quad
        dW^{UV}_h = \sum_j c_j^\top dv_{hj}

    with dq, dk, dv those of `attention_vjp` for the expanded heads.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q_nope.
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, mask, scale
        As given to `mla_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    LatentGradients
        (dq_nope, dq_rope, dc_kv, dk_rope, dw_uk, dw_uv); those of the weights are summed over the batch.

    Raises
    ------
    TypeError, ValueError
        As `mla_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q_nope, q_rope, w_uk = np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    >>> c_kv, k_rope, w_uv = np.array([[1.0], [3.0]]), np.ones((2, 2)), np.array([[[10.0]]])
    >>> mla_attention_vjp(np.ones((1, 1, 1)), q_nope, q_rope, c_kv, k_rope, w_uk, w_uv).dw_uv  # the mean latent
    array([[[2.]]])
    """
    dtype, compute, Dn = q_nope.dtype, compute_dtype(q_nope.dtype), q_nope.shape[-1]
    inputs = (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (x.astype(compute) for x in inputs)
    q, k, v = expand(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)
    g = attention_vjp(do.astype(compute), q, k, v, mask=mask, scale=scale, dlse=dlse)  # was: attention(q, k, v)

    # A token that no query of a head sees has zero dk and dv there; 0 · NaN must not make more of it.
    visible = visible_pairs(mask, np.broadcast_to(0, (*q.shape[:-1], k.shape[-2])))
    seen = np.any(visible, axis=-2)[..., None]  # (..., H, Tk, 1)
    c = np.where(seen, c_kv[..., None, :, :], 0)  # (..., H, Tk, L)
    dk_nope, dk_rope = g.dk[..., :Dn], g.dk[..., Dn:]
    dw_uk = sum_batch(c.swapaxes(-1, -2) @ dk_nope)  # was: k_nope = c_kv @ w_uk
    dw_uv = sum_batch(c.swapaxes(-1, -2) @ g.dv)  # was: v = c_kv @ w_uv
    dc = np.where(seen, dk_nope @ w_uk.swapaxes(-1, -2) + g.dv @ w_uv.swapaxes(-1, -2), 0)
    gradients = (g.dq[..., :Dn], g.dq[..., Dn:], dc.sum(axis=-3), dk_rope.sum(axis=-3), dw_uk, dw_uv)
    return LatentGradients(*(dx.astype(dtype) for dx in gradients))


def expand(
    q_nope: Array, q_rope: Array, c_kv: Array, k_rope: Array, w_uk: Array, w_uv: Array
) -> tuple[Array, Array, Array]:
    """Return q, k, v of ordinary attention: a key and a value of its own for each head."""
    c = c_kv[..., None, :, :]
    k_nope, v = c @ w_uk, c @ w_uv  # (..., H, Tk, Dn), (..., H, Tk, Dv)
    k_rope = np.broadcast_to(k_rope[..., None, :, :], (*k_nope.shape[:-1], k_rope.shape[-1]))
    return np.concatenate([q_nope, q_rope], axis=-1), np.concatenate([k_nope, k_rope], axis=-1), v


def sum_batch(dw: Array) -> Array:
    """(..., H, L, D) -> (H, L, D): the batch shares the weights."""
    return np.asarray(dw.sum(axis=tuple(range(dw.ndim - 3))))
