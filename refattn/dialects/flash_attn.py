"""FlashAttention 2 (`flash_attn`): its functions, layouts and edges, computed by the reference.

Dao, "FlashAttention-2", 2023, arXiv:2307.08691. Source: Dao-AILab/flash-attention at commit 0251105 (2026-08-15),
flash_attn/flash_attn_interface.py, csrc/flash_attn/flash_api.cpp and csrc/flash_attn/src/{mask,softmax,alibi}.h.

Where its functions differ from `refattn.attention`:

- q (B, T, H, D), k and v (B, T, Hk, D): heads after tokens. lse is (B, H, T), or (H, total) for packed sequences.
- A row that sees nothing has o = 0 and lse = +inf; lse is +inf also where the sum of exponentials is NaN
  (softmax.h:180).
- ``window_size=(left, right)`` counts as `masks.window`, with -1 for unbounded and causal as (left, 0). A bound of at
  least Tk counts as unbounded (flash_api.cpp:422), and if just one side is unbounded it is set to Tk
  (flash_api.cpp:159). Where Tq > Tk, rows before the first key then see other keys than the formula says.
- ``softcap <= 0`` means none; with dropout it is refused (flash_api.cpp:420).
- ``alibi_slopes`` (H,) or (B, H). The bias is -slope · |i + Tk - Tq - j|, unless causal without a left window: then it
  is +slope · j (mask.h:182), which changes no weight, but shifts lse by slope · (i + Tk - Tq).
- ``return_attn_probs=True`` gives (out, lse, None): the third, the weights with the signs of dropout, is for its tests.
- ``deterministic`` and ``num_splits`` change rounding in the library, and nothing here.
- Dropout is a mask that is passed in, ``dropout_mask`` (B, H, Tq, Tk), or a list of (H, Tq, Tk) for packed sequences.

Limits of the kernels are not repeated: any float dtype, any D, pages of any size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
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
from refattn.dialects.flash_attn_scores import attend_sequence, reach, settle, unpacked


def flash_attn_func(
    q: Array,
    k: Array,
    v: Array,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    dropout_mask: Array | None = None,
    backend: str = "numpy",
) -> Any:
    """Attention of q (B, Tq, H, D) to k and v (B, Tk, Hk, D); out (B, Tq, H, D), lse (B, H, Tq).

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2, 1, 8)), np.zeros((1, 1, 1, 8)), np.ones((1, 1, 1, 8))
    >>> out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    >>> out[0, :, 0, 0], lse  # query 0 stands before the only key
    (array([0., 1.]), array([[[inf,  0.]]]))
    """
    check_floats("flash_attn_func", 4, q=q, k=k, v=v)
    scores = settle("flash_attn_func", q.shape[0], q.shape[2], softmax_scale, softcap, alibi_slopes, dropout_p, backend)
    far = reach(causal, window_size, q.shape[1], k.shape[1], alibi_slopes is not None)
    out, lse = attend_sequence(q, k, v, far, scores, scores.slopes, dropout_mask)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_kvpacked_func(
    q: Array,
    kv: Array,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    dropout_mask: Array | None = None,
    backend: str = "numpy",
) -> Any:
    """`flash_attn_func` with k and v in one array, kv (B, Tk, 2, Hk, D)."""
    k, v = unpacked("flash_attn_kvpacked_func", "kv", kv, 2, 5)
    options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)
    return flash_attn_func(q, k, v, *options, dropout_mask=dropout_mask, backend=backend)


def flash_attn_qkvpacked_func(
    qkv: Array,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    dropout_mask: Array | None = None,
    backend: str = "numpy",
) -> Any:
    """`flash_attn_func` with q, k and v in one array, qkv (B, T, 3, H, D)."""
    q, k, v = unpacked("flash_attn_qkvpacked_func", "qkv", qkv, 3, 5)
    options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)
    return flash_attn_func(q, k, v, *options, dropout_mask=dropout_mask, backend=backend)


def flash_attn_varlen_func(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Ints,
    cu_seqlens_k: Ints,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Ints | None = None,
    *,
    dropout_mask: Sequence[Array] | None = None,
    backend: str = "numpy",
) -> Any:
    """Attention inside packed sequences: q (total_q, H, D), k and v (total_k, Hk, D); lse (H, total_q).

    Sequence b has the rows cu_seqlens[b] ... cu_seqlens[b + 1] - 1, and causal is bottom-right for its own lengths.
    With ``block_table`` (B, n), k and v are pages (n_pages, page, Hk, D) and cu_seqlens_k just counts.
    max_seqlen_q and max_seqlen_k say which window bounds count as unbounded.
    """
    name = "flash_attn_varlen_func"
    check_floats(name, 3, q=q, k=k, v=v)
    rows_q = check_borders(name, "cu_seqlens_q", cu_seqlens_q, len(q))
    rows_k = check_borders(name, "cu_seqlens_k", cu_seqlens_k, len(k) if block_table is None else None)
    check_shape(name, "cu_seqlens_k", rows_k, rows_q.shape, "(B + 1,)")
    B, H = len(rows_q) - 1, q.shape[1]
    table = None if block_table is None else check_pages(name, "block_table", block_table, B, len(k))
    caches = tuple(Cache(x, None, table) for x in (k, v))
    scores = settle(name, B, H, softmax_scale, softcap, alibi_slopes, dropout_p, backend)
    far = reach(causal, window_size, max_seqlen_q, max_seqlen_k, alibi_slopes is not None)
    out = np.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    lse = np.full((H, len(q)), np.inf, compute_dtype(q.dtype))
    for b, (at_q, at_k) in enumerate(zip(spans(rows_q), spans(rows_k), strict=True)):
        keys, values = k[at_k], v[at_k]
        if table is not None:
            caches[0].check(name, b, at_k.stop - at_k.start)
            keys, values = (cache.read(b, 0, at_k.stop - at_k.start) for cache in caches)
        slopes = None if scores.slopes is None else scores.slopes[b]
        keep = None if dropout_mask is None else dropout_mask[b]
        out[at_q], lse[:, at_q] = attend_sequence(q[at_q], keys, values, far, scores, slopes, keep)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_kvpacked_func(
    q: Array,
    kv: Array,
    cu_seqlens_q: Ints,
    cu_seqlens_k: Ints,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    dropout_mask: Sequence[Array] | None = None,
    backend: str = "numpy",
) -> Any:
    """`flash_attn_varlen_func` with k and v in one array, kv (total_k, 2, Hk, D)."""
    k, v = unpacked("flash_attn_varlen_kvpacked_func", "kv", kv, 2, 4)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)
    return flash_attn_varlen_func(q, k, v, *(*lengths, *options), dropout_mask=dropout_mask, backend=backend)


def flash_attn_varlen_qkvpacked_func(
    qkv: Array,
    cu_seqlens: Ints,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    dropout_mask: Sequence[Array] | None = None,
    backend: str = "numpy",
) -> Any:
    """`flash_attn_varlen_func` with q, k and v in one array, qkv (total, 3, H, D)."""
    q, k, v = unpacked("flash_attn_varlen_qkvpacked_func", "qkv", qkv, 3, 4)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)
    return flash_attn_varlen_func(q, k, v, *(*lengths, *options), dropout_mask=dropout_mask, backend=backend)


def flash_attn_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    k: Array | None = None,
    v: Array | None = None,
    rotary_cos: Array | None = None,
    rotary_sin: Array | None = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Ints | None = None,
    cache_leftpad: Ints | None = None,
    block_table: Ints | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Array | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """Append k and v to the caches, IN PLACE as the library does, and attend to what is then there.

    - Caches (B, T, Hk, D), or pages (n_pages, page, Hk, D) with ``block_table`` (B, n). ``cache_seqlens`` counts the
      tokens before the append, the whole cache if None; ``cache_batch_idx`` says which row belongs to each sequence,
      ``cache_leftpad`` where it begins.
    - New keys are rotated to the positions cache_seqlens, cache_seqlens + 1 ... by the tables rotary_cos and rotary_sin
      (rows, rotary_dim / 2), pairs interleaved unless told otherwise. Queries are rotated to the same positions only if
      causal or windowed: otherwise all stand at cache_seqlens (flash_fwd_kernel.h:798).
    - Causal is bottom-right for the length after the append.
    - Returns out (B, Tq, H, D), with ``return_softmax_lse`` also lse (B, H, Tq).
    """
    name = "flash_attn_with_kvcache"
    check_floats(name, 4, q=q, k_cache=k_cache, v_cache=v_cache)
    B, Tq, H, _ = q.shape
    table = None if block_table is None else check_pages(name, "block_table", block_table, B, len(k_cache))
    if table is not None and not (cache_batch_idx is None and cache_leftpad is None):
        raise ValueError(f"{name}: a block_table does not go with cache_batch_idx or cache_leftpad")
    rows = check_rows(name, cache_batch_idx, B, len(k_cache)) if table is None else None
    caches = Cache(k_cache, rows, table), Cache(v_cache, rows, table)
    most = caches[0].capacity
    check_append(name, q, (k, v), (rotary_cos, rotary_sin), cache_seqlens, most)
    before = check_lengths(name, "cache_seqlens", most if cache_seqlens is None else cache_seqlens, B, most)
    starts = check_lengths(name, "cache_leftpad", 0 if cache_leftpad is None else cache_leftpad, B, most)
    after = before + (0 if k is None else k.shape[1])
    for b in range(B):
        caches[0].check(name, b, int(after[b]))
    scores = settle(name, B, H, softmax_scale, softcap, alibi_slopes, 0.0, backend)
    far = reach(causal, window_size, Tq, most, alibi_slopes is not None)
    out, lse = np.zeros((B, Tq, H, v_cache.shape[-1]), q.dtype), np.zeros((B, H, Tq), compute_dtype(q.dtype))
    for b in range(B):
        turned = q[b]
        if k is not None and v is not None:
            at = int(before[b])
            rotary = None
            if rotary_cos is not None and rotary_sin is not None:
                rotary = (rotary_cos, rotary_sin, rotary_interleaved, at)
            turned = append(b, turned, (k[b], v[b]), caches, at, rotary, moving=far.right is not None)
        keys, values = (cache.read(b, int(starts[b]), int(after[b])) for cache in caches)
        slopes = None if scores.slopes is None else scores.slopes[b]
        out[b], lse[b] = attend_sequence(turned, keys, values, far, scores, slopes, None)
    return (out, lse) if return_softmax_lse else out
