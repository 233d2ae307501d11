"""The curated problems that are about values, layouts, and the options of ssd, selective_scan and causal_conv1d."""

from typing import Any

import numpy as np
from scipy.linalg import hadamard

from refattn.arrays import Array
from refattn.testing import values
from refattn.testing.recurrence.cases import (
    CASES,
    DELTAS,
    KEYED,
    SUMS,
    Arrays,
    _gates,
    _lengths,
    _normal,
    _scaled,
    case,
    each,
    like,
    options,
    put,
    some,
    states,
)
from refattn.testing.recurrence.draw import Draw

__all__ = ["CASES"]


def _recall(codes: str, repeats: int = 1) -> Any:
    """Return a change to orthonormal keys, each written `repeats` times; every query asks for a key written already."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        D, T = x.sizes["D"], x.sizes["T"]
        whole = D if D & (D - 1) == 0 and int(np.log2(D)) % 2 == 0 else 0  # a Hadamard matrix with an exact 1/√D
        basis = hadamard(D) / np.sqrt(D) if codes == "hadamard" and whole else np.eye(D)
        order = x.rng.permutation(D)[np.arange(T) % D] if repeats > 1 else np.arange(T) % D
        asked = [int(x.rng.integers(0, t + 1)) for t in range(T)]
        for name, rows in (("k", basis[order]), ("q", basis[order[asked]])):
            a[name] = np.broadcast_to(rows, a[name].shape).copy()
        if "log_decay" in a:
            a["log_decay"] = np.zeros_like(a["log_decay"])
        if "beta" in a:
            a["beta"] = np.ones_like(a["beta"])

    return build


def _zero_rows(name: str) -> Any:
    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        a[name][..., x.rng.random(x.sizes["T"]) < 0.4, :] = 0

    return build


def _contents() -> None:
    """Keys that overlap in nothing, or are large, or nothing at all."""
    for name in ("one_hot", "hadamard"):
        case(f"recall_{name}", _recall(name), sizes="T=16 D=16", ops=(*SUMS, *DELTAS), normal=False)
        case(f"rewrite_{name}", _recall(name, 3), sizes="T=48 D=16", ops=DELTAS, normal=False)
    case("keys_large", lambda x, a, o: _large(a), sizes="T=40", ops=SUMS)
    short: dict[str, Any] = {"sizes": "T=40", "scored": True}
    case("keys_of_any_length", lambda x, a, o: _any_length(x, a, "k"), ops=DELTAS, **short)
    case("kappa_of_any_length", lambda x, a, o: _any_length(x, a, "kappa_hat"), ops=("rwkv7",), **short)
    case("keys_same", lambda x, a, o: _same(a), sizes="T=40", ops=KEYED)
    case("queries_0", _zero_rows("q"), args=("q",))
    case("keys_0", _zero_rows("k"), args=("k", "v", "q"))
    case("values_0", put(v=0.0), args=("v",), normal=False)
    case("values_one_sign", lambda x, a, o: a.update(v=np.abs(a["v"]) + 1), args=("v",), sizes="T=70")
    large = options(initial_state=lambda x: x.states(1000.0))
    case("initial_large", large, "initial_state", ops=(*KEYED, "ssd", "rwkv6", "rwkv7"))
    case("heads_1", sizes="T=33 H=1 G=1 B=1 W=16")
    case("odd", sizes="T=35 H=3 D=33 W=20 N=7 P=11 E=9", features=("value_dims",))
    case("width_1", sizes="T=20 D=1 W=1 N=1 P=1 E=1", level="standard")
    case("keys_negative", lambda x, a, o: a.update(k=-np.abs(a["k"]) * 4), ops=("linear_attention",))

    def nothing(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        a["k"][:, :, :9] = -6e4  # e^-60000 is 0, be it in long double: no weight at all

    def small(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        for name in ("q", "k"):  # weights of about e^-16: who adds something to the normaliser shows it
            a[name] = 0.3 * a[name] - 8

    case("weights_small", small, ops=("linear_attention",))
    case("weights_0", nothing, ops=("linear_attention",), normal=False)
    case("queries_weigh_0", put(q=-6e4), ops=("linear_attention",), normal=False)


def _large(a: Arrays) -> None:
    a["k"] = a["k"] / np.linalg.norm(a["k"], axis=-1, keepdims=True) * 1000


def _any_length(x: Draw, a: Arrays, name: str) -> None:
    a[name] = a[name] * x.rng.uniform(0.4, 1.2, (*a[name].shape[:-1], 1))


def _same(a: Arrays) -> None:
    a["k"] = np.repeat(a["k"][:, :, :1], a["k"].shape[2], 2)


def _layouts() -> None:
    """NaN around the arrays, and strides of every kind."""

    def arranged(change: Any) -> Any:
        def arrange(x: Array) -> Array:
            return np.asarray(change(x)) if x.ndim >= 3 else x

        return options(arrange=lambda x: arrange)

    case("guarded", options(arrange=lambda x: values.guarded))
    for name, change in (
        ("spread", values.spread),
        ("tokens_first", values.tokens_first),
        ("backwards", values.backwards),
    ):
        case(f"strides_{name}", arranged(change), features=("strided",))


def _ssm() -> None:
    """Step sizes, the skip and the gate of ssd and selective_scan."""
    for op, dt, bias, soft in (
        ("ssd", "dt", "dt_bias", "dt_softplus"),
        ("selective_scan", "delta", "delta_bias", "delta_softplus"),
    ):
        ops: dict[str, Any] = {"ops": (op,), "sizes": "T=40"}

        def raw(x: Draw, a: Arrays, o: dict[str, Any], dt: str = dt, bias: str = bias) -> None:
            a[dt] = x.rng.standard_normal(a[dt].shape) - 1
            if bias in o:
                o[bias] = 0.7 * o[bias] - 0.5

        def wild(x: Draw, a: Arrays, o: dict[str, Any], dt: str = dt) -> None:
            a[dt] = x.rng.choice([-25.0, -4.0, 0.0, 3.0, 19.0, 21.0, 30.0], a[dt].shape)

        def some_still(x: Draw, a: Arrays, o: dict[str, Any], dt: str = dt) -> None:
            a[dt] = a[dt] * (x.rng.random(a[dt].shape) < 0.5)

        case(f"softplus_{op}", each(options(**{soft: True}), raw), soft, **ops)
        case(f"softplus_wild_{op}", each(options(**{soft: True}), wild), soft, **ops)
        case(f"bias_{op}", options(**{bias: lambda x: np.abs(x.like("D")) / 3}), bias, **ops)
        case(f"bias_softplus_{op}", each(options(**{bias: like, soft: True}), raw), bias, soft, **ops)
        case(f"steps_0_{op}", some_still, **ops)
        case(f"A_0_{op}", put(A=0.0), **ops)
        case(f"A_100_{op}", put(A=-100.0), **ops)
    case("skip", options(D=like), "D")
    case("gate", options(z=like), "z")
    case("skip_gate", options(D=like, z=like), "D", "z", sizes="T=70", scored=True)
    case("gate_wide", each(options(z=like), lambda x, a, o: o.update(z=o["z"] * 20)), "z")
    skip = each(options(D=like, z=like, initial_state=states), _scaled("B", 0.0))
    case("skip_alone", skip, "D", "z", "initial_state")
    ops = {"ops": ("ssd",), "sizes": "T=40"}
    case("limit", options(dt_limit=(0.15, 0.3)), "dt_limit", **ops)
    limited = each(options(dt_limit=(0.2, 0.9), dt_softplus=True), _raw_steps)
    case("limit_softplus", limited, "dt_limit", "dt_softplus", **ops)
    every = each(options(dt_limit=(0.2, 0.9), dt_softplus=True, dt_bias=like, D=like, z=like), _raw_steps)
    case("all_ssd", every, "dt_limit", "dt_softplus", "dt_bias", "D", "z", **ops)


def _raw_steps(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
    a["dt"] = x.rng.standard_normal(a["dt"].shape)


def _others() -> None:
    """What is particular to the convolution and to RWKV."""
    conv: dict[str, Any] = {"ops": ("causal_conv1d",)}
    case("conv_bias", options(bias=like), "bias", scored=True, **conv)
    case("conv_silu", options(activation="silu"), "activation", **conv)
    case(
        "conv_all",
        options(bias=like, activation="silu", initial_state=states),
        "bias",
        "activation",
        "initial_state",
        **conv,
    )
    for K in (1, 2, 3, 7):
        case(f"conv_taps_{K}", options(initial_state=states), "initial_state", sizes=f"T=9 K={K}", **conv)
    case("conv_length_3", options(initial_state=states), "initial_state", sizes="T=3 K=7", **conv)

    def one_tap(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        a["weight"] = np.eye(x.sizes["K"])[np.arange(x.sizes["E"]) % x.sizes["K"]]

    case("conv_one_tap", one_tap, normal=False, **conv)
    case("conv_gated_far", each(options(activation="silu"), _scaled("x", 30.0)), "activation", **conv)
    case("bonus_0", put(u=0.0), ops=("rwkv6", "rwkv4"))
    case("bonus_large", put(u=8.0), ops=("rwkv6", "rwkv4"), scored=True)
    rwkv: dict[str, Any] = {"ops": ("rwkv4",)}
    case("keys_wide", _scaled("k", 40.0), **rwkv)
    case("keys_far_up", lambda x, a, o: a.update(k=a["k"] + 90), **rwkv)
    case("keys_far_down", lambda x, a, o: a.update(k=a["k"] - 120), **rwkv)
    case("rates", some("w", 0.0, 1e-3, 5.0, 50.0), **rwkv)
    case("keys_rise", lambda x, a, o: a.update(k=a["k"] + 4.0 * np.arange(a["k"].shape[1])[:, None]), **rwkv)


for _enter in (_normal, _lengths, _gates, _contents, _layouts, _ssm, _others):
    _enter()
