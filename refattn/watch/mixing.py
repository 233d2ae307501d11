"""The halves of a layer, written with `call`: what mixes tokens, and the feed-forward network.

Softmax attention and MLA are here, with each product under the component that costs count it in; what keeps a state is
`refattn.models`'.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Call as Asked
from refattn.costs.mechanisms import GatedSoftmax, Softmax
from refattn.costs.receptance import Rwkv4, Rwkv6, Rwkv7
from refattn.costs.recurrent import DeltaNet, Gla
from refattn.costs.spaces import Mamba, Mamba2
from refattn.dense.attention import attention
from refattn.models import gated, mamba, rwkv
from refattn.models.elementwise import add, multiply, part, sigmoid
from refattn.models.layers import linear, merge_heads, rms_norm, split_heads, swiglu
from refattn.models.mixers import MIXERS
from refattn.models.norms import layer_norm
from refattn.models.tape import Call
from refattn.watch.clock import MIXING, inside
from refattn.watch.draw import Layer, Weights
from refattn.watch.functions import gelu, head_linear, join, rotate

if TYPE_CHECKING:
    from refattn.watch.network import Network


def normalise(x: Array, norm: tuple[Array, ...], eps: float, call: Call) -> Array:
    """Return `layer_norm` for a gain and a bias, `rms_norm` for a gain alone."""
    y: Array = inside(call, "norm")(layer_norm if len(norm) == 2 else rms_norm, x, *norm, eps)
    return y


class Pass(NamedTuple):
    """What all layers of one pass are told."""

    call: Call
    past: int
    """Tokens that the states hold."""
    asked: Asked
    """What is visible."""
    shared: dict[str, Array]
    """What layers hand on: the values of RWKV-7's first layer."""


def mix(h: Array, layer: Layer, net: "Network", state: Any, now: Pass) -> tuple[Array, Any]:
    """Mix tokens.

    Parameters
    ----------
    h : array, (..., T, d_model)
        The stream, normalised or not.
    layer : Layer
    net : Network
        Whose sizes these are.
    state : KVCache, state or None
        What the tokens before left; a cache takes the new keys and values.
    now : Pass

    Returns
    -------
    y : array, (..., T, d_model)
    state
        For the tokens that follow.
    """
    m, w, mechanism = net.sizes, layer.mixing, layer.mechanism
    if isinstance(mechanism, Latent):
        return _latent(h, w, mechanism, net, state, now), state
    if isinstance(mechanism, Softmax):
        return _softmax(h, w, mechanism, net, state, now), state
    f, given = _network_of(mechanism, m)
    if f is not None:
        given |= {"v_first": now.shared.get("v_first")} if "v_1" in w else {}
        y, state, *values = f(h, w, state, call=inside(now.call, MIXING), **given)
        for v in values:
            now.shared.setdefault("v_first", v)
        return y, state
    assert layer.config is not None
    return MIXERS[layer.config.mixer].mix(h, w, layer.config, state, inside(now.call, MIXING))


def _network_of(mechanism: Any, m: Any) -> tuple[Any, dict[str, Any]]:
    """Return the function of `refattn.models` that is a mechanism, and what it asks for; or None."""
    if isinstance(mechanism, Gla):
        return gated.gla, {"heads": m.heads}
    if isinstance(mechanism, DeltaNet):
        heads, value_heads, _, _ = mechanism.sizes(m)
        if mechanism.channelwise:
            return gated.kimi_delta, {"heads": heads}
        return gated.gated_deltanet, {"heads": heads, "value_heads": value_heads}
    if isinstance(mechanism, Mamba):
        return mamba.mamba, {}
    if isinstance(mechanism, Mamba2):
        return mamba.mamba2, {"groups": mechanism.groups}
    if isinstance(mechanism, Rwkv4):
        return rwkv.rwkv4_time_mix, {}
    if isinstance(mechanism, Rwkv6):
        return rwkv.rwkv6_time_mix, {"heads": m.heads}
    return (rwkv.rwkv7_time_mix, {"heads": m.heads}) if isinstance(mechanism, Rwkv7) else (None, {})


def _project(call: Call, x: Array, w: Weights, name: str) -> Array:
    y = call(linear, x, w[f"w_{name}"])
    return call(add, y, w[f"b_{name}"]) if f"b_{name}" in w else y


def _softmax(h: Array, w: Weights, mechanism: Softmax, net: "Network", cache: Any, now: Pass) -> Array:
    call, past = now.call, now.past
    m, project, other = net.sizes, inside(call, "projection"), inside(call, "other")
    q, k, v = (
        other(split_heads, _project(project, h, w, name), heads)
        for name, heads in (("q", m.heads), ("k", m.kv), ("v", m.kv))
    )
    if "norm_q" in w:
        q, k = (inside(call, "norm")(rms_norm, x, w[f"norm_{name}"], net.eps) for name, x in (("q", q), ("k", k)))
    if net.rotated:
        positions = past + np.arange(h.shape[-2])
        q, k = (inside(call, "rope")(rotate, x, positions, net.theta) for x in (q, k))
    if cache is not None:
        k, v = other(cache.append, k, v)
    o = inside(call, "attention")(attention, q, k, v, mask=mechanism.visible(now.asked))
    o = other(merge_heads, o)
    if isinstance(mechanism, GatedSoftmax):
        o = other(multiply, o, other(sigmoid, _project(project, h, w, "gate")))
    return _project(project, o, w, "o")


def _latent(h: Array, w: Weights, x: Latent, net: "Network", cache: Any, now: Pass) -> Array:
    call, past, asked = now.call, now.past, now.asked
    m, project, other, norm = net.sizes, inside(call, "projection"), inside(call, "other"), inside(call, "norm")
    q = h
    if x.q_rank is not None:
        q = norm(rms_norm, _project(project, h, w, "q_down"), w["norm_q"], net.eps)
    q = other(split_heads, _project(project, q, w, "q" if x.q_rank is None else "q_up"), m.heads)
    ends, positions = x.nope_dim + x.rope_dim, past + np.arange(h.shape[-2])
    q_nope, q_rope = other(part, q, 0, x.nope_dim), other(part, q, x.nope_dim, ends)
    latent = _project(project, h, w, "kv_down")
    c = norm(rms_norm, other(part, latent, 0, x.kv_rank), w["norm_kv"], net.eps)
    shared = other(split_heads, other(part, latent, x.kv_rank, x.kv_rank + x.rope_dim), 1)
    q_rope, k_rope = (inside(call, "rope")(rotate, y, positions, net.theta) for y in (q_rope, shared))
    c = other(split_heads, c, 1)  # (..., 1, T, c)
    if cache is not None:
        c, k_rope = other(cache.append, c, k_rope)
    attend, given = inside(call, "attention"), {"mask": x.visible(asked), "scale": 1 / math.sqrt(ends)}
    if x.is_absorbed(asked):
        up = w["w_kv_up"].reshape(x.kv_rank, m.heads, -1).swapaxes(0, 1)  # (H, c, dn + dv)
        q = other(join, project(head_linear, q_nope, up[..., : x.nope_dim].swapaxes(-1, -2)), q_rope)
        o = attend(attention, q, other(join, c, k_rope), c, **given)
        o = project(head_linear, o, up[..., x.nope_dim :])
    else:
        up = other(split_heads, _project(project, other(merge_heads, c), w, "kv_up"), m.heads)
        v = other(part, up, x.nope_dim, x.nope_dim + x.value_dim)
        k = other(join, other(part, up, 0, x.nope_dim), k_rope)
        o = attend(attention, other(join, q_nope, q_rope), k, v, **given)
    return _project(project, other(merge_heads, o), w, "o")


def feed(h: Array, layer: Layer, last: Array | None, call: Call) -> tuple[Array, Array | None]:
    """Apply the feed-forward network: SwiGLU, GELU, or a channel-mix of RWKV, which keeps the last row of h."""
    call, w = inside(call, "ffn"), layer.feed
    if isinstance(layer.mechanism, Rwkv7):
        return rwkv.rwkv7_channel_mix(h, w, last, call=call)
    if isinstance(layer.mechanism, Rwkv4 | Rwkv6):
        return rwkv.rwkv4_channel_mix(h, w, last, call=call)
    up = _project(call, h, w, "up")
    hidden = call(swiglu, _project(call, h, w, "gate"), up) if "w_gate" in w else call(gelu, up)
    return _project(call, hidden, w, "down"), None
