"""How FlashInfer settles its options, and its scores: layouts, rotation inside, ALiBi, soft cap, masks.

Source: see `refattn.dialects.flashinfer`.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.alibi import alibi_slopes
from refattn.dense.attention import attention
from refattn.dense.common import Bools
from refattn.dense.rope import frequencies_of, rope
from refattn.dialects.common import Ints, heads_first
from refattn.masks import causal, from_array, window


class Scores(NamedTuple):
    """How scores come about, the same for every request."""

    pos_encoding_mode: str
    scale: float
    window_left: int
    softcap: float
    rope_scale: float
    rope_theta: float
    causal: bool
    backend: str


def settle(
    name: str,
    q: Array,
    pos_encoding_mode: str,
    sm_scale: float | None,
    factors: tuple[float | None, ...],
    window_left: int,
    logits_soft_cap: float | None,
    rope_scale: float | None,
    rope_theta: float | None,
    causal: bool,
    backend: str,
) -> Scores:
    """Put in what is left out; `factors` multiply the scale."""
    if pos_encoding_mode not in ("NONE", "ROPE_LLAMA", "ALIBI"):
        raise ValueError(f"{name}: pos_encoding_mode is {pos_encoding_mode!r}; wanted NONE, ROPE_LLAMA or ALIBI")
    scale = 1 / math.sqrt(q.shape[-1]) if sm_scale is None else float(sm_scale)
    for factor in factors:
        scale *= 1.0 if factor is None else float(factor)
    return Scores(
        pos_encoding_mode,
        scale,
        int(window_left),
        0.0 if logits_soft_cap is None else float(logits_soft_cap),
        1.0 if rope_scale is None else float(rope_scale),
        1e4 if rope_theta is None else float(rope_theta),
        causal,
        backend,
    )


def attend_request(q: Array, k: Array, v: Array, custom_mask: Bools | None, scores: Scores) -> tuple[Array, Array]:
    """Return out (Tq, H, Dv) and lse (Tq, H), to the base 2, for q (Tq, H, D), k and v (Tk, Hk, D | Dv)."""
    Tq, Tk, H, dtype = len(q), len(k), q.shape[1], q.dtype
    cap = scores.softcap if scores.softcap > 0 else None
    scale, bias = scores.scale, None
    if scores.pos_encoding_mode == "ROPE_LLAMA":
        q, k = (_turned(x, np.arange(len(x)) + Tk - len(x), scores) for x in (q, k))
    if scores.pos_encoding_mode == "ALIBI":
        slopes, i, j = alibi_slopes(H), np.arange(Tq), np.arange(Tk)
        if cap is None:
            bias = slopes[:, None, None] * (j - i[:, None])
        else:
            q, k, v = (x.astype(compute_dtype(dtype)) for x in (q, k, v))  # positions need more than 11 bits
            q, k = _with_alibi(q, k, slopes / scale)
            scale = scale * scale  # c tanh((scale q·k + alibi) scale / c)
    mask = None if custom_mask is None else from_array(custom_mask)
    if mask is None and scores.causal:
        mask = causal()
    if scores.window_left >= 0:
        near = window(scores.window_left, None)
        mask = near if mask is None else mask & near
    o, lse = attention(
        *map(heads_first, (q, k, v)),
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=cap,
        return_lse=True,
        backend=scores.backend,
    )
    return heads_first(o).astype(dtype), lse.T / lse.dtype.type(math.log(2.0))


def _turned(x: Array, positions: Ints, scores: Scores) -> Array:
    """Rotate x (T, H, D), half split, by position / rope_scale · rope_theta^(-2n/D)."""
    frequencies = frequencies_of(None, scores.rope_theta, x.shape[-1]) / scores.rope_scale
    return heads_first(rope(heads_first(x), positions, frequencies=frequencies))


def _with_alibi(q: Array, k: Array, slopes: Array) -> tuple[Array, Array]:
    """Return q (Tq, H, D + 2) and k (Tk, Hk, D + 2) whose product is q·k + slope (j - i)."""
    i, j = (np.arange(len(x), dtype=np.float64)[:, None] for x in (q, k))
    more_q = np.stack(np.broadcast_arrays(slopes, -slopes * i), axis=-1)  # (Tq, H, 2)
    more_k = np.stack(np.broadcast_arrays(j, np.ones_like(j), np.empty(k.shape[:2]))[:2], axis=-1)  # (Tk, Hk, 2)
    return np.concatenate([q, more_q.astype(q.dtype)], axis=-1), np.concatenate([k, more_k.astype(k.dtype)], axis=-1)


def tokens_first(name: str, x: Array, kv_layout: str) -> Array:
    """Return keys or values (..., T, Hk, D) from either layout."""
    if kv_layout not in ("NHD", "HND"):
        raise ValueError(f"{name}: kv_layout is {kv_layout!r}; wanted NHD or HND")
    return x if kv_layout == "NHD" else heads_first(x)


def pages_of(name: str, paged_kv_cache: Any, kv_layout: str) -> tuple[Array, Array]:
    """Return pages of keys and of values, (n, page, Hk, D) each."""
    if isinstance(paged_kv_cache, tuple):
        k, v = paged_kv_cache
    else:
        k, v = paged_kv_cache[:, 0], paged_kv_cache[:, 1]
    check_floats(name, 4, k=k, v=v)
    return tokens_first(name, k, kv_layout), tokens_first(name, v, kv_layout)


def gathered(name: str, pages: Array, indices: Ints, last: int) -> Array:
    """Return the tokens (T, Hk, D) on the pages `indices`, the last of which holds `last`."""
    n, page = pages.shape[:2]
    if len(indices) and not 1 <= last <= page:
        raise ValueError(f"{name}: paged_kv_last_page_len holds {last}; wanted 1 ... {page}")
    if len(indices) and (indices.min() < 0 or indices.max() >= n):
        raise ValueError(f"{name}: paged_kv_indices holds {indices.tolist()}; there are {n} pages")
    length = (len(indices) - 1) * page + last if len(indices) else 0
    return pages[indices].reshape(-1, *pages.shape[2:])[:length]


def mask_of(name: str, mask: Bools | None, packed: Array | None, shape: tuple[int, int]) -> Bools | None:
    """Return the mask (Tq, Tk) that is given as such or in bits, which count before it."""
    if packed is not None:
        bits = np.unpackbits(packed, bitorder="little", count=shape[0] * shape[1])
        return bits.astype(bool).reshape(shape)
    if mask is not None:
        check_shape(name, "custom_mask", mask, shape, "(Tq, Tk)")
    return mask


def masks_of(name: str, mask: Bools | None, packed: Array | None, rows_q: Ints, rows_k: Ints) -> list[Bools | None]:
    """Return the mask (Tq, Tk) of each request; the bits of each begin in a byte of their own."""
    shapes = list(zip(np.diff(rows_q).tolist(), np.diff(rows_k).tolist(), strict=True))
    sizes = [Tq * Tk if packed is None else -(-Tq * Tk // 8) for Tq, Tk in shapes]
    given = mask if packed is None else packed
    if given is None:
        return [None] * len(shapes)
    check_shape(name, "custom_mask" if packed is None else "packed_custom_mask", given, (sum(sizes),), "sum of Tq Tk")
    parts = np.split(given, np.cumsum(sizes)[:-1])
    if packed is not None:
        return [mask_of(name, None, part, shape) for part, shape in zip(parts, shapes, strict=True)]
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
