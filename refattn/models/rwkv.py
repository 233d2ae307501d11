"""The halves of an RWKV block: time-mix, a recurrence, and channel-mix, a feed-forward network that sees a token back.

Peng et al., 2023, arXiv:2305.13048, section 3 (RWKV-4); 2024, arXiv:2404.05892, section 4 (RWKV-6); 2025,
arXiv:2503.14456, section 4 (RWKV-7, whose letters are in `rwkv7_time_mix`). Each function takes a sequence of any
length and the state that the one before left: a prompt and a step of decoding are the same call.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.models.draw import draw_matrix
from refattn.models.elementwise import add, multiply, shift, sigmoid, silu, tanh, unit
from refattn.models.layers import linear, merge_heads, split_heads
from refattn.models.norms import group_norm, lerp, minus_exp, relu_squared, row_sum, scaled
from refattn.models.tape import Call, direct
from refattn.rwkv.rwkv4 import rwkv4_recurrent
from refattn.rwkv.rwkv6 import rwkv6_chunked
from refattn.rwkv.rwkv7 import rwkv7_chunked

Weights = dict[str, Array]
EPS = 64e-5  # of the norm over each head in RWKV-6 and -7


class TimeState(NamedTuple):
    """What a time-mix keeps between calls."""

    last: Array
    """The last row of its input, (..., M)."""
    wkv: Any
    """The state of the recurrence."""


def _previous(call: Call, x: Array, last: Array | None) -> tuple[Array, Array]:
    """Return the token before each, and the last one."""
    first = np.zeros_like(x[..., 0, :]) if last is None else last
    return call(shift, x, first), x[..., -1, :].copy()


def rwkv4_time_mix(
    x: Array, w: Weights, state: TimeState | None = None, *, call: Call = direct
) -> tuple[Array, TimeState]:
    """Mix tokens as RWKV-4 does.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream; T is 1 at least.
    w : dict of array
        mix_k, mix_v, mix_r (M,): how much of the token before; w_k, w_v, w_r (M, E), w_o (E, M); decay, first (E,): the
        logarithm of the rate w, and the bonus u.
    state : TimeState, optional
        What the call before returned.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : TimeState
    """
    last, wkv = (None, None) if state is None else state
    before, last = _previous(call, x, last)
    k, v, r = (call(linear, call(lerp, x, before, w[f"mix_{n}"]), w[f"w_{n}"]) for n in "kvr")
    rate = call(scaled, call(minus_exp, w["decay"]), -1.0)
    o, wkv = call(rwkv4_recurrent, rate, w["first"], k, v, initial_state=wkv)
    return call(linear, call(multiply, call(sigmoid, r), o), w["w_o"]), TimeState(last, wkv)


def rwkv4_channel_mix(x: Array, w: Weights, last: Array | None = None, *, call: Call = direct) -> tuple[Array, Array]:
    """Mix channels as RWKV-4 and RWKV-6 do.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream; T is 1 at least.
    w : dict of array
        mix_k, mix_r (M,), w_k (M, F), w_v (F, M), w_r (M, M).
    last : array, (..., M), optional
        The last row of the input before.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    last : array, (..., M)
    """
    before, last = _previous(call, x, last)
    k, r = (call(linear, call(lerp, x, before, w[f"mix_{n}"]), w[f"w_{n}"]) for n in "kr")
    return call(multiply, call(sigmoid, r), call(linear, call(relu_squared, k), w["w_v"])), last


def rwkv4_from_transformers(tensors: Weights, prefix: str = "") -> Weights:
    """Return the parameters of either half from the state dict of a RwkvSelfAttention or RwkvFeedForward."""
    found = {}
    for n, name in (("k", "key"), ("v", "value"), ("r", "receptance"), ("o", "output")):
        if f"{prefix}{name}.weight" in tensors:
            found[f"w_{n}"] = tensors[f"{prefix}{name}.weight"].T
        if f"{prefix}time_mix_{name}" in tensors:
            found[f"mix_{n}"] = 1 - tensors[f"{prefix}time_mix_{name}"].reshape(-1)  # theirs: of the token itself
    for ours, theirs in (("decay", "time_decay"), ("first", "time_first")):
        if prefix + theirs in tensors:
            found[ours] = tensors[prefix + theirs]
    return found


def rwkv6_time_mix(
    x: Array, w: Weights, state: TimeState | None = None, *, heads: int, call: Call = direct
) -> tuple[Array, TimeState]:
    """Mix tokens as RWKV-6 does: how much of the token before, and how much is forgotten, depends on the token.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream; T is 1 at least.
    w : dict of array
        mix_x (M,); of each n in k, v, r, g, w: mix_n (M,), mix_n1 (M, R), mix_n2 (R, M); w_k, w_v, w_r, w_g and
        w_o (M, M); decay (M,), decay_1 (M, R'), decay_2 (R', M); u (H, D); norm, norm_b (M,).
    state : TimeState, optional
        What the call before returned.
    heads : int
        H; D = M / H.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : TimeState
    """
    last, wkv = (None, None) if state is None else state
    before, last = _previous(call, x, last)
    mixed = call(lerp, x, before, w["mix_x"])

    def token(n: str) -> Array:
        low = call(linear, call(tanh, call(linear, mixed, w[f"mix_{n}1"])), w[f"mix_{n}2"])
        return call(lerp, x, before, call(add, low, w[f"mix_{n}"]))  # ddlerp, eq. 14

    r, k, v, g = (call(linear, token(n), w[f"w_{n}"]) for n in "rkvg")
    low = call(linear, call(tanh, call(linear, token("w"), w["decay_1"])), w["decay_2"])
    decay = call(minus_exp, call(add, low, w["decay"]))
    r, k, v, decay = (call(split_heads, y, heads) for y in (r, k, v, decay))
    o, wkv = call(rwkv6_chunked, r, k, v, decay, w["u"], initial_state=wkv)
    o = call(group_norm, call(merge_heads, o), w["norm"], w["norm_b"], heads, EPS)
    return call(linear, call(multiply, o, call(silu, g)), w["w_o"]), TimeState(last, wkv)


def rwkv6_parameters(rng: np.random.Generator, width: int, *, heads: int, rank: int = 8) -> Weights:
    """Draw the parameters of `rwkv6_time_mix`."""
    w = {"mix_x": _ramp(width)}
    for n in "kvrgw":
        w |= {
            f"mix_{n}": _ramp(width),
            f"mix_{n}1": draw_matrix(rng, width, rank),
            f"mix_{n}2": np.zeros((rank, width)),
        }
    w |= {f"w_{n}": draw_matrix(rng, width, width) for n in "kvrgo"}
    w |= {"decay": np.linspace(-6.0, 0.0, width), "decay_1": draw_matrix(rng, width, rank)}
    w |= {"decay_2": np.zeros((rank, width)), "u": 0.1 * rng.normal(size=(heads, width // heads))}
    return w | {"norm": np.ones(width), "norm_b": np.zeros(width)}


def rwkv7_time_mix(
    x: Array,
    w: Weights,
    state: TimeState | None = None,
    *,
    heads: int,
    v_first: Array | None = None,
    call: Call = direct,
) -> tuple[Array, TimeState, Array]:
    r"""Mix tokens as RWKV-7 does: the state is decayed, partly replaced, and read.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream; T is 1 at least.
    w : dict of array
        mix_n (M,) of each n in r, w, k, v, a, g; w_r, w_k, w_v, w_o (M, M); decay (M,), decay_1 (M, R), decay_2 (R, M);
        a, a_1, a_2 and g_1, g_2 alike; removal (ξ), replacement (α), bonus (ρ) (M,); norm, norm_b (M,); and for layers
        after the first v, v_1, v_2.
    state : TimeState, optional
        What the call before returned.
    heads : int
        H; D = M / H.
    v_first : array, (..., T, M), optional
        The values of the first layer, which the later ones mix in.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : TimeState
    v : array, (..., T, M)
        The values before those of the first layer were mixed in.
    """
    last, wkv = (None, None) if state is None else state
    before, last = _previous(call, x, last)
    token = {n: call(lerp, x, before, w[f"mix_{n}"]) for n in "rwkvag"}
    r, k, own = (call(linear, token[n], w[f"w_{n}"]) for n in "rkv")
    low = call(tanh, call(linear, token["w"], w["decay_1"]))
    decay = call(scaled, call(sigmoid, call(add, call(linear, low, w["decay_2"]), w["decay"])), -math.exp(-0.5))
    v = own if v_first is None else call(lerp, own, v_first, _low_rank(call, token["v"], w, "v"))
    a, g = _low_rank(call, token["a"], w, "a"), call(sigmoid, call(linear, token["g"], w["g_1"]))
    kappa = call(unit, call(split_heads, call(multiply, k, w["removal"]), heads), 1e-12)
    k = call(lerp, k, call(multiply, k, a), w["replacement"])  # k (1 + (a - 1) α)
    r, k, v, decay, a = (call(split_heads, y, heads) for y in (r, k, v, decay, a))
    o, wkv = call(rwkv7_chunked, r, k, v, decay, kappa, a, initial_state=wkv)
    o = call(group_norm, call(merge_heads, o), w["norm"], w["norm_b"], heads, EPS)
    known = call(multiply, call(multiply, call(merge_heads, r), call(merge_heads, k)), w["bonus"])
    bonus = call(multiply, call(row_sum, call(split_heads, known, heads)), v)  # (r · (ρ ⊙ k)) v
    o = call(multiply, call(add, o, call(merge_heads, bonus)), call(linear, g, w["g_2"]))
    return call(linear, o, w["w_o"]), TimeState(last, wkv), own


def _low_rank(call: Call, x: Array, w: Weights, name: str) -> Array:
    """Return σ(b + x A B)."""
    low = call(linear, call(linear, x, w[f"{name}_1"]), w[f"{name}_2"])
    return call(sigmoid, call(add, low, w[name]))


def rwkv7_channel_mix(x: Array, w: Weights, last: Array | None = None, *, call: Call = direct) -> tuple[Array, Array]:
    """Mix channels as RWKV-7 does.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream; T is 1 at least.
    w : dict of array
        mix_k (M,), w_k (M, F), w_v (F, M).
    last : array, (..., M), optional
        The last row of the input before.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    last : array, (..., M)
    """
    before, last = _previous(call, x, last)
    k = call(linear, call(lerp, x, before, w["mix_k"]), w["w_k"])
    return call(linear, call(relu_squared, k), w["w_v"]), last


def rwkv7_parameters(rng: np.random.Generator, width: int, *, heads: int, rank: int = 8) -> Weights:
    """Draw the parameters of `rwkv7_time_mix`, without those for the values of a first layer."""
    w = {f"mix_{n}": _ramp(width) for n in "rwkvag"} | {f"w_{n}": draw_matrix(rng, width, width) for n in "rkvo"}
    for name in ("decay", "a", "g"):
        w |= {f"{name}_1": draw_matrix(rng, width, rank), f"{name}_2": 0.1 * draw_matrix(rng, rank, width)}
    w |= {"decay": np.linspace(-5.0, 1.0, width), "a": np.zeros(width), "g_2": draw_matrix(rng, rank, width)}
    w |= {"removal": np.full(width, 0.85), "replacement": np.ones(width), "bonus": np.zeros(width)}
    return w | {"norm": np.ones(width), "norm_b": np.zeros(width)}


def _ramp(width: int) -> Array:
    """Return how much of the token before each channel sees: from all to nothing."""
    return np.asarray(1 - np.arange(width) / width)
