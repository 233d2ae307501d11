r"""How far a result may lie from the float64 reference: rounding errors of first order, carried through each operation.

No kernel can have a score :math:`s_{ij} = \sum_d q_{id} k_{jd}` to better than about eps times

.. math::
    c_{ij} = 1 + \text{scale} \sum_d |q_{id}| |k_{jd}| + |b_{ij}|

which the exponential turns into a relative error of the weight p_ij; the sums over keys and queries then add the errors
up, in absolute values. Each function here returns those sums in units of eps of the dtype of computation. The caller
grants `SLACK` times as much, for the order of summation and the last digits of exp and tanh, and half an eps of the
result's own dtype, for the one rounding at the end.

What nothing visible contributes to has the bound zero: a blind row is exactly 0.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import per_head, repeat_heads, sum_heads, sum_to, visible_pairs
from refattn.dense.multihead import _concat, _split
from refattn.gradients import AttentionGradients, MultiHeadGradients

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


def _size(x: Array) -> Array:
    return abs(finite(x))


def attention(eps: float, q: Array, k: Array, v: Array, *, return_lse: bool = True, **options: Any) -> Any:
    """Bound `attention` and its kin."""
    weights = Weights(q, k, **options)
    o = weights.forward(_size(v))
    return (o, weights.row[..., 0]) if return_lse else o


def attention_vjp(eps: float, do: Array, q: Array, k: Array, v: Array, *results: Array, **options: Any) -> Any:
    """Bound `attention_vjp` and `flash_attention_vjp`, which is given o and lse too."""
    weights = Weights(q, k, **options)
    extra = [options.get(name) for name in ("bias", "sinks", "dlse")]
    return weights.backward(_size(do), _size(q), _size(k), _size(v), *extra)


def merge_attention(eps: float, *parts: tuple[Array, Array], sinks: Array | None = None) -> tuple[Array, Array]:
    """Bound `merge_attention`."""
    lses = np.stack([lse for _, lse in parts])
    terms = lses if sinks is None else np.concatenate([lses, _like(per_head(sinks, parts[0][0].ndim)[..., 0], lses)])
    m = np.where(np.isneginf(terms.max(axis=0)), 0, terms.max(axis=0))
    l = np.exp(terms - m).sum(axis=0)
    weights = np.exp(terms - m) / np.where(l == 0, 1, l)
    lse_size = abs(m + np.log(np.where(l == 0, 1, l)))
    c = 1 + _size(terms) + lse_size
    o = sum(w[..., None] * _size(o_n) for w, (o_n, _) in zip(weights * c, parts, strict=False))
    return np.asarray(o), (weights * c).sum(axis=0) + lse_size


def _like(sinks: Array, lses: Array) -> Array:
    return np.broadcast_to(sinks, lses.shape[1:])[None]


def rope(eps: float, x: Array, positions: Array, **options: Any) -> Array:
    """Bound `rope` and `rope_vjp`: the angle is had in float64, whatever the dtype of x."""
    n = options.get("rotary_dim")
    n = x.shape[-1] if n is None else n
    halves = (slice(0, n, 2), slice(1, n, 2)) if options.get("interleaved") else (slice(0, n // 2), slice(n // 2, n))
    a, b = halves
    angle = abs(positions[..., None].astype(np.float64))
    angle = angle[..., None, :, :] if positions.ndim > 1 else angle
    bound = np.zeros(x.shape)
    bound[..., a] = bound[..., b] = (_size(x[..., a]) + _size(x[..., b])) * (1 + angle * np.finfo(np.float64).eps / eps)
    return bound


class _Projected:
    """The heads of one multi-head problem: their values, and their sizes with every product in absolute values."""

    def __init__(self, args: tuple[Array, ...], options: dict[str, Any]) -> None:
        x, w_q, w_k, w_v, _ = args
        context = options.get("context")
        self.source = x if context is None else context
        heads = options["heads"]
        kv_heads = options.get("kv_heads") or heads
        self.values, self.sizes = [], []
        for n, y, w, count in (
            ("q", x, w_q, heads),
            ("k", self.source, w_k, kv_heads),
            ("v", self.source, w_v, kv_heads),
        ):
            b = options.get(f"b_{n}")
            b = np.zeros(w.shape[1]) if b is None else b
            self.values.append(_split(y @ w + b, count))
            self.sizes.append(_split(abs(y) @ abs(w) + abs(b), count))
        scale = options.get("scale")
        scale = 1 / math.sqrt(self.values[0].shape[-1]) if scale is None else abs(scale)
        q, k = self.sizes[0], repeat_heads(self.sizes[1], heads)
        self.weights = Weights(*self.values[:2], size=scale * (q @ k.swapaxes(-1, -2)), **options)


def multi_head_attention(eps: float, *args: Array, **options: Any) -> Array:
    """Bound `multi_head_attention`."""
    projected, b_o = _Projected(args, options), options.get("b_o")
    o = _concat(projected.weights.forward(projected.sizes[2]))
    return o @ abs(args[4]) + (0 if b_o is None else abs(b_o))


def multi_head_attention_vjp(eps: float, do: Array, *args: Array, **options: Any) -> MultiHeadGradients:
    """Bound `multi_head_attention_vjp`."""
    projected = _Projected(args, options)
    x, w_q, w_k, w_v, w_o = (abs(a) for a in args)
    source, heads = abs(projected.source), options["heads"]
    do_heads, dw_o, db_o = _linear(abs(do), _concat(projected.weights.forward(projected.sizes[2])), w_o)
    q, k, v = projected.sizes
    g = projected.weights.backward(_split(do_heads, heads), q, k, v, options.get("bias"), options.get("sinks"), None)
    dx_q, dw_q, db_q = _linear(_concat(g.dq), x, w_q)
    dx_k, dw_k, db_k = _linear(_concat(g.dk), source, w_k)
    dx_v, dw_v, db_v = _linear(_concat(g.dv), source, w_v)
    own = options.get("context") is None
    dx, dcontext = (dx_q + dx_k + dx_v, None) if own else (dx_q, dx_k + dx_v)
    b_q, b_k, b_v, b_o = (
        None if options.get(name) is None else db
        for name, db in (("b_q", db_q), ("b_k", db_k), ("b_v", db_v), ("b_o", db_o))
    )
    return MultiHeadGradients(dx, dw_q, dw_k, dw_v, dw_o, b_q, b_k, b_v, b_o, dcontext, g.dbias, g.dsinks)


def _linear(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, rows.T @ drows, drows.sum(axis=0)


BOUNDS: dict[str, Callable[..., Any]] = {
    "attention": attention,
    "flash_attention": attention,
    "attention_split_kv": attention,
    "attention_vjp": attention_vjp,
    "flash_attention_vjp": attention_vjp,
    "merge_attention": merge_attention,
    "rope": rope,
    "rope_vjp": rope,
    "multi_head_attention": multi_head_attention,
    "multi_head_attention_vjp": multi_head_attention_vjp,
}
