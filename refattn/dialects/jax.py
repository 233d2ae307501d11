"""JAX's `jax.nn.dot_product_attention`, as jax 0.10 computes it with its `xla` implementation.

Source: https://github.com/jax-ml/jax, jax/_src/nn/functions.py. Layout (B, T, N, H): batch, tokens, heads, width.
"""

import functools
import math
import operator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools, check_attention, repeat_heads
from refattn.dialects.common import bounds
from refattn.dialects.scores import softmax_of
from refattn.masks import Mask, causal, from_array, padding

NAME = "dot_product_attention"
HIDDEN = -0.7 * float(np.finfo(np.float32).max)
"""The score that JAX gives to a hidden pair, in float32 and float64 alike."""


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Compute softmax(scale · query keyᵀ + bias) value with tokens before heads, as JAX does.

    .. math::
        s_{ij} = \text{scale} \cdot q_i \cdot k_j + b_{ij}, \quad
        s_{ij} \leftarrow -0.7 \cdot \text{max}_\text{float32} \text{ where hidden}, \quad
        o_i = \sum_j \text{softmax}_j(s_{ij}) v_j

    Parameters
    ----------
    query : array, (B, T, N, H) or (T, N, H)
        N query heads of width H.
    key, value : array, (B, S, K, H) or (S, K, H)
        K key heads, a divisor of N; value has the shape of key, and all three one dtype.
    bias : array that broadcasts to (B, N, T, S), optional
        Added to the scores. Fewer axes are filled up with 1 in front.
    mask : bool array that broadcasts to (B, N, T, S), optional
        True = may look.
    scale : float, optional
        1 / sqrt(H) unless given.
    is_causal : bool
        Hide key j from query i unless j <= i.
    query_seq_lengths, key_value_seq_lengths : int array, (B,), optional
        How many tokens of each sequence count.
    local_window_size : int or (left, right), optional
        Hide key j unless i - left <= j <= i + right; one number stands for both.
    implementation : {None, "xla", "cudnn"}
        "cudnn" is refused, as where there is no cuDNN.
    return_residual : bool
        Return (o, lse) instead of o.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o : array
        Of the shape and dtype of query.
    lse : array, (B, T, N) or (T, N)
        Natural logarithm of the sum of exponentials, in the dtype of key.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        For what JAX refuses, with its reason.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.attention`:

    - Tokens stand before heads; (T, N, H) is one sequence, and 2-D is one token of many heads.
    - value must have the width of key.
    - `is_causal` and `local_window_size` count from the top left, whatever T and S are.
    - A query that sees nothing gets the mean over all S values, its lse is about -2.4e38 (-inf in float16): hidden
      pairs get a large negative score. If all that it sees has a bias below that score, the hidden values win. Where
      all scores are -inf (by `bias` alone), the result is NaN, lse -inf.
    - Queries beyond their `query_seq_lengths` get 0, as the last step; their lse is that of a query that sees nothing.
    - Lengths beyond S, or negative, count as S, or 0.
    - A hidden value that is NaN or infinite makes the result NaN: its weight is 0, and 0 · NaN is NaN. (A hidden key
      that is NaN does nothing: scores are selected.)
    - lse comes in the dtype of key, also for 16-bit inputs.
    - There is neither soft cap, nor sinks, nor dropout.

    Not reproduced: JAX rounds the scores to float32 before the softmax, also of float64, and the weights to the dtype
    of key after it. It makes float32 of float64 unless told otherwise (``jax_enable_x64``); here dtypes stay.

    Examples
    --------
    >>> q, k = np.zeros((2, 1, 1)), np.zeros((3, 1, 1))
    >>> v = np.array([0.0, 4.0, 8.0]).reshape(3, 1, 1)
    >>> dot_product_attention(q, k, v, is_causal=True).ravel()  # top left
    array([0., 2.])
    >>> dot_product_attention(q, k, v, mask=np.zeros((2, 3), bool)).ravel()  # sees nothing: the mean
    array([4., 4.])
    """
    _check(query, key, value, implementation)
    q, k, v = (_four_axes(x).swapaxes(1, 2) for x in (query, key, value))  # (B, N, T, H)
    B, N, T, S = *q.shape[:3], k.shape[2]
    bias = None if bias is None else _four_axes(np.asarray(bias)).astype(compute_dtype(q.dtype))
    query_lengths = _lengths("query_seq_lengths", query_seq_lengths, B)
    key_lengths = _lengths("key_value_seq_lengths", key_value_seq_lengths, B)
    pattern = _pattern(mask, is_causal, local_window_size, query_lengths, key_lengths, T, S)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    check_attention(q, k, v, mask=pattern, bias=bias, scale=scale, operation=NAME)
    o, lse = attention(q, k, v, mask=pattern, bias=bias, scale=scale, return_lse=True, backend=backend)

    visible: Bools = np.ones((B, N, T, S), bool)
    if pattern is not None:
        visible = np.broadcast_to(pattern.dense(T, S), visible.shape)
    selected = np.where(visible, 0 if bias is None else bias, HIDDEN).astype(lse.dtype)  # scores, where they are huge
    lost: Bools = ~np.any(visible & (selected > HIDDEN), axis=-1)  # (B, N, T)
    if lost.any() and S > 0:
        o_lost, lse_lost = softmax_of(selected, repeat_heads(v, N), backend)
        o, lse = np.where(lost[..., None], o_lost, o), np.where(lost, lse_lost, lse)
    o = np.where(_touched(visible, repeat_heads(v, N)), np.nan, o).astype(query.dtype)
    if query_lengths is not None:
        with np.errstate(invalid="ignore"):  # a product in JAX, too: NaN stays
            o = o * (np.arange(T) < query_lengths[:, None])[:, None, :, None].astype(o.dtype)
    o = o.swapaxes(1, 2).reshape(query.shape)
    with np.errstate(over="ignore"):
        return (o, lse.swapaxes(1, 2).reshape(query.shape[:-1]).astype(key.dtype)) if return_residual else o


def _check(query: Any, key: Any, value: Any, implementation: Any) -> None:
    """Refuse the arrays that JAX refuses before it looks at options."""
    if implementation == "cudnn":
        raise RuntimeError(f"{NAME}: cuDNN is not detected: there is the implementation xla only")
    if implementation not in (None, "xla"):
        raise ValueError(f"{NAME}: unsupported implementation option: {implementation!r}")
    check_floats(NAME, 0, query=query, key=key, value=value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim > 4:
            raise ValueError(f"{NAME}: {name} has {x.ndim} axes; wanted 4")
    shapes = [_four_axes(x).shape for x in (query, key, value)]
    (B, _, N, H), (_, _, K, _) = shapes[0], shapes[1]
    if shapes[2] != shapes[1]:
        raise ValueError(f"{NAME}: value has shape {value.shape}; wanted that of key, {key.shape}")
    if shapes[1][0] != B or shapes[1][3] != H:
        raise ValueError(f"{NAME}: query has shape {query.shape}; wanted batch and width of key, {key.shape}")
    if K == 0 or N % K:
        raise ValueError(f"{NAME}: the number of query heads must be a multiple of key/value heads, got {N} and {K}")


def _four_axes(x: Array) -> Array:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _lengths(name: str, lengths: Any, B: int) -> Array | None:
    if lengths is None:
        return None
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu":
        raise ValueError(f"{NAME}: {name} has dtype {lengths.dtype}; wanted int32")
    if lengths.shape != (B,):
        raise ValueError(f"{NAME}: {name} has shape {lengths.shape}; wanted ({B},)")
    return lengths.astype(np.int64)


def _pattern(
    mask: Any, is_causal: bool, window: Any, query_lengths: Array | None, key_lengths: Array | None, T: int, S: int
) -> Mask | None:
    """Combine what hides pairs (i, j), both counted from 0."""
    parts: list[Mask] = []
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise ValueError(f"{NAME}: mask has dtype {mask.dtype}; wanted bool")
        if mask.ndim > 4:
            raise ValueError(f"{NAME}: mask has {mask.ndim} axes; wanted 4")
        parts.append(from_array(_four_axes(mask)))
    if is_causal:
        parts.append(causal(0))
    if window is not None:
        both = (window, window) if isinstance(window, int | np.integer) else window
        left, right = bounds(f"{NAME}: local_window_size", both)
        parts.append(~causal(-left - 1) & causal(right))  # i - left <= j <= i + right
    if query_lengths is not None:
        parts.append(from_array((np.arange(T) < query_lengths[:, None])[:, None, :, None]))
    if key_lengths is not None:
        parts.append(padding(np.clip(key_lengths, 0, S)))
    return functools.reduce(operator.and_, parts) if parts else None


def _touched(visible: Bools, v: Array) -> Bools:
    """Return which elements of o a hidden value reaches that is not finite, (B, N, T, H)."""
    count = (~visible).astype(np.float32) @ (~np.isfinite(v)).astype(np.float32)
    touched: Bools = count > 0
    return touched
