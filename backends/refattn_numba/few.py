"""Calls with few queries, as in decoding: the launch of `rows`, and the rule that says which calls take it.

A call takes it if it has at most FEW queries a head, neither bias nor dropout, and no mask or one whose rows are
intervals (`Mask.spans`: causal, window, padding, and what `&` makes of them). The others go to `forward`. Keys and
values are read where they lie, whatever the strides of the axes before the last; 16-bit ones are widened tile by tile.

The runs of keys that threads share out are SPLIT keys long, always, and each run and the sum of them are computed in
one order: a result depends neither on threads, nor on batch mates, nor on padding, nor on pages.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.masks import Mask, as_mask
from refattn_numba.layout import cap_of, flat, heads_of, planes, read_only
from refattn_numba.rows import ROWS, SPLIT, TILE, few_queries, join
from refattn_numba.threads import run

FEW = 8


class Located(NamedTuple):
    """Key j of head h of sequence b at pages[b, j // page_size] + h * head + j % page_size * row."""

    heads: int
    """Hk."""
    numbers: Array
    """All of them and what lies between, flat; 16-bit floats as uint16."""
    halves: bool
    """Whether these are float16; if they have 16 bits and are not, they are bfloat16."""
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


class Parts(NamedTuple):
    """The runs of SPLIT keys of all sequences: runs begin[b] <= p < begin[b + 1] are those of sequence b."""

    begin: Array
    """(B + 1,), int64, as the others."""
    sequence: Array
    """(runs,): whose run it is."""
    split: Array
    """(runs,): which of that sequence's."""
    longest: int
    """Keys of the longest run."""


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
    """Return (o, lse) of a call that the rule lets through, else None; k and v may be narrower than q."""
    Tq, Tk, batch = q.shape[-2], k.shape[-2], q.shape[:-3]
    if Tq > FEW or bias is not None or dropout_mask is not None:
        return None
    pattern = as_mask(mask)
    spans = (_cached_spans if pattern is None or pattern.cacheable else _spans)(pattern, Tq, Tk, heads_of(q))
    if spans is None:
        return None
    keys, values = (_in_batch(x, len(batch)) for x in (k, v))
    parts = _parts_of_equals(math.prod(batch), Tk)
    return stream(q, keys, values, v.shape[-1], max(Tk, 1), parts, spans, scale, softcap, sinks)


def _spans(mask: Mask | None, Tq: int, Tk: int, heads: tuple[int, ...]) -> Spans | None:
    found = intervals(mask, Tq, Tk)
    if found is None:
        return None
    lead = () if mask is None else mask.lead
    start, stop = (np.broadcast_to(x, (*lead, Tq)).reshape(math.prod(lead), Tq) for x in found)
    return Spans(*(ints(x) for x in (start, stop, planes(lead, heads))))


_cached_spans = lru_cache(maxsize=64)(_spans)


def intervals(mask: Mask | None, Tq: int, Tk: int) -> tuple[Array, Array] | None:
    """Return (start, stop) of the keys that each query sees, (*mask.lead, Tq), or None if they are no intervals."""
    return (np.zeros(Tq, np.int64), np.full(Tq, Tk)) if mask is None else mask.spans(Tq, Tk)


def stream(
    q: Array,
    keys: Located,
    values: Located,
    Dv: int,
    page_size: int,
    parts: Parts,
    spans: Spans,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
) -> tuple[Array, Array]:
    """Return o, in the dtype of q, and lse."""
    Tq, D = q.shape[-2:]
    H, B, dtype = heads_of(q)[-1], len(parts.begin) - 1, compute_dtype(q.dtype)
    o, lse = np.zeros((*q.shape[:-1], Dv), dtype), np.full(q.shape[:-1], -np.inf, dtype)
    if lse.size == 0:
        return o.astype(q.dtype, copy=False), lse
    rows = len(parts.sequence) * H * Tq
    parts_o, parts_m, parts_l = np.empty(rows * Dv, dtype), np.empty(rows, dtype), np.empty(rows, dtype)
    Hk = keys.heads
    run(
        few_queries, len(parts.sequence) * Hk * -(-(H // Hk * Tq) // ROWS), float(rows) * parts.longest * (D + Dv),
        ROWS * TILE + TILE * max(D, Dv), dtype, parts.sequence, parts.split, flat(q, dtype), keys.numbers,
        values.numbers, keys.halves, keys.pages, values.pages, page_size, keys.head, keys.row,
        values.head, values.row, *spans, H, Hk, Tq, D, Dv,
        dtype.type(1 / math.sqrt(D) if scale is None else scale), cap_of(softcap, dtype), parts_o, parts_m, parts_l,
    )  # fmt: skip
    run(
        join, B * H, float(rows) * Dv, 1, dtype, parts.begin, *(read_only(x) for x in (parts_o, parts_m, parts_l)),
        flat(np.zeros(0) if sinks is None else sinks, dtype), o.reshape(-1), lse.reshape(-1), H, Tq, Dv,
    )  # fmt: skip
    return o.astype(q.dtype, copy=False), lse


def parts_of(lengths: Array) -> Parts:
    """Cut sequences of so many keys into runs."""
    splits = -(-lengths // SPLIT)
    begin = np.concatenate([[0], np.cumsum(splits)])
    sequence = np.repeat(np.arange(len(lengths)), splits)
    split = np.arange(begin[-1]) - begin[sequence]
    return Parts(ints(begin), ints(sequence), ints(split), min(SPLIT, int(lengths.max(initial=0))))


@lru_cache(maxsize=64)
def _parts_of_equals(B: int, Tk: int) -> Parts:
    return parts_of(np.full(B, Tk))


def locate(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return the numbers of `x` as one flat read-only array, and the strides of its axes in it.

    Copied only if the last axis is not contiguous, or a stride is negative or no whole number of elements.
    """
    x = x.view(np.uint16) if x.dtype.itemsize == 2 and _rows_lie_together(x) else x
    if not _rows_lie_together(x):
        x = np.ascontiguousarray(x)
        x = x.view(np.uint16) if x.dtype.itemsize == 2 else x
    strides = tuple(stride // x.itemsize for stride in x.strides)
    if x.flags.c_contiguous:
        return read_only(x.reshape(-1)), strides
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) if x.size else 0
    return np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,), writeable=False), strides


def _rows_lie_together(x: Array) -> bool:
    steps = all(size < 2 or (s >= 0 and s % x.itemsize == 0) for size, s in zip(x.shape, x.strides, strict=True))
    return steps and x.flags.aligned and (x.shape[-1] < 2 or x.strides[-1] == x.itemsize)


def _in_batch(x: Array, axes: int) -> Located:
    """Locate keys or values (..., Hk, Tk, D) with `axes` axes before the heads: a sequence is one page."""
    numbers, strides = locate(x)
    heads, head = (x.shape[-3], strides[-3]) if x.ndim > 2 else (1, 0)
    return Located(heads, numbers, x.dtype == np.float16, _begins(x.shape[:axes], strides[:axes]), head, strides[-2])


@lru_cache(maxsize=64)
def _begins(shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Return where each entry of axes of this shape begins, in order, (entries, 1)."""
    begins = np.zeros(1, np.int64)
    for size, stride in zip(shape, strides, strict=True):
        begins = (begins[:, None] + np.arange(size) * stride).reshape(-1)
    return ints(begins[:, None])


def ints(x: Array) -> Array:
    """Return `x` as the kernels read tables: int64, contiguous, read-only."""
    return read_only(np.ascontiguousarray(x, np.int64))
