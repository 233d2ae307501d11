"""The weights of softmax attention in float64, and how many eps each may be off: see `refattn.testing.bounds`."""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import per_head, repeat_heads, sum_heads, sum_to, visible_pairs
from refattn.results import AttentionGradients

SLACK = 8.0
UNDERFLOW = 1e-30  # times eps: what a weight below the smallest normal number may lose


class Weights:
    """The weights p of one problem in float64, and by how many eps each may be wrong."""

    def __init__(
        self,
        q: Array,
        k: Array,
        *,
        size: Array | None = None,
        mask: Any = None,
        bias: Array | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        dropout_mask: Any = None,
        dropout_p: float = 0.0,
        **_rest: Any,
    ) -> None:
        self.H: int = q.shape[-3] if q.ndim > 2 else 1
        self.Hk: int = k.shape[-3] if k.ndim > 2 else 1
        q, k = finite(q), finite(repeat_heads(k, self.H))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        self.scale = abs(scale)
        s = scale * (q @ k.swapaxes(-1, -2))
        size = self.scale * (abs(q) @ abs(k).swapaxes(-1, -2)) if size is None else size
        self.slope, self.slope_error = np.ones(()), np.zeros(())
        if softcap is not None:
            t = np.tanh(s / softcap)
            s, self.slope = softcap * t, 1 - t**2
            self.slope_error = 2 + 2 * abs(t) * self.slope * size / softcap
        c = 1 + size
        if bias is not None:
            s, c = s + np.where(np.isneginf(bias), -np.inf, finite(bias)), c + abs(finite(bias))
        s = np.where(visible_pairs(mask, s), s, -np.inf)
        sink = np.full((1, 1), -np.inf) if sinks is None else per_head(sinks, s.ndim)
        m = np.maximum(s.max(axis=-1, keepdims=True, initial=-np.inf), sink)
        m = np.where(np.isneginf(m), 0, m)
        p, p_sink = np.exp(s - m), np.exp(sink - m)
        l = p.sum(axis=-1, keepdims=True) + p_sink
        l = np.where(l == 0, 1, l)
        self.p, self.p_sink = p / l, p_sink / l
        c_sink = 1 + abs(finite(sink))
        self.row = (self.p * c).sum(axis=-1, keepdims=True) + self.p_sink * c_sink + abs(m + np.log(l))  # of lse
        self.p_error = self.p * (c + self.row) + np.where(np.isneginf(s), 0, UNDERFLOW)
        self.sink_error = self.p_sink * (c_sink + self.row)
        self.keep = np.ones(()) if dropout_mask is None else np.where(dropout_mask, 1 / (1 - dropout_p), 0)

    def forward(self, v: Array) -> Array:
        """Return the bound of o for values of absolute values `v`, (..., H, Tq, Dv)."""
        return (self.p_error * self.keep) @ repeat_heads(v, self.H)

    def backward(self, do: Array, q: Array, k: Array, v: Array, bias: Any, sinks: Any, dlse: Any) -> AttentionGradients:
        """Return the bounds of the gradients; every array is given in absolute values."""
        k, v = repeat_heads(k, self.H), repeat_heads(v, self.H)
        dp = do @ v.swapaxes(-1, -2) * self.keep
        dlse = np.zeros(()) if dlse is None else abs(dlse)[..., None]
        pull = (self.p * dp).sum(axis=-1, keepdims=True) + dlse
        pull_error = (self.p_error * dp).sum(axis=-1, keepdims=True) + pull
        ds = self.p_error * (dp + pull) + self.p * (dp + pull_error)
        product = self.scale * (self.slope * ds + self.slope_error * self.p * (dp + pull))
        dsinks = self.sink_error * pull + self.p_sink * pull_error  # (..., H, Tq, 1)
        dsinks = dsinks if dsinks.ndim > 2 else dsinks[None]
        return AttentionGradients(
            product @ k,
            sum_heads(product.swapaxes(-1, -2) @ q, self.Hk),
            sum_heads((self.p_error * self.keep).swapaxes(-1, -2) @ do, self.Hk),
            None if bias is None else sum_to(ds, bias.shape),
            None if sinks is None else sum_to(dsinks, (self.H, 1, 1)).reshape(self.H),
        )


def finite(x: Array) -> Array:
    """Return `x` with 0 for NaN and inf: where they are seen, there is no value to bound."""
    return np.where(np.isfinite(x), x, 0)


def size_of(x: Array) -> Array:
    """Return absolute values, 0 for NaN and inf."""
    return abs(finite(x))
