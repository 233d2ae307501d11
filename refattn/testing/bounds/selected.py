"""How far attention to keys that are chosen by content may lie from the reference: the choice itself not at all."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import heads_of, repeat_heads
from refattn.masks import causal
from refattn.results import LshAttention, NsaAttention, SelectedAttention
from refattn.sparse.lsh import lsh_attention as lsh
from refattn.sparse.moba import moba_attention as moba
from refattn.sparse.nsa import compress
from refattn.sparse.nsa import nsa_attention as nsa
from refattn.sparse.select import Indices, selected_keys
from refattn.sparse.topk import topk_attention as topk
from refattn.testing.bounds.weights import Weights, finite, size_of


def topk_attention(eps: float, q: Array, k: Array, v: Array, **options: Any) -> SelectedAttention:
    """Bound `topk_attention`: dense attention under the mask of what was chosen."""
    indices = topk(q, k, v, **options, backend="numpy").indices
    weights = Weights(q, k, **(options | {"mask": selected_keys(indices, k.shape[-2])}))
    return SelectedAttention(weights.forward(size_of(v)), weights.row[..., 0], np.zeros(indices.shape))


def moba_attention(eps: float, q: Array, k: Array, v: Array, *, chunk: int, **options: Any) -> SelectedAttention:
    """Bound `moba_attention`, in the same way."""
    indices = moba(q, k, v, chunk=chunk, **options, backend="numpy").indices
    weights = Weights(q, k, mask=_blocks(indices, q, k, chunk), scale=options.get("scale"))
    return SelectedAttention(weights.forward(size_of(v)), weights.row[..., 0], np.zeros(indices.shape))


def nsa_attention(eps: float, q: Array, k: Array, v: Array, gates: Array, **options: Any) -> NsaAttention:
    """Bound `nsa_attention`: the sum of its branches, each weighed by its gate."""
    indices = nsa(q, k, v, gates, **options, backend="numpy").indices
    H, Tq, Tk, scale = heads_of(q), q.shape[-2], k.shape[-2], options.get("scale")
    k_selected, v_selected, k_window, v_window = (
        x if options.get(name) is None else options[name]
        for name, x in (("k_selected", k), ("v_selected", v), ("k_window", k), ("v_window", v))
    )
    position = np.arange(Tq)[:, None] + (Tk - Tq)
    block, stride = options["block_size"], options["stride"]
    compressed = compress(finite(k), options.get("w_k"), block, stride)
    size_k, size_v = (
        compress(size_of(x), None if w is None else abs(w), block, stride)
        for x, w in ((k, options.get("w_k")), (v, options.get("w_v")))
    )
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else abs(scale)
    size = 2 * factor * (size_of(q) @ repeat_heads(size_k, H).swapaxes(-1, -2))  # the mean is rounded, too
    visible = np.arange(size_k.shape[-2]) * stride + block - 1 <= position
    back = position - np.arange(Tk)
    window = (back >= 0) & (back < options["window"])
    chosen = _blocks(repeat_heads(indices, H), q, k, options["select_block"])
    branches = [
        Weights(q, compressed, size=size, mask=visible, scale=scale),
        Weights(q, k_selected, mask=chosen, scale=scale),
        Weights(q, k_window, mask=window, scale=scale),
    ]
    values = (2 * size_v, size_of(v_selected), size_of(v_window))
    o = sum(size_of(gates)[..., c, None] * w.forward(values[c]) for c, w in enumerate(branches))
    return NsaAttention(np.asarray(o), np.stack([w.row[..., 0] for w in branches], -1), np.zeros(indices.shape))


def lsh_attention(eps: float, qk: Array, v: Array, *, chunk: int, causal: bool = True, **options: Any) -> LshAttention:
    """Bound `lsh_attention`: dense attention to the tokens that are near in some round."""
    buckets = lsh(qk, v, chunk=chunk, causal=causal, **options, backend="numpy").buckets
    cells = np.argsort(np.argsort(buckets, axis=-1, kind="stable"), axis=-1) // chunk  # (..., rounds, T)
    back = cells[..., :, None] - cells[..., None, :]
    near = (buckets[..., :, None] == buckets[..., None, :]) & (back >= 0) & (back <= 1)
    T = qk.shape[-2]
    seen = near.any(axis=-3) & ~np.eye(T, dtype=bool) & (np.tri(T, dtype=bool) | (not causal))
    seen = seen | (~seen.any(axis=-1, keepdims=True) & np.eye(T, dtype=bool))
    q = finite(qk)
    norm = np.sqrt((q * q).sum(axis=-1, keepdims=True))
    k = q / np.where(norm == 0, 1, norm)
    scale = 1 / math.sqrt(q.shape[-1]) if options.get("scale") is None else options["scale"]
    size = 2 * abs(scale) * (abs(q) @ abs(k).swapaxes(-1, -2))  # the key is rounded, too
    weights = Weights(q, k, size=size, mask=seen, scale=scale)
    return LshAttention(weights.forward(size_of(v)), weights.row[..., 0], np.zeros(buckets.shape))


def _blocks(indices: Indices, q: Array, k: Array, size: int) -> Any:
    """Return which keys of the chosen blocks each query sees."""
    return selected_keys(indices, k.shape[-2], size=size) & causal().dense(q.shape[-2], k.shape[-2])


BOUNDS: dict[str, Callable[..., Any]] = {
    "topk_attention": topk_attention,
    "moba_attention": moba_attention,
    "nsa_attention": nsa_attention,
    "lsh_attention": lsh_attention,
}
