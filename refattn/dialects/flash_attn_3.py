"""FlashAttention 3 (`flash_attn_interface` of the folder hopper): its functions and edges, computed by the reference.

Shah et al., "FlashAttention-3", 2024, arXiv:2407.08608. Source: Dao-AILab/flash-attention at commit 0251105
(2026-08-15), hopper/flash_attn_interface.py, hopper/flash_api.cpp, hopper/mask.h, hopper/softmax.h.

Where its functions differ from `refattn.attention`:

- q (B, T, H, D), k and v (B, T, Hk, D): heads after tokens. lse is (B, H, T), or (H, total) for packed sequences.
- ``window_size=(left, right)`` counts as `masks.window`, with -1 for unbounded, and causal as (left, 0); here exactly
  so, unlike in FlashAttention 2 (flash_api.cpp:796). ``softcap <= 0`` means none.
- ``attention_chunk=n`` > 0: only keys of the same run of n positions are visible (mask.h:116).
- ``qv`` (B, T, H, Dv), with v: scores are scale · (q·k + qv·v), and the default scale is 1 / sqrt(D + Dv), the absorbed
  form of multi-head latent attention (flash_attn_interface.py:574).
- The result is out alone; ``return_attn_probs`` (``return_softmax_lse`` with a cache) adds lse, and no weights.

Where they differ from FlashAttention 2: a row that sees nothing has lse = -inf (softmax.h:151), but +inf if there are
no keys at all (flash_api.cpp:1193); no ALiBi, no dropout, no kvpacked forms; qkv is (B, T, 3, H, D) or, with
``num_heads_q``, (B, T, H + 2 Hk, D); v may be wider than q and k; packed sequences take ``seqused_q`` and
``seqused_k``. There are no sinks.

``q_descale, k_descale, v_descale`` scale float8 inputs only (flash_api.cpp:1115), so they change nothing here.
``deterministic``, ``num_splits``, ``pack_gqa``, ``sm_margin`` and ``scheduler_metadata`` change rounding or speed in
the library, and nothing here. Limits of the kernels are not repeated: any float dtype, any D.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.decode import merge_attention
from refattn.dialects.common import (
    Cache,
    Ints,
    append,
    check_append,
    check_borders,
    check_lengths,
    check_pages,
    check_rows,
    spans,
)
from refattn.dialects.flash_attn_3_scores import Scores, attend_sequence


def flash_attn_func(
    q: Array,
    k: Array,
    v: Array,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Array | None = None,
    q_descale: Array | None = None,
    k_descale: Array | None = None,
    v_descale: Array | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """Attention of q (B, Tq, H, D) to k (B, Tk, Hk, D) and v (B, Tk, Hk, Dv); out (B, Tq, H, Dv), lse (B, H, Tq).

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2, 1, 8)), np.zeros((1, 1, 1, 8)), np.ones((1, 1, 1, 8))
    >>> out, lse = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    >>> out[0, :, 0, 0], lse  # query 0 stands before the only key
    (array([0., 1.]), array([[[-inf,   0.]]]))
    """
    check_floats("flash_attn_func", 4, q=q, k=k, v=v)
    scores = Scores(softmax_scale, softcap, causal, window_size, attention_chunk, backend)
    out, lse = attend_sequence("flash_attn_func", q, k, v, qv, scores)
    lse = lse if k.shape[0] * k.shape[1] > 0 else np.full_like(lse, np.inf)
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv: Array,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Array | None = None,
    k_descale: Array | None = None,
    v_descale: Array | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """`flash_attn_func` with q, k and v in one array: (B, T, 3, H, D), or (B, T, H + 2 Hk, D) with num_heads_q = H."""
    name = "flash_attn_qkvpacked_func"
    check_floats(name, 4, qkv=qkv)
    if qkv.ndim == 5 and qkv.shape[2] == 3:
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    elif qkv.ndim == 4 and num_heads_q is not None and (qkv.shape[2] - num_heads_q) % 2 == 0:
        Hk = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = np.split(qkv, [num_heads_q, num_heads_q + Hk], axis=2)
    else:
        raise ValueError(f"{name}: qkv {qkv.shape}; wanted (B, T, 3, H, D), or (B, T, H + 2 Hk, D) with num_heads_q")
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale,
        causal,
        window_size=window_size,
        attention_chunk=attention_chunk,
        softcap=softcap,
        return_attn_probs=return_attn_probs,
        backend=backend,
    )


def flash_attn_varlen_func(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Ints,
    cu_seqlens_k: Ints,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Ints | None = None,
    seqused_k: Ints | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Array | None = None,
    q_descale: Array | None = None,
    k_descale: Array | None = None,
    v_descale: Array | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """Attention inside packed sequences: q (total_q, H, D), k and v (total_k, Hk, D | Dv); lse (H, total_q).

    Sequence b has the rows cu_seqlens[b] ... cu_seqlens[b + 1] - 1, of which the first seqused[b] count; the rest of
    out is not written by the library, and 0 here.
    """
    name = "flash_attn_varlen_func"
    check_floats(name, 3, q=q, k=k, v=v)
    rows_q = check_borders(name, "cu_seqlens_q", cu_seqlens_q, len(q))
    rows_k = check_borders(name, "cu_seqlens_k", cu_seqlens_k, len(k))
    check_shape(name, "cu_seqlens_k", rows_k, rows_q.shape, "(B + 1,)")
    scores = Scores(softmax_scale, softcap, causal, window_size, attention_chunk, backend)
    out = np.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    lse = np.full((q.shape[1], len(q)), -np.inf if len(k) else np.inf, compute_dtype(q.dtype))
    for b, (at_q, at_k) in enumerate(zip(spans(rows_q), spans(rows_k), strict=True)):
        at_q, at_k = _used(name, "seqused_q", seqused_q, b, at_q), _used(name, "seqused_k", seqused_k, b, at_k)
        o, l = attend_sequence(name, q[at_q], k[at_k], v[at_k], None if qv is None else qv[at_q], scores)
        out[at_q], lse[:, at_q] = o, l if len(k) else np.inf
    return (out, lse) if return_attn_probs else out


def flash_attn_combine(
    out_partial: Array, lse_partial: Array, out: Array | None = None, out_dtype: Any = None, *, backend: str = "numpy"
) -> tuple[Array, Array]:
    """Merge parts over different keys: out_partial (splits, B, T, H, D), lse_partial (splits, B, T, H).

    Returns (B, T, H, D) and lse (B, T, H); ``out``, if given, is written, too.
    """
    name = "flash_attn_combine"
    check_floats(name, 5, out_partial=out_partial)
    check_shape(name, "lse_partial", lse_partial, out_partial.shape[:-1], "(splits, B, T, H)")
    parts = [
        (o.swapaxes(1, 2), l.swapaxes(1, 2).astype(compute_dtype(o.dtype)))
        for o, l in zip(out_partial, lse_partial, strict=True)
    ]
    o, lse = merge_attention(*parts, backend=backend)
    merged = o.swapaxes(1, 2).astype(out_partial.dtype if out_dtype is None else out_dtype)
    if out is not None:
        check_shape(name, "out", out, merged.shape, "(B, T, H, D)")
        out[...] = merged
    return merged, lse.swapaxes(1, 2)


def flash_attn_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    k: Array | None = None,
    v: Array | None = None,
    qv: Array | None = None,
    rotary_cos: Array | None = None,
    rotary_sin: Array | None = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Ints | None = None,
    cache_leftpad: Ints | None = None,
    page_table: Ints | None = None,
    cu_seqlens_q: Ints | None = None,
    cu_seqlens_k_new: Ints | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Ints | None = None,
    q_descale: Array | None = None,
    k_descale: Array | None = None,
    v_descale: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """Append k and v to the caches, IN PLACE as the library does, and attend to what is then there.

    As in FlashAttention 2 (`refattn.dialects.flash_attn.flash_attn_with_kvcache`), and besides:

    - ``cu_seqlens_q`` packs the queries, (total_q, H, D) with lse (H, total_q); ``cu_seqlens_k_new`` packs k and v.
    - A bound to the right of at least Tq - 1 cuts nothing, and does not turn the queries (flash_api.cpp:797).
    - ``rotary_seqlens`` (B,) says where the rotation of each sequence begins, rather than cache_seqlens.
    - ``page_table`` is what block_table is there; pages of any size.
    """
    name = "flash_attn_with_kvcache"
    check_floats(name, 3 if cu_seqlens_q is not None else 4, q=q, k_cache=k_cache, v_cache=v_cache)
    check_floats(name, 4, k_cache=k_cache, v_cache=v_cache)
    rows_q = _rows(name, "cu_seqlens_q", cu_seqlens_q, q)
    B = len(rows_q)
    longest = max(at.stop - at.start for at in rows_q)
    table = None if page_table is None else check_pages(name, "page_table", page_table, B, len(k_cache))
    rows = check_rows(name, cache_batch_idx, B, len(k_cache)) if table is None else None
    caches = Cache(k_cache, rows, table), Cache(v_cache, rows, table)
    most = caches[0].capacity
    check_append(name, q, (k, v), (rotary_cos, rotary_sin), cache_seqlens, most)
    before = check_lengths(name, "cache_seqlens", most if cache_seqlens is None else cache_seqlens, B, most)
    starts = check_lengths(name, "cache_leftpad", 0 if cache_leftpad is None else cache_leftpad, B, most)
    turned = before if rotary_seqlens is None else check_lengths(name, "rotary_seqlens", rotary_seqlens, B, most)
    rows_new = [slice(0, 0)] * B if k is None else _rows(name, "cu_seqlens_k_new", cu_seqlens_k_new, k)
    for b, at in enumerate(rows_new):
        caches[0].check(name, b, int(before[b]) + at.stop - at.start)
    scores = Scores(softmax_scale, softcap, causal, window_size, attention_chunk, backend)
    flat, new = _flat(q), (_flat(k), _flat(v))
    out = np.zeros((*flat.shape[:2], v_cache.shape[-1]), q.dtype)
    lse = np.full((flat.shape[1], len(flat)), -np.inf, compute_dtype(q.dtype))
    for b, (at, added) in enumerate(zip(rows_q, rows_new, strict=True)):
        part = flat[at]
        if k is not None:
            rotary = None
            if rotary_cos is not None and rotary_sin is not None:
                rotary = (rotary_cos, rotary_sin, rotary_interleaved, int(turned[b]))
            moving = scores.moving(longest if max_seqlen_q is None else max_seqlen_q, most)
            part = append(b, part, (new[0][added], new[1][added]), caches, int(before[b]), rotary, moving)
        there = (b, int(starts[b]), int(before[b]) + added.stop - added.start)
        keys, values = (cache.read(*there) for cache in caches)
        out[at], lse[:, at] = attend_sequence(name, part, keys, values, None if qv is None else _flat(qv)[at], scores)
    if cu_seqlens_q is None:
        out = out.reshape(*q.shape[:-1], out.shape[-1])
        lse = lse.reshape(q.shape[2], *q.shape[:2]).swapaxes(0, 1)
    return (out, lse) if return_softmax_lse else out


def _rows(name: str, argument: str, borders: Ints | None, x: Array) -> list[slice]:
    """Return the rows of each sequence in `x`: as its borders say, or those of (B, T, ...) one after the other."""
    if borders is None:
        borders = np.arange(x.shape[0] + 1) * x.shape[1]
        return list(spans(borders))
    return list(spans(check_borders(name, argument, borders, len(x))))


def _flat(x: Any) -> Any:
    """Put the sequences of (B, T, H, D) one after the other, (B T, H, D); None and (total, H, D) stay."""
    return x if x is None or x.ndim == 3 else x.reshape(-1, *x.shape[2:])


def _used(name: str, argument: str, lengths: Ints | None, b: int, at: slice) -> slice:
    """Return the first rows of a sequence that count."""
    if lengths is None:
        return at
    most = at.stop - at.start
    if not 0 <= lengths[b] <= most:
        raise ValueError(f"{name}: {argument}[{b}] is {lengths[b]}; wanted 0 ... {most}")
    return slice(at.start, at.start + int(lengths[b]))
