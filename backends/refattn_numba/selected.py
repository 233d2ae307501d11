"""Attention to keys that are chosen by content: scores a strip of queries at a time, then `gather` on what was chosen.

Choosing costs a product of BLAS and one pass over the scores (`select`); the choice is the reference's as long as
different orders of summation do not change which of two scores is larger.
"""

import math
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array, compute_dtype
from refattn.masks import as_mask
from refattn.masks.given import within
from refattn.results import LshAttention, NsaAttention, SelectedAttention
from refattn_numba.attention import attention
from refattn_numba.gather import Lists, attend_lists, lists
from refattn_numba.layout import heads_of, planes, read_only
from refattn_numba.parts import Below
from refattn_numba.select import as_state, best, named, strips


def topk_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    mask: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    indices: Array | None = None,
) -> SelectedAttention:
    """As `refattn.topk_attention`."""
    (Tq, D), Tk, dtype = q.shape[-2:], k.shape[-2], compute_dtype(q.dtype)
    factor = dtype.type(1 / math.sqrt(D) if scale is None else scale)
    pattern = as_mask(mask)
    found = np.full((*q.shape[:-1], n_keys), -1, np.int64)
    heads = _stack(found)
    given = None if indices is None else _stack(indices)
    plane_of = planes(() if pattern is None else pattern.lead, heads_of(q))
    for head, (q_h, k_h) in enumerate(_pairs(q, k, dtype)):
        for i in strips(Tq, Tk):
            allowed = np.ones((i.stop - i.start, Tk), bool)
            if pattern is not None:
                seen = pattern.at(plane_of[head], np.arange(i.start, i.stop)[:, None], np.arange(Tk), Tq, Tk)
                allowed = np.broadcast_to(seen, allowed.shape)
            if given is not None:
                allowed = allowed & named(given[head, i], Tk)  # all that is left has room
            s = factor * (q_h[i] @ k_h.T)
            heads[head, i] = best(s, n_keys, as_state(allowed))
    o, lse = attend_lists(q, k, v, lists(found, 1, np.full(Tq, Tk), heads_of(q)), scale, softcap, sinks)
    return SelectedAttention(o.astype(q.dtype, copy=False), lse, found)


def moba_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    chunk: int,
    top_k: int,
    scale: float | None = None,
    indices: Array | None = None,
) -> SelectedAttention:
    """As `refattn.moba_attention`."""
    Tq, Tk, dtype = q.shape[-2], k.shape[-2], compute_dtype(q.dtype)
    chunk = within(chunk, Tq, Tk)
    count = -(-Tk // chunk)
    means = np.zeros((*k.shape[:-2], count, k.shape[-1]), dtype)
    for c in range(count):
        means[..., c, :] = k[..., c * chunk : (c + 1) * chunk, :].astype(dtype).mean(axis=-2)
    position, chunks = np.arange(Tq) + Tk - Tq, np.arange(count)
    current = position[:, None] // chunk
    found = np.full((*q.shape[:-1], top_k), -1, np.int64)
    heads = _stack(found)
    given = None if indices is None else _stack(indices)
    for head, (q_h, means_h) in enumerate(_pairs(q, means, dtype)):
        allowed = chunks <= current
        if given is not None:
            allowed = allowed & named(given[head], count)  # all that is left has room
        heads[head] = best(q_h @ means_h.T, top_k, as_state(allowed, chunks == current))
    o, lse = attend_lists(q, k, v, lists(found, chunk, np.clip(position + 1, 0, Tk), heads_of(q)), scale)
    return SelectedAttention(o.astype(q.dtype, copy=False), lse, found)


def nsa_attention(
    q: Array,
    k: Array,
    v: Array,
    gates: Array,
    *,
    block_size: int,
    stride: int,
    select_block: int,
    n_selected: int,
    window: int,
    w_k: Array | None = None,
    w_v: Array | None = None,
    k_selected: Array | None = None,
    v_selected: Array | None = None,
    k_window: Array | None = None,
    v_window: Array | None = None,
    scale: float | None = None,
    indices: Array | None = None,
) -> NsaAttention:
    """As `refattn.nsa_attention`."""
    Tq, Tk, dtype, out = q.shape[-2], k.shape[-2], compute_dtype(q.dtype), q.dtype
    q, k, v, gates = (x.astype(dtype, copy=False) for x in (q, k, v, gates))
    k_selected, v_selected, k_window, v_window = (
        like if x is None else x.astype(dtype, copy=False)
        for x, like in ((k_selected, k), (v_selected, v), (k_window, k), (v_window, v))
    )
    position = np.arange(Tq) + Tk - Tq
    most = -(-(Tq + Tk + 1) // stride) * stride  # a longer block is as good as one of this length
    block_size, select_block = min(block_size, most), min(select_block, most)
    compressed = [_compress(x, w, block_size, stride) for x, w in ((k, w_k), (v, w_v))]
    ended = np.clip((position + 1 - block_size) // stride + 1, 0, compressed[0].shape[-2])
    o_c, lse_c = attention(q, *compressed, mask=Below(ended), scale=scale, return_lse=True)

    found = _select_blocks(q, compressed[0], lse_c, ended, position, indices, scale, block_size // stride,
                           select_block // stride, select_block, n_selected, k.shape[:-2], Tk)  # fmt: skip
    group = heads_of(q)[-1] // (k.shape[-3] if k.ndim > 2 else 1)
    index = read_only(_stack(found))
    plane_of = np.repeat(np.arange(len(index)), group)
    chosen = Lists(index, plane_of, within(select_block, Tq, Tk), np.clip(position + 1, 0, Tk))
    o_s, lse_s = attend_lists(q, k_selected, v_selected, chosen, scale)
    near = masks.causal() & masks.window(window - 1, 0)
    o_w, lse_w = attention(q, k_window, v_window, mask=near, scale=scale, return_lse=True)
    o = sum(gates[..., c, None] * o_n for c, o_n in enumerate((o_c, o_s, o_w)))
    return NsaAttention(np.asarray(o).astype(out, copy=False), np.stack([lse_c, lse_s, lse_w], axis=-1), found)


def _select_blocks(
    q: Array, k_compressed: Array, lse: Array, ended: Array, position: Array, indices: Array | None,
    scale: float | None, depth: int, ratio: int, select_block: int, n: int, kv_heads: tuple[int, ...], Tk: int,
) -> Array:  # fmt: skip
    """Return the blocks that the heads of each group select together, int64 (..., Hk, Tq, n)."""
    dtype, (Tq, D) = q.dtype, q.shape[-2:]
    factor = dtype.type(1 / math.sqrt(D) if scale is None else scale)
    count, width = -(-Tk // select_block), k_compressed.shape[-2]
    places = math.prod(kv_heads)
    group = math.prod(heads_of(q)) // max(1, places)
    q, lse = q.reshape(places, group, Tq, D), lse.reshape(places, group, Tq)
    k_compressed = k_compressed.reshape(places, width, D)
    found = np.full((places, Tq, n), -1, np.int64)
    given = None if indices is None else indices.reshape(places, Tq, n)
    blocks = np.arange(count)
    for place in range(places):
        for i in strips(Tq, group * max(width, count)):
            seen = np.arange(width) < ended[i, None]
            base = np.where(np.isneginf(lse[place, :, i]), 0, lse[place, :, i])[..., None]
            s = factor * (q[place, :, i] @ k_compressed[place].T)
            p = np.where(seen, np.exp(np.where(seen, s - base, 0)), 0).sum(axis=0)  # over the group
            importance = _importance(p, depth, ratio, count)
            current = position[i, None] // select_block
            allowed = blocks <= current
            if given is not None:
                allowed = allowed & named(given[place, i], count)  # all that is left has room
            pinned = (blocks == 0) | (blocks == current) | (blocks == current - 1)
            found[place, i] = best(importance, n, as_state(allowed, pinned))
    return found.reshape(*kv_heads, Tq, n)


def _importance(p: Array, depth: int, ratio: int, count: int) -> Array:
    """Return the weight of each block to select: p of every compressed block, once for each stride in common."""
    padded = np.zeros((len(p), depth - 1 + count * ratio), p.dtype)
    padded[:, depth - 1 : depth - 1 + p.shape[-1]] = p
    importance = np.zeros((len(p), count), p.dtype)
    for m in range(ratio):
        for n in range(depth):
            importance += padded[:, depth - 1 + m - n :: ratio][:, :count]
    return importance


def _compress(x: Array, w: Array | None, size: int, stride: int) -> Array:
    """Return the blocks that lie wholly in x (..., Hk, T, D), each summed with its weights."""
    T = x.shape[-2]
    if size > T:
        return np.zeros((*x.shape[:-2], 0, x.shape[-1]), x.dtype)
    seen = np.lib.stride_tricks.sliding_window_view(x, size, axis=-2)[..., ::stride, :, :]  # (..., blocks, D, size)
    if w is None:
        return seen.mean(axis=-1)
    weights = w.astype(x.dtype) if x.ndim > 2 else w[0].astype(x.dtype)
    return np.einsum("...bdm,...m->...bd", seen, weights)


def lsh_attention(
    qk: Array,
    v: Array,
    *,
    chunk: int,
    rotations: Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    buckets: Array | None = None,
) -> LshAttention:
    """As `refattn.lsh_attention`: the keys of all rounds as one list, each once, so that nothing has to be merged."""
    dtype = compute_dtype(qk.dtype)
    q = qk.astype(dtype, copy=False)
    norm = np.sqrt((q * q).sum(axis=-1, keepdims=True))
    k = q / np.where(norm == 0, 1, norm)
    if rotations is not None:
        turned = q[..., None, :, :] @ rotations.astype(dtype)
        buckets = np.argmax(np.concatenate([turned, -turned], axis=-1), axis=-1)
    assert buckets is not None
    buckets = np.array(buckets, np.int64)  # (..., H, rounds, T)
    T, rounds = q.shape[-2], buckets.shape[-2]
    chunk = within(chunk, 0, T)
    order = np.argsort(buckets, axis=-1, kind="stable")
    index = np.full((*q.shape[:-2], T, rounds * 2 * chunk), -1, np.int64)
    own = np.arange(T)[:, None]
    for r in range(rounds):
        rank = np.argsort(order[..., r, :], axis=-1)
        places = (rank[..., None] // chunk - 1) * chunk + np.arange(2 * chunk)  # (..., T, 2 chunk)
        taken = (places >= 0) & (places < T)
        j = np.take_along_axis(order[..., r, None, :], np.where(taken, places, 0), axis=-1)
        mine = buckets[..., r, :]
        same = mine[..., None] == np.take_along_axis(mine[..., None, :], j, axis=-1)
        seen = taken & same & (j != own) & ((j <= own) | (not causal))
        index[..., r * 2 * chunk : (r + 1) * 2 * chunk] = np.where(seen, j, -1)
    index.sort(axis=-1)
    index[..., 1:][index[..., 1:] == index[..., :-1]] = -1
    alone = (index < 0).all(axis=-1)
    index[..., 0] = np.where(alone, np.arange(T), index[..., 0])
    o, lse = attend_lists(q, k, v, lists(index, 1, np.full(T, T), heads_of(q)), scale)
    return LshAttention(o.astype(qk.dtype, copy=False), lse, buckets)


def _stack(x: Array) -> Array:
    """Return (..., n, m) as one axis of matrices (heads, n, m)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _pairs(q: Array, k: Array, dtype: Any) -> list[tuple[Array, Array]]:
    """Return each head's queries with the keys that it reads, in the compute dtype."""
    q = _stack(q.astype(dtype, copy=False))
    k = _stack(k.astype(dtype, copy=False))
    group = len(q) // max(1, len(k))
    return [(q[h], k[h // group]) for h in range(len(q))]
