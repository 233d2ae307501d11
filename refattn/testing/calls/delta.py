"""The calls that the delta rules are tried on.

Keys have lengths of 0.7 to 1.2, so that β |k|² stays below 2 and no error grows on its way; who takes keys for unit
vectors is still found out.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Inputs, Rng

NAN = np.nan
ONE_HEAD: dict[str, Any] = {"batch": (), "H": None, "Hk": None, "Hv": None}
"""2-D input."""
USUAL: dict[str, Any] = {"batch": (2,), "H": 2, "Hk": 2, "Hv": 2, "T": 20, "D": 4, "Dv": 3}
PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d_state": {**ONE_HEAD, "T": 9, "state": True},
    "five_axes_scale": {"batch": (2, 1), "T": 5, "scale": 0.3, "D": 1},
    "gqa_state": {"batch": (), "H": 4, "state": True, "T": 9},
    "gva_state_wide": {"batch": (), "Hk": 1, "Hv": 4, "state": True, "wide": True, "Dv": 6},
    "no_tokens": {"T": 0, "state": True},
    "one_token": {"T": 1, "state": True, "batch": ()},
    "t70": {"T": 70, "batch": (), "D": 8, "Dv": 8, "state": True},
    "t130_no_decay": {"T": 130, **ONE_HEAD, "gates": 0.0},
    "t130_strong_decay": {"T": 130, **ONE_HEAD, "gates": -20.0},
    "packed": {"batch": (), "T": 33, "cu_seqlens": [0, 5, 5, 16, 33], "state": True},
    "packed_nan_before": {"batch": (), "T": 21, "cu_seqlens": [0, 10, 21], "poison": {"k": 4, "v": 9, "q": 9}},
    "forgotten_nan": {"T": 24, "batch": (), "forget": [11, 12], "poison": {"k": 5, "v": 10, "state": 1}, "state": True},
    "row_forgotten_nan": {"T": 9, "batch": (), "forget_row": [0, 4], "poison": {"state": 1}, "state": True},
    "equal_keys_beta_0_1": {"beta": [0.0, 1.0], "equal": True, "gates": 0.0, "state": True},
    "beta_beyond_1": {"beta": [1.2, 1.38], "T": 33, "batch": ()},
    "keys_of_1000": {"keys": 1e3, "beta": [1e-6, 1.3e-6], "batch": ()},
    "wide_values": {"batch": (), "T": 4, "Dv": 70, "state": True},
    "strided": {"step": 2, "state": True, "T": 7},
    "nan_seen": {"poison": {"v": 7}, "T": 12, "batch": ()},
}
GATED = ("t130_strong_decay", "forgotten_nan", "row_forgotten_nan")
FEW = ("one_head_2d_state", "gqa_state", "gva_state_wide", "no_tokens", "packed", "one_token", "t70")
SMALL = ("one_head_2d_state", "gqa_state", "gva_state_wide", "no_tokens", "one_token")
QUICK = (*SMALL, "packed_nan_before", "packed+chunk=7", "packed_nan_before+chunk=8", "row_forgotten_nan")


def _tensors(spec: dict[str, Any], rng: Rng) -> Inputs:
    """Return q, k, v, do, and the states in float64."""
    batch, H, Hk, Hv, T, D, Dv = (spec[name] for name in USUAL)
    heads, key_heads, value_heads = (() if n is None else (n,) for n in (H, Hk, Hv))
    out = heads if (H or 1) > (Hv or 1) else value_heads
    x: Inputs = {
        "q": rng.normal(size=(*batch, *heads, T, D)),
        "k": rng.normal(size=(*batch, *key_heads, T, D)),
        "v": rng.normal(size=(*batch, *value_heads, T, Dv)),
        "do": rng.normal(size=(*batch, *out, T, Dv)),
    }
    if "equal" in spec:
        x["k"][...] = x["k"][..., :1, :]
    length = np.sqrt((x["k"] ** 2).sum(axis=-1, keepdims=True))
    x["k"] *= spec.get("keys", 1.0) * rng.uniform(0.7, 1.2, length.shape) / length
    lead = (len(spec["cu_seqlens"]) - 1,) if "cu_seqlens" in spec else batch
    if "state" in spec:
        x["state"], x["dstate"] = rng.normal(size=(2, *lead, *value_heads, D, Dv))
    for name, place in spec.get("poison", {}).items():
        x[name][..., place, :1] = NAN
    return x


def _gates(spec: dict[str, Any], v: Array, axes: str, rng: Rng) -> tuple[Array, Array]:
    """Return log-decays with these axes, and beta."""
    shape = v.shape[:-1] if axes == "HT" else (*v.shape[:-1], spec["D"])
    g = -rng.exponential(0.4, shape)
    if "gates" in spec:
        g[...] = spec["gates"]
    time = (slice(None),) * (axes == "HTD")
    if "forget" in spec:
        g[(..., spec["forget"], *time)] = -np.inf
    if "forget_row" in spec:  # of a single decay there is but one row
        g[(..., spec["forget_row"], *(slice(0, 2),) * (axes == "HTD"))] = -np.inf
    low, high = spec.get("beta", (0.1, 1.0))
    ends = "equal" in spec
    beta = rng.choice([low, high], v.shape[:-1]) if ends else rng.uniform(low, high, v.shape[:-1])
    return g, beta


def build(operation: str, axes: str, name: str, rng: Rng, dtype: Any) -> Call:
    """Return the call of a problem, for the gates of this operation."""
    name, _, chunk = name.partition("+chunk=")
    spec = USUAL | PROBLEMS[name]
    x = _tensors(spec, rng)
    g, beta = _gates(spec, x["v"], axes, rng)
    wide = compute_dtype(dtype)
    kind = wide if "wide" in spec else dtype
    tensors = [x[n].astype(dtype) for n in ("do", "q", "k", "v")]
    gates = [y.astype(kind) for y in ((g, beta) if axes else (beta,))]
    if "step" in spec:
        tensors = [_strided(y, spec["step"]) for y in tensors]
        gates = [_strided(y, spec["step"]) for y in gates]
    options: dict[str, Any] = {"scale": spec["scale"]} if "scale" in spec else {}
    if "state" in spec:
        options["initial_state"] = x["state"].astype(dtype if "wide" in spec else wide)
    if "cu_seqlens" in spec:
        options["cu_seqlens"] = np.array(spec["cu_seqlens"])
    if chunk:
        options["chunk"] = int(chunk)
    if operation.endswith("_vjp"):
        if "state" in spec:
            options["dstate"] = x["dstate"].astype(wide)
        return (*tensors, *gates), options
    return (*tensors[1:], *gates), options


def _strided(x: Array, step: int) -> Array:
    """Return the same numbers in an array whose last axis has gaps."""
    return np.repeat(x, step, axis=-1)[..., ::step]


def _families(operation: str, axes: str) -> dict[str, Family]:
    names = tuple(name for name in PROBLEMS if axes or name not in GATED)
    rest = tuple(name for name in names if name in GATED or name == "packed_nan_before")
    chunks = ("plain+chunk=1", "t70+chunk=16", "t130_no_decay+chunk=64", "packed+chunk=7")
    more = tuple(f"{name}+chunk=8" for name in (*rest, "equal_keys_beta_0_1", "keys_of_1000"))
    forms = {"": names, "_recurrent": (*FEW, *rest), "_chunked": (*SMALL, *chunks, *more), "_vjp": names}
    found = {}
    for form, problems in forms.items():

        def draw(name: str, rng: Rng, dtype: Any, operation: str = operation + form) -> Call:
            return build(operation, axes, name, rng, dtype)

        quick = tuple(name for name in problems if name in QUICK)
        found[operation + form] = Family(problems, draw, sixteen=problems, quick=quick)
    return found


FAMILIES: dict[str, Family] = {
    **_families("delta_rule", ""),
    **_families("gated_delta_rule", "HT"),
    **_families("kda", "HTD"),
}
