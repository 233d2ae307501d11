"""The calls that sparse attention by position is tried on.

Each table has the arguments of one form by problem; `SHAPES` has what most problems of that name share. Keys and values
that are NaN stand where some queries see them and others do not: they may show in the rows that see them alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array, compute_dtype
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Inputs, Rng, spread

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "t130": {"batch": (), "H": 2, "Hk": 1, "Tq": 130, "Tk": 130},
    "one_head_2d": {"batch": (), "H": 0, "sinks": True},
    "two_batch_axes": {"batch": (2, 2), "Tq": 9, "Tk": 9, "D": 4},
    "few_queries": {"Tq": 5, "Tk": 40, "H": 6, "Hk": 2, "Dv": 3},
    "few_keys": {"Tq": 40, "Tk": 17},
    "few_keys_sinks": {"Tq": 40, "Tk": 17, "sinks": True},
    "no_keys": {"Tq": 5, "Tk": 0, "sinks": True},
    "no_queries": {"Tq": 0, "Tk": 5},
    "everything": {"H": 6, "Hk": 2, "Dv": 5, "sinks": True, "softcap": 2.0, "scale": 0.7},
    "strided": {"strided": True},
    "nan": {"poison": True, "Hk": 1},
    "own_heads": {"Hk": 4},
}
QUICK = ("plain", "few_queries", "few_keys", "few_keys_sinks", "no_keys", "everything", "nan", "one_head_2d")

LOCAL: dict[str, dict[str, Any]] = {
    "plain": {"left": 3, "right": 5},
    "t130": {"left": 40, "right": 0},
    "one_head_2d": {"left": 6, "right": 0},
    "two_batch_axes": {"left": 2, "right": None},
    "few_queries": {"left": 9, "right": 0},
    "few_keys_sinks": {"left": 4, "right": 1},
    "no_keys": {"left": 2, "right": 2},
    "no_queries": {"left": 2, "right": 2},
    "everything": {"left": 5, "right": 2},
    "strided": {"left": None, "right": 0},
    "nan": {"left": 7, "right": 3},
    "few_keys": {"left": 0, "right": 0},
    "wider_than_all": {"left": 10**6, "right": 10**6},
}
DILATED: dict[str, dict[str, Any]] = {
    "plain": {"window": 3, "step": 4},
    "t130": {"window": 5, "step": 17},
    "one_head_2d": {"window": 2, "step": 3},
    "few_queries": {"window": 4, "step": 3},
    "few_keys": {"window": 1, "step": 6},
    "few_keys_sinks": {"window": 2, "step": 5},
    "no_keys": {"window": 2, "step": 2},
    "everything": {"window": 4, "step": 2},
    "nan": {"window": 2, "step": 5},
    "strided": {"window": 3, "step": 1},
    "two_batch_axes": {"window": 0, "step": 7},
    "wider_than_all": {"window": 10**6, "step": 10**6},
}
STRIDED: dict[str, dict[str, Any]] = {
    "plain": {"local": 3, "stride": 7},
    "t130": {"local": 12, "stride": 12},
    "one_head_2d": {"local": 1, "stride": 5},
    "few_queries": {"local": 4, "stride": 9},
    "few_keys": {"local": 1, "stride": 4},
    "few_keys_sinks": {"local": 2, "stride": 5},
    "no_keys": {"local": 2, "stride": 2},
    "everything": {"local": 6, "stride": 4},
    "nan": {"local": 2, "stride": 5},
    "strided": {"local": 5, "stride": 1},
    "two_batch_axes": {"local": 1, "stride": 100},
    "wider_than_all": {"local": 10**6, "stride": 3},
}
FIXED: dict[str, dict[str, Any]] = {
    "plain": {"block": 8, "summary": 2},
    "t130": {"block": 16, "summary": 1},
    "one_head_2d": {"block": 5, "summary": 2},
    "few_queries": {"block": 6, "summary": 2},
    "few_keys": {"block": 3, "summary": 2},
    "few_keys_sinks": {"block": 5, "summary": 1},
    "no_keys": {"block": 2, "summary": 1},
    "everything": {"block": 4, "summary": 3},
    "nan": {"block": 7, "summary": 2},
    "strided": {"block": 1, "summary": 1},
    "two_batch_axes": {"block": 10**6, "summary": 3},
}
RANDOM: dict[str, dict[str, Any]] = {
    "plain": {"n_keys": 5},
    "t130": {"n_keys": 12, "seed": 3, "per_head": True},
    "one_head_2d": {"n_keys": 4, "per_head": True},
    "few_queries": {"n_keys": 7, "seed": 1, "per_head": True},
    "few_keys": {"n_keys": 3, "seed": 2},
    "no_keys": {"n_keys": 2},
    "everything": {"n_keys": 9, "per_head": True},
    "nan": {"n_keys": 6},
    "strided": {"n_keys": 25, "seed": 5},
    "more_than_all": {"n_keys": 1000},
}
GLOBAL: dict[str, dict[str, Any]] = {
    "plain": {"indices": (0, 20)},
    "t130": {"indices": (0, 64, 129)},
    "one_head_2d": {"indices": [5]},
    "few_queries": {"indices": (3, 38)},
    "few_keys": {"indices": (16, 2, 2)},
    "no_keys": {"indices": (0,)},
    "everything": {"indices": (7, 1, 30)},
    "nan": {"indices": (12,)},
    "strided": {"indices": np.array([32])},
    "beyond_the_keys": {"indices": (500, 4)},
    "none": {"indices": ()},
    "none_sinks": {"indices": (), "sinks": True},
}
BIGBIRD: dict[str, dict[str, Any]] = {
    "plain": {"block_size": 4, "n_random": 1},
    "t130": {"block_size": 16, "n_random": 2, "seed": 1, "per_head": True},
    "one_head_2d": {"block_size": 3, "n_random": 2, "per_head": True},
    "few_queries": {"block_size": 4, "n_random": 2, "per_head": True},
    "few_keys_sinks": {"block_size": 4, "n_random": 1},
    "no_keys": {"block_size": 2},
    "everything": {"block_size": 5, "n_window": 1, "global_blocks": (1,), "n_random": 1, "seed": 7},
    "nan": {"block_size": 3, "global_blocks": (), "n_random": 1},
    "strided": {"block_size": 1, "n_window": 5, "global_blocks": (0, 0, -1, 99), "n_random": 4},
    "window_alone": {"block_size": 6, "n_window": 3, "global_blocks": (), "n_random": 0},
    "one_block": {"block_size": 100, "Tq": 20},
}
LONGFORMER: dict[str, dict[str, Any]] = {
    "plain": {"window": 3, "global_indices": (0, 20)},
    "t130": {"window": 16, "global_indices": (0, 64)},
    "one_head_2d": {"window": 4, "global_indices": [5], "own": "qkv"},
    "few_queries": {"window": 4, "global_indices": (38, 3, 36), "own": "qkv"},
    "few_keys_sinks": {"window": 4, "global_indices": (16, 2, 2)},
    "no_keys": {"window": 2, "global_indices": (0,), "own": "qkv"},
    "everything": {"window": 2, "global_indices": (7, 1, 30), "own": "qkv"},
    "nan": {"window": 3, "global_indices": (12,), "own": "q"},
    "strided": {"window": 5, "global_indices": np.array([32, 1]), "own": "kv"},
    "two_batch_axes": {"window": 1, "global_indices": (4, 100), "own": "qk"},
    "no_global_tokens": {"window": 4, "own": "v", "sinks": True},
}
# how much of the layout is True, and the shape of its leading axes
BLOCK_SPARSE: dict[str, dict[str, Any]] = {
    "plain": {"block_size": 4, "share": 0.4, "lead": ()},
    "t130": {"block_size": 16, "share": 0.3, "lead": (2,)},
    "one_head_2d": {"block_size": 3, "share": 0.5, "lead": ()},
    "few_queries": {"block_size": 4, "share": 0.5, "lead": (2, 6)},
    "few_keys": {"block_size": 4, "share": 0.5, "lead": (4,)},
    "no_keys": {"block_size": 2, "share": 1.0, "lead": ()},
    "everything": {"block_size": 5, "share": 0.3, "lead": (2, 1)},
    "nan": {"block_size": 6, "share": 0.5, "lead": (1, 1)},
    "strided": {"block_size": 1, "share": 0.2, "lead": ()},
    "all_blind": {"block_size": 7, "share": 0.0, "lead": ()},
    "one_block": {"block_size": 100, "share": 1.0, "lead": ()},
}
# a mask, or the shape of a bool array to draw and how much of it is True
SPARSE: dict[str, dict[str, Any]] = {
    "plain": {"mask": masks.causal() & masks.window(9, None)},
    "t130": {"mask": masks.longformer(10, [0, 70])},
    "one_head_2d": {"mask": (33, 33), "share": 0.3, "bias": (33, 33)},
    "two_batch_axes": {"mask": (2, 2, 4, 9, 9), "share": 0.3, "bias": (2, 1, 1, 9)},
    "few_queries": {"mask": masks.causal() | masks.global_tokens([1]), "bias": (6, 5, 40)},
    "few_keys_sinks": {"mask": masks.causal(), "bias": (40, 17)},
    "no_keys": {"mask": masks.causal(), "bias": (1,)},
    "no_queries": {"mask": masks.causal()},
    "everything": {"mask": masks.causal(), "bias": (6, 33, 33), "dropout": (2, 6, 33, 33)},
    "strided": {"mask": masks.strided(3, 5), "dropout": (1, 33)},
    "nan": {"mask": masks.padding([20, 33]) & masks.window(5, 2)},
    "own_heads": {"mask": masks.random(4, 1, heads=4), "bias": (4, 1, 1)},
    "per_sequence_and_head": {"mask": (2, 4, 33, 33), "share": 0.2, "sinks": True},
    "one_row_of_keys": {"mask": (2, 1, 1, 33), "share": 0.5},
    "blind": {"mask": (33, 33), "share": 0.0},
    "fixed": {"mask": masks.fixed(6, 3)},
    "dilated": {"mask": masks.dilated(4, 3), "sinks": True},
}


def _draw(name: str, own: dict[str, Any], rng: Rng, dtype: Any) -> tuple[Inputs, dict[str, Any], dict[str, Any]]:
    """Return the arrays, the options that forms share, and what of `own` is left for the form."""
    spec: dict[str, Any] = (
        {"batch": (2,), "H": 4, "Hk": 2, "Tq": 33, "Tk": 33, "D": 8, "Dv": 8} | SHAPES.get(name, {}) | own
    )
    batch, H, Hk, Tq, Tk, D, Dv = (spec.pop(key) for key in ("batch", "H", "Hk", "Tq", "Tk", "D", "Dv"))
    q_heads, kv_heads = (*batch, H)[: len(batch) + (H > 0)], (*batch, Hk)[: len(batch) + (H > 0)]
    x: Inputs = {
        "q": rng.normal(size=(*q_heads, Tq, D)),
        "k": rng.normal(size=(*kv_heads, Tk, D)),
        "v": rng.normal(size=(*kv_heads, Tk, Dv)),
        "do": rng.normal(size=(*q_heads, Tq, Dv)),
        "dlse": rng.normal(size=(*q_heads, Tq)),
        "sinks": rng.normal(size=max(H, 1)),
    }
    if spec.pop("poison", False):
        x["k"][0, 0, 12], x["v"][1, 0, 25], x["q"][0, 1, 30] = np.nan, np.nan, np.nan
    x = {key: value.astype(dtype) for key, value in x.items()} | {"dlse": x["dlse"].astype(compute_dtype(dtype))}
    if spec.pop("strided", False):
        x |= {key: spread(x[key]) for key in ("q", "k", "v", "do")}
    options: dict[str, Any] = {key: spec.pop(key) for key in ("softcap", "scale") if key in spec}
    if spec.pop("sinks", False):
        options["sinks"] = x["sinks"]
    return x, options, spec


Form = Callable[[Inputs, dict[str, Any], Rng], dict[str, Any]]


def _as_they_are(x: Inputs, own: dict[str, Any], rng: Rng) -> dict[str, Any]:
    return own


def _longformer(x: Inputs, own: dict[str, Any], rng: Rng) -> dict[str, Any]:
    projected = {}
    for name in own.pop("own", ""):
        like: Array = x[name]
        T = len(own.get("global_indices", ())) if name == "q" else like.shape[-2]
        projected[f"{name}_global"] = rng.normal(size=(*like.shape[:-2], T, like.shape[-1])).astype(like.dtype)
    return own | projected


def _block_sparse(x: Inputs, own: dict[str, Any], rng: Rng) -> dict[str, Any]:
    size, shape = own["block_size"], (x["q"].shape[-2], x["k"].shape[-2])
    blocks = tuple(-(-T // size) for T in shape)
    return {"block_size": size, "layout": rng.random((*own["lead"], *blocks)) < own["share"]}


def _sparse(x: Inputs, own: dict[str, Any], rng: Rng) -> dict[str, Any]:
    mask, drawn = own["mask"], {}
    if isinstance(mask, tuple):
        mask = rng.random(mask) < own["share"]
    if "bias" in own:
        drawn["bias"] = rng.normal(size=own["bias"]).astype(x["q"].dtype)
    if "dropout" in own:
        drawn |= {"dropout_mask": rng.random(own["dropout"]) < 0.7, "dropout_p": 0.3}
    return {"mask": mask} | drawn


def _call(table: dict[str, dict[str, Any]], form: Form, name: str, rng: Rng, dtype: Any) -> Call:
    name, _, variant = name.partition("+")
    x, options, own = _draw(name, table[name], rng, dtype)
    options |= form(x, own, rng) | {"return_lse": variant != "o_only"}
    return (x["q"], x["k"], x["v"]), options


def _call_vjp(table: dict[str, dict[str, Any]], form: Form, name: str, rng: Rng, dtype: Any) -> Call:
    name, _, variant = name.partition("+")
    x, options, own = _draw(name, table[name], rng, dtype)
    if name == "no_keys":  # what comes back to a row that sees nothing is not read
        x["do"][..., 1, :] = np.nan
    options |= form(x, own, rng) | ({} if variant == "do_only" else {"dlse": x["dlse"]})
    return (x["do"], x["q"], x["k"], x["v"]), options


def _family(table: dict[str, dict[str, Any]], form: Form, call: Callable[..., Call], variant: str) -> Family:
    names = (*table, variant)
    return Family(names, partial(call, table, form), names, tuple(name for name in names if name in (*QUICK, variant)))


FORMS: dict[str, tuple[dict[str, dict[str, Any]], Form]] = {
    "sparse_attention": (SPARSE, _sparse),
    "local_attention": (LOCAL, _as_they_are),
    "dilated_attention": (DILATED, _as_they_are),
    "strided_attention": (STRIDED, _as_they_are),
    "fixed_attention": (FIXED, _as_they_are),
    "random_attention": (RANDOM, _as_they_are),
    "global_attention": (GLOBAL, _as_they_are),
    "bigbird_attention": (BIGBIRD, _as_they_are),
    "longformer_attention": (LONGFORMER, _longformer),
    "block_sparse_attention": (BLOCK_SPARSE, _block_sparse),
}
FAMILIES: dict[str, Family] = {
    **{name: _family(table, form, _call, "plain+o_only") for name, (table, form) in FORMS.items()},
    **{f"{name}_vjp": _family(table, form, _call_vjp, "plain+do_only") for name, (table, form) in FORMS.items()},
}
