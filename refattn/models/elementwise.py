"""The small functions between the matrices of a mixer: each, and right below it its derivative.

Every function computes in the dtype it receives. ``f_vjp(dy, ...)`` pulls the cotangent dy of f's result back to the
inputs, in their order; `refattn.models.tape` finds it by its name.
"""

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import sum_to


def add(x: Array, y: Array) -> Array:
    """Return x + y, (...), of arrays that broadcast.

    Examples
    --------
    >>> add(np.array([1.0, 2.0]), np.array([10.0]))
    array([11., 12.])
    """
    return x + y


def add_vjp(do: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (dx, dy) of `add`.

    Examples
    --------
    >>> add_vjp(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.array([10.0]))
    (array([1., 1.]), array([2.]))
    """
    return sum_to(do, x.shape), sum_to(do, y.shape)


def multiply(x: Array, y: Array) -> Array:
    """Return x ⊙ y, (...), of arrays that broadcast.

    Examples
    --------
    >>> multiply(np.array([1.0, 2.0]), np.array([10.0]))
    array([10., 20.])
    """
    return x * y


def multiply_vjp(do: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (dx, dy) of `multiply`.

    Examples
    --------
    >>> multiply_vjp(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.array([10.0]))
    (array([10., 10.]), array([3.]))
    """
    return sum_to(do * y, x.shape), sum_to(do * x, y.shape)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x), (...).

    Examples
    --------
    >>> sigmoid(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    """
    half = x.dtype.type(0.5)
    return np.asarray(half * np.tanh(half * x) + half)  # overflows nowhere


def sigmoid_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `sigmoid`.

    Examples
    --------
    >>> sigmoid_vjp(np.array([1.0]), np.array([0.0]))
    array([0.25])
    """
    y = sigmoid(x)
    return dy * y * (1 - y)


def silu(x: Array) -> Array:
    """Return x / (1 + e^-x), (...).

    Examples
    --------
    >>> silu(np.array([0.0, 50.0]))
    array([ 0., 50.])
    """
    return x * sigmoid(x)


def silu_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `silu`.

    Examples
    --------
    >>> silu_vjp(np.array([1.0]), np.array([0.0]))
    array([0.5])
    """
    s = sigmoid(x)
    return dy * (s + x * s * (1 - s))  # σ' = σ (1 - σ)


def softplus(x: Array) -> Array:
    """Return log(1 + e^x), (...).

    Examples
    --------
    >>> softplus(np.array([-1000.0, 1000.0]))
    array([   0., 1000.])
    """
    return np.logaddexp(x.dtype.type(0), x)


def softplus_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `softplus`.

    Examples
    --------
    >>> softplus_vjp(np.array([1.0]), np.array([0.0]))
    array([0.5])
    """
    return dy * sigmoid(x)


def log_sigmoid(x: Array) -> Array:
    """Return -log(1 + e^-x), (...), the logarithm of a gate.

    Examples
    --------
    >>> log_sigmoid(np.array([-1000.0]))
    array([-1000.])
    """
    return -np.logaddexp(x.dtype.type(0), -x)


def log_sigmoid_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `log_sigmoid`.

    Examples
    --------
    >>> log_sigmoid_vjp(np.array([1.0]), np.array([0.0]))
    array([0.5])
    """
    return dy * sigmoid(-x)


def exp(x: Array) -> Array:
    """Return e^x, (...).

    Examples
    --------
    >>> exp(np.array([0.0]))
    array([1.])
    """
    return np.asarray(np.exp(x))


def exp_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `exp`.

    Examples
    --------
    >>> exp_vjp(np.array([3.0]), np.array([0.0]))
    array([3.])
    """
    return dy * np.exp(x)


def tanh(x: Array) -> Array:
    """Return tanh x, (...).

    Examples
    --------
    >>> tanh(np.array([0.0]))
    array([0.])
    """
    return np.asarray(np.tanh(x))


def tanh_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `tanh`.

    Examples
    --------
    >>> tanh_vjp(np.array([3.0]), np.array([0.0]))
    array([3.])
    """
    return dy * (1 - np.tanh(x) ** 2)


def unit(x: Array, eps: float = 1e-6) -> Array:
    r"""Divide each row by its length, :math:`y = x / \sqrt{|x|^2 + \epsilon}`, (..., N).

    Examples
    --------
    >>> unit(np.array([[3.0, 4.0]]), eps=0.0)
    array([[0.6, 0.8]])
    """
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + x.dtype.type(eps))


def unit_vjp(dy: Array, x: Array, eps: float = 1e-6) -> Array:
    """Return dx of `unit`.

    Examples
    --------
    >>> unit_vjp(np.array([[3.0, 4.0]]), np.array([[3.0, 4.0]]), eps=0.0)  # its own direction changes nothing
    array([[0., 0.]])
    """
    r = np.sqrt((x * x).sum(axis=-1, keepdims=True) + x.dtype.type(eps))
    y = x / r
    return (dy - y * (dy * y).sum(axis=-1, keepdims=True)) / r


def part(x: Array, start: int, stop: int) -> Array:
    """Return columns `start` to `stop`, that one not included, (..., stop - start).

    Examples
    --------
    >>> part(np.array([[1.0, 2.0, 3.0]]), 1, 3)
    array([[2., 3.]])
    """
    return x[..., start:stop]


def part_vjp(dy: Array, x: Array, start: int, stop: int) -> Array:
    """Return dx of `part`.

    Examples
    --------
    >>> part_vjp(np.array([[5.0, 6.0]]), np.zeros((1, 3)), 1, 3)
    array([[0., 5., 6.]])
    """
    dx = np.zeros_like(x)
    dx[..., start:stop] = dy
    return dx


def swap(x: Array) -> Array:
    """Exchange the last two axes.

    Examples
    --------
    >>> swap(np.array([[1.0, 2.0]]))
    array([[1.],
           [2.]])
    """
    return x.swapaxes(-1, -2)


def swap_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `swap`.

    Examples
    --------
    >>> swap_vjp(np.array([[1.0], [2.0]]), np.array([[1.0, 2.0]]))
    array([[1., 2.]])
    """
    return dy.swapaxes(-1, -2)


def shift(x: Array, last: Array) -> Array:
    """Return each token's predecessor, (..., T, N): `last` (..., N) before the first.

    Examples
    --------
    >>> shift(np.array([[1.0], [2.0]]), np.array([9.0])).ravel()
    array([9., 1.])
    """
    return np.concatenate([last[..., None, :], x], axis=-2)[..., :-1, :]


def shift_vjp(dy: Array, x: Array, last: Array) -> tuple[Array, Array]:
    """Return (dx, dlast) of `shift`.

    Examples
    --------
    >>> dx, dlast = shift_vjp(np.array([[5.0], [6.0]]), np.array([[1.0], [2.0]]), np.array([9.0]))
    >>> dx.ravel(), dlast
    (array([6., 0.]), array([5.]))
    """
    whole = np.concatenate([dy, np.zeros_like(dy[..., :1, :])], axis=-2)
    return whole[..., 1:, :], whole[..., 0, :]
