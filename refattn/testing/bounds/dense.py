"""How far dense attention and what belongs to it may lie from the reference."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import per_head, repeat_heads
from refattn.dense.multihead import concat_heads, split_heads
from refattn.results import MultiHeadGradients
from refattn.testing.bounds.weights import Weights, size_of


def attention(eps: float, q: Array, k: Array, v: Array, *, return_lse: bool = True, **options: Any) -> Any:
    """Bound `attention` and its kin."""
    weights = Weights(q, k, **options)
    o = weights.forward(size_of(v))
    return (o, weights.row[..., 0]) if return_lse else o


def attention_vjp(eps: float, do: Array, q: Array, k: Array, v: Array, *results: Array, **options: Any) -> Any:
    """Bound `attention_vjp` and `flash_attention_vjp`, which is given o and lse too."""
    weights = Weights(q, k, **options)
    extra = [options.get(name) for name in ("bias", "sinks", "dlse")]
    return weights.backward(size_of(do), size_of(q), size_of(k), size_of(v), *extra)


def merge_attention(eps: float, *parts: tuple[Array, Array], sinks: Array | None = None) -> tuple[Array, Array]:
    """Bound `merge_attention`."""
    lses = np.stack([lse for _, lse in parts])
    terms = lses if sinks is None else np.concatenate([lses, _like(per_head(sinks, parts[0][0].ndim)[..., 0], lses)])
    m = np.where(np.isneginf(terms.max(axis=0)), 0, terms.max(axis=0))
    l = np.exp(terms - m).sum(axis=0)
    weights = np.exp(terms - m) / np.where(l == 0, 1, l)
    lse_size = abs(m + np.log(np.where(l == 0, 1, l)))
    c = 1 + size_of(terms) + lse_size
    o = sum(w[..., None] * size_of(o_n) for w, (o_n, _) in zip(weights * c, parts, strict=False))
    return np.asarray(o), (weights * c).sum(axis=0) + lse_size


def _like(sinks: Array, lses: Array) -> Array:
    return np.broadcast_to(sinks, lses.shape[1:])[None]


def rope(eps: float, x: Array, positions: Array, **options: Any) -> Array:
    """Bound `rope` and `rope_vjp`: the angle is had in float64, whatever the dtype of x."""
    n = options.get("rotary_dim")
    n = x.shape[-1] if n is None else n
    halves = (slice(0, n, 2), slice(1, n, 2)) if options.get("interleaved") else (slice(0, n // 2), slice(n // 2, n))
    a, b = halves
    fastest = 1.0 if options.get("frequencies") is None else abs(options["frequencies"]).max(initial=0)
    angle = abs(positions[..., None].astype(np.float64)) * fastest
    angle = angle[..., None, :, :] if positions.ndim > 1 else angle
    bound = np.zeros(x.shape)
    turned = 1 + angle * np.finfo(np.float64).eps / eps
    bound[..., a] = bound[..., b] = (size_of(x[..., a]) + size_of(x[..., b])) * turned
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
            self.values.append(split_heads(y @ w + b, count))
            self.sizes.append(split_heads(abs(y) @ abs(w) + abs(b), count))
        scale = options.get("scale")
        scale = 1 / math.sqrt(self.values[0].shape[-1]) if scale is None else abs(scale)
        q, k = self.sizes[0], repeat_heads(self.sizes[1], heads)
        self.weights = Weights(*self.values[:2], size=scale * (q @ k.swapaxes(-1, -2)), **options)


def multi_head_attention(eps: float, *args: Array, **options: Any) -> Array:
    """Bound `multi_head_attention`."""
    projected, b_o = _Projected(args, options), options.get("b_o")
    o = concat_heads(projected.weights.forward(projected.sizes[2]))
    return o @ abs(args[4]) + (0 if b_o is None else abs(b_o))


def multi_head_attention_vjp(eps: float, do: Array, *args: Array, **options: Any) -> MultiHeadGradients:
    """Bound `multi_head_attention_vjp`."""
    projected = _Projected(args, options)
    x, w_q, w_k, w_v, w_o = (abs(a) for a in args)
    source, heads = abs(projected.source), options["heads"]
    do_heads, dw_o, db_o = _linear(abs(do), concat_heads(projected.weights.forward(projected.sizes[2])), w_o)
    q, k, v = projected.sizes
    g = projected.weights.backward(
        split_heads(do_heads, heads), q, k, v, options.get("bias"), options.get("sinks"), None
    )
    dx_q, dw_q, db_q = _linear(concat_heads(g.dq), x, w_q)
    dx_k, dw_k, db_k = _linear(concat_heads(g.dk), source, w_k)
    dx_v, dw_v, db_v = _linear(concat_heads(g.dv), source, w_v)
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
