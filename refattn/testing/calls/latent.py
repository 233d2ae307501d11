"""The calls that latent attention (MLA) is tried on."""

from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import compute_dtype
from refattn.testing.calls.family import Call, Family, own
from refattn.testing.values import Inputs, Rng

LATENTS: dict[str, dict[str, Any]] = {
    "causal": {"mask": masks.causal()},
    "one_sequence": {"batch": (), "lse": False},
    "two_batch_axes": {"batch": (2, 2), "H": 1, "Tq": 3, "Tk": 5},
    "decode": {"Tq": 1, "Tk": 66, "mask": masks.padding([66, 17])},
    "t130_window": {"batch": (), "H": 2, "Tq": 130, "Tk": 130, "mask": masks.causal() & masks.window(40, 0)},
    "narrow_latent": {"L": 3, "Dn": 16, "Dr": 2, "Dv": 9, "scale": 0.2},
    "no_rope": {"Dr": 0},
    "mask_per_head": {"seen_by_head": True},
    "blind_rows": {"mask": masks.causal(-4)},
    "blind_rows_nan_weights": {"mask": masks.causal(-4), "nan_weights": True},
    "large_scores": {"size": 40.0, "mask": masks.causal()},
    "nan_tokens_unseen": {"mask": masks.padding([9, 0]), "poison": np.nan},
    "nan_query_seen": {"nan_query": True},
    "no_keys": {"Tk": 0},
    "no_queries": {"Tq": 0},
}


def _latent(name: str, rng: Rng, dtype: Any) -> Call:
    spec: dict[str, Any] = {"batch": (2,), "H": 3, "Tq": 9, "Tk": 13, "Dn": 8, "Dr": 4, "L": 12, "Dv": 6}
    spec |= {"mask": None, "size": 1.0, "poison": 0.0, "lse": True} | LATENTS[name]
    batch, H, Tq, Tk, Dn, Dr, L, Dv = (spec[key] for key in ("batch", "H", "Tq", "Tk", "Dn", "Dr", "L", "Dv"))
    x: Inputs = {
        "q_nope": spec["size"] * rng.normal(size=(*batch, H, Tq, Dn)),
        "q_rope": spec["size"] * rng.normal(size=(*batch, H, Tq, Dr)),
        "c_kv": rng.normal(size=(*batch, Tk, L)),
        "k_rope": rng.normal(size=(*batch, Tk, Dr)),
        "w_uk": rng.normal(size=(H, L, Dn)) / np.sqrt(L),
        "w_uv": rng.normal(size=(H, L, Dv)) / np.sqrt(L),
    }
    mask = spec["mask"]
    if spec["poison"]:
        x["c_kv"][0, 9:], x["k_rope"][0, 9:] = spec["poison"], spec["poison"]
        x["c_kv"][1:], x["k_rope"][1:] = spec["poison"], spec["poison"]
    if "nan_query" in spec:
        x["q_nope"][..., 3, 1] = np.nan
    if "nan_weights" in spec:
        x["w_uv"][1, 5, 2] = np.nan
    if "seen_by_head" in spec:
        mask = rng.random((H, Tq, Tk)) < 0.5
        mask[1, :, 4], mask[2, 5] = False, False  # a token that one head never sees, and a query that sees nothing
        x["c_kv"][..., 7, 2] = np.nan
        mask[..., 7] = False
    options = {"mask": mask, "return_lse": spec["lse"]}
    if "scale" in spec:
        options["scale"] = spec["scale"]
    return tuple(y.astype(dtype) for y in x.values()), options


def _latent_vjp(name: str, rng: Rng, dtype: Any) -> Call:
    args, options = _latent(name, rng, dtype)
    rows = args[0].shape[:-1]
    do = rng.normal(size=(*rows, args[5].shape[-1])).astype(dtype)
    if options.pop("return_lse"):
        options["dlse"] = rng.normal(size=rows).astype(compute_dtype(dtype))
    return (do, *args), options


FAMILIES: dict[str, Family] = {
    "mla_attention": own(LATENTS, _latent),
    "mla_attention_expanded": own(LATENTS, _latent),
    "mla_attention_vjp": own(LATENTS, _latent_vjp),
}
