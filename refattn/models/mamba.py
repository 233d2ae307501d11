"""The mixers of Mamba and Mamba-2: a short convolution, a state space, and a gate, between two matrices.

Gu and Dao, 2023, arXiv:2312.00752, figure 3; Dao and Gu, 2024, arXiv:2405.21060, figure 6 (the parallel block with its
norm after the gate). Each function takes a sequence of any length and the state that the one before left: a prompt, a
piece of it, and a token at a time are the same call.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.models.draw import draw_matrix, draw_step_biases
from refattn.models.elementwise import multiply, part, silu, swap
from refattn.models.layers import linear, merge_heads, rms_norm, split_heads
from refattn.models.norms import minus_exp
from refattn.models.tape import Call, direct
from refattn.ssm.causal_conv1d import causal_conv1d
from refattn.ssm.selective_scan import selective_scan_chunked
from refattn.ssm.ssd import ssd_chunked

Weights = dict[str, Array]


class MambaState(NamedTuple):
    """What a Mamba mixer keeps between calls."""

    conv: Array
    """The last K - 1 inputs of the convolution."""
    scan: Array
    """The state of the state space: (..., E, N), or (..., H, N, P) in Mamba-2."""


def mamba(x: Array, w: Weights, state: MambaState | None = None, *, call: Call = direct) -> tuple[Array, MambaState]:
    """Mix tokens as Mamba does.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream.
    w : dict of array
        w_in (M, 2 E), w_conv (E, K), w_x (E, R + 2 N), w_dt (R, E), b_dt (E,), A_log (E, N), D (E,), w_out (E, M); and
        b_conv (E,), if the convolution has biases.
    state : MambaState, optional
        What the call before returned.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : MambaState

    Examples
    --------
    >>> w = mamba_parameters(np.random.default_rng(0), width=8, expand=2, states=4)
    >>> x = np.random.default_rng(1).normal(size=(5, 8))
    >>> whole, _ = mamba(x, w)
    >>> first, state = mamba(x[:3], w)
    >>> bool(np.allclose(mamba(x[3:], w, state)[0], whole[3:]))
    True
    """
    conv, scan = (None, None) if state is None else state
    (E, N), R = w["A_log"].shape, len(w["w_dt"])
    projected = call(linear, x, w["w_in"])
    u, z = call(part, projected, 0, E), call(part, projected, E, 2 * E)
    u, conv = call(causal_conv1d, u, w["w_conv"], w.get("b_conv"), activation="silu", initial_state=conv)
    selected = call(linear, u, w["w_x"])  # (..., T, R + 2 N)
    delta = call(linear, call(part, selected, 0, R), w["w_dt"])
    B, C = call(part, selected, R, R + N), call(part, selected, R + N, R + 2 * N)
    given: dict[str, Any] = {"D": w["D"], "z": z, "delta_bias": w["b_dt"], "delta_softplus": True}
    y, scan = call(selective_scan_chunked, u, delta, call(minus_exp, w["A_log"]), B, C, **given, initial_state=scan)
    return call(linear, y, w["w_out"]), MambaState(conv, scan)


def mamba_parameters(
    rng: np.random.Generator, width: int, *, expand: int = 2, states: int = 16, rank: int | None = None, taps: int = 4
) -> Weights:
    """Draw the parameters of `mamba`, as the paper initialises them: A = -1 ... -N, steps between 0.001 and 0.1."""
    E = expand * width
    R = -(-width // 16) if rank is None else rank
    return {
        "w_in": draw_matrix(rng, width, 2 * E),
        "w_conv": rng.uniform(-1, 1, (E, taps)) / math.sqrt(taps),
        "b_conv": np.zeros(E),
        "w_x": draw_matrix(rng, E, R + 2 * states),
        "w_dt": draw_matrix(rng, R, E),
        "b_dt": draw_step_biases(rng, E),
        "A_log": np.tile(np.log(np.arange(1, states + 1.0)), (E, 1)),
        "D": np.ones(E),
        "w_out": draw_matrix(rng, E, width),
    }


def mamba_from_transformers(tensors: Weights, prefix: str = "") -> Weights:
    """Return the parameters of `mamba` from the state dict of a MambaMixer of transformers."""
    t = {name: tensors[prefix + name] for name in ("A_log", "D")}
    t |= {"w_conv": tensors[f"{prefix}conv1d.weight"][:, 0], "b_dt": tensors[f"{prefix}dt_proj.bias"]}
    for ours, theirs in (("w_in", "in_proj"), ("w_x", "x_proj"), ("w_dt", "dt_proj"), ("w_out", "out_proj")):
        t[ours] = tensors[f"{prefix}{theirs}.weight"].T
    return t | _optional(tensors, prefix)


def mamba2(
    x: Array,
    w: Weights,
    state: MambaState | None = None,
    *,
    groups: int = 1,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    eps: float = 1e-5,
    call: Call = direct,
) -> tuple[Array, MambaState]:
    """Mix tokens as Mamba-2 does.

    Parameters
    ----------
    x : array, (..., T, M)
        The normalised stream.
    w : dict of array
        w_in (M, 2 E + 2 G N + H), w_conv (E + 2 G N, K), A_log, D, dt_bias (H,), norm (E,), w_out (E, M); b_conv, if
        the convolution has biases. Columns of w_in: the gate, what is convolved (x, B, C), and dt.
    state : MambaState, optional
        What the call before returned.
    groups : int
        G: how many B and C there are; H / G heads share one, and the norm takes E / G columns at a time.
    dt_limit : (float, float)
        Limits of the step sizes, after softplus.
    eps : float
        Of the norm.
    call : function
        `direct`, or a `Tape`.

    Returns
    -------
    y : array, (..., T, M)
    state : MambaState

    Examples
    --------
    >>> w = mamba2_parameters(np.random.default_rng(0), width=8, heads=2, states=4)
    >>> x = np.random.default_rng(1).normal(size=(5, 8))
    >>> whole, _ = mamba2(x, w)
    >>> first, state = mamba2(x[:3], w)
    >>> bool(np.allclose(mamba2(x[3:], w, state)[0], whole[3:]))
    True
    """
    conv, scan = (None, None) if state is None else state
    H, E, channels = len(w["A_log"]), len(w["w_out"]), len(w["w_conv"])
    GN = (channels - E) // 2
    projected = call(linear, x, w["w_in"])
    z, dt = call(part, projected, 0, E), call(part, projected, E + channels, E + channels + H)
    mixed, conv = call(
        causal_conv1d,
        call(part, projected, E, E + channels),
        w["w_conv"],
        w.get("b_conv"),
        activation="silu",
        initial_state=conv,
    )
    heads = call(split_heads, call(part, mixed, 0, E), H)  # (..., H, T, P)
    B = call(split_heads, call(part, mixed, E, E + GN), groups)  # (..., G, T, N)
    C = call(split_heads, call(part, mixed, E + GN, channels), groups)
    given: dict[str, Any] = {"D": w["D"], "dt_bias": w["dt_bias"], "dt_softplus": True, "dt_limit": dt_limit}
    y, scan = call(ssd_chunked, heads, call(swap, dt), call(minus_exp, w["A_log"]), B, C, **given, initial_state=scan)
    y = call(multiply, call(merge_heads, y), call(silu, z))
    ones = np.ones(E // groups, y.dtype)
    y = call(merge_heads, call(rms_norm, call(split_heads, y, groups), ones, eps))
    return call(linear, call(multiply, y, w["norm"]), w["w_out"]), MambaState(conv, scan)


def mamba2_parameters(
    rng: np.random.Generator,
    width: int,
    *,
    heads: int,
    expand: int = 2,
    states: int = 16,
    groups: int = 1,
    taps: int = 4,
) -> Weights:
    """Draw the parameters of `mamba2`, as the authors initialise them: A in [-16, -1], steps between 0.001 and 0.1."""
    E = expand * width
    channels = E + 2 * groups * states
    return {
        "w_in": draw_matrix(rng, width, E + channels + heads),
        "w_conv": rng.uniform(-1, 1, (channels, taps)) / math.sqrt(taps),
        "b_conv": np.zeros(channels),
        "dt_bias": draw_step_biases(rng, heads),
        "A_log": np.log(rng.uniform(1, 16, heads)),
        "D": np.ones(heads),
        "norm": np.ones(E),
        "w_out": draw_matrix(rng, E, width),
    }


def mamba2_from_transformers(tensors: Weights, prefix: str = "") -> Weights:
    """Return the parameters of `mamba2` from the state dict of a Mamba2Mixer of transformers."""
    t = {name: tensors[prefix + name] for name in ("A_log", "D", "dt_bias")}
    t |= {"w_conv": tensors[f"{prefix}conv1d.weight"][:, 0], "norm": tensors[f"{prefix}norm.weight"]}
    t |= {"w_in": tensors[f"{prefix}in_proj.weight"].T, "w_out": tensors[f"{prefix}out_proj.weight"].T}
    return t | _optional(tensors, prefix)


def _optional(tensors: Weights, prefix: str) -> Weights:
    for name in ("in_proj.bias", "out_proj.bias"):
        if prefix + name in tensors:
            raise ValueError(f"from_transformers: {prefix}{name}: biases of the projections are not supported")
    name = f"{prefix}conv1d.bias"
    return {"b_conv": tensors[name]} if name in tensors else {}
