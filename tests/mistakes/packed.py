"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

import itertools
import math
from functools import partial

import numpy as np

import refattn
from refattn import masks
from refattn.arrays import compute_dtype

PACKED = [
    "last sequence dropped",
    "first key of the next sequence seen",
    "last key of each sequence dropped",
    "keys beyond whole tiles of 16 dropped",
    "mask asked for all sequences as one",
    "causal aligned to the top left",
    "window one key too wide",
    "heads taken round robin",
    "sinks of the first sequence alone",
    "sink counted twice",
    "sinks forgotten where there are no keys",
    "scale forgotten",
    "softcap forgotten",
    "empty sequences shift the keys",
    "no keys give NaN",
    "neighbours weighed by zero, so that NaN leaks",
    "borders kept in eight bits",
    "lse with tokens first",
    "lse in base 2",
    "lse in the dtype of q",
    "output in float32",
    "lse always returned",
    "reads strided arrays as if they were not",
]
PACKED_BACKWARD = [
    "dsinks of the last sequence",
    "dsinks averaged",
    "dk of the last sequence alone",
    "dk of the first head of a group",
    "dk with the queries' borders",
    "dlse forgotten",
    "dlse with tokens first",
    "dbias of zeros",
    "causal aligned to the top left",
    "neighbours' do leaks",
]
PAGED = [
    "last page dropped when partly filled",
    "last page used to its end",
    "unused slots weighed by zero",
    "one key too few",
    "pages in ascending order",
    "first page for all",
    "table of the first sequence for all",
    "pages rounded down to 16 tokens",
    "mask asked with the room of the table",
    "causal aligned to the top left",
    "mask asked with the longest sequence",
    "window one key too wide",
    "heads taken round robin",
    "heads before slots in a page",
    "sinks forgotten",
    "sinks forgotten where there are no keys",
    "softcap forgotten",
    "scale forgotten",
    "blind rows are NaN",
    "lse in base 2",
    "lse in the dtype of q",
    "width of the values taken from the keys",
]


def attend(q, k, v, wrong, *, mask=None, sinks=None, scale=None, softcap=None):
    """Attend within one sequence (H, T, D), or make the mistake that is not about which tokens it has."""
    if wrong == "heads taken round robin":
        k, v = (np.concatenate([x] * (q.shape[0] // x.shape[0])) for x in (k, v))
    if wrong == "causal aligned to the top left" and mask == masks.causal():
        mask = masks.causal(0)
    if wrong == "window one key too wide" and isinstance(mask, masks.Mask) and "window" in repr(mask):
        visible = mask.dense(q.shape[1], k.shape[1])
        visible[:, :-1] |= visible[:, 1:].copy()
        mask = masks.from_array(visible)
    scale = None if wrong == "scale forgotten" else scale
    softcap = None if wrong == "softcap forgotten" else softcap
    if wrong == "sinks forgotten" or (wrong == "sinks forgotten where there are no keys" and k.shape[1] == 0):
        sinks = None
    if wrong == "sink counted twice" and sinks is not None:
        sinks = sinks + sinks.dtype.type(math.log(2))
    options = {"mask": mask, "sinks": sinks, "scale": scale, "softcap": softcap}
    o, lse = refattn.attention(q, k, v, **options, return_lse=True, backend="numpy")
    if wrong in ("no keys give NaN", "blind rows are NaN"):
        o[np.isneginf(lse)] = np.nan
    if wrong == "lse in base 2":
        lse = lse / lse.dtype.type(math.log(2))
    return o, lse


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, return_lse=False, sinks=None, mask=None, wrong="", **options):
    if wrong == "reads strided arrays as if they were not":
        q, k, v = (as_if_contiguous(x) for x in (q, k, v))
    if wrong in ("mask asked for all sequences as one", "neighbours weighed by zero, so that NaN leaks"):
        return at_once(q, k, v, cu_seqlens_q, cu_seqlens_k, mask, return_lse, wrong, **options, sinks=sinks)
    o = np.zeros((*q.shape[:2], v.shape[2]), q.dtype)
    lse = np.full((q.shape[1], len(q)), -np.inf, compute_dtype(q.dtype))
    for b, (i, j) in enumerate(sequences(cu_seqlens_q, cu_seqlens_k, wrong)):
        if wrong == "last sequence dropped" and i.stop == len(q):
            continue
        if wrong == "first key of the next sequence seen":
            j = slice(j.start, j.stop + 1)
        if wrong == "last key of each sequence dropped":
            j = slice(j.start, max(j.stop - 1, j.start))
        if wrong == "keys beyond whole tiles of 16 dropped" and j.stop - j.start > 16:
            j = slice(j.start, j.start + (j.stop - j.start) // 16 * 16)
        own = None if wrong == "sinks of the first sequence alone" and b > 0 else sinks
        o_b, lse[:, i] = attend(*(x.swapaxes(0, 1) for x in (q[i], k[j], v[j])), wrong, mask=mask, sinks=own, **options)
        o[i] = o_b.swapaxes(0, 1)
    lse = np.ascontiguousarray(lse.T) if wrong == "lse with tokens first" else lse
    lse = lse.astype(q.dtype) if wrong == "lse in the dtype of q" else lse
    o = o.astype(np.float32) if wrong == "output in float32" else o
    return (o, lse) if return_lse or wrong == "lse always returned" else o


def sequences(cu_seqlens_q, cu_seqlens_k, wrong):
    narrow = np.int8 if wrong == "borders kept in eight bits" else int
    starts, stops = (cu.astype(narrow).astype(int).tolist() for cu in (cu_seqlens_k[:-1], cu_seqlens_k[1:]))
    keys = [slice(max(start, 0), max(stop, 0)) for start, stop in zip(starts, stops, strict=True)]
    if wrong == "empty sequences shift the keys":
        full = [j for j in keys if j.stop > j.start]
        keys = full + [slice(0, 0)] * (len(keys) - len(full))
    queries = [slice(*pair) for pair in itertools.pairwise(cu_seqlens_q.tolist())]
    return zip(queries, keys, strict=True)


def as_if_contiguous(x):
    room = x.base if x.base is not None and x.base.dtype == x.dtype else x
    return room.ravel()[: x.size].reshape(x.shape)


def at_once(q, k, v, cu_seqlens_q, cu_seqlens_k, mask, return_lse, wrong, **options):
    """Attend over all sequences at once, the others hidden."""
    ids_q, ids_k = (np.repeat(np.arange(len(cu) - 1), np.diff(cu.astype(int))) for cu in (cu_seqlens_q, cu_seqlens_k))
    visible = ids_q[:, None] == ids_k
    if mask is not None and wrong == "mask asked for all sequences as one":
        visible = visible & mask.dense(len(q), len(k))
    if mask is not None and wrong == "neighbours weighed by zero, so that NaN leaks":
        for i, j in sequences(cu_seqlens_q, cu_seqlens_k, ""):
            visible[i, j] &= mask.dense(i.stop - i.start, j.stop - j.start)
    heads_first = [x.swapaxes(0, 1) for x in (q, k, v)]
    o, lse = refattn.attention(*heads_first, mask=visible, **options, return_lse=True, backend="numpy")
    if wrong == "neighbours weighed by zero, so that NaN leaks" and len(k):
        with np.errstate(invalid="ignore"):
            o = o + 0 * np.repeat(heads_first[2], q.shape[1] // k.shape[1], axis=0).sum(axis=1, keepdims=True)
    return (o.swapaxes(0, 1), lse) if return_lse else o.swapaxes(0, 1)


def varlen_vjp(do, q, k, v, cu_seqlens_q, cu_seqlens_k, *, sinks=None, mask=None, dlse=None, wrong="", **options):
    compute = compute_dtype(q.dtype)
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    dsinks = np.zeros(q.shape[1], compute)
    wide = None if sinks is None else sinks.astype(compute)
    if wrong == "causal aligned to the top left" and mask == masks.causal():
        mask = masks.causal(0)
    if wrong == "dlse with tokens first" and dlse is not None:
        dlse = dlse.reshape(dlse.shape[::-1]).T
    last = slice(0, 0)
    for i, j in sequences(cu_seqlens_q, cu_seqlens_k, ""):
        arrays = [x.astype(compute).swapaxes(0, 1) for x in (do[i], q[i], k[j], v[j])]
        if wrong == "neighbours' do leaks" and len(do) > i.stop:
            arrays[0] = arrays[0] + do[i.stop].astype(compute)[:, None]
        dlse_b = None if dlse is None or wrong == "dlse forgotten" else dlse[:, i]
        g = refattn.attention_vjp(*arrays, mask=mask, sinks=wide, dlse=dlse_b, **options, backend="numpy")
        if wrong == "dk of the first head of a group":
            g = first_of_group(g, arrays, mask=mask, sinks=wide, dlse=dlse_b, **options)
        dq[i], dk[j], dv[j] = (x.swapaxes(0, 1) for x in g[:3])
        if wrong == "dk of the last sequence alone":
            dk[last] = 0
        if wrong == "dk with the queries' borders" and len(dk[i]) == len(dk[j]):
            dk[j], dk[i] = 0, g.dk.swapaxes(0, 1)
        last = j
        if g.dsinks is not None:
            dsinks = g.dsinks + (0 if wrong == "dsinks of the last sequence" else dsinks)
    dsinks = dsinks / (len(cu_seqlens_q) - 1) if wrong == "dsinks averaged" else dsinks
    dbias = np.zeros(1, q.dtype) if wrong == "dbias of zeros" else None
    return refattn.AttentionGradients(dq, dk, dv, dbias, None if sinks is None else dsinks.astype(sinks.dtype))


def first_of_group(g, arrays, **options):
    do, q, k, v = arrays
    repeated = [np.repeat(x, len(q) // len(x), axis=0) for x in (k, v)]
    each = refattn.attention_vjp(do, q, *repeated, **options, backend="numpy")
    return g._replace(dk=each.dk[:: len(q) // len(k)])


def paged(q, k_pages, v_pages, page_table, seqlens_k, *, return_lse=False, mask=None, wrong="", **options):
    P, lengths = k_pages.shape[1], [int(length) for length in seqlens_k]
    width = k_pages.shape[3] if wrong == "width of the values taken from the keys" else v_pages.shape[3]
    o = np.zeros((*q.shape[:-1], width), q.dtype)
    lse = np.full(q.shape[:-1], -np.inf, compute_dtype(q.dtype))
    for b, length in enumerate(lengths):
        pages = page_table[0 if wrong == "table of the first sequence for all" else b, : -(-length // P)].astype(int)
        pages = np.where((pages < 0) | (pages >= len(k_pages)), 0, pages)
        if wrong == "last page dropped when partly filled":
            length = length // P * P
        if wrong == "pages rounded down to 16 tokens" and length > 16:
            length = length // 16 * 16
        if wrong == "one key too few":
            length = max(length - 1, 0)
        if wrong == "last page used to its end":
            length = len(pages) * P
        pages = np.sort(pages) if wrong == "pages in ascending order" else pages
        pages = np.repeat(pages[:1], len(pages)) if wrong == "first page for all" else pages
        k, v = (gather(x, pages, wrong)[:length].swapaxes(0, 1) for x in (k_pages, v_pages))
        asked = {"mask asked with the room of the table": page_table.shape[1] * P}.get(wrong, length)
        asked = max(lengths) if wrong == "mask asked with the longest sequence" else asked
        seen = mask if asked == length or mask is None else masks.from_array(mask.dense(q.shape[2], asked)[:, :length])
        o_b, lse[b] = attend(q[b], k, v, wrong, mask=seen, **options)
        if wrong == "unused slots weighed by zero":
            rest = gather(v_pages, pages, wrong)[length:].sum(axis=0)
            with np.errstate(invalid="ignore"):
                o_b = o_b + 0 * np.repeat(rest, q.shape[1] // len(rest), axis=0)[:, None]
        o[b, ..., : o_b.shape[-1]] = o_b
    lse = lse.astype(q.dtype) if wrong == "lse in the dtype of q" else lse
    return (o, lse) if return_lse else o


def gather(x, pages, wrong):
    """Return the tokens of these pages, (T, Hk, D)."""
    n, P, Hk, D = x.shape
    if wrong == "heads before slots in a page":
        x = x.reshape(n, Hk, P, D).swapaxes(1, 2)
    return x[pages].reshape(len(pages) * P, Hk, D)


MUTANTS = {
    **{f"attention_varlen: {wrong}": ("attention_varlen", partial(varlen, wrong=wrong)) for wrong in PACKED},
    **{
        f"attention_varlen_vjp: {wrong}": ("attention_varlen_vjp", partial(varlen_vjp, wrong=wrong))
        for wrong in PACKED_BACKWARD
    },
    **{f"paged_attention: {wrong}": ("paged_attention", partial(paged, wrong=wrong)) for wrong in PAGED},
}
RIGHT = {"attention_varlen": varlen, "attention_varlen_vjp": varlen_vjp, "paged_attention": paged}
"""What the mutants are made from; it must pass."""
