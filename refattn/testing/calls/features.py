"""The calls that attention by feature maps, by projections and by landmarks is tried on."""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.linear.features import identity, relu
from refattn.results import LinearState, PerformerState
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Inputs, Rng

NAN = np.nan
USUAL: dict[str, Any] = {"batch": (2,), "H": 2, "Hk": 2, "Hv": 2, "T": 9, "D": 4, "Dv": 3, "size": 1.0}
ONE_HEAD: dict[str, Any] = {"batch": (), "H": None, "Hk": None, "Hv": None}
GROUPED: dict[str, dict[str, Any]] = {
    "gqa_state": {"batch": (), "H": 4, "state": True},
    "gva_state": {"Hk": 1, "Hv": 4, "state": True, "T": 5},
}
SHARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d_state": {**ONE_HEAD, "state": True, "T": 14},
    "five_axes": {"batch": (2, 1), "T": 5, "D": 1},
    **GROUPED,
    "no_tokens": {"T": 0, "state": True},
    "one_token": {"T": 1, "state": True},
    "t65": {"T": 65, "batch": (), "D": 8, "Dv": 8, "state": True},
    "t130": {"T": 130, **ONE_HEAD},
    "strided": {"step": 2, "state": True, "T": 7},
    "nan_value_seen": {"batch": (), "poison": {"v": 5}},
}
ALL_TO_ALL: dict[str, dict[str, Any]] = {
    "not_causal": {"given": {"causal": False}},
    "not_causal_state": {"given": {"causal": False}, "state": True, **ONE_HEAD},
    "not_causal_gqa": {"given": {"causal": False}, "H": 4, "batch": ()},
}
LINEAR: dict[str, dict[str, Any]] = {
    **SHARED,
    "relu": {"given": {"feature_map": relu}, "H": 4, "state": True, "positive": True},
    "identity_not_normalised": {"given": {"feature_map": identity, "normalize": False}, "state": True},
    "not_normalised": {"given": {"normalize": False}, "T": 20, "batch": ()},
    "no_features": {"given": {"feature_map": relu}, "batch": (), "negative": 3},
    "wide_values": {"batch": (), "T": 4, "Dv": 70, "state": True},
    "packed": {"batch": (), "T": 20, "cu_seqlens": [0, 5, 5, 13, 20], "state": True},
    "packed_nan_before": {"batch": (), "T": 12, "cu_seqlens": [0, 7, 12], "poison": {"v": 6, "k": 3}},
    "large_keys": {"size": 30.0, "state": True, "T": 6},
    "packed_not_causal": {"given": {"causal": False}, "batch": (), "T": 9, "cu_seqlens": [0, 4, 9], "state": True},
    **ALL_TO_ALL,
}
PERFORMER: dict[str, dict[str, Any]] = {
    **SHARED,
    "scale": {"given": {"scale": 0.3}, "T": 6},
    "rising_keys": {"T": 20, "batch": (), "rise": 0.4},
    "large_keys": {"size": 6.0, "T": 6, "state": True},
    "one_feature": {"M": 1, "T": 5},
    "nan_key_seen": {"batch": (), "poison": {"k": 5}},
    **ALL_TO_ALL,
}
COSFORMER: dict[str, dict[str, Any]] = {
    **SHARED,
    "later_start": {"given": {"start": 11}, "state": True},
    "no_features": {"negative": 3, "batch": ()},
    **ALL_TO_ALL,
}
MIXED: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d": {**ONE_HEAD, "T": 14, "r": 5},
    "five_axes": {"batch": (2, 1), "T": 5, "D": 1},
    "gqa": {"batch": (), "H": 4},
    "mixed_by_head": {"by_head": True, "H": 4, "T": 12},
    "scale_wide": {"given": {"scale": 0.3}, "wide": True},
    "few_queries": {"Tq": 3, "T": 11},
    "one_token": {"T": 1, "r": 1},
    "one_mixture": {"r": 1, "T": 6},
    "no_queries": {"Tq": 0},
    "t70": {"T": 70, "batch": (), "r": 9, "D": 8, "Dv": 8},
    "large_scores": {"size": 12.0, "T": 6},
    "strided": {"step": 2},
    "nan_value_seen": {"batch": (), "poison": {"v": 5}},
}
LANDMARKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d": {**ONE_HEAD, "T": 14, "given": {"landmarks": 5}},
    "five_axes": {"batch": (2, 1), "T": 6, "given": {"landmarks": 2}},
    "gqa": {"batch": (), "H": 4, "T": 10},
    "scale": {"given": {"landmarks": 3, "scale": 0.3}},
    "one_landmark": {"given": {"landmarks": 1}, "T": 7},
    "two_iterations": {"given": {"landmarks": 3, "iterations": 2}, "T": 8},
    "uneven_segments": {"given": {"landmarks": 5}, "T": 13, "batch": ()},
    "t70": {"T": 70, "batch": (), "given": {"landmarks": 7}, "D": 8, "Dv": 8},
    "strided": {"step": 2, "T": 6},
    "fewer_tokens": {"given": {"landmarks": 5}, "T": 4},
    "one_token": {"T": 1},
    "no_tokens": {"T": 0},
    "nan_value_seen": {"batch": (), "poison": {"v": 5}},
}
QUICK = (
    *("one_head_2d_state", "gqa_state", "gva_state", "no_tokens", "one_token", "five_axes", "plain"),
    *("relu", "identity_not_normalised", "packed", "packed_nan_before", "packed+chunk=3", "plain+chunk=4"),
    *("not_causal", "not_causal_state", "scale", "later_start", "no_tokens+chunk=2", "gqa_state+chunk=5"),
    *("relu+chunk=4", "one_head_2d_state+chunk=5"),
)


def _tensors(spec: dict[str, Any], rng: Rng) -> Inputs:
    batch, H, Hk, Hv, T, D, Dv = (spec[name] for name in ("batch", "H", "Hk", "Hv", "T", "D", "Dv"))
    heads, key_heads, value_heads = (() if n is None else (n,) for n in (H, Hk, Hv))
    out = heads if (H or 1) > (Hv or 1) else value_heads
    Tq = spec.get("Tq", T)
    x: Inputs = {
        "do": rng.normal(size=(*batch, *out, Tq, Dv)),
        "q": spec["size"] * rng.normal(size=(*batch, *heads, Tq, D)),
        "k": spec["size"] * rng.normal(size=(*batch, *key_heads, T, D)),
        "v": rng.normal(size=(*batch, *value_heads, T, Dv)),
    }
    x["k"] += spec.get("rise", 0.0) * np.arange(T)[:, None]
    if "positive" in spec:
        x["k"], x["q"] = abs(x["k"]), abs(x["q"])
    if "negative" in spec:  # a query without any feature
        x["q"][..., spec["negative"], :] = -1
    for name, place in spec.get("poison", {}).items():
        x[name][..., place, :1] = NAN
    return x


def _states(spec: dict[str, Any], v: Array, F: int, rng: Rng, kind: Any) -> list[Any]:
    """Return a state of F features as few tokens leave it, and one of cotangents."""
    lead = (len(spec["cu_seqlens"]) - 1, *v.shape[:-2]) if "cu_seqlens" in spec else v.shape[:-2]
    S, dS = rng.normal(size=(2, *lead, F, v.shape[-1]))
    z, dz = rng.uniform(0.5, 2.0, (*lead, F)), rng.normal(size=(*lead, F))
    m, dm = 0.3 * rng.normal(size=lead), rng.normal(size=lead)
    pairs = ((S, z, m), (dS, dz, dm)) if kind is PerformerState else ((S, z), (dS, dz))
    return [kind(*(np.asarray(part) for part in parts)) for parts in pairs]


def _call(
    operation: str, spec: dict[str, Any], x: Inputs, states: list[Any], dtype: Any, extra: Inputs, **options: Any
) -> Call:
    wide = compute_dtype(dtype)
    tensors = [y.astype(dtype) for y in x.values()]
    if "step" in spec:
        tensors = [np.repeat(y, 2, axis=-1)[..., ::2] for y in tensors]
    tensors += [y.astype(wide if "wide" in spec else dtype) for y in extra.values()]
    given = {**spec.get("given", {}), **options}
    if "state" in spec:
        given["initial_state"], dstate = (type(s)(*(np.asarray(y.astype(wide)) for y in s)) for s in states)
        if operation.endswith("_vjp"):
            given["dstate"] = dstate
    if "cu_seqlens" in spec:
        given["cu_seqlens"] = np.array(spec["cu_seqlens"])
    return (tuple(tensors) if operation.endswith("_vjp") else tuple(tensors[1:])), given


def _linear(operation: str, spec: dict[str, Any], rng: Rng, dtype: Any, **options: Any) -> Call:
    x = _tensors(spec, rng)
    return _call(operation, spec, x, _states(spec, x["v"], spec["D"], rng, LinearState), dtype, {}, **options)


def _performer(operation: str, spec: dict[str, Any], rng: Rng, dtype: Any) -> Call:
    x, M = _tensors(spec, rng), spec.get("M", 6)
    projection = rng.normal(size=(M, spec["D"]))
    states = _states(spec, x["v"], M, rng, PerformerState)
    return _call(operation, spec, x, states, dtype, {"projection": projection})


def _cosformer(operation: str, spec: dict[str, Any], rng: Rng, dtype: Any) -> Call:
    x = _tensors(spec, rng)
    states = _states(spec, x["v"], 2 * spec["D"], rng, LinearState)
    return _call(operation, spec, x, states, dtype, {}, length=150)


def _linformer(operation: str, spec: dict[str, Any], rng: Rng, dtype: Any) -> Call:
    lead = (spec["Hk"],) if "by_head" in spec else ()
    e, f = rng.normal(size=(2, *lead, spec.get("r", 4), spec["T"])) / np.sqrt(max(1, spec["T"]))
    return _call(operation, spec, _tensors(spec, rng), [], dtype, {"e": e, "f": f})


def _nystrom(operation: str, spec: dict[str, Any], rng: Rng, dtype: Any) -> Call:
    options = {} if "given" in spec else {"landmarks": 3}
    return _call(operation, spec, _tensors(spec, rng), [], dtype, {}, **options)


def _family(operation: str, table: dict[str, Any], build: Any, names: tuple[str, ...]) -> Family:
    def draw(name: str, rng: Rng, dtype: Any) -> Call:
        problem, _, chunk = name.partition("+chunk=")
        options = {"chunk": int(chunk)} if chunk else {}
        return build(operation, USUAL | table[problem], rng, dtype, **options)

    quick = tuple(name for name in names if name in QUICK)
    return Family(names, draw, names, quick if len(quick) > 5 else names)


def _families() -> dict[str, Family]:
    causal = tuple(name for name in LINEAR if "not_causal" not in name)
    chunks = (
        *("plain+chunk=4", "no_tokens+chunk=2", "one_head_2d_state+chunk=5", "gqa_state+chunk=5", "t65+chunk=16"),
        *("packed+chunk=3", "packed_nan_before+chunk=4", "relu+chunk=4", "not_normalised+chunk=64"),
    )
    found = {
        "linear_attention": _family("linear_attention", LINEAR, _linear, tuple(LINEAR)),
        "linear_attention_recurrent": _family("linear_attention_recurrent", LINEAR, _linear, causal),
        "linear_attention_chunked": _family("linear_attention_chunked", LINEAR, _linear, chunks),
        "linear_attention_vjp": _family("linear_attention_vjp", LINEAR, _linear, tuple(LINEAR)),
    }
    for name, table, build in (
        ("performer_attention", PERFORMER, _performer),
        ("cosformer_attention", COSFORMER, _cosformer),
    ):
        one_way = tuple(problem for problem in table if "not_causal" not in problem)
        for form, names in (("", tuple(table)), ("_recurrent", one_way), ("_vjp", tuple(table))):
            found[name + form] = _family(name + form, table, build, names)
    for name, table, build in (
        ("linformer_attention", MIXED, _linformer),
        ("nystrom_attention", LANDMARKS, _nystrom),
    ):
        for form in ("", "_vjp"):
            found[name + form] = _family(name + form, table, build, tuple(table))
    return found


FAMILIES: dict[str, Family] = _families()
