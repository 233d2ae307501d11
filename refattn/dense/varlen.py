"""Packed sequences: texts of different lengths one after the other in one array, without padding between them.

The layout, with cumulative lengths that say where each sequence begins, is that of FlashAttention (Dao, Fu, Ermon,
Rudra and Ré, 2022, arXiv:2205.14135) and of the kernels that followed it. What is computed is `attention`, for each
sequence by itself.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import check_attention
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import AttentionGradients

Ints = NDArray[np.integer[Any]]


def check_integers(operation: str, name: str, x: Any, axes: int, meaning: str) -> None:
    """Raise unless `x` is an array of integers with as many `axes` as `meaning` has letters for."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{operation}: {name} must be an array, got {type(x).__name__}")
    if x.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} has dtype {x.dtype}; wanted integers")
    if len(x.shape) != axes:
        raise ValueError(f"{operation}: {name} has shape {x.shape}; wanted {meaning}")


def check_mask_of_each(operation: str, mask: Any, lengths: list[tuple[int, int]]) -> None:
    """Raise unless `mask` is a mask value without leading axes that can describe every (Tq, Tk) of `lengths`."""
    if mask is None:
        return
    if not isinstance(mask, Mask):
        got = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(f"{operation}: mask is {got}; wanted a mask value, which is asked for each sequence by itself")
    if mask.lead:
        raise ValueError(f"{operation}: mask has leading axes {mask.lead}; wanted none, it is asked for each sequence")
    for b, (Tq, Tk) in enumerate(lengths):
        try:
            mask.check(Tq, Tk)
        except ValueError as error:
            raise ValueError(f"{operation}: sequence {b}: {error}") from None


def check_heads(operation: str, q: Any, k: Any, v: Any, H: int, layout: str) -> None:
    """Raise unless the axes (Hk, D) and (Hk, Dv) at the end of `k` and `v` fit `H` query heads of `q`'s D."""
    shapes = f"q {q.shape}, {layout} {k.shape} and {v.shape}"
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"{operation}: the last axis of q and of the keys must be one D >= 1: {shapes}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"{operation}: keys and values must have the same number of heads: {shapes}")
    if H == 0 or k.shape[-2] == 0 or H % k.shape[-2]:
        raise ValueError(f"{operation}: {H} query heads cannot share {k.shape[-2]} key heads evenly: {shapes}")


def _check_borders(operation: str, name: str, borders: Any, total: int, tokens: str) -> None:
    """Raise unless `borders` climbs from 0 to `total`."""
    check_integers(operation, name, borders, 1, "(B + 1,)")
    if len(borders) == 0:
        raise ValueError(f"{operation}: {name} is empty; wanted (B + 1,) numbers, [0] for no sequence")
    values = [int(border) for border in borders]
    if values[0] != 0:
        raise ValueError(f"{operation}: {name}[0] is {values[0]}; wanted 0")
    for b, (start, stop) in enumerate(itertools.pairwise(values)):
        if stop < start:
            raise ValueError(f"{operation}: {name} falls from {start} to {stop} at sequence {b}; wanted it to climb")
    if values[-1] != total:
        raise ValueError(f"{operation}: {name}[-1] is {values[-1]}; wanted {total}, as {tokens} has tokens")


def _check(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    mask: Any = None,
    scale: Any = None,
    softcap: Any = None,
    sinks: Any = None,
    return_lse: Any = False,
    operation: str = "attention_varlen",
) -> None:
    check_floats(operation, 0, q=q, k=k, v=v)
    for name, x, meaning in (("q", q, "(total_q, H, D)"), ("k", k, "(total_k, Hk, D)"), ("v", v, "(total_k, Hk, Dv)")):
        if x.ndim != 3:
            raise ValueError(f"{operation}: {name} has shape {x.shape}; wanted {meaning}")
    if len(k) != len(v):
        raise ValueError(f"{operation}: k has {len(k)} keys and v has {len(v)} values: k {k.shape}, v {v.shape}")
    check_heads(operation, q, k, v, q.shape[1], "k and v")
    _check_borders(operation, "cu_seqlens_q", cu_seqlens_q, len(q), "q")
    _check_borders(operation, "cu_seqlens_k", cu_seqlens_k, len(k), "k")
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        counts = f"{len(cu_seqlens_q) - 1} sequences and cu_seqlens_k {len(cu_seqlens_k) - 1}"
        raise ValueError(f"{operation}: cu_seqlens_q has {counts}; wanted the same number")
    lengths = [(i.stop - i.start, j.stop - j.start) for i, j in _sequences(cu_seqlens_q, cu_seqlens_k)]
    check_mask_of_each(operation, mask, lengths)
    heads_first = (x.swapaxes(0, 1) for x in (q, k, v))
    check_attention(*heads_first, scale=scale, softcap=softcap, sinks=sinks, operation=operation)


def _check_vjp(
    do: Any, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, *, dlse: Any = None, **arguments: Any
) -> None:
    operation = "attention_varlen_vjp"
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, **arguments, operation=operation)
    check_floats(operation, 0, do=do, q=q)
    check_shape(operation, "do", do, (*q.shape[:2], v.shape[-1]), "(total_q, H, Dv)")
    if dlse is not None:
        check_floats(operation, 0, dlse=dlse)
        check_shape(operation, "dlse", dlse, (q.shape[1], len(q)), "(H, total_q)")


def _sequences(cu_seqlens_q: Ints, cu_seqlens_k: Ints) -> list[tuple[slice, slice]]:
    """Return which rows of the packed queries and which of the packed keys belong to each sequence."""
    queries, keys = (itertools.pairwise(int(border) for border in cu) for cu in (cu_seqlens_q, cu_seqlens_k))
    return [(slice(*i), slice(*j)) for i, j in zip(queries, keys, strict=True)]


@dispatched(_check)
def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Ints,
    cu_seqlens_k: Ints,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend within each of several sequences that lie one after the other.

    With the borders :math:`c_0 = 0 \le c_1 \le \dots \le c_B` of the queries and :math:`c'` of the keys,

    .. math::
        o_{c_b : c_{b+1}} = \text{attention}(q_{c_b : c_{b+1}}, k_{c'_b : c'_{b+1}}, v_{c'_b : c'_{b+1}})

    Parameters
    ----------
    q : array, (total_q, H, D)
        The queries of all sequences, float16, bfloat16, float32 or float64.
    k, v : array, (total_k, Hk, D), (total_k, Hk, Dv)
        Keys and values, in the dtype of q; query head h reads head h // (H // Hk).
    cu_seqlens_q, cu_seqlens_k : int array, (B + 1,)
        Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1], that one not included, and the same of keys.
        They begin with 0, never fall, and end with total_q and total_k. A sequence may be empty.
    mask : Mask, optional
        A mask value without leading axes; it is asked for each sequence with the lengths of that sequence, so that
        ``causal()`` aligns the last query of each with its last key.
    scale, softcap, sinks
        As `attention`; every sequence has the same sinks, (H,).
    return_lse : bool
        Return (o, lse) instead of o.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o : array, (total_q, H, Dv)
        In the dtype of q. A query that sees no key gets 0.
    lse : array, (H, total_q)
        Natural logarithm of the sum of exponentials as `attention` returns it: one row per head, tokens last.

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes and borders that do not fit, naming the argument.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> q = k = np.zeros((5, 1, 2))
    >>> v = np.array([2.0, 4.0, 10.0, 20.0, 30.0]).reshape(5, 1, 1)
    >>> borders = np.array([0, 2, 5])  # a sequence of two tokens, and one of three
    >>> attention_varlen(q, k, v, borders, borders).ravel()
    array([ 3.,  3., 20., 20., 20.])
    """
    compute, (total_q, H, _) = compute_dtype(q.dtype), q.shape
    o, lse = np.zeros((total_q, H, v.shape[-1]), q.dtype), np.full((H, total_q), -np.inf, compute)
    for i, j in _sequences(cu_seqlens_q, cu_seqlens_k):
        q_b, k_b, v_b = (x.swapaxes(0, 1) for x in (q[i], k[j], v[j]))  # (H, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv)
        o_b, lse[:, i] = attention(q_b, k_b, v_b, mask=mask, scale=scale, softcap=softcap, sinks=sinks, return_lse=True)
        o[i] = o_b.swapaxes(0, 1)
    return (o, lse) if return_lse else o


@dispatched(_check_vjp)
def attention_varlen_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Ints,
    cu_seqlens_k: Ints,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    r"""Pull cotangents of `attention_varlen`'s results back to its inputs.

    Each sequence has the gradients of `attention_vjp`; what all of them share, the sinks, gets the sum

    .. math::
        dz = \sum_b dz_b

    Parameters
    ----------
    do : array, (total_q, H, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, cu_seqlens_q, cu_seqlens_k, mask, scale, softcap, sinks
        As given to `attention_varlen`.
    dlse : array, (H, total_q), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        (dq, dk, dv, None, dsinks), packed as q, k and v are; dbias is None, as there is no bias.

    Raises
    ------
    TypeError, ValueError
        As `attention_varlen`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q = k = v = np.zeros((5, 1, 2))
    >>> borders = np.array([0, 2, 5])
    >>> attention_varlen_vjp(np.ones((5, 1, 2)), q, k, v, borders, borders).dv[:, 0, 0]
    array([1., 1., 1., 1., 1.])
    """
    compute = compute_dtype(q.dtype)
    wide_sinks = None if sinks is None else sinks.astype(compute)
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    dsinks = np.zeros(q.shape[1], compute)
    for i, j in _sequences(cu_seqlens_q, cu_seqlens_k):
        do_b, q_b, k_b, v_b = (x.astype(compute).swapaxes(0, 1) for x in (do[i], q[i], k[j], v[j]))
        dlse_b = None if dlse is None else dlse[:, i]
        # was: o_b, lse_b = attention(q_b, k_b, v_b)
        g = attention_vjp(do_b, q_b, k_b, v_b, mask=mask, scale=scale, softcap=softcap, sinks=wide_sinks, dlse=dlse_b)
        dq[i], dk[j], dv[j] = (x.swapaxes(0, 1) for x in (g.dq, g.dk, g.dv))
        if g.dsinks is not None:
            dsinks = dsinks + g.dsinks
    return AttentionGradients(dq, dk, dv, None, None if sinks is None else dsinks.astype(sinks.dtype))
