"""What may stand in a block of the `GPT` where attention stands: every operation of the linear-time family.

A mixer draws its parameters, and mixes tokens: ``mix(h, w, config, state, call)`` takes the normalised stream and the
state that the call before left, and returns what is added to the stream, and the state. `MIXERS` has them by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.arrays import Array
from refattn.linear.cosformer import cosformer_attention
from refattn.linear.delta_rule import delta_rule_chunked
from refattn.linear.gated_delta_rule import gated_delta_rule_chunked
from refattn.linear.gated_linear_attention import gated_linear_attention_chunked
from refattn.linear.hgrn2 import hgrn2_chunked
from refattn.linear.kda import kda_chunked
from refattn.linear.lightning import lightning_attention_chunked, lightning_log_decay
from refattn.linear.linear_attention import linear_attention_chunked
from refattn.linear.linformer import linformer_attention
from refattn.linear.nystrom import nystrom_attention
from refattn.linear.performer import performer_attention
from refattn.linear.random_features import draw_projection
from refattn.linear.retention import retention_chunked, retention_log_decay
from refattn.linear.simple_gla import simple_gla_chunked
from refattn.models import gated, mamba, rwkv
from refattn.models.draw import draw_matrix
from refattn.models.elementwise import add, log_sigmoid, multiply, sigmoid, swap, unit
from refattn.models.layers import linear, merge_heads, rms_norm, split_heads, swiglu
from refattn.models.norms import minus_exp, scaled
from refattn.models.tape import Call, direct
from refattn.rwkv.rwkv5 import rwkv5_chunked
from refattn.ssm.causal_conv1d import causal_conv1d
from refattn.ssm.s4d import s4d

if TYPE_CHECKING:
    from refattn.models.checkpoint import Config

Weights = dict[str, Array]
Mixed = tuple[Array, Any]


@dataclass(frozen=True)
class Mixer:
    """One way to mix tokens."""

    draw: Callable[[np.random.Generator, "Config"], Weights]
    """Return first parameters."""
    mix: Callable[..., Mixed]
    """(h, w, config, state, call) -> (y, state)."""
    causal: bool = True
    """Whether a token sees only those before it; the others need the tokens of a context all at once."""


def block(x: Array, w: Weights, config: "Config", state: Any = None, *, call: Call = direct) -> Mixed:
    """Add the mixer's result to the stream, then the feed-forward network's, each of a normalised copy.

    Parameters
    ----------
    x : array, (..., T, E)
        The stream.
    w : dict of array
        The layer's parameters, by the last part of their names in `Config.shapes`.
    config : Config
        Whose `mixer` says which.
    state : optional
        What the call before returned.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    x_2 : array, (..., T, E)
    state
    """
    h = call(rms_norm, x, w["norm_1"])
    y, state = MIXERS[config.mixer].mix(h, w, config, state, call)
    x_1 = call(add, x, y)
    h_1 = call(rms_norm, x_1, w["norm_2"])
    hidden = call(swiglu, call(linear, h_1, w["w_gate"]), call(linear, h_1, w["w_up"]))
    return call(add, x_1, call(linear, hidden, w["w_down"])), state


def _draw_heads(rng: np.random.Generator, config: "Config", gates: tuple[str, ...] = ()) -> Weights:
    """Return matrices for q, k, v and the output, a norm of heads, and of each gate a matrix and a bias."""
    E, HD = config.width, config.heads * config.head_dim
    w = {name: draw_matrix(rng, E, HD) for name in ("w_q", "w_k", "w_v")} | {"w_o": draw_matrix(rng, HD, E)}
    w["norm_o"] = np.ones(config.head_dim)
    for gate in gates:
        columns = HD if gate == "key_gate" else config.heads
        w |= {gate: draw_matrix(rng, E, columns), f"{gate}_b": np.full(columns, 0.0 if gate == "beta" else 3.0)}
    return w


def _gate(call: Call, h: Array, w: Weights, name: str, heads: int) -> Array:
    """Return a log-decay per head (..., H, T) or per key (..., H, T, D), or beta (..., H, T)."""
    x = call(add, call(linear, h, w[name]), w[f"{name}_b"])
    if name == "beta":
        return call(swap, call(sigmoid, x))
    g = call(log_sigmoid, x)
    return call(swap, g) if name == "head_gate" else call(split_heads, g, heads)


def _attend(
    h: Array, w: Weights, config: "Config", state: Any, call: Call, *, operation: Any, gates: tuple[str, ...] = (),
    given: Callable[["Config", Any], dict[str, Any]] = lambda config, dtype: {}, constant: Any = None,
    own: tuple[str, ...] = (), keeps: bool = True, short: bool = False,
) -> Mixed:  # fmt: skip
    """Mix by an operation on q, k and v: its gates, what is constant, and parameters of its own after them."""
    q, k, v = (call(split_heads, call(linear, h, w[name]), config.heads) for name in ("w_q", "w_k", "w_v"))
    k = call(unit, k) if short else k
    arguments = [_gate(call, h, w, gate, config.heads) for gate in gates]
    arguments += [] if constant is None else [constant(config).astype(h.dtype)]
    arguments += [w[name] for name in own]
    keywords = given(config, h.dtype) | ({"initial_state": state} if keeps else {})
    result = call(operation, q, k, v, *arguments, **keywords)
    o, state = result if keeps else (result, None)
    o = call(merge_heads, call(rms_norm, o, w["norm_o"]))
    return call(linear, o, w["w_o"]), state


def _heads(operation: Any, gates: tuple[str, ...] = (), *, causal: bool = True, **more: Any) -> Mixer:
    return Mixer(partial(_draw_heads, gates=gates), partial(_attend, operation=operation, gates=gates, **more), causal)


def _draw_performer(rng: np.random.Generator, config: "Config") -> Weights:
    return _draw_heads(rng, config) | {"projection": draw_projection(2 * config.head_dim, config.head_dim)}


def _draw_linformer(rng: np.random.Generator, config: "Config") -> Weights:
    T = config.context
    return _draw_heads(rng, config) | {"e": draw_matrix(rng, T, T // 4).T, "f": draw_matrix(rng, T, T // 4).T}


def _draw_hgrn2(rng: np.random.Generator, config: "Config") -> Weights:
    w = _draw_heads(rng, config, ("key_gate",))
    return {name: x for name, x in w.items() if name != "w_k"}  # the gate makes the keys


def _hgrn2(h: Array, w: Weights, config: "Config", state: Any, call: Call) -> Mixed:
    q, v = (call(split_heads, call(linear, h, w[name]), config.heads) for name in ("w_q", "w_v"))
    o, state = call(hgrn2_chunked, q, _gate(call, h, w, "key_gate", config.heads), v, initial_state=state)
    o = call(merge_heads, call(rms_norm, o, w["norm_o"]))
    return call(linear, o, w["w_o"]), state


def _draw_channels(rng: np.random.Generator, config: "Config") -> Weights:
    E, N = config.width, 16
    return {
        "w_in": draw_matrix(rng, E, E),
        "delta_log": np.log(rng.uniform(0.01, 0.1, E)),
        "A_log": np.full((E, N), np.log(0.5)),
        "A_imag": np.tile(np.pi * np.arange(N), (E, 1)),
        "C_real": rng.normal(0, N**-0.5, (E, N)),
        "C_imag": rng.normal(0, N**-0.5, (E, N)),
        "D": np.ones(E),
        "w_o": draw_matrix(rng, E, E),
    }


def _s4d(h: Array, w: Weights, config: "Config", state: Any, call: Call) -> Mixed:
    u, delta = call(linear, h, w["w_in"]), call(scaled, call(minus_exp, w["delta_log"]), -1.0)
    A = call(minus_exp, w["A_log"])
    y, state = call(s4d, u, delta, A, w["A_imag"], w["C_real"], w["C_imag"], D=w["D"], initial_state=state)
    return call(linear, y, w["w_o"]), state


def _draw_conv(rng: np.random.Generator, config: "Config") -> Weights:
    E = config.width
    return {
        "w_in": draw_matrix(rng, E, E),
        "taps": draw_matrix(rng, E, 4) * 8,
        "bias": np.zeros(E),
        "w_o": draw_matrix(rng, E, E),
    }


def _conv(h: Array, w: Weights, config: "Config", state: Any, call: Call) -> Mixed:
    u = call(linear, h, w["w_in"])
    y, state = call(causal_conv1d, u, w["taps"], w["bias"], activation="silu", initial_state=state)
    return call(linear, call(multiply, y, u), w["w_o"]), state


def _draw_rwkv4(rng: np.random.Generator, config: "Config") -> Weights:
    E = config.width
    w = {f"mix_{n}": np.linspace(1, 0, E) for n in "kvr"} | {f"w_{n}": draw_matrix(rng, E, E) for n in "kvro"}
    return w | {"decay": np.linspace(-5, 3, E), "first": np.full(E, np.log(0.3))}


def _draw_rwkv5(rng: np.random.Generator, config: "Config") -> Weights:
    H, D = config.heads, config.head_dim
    return _draw_heads(rng, config) | {"decay": np.tile(np.linspace(-5, 1, D), (H, 1)), "bonus": np.zeros((H, D))}


def _rwkv5(h: Array, w: Weights, config: "Config", state: Any, call: Call) -> Mixed:
    r, k, v = (call(split_heads, call(linear, h, w[name]), config.heads) for name in ("w_q", "w_k", "w_v"))
    o, state = call(rwkv5_chunked, r, k, v, call(minus_exp, w["decay"]), w["bonus"], initial_state=state)
    o = call(merge_heads, call(rms_norm, o, w["norm_o"]))
    return call(linear, o, w["w_o"]), state


def _whole(f: Any, draw: Any, **sizes: Callable[["Config"], Any]) -> Mixer:
    """Return a mixer that is a network's own, with the sizes that it asks for."""

    def mix(h: Array, w: Weights, config: "Config", state: Any, call: Call) -> Mixed:
        y, state, *_ = f(h, w, state, call=call, **{name: size(config) for name, size in sizes.items()})
        return y, state

    return Mixer(draw, mix)


MIXERS: dict[str, Mixer] = {
    "linear_attention": _heads(linear_attention_chunked),
    "performer_attention": Mixer(_draw_performer, partial(_attend, operation=performer_attention, own=("projection",))),
    "cosformer_attention": _heads(cosformer_attention, given=lambda config, dtype: {"length": config.context}),
    "linformer_attention": Mixer(
        _draw_linformer, partial(_attend, operation=linformer_attention, own=("e", "f"), keeps=False), causal=False
    ),
    "nystrom_attention": _heads(
        nystrom_attention, causal=False, given=lambda config, dtype: {"landmarks": 8}, keeps=False
    ),
    "retention": _heads(retention_chunked, constant=lambda c: retention_log_decay(c.heads)),
    "lightning_attention": _heads(
        lightning_attention_chunked,
        constant=lambda c: lightning_log_decay(c.heads, 0, c.layers),
    ),
    "simple_gla": _heads(simple_gla_chunked, ("head_gate",)),
    "gated_linear_attention": _heads(gated_linear_attention_chunked, ("key_gate",)),
    "gla": _whole(gated.gla, lambda rng, c: gated.gla_parameters(rng, c.width, heads=c.heads), heads=lambda c: c.heads),
    "hgrn2": Mixer(_draw_hgrn2, _hgrn2),
    "delta_rule": _heads(delta_rule_chunked, ("beta",), short=True),
    "gated_delta_rule": _heads(gated_delta_rule_chunked, ("head_gate", "beta"), short=True),
    "gated_deltanet": _whole(
        gated.gated_deltanet,
        lambda rng, c: gated.gated_deltanet_parameters(rng, c.width, heads=c.heads, value_heads=c.heads),
        heads=lambda c: c.heads,
        value_heads=lambda c: c.heads,
    ),
    "kda": _heads(kda_chunked, ("key_gate", "beta"), short=True),
    "s4d": Mixer(_draw_channels, _s4d),
    "causal_conv1d": Mixer(_draw_conv, _conv),
    "mamba": _whole(mamba.mamba, lambda rng, c: mamba.mamba_parameters(rng, c.width)),
    "mamba2": _whole(mamba.mamba2, lambda rng, c: mamba.mamba2_parameters(rng, c.width, heads=c.heads)),
    "rwkv4": _whole(rwkv.rwkv4_time_mix, _draw_rwkv4),
    "rwkv5": Mixer(_draw_rwkv5, _rwkv5),
    "rwkv6": _whole(
        rwkv.rwkv6_time_mix,
        lambda rng, c: rwkv.rwkv6_parameters(rng, c.width, heads=c.heads),
        heads=lambda c: c.heads,
    ),
    "rwkv7": _whole(
        rwkv.rwkv7_time_mix,
        lambda rng, c: rwkv.rwkv7_parameters(rng, c.width, heads=c.heads),
        heads=lambda c: c.heads,
    ),
}
"""By the name that `Config.mixer` gives; "attention" is the GPT's own block."""
