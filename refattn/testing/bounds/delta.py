r"""How far the delta rules may lie from the reference, in lengths of columns.

A token turns each column s of the state into :math:`(I - \beta k k^T) (e^g \odot s) + \beta v k`, and an error in s is
turned alike. In absolute values that would grow without end; in Euclidean length it grows by at most

.. math:: a = \max_d e^{g_d} \cdot \max(1, |1 - \beta |k|^2|)

so that, per column, with :math:`\beta |k| (|v| + |k| |s|)` for what the token computes and writes,

.. math::
    N_t = a N_{t-1} + \beta |k| |v|, \qquad M_t = a M_{t-1} + \beta |k| (|v| + |k| N_{t-1}), \qquad
    E_t = a E_{t-1} + \text{what is rounded here}

bound the column itself, the sum of all that chunked forms add up to make it (longer than N where writes to one key
cancel), and the error. The derivative turns the columns of dS by the transposed matrices, backwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.linear.common import by_sequence, heads_of, scale_of, share_heads, sum_heads
from refattn.results import Recurrent, RecurrentGradients
from refattn.testing.bounds.weights import finite, size_of


@dataclass(frozen=True)
class Step:
    """The sizes of one token: (..., Hv, 1) for its numbers, (..., Hv, Dv) for what belongs to columns of the state."""

    k: Array
    b: Array
    keep: Array
    """The factor of the decay."""
    keep_error: Array
    grow: Array
    """The factor of the write."""
    N: Array
    """Of the decayed state."""
    E: Array
    miss: Array
    """v - Sᵀ k."""
    miss_error: Array
    o: Array
    """What reading the new state may be wrong by, for a query of length 1."""


def _steps(k: Array, v: Array, g: Array | None, beta: Array, state: Array | None) -> tuple[list[Step], Array]:
    """Return the sizes of every token, and the error of the last state."""
    k_, v_, b_ = share_heads(_length(k), heads_of(v)), size_of(v), size_of(beta)[..., None]
    keeps, keep_errors = _decays(g, v)
    N = _columns(state, v)
    M, E = N, np.zeros_like(N)
    steps = []
    for t in range(v.shape[-2]):
        n, w, b, keep, keep_error = (x[..., t, :] for x in (k_, v_, b_, keeps, keep_errors))
        N, M, E = keep * N, keep * M, keep * E + keep_error * M
        decayed, miss, rounded = (N, E), w + n * N, w + n * M
        grow = np.maximum(1, abs(1 - b * n**2))
        N, M = grow * N + b * n * w, grow * M + b * n * miss
        E = grow * E + b * n * rounded + M
        steps.append(Step(n, b, keep, keep_error, grow, *decayed, miss, n * decayed[1] + rounded, E + M))
    return steps, E


def _length(x: Array) -> Array:
    return np.sqrt((finite(x) ** 2).sum(axis=-1, keepdims=True))


def _columns(state: Array | None, v: Array) -> Array:
    """Return the lengths of the columns of a state, (..., Hv, Dv)."""
    return np.zeros((*v.shape[:-2], v.shape[-1])) if state is None else _length(state.swapaxes(-1, -2))[..., 0]


def _decays(log_decay: Array | None, v: Array) -> tuple[Array, Array]:
    """Return the largest decay of each token, and the largest rounding error of one, (..., Hv, T, 1)."""
    if log_decay is None:
        return np.ones((*v.shape[:-1], 1)), np.zeros((*v.shape[:-1], 1))
    g = log_decay if log_decay.ndim == v.ndim else log_decay[..., None]
    a = np.exp(np.where(np.isnan(g), 0, g))
    return a.max(axis=-1, keepdims=True), (a * (1 + size_of(g))).max(axis=-1, keepdims=True)


def _delta(
    eps: float,
    q: Array,
    k: Array,
    v: Array,
    *gates: Array,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 1,
) -> Recurrent:
    if cu_seqlens is not None:
        tokens = _tokens((q, k, v), gates)
        return by_sequence(partial(_delta, eps, scale=scale), cu_seqlens, tokens, {"initial_state": initial_state})
    steps, E = _steps(k, v, gates[0] if len(gates) > 1 else None, gates[-1], initial_state)
    Ho = max(heads_of(q), heads_of(v))
    q_ = share_heads(abs(scale_of(q, scale)) * _length(q), Ho)
    o = np.stack([step.o for step in steps], axis=-2) if steps else np.zeros(v.shape)
    states = np.broadcast_to(E[..., None, :], (*E.shape[:-1], q.shape[-1], E.shape[-1]))
    return Recurrent(q_ * share_heads(o, Ho), states)


def _tokens(tensors: tuple[Array, ...], gates: tuple[Array, ...]) -> list[tuple[Array, int]]:
    v = tensors[-1]
    return [(x, -2) for x in tensors] + [(x, -2 if x.ndim == v.ndim else -1) for x in gates]


def _delta_vjp(
    eps: float,
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *gates: Array,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    if cu_seqlens is not None:
        tokens, states = _tokens((do, q, k, v), gates), {"initial_state": initial_state, "dstate": dstate}
        axes = {"dlog_decay": -2 if gates[0].ndim == v.ndim else -1} if len(gates) > 1 else {}
        return by_sequence(partial(_delta_vjp, eps, scale=scale), cu_seqlens, tokens, states, dbeta=-1, **axes)
    H, Hk, Hv, D = heads_of(q), heads_of(k), heads_of(v), q.shape[-1]
    Ho, size = max(H, Hv), abs(scale_of(q, scale))
    g = gates[0] if len(gates) > 1 else None
    steps, _ = _steps(k, v, g, gates[-1], initial_state)
    q_, do_ = share_heads(size * _length(q), Ho), size_of(do)
    X, dg, db = _columns(dstate, v), np.zeros(v.shape[:-1]), np.zeros(v.shape[:-1])  # X: of dS, F: its error
    F, dv = np.zeros_like(X), np.zeros(v.shape)
    dq, dk = np.zeros((*q_.shape[:-1], D)), np.zeros((*v.shape[:-1], D))
    for t in reversed(range(len(steps))):
        x, w = steps[t], do_[..., t, :]
        dq[..., t, :] = size * (share_heads(x.o, Ho, axis=-2) * w).sum(axis=-1, keepdims=True)
        X = X + sum_heads(q_[..., t, :] * w, Hv, axis=-2)
        F = F + X
        du, du_error = x.k * X, x.k * (F + X)
        dv[..., t, :] = x.b * (du + du_error)
        db[..., t] = (du_error * x.miss + du * x.miss_error).sum(axis=-1)
        written = (F + X) * x.b * x.miss + X * x.b * x.miss_error  # dS u
        held = (x.E + x.N) * x.b * du + x.N * x.b * du_error  # S' dv
        dk[..., t, :] = (written + held).sum(axis=-1, keepdims=True)
        F, X = x.grow * F + x.b * x.k * du + X, x.grow * X
        dg[..., t] = ((F + X) * x.N + X * x.E).sum(axis=-1)
        F, X = x.keep * F + x.keep_error * X, x.keep * X
    first = None if initial_state is None else np.broadcast_to(F[..., None, :], initial_state.shape)
    per_key = None if g is None else dg if g.ndim < v.ndim else np.broadcast_to(dg[..., None], g.shape)
    return RecurrentGradients(sum_heads(dq, H), sum_heads(dk, Hk), dv, per_key, db, first)


BOUNDS: dict[str, Callable[..., Any]] = {
    name + form: _delta_vjp if form == "_vjp" else _delta
    for name in ("delta_rule", "gated_delta_rule", "kda")
    for form in ("", "_recurrent", "_chunked", "_vjp")
}
