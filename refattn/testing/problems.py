"""The attention problems that every dense operation is tried on: shapes, masks, options, layouts and poison.

`PROBLEMS` is the table; `draw` turns one entry into arrays, from nothing but a seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.testing import values
from refattn.testing.values import Inputs, Rng


@dataclass(frozen=True)
class Problem:
    """One attention problem, before anything is drawn."""

    batch: tuple[int, ...] = (2,)
    H: int = 4
    Hk: int = 2
    head_axis: bool = True
    """False leaves it out: 2-D input."""
    Tq: int = 65
    Tk: int = 65
    D: int = 16
    Dv: int = 16
    mask: str | Callable[[Rng], Any] | None = None
    """Text for `masks.parse`, or a function that returns a mask or a bool array."""
    bias: tuple[int, ...] | None = None
    """Its shape."""
    sinks: bool = False
    dropout: tuple[int, ...] | None = None
    """The shape of a dropout mask."""
    options: tuple[tuple[str, Any], ...] = ()
    """Plain keywords: scale, softcap."""
    values: Callable[[Inputs, Rng], None] | None = None
    """Changes the float64 arrays in place."""
    layout: Callable[[Array], Array] | None = None
    """Gives q, k, v and do another layout in memory and the same values."""


def draw(problem: Problem, rng: Rng, dtype: Any) -> tuple[Inputs, Inputs]:
    """Return the arrays (q, k, v, do, dlse, bias, sinks, dropout_mask) and the other keywords of one problem."""
    p, heads, kv_heads = problem, (problem.H,) * problem.head_axis, (problem.Hk,) * problem.head_axis
    x: Inputs = {
        "q": rng.normal(size=(*p.batch, *heads, p.Tq, p.D)),
        "k": rng.normal(size=(*p.batch, *kv_heads, p.Tk, p.D)),
        "v": rng.normal(size=(*p.batch, *kv_heads, p.Tk, p.Dv)),
        "do": rng.normal(size=(*p.batch, *heads, p.Tq, p.Dv)),
        "dlse": rng.normal(size=(*p.batch, *heads, p.Tq)),
    }
    if p.bias is not None:
        x["bias"] = rng.normal(size=p.bias)
    if p.sinks:
        x["sinks"] = rng.normal(size=p.H)
    options = dict(p.options)
    if p.dropout is not None:
        x["dropout_mask"] = rng.random(p.dropout) < 0.7
        options["dropout_p"] = 0.3
    if p.mask is not None:
        options["mask"] = masks.parse(p.mask) if isinstance(p.mask, str) else p.mask(rng)
    if p.values is not None:
        p.values(x, rng)
    x = {name: value if value.dtype == bool else value.astype(dtype) for name, value in x.items()}
    if p.layout is not None:
        x |= {name: p.layout(x[name]) for name in ("q", "k", "v", "do")}
    return x, options


def _long(**fields: Any) -> Problem:
    """Return a problem of more than one tile: two heads are enough."""
    return Problem(batch=(), H=2, Hk=1, **fields)


NAN, INF = np.nan, np.inf
PADDED = "padding([40, 65])"  # what stands in slots from 40 on of sequence 0, nobody may see
BEYOND = (0, slice(None), slice(40, None))

PROBLEMS: dict[str, Problem] = {
    "plain": Problem(),
    "causal": Problem(mask="causal()"),
    "one_head_2d": Problem(batch=(), H=1, Hk=1, head_axis=False),
    "one_head_2d_causal_sinks": Problem(batch=(), H=1, Hk=1, head_axis=False, mask="causal()", sinks=True),
    "no_batch_3d": Problem(batch=(), mask="causal()"),
    "two_batch_axes_5d": Problem(batch=(2, 3), Tq=17, Tk=33, mask="causal()"),
    "grouped_6_2": Problem(H=6, Hk=2, mask="causal()"),
    "one_kv_head": Problem(H=4, Hk=1),
    "every_head_its_own": Problem(H=3, Hk=3, mask="causal()"),
    **{f"t{t}": Problem(Tq=t, Tk=t, mask="causal()") for t in (1, 2, 15, 16, 17, 63, 64)},
    **{f"t{t}": _long(Tq=t, Tk=t, mask="causal()") for t in (127, 128, 129, 130, 300)},
    **{f"t{t}_full": Problem(Tq=t, Tk=t) for t in (1, 63, 64)},
    **{f"t{t}_full": _long(Tq=t, Tk=t) for t in (130, 257)},
    **{f"d{d}": Problem(batch=(), D=d, Dv=d, mask="causal()") for d in (1, 2, 3, 5, 7, 8, 15, 17, 31, 33, 64)},
    **{f"d{d}": _long(Tq=33, D=d, Dv=d, mask="causal()") for d in (72, 80, 128, 256)},
    "narrow_values": Problem(D=24, Dv=1, mask="causal()"),
    "wide_values": Problem(D=8, Dv=72, mask="causal()"),
    "few_queries": Problem(Tq=5, Tk=130),
    "few_queries_causal": Problem(Tq=5, Tk=130, mask="causal()"),
    "few_queries_many_keys": Problem(batch=(), Tq=3, Tk=1030, D=8, Dv=5, mask="causal()", sinks=True),
    "one_query": Problem(Tq=1, Tk=130, mask="causal()"),
    "few_keys": Problem(Tq=130, Tk=5),
    "few_keys_causal": Problem(Tq=130, Tk=5, mask="causal()"),
    "no_keys": Problem(Tk=0),
    "no_keys_causal_sinks": Problem(Tk=0, mask="causal()", sinks=True),
    "no_queries": Problem(Tq=0),
    "no_queries_causal": Problem(Tq=0, mask="causal()", bias=(4, 0, 65)),
    "no_width_of_values": Problem(Dv=0, mask="causal()", sinks=True),
    "no_batch_entries": Problem(batch=(0,), mask="causal()"),
    "causal_top_left": Problem(Tq=33, mask="causal(0)"),
    "causal_offset": Problem(mask="causal(-7)"),
    "causal_offset_per_sequence": Problem(mask="causal([-70, 3])"),
    "window": Problem(mask="window(7, 3)"),
    "window_self": Problem(mask="window(0, 0)"),
    "window_left_open": Problem(mask="window(None, 2)"),
    "window_right_open": Problem(mask="window(2, None)"),
    "window_tile": _long(Tq=200, Tk=200, mask="causal() & window(63, 0)"),
    "window_past_tile": _long(Tq=200, Tk=200, mask="causal() & window(64, 0)"),
    "window_few_queries": Problem(Tq=20, Tk=150, mask="causal() & window(31, 0)"),
    "window_few_keys": Problem(Tq=100, Tk=20, mask="window(3, 3)"),
    "padding": Problem(mask="padding([1, 64])"),
    "padding_nothing": Problem(mask="padding([0, 65])"),
    "padding_causal": Problem(mask="padding([17, 65]) & causal()"),
    "documents": Problem(Tq=8, Tk=8, mask="document([0, 0, 0, 1, 1, 5, 5, 5])"),
    "documents_long": Problem(mask=lambda rng: masks.document(np.sort(rng.integers(0, 4, (2, 65)))) & masks.causal()),
    "documents_crossing": Problem(Tq=3, Tk=4, mask="document([0, 1, 1, 2], [1, 2, 9])"),
    "global_tokens": Problem(mask="global_tokens([0, 40]) | window(3, 0)"),
    "longformer": _long(Tq=200, Tk=200, mask="window(9, 9) | global_tokens([0, 1, 130])"),
    "not_causal": Problem(mask="~causal()"),
    "not_window": Problem(mask="~window(5, 5) & causal()"),
    "nested": Problem(mask="~(causal() & (window(9, 0) | global_tokens([3]))) & padding([60, 65])"),
    "function": Problem(mask=lambda rng: masks.from_function(values.checkers) & masks.causal()),
    "array": Problem(mask=values.random(65, 65)),
    "array_per_head": Problem(mask=values.random(4, 65, 65)),
    "array_per_sequence": Problem(mask=values.random(2, 1, 65, 65, share=0.1)),
    "array_of_keys": Problem(mask=values.random(2, 1, 1, 65)),
    "array_of_queries": Problem(mask=values.random(65, 1)),
    "array_full": Problem(mask=values.random(2, 4, 65, 65, share=0.05)),
    "array_per_head_mask": Problem(
        mask=lambda rng: masks.from_array(values.random(4, 65, 65)(rng)) & masks.window(20, 20)
    ),
    "all_visible": Problem(mask=values.random(65, 65, share=1)),
    "nothing_visible": Problem(mask=values.random(65, 65, share=0)),
    "blind_rows": Problem(mask=values.some_rows_blind),
    "blind_rows_sinks": Problem(mask=values.some_rows_blind, sinks=True),
    "bias": Problem(bias=(2, 4, 65, 65)),
    "bias_of_pairs": Problem(bias=(65, 65), mask="causal()"),
    "bias_of_keys": Problem(bias=(1, 65)),
    "bias_of_queries": Problem(bias=(4, 65, 1)),
    "bias_of_heads": Problem(bias=(4, 1, 1), mask="causal()"),
    "bias_of_sequences": Problem(bias=(2, 1, 1, 65), mask="causal()"),
    "bias_of_one": Problem(bias=(1, 1, 1, 1)),
    "bias_of_one_axis": Problem(bias=(65,)),
    "bias_number": Problem(bias=()),
    "bias_minus_inf": Problem(bias=(4, 65, 65), values=values.bias_minus_inf),
    "bias_all_low": Problem(bias=(65, 65), values=values.put("bias", -1e4, ...)),
    "alibi": Problem(bias=(4, 65, 65), mask="causal()", values=values.alibi),
    "softcap": Problem(options=(("softcap", 2.0),), mask="causal()"),
    "softcap_small": Problem(options=(("softcap", 0.125),)),
    "softcap_wide": Problem(options=(("softcap", 30.0),)),
    "softcap_saturated": Problem(options=(("softcap", 5.0),), values=values.large_scores),
    "softcap_bias_sinks": Problem(options=(("softcap", 1.0),), bias=(4, 65, 65), sinks=True, mask="causal()"),
    "sinks": Problem(sinks=True),
    "sinks_causal_grouped": Problem(H=6, Hk=2, sinks=True, mask="causal()"),
    "sinks_t300": _long(Tq=33, Tk=300, sinks=True, mask="causal()"),
    "sinks_dominant": Problem(sinks=True, values=values.put("sinks", 50, ...)),
    "sinks_minus_inf": Problem(sinks=True, mask=values.some_rows_blind, values=values.put("sinks", -INF, slice(0, 2))),
    "dropout": Problem(dropout=(2, 4, 65, 65), mask="causal()"),
    "dropout_of_keys": Problem(dropout=(1, 65)),
    "dropout_everything": Problem(
        dropout=(65, 65), bias=(65, 65), sinks=True, mask="causal() & window(20, 0)", options=(("softcap", 3.0),)
    ),
    "scale_zero": Problem(options=(("scale", 0.0),), mask="causal()"),
    "scale_negative": Problem(options=(("scale", -0.7),)),
    "scale_large": Problem(options=(("scale", 20.0),), mask="causal()"),
    "scale_int": Problem(options=(("scale", 1),)),
    "large_scores": Problem(values=values.large_scores, mask="causal()"),
    "needles": _long(Tq=130, Tk=130, D=64, mask="causal()", values=values.needles),
    "needles_window": _long(Tq=130, Tk=130, D=64, mask="window(40, 24)", values=values.needles),
    "equal_keys": Problem(values=values.equal_keys, mask="causal()"),
    "rising_maximum": _long(Tq=130, Tk=130, values=values.rising_maximum),
    "falling_maximum": _long(Tq=130, Tk=130, values=values.falling_maximum),
    "large_values": Problem(values=values.times("v", 1000)),
    "small_values": Problem(values=values.times("v", 1e-3)),
    "fortran": Problem(layout=np.asfortranarray, mask="causal()"),
    "tokens_first": Problem(layout=values.tokens_first, mask="causal()"),
    "strided": Problem(layout=values.spread, mask="causal()"),
    "backwards": Problem(layout=values.backwards, mask="causal()"),
    "repeated": Problem(values=values.one_sequence, layout=values.repeated, mask="causal()"),
    "unaligned": Problem(layout=values.unaligned),
    "nan_keys_unseen": Problem(mask=PADDED, values=values.put("k", NAN, BEYOND)),
    "nan_values_unseen": Problem(mask=PADDED, values=values.put("v", NAN, BEYOND)),
    "inf_unseen": Problem(mask=PADDED, values=values.each(values.put("k", INF, BEYOND), values.put("v", -INF, BEYOND))),
    "nan_future_unseen": Problem(
        mask="causal(-1)", values=values.each(*(values.put(x, NAN, (..., 64, 0)) for x in "kv"))
    ),
    "nan_tile_unseen": Problem(
        Tq=200,
        Tk=200,
        mask=lambda rng: ~masks.global_tokens([70]),
        values=values.each(*(values.put(x, NAN, (..., 70, slice(None))) for x in "kv")),
    ),
    "nan_queries_blind": Problem(
        mask=values.some_rows_blind,
        values=values.each(*(values.put(x, NAN, (..., [0, 5, 63, 64], slice(None))) for x in ("q", "do"))),
    ),
    "nan_queries_blind_sinks": Problem(
        mask=values.some_rows_blind,
        sinks=True,
        values=values.each(*(values.put(x, NAN, (..., [0, 5, 63, 64], slice(None))) for x in ("q", "do"))),
    ),
    "nan_bias_unseen": Problem(mask="causal()", bias=(4, 65, 65), values=values.bias_nan_above),
    "nan_unseen_sinks_softcap": Problem(
        mask=PADDED,
        sinks=True,
        options=(("softcap", 2.0),),
        values=values.each(*(values.put(x, NAN, BEYOND) for x in "kv")),
    ),
    "nan_query_seen": Problem(mask="causal()", values=values.put("q", NAN, (0, 1, 40, 3))),
    "nan_key_seen": Problem(mask="causal()", values=values.put("k", NAN, (1, 0, 33, 2))),
    "nan_value_seen": Problem(mask="causal()", values=values.put("v", NAN, (1, 1, 20, 5))),
    "inf_value_seen": Problem(mask="causal()", values=values.put("v", INF, (0, 1, 20, 5))),
    "nan_bias_seen": Problem(mask="causal()", bias=(4, 65, 65), values=values.put("bias", NAN, (2, 50, 4))),
}
