"""The mixers of GLA, Gated DeltaNet and Kimi Linear: queries, keys and values as in attention, gates, and a norm.

Yang et al., 2023, arXiv:2312.06635, section 4.4 (GLA); Yang et al., 2024, arXiv:2412.06464, figure 1, in the layout of
Qwen3-Next (Gated DeltaNet); Kimi Team, 2025, arXiv:2510.26692, section 4 (Kimi Delta Attention). Each function takes a
sequence of any length and the state that the one before left: a prompt and a step of decoding are the same call.
"""

import math
from typing import NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.linear.gated_delta_rule import gated_delta_rule_chunked
from refattn.linear.gated_linear_attention import gated_linear_attention_chunked
from refattn.linear.kda import kda_chunked
from refattn.models.draw import draw_matrix, draw_step_biases
from refattn.models.elementwise import add, log_sigmoid, multiply, part, sigmoid, silu, softplus, swap, unit
from refattn.models.layers import linear, merge_heads, rms_norm, split_heads
from refattn.models.norms import minus_exp, scaled
from refattn.models.tape import Call, direct
from refattn.ssm.causal_conv1d import causal_conv1d

Weights = dict[str, Array]


class DeltaState(NamedTuple):
    """What the mixers of the delta rule keep between calls."""

    conv: Array
    """The last K - 1 rows of queries, keys and values, side by side."""
    S: Array
    """(..., Hv, D, Dv)."""


def gla(
    x: Array, w: Weights, state: Array | None = None, *, heads: int, eps: float = 1e-5, call: Call = direct
) -> tuple[Array, Array]:
    """Mix tokens by gated linear attention.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream.
    w : dict of array
        w_q, w_k (M, H D), w_v, w_z (M, H Dv), w_g1 (M, R), w_g2 (R, H D), b_g (H D,), norm (Dv,), w_o (H Dv, M).
    state : array, (..., H, D, Dv), optional
        What the call before returned.
    heads : int
        H.
    eps : float
        Of the norm of each head.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : array, (..., H, D, Dv)

    Examples
    --------
    >>> w = gla_parameters(np.random.default_rng(0), width=8, heads=2)
    >>> x = np.random.default_rng(1).normal(size=(5, 8))
    >>> whole, _ = gla(x, w, heads=2)
    >>> first, state = gla(x[:3], w, heads=2)
    >>> bool(np.allclose(gla(x[3:], w, state, heads=2)[0], whole[3:]))
    True
    """
    q, k, v = (call(split_heads, call(linear, x, w[name]), heads) for name in ("w_q", "w_k", "w_v"))
    gates = call(add, call(linear, call(linear, x, w["w_g1"]), w["w_g2"]), w["b_g"])
    g = call(split_heads, call(scaled, call(log_sigmoid, gates), 1 / 16), heads)  # the paper's temperature, τ = 16
    o, state = call(gated_linear_attention_chunked, q, k, v, g, initial_state=state)
    o = call(merge_heads, call(rms_norm, o, w["norm"], eps))
    o = call(multiply, o, call(silu, call(linear, x, w["w_z"])))
    return call(linear, o, w["w_o"]), state


def gla_parameters(rng: np.random.Generator, width: int, *, heads: int, rank: int = 16) -> Weights:
    """Draw the parameters of `gla`: D is half of Dv, as in the paper."""
    keys = max(width // 2, heads)
    return {
        "w_q": draw_matrix(rng, width, keys),
        "w_k": draw_matrix(rng, width, keys),
        "w_v": draw_matrix(rng, width, width),
        "w_z": draw_matrix(rng, width, width),
        "w_g1": draw_matrix(rng, width, rank),
        "w_g2": draw_matrix(rng, rank, keys),
        "b_g": np.zeros(keys),
        "norm": np.ones(width // heads),
        "w_o": draw_matrix(rng, width, width),
    }


def gated_deltanet(
    x: Array,
    w: Weights,
    state: DeltaState | None = None,
    *,
    heads: int,
    value_heads: int,
    eps: float = 1e-6,
    call: Call = direct,
) -> tuple[Array, DeltaState]:
    """Mix tokens by the gated delta rule, on queries and keys of length 1.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream.
    w : dict of array
        w_qkv (M, 2 H D + Hv Dv), w_z (M, Hv Dv), w_beta, w_a (M, Hv), w_conv (2 H D + Hv Dv, K), A_log, dt_bias (Hv,),
        norm (Dv,), w_o (Hv Dv, M).
    state : DeltaState, optional
        What the call before returned.
    heads, value_heads : int
        H of queries and keys, and Hv, a multiple.
    eps : float
        Of the norm of each head.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : DeltaState

    Examples
    --------
    >>> w = gated_deltanet_parameters(np.random.default_rng(0), width=8, heads=1, value_heads=2)
    >>> x = np.random.default_rng(1).normal(size=(5, 8))
    >>> whole, _ = gated_deltanet(x, w, heads=1, value_heads=2)
    >>> first, state = gated_deltanet(x[:3], w, heads=1, value_heads=2)
    >>> bool(np.allclose(gated_deltanet(x[3:], w, state, heads=1, value_heads=2)[0], whole[3:]))
    True
    """
    conv, S = (None, None) if state is None else state
    values = len(w["w_o"])
    q, k, v, conv = _convolved(call, call(linear, x, w["w_qkv"]), w["w_conv"], values, conv)
    q, k = (call(unit, call(split_heads, y, heads)) for y in (q, k))
    beta = call(swap, call(sigmoid, call(linear, x, w["w_beta"])))  # (..., Hv, T)
    steps = call(softplus, call(add, call(linear, x, w["w_a"]), w["dt_bias"]))
    g = call(swap, call(multiply, steps, call(minus_exp, w["A_log"])))
    o, S = call(gated_delta_rule_chunked, q, k, call(split_heads, v, value_heads), g, beta, initial_state=S)
    o = call(merge_heads, call(rms_norm, o, w["norm"], eps))
    o = call(multiply, o, call(silu, call(linear, x, w["w_z"])))
    return call(linear, o, w["w_o"]), DeltaState(conv, S)


def gated_deltanet_parameters(
    rng: np.random.Generator, width: int, *, heads: int, value_heads: int, head_dim: int | None = None, taps: int = 4
) -> Weights:
    """Draw the parameters of `gated_deltanet`: A in [-16, 0), steps between 0.001 and 0.1."""
    D = width // value_heads if head_dim is None else head_dim
    keys, values = heads * D, value_heads * D
    biases = draw_step_biases(rng, value_heads)
    return {
        "w_qkv": draw_matrix(rng, width, 2 * keys + values),
        "w_z": draw_matrix(rng, width, values),
        "w_beta": draw_matrix(rng, width, value_heads),
        "w_a": draw_matrix(rng, width, value_heads),
        "w_conv": rng.uniform(-1, 1, (2 * keys + values, taps)) / math.sqrt(taps),
        "A_log": np.log(rng.uniform(0.01, 16, value_heads)),
        "dt_bias": biases,
        "norm": np.ones(D),
        "w_o": draw_matrix(rng, values, width),
    }


def gated_deltanet_from_transformers(tensors: Weights, prefix: str = "", *, heads: int, value_heads: int) -> Weights:
    """Return the parameters of `gated_deltanet` from the state dict of a Qwen3NextGatedDeltaNet of transformers.

    There the columns of each key head lie together, with those of its value heads; here all queries come first.
    """
    t = {name: tensors[prefix + name] for name in ("A_log", "dt_bias")}
    t |= {"norm": tensors[f"{prefix}norm.weight"], "w_o": tensors[f"{prefix}out_proj.weight"].T}
    t["w_conv"] = tensors[f"{prefix}conv1d.weight"][:, 0]
    share, Dv = value_heads // heads, len(t["norm"])
    rows = tensors[f"{prefix}in_proj_qkvz.weight"]
    by_head = rows.reshape(heads, -1, rows.shape[1])
    D = by_head.shape[1] // 2 - share * Dv
    cuts = np.split(by_head, [D, 2 * D, 2 * D + share * Dv], axis=1)
    q, k, v, z = (cut.reshape(-1, rows.shape[1]) for cut in cuts)
    t |= {"w_qkv": np.concatenate([q, k, v]).T, "w_z": z.T}
    rows = tensors[f"{prefix}in_proj_ba.weight"]
    b, a = np.split(rows.reshape(heads, 2 * share, -1), 2, axis=1)
    return t | {"w_beta": b.reshape(value_heads, -1).T, "w_a": a.reshape(value_heads, -1).T}


def kimi_delta(
    x: Array, w: Weights, state: DeltaState | None = None, *, heads: int, eps: float = 1e-5, call: Call = direct
) -> tuple[Array, DeltaState]:
    """Mix tokens by Kimi Delta Attention: the delta rule with a gate for each key.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream.
    w : dict of array
        w_qkv (M, 3 H D), w_conv (3 H D, K), w_f1 (M, D), w_f2 (D, H D), dt_bias (H D,), A_log (H, 1, 1), w_beta (M, H),
        w_g1 (M, D), w_g2 (D, H D), norm (D,), w_o (H D, M).
    state : DeltaState, optional
        What the call before returned.
    heads : int
        H.
    eps : float
        Of the norm of each head.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : DeltaState
    """
    conv, S = (None, None) if state is None else state
    q, k, v, conv = _convolved(call, call(linear, x, w["w_qkv"]), w["w_conv"], len(w["w_o"]), conv)
    q, k = (call(unit, call(split_heads, y, heads)) for y in (q, k))
    forget = call(add, call(linear, call(linear, x, w["w_f1"]), w["w_f2"]), w["dt_bias"])
    g = call(multiply, call(split_heads, call(softplus, forget), heads), call(minus_exp, w["A_log"]))
    beta = call(swap, call(sigmoid, call(linear, x, w["w_beta"])))
    o, S = call(kda_chunked, q, k, call(split_heads, v, heads), g, beta, initial_state=S)
    o = call(merge_heads, call(rms_norm, o, w["norm"], eps))
    o = call(multiply, o, call(sigmoid, call(linear, call(linear, x, w["w_g1"]), w["w_g2"])))
    return call(linear, o, w["w_o"]), DeltaState(conv, S)


def kimi_delta_from_transformers(tensors: Weights, prefix: str = "") -> Weights:
    """Return the parameters of `kimi_delta` from the state dict of a KimiLinearDeltaAttention of transformers."""
    t = {"w_qkv": np.concatenate([tensors[f"{prefix}{n}_proj.weight"] for n in "qkv"]).T}
    t |= {"w_conv": tensors[f"{prefix}conv1d.weight"][:, 0], "norm": tensors[f"{prefix}o_norm.weight"]}
    t |= {"dt_bias": tensors[f"{prefix}forget_gate.dt_bias"]}
    t |= {"A_log": tensors[f"{prefix}forget_gate.A_log"].reshape(-1, 1, 1)}
    names = {"w_f1": "forget_gate.f_a_proj", "w_f2": "forget_gate.f_b_proj", "w_beta": "b_proj", "w_o": "o_proj"}
    names |= {"w_g1": "g_a_proj", "w_g2": "g_b_proj"}
    return t | {ours: tensors[f"{prefix}{theirs}.weight"].T for ours, theirs in names.items()}


def _convolved(
    call: Call, qkv: Array, taps: Array, values: int, conv: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Return q, k, v after the short convolution, each (..., T, H D), and the state of that."""
    keys = (qkv.shape[-1] - values) // 2
    mixed, conv = call(causal_conv1d, qkv, taps, activation="silu", initial_state=conv)
    q, k, v = (call(part, mixed, *ends) for ends in ((0, keys), (keys, 2 * keys), (2 * keys, 2 * keys + values)))
    return q, k, v, conv
