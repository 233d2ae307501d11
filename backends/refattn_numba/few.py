"""Calls with few queries, as in decoding: the launch of `rows`, and the rule that says which calls take it.

A call takes it if it has at most FEW queries a head, neither bias nor dropout, and no mask or one whose rows are
intervals (`Mask.spans`: causal, window, padding, and what `&` makes of them). The others go to `forward`. Keys and
values are read where they lie, whatever the strides of the axes before the last; 16-bit ones are widened tile by tile.

The runs of keys that threads share out are SPLIT keys long, always, and each run and the sum of them are computed in
one order: a result depends neither on threads, nor on batch mates, nor on padding, nor on pages.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.masks import Mask, as_mask
from refattn_numba.layout import flat, read_only
from refattn_numba.rows import ROWS, SPLIT, TILE, few_queries, join
from refattn_numba.threads import run

FEW = 8


class Located(NamedTuple):
    """Key j of head h of sequence b at pages[b, j // page_size] + h * head + j % page_size * row."""

    heads: int
    """Hk."""
    numbers: Array
    """All of them and what lies between, flat; 16-bit floats as uint16."""
    pages: Array
    """(B, pages), int64."""
    head: int
    row: int


class Spans(NamedTuple):
    """Which keys each query sees: start <= j < stop."""

    start: Array
    """(patterns, Tq), int64, as `stop`."""
    stop: Array
    of: Array
    """(B * H,): which pattern a head of a sequence uses."""


def attend_few(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
) -> tuple[Array, Array] | None:
    """Return (o, lse) of a call that the rule lets through, else None."""
    Tq, Tk, batch = q.shape[-2], k.shape[-2], q.shape[:-3]
    if Tq > FEW or bias is not None or dropout_mask is not None:
        return None
    pattern = as_mask(mask)
    spans = intervals(pattern, Tq, Tk)
    if spans is None:
        return None
    lead = () if pattern is None else pattern.lead
    start, stop = (np.broadcast_to(x, (*lead, Tq)).reshape(math.prod(lead), Tq) for x in spans)
    heads = (*batch, q.shape[-3] if q.ndim > 2 else 1)
    of = np.broadcast_to(np.arange(len(start)).reshape(lead), heads).reshape(-1)
    keys, values = (_in_batch(x, len(batch)) for x in (k, v))
    lengths = np.full(math.prod(batch), Tk)
    return stream(q, keys, values, v.shape[-1], max(Tk, 1), lengths, Spans(start, stop, of), scale, softcap, sinks)


def intervals(mask: Mask | None, Tq: int, Tk: int) -> tuple[Array, Array] | None:
    """Return (start, stop) of the keys that each query sees, (*mask.lead, Tq), or None if they are no intervals."""
    return (np.zeros(Tq, np.int64), np.full(Tq, Tk)) if mask is None else mask.spans(Tq, Tk)


def stream(
    q: Array,
    keys: Located,
    values: Located,
    Dv: int,
    page_size: int,
    lengths: Array,
    spans: Spans,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
) -> tuple[Array, Array]:
    """Return o, in the dtype of q, and lse: sequence b has the first lengths[b] of the keys."""
    Tq, D = q.shape[-2:]
    H, B, dtype = q.shape[-3] if q.ndim > 2 else 1, len(lengths), compute_dtype(q.dtype)
    o, lse = np.zeros((*q.shape[:-1], Dv), dtype), np.full(q.shape[:-1], -np.inf, dtype)
    if lse.size == 0:
        return o.astype(q.dtype, copy=False), lse
    splits = -(-lengths // SPLIT)
    part_of = np.concatenate([[0], np.cumsum(splits)])
    sequence_of = np.repeat(np.arange(B), splits)
    split_of = np.arange(part_of[-1]) - part_of[sequence_of]
    rows = len(sequence_of) * H * Tq
    parts_o, parts_m, parts_l = np.empty(rows * Dv, dtype), np.empty(rows, dtype), np.empty(rows, dtype)
    Hk = keys.heads
    run(
        few_queries, len(sequence_of) * Hk * -(-(H // Hk * Tq) // ROWS), float(lengths.sum()) * H * Tq * (D + Dv),
        ROWS * TILE + TILE * max(D, Dv), dtype, _ints(sequence_of), _ints(split_of), flat(q, dtype), keys.numbers,
        values.numbers, q.dtype == np.float16, _ints(keys.pages), _ints(values.pages), page_size, keys.head, keys.row,
        values.head, values.row, *(_ints(x) for x in spans), H, Hk, Tq, D, Dv,
        dtype.type(1 / math.sqrt(D) if scale is None else scale), dtype.type(softcap or 0.0), parts_o, parts_m, parts_l,
    )  # fmt: skip
    run(
        join, B * H, float(rows) * Dv, 1, dtype, _ints(part_of), *(read_only(x) for x in (parts_o, parts_m, parts_l)),
        flat(np.zeros(0) if sinks is None else sinks, dtype), o.reshape(-1), lse.reshape(-1), H, Tq, Dv,
    )  # fmt: skip
    return o.astype(q.dtype, copy=False), lse


def locate(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return the numbers of `x` as one flat read-only array, and the strides of its axes in it.

    Copied only if the last axis is not contiguous, or a stride is negative or no whole number of elements.
    """
    x = x.view(np.uint16) if x.dtype.itemsize == 2 and _rows_lie_together(x) else x
    if not _rows_lie_together(x):
        x = np.ascontiguousarray(x)
        x = x.view(np.uint16) if x.dtype.itemsize == 2 else x
    strides = tuple(stride // x.itemsize for stride in x.strides)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) if x.size else 0
    return np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,), writeable=False), strides


def _rows_lie_together(x: Array) -> bool:
    steps = all(size < 2 or (s >= 0 and s % x.itemsize == 0) for size, s in zip(x.shape, x.strides, strict=True))
    return steps and x.flags.aligned and (x.shape[-1] < 2 or x.strides[-1] == x.itemsize)


def _in_batch(x: Array, axes: int) -> Located:
    """Locate keys or values (..., Hk, Tk, D) with `axes` axes before the heads: a sequence is one page."""
    numbers, strides = locate(x)
    begins = np.zeros(1, np.int64)
    for size, stride in zip(x.shape[:axes], strides[:axes], strict=True):
        begins = (begins[:, None] + np.arange(size) * stride).reshape(-1)
    heads, head = (x.shape[-3], strides[-3]) if x.ndim > 2 else (1, 0)
    return Located(heads, numbers, begins[:, None], head, strides[-2])


def _ints(x: Array) -> Array:
    return read_only(np.ascontiguousarray(x, np.int64))
