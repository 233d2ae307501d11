"""Random parameters in the sizes of a model: what `refattn.costs` counts, as arrays that can be run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.costs.landmarks import Linformer, Nystrom
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.receptance import Rwkv4, Rwkv6, Rwkv7
from refattn.costs.recurrent import DeltaNet, Gla, Recurrent
from refattn.costs.spaces import S4D, Convolution, Mamba, Mamba2
from refattn.costs.transformer import Transformer
from refattn.models import gated, mamba, rwkv
from refattn.models.checkpoint import Config
from refattn.models.draw import draw_matrix, draw_step_biases
from refattn.models.mixers import MIXERS

Weights = dict[str, Array]
POOL = 1 << 22
"""Numbers that are drawn; larger matrices repeat them."""
LONGEST = 1 << 20
"""The length that cosFormer's weights are spread over."""


class Layer(NamedTuple):
    """One layer: its mechanism, and parameters by name."""

    mechanism: Mechanism
    mixing: Weights
    feed: Weights
    norms: list[tuple[Array, ...]]
    """Each a gain, or a gain and a bias: before (or after) mixing and the feed-forward network; then what is more."""
    config: Config | None = None
    """For the mixers that read one."""


def matrix(rng: np.random.Generator, n: int, m: int) -> Array:
    """Return a float32 matrix (n, m) of variance 1 / n; beyond `POOL` numbers it repeats itself.

    Examples
    --------
    >>> matrix(np.random.default_rng(0), 3, 2).shape
    (3, 2)
    """
    drawn = rng.standard_normal(min(n * m, POOL), np.float32) * np.float32(n**-0.5)
    return np.resize(drawn, (n, m))


def layer(m: Transformer, n: int, rng: np.random.Generator) -> Layer:
    """Return layer n of m with random parameters, float32.

    Raises
    ------
    ValueError
        For sizes that the networks of this project do not have.
    """
    mechanism = m.mechanism[n]
    if m.has_experts(n):
        raise ValueError(f"Network: layer {n} has experts, which are counted but not run; choose a model without")
    config = _config(m, mechanism)
    mixing = {name: np.asarray(x, np.float32) for name, x in _mixing(m, mechanism, rng, config).items()}
    feed: Weights = {}
    for x in m.feed(n):
        feed[f"w_{x.name}"] = matrix(rng, x.rows, x.columns)
        feed |= {f"b_{x.name}": np.zeros(x.columns, np.float32)} if x.bias else {}
    if feed and isinstance(mechanism, Rwkv4 | Rwkv6 | Rwkv7):
        names = "k" if isinstance(mechanism, Rwkv7) else "kr"
        feed |= {f"mix_{name}": np.linspace(1, 0, m.d_model, dtype=np.float32) for name in names}
    return Layer(mechanism, mixing, feed, [norm(m) for _ in range(m.norms if feed else min(m.norms, 1))], config)


def norm(m: Transformer) -> tuple[Array, ...]:
    """Return a gain of ones, and a bias of zeros where m's norms have one."""
    gain = np.ones(m.d_model, np.float32)
    return (gain, np.zeros_like(gain)) if (m.bias if m.norm_bias is None else m.norm_bias) else (gain,)


def _mixing(m: Transformer, mechanism: Mechanism, rng: np.random.Generator, config: Config | None) -> dict[str, Any]:
    if isinstance(mechanism, Softmax):
        return _softmax(m, mechanism, rng)
    for kind, draw in _DRAWN:
        if isinstance(mechanism, kind):
            return draw(m, mechanism, rng)
    if config is None:
        raise ValueError(f"Network: {mechanism.name} is counted but not run")
    if isinstance(mechanism, Linformer):
        heads = MIXERS["linear_attention"].draw(rng, config)
        fold = {name: draw_matrix(rng, mechanism.length, mechanism.rank).T for name in "ef"}
        return heads | fold
    return MIXERS[config.mixer].draw(rng, config)


def _softmax(m: Transformer, mechanism: Softmax, rng: np.random.Generator) -> dict[str, Any]:
    """Return the matrices that costs list, and the norms of heads or latent vectors."""
    w: dict[str, Any] = {}
    for x in mechanism.matrices(m):
        w[f"w_{x.name}"] = matrix(rng, x.rows, x.columns)
        w |= {f"b_{x.name}": np.zeros(x.columns)} if x.bias else {}
    if isinstance(mechanism, Latent):
        w["norm_kv"] = np.ones(mechanism.kv_rank)
        w |= {} if mechanism.q_rank is None else {"norm_q": np.ones(mechanism.q_rank)}
    elif m.qk_norm:
        w |= {"norm_q": np.ones(m.head_width), "norm_k": np.ones(m.head_width)}
    return w


def _config(m: Transformer, mechanism: Mechanism) -> Config | None:
    """Return what `refattn.models.mixers` reads, for the mechanisms that are taken from there; else None."""
    if not isinstance(mechanism, Recurrent | S4D | Convolution | Linformer | Nystrom):
        return None
    fixed = {"features": None, "state": 16, "conv": 4, "landmarks": 8}
    for name, value in fixed.items():
        _same(mechanism, name, getattr(mechanism, name, value), value)
    _same(mechanism, "v_head_dim", m.value_width, m.head_width)
    context = mechanism.length if isinstance(mechanism, Linformer) else LONGEST
    if isinstance(mechanism, S4D | Convolution):
        return Config("a", width=m.d_model, context=context, mixer=mechanism.name)
    if isinstance(mechanism, Linformer | Nystrom):
        _same(mechanism, "bias", m.qkv_biased or m.o_biased, False)
    sizes: dict[str, Any] = {"width": m.d_model, "heads": m.heads, "kv_heads": m.heads, "head_dim": m.head_width}
    return Config("a", **sizes, layers=m.layers, context=context, mixer=mechanism.name)


def _same(mechanism: Mechanism, name: str, given: Any, wanted: Any) -> None:
    if given != wanted:
        raise ValueError(f"Network: {mechanism.name} has {name} {given}; only {wanted} can be run")


def _gla(m: Transformer, x: Gla, rng: np.random.Generator) -> dict[str, Any]:
    _same(x, "expand_k", x.expand_k, 0.5)
    return gated.gla_parameters(rng, m.d_model, heads=m.heads, rank=x.gate_rank)


def _deltanet(m: Transformer, x: DeltaNet, rng: np.random.Generator) -> dict[str, Any]:
    Hk, Hv, d, dv = x.sizes(m)
    _same(x, "value_dim", dv, d)
    if not x.channelwise:
        given = {"heads": Hk, "value_heads": Hv, "head_dim": d, "taps": x.conv}
        return gated.gated_deltanet_parameters(rng, m.d_model, **given)
    _same(x, "key_heads", Hk, Hv)
    w = {f"w_{name}": draw_matrix(rng, rows, columns) for name, rows, columns in (
        ("qkv", m.d_model, 3 * Hv * d), ("f1", m.d_model, d), ("f2", d, Hv * d), ("beta", m.d_model, Hv),
        ("g1", m.d_model, d), ("g2", d, Hv * d), ("o", Hv * d, m.d_model),
    )}  # fmt: skip
    w |= {"w_conv": rng.uniform(-0.5, 0.5, (3 * Hv * d, x.conv)), "dt_bias": draw_step_biases(rng, Hv * d)}
    return w | {"A_log": np.log(rng.uniform(1, 16, (Hv, 1, 1))), "norm": np.ones(d)}


def _expand(m: Transformer, x: Mamba | Mamba2, E: int) -> int:
    _same(x, "inner", E, E // m.d_model * m.d_model)
    return E // m.d_model


def _mamba(m: Transformer, x: Mamba, rng: np.random.Generator) -> dict[str, Any]:
    _same(x, "inner_norms", x.inner_norms, False)
    _same(x, "bias", x.bias, False)
    E, R = x.sizes(m)
    given = {"expand": _expand(m, x, E), "states": x.state, "rank": R, "taps": x.conv}
    return mamba.mamba_parameters(rng, m.d_model, **given)


def _mamba2(m: Transformer, x: Mamba2, rng: np.random.Generator) -> dict[str, Any]:
    E, H, _ = x.sizes(m)
    given = {"heads": H, "expand": _expand(m, x, E), "states": x.state, "groups": x.groups, "taps": x.conv}
    return mamba.mamba2_parameters(rng, m.d_model, **given)


def _rwkv4(m: Transformer, x: Rwkv4, rng: np.random.Generator) -> dict[str, Any]:
    _same(x, "inner", x.inner or m.d_model, m.d_model)
    _same(x, "head_dim", m.head_width, m.d_model // m.heads)
    return MIXERS["rwkv4"].draw(rng, Config("a", width=m.d_model, mixer="rwkv4"))


def _low_rank(rng: np.random.Generator, width: int, ranks: dict[str, int]) -> dict[str, Any]:
    """Return the two matrices of each name."""
    w: dict[str, Any] = {}
    for name, rank in ranks.items():
        w |= {f"{name}1": draw_matrix(rng, width, rank), f"{name}2": 0.1 * draw_matrix(rng, rank, width)}
    return w


def _rwkv6(m: Transformer, x: Rwkv6, rng: np.random.Generator) -> dict[str, Any]:
    ranks = {f"mix_{name}": x.mix_rank for name in "kvrgw"} | {"decay_": x.decay_rank}
    return rwkv.rwkv6_parameters(rng, m.d_model, heads=m.heads) | _low_rank(rng, m.d_model, ranks)


def _rwkv7(m: Transformer, x: Rwkv7, rng: np.random.Generator) -> dict[str, Any]:
    ranks = {"decay_": x.decay_rank, "a_": x.rate_rank, "g_": x.gate_rank}
    w: dict[str, Any] = rwkv.rwkv7_parameters(rng, m.d_model, heads=m.heads)
    if x.value_rank:
        ranks["v_"] = x.value_rank
        w["v"] = np.zeros(m.d_model)
    return w | _low_rank(rng, m.d_model, ranks)


_DRAWN: list[tuple[type[Mechanism], Callable[..., dict[str, Any]]]] = [
    (Gla, _gla),
    (DeltaNet, _deltanet),
    (Mamba, _mamba),
    (Mamba2, _mamba2),
    (Rwkv4, _rwkv4),
    (Rwkv6, _rwkv6),
    (Rwkv7, _rwkv7),
]
