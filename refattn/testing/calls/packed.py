"""The calls that packed and paged attention is tried on.

What a call has room for besides, such as unused slots of a page, is NaN; the entries of a table that no length needs
name no page at all.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array, compute_dtype
from refattn.testing.calls.family import Call, Family, own
from refattn.testing.values import Rng, spread

NAN = np.nan
CAUSAL = masks.causal()

# lengths of each sequence: (queries, keys), or one number for both; see `_packed` for the rest
PACKED: dict[str, dict[str, Any]] = {
    "ragged": {"lengths": (5, 1, 0, 17, 33)},
    "causal": {"lengths": (3, 20, 1), "mask": CAUSAL, "borders": np.int64},
    "grouped_more_keys": {"lengths": ((7, 9), (1, 20), (0, 4), (12, 12)), "H": 6, "mask": CAUSAL},
    "fewer_keys_causal": {"lengths": ((9, 4), (3, 0), (6, 6)), "mask": CAUSAL},
    "one_sequence": {"lengths": ((20, 33),), "mask": CAUSAL, "narrow": 3},
    "no_sequences": {"lengths": ()},
    "only_empty_ones": {"lengths": ((0, 0), (0, 0))},
    "one_token_each": {"lengths": (1, 1, 1, 1), "mask": CAUSAL, "borders": np.uint8},
    "beside_t130": {"lengths": (3, (64, 130), 17), "mask": CAUSAL},
    "window": {"lengths": (30, (8, 25), 2), "mask": CAUSAL & masks.window(5, 0)},
    "sinks": {"lengths": (4, (5, 0), (6, 11)), "sinks": True, "mask": CAUSAL},
    "softcap_scale": {"lengths": (12, 7), "softcap": 1.5, "scale": 0.7},
    "nan_in_one": {"lengths": (6, 9, 17), "mask": CAUSAL, "poison": (1,), "sinks": True},
    "strided": {"lengths": (5, 11), "strided": True, "H": 4},
}


def _packed(name: str, rng: Rng, dtype: Any) -> Call:
    problem, _, variant = name.partition("+")
    spec: dict[str, Any] = {"H": 2, "Hk": 2, "D": 8, "narrow": 0, "borders": np.int32} | PACKED[problem]
    H, Hk, D = (spec[key] for key in ("H", "Hk", "D"))
    pairs = [length if isinstance(length, tuple) else (length, length) for length in spec["lengths"]]
    borders = np.concatenate([np.zeros((1, 2), int), np.cumsum(np.array(pairs, int).reshape(-1, 2), axis=0)])
    total_q, total_k = (int(total) for total in borders[-1])
    q, k, v = (rng.normal(size=size) for size in ((total_q, H, D), (total_k, Hk, D), (total_k, Hk, D - spec["narrow"])))
    for b in spec.get("poison", ()):
        q[borders[b, 0] + 2, 0], k[borders[b + 1, 1] - 1, 0], v[borders[b + 1, 1] - 1, 1] = NAN, NAN, NAN
    layout = spread if spec.get("strided") else np.ascontiguousarray
    arrays = [layout(x.astype(dtype)) for x in (q, k, v)]
    options: dict[str, Any] = {key: spec[key] for key in ("mask", "scale", "softcap") if key in spec}
    if spec.get("sinks"):
        options["sinks"] = rng.normal(size=H).astype(dtype)
    cu_seqlens = [borders[:, side].astype(spec["borders"]) for side in (0, 1)]
    return (*arrays, *cu_seqlens), options | ({} if variant == "o_only" else {"return_lse": True})


def _packed_vjp(name: str, rng: Rng, dtype: Any) -> Call:
    problem, _, variant = name.partition("+")
    args, options = _packed(f"{problem}+o_only", rng, dtype)
    q, _, v = args[:3]
    do = rng.normal(size=(*q.shape[:2], v.shape[-1])).astype(dtype)
    if variant == "dlse":
        options["dlse"] = rng.normal(size=(q.shape[1], len(q))).astype(compute_dtype(dtype))
    return (do, *args), options


# lengths of each sequence in keys; see `_paged` for the rest
PAGED: dict[str, dict[str, Any]] = {
    "decode": {"lengths": (5, 40, 16, 33), "mask": CAUSAL},
    "prefill_page3": {"lengths": (7, 20, 9), "Tq": 7, "page": 3, "mask": CAUSAL, "H": 6},
    "page1": {"lengths": (4, 1, 9), "Tq": 2, "page": 1, "mask": CAUSAL},
    "one_page": {"lengths": (5, 1), "page": 64, "integers": np.int64},
    "shared_pages": {"lengths": (40, 35), "shared": 2, "H": 4, "mask": CAUSAL},
    "fewer_keys_causal": {"lengths": (2, 9, 0), "Tq": 5, "page": 3, "mask": CAUSAL},
    "no_sequences": {"lengths": ()},
    "no_queries": {"lengths": (3, 4), "Tq": 0, "page": 3},
    "no_pages": {"lengths": (0, 0), "spare": 0},
    "full_pages_window": {"lengths": (48, 16), "Tq": 9, "mask": CAUSAL & masks.window(17, 0), "wide": 0},
    "sinks": {"lengths": (10, 0, 3), "page": 3, "sinks": True, "integers": np.uint16, "unused": 65535},
    "softcap_scale": {"lengths": (17, 5), "Tq": 3, "softcap": 1.5, "scale": 0.7, "narrow": 3},
    "nan_in_one": {"lengths": (6, 9), "Tq": 4, "page": 3, "mask": CAUSAL, "poison": 1},
    "strided_t130": {"lengths": (130, 30), "strided": True},
}


def _paged(name: str, rng: Rng, dtype: Any) -> Call:
    problem, _, variant = name.partition("+")
    spec: dict[str, Any] = {
        "H": 2,
        "Hk": 2,
        "D": 8,
        "Tq": 1,
        "page": 16,
        "narrow": 0,
        "shared": 0,
        "spare": 3,
        "wide": 2,
    }
    spec |= {"integers": np.int32, "unused": -1} | PAGED[problem]
    B, P, Hk, D = len(spec["lengths"]), spec["page"], spec["Hk"], spec["D"]
    used = [-(-length // P) for length in spec["lengths"]]
    order = rng.permutation(sum(used) + spec["spare"])
    table = np.full((B, max(used, default=0) + spec["wide"]), spec["unused"], spec["integers"])
    pools = [np.full((len(order), P, Hk, width), NAN) for width in (D, D - spec["narrow"])]
    for b, (length, n) in enumerate(zip(spec["lengths"], used, strict=True)):
        start = sum(used[:b])
        table[b, :n] = order[start : start + n]
        table[1:, : spec["shared"]] = table[0, : spec["shared"]]
        for pool in pools:
            _fill(pool, table[b, :n], rng.normal(size=(length, *pool.shape[2:])))
    if "poison" in spec:
        b = spec["poison"]
        pools[1][table[b, used[b] - 1], (spec["lengths"][b] - 1) % P, 0] = NAN  # its last value
    layout = spread if spec.get("strided") else np.ascontiguousarray
    arrays = (layout(x.astype(dtype)) for x in (rng.normal(size=(B, spec["H"], spec["Tq"], D)), *pools))
    options: dict[str, Any] = {key: spec[key] for key in ("mask", "scale", "softcap") if key in spec}
    if spec.get("sinks"):
        options["sinks"] = rng.normal(size=spec["H"]).astype(dtype)
    lengths = np.array(spec["lengths"], spec["integers"])
    return (*arrays, table, lengths), options | ({} if variant == "o_only" else {"return_lse": True})


def _fill(pool: Array, pages: Array, tokens: Array) -> None:
    """Write the tokens into the pages."""
    page, slot = np.divmod(np.arange(len(tokens)), pool.shape[1])
    pool[pages[page], slot] = tokens


_BACKWARD = own({**PACKED, "sinks+dlse": {}, "grouped_more_keys+dlse": {}}, _packed_vjp)
"""A token alone has gradients that are exactly 0, or what is left of lse's rounding: no sample of an error."""

FAMILIES: dict[str, Family] = {
    "attention_varlen": own({**PACKED, "ragged+o_only": {}}, _packed),
    "attention_varlen_vjp": replace(_BACKWARD, quick=tuple(n for n in _BACKWARD.quick if n != "one_token_each")),
    "paged_attention": own({**PAGED, "decode+o_only": {}}, _paged),
}
