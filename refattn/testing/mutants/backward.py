"""The derivative of attention in tiles: the correct kernel that the mutants of the backward pass are patches of.

Dao, 2023, arXiv:2307.08691, Algorithm 2: a tile of keys stays while the queries stream past; the weights come back from
lse. 16-bit inputs are computed in float32; p and ds are rounded before their products, the sums over query heads that
share a key head are not.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.testing.mutants.kernel import tiled_attention


@dataclass(frozen=True)
class Sequence:
    """One batch entry, its keys repeated for every query head; position i + offset is that of query i."""

    q: Array  # (H, Tq, D)
    k: Array  # (H, length, D)
    v: Array  # (H, length, Dv)
    do: Array  # (H, Tq, Dv)
    lse: Array  # (H, Tq, 1)
    delta: Array  # (H, Tq, 1)
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
    dtype: Any


@np.errstate(all="ignore")
def tiled_attention_vjp(
    do: Array,
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
    dlse: Array | None = None,
    tile_q: int = 64,
    tile_k: int = 64,
) -> tuple[Array, ...]:
    """Return (dq, dk, dv), then dbias if there is a bias, then dsinks if there are sinks."""
    (B, H, Tq, D), (Hk, Tk, Dv) = q.shape, (*k.shape[1:3], v.shape[3])
    acc = compute_dtype(q.dtype)
    options: dict[str, Any] = {
        "causal": causal,
        "q_offset": q_offset,
        "window": window,
        "scale": scale,
        "softcap": softcap,
    }
    options |= {"bias": bias, "mask": mask, "alibi_slopes": alibi_slopes, "sinks": sinks, "seqlens_k": seqlens_k}
    options |= {"dropout_mask": dropout_mask, "dropout_p": dropout_p, "num_splits": num_splits}
    o, lse = tiled_attention(*(x.astype(acc) for x in (q, k, v)), **options, tile_q=tile_q, tile_k=tile_k)
    delta = (do.astype(acc) * o).sum(axis=-1)
    if dlse is not None:
        delta = delta - dlse.astype(acc)

    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    head_of = np.arange(H) // (H // Hk)
    dq = np.zeros((B, H, Tq, D), acc)
    dk = np.zeros((B, H, Tk, D), acc)
    dv = np.zeros((B, H, Tk, Dv), acc)
    ds = np.zeros((B, H, Tq, Tk) if bias is not None else (B, 0, 0, 0), acc)
    for b in range(B):
        length = Tk if seqlens_k is None else int(seqlens_k[b])
        offset = length - Tq
        if q_offset is not None:
            offset = int(np.broadcast_to(q_offset, (B,))[b])
        left, right = (None, None) if window is None else window
        if causal:
            right = 0
        seq = Sequence(
            q=q[b].astype(acc),
            k=k[b][head_of, :length].astype(acc),
            v=v[b][head_of, :length].astype(acc),
            do=do[b].astype(acc),
            lse=lse[b, :, :, None],
            delta=delta[b, :, :, None],
            offset=offset,
            left=left,
            right=right,
            scale=scale,
            softcap=softcap,
            bias=None if bias is None else np.broadcast_to(bias, (B, H, Tq, Tk))[b],
            mask=None if mask is None else np.broadcast_to(mask, (B, H, Tq, Tk))[b],
            keep=None if dropout_mask is None else np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[b],
            dropout_p=float(dropout_p),
            slopes=None if alibi_slopes is None else alibi_slopes.astype(acc)[:, None, None],
            dtype=q.dtype,
        )
        for j in range(0, length, tile_k):
            for i in range(0, Tq, tile_q):
                _pull(seq, slice(i, i + tile_q), slice(j, min(j + tile_k, length)), dq[b], dk[b], dv[b], ds[b])

    results = [dq.astype(q.dtype)]
    results += [_sum_heads(dk, Hk).astype(k.dtype), _sum_heads(dv, Hk).astype(v.dtype)]
    if bias is not None:
        results.append(_sum_to(ds, bias.shape).astype(bias.dtype))
    if sinks is not None:
        p_sink = np.where(np.isneginf(lse), 0, np.exp(sinks.astype(acc)[:, None] - lse))
        results.append(-(p_sink * delta).sum(axis=(0, 2)).astype(sinks.dtype))
    return tuple(results)


def _pull(seq: Sequence, i: slice, j: slice, dq: Array, dk: Array, dv: Array, ds_all: Array) -> None:
    """Add what the queries i and the keys j contribute to the gradients."""
    q_i, k_j, v_j, do_i = seq.q[:, i], seq.k[:, j], seq.v[:, j], seq.do[:, i]
    rows, keys = np.arange(seq.q.shape[1])[i], np.arange(seq.k.shape[1])[j]
    visible = _visible(seq, rows, keys)
    if not visible.any():
        return
    s, slope = _scores(seq, q_i, k_j, rows, keys)
    lse_i = seq.lse[:, i]
    safe = np.where(np.isneginf(lse_i), 0, lse_i)  # a row that sees nothing: e^-inf, not e^nan
    p = np.exp(np.where(visible, s, -np.inf) - safe)
    keep = np.ones((), p.dtype)
    if seq.keep is not None:
        keep = np.where(seq.keep[:, i, j], 1 / (1 - seq.dropout_p), 0).astype(p.dtype)

    p_kept = _rounded(p * keep, seq.dtype)
    dv[:, j] += _product(p_kept.swapaxes(-1, -2), do_i, visible.swapaxes(-1, -2))  # was: o = (p * keep) @ v
    dp = keep * (do_i @ v_j.swapaxes(-1, -2))
    ds = np.where(visible, p * (dp - seq.delta[:, i]), 0)  # was: p = e^(s - lse)
    if seq.bias is not None:
        ds_all[:, i, j] = ds
    ds = np.where(visible, ds * slope, 0)  # was: s = c tanh(s / c)
    ds = _rounded(ds, seq.dtype)
    dq[:, i] += seq.scale * _product(ds, k_j, visible)  # was: s = scale * q @ k.T
    dk[:, j] += seq.scale * _product(ds.swapaxes(-1, -2), q_i, visible.swapaxes(-1, -2))


def _scores(seq: Sequence, q_i: Array, k_j: Array, rows: Array, keys: Array) -> tuple[Array, Array]:
    """Return the scores with the biases added, and the slope of the soft cap."""
    s = seq.scale * (q_i @ k_j.swapaxes(-1, -2))
    slope = np.ones((), s.dtype)
    if seq.softcap is not None:
        t = np.tanh(s / seq.softcap)
        s, slope = seq.softcap * t, 1 - t**2
    if seq.bias is not None:
        s = s + seq.bias[:, rows[0] : rows[-1] + 1, keys[0] : keys[-1] + 1].astype(s.dtype)
    if seq.slopes is not None:
        s = s - seq.slopes * np.abs(rows[:, None] + seq.offset - keys).astype(s.dtype)
    return s, slope


def _visible(seq: Sequence, rows: Array, keys: Array) -> Array:
    """Return which pairs are visible, (H, rows, keys)."""
    position = rows[:, None] + seq.offset
    visible = np.ones((len(seq.q), len(rows), len(keys)), bool)
    if seq.right is not None:
        visible &= keys <= position + seq.right
    if seq.left is not None:
        visible &= keys >= position - seq.left
    if seq.mask is not None:
        visible &= seq.mask[:, rows[0] : rows[-1] + 1, keys[0] : keys[-1] + 1]
    return visible


def _rounded(x: Array, dtype: Any) -> Array:
    return x.astype(dtype).astype(x.dtype)


def _product(p: Array, x: Array, visible: Array) -> Array:
    """Return p @ x, in which a hidden pair adds nothing at all: where x holds NaN or inf, 0·x would."""
    if np.isfinite(x).all():
        return p @ x
    finite: Array = np.all(np.isfinite(x), axis=-1, keepdims=True)
    total: Array = p @ np.where(finite, x, 0)
    for j in np.flatnonzero((~finite).any(axis=(0, 2))):
        rest = np.where(finite[:, j, None], 0, x[:, j, None])  # what the product above left out
        total += np.where(visible[:, :, j, None], p[:, :, j, None] * rest, 0)
    return total


def _sum_heads(x: Array, kv_heads: int) -> Array:
    """Sum (B, H, ...) over the query heads that share a key head."""
    return x.reshape(x.shape[0], kv_heads, x.shape[1] // kv_heads, *x.shape[2:]).sum(axis=2)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    full = (1,) * (x.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, n in enumerate(full) if n == 1)
    return x.sum(axis=axes, keepdims=True).reshape(shape)
