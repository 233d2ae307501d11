"""FlashInfer (`flashinfer`): its functions, layouts and edges, computed by the reference.

Ye et al., "FlashInfer", 2025, arXiv:2501.01005. Source: flashinfer-ai/flashinfer at commit fb28d72 (2026-08-22),
flashinfer/{decode,prefill,cascade,utils}.py and include/flashinfer/attention/{variants,prefill,decode,state}.cuh, the
kernels that it calls fa2.

Where its functions differ from `refattn.attention`:

- One request is q (Tq, H, D), or (H, D) to decode; k and v are (Tk, Hk, D), or (Hk, Tk, D) with ``kv_layout="HND"``.
  lse is (Tq, H), or (H,).
- **lse is a logarithm to the base 2** (state.cuh:45), natural lse / ln 2; `merge_state` takes and gives the same.
- ``window_left=n`` sees n keys back and the query's own, -1 unbounded; there is no window to the right, so without
  ``causal`` everything to the right is visible (variants.cuh:89).
- ``causal`` is bottom-right (prefill.cuh:1517), and ignored where there is a ``custom_mask`` (prefill.py:1360). For one
  request, more queries than keys are refused with it (prefill.cuh:2533); in a batch, the first of them see nothing.
- ``pos_encoding_mode="ALIBI"`` takes the paper's slopes for H heads, and adds +slope · (j - i): i counts from the first
  of the new queries, 0 to decode, without Tk - Tq and without an absolute value (variants.cuh:70). Keys to the right of
  i gain. With causal the weights are those of ALiBi, lse is not.
- ALiBi with a soft cap: c · tanh((scale · q·k + alibi) · scale / c), the scale twice (variants.cuh:69-73).
- ``pos_encoding_mode="ROPE_LLAMA"`` rotates q and k inside, half split, by position / rope_scale · rope_theta^(-2n/D);
  keys stand at 0, 1 ..., queries at Tk - Tq + i (decode.cuh:267, prefill.cuh:2275).
- ``logits_soft_cap`` None, 0 or less is none.
- ``k_scale`` multiplies the scale, ``v_scale`` the output; `single_decode_with_kv_cache` takes ``q_scale``, too.

Not taken: what quantised inputs need (``scale_q``, ``scale_k``, ``scale_v``, ``kv_cache_sf``).
``use_fp16_qk_reduction`` and ``use_tensor_cores`` change rounding in the library, and nothing here. Its own ``backend``
gives way to ours.

The wrappers BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper and
BatchPrefillWithRaggedKVCacheWrapper are functions here: what ``plan`` and ``run`` take, in one call.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.common import Bools
from refattn.dense.decode import merge_attention
from refattn.dialects.common import Ints, check_borders, heads_first, spans
from refattn.dialects.flashinfer_scores import (
    attend_request,
    gathered,
    mask_of,
    masks_of,
    pages_of,
    settle,
    tokens_first,
)

LN2 = float(np.log(2.0))


def single_prefill_with_kv_cache(
    q: Array,
    k: Array,
    v: Array,
    scale_q: None = None,
    scale_k: None = None,
    scale_v: None = None,
    o_dtype: Any = None,
    custom_mask: Bools | None = None,
    packed_custom_mask: Array | None = None,
    causal: bool = False,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_fp16_qk_reduction: bool = False,
    sm_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    backend: str = "numpy",
    return_lse: bool = False,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> Any:
    """Attention of the newest tokens of one request: q (Tq, H, D); out (Tq, H, Dv), lse (Tq, H) to the base 2.

    ``custom_mask`` is bool (Tq, Tk), True = may look; ``packed_custom_mask`` the same as bits, the lowest first.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 2)), np.zeros((4, 1, 2)), np.ones((4, 1, 1))
    >>> single_prefill_with_kv_cache(q, k, v, return_lse=True)[1]  # log2 of 4 keys
    array([[2.]])
    """
    name = "single_prefill_with_kv_cache"
    check_floats(name, 3, q=q, k=k, v=v)
    if not (scale_q is None and scale_k is None and scale_v is None):
        raise TypeError(f"{name}: scale_q, scale_k and scale_v are for float8 inputs")
    keys, values = (tokens_first(name, x, kv_layout) for x in (k, v))
    mask = mask_of(name, custom_mask, packed_custom_mask, (len(q), len(keys)))
    if causal and mask is None and len(keys) < len(q):
        raise ValueError(f"{name}: causal, with {len(keys)} keys for {len(q)} queries; wanted as many at least")
    rope = (rope_scale, rope_theta)
    scores = settle(
        name, q, pos_encoding_mode, sm_scale, (k_scale,), window_left, logits_soft_cap, *rope, causal, backend
    )
    out, lse = attend_request(q, keys, values, mask, scores)
    out = out if v_scale is None else out * out.dtype.type(v_scale)
    out = out if o_dtype is None else out.astype(o_dtype)
    return (out, lse) if return_lse else out


def single_decode_with_kv_cache(
    q: Array,
    k: Array,
    v: Array,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_tensor_cores: bool = False,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    sm_scale: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
    *,
    backend: str = "numpy",
) -> Any:
    """Attention of the newest token of one request: q (H, D); out (H, Dv), lse (H,) to the base 2."""
    name = "single_decode_with_kv_cache"
    check_floats(name, 2, q=q, k=k, v=v)
    if q.ndim != 2:
        raise ValueError(f"{name}: q has shape {q.shape}; wanted (H, D)")
    keys, values = (tokens_first(name, x, kv_layout) for x in (k, v))
    rope = (rope_scale, rope_theta)
    scales = (q_scale, k_scale)
    scores = settle(name, q, pos_encoding_mode, sm_scale, scales, window_left, logits_soft_cap, *rope, False, backend)
    out, lse = attend_request(q[None], keys, values, None, scores)
    out = out if v_scale is None else out * out.dtype.type(v_scale)
    return (out[0], lse[0]) if return_lse else out[0]


def batch_prefill_with_ragged_kv_cache(
    q: Array,
    k: Array,
    v: Array,
    qo_indptr: Ints,
    kv_indptr: Ints,
    custom_mask: Bools | None = None,
    packed_custom_mask: Array | None = None,
    causal: bool = False,
    pos_encoding_mode: str = "NONE",
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    sm_scale: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
    *,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    backend: str = "numpy",
) -> Any:
    """Attention of many requests, packed: q (total_q, H, D), k and v (total_k, Hk, D); lse (total_q, H) to the base 2.

    ``custom_mask`` holds the masks (Tq, Tk) of all requests, flat and one after the other.
    """
    name = "batch_prefill_with_ragged_kv_cache"
    check_floats(name, 3, q=q, k=k, v=v)
    rows_q = check_borders(name, "qo_indptr", qo_indptr, len(q))
    rows_k = check_borders(name, "kv_indptr", kv_indptr, len(k))
    check_shape(name, "kv_indptr", rows_k, rows_q.shape, "(B + 1,)")
    masks = masks_of(name, custom_mask, packed_custom_mask, rows_q, rows_k)
    rope, scales = (rope_scale, rope_theta), (q_scale, k_scale)
    scores = settle(name, q, pos_encoding_mode, sm_scale, scales, window_left, logits_soft_cap, *rope, causal, backend)
    out = np.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    lse = np.full(q.shape[:2], -np.inf, compute_dtype(q.dtype))
    for at_q, at_k, mask in zip(spans(rows_q), spans(rows_k), masks, strict=True):
        out[at_q], lse[at_q] = attend_request(q[at_q], k[at_k], v[at_k], mask, scores)
    out = out if v_scale is None else out * out.dtype.type(v_scale)
    return (out, lse) if return_lse else out


def batch_prefill_with_paged_kv_cache(
    q: Array,
    paged_kv_cache: Any,
    qo_indptr: Ints,
    paged_kv_indptr: Ints,
    paged_kv_indices: Ints,
    paged_kv_last_page_len: Ints,
    custom_mask: Bools | None = None,
    packed_custom_mask: Array | None = None,
    causal: bool = False,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    sm_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
    *,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    backend: str = "numpy",
) -> Any:
    """Attention of the newest tokens of many requests, q (total, H, D), to keys and values in pages; lse (total, H).

    - ``paged_kv_cache`` is (k, v), each (n_pages, page, Hk, D), "HND": (n_pages, Hk, page, D); or one array with an
      axis of 2 after the first.
    - Request b owns the pages paged_kv_indices[paged_kv_indptr[b] : paged_kv_indptr[b + 1]], the last of which holds
      paged_kv_last_page_len[b] tokens: its length is not given, but follows. No pages: no keys (page.cuh:185).
    - The rest as `batch_prefill_with_ragged_kv_cache`.
    """
    name = "batch_prefill_with_paged_kv_cache"
    k_pages, v_pages = pages_of(name, paged_kv_cache, kv_layout)
    indices, last = np.asarray(paged_kv_indices), np.asarray(paged_kv_last_page_len)
    owned = check_borders(name, "paged_kv_indptr", paged_kv_indptr, len(indices))
    check_shape(name, "paged_kv_last_page_len", last, (len(owned) - 1,), "(B,)")
    parts = [(indices[at].astype(np.int64), int(tokens)) for at, tokens in zip(spans(owned), last, strict=True)]
    k, v = (np.concatenate([gathered(name, x, *part) for part in parts]) for x in (k_pages, v_pages))
    lengths = [(len(at) - 1) * k_pages.shape[1] + tokens if len(at) else 0 for at, tokens in parts]
    masks = (custom_mask, packed_custom_mask, causal)
    options = (*masks, pos_encoding_mode, window_left, logits_soft_cap, sm_scale, rope_scale, rope_theta, return_lse)
    return batch_prefill_with_ragged_kv_cache(
        q,
        k,
        v,
        qo_indptr,
        np.cumsum([0, *lengths]),
        *options,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        backend=backend,
    )


def batch_decode_with_paged_kv_cache(
    q: Array,
    paged_kv_cache: Any,
    indptr: Ints,
    indices: Ints,
    last_page_len: Ints,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    sm_scale: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
    *,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    backend: str = "numpy",
) -> Any:
    """Attention of the newest token of many requests: q (B, H, D); out (B, H, Dv), lse (B, H) to the base 2."""
    return batch_prefill_with_paged_kv_cache(
        q,
        paged_kv_cache,
        np.arange(len(q) + 1),
        indptr,
        indices,
        last_page_len,
        kv_layout=kv_layout,
        pos_encoding_mode=pos_encoding_mode,
        sm_scale=sm_scale,
        window_left=window_left,
        logits_soft_cap=logits_soft_cap,
        rope_scale=rope_scale,
        rope_theta=rope_theta,
        return_lse=return_lse,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        backend=backend,
    )


def merge_state(v_a: Array, s_a: Array, v_b: Array, s_b: Array, *, backend: str = "numpy") -> tuple[Array, Array]:
    """Merge outputs (T, H, D) and base-2 lse (T, H) of two sets of keys."""
    return merge_states(np.stack([v_a, v_b], axis=1), np.stack([s_a, s_b], axis=1), backend=backend)


def merge_states(v: Array, s: Array, *, backend: str = "numpy") -> tuple[Array, Array]:
    """Merge outputs (T, n, H, D) and base-2 lse (T, n, H) of n sets of keys; (T, H, D) and (T, H).

    Examples
    --------
    >>> out, lse = merge_states(np.array([[[[2.0]], [[4.0]]]]), np.zeros((1, 2, 1)))
    >>> out, lse
    (array([[[3.]]]), array([[1.]]))
    """
    check_floats("merge_states", 4, v=v)
    check_shape("merge_states", "s", s, v.shape[:-1], "(T, n, H)")
    natural = s.astype(compute_dtype(v.dtype)) * compute_dtype(v.dtype).type(LN2)
    parts = [(heads_first(v[:, n]), natural[:, n].T) for n in range(v.shape[1])]
    out, lse = merge_attention(*parts, backend=backend)
    return heads_first(out), lse.T / lse.dtype.type(LN2)
