"""ONNX's operator FlexAttention, version 1 of the domain ai.onnx.preview, as released with onnx 1.23.

Attention whose scores and weights pass through subgraphs, after Dong et al., "Flex Attention", 2024, arXiv:2412.05496.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import check_attention, repeat_heads
from refattn.dialects.onnx_checks import DOUBLE, PRECISIONS
from refattn.dialects.scores import softmax_of

Modifier = Callable[[Array], Array]


def FlexAttention(
    Q: Array,
    K: Array,
    V: Array,
    *,
    prob_mod: Modifier | None = None,
    scale: float | None = None,
    score_mod: Modifier | None = None,
    softmax_precision: int | None = None,
    backend: str = "numpy",
) -> Array:
    r"""Compute the preview operator FlexAttention.

    .. math::
        Y = \text{prob\_mod}(\text{softmax}(\text{score\_mod}(\text{scale} \cdot Q K^T))) \, V

    Parameters
    ----------
    Q : array, (B, H, Tq, D)
        Queries.
    K, V : array, (B, Hk, Tk, D), (B, Hk, Tk, Dv)
        Keys and values, in the dtype of Q.
    prob_mod, score_mod : function, optional
        The subgraphs: each takes an array (B, H, Tq, Tk), float64 if Q or `softmax_precision` says so and else float32,
        and returns one of the same shape and dtype.
    scale : float, optional
        1 / sqrt(D) unless given.
    softmax_precision : int, optional
        1 float, 10 float16, 11 double, 16 bfloat16.
    backend : str
        Who computes the softmax, and without `prob_mod` the product with V; see `refattn.backends`.

    Returns
    -------
    array, (B, H, Tq, Dv)
        In the dtype of Q.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not fit, and for a subgraph's result of another shape or dtype.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.attention`: there is no mask. A `score_mod` that writes -inf hides a pair, but a query that
    sees nothing gets NaN, and NaN and infinities in hidden values spread, as 0 · NaN. No lse is returned. A scale below
    0 gives NaN, as in `Attention`.

    Not reproduced: precisions below float32.

    Examples
    --------
    >>> Q, K, V = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), np.array([[[[0.0], [4.0]]]])
    >>> FlexAttention(Q, K, V, score_mod=lambda s: np.where(np.tri(2, dtype=bool), s, -np.inf)).ravel()
    array([0., 2.])
    >>> FlexAttention(Q, K, V, prob_mod=lambda p: 3 * p).ravel()  # nobody normalises again
    array([6., 6.])
    """
    check_floats("FlexAttention", 4, Q=Q, K=K, V=V)
    check_attention(Q, K, V, scale=scale, operation="FlexAttention")
    if Q.ndim != 4:
        raise ValueError(f"FlexAttention: Q has {Q.ndim} axes; wanted 4")
    if softmax_precision is not None and softmax_precision not in PRECISIONS:
        raise ValueError(f"FlexAttention: softmax_precision is {softmax_precision!r}; wanted one of {PRECISIONS}")
    compute: Any = np.dtype(np.float64) if softmax_precision == DOUBLE else compute_dtype(Q.dtype)
    with np.errstate(all="ignore"):
        root = np.sqrt(compute.type(1 / math.sqrt(Q.shape[-1]) if scale is None else scale))
        q, k, v = Q.astype(compute) * root, K.astype(compute) * root, V.astype(compute)
        if score_mod is None and prob_mod is None:
            return attention(q, k, v, scale=1.0, backend=backend).astype(Q.dtype)
        k, v = repeat_heads(k, Q.shape[1]), repeat_heads(v, Q.shape[1])
        s = q @ k.swapaxes(-1, -2)
        s = s if score_mod is None else _modified("score_mod", score_mod, s)
        o, lse = softmax_of(s, v, backend)
        if prob_mod is not None:
            p = np.exp(s - lse[..., None])  # NaN where nothing is seen: e^(-inf + inf)
            o = _modified("prob_mod", prob_mod, p) @ v
        return o.astype(Q.dtype)


def _modified(name: str, modify: Modifier, x: Array) -> Array:
    """Return modify(x), which must look like x."""
    y = modify(x.copy())
    if getattr(y, "shape", None) != x.shape or y.dtype != x.dtype:
        got = f"{getattr(y, 'dtype', type(y).__name__)} {getattr(y, 'shape', '')}"
        raise ValueError(f"FlexAttention: {name} returned {got}; wanted {x.dtype} {x.shape}")
    return y
