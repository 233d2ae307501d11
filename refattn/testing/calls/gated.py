"""The calls that linear attention with decays is tried on: one table of problems, gates as each operation has them."""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Rng

GATES = {
    "simple_gla": "HT",
    "gated_linear_attention": "HTD",
    "retention": "H",
    "lightning_attention": "H",
    "hgrn2": "HTD",
}
PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {"T": 9},
    "tokens_2d": {"batch": (), "heads": (), "T": 5, "state": "wide"},
    "t1_wide_state": {"T": 1, "D": 1, "Dv": 6, "state": "wide"},
    "no_tokens": {"heads": (1, 1, 2), "T": 0, "state": "wide"},
    "packed_reset": {"batch": (), "T": 9, "borders": (0, 3, 3, 9), "state": "wide", "reset": 5},
    "resets": {"T": 9, "reset": 4, "share": 0.2},
    "fewer_keys": {"batch": (), "heads": (4, 1, 2), "T": 33, "wide_gates": True, "scale": 0.7, "state": "own"},
    "more_values": {"batch": (2, 1), "heads": (2, 2, 4), "T": 17, "gate": 0.0, "state": "wide"},
    "t70_minus_20": {"batch": (), "T": 70, "gate": -20.0, "state": "wide"},
    "t130_packed": {"batch": (), "T": 130, "D": 8, "borders": (0, 50, 50, 51, 130)},
    "t65_large_keys": {"batch": (), "T": 65, "size": 500.0, "strided": True, "wide_gates": True},
    "wide_values": {"batch": (), "T": 4, "Dv": 70, "state": "wide"},
    "nan_seen": {"T": 9, "nan": True},
}
QUICK = ("plain", "tokens_2d", "t1_wide_state", "no_tokens", "packed_reset", "resets")
FORMS = (*QUICK, "wide_values", "more_values", "t70_minus_20", "t130_packed")
CHUNKED = ("plain+2", "packed_reset+4", "resets+3", "fewer_keys+16", "t70_minus_20+64", "t130_packed+48", "no_tokens+1")


def draw(spec: dict[str, Any], rng: Rng, dtype: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays, with gates per head ("H"), token ("HT") and key dimension ("HTD"); and options.

    What a reset forgets is NaN: a key in its last dimension, where every head forgets it, and a value in the last head,
    which forgets everything; one dimension of the first head remembers.
    """
    batch, T, D, Dv, size = spec.get("batch", (2,)), spec["T"], spec.get("D", 4), spec.get("Dv", 3), spec.get("size", 1)
    heads: list[Any] = [(h,) for h in spec.get("heads", (2, 2, 2))] or [()] * 3
    H, Hk, Hv = heads
    x = {
        "q": rng.normal(size=(*batch, *H, T, D)),
        "k": size * rng.normal(size=(*batch, *Hk, T, D)),
        "v": rng.normal(size=(*batch, *Hv, T, Dv)),
        "do": rng.normal(size=(*batch, *max(H, Hv), T, Dv)),
        "H": spec.get("gate", -0.5 * rng.exponential(size=Hv or 1)) + np.zeros(Hv or 1),
        "HTD": spec.get("gate", -0.5 * rng.exponential(size=(*batch, *Hv, T, D))) + np.zeros((*batch, *Hv, T, D)),
    }
    borders, wide = spec.get("borders"), compute_dtype(dtype)
    state = (*(batch if borders is None else (len(borders) - 1,)), *Hv, D, Dv)
    options: dict[str, Any] = {"dstate": rng.normal(size=state).astype(wide)}
    if "state" in spec:
        options["initial_state"] = rng.normal(size=state).astype(wide if spec["state"] == "wide" else dtype)
    if "reset" in spec:
        t, first = spec["reset"], max(b for b in borders or (0,) if b <= spec["reset"])
        x["HTD"][rng.random(x["HTD"].shape) < spec.get("share", 0)] = -np.inf
        x["HTD"][..., t, :], x["H"][-1] = -np.inf, -np.inf
        x["HTD"][..., 0, t, 0] = -0.1
        x["k"][..., first, -1] = x["v"][..., -1, first, 0] = np.nan
    if "nan" in spec:
        x["q"][..., 0, 1, 0] = x["k"][..., -1, 3, 1] = x["v"][..., -1, 6, 0] = np.nan
    if borders is not None:
        options["cu_seqlens"] = np.array(borders, dtype=np.int32)
    if "scale" in spec:
        options["scale"] = spec["scale"]
    x["HT"] = x["HTD"][..., -1]
    kinds = {name: wide if spec.get("wide_gates") and name.startswith("H") else dtype for name in x}
    x = {name: y.astype(kinds[name]) for name, y in x.items()}
    if "strided" in spec:
        x = {name: np.asfortranarray(y)[..., ::-1] for name, y in x.items()}
    return x, options


def _build(operation: str, name: str, rng: Rng, dtype: Any) -> Call:
    problem, _, chunk = name.partition("+")
    x, options = draw(PROBLEMS[problem], rng, dtype)
    gates = next(x[axes] for kind, axes in GATES.items() if operation.startswith(kind))
    args = (x["q"], gates, x["v"]) if operation.startswith("hgrn2") else (x["q"], x["k"], x["v"], gates)
    if chunk:
        options["chunk"] = int(chunk)
    if operation.endswith("_vjp"):
        if problem == "more_values":
            del options["dstate"]
        return (x["do"], *args), options
    del options["dstate"]
    return args, options


def _families(operation: str) -> dict[str, Family]:
    names = {"": tuple(PROBLEMS), "_recurrent": FORMS, "_chunked": CHUNKED, "_vjp": tuple(PROBLEMS)}
    quick = {"": QUICK, "_recurrent": QUICK, "_chunked": CHUNKED, "_vjp": QUICK}
    return {
        operation + form: Family(names[form], partial(_build, operation + form), names[form], quick[form])
        for form in names
    }


FAMILIES: dict[str, Family] = {name: family for operation in GATES for name, family in _families(operation).items()}
