r"""Softmax attention through a few landmarks: three small softmax matrices in place of a large one.

Xiong et al., 2021, "Nyströmformer", arXiv:2102.03902, equations 6 (landmarks), 11 (the iteration) and 13 (the output).
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp, heads_of, repeat_heads, sum_heads
from refattn.dispatch import dispatched
from refattn.linear.features import computed
from refattn.results import NystromGradients


def _check(
    q: Any,
    k: Any,
    v: Any,
    *,
    landmarks: Any,
    iterations: Any = 6,
    scale: Any = None,
    operation: str = "nystrom_attention",
) -> None:
    check_attention(q, k, v, scale=scale, operation=operation)
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(f"{operation}: the numbers of tokens differ: q {q.shape}, k {k.shape}")
    check_count(operation, "landmarks", landmarks)
    check_count(operation, "iterations", iterations, least=0)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, scale: Any = None, **options: Any) -> None:
    _check(q, k, v, scale=scale, operation="nystrom_attention_vjp", **options)
    check_attention_vjp(do, q, k, v, scale=scale, operation="nystrom_attention_vjp")


@dispatched(_check)
def nystrom_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    landmarks: int,
    iterations: int = 6,
    scale: float | None = None,
    backend: str = "numpy",
) -> Array:
    r"""Estimate softmax attention from how queries, keys and a few means of them attend to each other.

    .. math::
        F = \sigma(s\, Q \tilde K^T), \quad A = \sigma(s\, \tilde Q \tilde K^T), \quad B = \sigma(s\, \tilde Q K^T),
        \qquad O = F\, Z\, (B V), \quad Z \approx A^+

    with σ the softmax of rows, and Z from `iterations` steps of

    .. math::
        Z \leftarrow \tfrac14 Z (13 I - AZ (15 I - AZ (7 I - AZ))), \qquad Z_0 = A^T / (|A|_1 |A|_\infty)

    where each matrix has its own norms: what is next to it in the batch does not change it.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k, v : array, (..., Hk, T, D), (..., Hk, T, Dv)
        Keys and values; query head h reads head h // (H // Hk).
    landmarks : int
        How many segments the tokens are cut into, whose means Q̃ and K̃ are: token t is in segment t m // T. Where there
        are fewer tokens, each is its own landmark: a segment without tokens has no mean, and the estimate can then be
        exact.
    iterations : int
        Steps of the pseudo-inverse.
    scale : float, optional
        1/sqrt(D) unless given.
    backend : str
        Who computes.

    Returns
    -------
    array, (..., H, T, Dv)
        o, in the dtype of q.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    One landmark: all matrices are ones, and o is the mean of what B weighs.

    >>> q, v = np.zeros((4, 1)), np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> nystrom_attention(q, q, v, landmarks=1)[:, 0]
    array([4., 4., 4., 4.])
    """
    q_, k_, v_ = computed(q, repeat_heads(k, heads_of(q)), repeat_heads(v, heads_of(q)))
    F, A, B = _kernels(q_, k_, _means(q_, landmarks), scale)
    Z = _pseudo_inverses(A, iterations)[-1]
    return (F @ (Z @ (B @ v_))).astype(q.dtype)


@dispatched(_check_vjp)
def nystrom_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    landmarks: int,
    iterations: int = 6,
    scale: float | None = None,
    backend: str = "numpy",
) -> NystromGradients:
    r"""Return the gradients of `nystrom_attention`, back through every step of the iteration.

    With P = A Z and R = 13 I - 15 P + 7 P² - P³, so that Z' = Z R / 4:

    .. math::
        dR = \tfrac14 Z^T dZ', \quad
        dP = -15\, dR + 7 (dR\, P^T + P^T dR) - (dR\, P^{2T} + P^T dR\, P^T + P^{2T} dR), \quad
        dA \mathrel{+}= dP\, Z^T, \quad dZ = \tfrac14 dZ' R^T + A^T dP

    Parameters
    ----------
    do : array, (..., H, T, Dv)
        Gradient of o.
    q, k, v, landmarks, iterations, scale, backend
        As in `nystrom_attention`.

    Returns
    -------
    NystromGradients
        dq, dk, dv.

    Raises
    ------
    TypeError, ValueError
        As `nystrom_attention`, and for `do` of another shape.

    Examples
    --------
    >>> q = np.zeros((4, 1))
    >>> nystrom_attention_vjp(np.ones((4, 1)), q, q, q, landmarks=1).dv[:, 0]
    array([1., 1., 1., 1.])
    """
    do_, q_, k_, v_ = computed(do, q, repeat_heads(k, heads_of(q)), repeat_heads(v, heads_of(q)))
    size = _scale(q_, scale)
    means = _means(q_, landmarks)
    F, A, B = _kernels(q_, k_, means, scale)
    steps = _pseudo_inverses(A, iterations)
    Y, W = steps[-1] @ (B @ v_), B @ v_
    dY = F.swapaxes(-1, -2) @ do_  # was: F Y
    dW = steps[-1].swapaxes(-1, -2) @ dY  # was: Y = Z W
    dA = _pseudo_inverses_vjp(dY @ W.swapaxes(-1, -2), A, steps)
    sF = size * _softmax_vjp(do_ @ Y.swapaxes(-1, -2), F)
    sA, sB = size * _softmax_vjp(dA, A), size * _softmax_vjp(dW @ v_.swapaxes(-1, -2), B)  # was: W = B V
    q_marks, k_marks = means @ q_, means @ k_
    dq = sF @ k_marks + means.T @ (sA @ k_marks + sB @ k_)
    dk = sB.swapaxes(-1, -2) @ q_marks + means.T @ (sF.swapaxes(-1, -2) @ q_ + sA.swapaxes(-1, -2) @ q_marks)
    dk, dv = sum_heads(dk, heads_of(k)), sum_heads(B.swapaxes(-1, -2) @ dW, heads_of(k))
    return NystromGradients(dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype))


def _scale(q: Array, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def _means(x: Array, landmarks: int) -> Array:
    """Return the matrix (m, T) whose product with tokens is the means of segments, m at most T."""
    T = x.shape[-2]
    m = min(landmarks, T)
    member = np.arange(T) * m // max(T, 1) == np.arange(m)[:, None]
    return (member / member.sum(axis=-1, keepdims=True)).astype(x.dtype)


def _kernels(q: Array, k: Array, means: Array, scale: float | None) -> tuple[Array, Array, Array]:
    """Return F (..., T, m), A (..., m, m) and B (..., m, T)."""
    size, q_marks, k_marks = _scale(q, scale), means @ q, means @ k
    pairs = ((q, k_marks), (q_marks, k_marks), (q_marks, k))
    F, A, B = (_softmax(size * (a @ b.swapaxes(-1, -2))) for a, b in pairs)
    return F, A, B


def _softmax(s: Array) -> Array:
    p = np.exp(s - s.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def _softmax_vjp(dp: Array, p: Array) -> Array:
    return np.asarray(p * (dp - (p * dp).sum(axis=-1, keepdims=True)))


def _pseudo_inverses(A: Array, iterations: int) -> list[Array]:
    """Return the estimates of the pseudo-inverse, from the first to the last."""
    one = np.eye(A.shape[-1], dtype=A.dtype)
    column = A.sum(axis=-2).max(axis=-1, initial=0)[..., None, None]  # |A|_1; |A|_∞ is 1: rows of softmax
    steps = [A.swapaxes(-1, -2) / column]
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
    return dA + dZ.swapaxes(-1, -2) / column + dcolumn * largest[..., None, :]
