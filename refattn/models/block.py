"""The block of the GPT: attention and a feed-forward network, and the same read backwards.

It is Llama's (Touvron et al., 2023, arXiv:2302.13971): RMSNorm before each half, rotary positions on queries and keys
(arXiv:2104.09864), key heads shared by groups of query heads (arXiv:2305.13245), SwiGLU.
"""

from collections import namedtuple

from refattn.arrays import Array
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.decode import KVCache
from refattn.dense.rope import rope, rope_vjp
from refattn.models.checkpoint import Config
from refattn.models.layers import (
    Tokens,
    linear,
    linear_vjp,
    merge_heads,
    rms_norm,
    rms_norm_vjp,
    split_heads,
    swiglu,
    swiglu_vjp,
)

Saved = namedtuple("Saved", "x h q k v o x_1 h_1 gate up")  # what `block` computed and `block_vjp` reads


def block(
    x: Array, w: dict[str, Array], config: Config, positions: Tokens, cache: KVCache | None = None
) -> tuple[Array, Saved]:
    """Add attention to the stream, then the feed-forward network, each on a normalised copy.

    Parameters
    ----------
    x : array, (..., T, E)
        The stream.
    w : dict of array
        The layer's parameters, by the last part of their names in `Config.shapes`.
    config : Config
    positions : int array, (T,)
    cache : KVCache, optional
        Holds what was before, and takes what is new.

    Returns
    -------
    x_2 : array, (..., T, E)
    saved : Saved
    """
    h = rms_norm(x, w["norm_1"])
    q = split_heads(linear(h, w["w_q"]), config.heads)  # (..., H, T, D)
    k = split_heads(linear(h, w["w_k"]), config.kv_heads)  # (..., Hk, T, D)
    v = split_heads(linear(h, w["w_v"]), config.kv_heads)
    q, k = (rope(y, positions, theta=config.theta) for y in (q, k))
    if cache is not None:
        k, v = cache.append(k, v)  # (..., Hk, past + T, D)
    o = merge_heads(attention(q, k, v, mask=config.mask))  # (..., T, H * D)
    x_1 = x + linear(o, w["w_o"])

    h_1 = rms_norm(x_1, w["norm_2"])
    gate, up = linear(h_1, w["w_gate"]), linear(h_1, w["w_up"])  # (..., T, F)
    x_2 = x_1 + linear(swiglu(gate, up), w["w_down"])
    return x_2, Saved(x, h, q, k, v, o, x_1, h_1, gate, up)


def block_vjp(
    dx_2: Array, saved: Saved, w: dict[str, Array], config: Config, positions: Tokens
) -> tuple[Array, dict[str, Array]]:
    """Pull the cotangent of `block`'s stream back to its input and its parameters; read it beside `block`, upwards.

    Returns
    -------
    dx : array, (..., T, E)
    dw : dict of array
        In the names of w.
    """
    x, h, q, k, v, o, x_1, h_1, gate, up = saved
    dw = {}
    dy, dw["w_down"] = linear_vjp(dx_2, swiglu(gate, up), w["w_down"])  # was: x_2 = x_1 + swiglu(gate, up) @ w_down
    dgate, dup = swiglu_vjp(dy, gate, up)
    dh_gate, dw["w_gate"] = linear_vjp(dgate, h_1, w["w_gate"])
    dh_up, dw["w_up"] = linear_vjp(dup, h_1, w["w_up"])
    dx_1, dw["norm_2"] = rms_norm_vjp(dh_gate + dh_up, x_1, w["norm_2"])
    dx_1 += dx_2

    do, dw["w_o"] = linear_vjp(dx_1, o, w["w_o"])  # was: x_1 = x + o @ w_o
    dq, dk, dv, *_ = attention_vjp(split_heads(do, config.heads), q, k, v, mask=config.mask)
    dq, dk = (rope_vjp(dy, positions, theta=config.theta) for dy in (dq, dk))
    dh_q, dw["w_q"] = linear_vjp(merge_heads(dq), h, w["w_q"])
    dh_k, dw["w_k"] = linear_vjp(merge_heads(dk), h, w["w_k"])
    dh_v, dw["w_v"] = linear_vjp(merge_heads(dv), h, w["w_v"])
    dx, dw["norm_1"] = rms_norm_vjp(dh_q + dh_k + dh_v, x, w["norm_1"])
    return dx + dx_1, dw
