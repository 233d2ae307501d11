"""The calls that attention to keys that are chosen by content is tried on.

A choice is compared exactly, so it must not hang on rounding. Where single scores or means decide, queries and keys
are small whole numbers (and chunks have a power of two of keys): every dtype has the same scores, ties included. The
importance of blocks in `nsa_attention` is a sum of exponentials; there the numbers are such that no choice is close.
"""

from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.testing.calls.family import Call, Family, own
from refattn.testing.values import Inputs, Rng

NAN = np.nan
SHAPES: dict[str, Any] = {"batch": (), "H": 4, "Hk": 2, "Tq": 33, "Tk": 33, "D": 8, "Dv": 5}
ONE_HEAD: dict[str, Any] = {"H": None, "Hk": None}
"""2-D input."""


def _draw(spec: dict[str, Any], rng: Rng, whole: bool) -> Inputs:
    """Take the shapes, `equal` and `poison` out of `spec` and return q, k, v in float64; perhaps in whole numbers."""
    batch, H, Hk, Tq, Tk, D, Dv = (spec.pop(name) for name in SHAPES)
    heads, kv_heads = (() if count is None else (count,) for count in (H, Hk))
    shapes = {"q": (*batch, *heads, Tq, D), "k": (*batch, *kv_heads, Tk, D)}
    x: Inputs = {
        name: rng.integers(-2, 3, shape).astype(float) if whole else rng.normal(size=shape)
        for name, shape in shapes.items()
    }
    x["v"] = rng.normal(size=(*batch, *kv_heads, Tk, Dv))
    if spec.pop("equal", False):
        x["k"][...] = 1
    for name, place in spec.pop("poison", {}).items():
        x[name][..., place, :] = NAN
    return x


def _some(rng: Rng, lead: tuple[int, ...], n: int, count: int) -> Array:
    """Draw `n` different numbers below `count` for each query, some of them -1."""
    places = rng.permuted(np.broadcast_to(np.arange(count), (*lead, count)), axis=-1)[..., :n]
    return np.where(rng.random(places.shape) < 0.2, -1, places)


TOPK: dict[str, dict[str, Any]] = {
    "causal": {"batch": (2,), "mask": masks.causal()},
    "one_head_2d_sinks": {**ONE_HEAD, "sinks": 1, "mask": masks.causal()},
    "grouped_6_2": {"H": 6, "n_keys": 7},
    "few_queries_softcap": {"Tq": 5, "Tk": 65, "mask": masks.causal(), "softcap": 0.5},
    "more_queries_than_keys": {"Tq": 9, "Tk": 3, "mask": masks.causal(), "scale": 0.3},
    "equal_keys": {"equal": True, "mask": masks.causal() & masks.window(9, 0)},
    "one_key": {"n_keys": 1, "mask": masks.causal()},
    "negative_scale": {"scale": -0.5, "Tq": 17, "Tk": 17},
    "d1": {"D": 1, "Dv": 1, "sinks": 4, "mask": masks.window(2, 2)},
    "blind_rows_sinks": {"sinks": 4, "mask": "blind", "Tq": 9, "Tk": 9},
    "nan_hidden": {"batch": (2,), "mask": masks.padding([30, 20]), "poison": {"k": slice(30, 33), "v": slice(30, 33)}},
    "nan_key_seen": {"mask": masks.causal(), "poison": {"k": 20}},
    "nan_value_not_chosen": {"n_keys": 3, "poison": {"v": slice(0, 8)}},
    "indices": {"indices": True, "n_keys": 6, "mask": masks.causal()},
    "no_keys": {"Tk": 0, "sinks": 4},
    "no_queries": {"Tq": 0},
}


def _topk(name: str, rng: Rng, dtype: Any) -> Call:
    spec = {**SHAPES, "n_keys": 4} | TOPK[name]
    x = _draw(spec, rng, whole=True)
    x = {key: value.astype(dtype) for key, value in x.items()}
    if "sinks" in spec:
        spec["sinks"] = rng.normal(size=spec["sinks"]).astype(dtype)
    if spec.get("mask") == "blind":
        visible = rng.random((9, 9)) < 0.5
        visible[[0, 4]] = False
        spec["mask"] = visible
    if "indices" in spec:
        spec["indices"] = _some(rng, x["q"].shape[:-1], spec["n_keys"], x["k"].shape[-2])
    return (x["q"], x["k"], x["v"]), spec


MOBA: dict[str, dict[str, Any]] = {
    "plain": {"batch": (2,)},
    "one_head_2d": {**ONE_HEAD, "Tq": 19, "Tk": 19},
    "grouped_6_2": {"H": 6, "chunk": 8, "top_k": 2},
    "few_queries": {"Tq": 5, "Tk": 61},
    "more_queries_than_keys": {"Tq": 11, "Tk": 6, "chunk": 2, "top_k": 2},
    "own_chunk_only": {"top_k": 1, "chunk": 8, "scale": 0.3},
    "one_chunk": {"chunk": 64},
    "more_chunks_than_there_are": {"top_k": 20, "Tq": 17, "Tk": 17},
    "equal_keys": {"equal": True, "top_k": 4},
    "d1": {"D": 1, "Dv": 1, "chunk": 2, "top_k": 5},
    "nan_last": {"Tq": 35, "Tk": 35, "poison": {"k": 34, "v": 34}},
    "nan_key_seen": {"poison": {"k": 13}},
    "nan_value_seen": {"poison": {"v": 13}},
    "indices": {"indices": True, "top_k": 4},
    "no_keys": {"Tk": 0},
    "no_queries": {"Tq": 0},
}


def _moba(name: str, rng: Rng, dtype: Any) -> Call:
    spec = {**SHAPES, "chunk": 4, "top_k": 3} | MOBA[name]
    x = _draw(spec, rng, whole=True)
    if "indices" in spec:
        spec["indices"] = _some(rng, x["q"].shape[:-1], spec["top_k"], -(-x["k"].shape[-2] // spec["chunk"]))
    return tuple(x[key].astype(dtype) for key in "qkv"), spec


NSA_SIZES = {"block_size": 4, "stride": 2, "select_block": 4, "n_selected": 5, "window": 6}
NSA: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"batch": (2,), "Tq": 24, "Tk": 24, "n_selected": 4},
    "one_head_2d": {**ONE_HEAD},
    "three_overlap": {"block_size": 6, "n_selected": 4},
    "nothing_overlaps": {"stride": 4, "select_block": 8, "n_selected": 3, "Tq": 39, "Tk": 39},
    "stride_1": {"stride": 1, "block_size": 2, "select_block": 3, "n_selected": 6},
    "few_queries": {"Tq": 5, "Tk": 50},
    "more_queries_than_keys": {"Tq": 12, "Tk": 5, "window": 2},
    "shorter_than_a_block": {"Tq": 3, "Tk": 3},
    "wide_window": {"window": 100, "Tq": 17, "Tk": 17, "scale": 0.2},
    "weights": {"H": 6, "w": True, "Tq": 21, "Tk": 21},
    "own_projections": {"own": True},
    "equal_keys": {"equal": True, "Tq": 43, "Tk": 43},
    "d1": {"D": 1, "Dv": 1, "H": 2, "Hk": 1, "Tq": 19, "Tk": 19},
    "nan_last": {"poison": {"k": 32, "v": 32}},
    "nan_value_seen": {"poison": {"v": 9}},
    "indices": {"indices": True},
    "no_keys": {"Tk": 0},
    "no_queries": {"Tq": 0},
}


def _nsa(name: str, rng: Rng, dtype: Any) -> Call:
    spec: dict[str, Any] = {**SHAPES, **NSA_SIZES} | NSA[name]
    kv_heads = spec["Hk"] or 1
    x = _draw(spec, rng, whole=False)
    gates = rng.uniform(0.1, 1, size=(*x["q"].shape[:-1], 3))
    more: Inputs = {}
    if spec.pop("w", False):
        more |= {key: rng.normal(size=(kv_heads, spec["block_size"])) for key in ("w_k", "w_v")}
    if spec.pop("own", False):
        more |= {f"{key}_{branch}": rng.normal(size=x[key].shape) for branch in ("selected", "window") for key in "kv"}
    spec |= {key: value.astype(dtype) for key, value in more.items()}
    if "indices" in spec:
        lead = (*x["k"].shape[:-2], x["q"].shape[-2])
        spec["indices"] = _some(rng, lead, spec["n_selected"], -(-x["k"].shape[-2] // spec["select_block"]))
    return tuple(y.astype(dtype) for y in (x["q"], x["k"], x["v"], gates)), spec


LSH: dict[str, dict[str, Any]] = {
    "plain": {"batch": (2,)},
    "not_causal": {"causal": False},
    "one_head_2d": {"H": None, "T": 19},
    "one_round": {"rounds": 1, "chunk": 3},
    "five_rounds": {"rounds": 5, "half": 1, "T": 21},
    "multiple_of_chunk": {"T": 32, "scale": 0.3},
    "one_chunk": {"chunk": 40},
    "chunks_of_one": {"chunk": 1, "causal": False},
    "all_in_one_bucket": {"equal": True},
    "all_in_one_bucket_not_causal": {"equal": True, "causal": False, "T": 14},
    "buckets": {"buckets": 3},
    "buckets_not_causal": {"buckets": 5, "causal": False, "T": 26},
    "each_by_itself": {"buckets": 1000, "T": 9},
    "zero_rows": {"zero": slice(3, 12)},
    "d1": {"D": 1, "half": 2, "T": 17},
    "nan_by_itself": {"buckets": 3, "poison": ("qk", "v")},
    "nan_value_seen": {"poison": ("v",)},
    "no_tokens": {"T": 0},
}


def _lsh(name: str, rng: Rng, dtype: Any) -> Call:
    spec: dict[str, Any] = {"batch": (), "H": 3, "T": 33, "D": 6, "rounds": 2, "half": 2, "chunk": 4} | LSH[name]
    batch, H, T, D, rounds, half = (spec.pop(key) for key in ("batch", "H", "T", "D", "rounds", "half"))
    lead = batch if H is None else (*batch, H)
    x: Inputs = {"qk": rng.integers(-2, 3, (*lead, T, D)).astype(float), "v": rng.normal(size=(*lead, T, 5))}
    if spec.pop("equal", False):
        x["qk"][...] = 1
    x["qk"][..., spec.pop("zero", slice(0, 0)), :] = 0
    for key in (poison := spec.pop("poison", ())):
        x[key][..., 14, :] = NAN
    if "buckets" in spec:
        spec["buckets"] = rng.integers(0, spec["buckets"], (*lead, rounds, T))
        if "qk" in poison:
            spec["buckets"][..., 14] = 7
    else:
        spec["rotations"] = rng.integers(-3, 4, (rounds, D, half)).astype(dtype)
    return (x["qk"].astype(dtype), x["v"].astype(dtype)), spec


FAMILIES: dict[str, Family] = {
    "topk_attention": own(TOPK, _topk),
    "moba_attention": own(MOBA, _moba),
    "nsa_attention": own(NSA, _nsa),
    "lsh_attention": own(LSH, _lsh),
}
