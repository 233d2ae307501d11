"""How far sparse attention by position may lie from the reference: as far as attention under the mask of each form."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.dense.common import heads_of
from refattn.results import AttentionGradients, LongformerGradients
from refattn.testing.bounds.weights import Weights, size_of


def _heads(q: Array, per_head: bool) -> int | None:
    return heads_of(q) if per_head and q.ndim > 2 else None


def _random(q: Array, n_keys: int, seed: int = 0, per_head: bool = False, **_: Any) -> masks.Mask:
    return masks.random(n_keys, seed, _heads(q, per_head))


def _bigbird(
    q: Array,
    block_size: int,
    n_window: int = 3,
    global_blocks: Any = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    per_head: bool = False,
    **_: Any,
) -> masks.Mask:
    return masks.bigbird(block_size, n_window, global_blocks, n_random, seed, _heads(q, per_head))


MASKS: dict[str, Callable[..., Any]] = {
    "sparse_attention": lambda q, mask, **_: mask,
    "local_attention": lambda q, left, right, **_: masks.window(left, right),
    "dilated_attention": lambda q, window, step, **_: masks.dilated(window, step),
    "strided_attention": lambda q, local, stride, **_: masks.strided(local, stride),
    "fixed_attention": lambda q, block, summary, **_: masks.fixed(block, summary),
    "random_attention": _random,
    "global_attention": lambda q, indices, **_: masks.global_tokens(indices),
    "bigbird_attention": _bigbird,
    "block_sparse_attention": lambda q, layout, block_size, **_: masks.block(layout, block_size),
}


def _forward(name: str, eps: float, q: Array, k: Array, v: Array, *, return_lse: bool = False, **options: Any) -> Any:
    weights = Weights(q, k, **options | {"mask": MASKS[name](q, **options)})
    o = weights.forward(size_of(v))
    return (o, weights.row[..., 0]) if return_lse else o


def _backward(name: str, eps: float, do: Array, q: Array, k: Array, v: Array, **options: Any) -> AttentionGradients:
    weights = Weights(q, k, **options | {"mask": MASKS[name](q, **options)})
    extra = [options.get(name) for name in ("bias", "sinks", "dlse")]
    return weights.backward(size_of(do), size_of(q), size_of(k), size_of(v), *extra)


class _Longformer:
    """One problem in two parts: the queries that are not global, and those that are."""

    def __init__(self, q: Array, k: Array, v: Array, options: dict[str, Any]) -> None:
        indices = np.asarray(options.get("global_indices", ()), np.int64)
        Tq, Tk = q.shape[-2], k.shape[-2]
        position = np.arange(Tq) + Tk - Tq
        self.rows = np.flatnonzero(np.isin(position, indices))
        self.named = [int(np.flatnonzero(indices == position[i])[0]) for i in self.rows]
        own = {name: options.get(f"{name}_global") for name in "qkv"}
        self.q = q[..., self.rows, :] if own["q"] is None else own["q"][..., self.named, :]
        self.k, self.v = (k if own["k"] is None else own["k"]), (v if own["v"] is None else own["v"])
        mask = masks.longformer(options["window"], indices.tolist())
        visible = mask.dense(Tq, Tk) & ~np.isin(np.arange(Tq), self.rows)[:, None]
        options = {name: options[name] for name in ("scale", "softcap", "sinks") if name in options}
        self.ordinary = Weights(q, k, mask=visible, **options)
        self.special = Weights(self.q, self.k, **options)


def _longformer(eps: float, q: Array, k: Array, v: Array, *, return_lse: bool = False, **options: Any) -> Any:
    both = _Longformer(q, k, v, options)
    o, lse = both.ordinary.forward(size_of(v)), both.ordinary.row[..., 0]
    o[..., both.rows, :], lse[..., both.rows] = both.special.forward(size_of(both.v)), both.special.row[..., 0]
    return (o, lse) if return_lse else o


def _longformer_vjp(eps: float, do: Array, q: Array, k: Array, v: Array, **options: Any) -> LongformerGradients:
    both, sinks, dlse = _Longformer(q, k, v, options), options.get("sinks"), options.get("dlse")
    own = {name: options.get(f"{name}_global") for name in "qkv"}
    others = np.ones(q.shape[-2])
    others[both.rows] = 0  # their sinks stand in the other part
    a = both.ordinary.backward(
        size_of(do) * others[:, None],
        size_of(q),
        size_of(k),
        size_of(v),
        None,
        sinks,
        None if dlse is None else dlse * others,
    )
    b = both.special.backward(
        size_of(do[..., both.rows, :]),
        size_of(both.q),
        size_of(both.k),
        size_of(both.v),
        None,
        sinks,
        None if dlse is None else dlse[..., both.rows],
    )
    dq, dq_global = a.dq, None
    if own["q"] is None:
        dq[..., both.rows, :] = b.dq
    else:
        dq_global = np.zeros(own["q"].shape)
        dq_global[..., both.named, :] = b.dq
    return LongformerGradients(
        dq,
        a.dk + b.dk if own["k"] is None else a.dk,
        a.dv + b.dv if own["v"] is None else a.dv,
        dq_global,
        None if own["k"] is None else b.dk,
        None if own["v"] is None else b.dv,
        None if sinks is None or a.dsinks is None or b.dsinks is None else a.dsinks + b.dsinks,
    )


BOUNDS: dict[str, Callable[..., Any]] = {
    **{name: partial(_forward, name) for name in MASKS},
    **{f"{name}_vjp": partial(_backward, name) for name in MASKS},
    "longformer_attention": _longformer,
    "longformer_attention_vjp": _longformer_vjp,
}
