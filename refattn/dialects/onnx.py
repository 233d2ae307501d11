"""ONNX's operators `Attention` and `RotaryEmbedding`: inputs by position (None where omitted), attributes by keyword.

The Open Neural Network Exchange, operator schemas Attention-23, -24 and -25 and RotaryEmbedding-23, as released with
onnx 1.23: https://onnx.ai/onnx/operators/onnx__Attention.html. Where the evaluator and the schema differ, the schema's
text and function body count. The preview of `FlexAttention`, and `LinearAttention` and `CausalConvWithState`, which
carry a state, stand in files of their own.
"""

import functools
import math
import operator
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools, check_attention, repeat_heads
from refattn.dialects.onnx_checks import DOUBLE, check_attention_node, check_rotary_node
from refattn.dialects.onnx_flex import FlexAttention
from refattn.dialects.onnx_linear import CausalConvWithState, LinearAttention
from refattn.masks import Mask, causal, from_array, padding

__all__ = ["Attention", "CausalConvWithState", "FlexAttention", "LinearAttention", "RotaryEmbedding"]


def Attention(
    Q: Array,
    K: Array,
    V: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    opset: int = 25,
    backend: str = "numpy",
) -> tuple[Array, Array, Array, Array]:
    r"""Compute the operator Attention of ONNX opsets 23, 24 and 25.

    .. math::
        s_{ij} = (\sqrt{\text{scale}} q_i) \cdot (\sqrt{\text{scale}} k_j), \quad
        s_{ij} \leftarrow c \tanh(s_{ij} / c) + b_{ij}, \quad
        Y_i = \sum_j \text{softmax}_j(s_{ij}) v_j

    Parameters
    ----------
    Q : array, (B, H, Tq, D) or (B, Tq, H·D)
        Queries. 3-D inputs need `q_num_heads` and `kv_num_heads`; with opset 25, 4-D inputs must not have them.
    K, V : array, (B, Hk, T, D) and (B, Hk, T, Dv), or (B, T, Hk·D) and (B, T, Hk·Dv)
        Keys and values, of as many axes as Q. V may have a dtype of its own.
    attn_mask : array that broadcasts to (B, H, Tq, Tk), optional
        Bool, True = may look; or numbers that are added to the scores. Its last axis may be shorter than Tk = P + T:
        the keys beyond it are hidden, even if it is 1 long.
    past_key, past_value : array, (B, Hk, P, D) and (B, Hk, P, Dv), optional
        Keys and values from before, put in front. Both or neither.
    nonpad_kv_seqlen : int array, (B,), optional
        Keys that count in each sequence of a cache that the caller keeps. Opset 24; not with `past_key`.
    is_causal : int
        1 hides key j from query i unless j <= i + offset; the offset is P, or nonpad_kv_seqlen - Tq, or 0.
    kv_num_heads, q_num_heads : int, optional
        Hk and H of 3-D inputs.
    left_window_size, right_window_size : int
        Hide keys further than this to the left or right of position i + offset; -1 leaves the side open. Opset 25.
    qk_matmul_output_mode : int
        What the fourth result is: 0 the raw scores, 1 after the soft cap, 2 with mask and bias too, 3 the weights.
    scale : float, optional
        1 / sqrt(D) unless given.
    softcap : float
        c; 0 for none. The sign of c does not matter.
    softmax_precision : int, optional
        ONNX's number of a float type: 1 float, 10 float16, 11 double, 16 bfloat16.
    opset : int
        Which version of the operator: 23, 24, 25 or later (the same as 25).
    backend : str
        Who computes Y; see `refattn.backends`.

    Returns
    -------
    Y : array, (B, H, Tq, Dv) or (B, Tq, H·Dv)
        As many axes as Q, in the dtype of Q.
    present_key, present_value : array, (B, Hk, Tk, D), (B, Hk, Tk, Dv)
        Past and new keys and values.
    qk_matmul_output : array, (B, H, Tq, Tk)
        See `qk_matmul_output_mode`; in the dtype of Q.

    Raises
    ------
    TypeError, ValueError
        For what the schema, its shape inference or onnx's evaluator refuses, with their reason.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.attention`:

    - Causal masks and windows stand at offset P with a past, at nonpad_kv_seqlen - Tq (one per sequence) with an outer
      cache, else at 0: the top left, where `refattn.masks.causal` stands at Tk - Tq.
    - One attn_mask takes bools or numbers. Integers are numbers: 1 adds 1, and hides nothing.
    - A mask shorter than the keys hides the rest of them. It is never broadcast along the keys.
    - A window of -1 is open, where `refattn.masks.window` wants None.
    - -inf in a float mask hides the pair: a query whose every key has it gets 0, in Y and in the weights of mode 3.
      (Finite numbers, however large, hide nothing: such a row is a softmax like any other.)
    - √scale multiplies both q and k, so a negative scale gives NaN.
    - softcap=0 means none.
    - There are no sinks and no dropout, and no lse is returned; the scores or weights are.

    Not reproduced: roundings between the steps in the dtype of Q (16-bit inputs are computed in float32 and rounded
    once), so `softmax_precision` matters only if it asks for more, namely double. The evaluator adds -inf to what is
    masked and multiplies its value by 0, so NaN and inf in padding spread; here they influence nothing. It also
    returns the scores after the soft cap in mode 0, where the text and the function body have those before it.

    Examples
    --------
    >>> Q, K = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 3, 2))
    >>> V = np.array([[[[0.0], [4.0], [8.0]]]])
    >>> Attention(Q, K, V, is_causal=1)[0].ravel()  # top left: query 0 sees key 0, query 1 sees keys 0 and 1
    array([0., 2.])
    """
    check_attention_node(**locals())
    past = 0 if past_key is None else past_key.shape[2]
    q, k, v = (_split_heads(x, n) for x, n in ((Q, q_num_heads), (K, kv_num_heads), (V, kv_num_heads)))
    present_key = np.concatenate([k] if past_key is None else [past_key, k], axis=2)
    present_value = np.concatenate([v] if past_value is None else [past_value, v], axis=2)

    compute = np.result_type(*(compute_dtype(x.dtype) for x in (Q, V)))
    compute = np.dtype(np.float64) if softmax_precision == DOUBLE else compute
    with np.errstate(invalid="ignore"):
        root = np.sqrt(compute.type(1 / math.sqrt(q.shape[-1]) if scale is None else scale))
    q, k, v = q.astype(compute) * root, present_key.astype(compute) * root, present_value.astype(compute)
    Tq, Tk = q.shape[2], k.shape[2]
    offset: Any = past if nonpad_kv_seqlen is None else nonpad_kv_seqlen.astype(np.int64) - Tq
    seen, bias = _given_mask(attn_mask, Tk, compute)
    mask = _mask(seen, nonpad_kv_seqlen, offset, Tk, is_causal, left_window_size, right_window_size)
    cap = abs(softcap) if softcap else None  # c tanh(s / c) is the same for c and -c
    options: dict[str, Any] = {"mask": mask, "bias": bias, "scale": 1.0, "softcap": cap}

    check_attention(q, k, v, operation="Attention", **options)
    o, lse = attention(q, k, v, **options, return_lse=True, backend=backend)
    with np.errstate(all="ignore"):
        scores = _qk_matmul_output(q, k, lse, mask, bias, cap, qk_matmul_output_mode)
        Y, scores = o.astype(Q.dtype), scores.astype(Q.dtype)
    if Q.ndim == 3:
        Y = Y.swapaxes(1, 2).reshape(*Q.shape[:2], -1)
    return Y, present_key, present_value, scores


def RotaryEmbedding(
    X: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Array:
    r"""Compute the operator RotaryEmbedding of ONNX opset 23: `refattn.rope`, with the angles' cos and sin as inputs.

    .. math::
        y_a = \cos \phi \, x_a - \sin \phi \, x_b, \quad y_b = \sin \phi \, x_a + \cos \phi \, x_b

    Parameters
    ----------
    X : array, (B, H, T, D) or (B, T, H·D)
        Queries or keys. 3-D needs `num_heads`.
    cos_cache, sin_cache : array, (max_position, R/2), or (B, T, R/2) without position_ids
        cos φ and sin φ of each position and pair, for the first R = `rotary_embedding_dim` dimensions (D if 0).
    position_ids : int array, (B, T), optional
        The row of the caches that each token takes.
    interleaved : int
        1 pairs dimensions (2n, 2n + 1) instead of (n, n + R/2).
    num_heads : int
        H of a 3-D input.
    rotary_embedding_dim : int
        R; the dimensions beyond stay as they are. 0 turns all D.

    Returns
    -------
    array
        Of the shape and dtype of X.

    Raises
    ------
    TypeError, ValueError, IndexError
        For what the schema or onnx's evaluator refuses, with their reason.

    Notes
    -----
    Different from `refattn.rope`: the angles come as caches (the base θ and every scaling are in them), 0 stands for
    "all dimensions", and heads may be folded into the last axis. It is elementwise, and takes no backend. 16-bit inputs
    are computed in float32 and rounded once, where the evaluator rounds each product.

    Examples
    --------
    >>> X, cos, sin = np.array([[[[1.0, 0.0]]]]), np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])
    >>> RotaryEmbedding(X, cos, sin, np.array([[1]])).ravel()  # row 1 of the caches: a quarter turn
    array([0., 1.])
    """
    check_rotary_node(**locals())
    compute = np.result_type(*(compute_dtype(x.dtype) for x in (X, cos_cache, sin_cache)))
    x = _split_heads(X, num_heads)  # (B, H, T, D)
    n = x.shape[-1] if rotary_embedding_dim == 0 else rotary_embedding_dim
    cos, sin = (cache if position_ids is None else cache[position_ids] for cache in (cos_cache, sin_cache))
    cos, sin = (angle.astype(compute)[:, None] for angle in (cos, sin))  # (B, 1, T, n/2)
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    x = x.astype(compute)
    y = x.copy()
    y[..., a], y[..., b] = cos * x[..., a] - sin * x[..., b], sin * x[..., a] + cos * x[..., b]
    y = y.swapaxes(1, 2).reshape(X.shape) if X.ndim == 3 else y
    return y.astype(X.dtype)


def _split_heads(x: Array, heads: Any) -> Array:
    """Return (B, T, heads·D) as (B, heads, T, D); 4-D as it is."""
    if x.ndim == 4:
        return x
    B, T, hidden = x.shape
    return x.reshape(B, T, heads, hidden // heads).swapaxes(1, 2)


def _given_mask(attn_mask: Array | None, Tk: int, compute: Any) -> tuple[Bools | None, Array | None]:
    """Return attn_mask as (which pairs may meet, what is added to their scores), padded to Tk keys that may not."""
    if attn_mask is None:
        return None, None
    missing = [(0, 0)] * (attn_mask.ndim - 1) + [(0, Tk - attn_mask.shape[-1])]
    if attn_mask.dtype == bool:
        return np.atleast_2d(np.pad(attn_mask, missing)), None
    bias = np.atleast_2d(np.pad(attn_mask.astype(compute), missing, constant_values=-np.inf))
    return ~np.isneginf(bias), bias


def _mask(
    seen: Bools | None, nonpad: Array | None, offset: Any, Tk: int, is_causal: int, left: int, right: int
) -> Mask | None:
    """Combine what hides keys: the given mask, the lengths, the causal limit, and the window at i + offset."""
    parts = [] if seen is None or seen.all() else [from_array(seen)]
    if nonpad is not None:
        parts.append(padding(np.clip(nonpad, 0, Tk)))
    if is_causal:
        parts.append(causal(offset))
    if left >= 0:
        parts.append(~causal(offset - left - 1))  # j > i + offset - left - 1
    if right >= 0:
        parts.append(causal(offset + right))
    return functools.reduce(operator.and_, parts) if parts else None


def _qk_matmul_output(
    q: Array, k: Array, lse: Array, mask: Mask | None, bias: Array | None, cap: float | None, mode: int
) -> Array:
    """Return the scores at the stage that `mode` names, or the weights."""
    s = q @ repeat_heads(k, q.shape[1]).swapaxes(-1, -2)  # (B, H, Tq, Tk)
    if mode == 0:
        return s
    s = s if cap is None else cap * np.tanh(s / cap)
    if mode == 1:
        return s
    visible = np.ones(s.shape, bool) if mask is None else np.broadcast_to(mask.dense(*s.shape[-2:]), s.shape)
    s = np.where(visible, s if bias is None else s + bias, -np.inf)
    return s if mode == 2 else np.where(visible, np.exp(s - lse[..., None]), 0)  # p_ij = e^(s_ij - lse_i)
