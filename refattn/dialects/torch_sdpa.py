"""`torch.nn.functional.scaled_dot_product_attention`, as PyTorch 2.13 computes it on a CPU.

Source: pytorch/pytorch, tag v2.13.0, torch/nn/functional.py (the docstring of scaled_dot_product_attention) and
aten/src/ATen/native/transformers/attention.cpp (`_scaled_dot_product_attention_math`, `validate_sdpa_input`).
"""

import math

import numpy as np

from refattn.arrays import Array, check_floats, check_number, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools

NAME = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    dropout_mask: Bools | None = None,
    backend: str = "numpy",
) -> Array:
    r"""Compute softmax(scale · query keyᵀ + mask) value, as PyTorch does.

    Where it differs from `refattn.attention`:

    - ``is_causal`` is top-left: query i sees the keys j <= i, whatever Tq and Tk are. With Tq < Tk the last keys are
      never seen; with Tq > Tk every query sees something.
    - One argument for both kinds of masks: a bool ``attn_mask`` selects (True = may look), a float one is added.
    - ``attn_mask`` and ``is_causal`` together are refused, as PyTorch's math path does; its fused CPU kernel applies
      both.
    - Heads are shared only with ``enable_gqa=True``; k and v may then have different numbers of heads. Without it, axes
      of size 1 broadcast, so one key head serves all query heads, and one batch entry all others.
    - 2-D, 3-D, 4-D inputs mean (T, D), (H, T, D), (B, H, T, D). No lse is returned.
    - ``dropout_p = 1`` gives zeros instead of an error.

    - Hidden is -inf that is added, and a weight of 0 is still multiplied: NaN and inf behind the mask leak, those of a
      value into its column of every row, those of a key into the whole row. (With ``is_causal`` the fused kernel
      selects instead, so that keys do not leak there.)

    The same on both sides: query head h reads key head h // (H // Hk), and a row that sees nothing is 0.

    Parameters
    ----------
    query : array, (..., H, Tq, D)
    key, value : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
    attn_mask : bool or float array that broadcasts to (..., H, Tq, Tk), optional
        Of two axes at least.
    dropout_p : float
    is_causal : bool
    scale : float, optional
        1 / sqrt(D) unless given.
    enable_gqa : bool
    dropout_mask : bool array that broadcasts to (..., H, Tq, Tk)
        What dropout keeps, where dropout_p > 0. PyTorch draws it itself, from its own generator.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    array, (..., H, Tq, Dv)

    Raises
    ------
    TypeError, ValueError
        For what PyTorch refuses, and a dropout_p without a dropout_mask.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((3, 2)), np.array([[0.0], [3.0], [6.0]])
    >>> scaled_dot_product_attention(q, k, v, is_causal=True)  # top-left: query 0 sees key 0 alone
    array([[0.]])
    """
    check_floats(NAME, 2, query=query, key=key, value=value)
    _check_mask(attn_mask, is_causal)
    q, k, v = _repeated(query, key, value) if enable_gqa else _broadcast(query, key, value)
    check_number(NAME, "dropout_p", dropout_p)
    if dropout_p == 1:
        return np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    visible = attn_mask if attn_mask is not None and attn_mask.dtype == bool else None
    if is_causal:
        visible = np.tril(np.ones((q.shape[-2], k.shape[-2]), bool))
    bias = attn_mask if visible is None else np.where(visible, 0, -np.inf).astype(compute_dtype(q.dtype))
    return attention(
        q,
        k,
        v,
        bias=bias,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        dropout_mask=dropout_mask if dropout_p > 0 else None,
        dropout_p=dropout_p,
        backend=backend,
    )


def _check_mask(attn_mask: Array | None, is_causal: bool) -> None:
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError(f"{NAME}: an explicit attn_mask must not be set when is_causal=True")
    if not hasattr(attn_mask, "dtype"):
        raise TypeError(f"{NAME}: attn_mask must be an array, got {type(attn_mask).__name__}")
    if attn_mask.dtype != bool and attn_mask.dtype.kind != "f" and attn_mask.dtype.name != "bfloat16":
        raise TypeError(f"{NAME}: attn_mask has dtype {attn_mask.dtype}; wanted bool or float")
    if attn_mask.ndim < 2:
        raise ValueError(f"{NAME}: attn_mask has shape {attn_mask.shape}; wanted (..., Tq, Tk)")


def _broadcast(*qkv: Array) -> list[Array]:
    """Give query, key and value the same axes before (T, D): those of size 1 are repeated."""
    try:
        lead = np.broadcast_shapes(*(x.shape[:-2] for x in qkv))
    except ValueError:
        raise ValueError(
            f"{NAME}: query {qkv[0].shape}, key {qkv[1].shape}, value {qkv[2].shape}: the axes before (T, D) must "
            "match, and heads are shared only with enable_gqa=True"
        ) from None
    return [np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in qkv]


def _repeated(query: Array, key: Array, value: Array) -> list[Array]:
    """Give each query head its key and its value head, whose numbers may differ, and broadcast the batch axes."""
    if min(x.ndim for x in (query, key, value)) < 3:
        raise ValueError(f"{NAME}: enable_gqa needs inputs with an axis of heads, (..., H, T, D)")
    H = query.shape[-3]
    for name, x in (("key", key), ("value", value)):
        if x.shape[-3] == 0 or H % x.shape[-3]:
            raise ValueError(f"{NAME}: {H} query heads are no multiple of the {x.shape[-3]} heads of {name}")
    return _broadcast(query, *(np.repeat(x, H // x.shape[-3], axis=-3) for x in (key, value)))
