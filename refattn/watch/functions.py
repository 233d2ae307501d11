"""What the networks to be timed need besides `refattn.models`: each function, and right below it its derivative.

As in `refattn.models.elementwise`, ``f_vjp(dy, ...)`` pulls the cotangent of f's result back to the inputs.
"""

import math

import numpy as np
from scipy.special import ndtr

from refattn.arrays import Array
from refattn.dense.common import sum_to
from refattn.dense.rope import rope, rope_vjp
from refattn.models.layers import Tokens


def rotate(x: Array, positions: Tokens, theta: float) -> Array:
    """Return `rope` of queries or keys (..., H, T, D) at positions (T,).

    Examples
    --------
    >>> rotate(np.array([[1.0, 0.0]]), np.array([0]), 10000.0)
    array([[1., 0.]])
    """
    return rope(x, positions, theta=theta)


def rotate_vjp(dy: Array, x: Array, positions: Tokens, theta: float) -> Array:
    """Return dx of `rotate`.

    Examples
    --------
    >>> rotate_vjp(np.array([[1.0, 0.0]]), np.array([[5.0, 0.0]]), np.array([0]), 10000.0)
    array([[1., 0.]])
    """
    return rope_vjp(dy, positions, theta=theta)


def gelu(x: Array) -> Array:
    """Return x Φ(x), Φ the normal distribution's (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    Examples
    --------
    >>> gelu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    return np.asarray(x * ndtr(x))


def gelu_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `gelu`.

    Examples
    --------
    >>> gelu_vjp(np.array([1.0]), np.array([0.0]))
    array([0.5])
    """
    density = np.exp(-0.5 * x * x) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return np.asarray(dy * (ndtr(x) + x * density))  # was: y = x Φ(x)


def join(x: Array, y: Array) -> Array:
    """Put the rows of y behind those of x, (..., H, T, n + m); y (..., 1, T, m) may be one for all heads.

    Examples
    --------
    >>> join(np.zeros((2, 1, 1)), np.ones((1, 1, 1))).tolist()
    [[[0.0, 1.0]], [[0.0, 1.0]]]
    """
    return np.concatenate([x, np.broadcast_to(y, (*x.shape[:-1], y.shape[-1]))], axis=-1)


def join_vjp(do: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (dx, dy) of `join`.

    Examples
    --------
    >>> [d.tolist() for d in join_vjp(np.ones((2, 1, 2)), np.zeros((2, 1, 1)), np.ones((1, 1, 1)))]
    [[[[1.0]], [[1.0]]], [[[2.0]]]]
    """
    n = x.shape[-1]
    return do[..., :n], sum_to(do[..., n:], y.shape)


def head_linear(x: Array, w: Array) -> Array:
    """Multiply the rows of each head by a matrix of its own: x (..., H, T, n), w (H, n, m).

    Examples
    --------
    >>> head_linear(np.ones((2, 1, 1)), np.array([[[3.0]], [[4.0]]])).ravel()
    array([3., 4.])
    """
    return x @ w


def head_linear_vjp(dy: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """Return (dx, dw) of `head_linear`.

    Examples
    --------
    >>> dx, dw = head_linear_vjp(np.ones((2, 1, 1)), np.ones((2, 1, 1)), np.array([[[3.0]], [[4.0]]]))
    >>> dx.ravel(), dw.ravel()
    (array([3., 4.]), array([1., 1.]))
    """
    return dy @ w.swapaxes(-1, -2), sum_to(x.swapaxes(-1, -2) @ dy, w.shape)  # was: y = x @ w
