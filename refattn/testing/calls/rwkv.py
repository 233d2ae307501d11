"""The calls that RWKV's recurrences are tried on."""

from typing import Any

import numpy as np

from refattn.arrays import compute_dtype
from refattn.results import Rwkv4State
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Inputs, Rng

NAN = np.nan
USUAL: dict[str, Any] = {"batch": (2,), "H": 2, "T": 20, "D": 4, "Dv": 3}
PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d_state": {"batch": (), "H": None, "T": 9, "state": True},
    "five_axes_scale": {"batch": (2, 1), "T": 5, "scale": 0.3, "D": 1},
    "state_wide_gates": {"batch": (), "state": True, "wide": True, "T": 7, "Dv": 6},
    "no_tokens": {"T": 0, "state": True},
    "one_token": {"T": 1, "state": True, "batch": ()},
    "t63": {"T": 63, "batch": (), "D": 8, "Dv": 8, "state": True},
    "t130_no_decay": {"T": 130, "batch": (), "H": None, "gates": 0.0},
    "t130_strong_decay": {"T": 130, "batch": (), "H": None, "gates": -20.0},
    "packed": {"batch": (), "T": 33, "cu_seqlens": [0, 5, 5, 16, 33], "state": True},
    "packed_nan_before": {"batch": (), "T": 21, "cu_seqlens": [0, 10, 21], "poison": {"k": 4, "v": 9, "r": 9}},
    "forgotten_nan": {"T": 24, "batch": (), "forget": [11, 12], "poison": {"v": 10, "state": 1}, "state": True},
    "rates_0_and_1": {"ends": True, "state": True, "T": 12},
    "wide_values": {"batch": (), "T": 4, "Dv": 70, "state": True},
    "strided": {"step": 2, "state": True, "T": 7},
    "nan_seen": {"poison": {"v": 7}, "T": 12, "batch": ()},
}
CONSTANT = ("forgotten_nan",)
"""Problems that gates which are the same at every token do not have."""
ERASING = ("forgotten_nan",)
"""Problems that rwkv7 does not have, which reads the whole state before it forgets a part."""
FEW = (
    *("one_head_2d_state", "five_axes_scale", "state_wide_gates", "no_tokens", "one_token", "t63"),
    *("packed", "packed_nan_before"),
)
CHUNKS = (
    *("plain+chunk=1", "t63+chunk=16", "t130_strong_decay+chunk=64", "packed+chunk=7"),
    *("state_wide_gates+chunk=3", "no_tokens+chunk=2"),
)
QUICK = (
    *("one_head_2d_state", "five_axes_scale", "state_wide_gates", "no_tokens", "one_token", "packed_nan_before"),
    *CHUNKS,
)


def build(operation: str, name: str, rng: Rng, dtype: Any) -> Call:
    """Return the call of a problem, for one of rwkv5, rwkv6, rwkv7 in any form."""
    version, _, form = operation.partition("_")
    name, _, chunk = name.partition("+chunk=")
    spec = USUAL | PROBLEMS[name]
    batch, H, T, D, Dv = (spec[key] for key in USUAL)
    heads = () if H is None else (H,)
    x: Inputs = {n: rng.normal(size=(*batch, *heads, T, D)) for n in "rk"}
    x |= {n: rng.normal(size=(*batch, *heads, T, Dv)) for n in ("v", "do")}
    gates = (H or 1, D) if version == "rwkv5" else (*batch, *heads, T, D)
    g = -rng.exponential(0.4, gates)
    g[...] = spec.get("gates", g)
    if "forget" in spec:
        g[..., spec["forget"], :] = -np.inf
    kappa = rng.normal(size=x["k"].shape)
    kappa *= rng.uniform(0.8, 1.1, (*kappa.shape[:-1], 1)) / np.sqrt((kappa**2).sum(axis=-1, keepdims=True))
    a = rng.choice([0.0, 1.0], kappa.shape) if "ends" in spec else rng.uniform(0, 1, kappa.shape)
    extra = {"rwkv7": [kappa, a]}.get(version, [rng.normal(size=(H or 1, D))])
    lead = (len(spec["cu_seqlens"]) - 1,) if "cu_seqlens" in spec else batch
    x["state"], x["dstate"] = rng.normal(size=(2, *lead, *heads, D, Dv))
    for poisoned, place in spec.get("poison", {}).items():
        x[poisoned][..., place, :1] = NAN
    wide = compute_dtype(dtype)
    kind = wide if "wide" in spec else dtype
    tensors = [x[n].astype(dtype) for n in ("do", "r", "k", "v")]
    others = [g.astype(kind), *(y.astype(kind if y is not kappa else dtype) for y in extra)]
    if "step" in spec:
        tensors, others = ([np.repeat(y, 2, axis=-1)[..., ::2] for y in several] for several in (tensors, others))
    options: dict[str, Any] = {"scale": spec["scale"]} if "scale" in spec else {}
    if "state" in spec:
        options["initial_state"] = x["state"].astype(dtype if "wide" in spec else wide)
    if "cu_seqlens" in spec:
        options["cu_seqlens"] = np.array(spec["cu_seqlens"])
    if chunk:
        options["chunk"] = int(chunk)
    if form == "vjp":
        if "state" in spec:
            options["dstate"] = x["dstate"].astype(wide)
        return (*tensors, *others), options
    return (*tensors[1:], *others), options


MEANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_sequence_state": {"batch": (), "T": 9, "state": True},
    "two_batch_axes": {"batch": (2, 1), "T": 5, "E": 3},
    "state_wide_rates": {"batch": (), "T": 6, "state": True, "wide": True},
    "no_tokens": {"T": 0, "state": True},
    "no_tokens_no_state": {"T": 0},
    "one_token": {"T": 1, "batch": ()},
    "t63": {"T": 63, "batch": (), "state": True},
    "t130": {"T": 130, "batch": (), "E": 3},
    "no_decay": {"T": 20, "w": 0.0},
    "strong_decay": {"T": 40, "batch": (), "w": 20.0},
    "forgets_all": {"T": 9, "batch": (), "w": np.inf, "state": True},
    "large_keys": {"T": 12, "keys": 40.0},
    "large_bonus": {"T": 9, "batch": (), "bonus": 100.0},
    "rising_keys": {"T": 20, "batch": (), "rise": 6.0},
    "strided": {"T": 7, "step": 2, "state": True},
    "nan_seen": {"T": 9, "batch": (), "poison": 4},
}
MEANS_QUICK = (
    "plain",
    "one_sequence_state",
    "two_batch_axes",
    "state_wide_rates",
    "no_tokens",
    "one_token",
)
MEANS_FEW = (
    *("one_sequence_state", "state_wide_rates", "no_tokens", "no_tokens_no_state", "one_token", "t63"),
    *("plain", "two_batch_axes", "forgets_all", "large_keys", "large_bonus"),
)


def build_4(operation: str, name: str, rng: Rng, dtype: Any) -> Call:
    """Return the call of a problem, for rwkv4 in any form."""
    spec: dict[str, Any] = {"batch": (2,), "T": 15, "E": 5} | MEANS[name]
    batch, T, E = spec["batch"], spec["T"], spec["E"]
    k, v, do = rng.normal(size=(3, *batch, T, E))
    k = spec.get("keys", 1.0) * k + spec.get("rise", 0.0) * np.arange(T)[:, None]
    w, u = rng.exponential(0.5, E), spec.get("bonus", 1.0) * rng.normal(size=E)
    w[...] = spec.get("w", w)
    if "poison" in spec:
        v[..., spec["poison"], :1] = NAN
    wide = compute_dtype(dtype)
    kind = wide if "wide" in spec else dtype
    tensors = [y.astype(dtype) for y in (do, k, v)]
    if "step" in spec:
        tensors = [np.repeat(y, 2, axis=-1)[..., ::2] for y in tensors]
    arguments = (w.astype(kind), u.astype(kind), *tensors[1:])
    options: dict[str, Any] = {}
    if "state" in spec:
        num, m, *cotangents = rng.normal(size=(5, *batch, E))
        den = rng.uniform(0.5, 2.0, (*batch, E))
        options["initial_state"] = Rwkv4State(*(y.astype(wide) for y in (num, den, m)))
        if operation.endswith("_vjp"):
            options["dstate"] = Rwkv4State(*(y.astype(wide) for y in cotangents))
    return ((tensors[0], *arguments) if operation.endswith("_vjp") else arguments), options


def _families() -> dict[str, Family]:
    found = {}
    for version in (5, 6, 7):
        left_out = {5: CONSTANT, 7: ERASING}.get(version, ())
        whole = tuple(name for name in PROBLEMS if name not in left_out)
        forgotten = tuple(name for name in ("forgotten_nan",) if name not in left_out)
        chunks = (*CHUNKS, *(f"{name}+chunk=5" for name in forgotten))
        for form, names in {"": whole, "_recurrent": (*FEW, *forgotten), "_chunked": chunks, "_vjp": whole}.items():

            def draw(name: str, rng: Rng, dtype: Any, operation: str = f"rwkv{version}{form}") -> Call:
                return build(operation, name, rng, dtype)

            found[f"rwkv{version}{form}"] = Family(names, draw, names, tuple(name for name in names if name in QUICK))
    for form, names in {"": tuple(MEANS), "_recurrent": MEANS_FEW, "_vjp": tuple(MEANS)}.items():

        def draw_4(name: str, rng: Rng, dtype: Any, operation: str = f"rwkv4{form}") -> Call:
            return build_4(operation, name, rng, dtype)

        found[f"rwkv4{form}"] = Family(names, draw_4, names, tuple(name for name in names if name in MEANS_QUICK))
    return found


FAMILIES: dict[str, Family] = _families()
