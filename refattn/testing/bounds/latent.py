"""How far latent attention (MLA) may lie from the reference, in the absorbed form and the expanded one.

In absolute values both are the same sums, in another order: a score has Σ |q_nope| |w_uk| |c_kv| + Σ |q_rope| |k_rope|.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.mla import expand, sum_batch
from refattn.results import LatentGradients
from refattn.testing.bounds.weights import Weights, finite, size_of


class _Expanded:
    """The heads of one problem: their weights, and the sizes of q, k and v with every product in absolute values."""

    def __init__(self, *args: Array, scale: float | None = None, **options: Any) -> None:
        q, k, _ = expand(*(finite(x) for x in args))
        self.q, self.k, self.v = expand(*(size_of(x) for x in args))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        size = abs(scale) * (self.q @ self.k.swapaxes(-1, -2))
        self.weights = Weights(q, k, size=size, scale=scale, **options)


def mla_attention(eps: float, *args: Array, return_lse: bool = False, **options: Any) -> Any:
    """Bound `mla_attention` and `mla_attention_expanded`."""
    heads = _Expanded(*args, **options)
    o = heads.weights.forward(heads.v)
    return (o, heads.weights.row[..., 0]) if return_lse else o


def mla_attention_vjp(
    eps: float, do: Array, *args: Array, dlse: Array | None = None, **options: Any
) -> LatentGradients:
    """Bound `mla_attention_vjp`."""
    heads, Dn = _Expanded(*args, **options), args[0].shape[-1]
    c, w_uk, w_uv = size_of(args[2])[..., None, :, :], size_of(args[4]), size_of(args[5])
    g = heads.weights.backward(size_of(do), heads.q, heads.k, heads.v, None, None, dlse)
    dk_nope, dk_rope = g.dk[..., :Dn], g.dk[..., Dn:]
    return LatentGradients(
        g.dq[..., :Dn],
        g.dq[..., Dn:],
        (dk_nope @ w_uk.swapaxes(-1, -2) + g.dv @ w_uv.swapaxes(-1, -2)).sum(axis=-3),
        dk_rope.sum(axis=-3),
        sum_batch(np.asarray(c.swapaxes(-1, -2) @ dk_nope)),
        sum_batch(np.asarray(c.swapaxes(-1, -2) @ g.dv)),
    )


BOUNDS: dict[str, Callable[..., Any]] = {
    "mla_attention": mla_attention,
    "mla_attention_expanded": mla_attention,
    "mla_attention_vjp": mla_attention_vjp,
}
