"""The calls that dense attention and what belongs to it are tried on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import compute_dtype
from refattn.dense.attention import attention
from refattn.testing.calls.family import Call, Family, as_float64, own
from refattn.testing.problems import PROBLEMS, draw
from refattn.testing.values import Inputs, Rng

SIXTEEN = (
    *("plain", "causal", "one_head_2d", "grouped_6_2", "t1", "t64", "t130", "d1", "d33", "d80", "d128"),
    *("narrow_values", "few_queries_causal", "few_keys_causal", "no_keys", "no_queries", "window", "padding_nothing"),
    *("blind_rows_sinks", "array_per_head", "bias_of_heads", "alibi", "softcap_bias_sinks", "sinks"),
    *("dropout_everything", "large_scores", "needles", "equal_keys", "rising_maximum", "tokens_first"),
    *("nan_keys_unseen", "nan_values_unseen", "nan_query_seen"),
)
QUICK = (
    *("plain", "causal", "one_head_2d_causal_sinks", "grouped_6_2", "t1", "t130", "d33", "wide_values"),
    *("few_queries_causal", "few_keys_causal", "no_keys", "no_queries", "padding_nothing", "nested", "array_per_head"),
    *("bias_of_heads", "bias_of_pairs", "softcap_bias_sinks", "sinks_causal_grouped", "dropout_everything"),
    *("needles_window", "strided", "nan_keys_unseen", "nan_values_unseen", "blind_rows"),
)


def _dense(*variants: str, build: Callable[[str, Rng, Any], Call], without: tuple[str, ...] = ()) -> Family:
    names = (*(name for name in PROBLEMS if name not in without), *variants)
    return Family(names, build, (*SIXTEEN, *variants), (*QUICK, *variants))


def _problem(name: str, rng: Rng, dtype: Any) -> tuple[Inputs, dict[str, Any], dict[str, int]]:
    """Return the arrays, the keywords, and what the variant says: "tile_q=7,dlse" is {"tile_q": 7, "dlse": 1}."""
    problem, _, variant = name.partition("+")
    x, options = draw(PROBLEMS[problem], rng, dtype)
    options |= {extra: x[extra] for extra in ("bias", "sinks", "dropout_mask") if extra in x}
    said = {key: int(number or 1) for key, _, number in (part.partition("=") for part in variant.split(",") if part)}
    return x, options, said


def _attention(name: str, rng: Rng, dtype: Any) -> Call:
    x, options, said = _problem(name, rng, dtype)
    return (x["q"], x["k"], x["v"]), options | {"return_lse": "o_only" not in said}


def _flash(name: str, rng: Rng, dtype: Any) -> Call:
    x, options, said = _problem(name, rng, dtype)
    return (x["q"], x["k"], x["v"]), options | said


def _split(name: str, rng: Rng, dtype: Any) -> Call:
    x, options, said = _problem(name, rng, dtype)
    return (x["q"], x["k"], x["v"]), options | {"return_lse": True} | said


def _attention_vjp(name: str, rng: Rng, dtype: Any) -> Call:
    x, options, said = _problem(name, rng, dtype)
    if said.pop("dlse", 0):
        options["dlse"] = x["dlse"].astype(compute_dtype(dtype))
    return (x["do"], x["q"], x["k"], x["v"]), options | said


def _flash_vjp(name: str, rng: Rng, dtype: Any) -> Call:
    (do, q, k, v), options = _attention_vjp(name, rng, dtype)
    forward = {key: x for key, x in options.items() if key not in ("dlse", "tile_q", "tile_k")}
    wide = {key: as_float64(x) for key, x in forward.items()}
    with np.errstate(all="ignore"):  # NaN is meant
        o, lse = attention(*(as_float64(x) for x in (q, k, v)), **wide, return_lse=True, backend="numpy")
    return (do, q, k, v, o.astype(dtype), lse.astype(compute_dtype(dtype))), options


MERGES: dict[str, dict[str, Any]] = {
    "two": {},
    "one": {"parts": 1},
    "five": {"parts": 5},
    "sinks": {"parts": 3, "sinks": True},
    "one_head_2d": {"shape": (7, 4)},
    "one_head_2d_sinks": {"shape": (7, 4), "sinks": True},
    "five_axes": {"shape": (2, 3, 4, 7, 8)},
    "long": {"shape": (2, 4, 130, 65), "parts": 3},
    "no_queries": {"shape": (4, 0, 8)},
    "one_blind": {"blind": 1},
    "all_blind": {"blind": 2},
    "all_blind_sinks": {"blind": 2, "sinks": True},
    "nan_in_blind": {"blind": 1, "poison": np.nan},
    "inf_in_blind": {"blind": 1, "poison": np.inf},
    "far_apart": {"apart": 60.0},
    "large_lse": {"apart": 1e4},
    "nan_seen": {"seen": np.nan},
}


def _merge(name: str, rng: Rng, dtype: Any) -> Call:
    spec: dict[str, Any] = {
        "shape": (2, 4, 9, 8),
        "parts": 2,
        "sinks": False,
        "blind": 0,
        "poison": 0.0,
        "apart": 1.0,
    } | MERGES[name]
    parts = []
    for n in range(spec["parts"]):
        o = rng.normal(size=spec["shape"])
        lse = spec["apart"] * rng.normal(size=spec["shape"][:-1])
        if n < spec["blind"]:
            lse[..., ::2], o[..., ::2, :] = -np.inf, spec["poison"]
        if n == 0 and "seen" in spec:
            o[..., 3, 1] = spec["seen"]
        parts.append((o.astype(dtype), lse.astype(compute_dtype(dtype))))
    heads = spec["shape"][-3] if len(spec["shape"]) > 2 else 1
    return tuple(parts), {"sinks": rng.normal(size=heads).astype(dtype)} if spec["sinks"] else {}


ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_head_2d": {"shape": (9, 8)},
    "five_axes": {"shape": (2, 3, 4, 9, 8)},
    "positions_per_sequence": {"shape": (2, 4, 9, 8), "positions": (2, 9)},
    "positions_unsigned": {"positions_dtype": np.uint16},
    "positions_int32": {"positions_dtype": np.int32},
    "positions_far": {"first": 100_000},
    "positions_negative": {"first": -50},
    "interleaved": {"interleaved": True},
    "rotary_dim": {"rotary_dim": 10},
    "rotary_dim_interleaved": {"rotary_dim": 6, "interleaved": True},
    "rotary_dim_zero": {"rotary_dim": 0},
    "theta": {"theta": 500.0},
    "two_wide": {"shape": (2, 5, 2)},
    "d128": {"shape": (2, 65, 128)},
    "odd_width": {"shape": (2, 5, 7), "rotary_dim": 4},
    "no_tokens": {"shape": (2, 0, 8)},
    "strided": {"step": -1},
    "nan_seen": {"seen": np.nan},
    "frequencies": {"frequencies": np.array([2.5, 1.0, 0.3, 0.3, 0.02, 0.0, -0.1, 1e-5])},
    "frequencies_interleaved": {"frequencies": np.linspace(0.9, 0.1, 8), "interleaved": True},
    "frequencies_rotary_dim": {"frequencies": np.array([0.7, 0.05, 0.4]), "rotary_dim": 6, "positions": (2, 33)},
}


def _rope(name: str, rng: Rng, dtype: Any) -> Call:
    spec = {key: np.copy(value) if key == "frequencies" else value for key, value in ROPES[name].items()}
    x = rng.normal(size=spec.pop("shape", (2, 4, 33, 16)))
    if "seen" in spec:
        x[..., 3, 0] = spec.pop("seen")
    T, step = x.shape[-2], spec.pop("step", 1)
    first, kind = spec.pop("first", 0), spec.pop("positions_dtype", np.int64)
    positions = (first + rng.integers(0, 200, size=spec.pop("positions", (T,)))).astype(kind)
    return (x.astype(dtype)[..., ::step], positions), spec


HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tokens_2d": {"batch": ()},
    "two_batch_axes": {"batch": (2, 3)},
    "grouped": {"heads": 6, "kv_heads": 2},
    "one_kv_head": {"kv_heads": 1},
    "biases": {"b": "qkvo"},
    "bias_of_q_only": {"b": "q"},
    "context": {"Tk": 50, "d_context": 20, "b": "v"},
    "context_causal": {"Tk": 50, "mask": masks.causal()},
    "causal": {"mask": masks.causal()},
    "padding": {"mask": masks.padding([0, 20])},
    "narrow_values": {"Dv": 3, "d_out": 5},
    "scores_bias_sinks": {"bias": (4, 33, 33), "sinks": True, "softcap": 5.0},
    "bias_per_head": {"bias": (4, 1, 1), "mask": masks.causal()},
    "dropout": {"dropout": (33, 33)},
    "scale": {"scale": 0.3},
    "one_token": {"T": 1},
    "no_tokens": {"T": 0},
    "t130": {"T": 130, "mask": masks.causal() & masks.window(40, 0)},
}


def _heads(name: str, rng: Rng, dtype: Any) -> Call:
    spec: dict[str, Any] = {
        "batch": (2,),
        "heads": 4,
        "T": 33,
        "Tk": None,
        "d_model": 12,
        "D": 4,
        "Dv": 4,
        "d_out": 12,
        "b": "",
    }
    spec |= HEADS[name]
    take = spec.pop
    heads, T, Tk, d_model = take("heads"), take("T"), take("Tk"), take("d_model")
    batch, D, Dv, d_out = take("batch"), take("D"), take("Dv"), take("d_out")
    kv_heads, d_context = spec.get("kv_heads", heads), take("d_context", d_model)
    columns = {"q": heads * D, "k": kv_heads * D, "v": kv_heads * Dv, "o": d_out}
    rows = {"q": d_model, "k": d_context, "v": d_context, "o": heads * Dv}
    x: Inputs = {"x": rng.normal(size=(*batch, T, d_model))}
    x |= {f"w_{n}": rng.normal(size=(rows[n], columns[n])) / np.sqrt(rows[n]) for n in "qkvo"}
    x |= {f"b_{n}": rng.normal(size=columns[n]) for n in take("b")}
    if Tk is not None:
        x["context"] = rng.normal(size=(*batch, Tk, d_context))
    if "bias" in spec:
        x["bias"] = rng.normal(size=take("bias"))
    if take("sinks", False):
        x["sinks"] = rng.normal(size=heads)
    x = {key: value.astype(dtype) for key, value in x.items()}
    if "dropout" in spec:
        spec |= {"dropout_mask": rng.random(take("dropout")) < 0.7, "dropout_p": 0.3}
    args = tuple(x.pop(key) for key in ("x", "w_q", "w_k", "w_v", "w_o"))
    return args, {"heads": heads} | spec | x


def _heads_vjp(name: str, rng: Rng, dtype: Any) -> Call:
    args, kwargs = _heads(name, rng, dtype)
    do = rng.normal(size=(*args[0].shape[:-1], args[4].shape[1])).astype(dtype)
    return (do, *args), kwargs


_BACKWARD = ("causal+dlse", "blind_rows_sinks+dlse", "dropout_everything+dlse", "grouped_6_2+dlse")

FAMILIES: dict[str, Family] = {
    "attention": _dense("causal+o_only", "sinks+o_only", build=_attention),
    "attention_vjp": _dense(*_BACKWARD, build=_attention_vjp, without=("inf_value_seen",)),
    "flash_attention": _dense(
        "t17+tile_q=1,tile_k=1",
        "t130+tile_q=7,tile_k=13",
        "window_tile+tile_q=32,tile_k=64",
        "nested+tile_q=200,tile_k=16",
        "softcap_bias_sinks+tile_q=16,tile_k=200",
        "blind_rows+tile_q=3,tile_k=5",
        build=_flash,
    ),
    "flash_attention_vjp": _dense(
        *_BACKWARD,
        "t130+tile_q=7,tile_k=13",
        "bias_of_keys+tile_q=32,tile_k=64",
        "dropout_everything+dlse,tile_q=16,tile_k=200",
        build=_flash_vjp,
        without=("inf_value_seen",),
    ),
    "attention_split_kv": _dense(
        "plain+num_splits=1",
        "one_query+num_splits=7",
        "sinks_causal_grouped+num_splits=3",
        "sinks_t300+num_splits=2",
        "dropout_everything+num_splits=5",
        "few_keys+num_splits=9",
        build=_split,
    ),
    "merge_attention": own(MERGES, _merge),
    "rope": own(ROPES, _rope),
    "rope_vjp": own(ROPES, _rope),
    "multi_head_attention": own(HEADS, _heads),
    "multi_head_attention_vjp": own(HEADS, _heads_vjp),
}
