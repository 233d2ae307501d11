"""Attention whose scores are given: for libraries that change them in ways that no argument of `attention` has."""

import numpy as np

from refattn.arrays import Array
from refattn.dense.attention import attention


def softmax_of(s: Array, v: Array, backend: str) -> tuple[Array, Array]:
    """Return softmax(s) v and its lse for scores s (B, H, Tq, Tk) and v (B, H, Tk, Dv); a row of -inf is 0 / 0."""
    m = s.max(axis=-1)
    shift = np.where(np.isneginf(m), 0, m)  # keeps the scores that remain small: softmax(s) = softmax(s - m)
    zero = np.zeros((*s.shape[:2], sum(s.shape[2:]), 1), v.dtype)
    q, k = zero[:, :, : s.shape[2]], zero[:, :, s.shape[2] :]
    with np.errstate(invalid="ignore"):
        bias = s - shift[..., None]
    o, lse = attention(q, k, v, bias=bias, return_lse=True, backend=backend)
    return np.where(np.isneginf(m)[..., None], np.nan, o).astype(v.dtype), lse + shift
