"""Attention to the pages of a pool: with few queries the pages are read where they lie, else each sequence is gathered.

The kernel of `few` finds key j by the table, so decoding copies nothing of the cache, and the result has the bits of a
call on contiguous keys. More than FEW queries a head (a chunk of a prompt), or a mask whose rows are no intervals,
go the other way: the pages of one sequence after the other are put together, which costs little beside the products of
so many queries, and `flash` computes it.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn_numba.few import FEW, Located, Spans, intervals, ints, locate, parts_of, stream
from refattn_numba.flash import flash_attention


def paged_attention(
    q: Array,
    k_pages: Array,
    v_pages: Array,
    page_table: Array,
    seqlens_k: Array,
    *,
    mask: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """As `refattn.paged_attention`."""
    B, H, Tq, _ = q.shape
    lengths, table = seqlens_k.astype(np.int64), page_table.astype(np.int64)
    spans = _spans(mask, Tq, lengths, H) if Tq <= FEW else None
    if spans is None:
        o, lse = np.zeros((B, H, Tq, v_pages.shape[-1]), q.dtype), np.zeros((B, H, Tq), compute_dtype(q.dtype))
        for b, length in enumerate(lengths):
            k, v = (_gathered(x, table[b], length) for x in (k_pages, v_pages))
            o[b], lse[b] = flash_attention(q[b], k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks)
    else:
        keys, values = (_in_pages(x, table) for x in (k_pages, v_pages))
        o, lse = stream(
            q, keys, values, v_pages.shape[-1], k_pages.shape[1], parts_of(lengths), spans, scale, softcap, sinks
        )  # fmt: skip
    return (o, lse) if return_lse else o


def _spans(mask: Any, Tq: int, lengths: Array, H: int) -> Spans | None:
    """Return what each query of each sequence sees, one pattern for each length, or None if that is no interval."""
    different, which = np.unique(lengths, return_inverse=True)
    found = [intervals(mask, Tq, int(length)) for length in different]
    if any(spans is None for spans in found):
        return None
    start, stop = (
        np.array([spans[n] for spans in found if spans is not None], np.int64).reshape(len(found), Tq) for n in (0, 1)
    )
    return Spans(*(ints(x) for x in (start, stop, np.repeat(which, H))))


def _in_pages(x: Array, table: Array) -> Located:
    numbers, (page, slot, head, _) = locate(x)
    return Located(x.shape[2], numbers, x.dtype == np.float16, ints(table * page), head, slot)


def _gathered(x: Array, pages: Array, length: int) -> Array:
    """Return the first `length` keys or values of a sequence, (Hk, length, D)."""
    needed = pages[: -(-length // x.shape[1])]
    return x[needed].reshape(-1, *x.shape[2:])[:length].swapaxes(0, 1)
