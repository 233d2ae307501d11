"""Attention in tiles, as one writes it for fast memory: the correct kernel that the mutants are patches of.

Dao, 2023, arXiv:2307.08691, Algorithm 1: a tile of queries stays while the keys stream past, under the running maximum
m and the running sum l. Split-KV (Flash-Decoding, Dao et al., 2023) sweeps parts of the keys by themselves and merges
the parts by their lse. 16-bit inputs are computed in float32; the weights are rounded before they meet the values.

Nothing is imported from `refattn.dense`: this is a second implementation.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype

_WORKSPACES: dict[Any, Array] = {}


@dataclass(frozen=True)
class Sequence:
    """One batch entry, its keys and values padded to whole tiles; position i + offset is that of query i."""

    keys: Array  # (H, tiles * tile_k, D)
    values: Array  # (H, tiles * tile_k, Dv)
    length: int
    offset: int
    left: int | None
    right: int | None
    scale: float
    softcap: float | None
    bias: Array | None  # (H, Tq, Tk), as are mask and keep
    mask: Array | None
    keep: Array | None
    dropout_p: float
    slopes: Array | None  # (H, 1, 1)
    tile_k: int
    dtype: Any


@np.errstate(all="ignore")
def tiled_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_offset: Any = None,
    window: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    seqlens_k: Any = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    num_splits: int = 1,
    tile_q: int = 64,
    tile_k: int = 64,
) -> tuple[Array, Array]:
    """Return o (B, H, Tq, Dv) in the dtype of q and lse (B, H, Tq) in that of the computation."""
    B, H, Tq, D = q.shape
    Hk, Tk, Dv = k.shape[1], k.shape[2], v.shape[3]
    acc = compute_dtype(q.dtype)
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    head_of = np.arange(H) // (H // Hk)
    slopes = None if alibi_slopes is None else alibi_slopes.astype(acc)[:, None, None]
    sink = None if sinks is None else sinks.astype(acc)[:, None, None]
    o = np.zeros((B, H, Tq, Dv), q.dtype)
    lse = np.full((B, H, Tq), -np.inf, acc)

    for b in range(B):
        length = Tk if seqlens_k is None else int(seqlens_k[b])
        offset = length - Tq
        if q_offset is not None:
            offset = int(np.broadcast_to(q_offset, (B,))[b])
        left, right = (None, None) if window is None else window
        if causal:
            right = 0
        seq = Sequence(
            keys=_padded("keys", k[b], head_of, length, tile_k, acc),
            values=_padded("values", v[b], head_of, length, tile_k, acc),
            length=length,
            offset=offset,
            left=left,
            right=right,
            scale=scale,
            softcap=softcap,
            bias=None if bias is None else np.broadcast_to(bias, (B, H, Tq, Tk))[b],
            mask=None if mask is None else np.broadcast_to(mask, (B, H, Tq, Tk))[b],
            keep=None if dropout_mask is None else np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[b],
            dropout_p=float(dropout_p),
            slopes=slopes,
            tile_k=tile_k,
            dtype=q.dtype,
        )
        for i in range(0, Tq, tile_q):
            q_i = q[b, :, i : i + tile_q].astype(acc)
            first, stop = _seen_by(seq, i, q_i.shape[1])
            parts = []
            for part, (start, end) in enumerate(_splits(first, stop, tile_k, num_splits)):
                parts.append(_sweep(seq, q_i, i, start, end, sink if part == 0 else None))
            o_i, lse_i = _merge(parts)
            o[b, :, i : i + tile_q] = o_i.astype(q.dtype)
            lse[b, :, i : i + tile_q] = lse_i
    return o, lse


def _scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros, in memory that later calls use again; it grows when more is needed."""
    size = math.prod(shape)
    memory = _WORKSPACES.get((name, dtype))
    if memory is None or memory.size < size:
        memory = _WORKSPACES[name, dtype] = np.zeros(size, dtype)
    buffer = memory[:size].reshape(shape)
    buffer.fill(0)
    return buffer


def _padded(name: str, x: Array, head_of: Array, length: int, tile_k: int, acc: Any) -> Array:
    """Return the first `length` rows of x for every query head, zeros behind them up to a whole tile."""
    rows = -(-length // tile_k) * tile_k
    padded = _scratch(name, (len(head_of), rows, x.shape[-1]), acc)
    padded[:, :length] = x[head_of, :length]
    return padded


def _seen_by(seq: Sequence, i: int, n: int) -> tuple[int, int]:
    """Return the keys from the first tile to the last that queries i to i + n - 1 may see."""
    first, stop = 0, seq.length
    if seq.right is not None:
        stop = min(stop, i + n - 1 + seq.offset + seq.right + 1)
    if seq.left is not None:
        first = max(first, i + seq.offset - seq.left)
    return first // seq.tile_k * seq.tile_k, stop


def _splits(first: int, stop: int, tile_k: int, num_splits: int) -> list[tuple[int, int]]:
    """Return (start, end) of each part, whole tiles of about the same number; some may be empty."""
    tiles = max(0, -(-(stop - first) // tile_k))
    step = -(-tiles // num_splits) * tile_k
    return [(first + part * step, min(stop, first + (part + 1) * step)) for part in range(num_splits)]


def _sweep(seq: Sequence, q_i: Array, i: int, start: int, end: int, sink: Array | None) -> tuple[Array, Array]:
    """Return (o, lse) of the queries over the keys from start to end."""
    H, n, acc = q_i.shape[0], q_i.shape[1], q_i.dtype
    m = np.full((H, n, 1), -np.inf, acc)
    if sink is not None:  # a key that comes first and has no value
        m[:] = sink
    l = np.where(np.isneginf(m), 0, 1).astype(acc)
    o_i = _scratch("accumulator", (H, n, seq.values.shape[-1]), acc)
    for j in range(start, end, seq.tile_k):
        k_j = seq.keys[:, j : j + seq.tile_k]
        v_j = seq.values[:, j : j + seq.tile_k]
        s = _scores(seq, q_i, k_j, i, j)
        visible = _visible(seq, i, n, j)
        if visible is not None:
            s = np.where(visible, s, -np.inf)
        m_new = np.maximum(m, s.max(axis=-1, keepdims=True))
        safe = np.where(np.isneginf(m_new), 0, m_new)  # nothing seen yet: keep e^-inf, not e^nan
        p = np.exp(s - safe)
        shrink = np.exp(m - safe)
        l = l * shrink + p.sum(axis=-1, keepdims=True)
        if seq.keep is not None:
            p = np.where(_tile(seq.keep, i, n, j, seq.tile_k), p / (1 - seq.dropout_p), 0)
        p = p.astype(seq.dtype).astype(acc)
        o_i *= shrink
        o_i += _product(p, v_j, visible)
        m = m_new
    o_i = o_i / np.where(l == 0, 1, l)
    lse_i = (m + np.log(l))[..., 0]
    return o_i, lse_i


def _scores(seq: Sequence, q_i: Array, k_j: Array, i: int, j: int) -> Array:
    """Return scale * q·k, capped, with the biases added."""
    s = q_i @ k_j.swapaxes(-1, -2)
    s *= seq.scale
    if seq.softcap is not None:
        s = seq.softcap * np.tanh(s / seq.softcap)
    if seq.bias is not None:
        s += _tile(seq.bias, i, s.shape[1], j, seq.tile_k).astype(s.dtype)
    if seq.slopes is not None:
        distance = i + seq.offset + np.arange(s.shape[1])[:, None] - j - np.arange(seq.tile_k)
        s -= seq.slopes * np.abs(distance).astype(s.dtype)
    return s


def _visible(seq: Sequence, i: int, n: int, j: int) -> Array | None:
    """Return which pairs of the tile are visible, (n, tile_k) or (H, n, tile_k); None if all are."""
    top, bottom, last = i + seq.offset, i + seq.offset + n - 1, j + seq.tile_k - 1
    inside = last < seq.length and seq.mask is None
    inside = inside and (seq.right is None or last <= top + seq.right)
    inside = inside and (seq.left is None or j >= bottom - seq.left)
    if inside:
        return None
    position, key = top + np.arange(n)[:, None], j + np.arange(seq.tile_k)
    visible = np.broadcast_to(key < seq.length, (n, seq.tile_k))
    if seq.right is not None:
        visible = visible & (key <= position + seq.right)
    if seq.left is not None:
        visible = visible & (key >= position - seq.left)
    if seq.mask is not None:
        visible = visible & _tile(seq.mask, i, n, j, seq.tile_k)
    return visible


def _tile(x: Array, i: int, n: int, j: int, tile_k: int) -> Array:
    """Return the n × tile_k entries of x (H, Tq, Tk) from (i, j) on; zeros where x ends."""
    part = x[:, i : i + n, j : j + tile_k]
    if part.shape[-1] == tile_k:
        return part
    padded = np.zeros((*part.shape[:-1], tile_k), x.dtype)
    padded[..., : part.shape[-1]] = part
    return padded


def _product(p: Array, x: Array, visible: Array | None) -> Array:
    """Return p @ x, in which a hidden pair adds nothing at all: where x holds NaN or inf, 0·x would."""
    if np.isfinite(x).all():
        return p @ x
    finite: Array = np.all(np.isfinite(x), axis=-1, keepdims=True)
    total: Array = p @ np.where(finite, x, 0)
    seen = np.broadcast_to(True if visible is None else visible, p.shape)
    for j in np.flatnonzero((~finite).any(axis=(0, 2))):
        rest = np.where(finite[:, j, None], 0, x[:, j, None])  # what the product above left out
        total += np.where(seen[:, :, j, None], p[:, :, j, None] * rest, 0)
    return total


def _merge(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return (o, lse) over all parts: the mean of their o, weighed by e^lse."""
    if len(parts) == 1:
        return parts[0]
    o_s, lse_s = np.stack([o for o, _ in parts]), np.stack([lse for _, lse in parts])
    top = lse_s.max(axis=0)
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(lse_s - top)
    total = weights.sum(axis=0)
    o = (weights[..., None] * o_s).sum(axis=0) / np.where(total == 0, 1, total)[..., None]
    return o, top + np.log(total)
