"""What the files of this folder share: shapes of heads, the visible pairs, and the checks before dispatch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import (
    Array,
    check_broadcasts,
    check_count,
    check_floats,
    check_number,
    check_shape,
)
from refattn.masks import Mask, as_mask

Bools = NDArray[np.bool_]


def heads_of(x: Array) -> int:
    """Return how many heads (..., H, T, D) has; a matrix is one."""
    return x.shape[-3] if x.ndim > 2 else 1


def repeat_heads(x: Array, H: int) -> Array:
    """Give each query head its own copy of the key (or value) head it reads: head h reads h // (H // Hk)."""
    return x if x.ndim == 2 else np.repeat(x, H // x.shape[-3], axis=-3)


def sum_heads(dx: Array, Hk: int) -> Array:
    """Transpose of `repeat_heads`: add the gradients of the query heads that read the same key head."""
    if dx.ndim == 2:
        return dx
    *batch, H, T, D = dx.shape
    return dx.reshape(*batch, Hk, H // Hk, T, D).sum(axis=-3)


def sum_to(dx: Array, shape: tuple[int, ...]) -> Array:
    """Transpose of broadcasting: add up the axes along which an array of `shape` was repeated."""
    dx = dx.sum(axis=tuple(range(dx.ndim - len(shape))))
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1 and dx.shape[axis] != 1)
    return np.asarray(dx.sum(axis=repeated, keepdims=True))


def per_head(sinks: Array, ndim: int) -> Array:
    """Shape one number per head (H,) so that it broadcasts against scores of `ndim` axes (..., H, Tq, Tk)."""
    return sinks.reshape(-1, 1, 1) if ndim > 2 else sinks.reshape(1, 1)


def visible_pairs(mask: "Mask | Bools | None", s: Array) -> Bools:
    """Return which of the scores `s` (..., H, Tq, Tk) take part, bool of the same shape."""
    pattern = as_mask(mask)
    if pattern is None:
        return np.ones(s.shape, bool)
    return np.broadcast_to(pattern.dense(*s.shape[-2:]), s.shape)


def sinks_gradient(sinks: Array, lse: Array, pull: Array) -> Array:
    """Return the gradient of the sinks (H,): ds = p (0 - pull) with p = e^(sink - lse), since a sink has no value.

    Parameters
    ----------
    sinks : array, (H,)
    lse, pull : array, (..., H, Tq)
        Log-sum-exp, and what the normalisation takes back from each weight: Σ_j p_ij dp_ij - dlse_i.
    """
    sink = sinks.astype(lse.dtype)[:, None] if lse.ndim > 1 else sinks.astype(lse.dtype)
    blind = np.isneginf(lse)  # sees no key, and a sink of -inf
    ds = np.where(blind, 0, -np.exp(sink - np.where(blind, 0, lse)) * pull)  # (..., H, Tq)
    return ds.sum(axis=-1).reshape(-1, len(sinks)).sum(axis=0).astype(sinks.dtype)


def select_matmul(p: Array, x: Array, visible: Bools) -> Array:
    """Return p @ x, in which a pair that is not visible adds nothing at all: where x holds NaN or inf, 0·x would.

    Parameters
    ----------
    p : array, (..., n, m)
        Zero wherever `visible` is False.
    x : array, (..., m, D)
    visible : bool array, (..., n, m)
    """
    finite: Bools = np.all(np.isfinite(x), axis=-1)  # (..., m)
    o = p @ np.where(finite[..., None], x, 0)
    some_head = tuple(range(finite.ndim - 1))
    for j in np.flatnonzero(np.any(~finite, axis=some_head)):
        rest = np.where(finite[..., j, None, None], 0, x[..., j, None, :])  # what the product above left out
        o = o + np.where(visible[..., :, j, None], p[..., :, j, None] * rest, 0)
    return o


def check_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: Any = None,
    softcap: Any = None,
    sinks: Any = None,
    dropout_mask: Any = None,
    dropout_p: Any = 0.0,
    tile_q: Any = 1,
    tile_k: Any = 1,
    num_splits: Any = 1,
    operation: str = "attention",
    **_knobs: Any,
) -> None:
    """Refuse what `attention` and its kin cannot take. The one place where that is decided, for every backend."""
    check_floats(operation, 2, q=q, k=k, v=v)
    if not q.ndim == k.ndim == v.ndim:
        raise ValueError(f"{operation}: q, k, v have {q.ndim}, {k.ndim} and {v.ndim} axes; wanted the same number")
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        raise ValueError(f"{operation}: the batch axes before (H, T, D) differ: {shapes}")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"{operation}: the last axis of q and k must be one D >= 1: {shapes}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"{operation}: k has {k.shape[-2]} keys and v has {v.shape[-2]} values: {shapes}")
    if k.shape[-3:-2] != v.shape[-3:-2]:
        raise ValueError(f"{operation}: k and v must have the same number of heads: {shapes}")
    H, Hk = heads_of(q), heads_of(k)
    if H == 0 or Hk == 0 or H % Hk:
        raise ValueError(f"{operation}: {H} query heads cannot share {Hk} key heads evenly: {shapes}")
    scores = (*q.shape[:-1], k.shape[-2])
    check_mask(operation, mask, scores)
    if bias is not None:
        check_floats(operation, 0, bias=bias)
        check_broadcasts(operation, "bias", bias.shape, scores, "(..., H, Tq, Tk)")
    if scale is not None:
        check_number(operation, "scale", scale)
    if softcap is not None:
        check_number(operation, "softcap", softcap, above=0)
    if sinks is not None:
        check_floats(operation, 1, sinks=sinks)
        check_shape(operation, "sinks", sinks, (H,), "(H,), one logit per query head")
        if np.isposinf(sinks).any():
            raise ValueError(f"{operation}: sinks holds inf; wanted logits below it")
    _check_dropout(operation, dropout_mask, dropout_p, scores)
    for name, size in (("tile_q", tile_q), ("tile_k", tile_k), ("num_splits", num_splits)):
        check_count(operation, name, size)


def check_mask(operation: str, mask: Any, scores: tuple[int, ...]) -> None:
    """Refuse what is no mask for scores of this shape, (..., H, Tq, Tk)."""
    if mask is None:
        return
    if not isinstance(mask, Mask):
        if not hasattr(mask, "dtype") or str(mask.dtype) != "bool":
            got = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(
                f"{operation}: mask is {got}; wanted a mask value or a bool array, True = may look (floats go to bias=)"
            )
        if len(mask.shape) < 2:
            raise ValueError(f"{operation}: mask has shape {mask.shape}; wanted (..., Tq, Tk), axes of 1 allowed")
        check_broadcasts(operation, "mask", mask.shape, scores, "(..., H, Tq, Tk)")
        return
    try:
        mask.check(*scores[-2:])
    except ValueError as error:
        raise ValueError(f"{operation}: {error}") from None
    check_broadcasts(operation, "mask", (*mask.lead, *scores[-2:]), scores, "(..., H, Tq, Tk)")


def _check_dropout(operation: str, dropout_mask: Any, dropout_p: Any, scores: tuple[int, ...]) -> None:
    check_number(operation, "dropout_p", dropout_p)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{operation}: dropout_p is {dropout_p}; wanted 0 <= dropout_p < 1")
    if dropout_mask is None:
        if dropout_p > 0:
            raise ValueError(f"{operation}: dropout_p is {dropout_p} without a dropout_mask that says what to keep")
        return
    if str(getattr(dropout_mask, "dtype", None)) != "bool":
        raise TypeError(f"{operation}: dropout_mask must be a bool array, True = keep")
    check_broadcasts(operation, "dropout_mask", dropout_mask.shape, scores, "(..., H, Tq, Tk)")


def check_attention_vjp(do: Any, q: Any, k: Any, v: Any, *, dlse: Any = None, **arguments: Any) -> None:
    """Refuse what the backward operations cannot take, beyond what the forward ones refuse."""
    operation = arguments.pop("operation", "attention_vjp")
    check_attention(q, k, v, operation=operation, **arguments)
    check_floats(operation, 2, do=do, q=q)
    check_shape(operation, "do", do, (*q.shape[:-1], v.shape[-1]), "(..., H, Tq, Dv)")
    if dlse is not None:
        check_floats(operation, 1, dlse=dlse)
        check_shape(operation, "dlse", dlse, q.shape[:-1], "(..., H, Tq)")
