"""Performer on the CPU: `scan` on random features; its decay is what a larger stabiliser leaves of the sums so far."""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import PerformerGradients, PerformerState, Recurrent
from refattn_numba.channels_features import (
    divided,
    divided_vjp,
    heads_of,
    joined,
    parted,
    shared,
    summed,
    summed_vjp,
    with_ones,
)
from refattn_numba.scan_back import heads_added


def performer_attention(
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    causal: bool = True,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
) -> Recurrent:
    """As `refattn.performer_attention`."""
    a, b, v_, S, g, m, _ = _prepared(q, k, v, projection, scale, initial_state, causal)
    o, last = summed(a, b, v_, S if causal else _kept(g, S), causal, g if causal else None)
    return Recurrent(divided(o).astype(q.dtype, copy=False), PerformerState(*parted(last), m))


def performer_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
) -> Recurrent:
    """As `refattn.performer_attention_recurrent`."""
    return performer_attention(q, k, v, projection, scale=scale, initial_state=initial_state)


def performer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    causal: bool = True,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
    dstate: PerformerState | None = None,
) -> PerformerGradients:
    """As `refattn.performer_attention_vjp`."""
    a, b, v_, S, g, _, (lk, first) = _prepared(q, k, v, projection, scale, initial_state, causal)
    dtype = a.dtype
    start, gates = (S, g) if causal else (_kept(g, S), None)
    o, last = summed(a, b, v_, start, causal, gates)
    dlast = joined(dstate, S.shape, dtype)
    dm = np.zeros(first.shape, dtype) if dstate is None else dstate.m.astype(dtype)
    dm = dm - (dlast * last).sum(axis=(-2, -1))  # was: S = e^{-m} ...
    do_ = divided_vjp(do.astype(dtype, copy=False), o)
    da, db, dv, dS = summed_vjp(do_, a, b, v_, start, dlast, causal, gates)
    dS = dS if causal else _kept(g, dS)
    dm_first = np.where(np.isneginf(first), 0, (dS * S).sum(axis=(-2, -1)))  # as if S were e^m S
    keeps = first >= lk.max(axis=(-2, -1), initial=-np.inf)
    dm_first = dm_first + np.where(keeps, dm, 0)
    flat = lk.reshape(*first.shape, -1)
    top = np.arange(flat.shape[-1]) == flat.argmax(axis=-1)[..., None] if flat.shape[-1] > 0 else np.zeros(flat.shape)
    dlk = b * db + (top * np.where(keeps, 0, dm)[..., None]).reshape(lk.shape)
    root, W = _root(q, scale), projection.astype(dtype, copy=False)
    dq, dW_q = _exponents_vjp(a * da, q.astype(dtype, copy=False) * root, W)
    dk, dW_k = _exponents_vjp(heads_added(dlk, k.astype(dtype)), k.astype(dtype, copy=False) * root, W)
    given = None
    if initial_state is not None:
        parts = zip((*parted(dS), dm_first), initial_state, strict=True)
        given = PerformerState(*(np.asarray(x).astype(y.dtype) for x, y in parts))
    dprojection = (dW_q + dW_k).astype(projection.dtype)
    dq, dk = (root * dq).astype(q.dtype), (root * dk).astype(k.dtype)
    return PerformerGradients(dq, dk, dv[..., :-1].astype(v.dtype), dprojection, given)


def _prepared(
    q: Array, k: Array, v: Array, projection: Array, scale: float | None, state: PerformerState | None, causal: bool
) -> tuple[Array, Array, Array, Array, Array, Array, tuple[Array, Array]]:
    """Return φ(q), φ(k), v with ones, the first state, log-decays, the last m, and (exponents of k, first m).

    The log-decays are those of each token if causal, else that of the first state.
    """
    dtype, root, Hv = compute_dtype(q.dtype), _root(q, scale), heads_of(v)
    W = projection.astype(dtype, copy=False)
    lq, lk = (_exponents(x.astype(dtype, copy=False) * root, W) for x in (q, k))
    lk, v_ = shared(lk, Hv), with_ones(v.astype(dtype, copy=False))
    S = joined(state, (*v.shape[:-2], len(W), v_.shape[-1]), dtype)
    first = np.full(v.shape[:-2], -np.inf, dtype) if state is None else state.m.astype(dtype)
    m = np.maximum(np.maximum.accumulate(lk.max(axis=-1), axis=-1), first[..., None])
    last: Any = m[..., -1] if m.shape[-1] > 0 else first
    if causal:
        g = _below(np.concatenate([first[..., None], m[..., :-1]], axis=-1), m) if m.shape[-1] > 0 else m
    else:
        g, m = _below(first, last), np.broadcast_to(last[..., None], m.shape)
    return _features(lq, lq.max(axis=-1)), _features(lk, m), v_, S, g, np.array(last), (lk, first)


def _root(q: Array, scale: float | None) -> float:
    return math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))


def _exponents(x: Array, W: Array) -> Array:
    return np.asarray(x @ W.T - (x * x).sum(axis=-1, keepdims=True) / 2)


def _exponents_vjp(dl: Array, x: Array, W: Array) -> tuple[Array, Array]:
    """Return the gradients of x and W."""
    dW = dl.swapaxes(-1, -2) @ x
    return dl @ W - dl.sum(axis=-1, keepdims=True) * x, dW.reshape(-1, *W.shape).sum(axis=0)


def _below(a: Array, m: Array) -> Array:
    """Return a - m for a <= m; -inf where both are."""
    return np.where(np.isneginf(a), -np.inf, a - np.where(np.isneginf(m), 0, m)).astype(a.dtype)


def _features(exponents: Array, m: Array) -> Array:
    """Return e^(exponents - m) / √M; m (..., T) has one number a token."""
    return np.asarray(np.exp(_below(exponents, m[..., None])) / math.sqrt(exponents.shape[-1]))


def _kept(g: Array, S: Array) -> Array:
    """Return e^g S, nothing of S where g is -inf."""
    g = g[..., None, None]
    return np.where(np.isneginf(g), 0, np.exp(g) * S).astype(S.dtype)
