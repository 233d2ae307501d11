"""Nyström attention on the CPU: `attention` to landmarks and of landmarks, so that no matrix has T rows or columns.

Only the landmarks' own matrix and its pseudo-inverse are, by plain products.
"""

import math

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import NystromGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.channels_features import heads_of, shared
from refattn_numba.scan_back import heads_added


def nystrom_attention(
    q: Array, k: Array, v: Array, *, landmarks: int, iterations: int = 6, scale: float | None = None
) -> Array:
    """As `refattn.nystrom_attention`."""
    q_, k_, v_ = (x.astype(compute_dtype(x.dtype), copy=False) for x in (q, k, v))
    means = _means(q_, landmarks)
    q_marks, k_marks = means @ q_, means @ k_
    A = _between(q_marks, k_marks, scale)
    W = attention(q_marks, k_, v_, scale=scale)
    return _attended(q_, k_marks, _pseudo_inverses(A, iterations)[-1] @ W, scale).astype(q.dtype, copy=False)


def nystrom_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, landmarks: int, iterations: int = 6, scale: float | None = None
) -> NystromGradients:
    """As `refattn.nystrom_attention_vjp`."""
    do_, q_, k_, v_ = (x.astype(compute_dtype(x.dtype), copy=False) for x in (do, q, k, v))
    means = _means(q_, landmarks)
    q_marks, k_marks = means @ q_, means @ k_
    A = _between(q_marks, k_marks, scale)
    steps, W = _pseudo_inverses(A, iterations), attention(q_marks, k_, v_, scale=scale)
    heads = heads_of(q)
    outer = attention_vjp(do_, q_, shared(k_marks, heads), steps[-1] @ W, scale=scale)  # was: F Y
    dY = outer.dv
    inner = attention_vjp(steps[-1].swapaxes(-1, -2) @ dY, q_marks, k_, v_, scale=scale)  # was: Y = Z (B V)
    dA = _pseudo_inverses_vjp(dY @ W.swapaxes(-1, -2), A, steps)
    sA = _scale(q_, scale) * A * (dA - (A * dA).sum(axis=-1, keepdims=True))
    dq = outer.dq + means.T @ (inner.dq + sA @ shared(k_marks, heads))
    dk = inner.dk + means.T @ heads_added(outer.dk + sA.swapaxes(-1, -2) @ q_marks, k_)
    return NystromGradients(*(dx.astype(q.dtype, copy=False) for dx in (dq, dk, inner.dv)))


def _attended(q: Array, k: Array, v: Array, scale: float | None) -> Array:
    """Attend to landmarks, whose values each query head has for itself."""
    o: Array = attention(q, shared(k, heads_of(q)), v, scale=scale)
    return o


def _scale(q: Array, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def _means(x: Array, landmarks: int) -> Array:
    """Return the matrix (m, T) whose product with tokens is the means of segments, m at most T."""
    T = x.shape[-2]
    m = min(landmarks, T)
    member = np.arange(T) * m // max(T, 1) == np.arange(m)[:, None]
    return (member / member.sum(axis=-1, keepdims=True)).astype(x.dtype)


def _between(q_marks: Array, k_marks: Array, scale: float | None) -> Array:
    """Return how landmarks attend to each other, (..., H, m, m)."""
    k_marks = shared(k_marks, heads_of(q_marks))
    s = _scale(q_marks, scale) * (q_marks @ k_marks.swapaxes(-1, -2))
    p = np.exp(s - s.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def _pseudo_inverses(A: Array, iterations: int) -> list[Array]:
    """Return the estimates of the pseudo-inverse, from the first to the last."""
    one = np.eye(A.shape[-1], dtype=A.dtype)
    steps = [A.swapaxes(-1, -2) / A.sum(axis=-2).max(axis=-1, initial=0)[..., None, None]]
    for _ in range(iterations):
        Z = steps[-1]
        P = A @ Z
        steps.append(Z @ (13 * one - P @ (15 * one - P @ (7 * one - P))) / 4)
    return steps


def _pseudo_inverses_vjp(dZ: Array, A: Array, steps: list[Array]) -> Array:
    """Return the gradient of A from that of the last estimate."""
    one, dA = np.eye(A.shape[-1], dtype=A.dtype), np.zeros_like(A)
    for Z in reversed(steps[:-1]):
        P = A @ Z
        R, Pt = 13 * one - P @ (15 * one - P @ (7 * one - P)), P.swapaxes(-1, -2)
        dR = Z.swapaxes(-1, -2) @ dZ / 4  # was: Z R / 4
        through = Pt @ dR
        dP = 7 * (dR @ Pt + through) - 15 * dR - ((dR @ Pt + through) @ Pt + Pt @ through)
        dA = dA + dP @ Z.swapaxes(-1, -2)  # was: P = A Z
        dZ = dZ @ R.swapaxes(-1, -2) / 4 + A.swapaxes(-1, -2) @ dP
    columns = A.sum(axis=-2)
    column = columns.max(axis=-1, initial=0)[..., None, None]
    dcolumn = -(dZ * steps[0]).sum(axis=(-2, -1), keepdims=True) / column  # was: Aᵀ / |A|_1
    largest = np.arange(A.shape[-1]) == columns.argmax(axis=-1)[..., None] if A.shape[-1] > 0 else columns > 0
    return np.asarray(dA + dZ.swapaxes(-1, -2) / column + dcolumn * largest[..., None, :])
