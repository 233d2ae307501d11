"""Norms over the rows of a stream and of its heads, and what RWKV puts between a token and the one before it.

As in `refattn.models.elementwise`, each function has its derivative right below it.
"""

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import sum_to


def layer_norm(x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> Array:
    r"""Shift and scale each row to mean 0 and variance 1, then each column by its gain and bias.

    .. math:: y_n = g_n \frac{x_n - \mu}{\sqrt{\sigma^2 + \epsilon}} + b_n

    Ba et al., 2016, arXiv:1607.06450, eq. 4.

    Parameters
    ----------
    x : array, (..., N)
    gain, bias : array, (N,)
    eps : float
        Keeps a constant row finite.

    Returns
    -------
    array, (..., N)

    Examples
    --------
    >>> layer_norm(np.array([1.0, 3.0]), np.array([1.0, 2.0]), np.array([0.0, 10.0]), eps=0.0)
    array([-1., 12.])
    """
    n, _ = _normal(x, eps)
    return n * gain + bias


def layer_norm_vjp(dy: Array, x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return (dx, dgain, dbias) of `layer_norm`.

    Examples
    --------
    >>> dx, dgain, dbias = layer_norm_vjp(np.array([[1.0, 1.0]]), np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))
    >>> bool(abs(dx).max() < 1e-12), dbias  # a shift of the whole row changes nothing
    (True, array([1., 1.]))
    """
    n, r = _normal(x, eps)
    rows = (-1, x.shape[-1])
    dn = dy * gain  # was: y = n * gain + bias
    dx = (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True)) / r
    return dx, (dy * n).reshape(rows).sum(axis=0), dy.reshape(rows).sum(axis=0)


def _normal(x: Array, eps: float) -> tuple[Array, Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    r = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return centred / r, r


def group_norm(x: Array, gain: Array, bias: Array, groups: int, eps: float = 1e-5) -> Array:
    """Do as `layer_norm` does, with mean and variance of each of `groups` equal runs of columns.

    Wu and He, 2018, arXiv:1803.08494.

    Parameters
    ----------
    x : array, (..., N)
    gain, bias : array, (N,)
    groups : int
        Such as heads, which lie side by side.
    eps : float
        Keeps a constant group finite.

    Returns
    -------
    array, (..., N)

    Examples
    --------
    >>> group_norm(np.array([1.0, 3.0, 10.0, 30.0]), np.ones(4), np.zeros(4), 2, eps=0.0)
    array([-1.,  1., -1.,  1.])
    """
    n, _ = _normal(_in_groups(x, groups), eps)
    return n.reshape(x.shape) * gain + bias


def group_norm_vjp(
    dy: Array, x: Array, gain: Array, bias: Array, groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Return (dx, dgain, dbias) of `group_norm`.

    Examples
    --------
    >>> group_norm_vjp(np.ones((1, 2)), np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 1, eps=0.0)[1]
    array([-1.,  1.])
    """
    n, r = _normal(_in_groups(x, groups), eps)
    rows = (-1, x.shape[-1])
    dn = _in_groups(dy * gain, groups)
    dx = (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True)) / r
    return dx.reshape(x.shape), (dy * n.reshape(x.shape)).reshape(rows).sum(axis=0), dy.reshape(rows).sum(axis=0)


def _in_groups(x: Array, groups: int) -> Array:
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def lerp(x: Array, other: Array, mix: Array) -> Array:
    """Return x + (other - x) ⊙ mix, such as of a token and the one before it.

    Parameters
    ----------
    x, other : array, (..., T, N)
    mix : array that broadcasts to (..., T, N)

    Returns
    -------
    array, (..., T, N)

    Examples
    --------
    >>> lerp(np.array([[8.0, 8.0]]), np.array([[0.0, 0.0]]), np.array([0.25, 1.0]))
    array([[6., 0.]])
    """
    return x + (other - x) * mix


def lerp_vjp(dy: Array, x: Array, other: Array, mix: Array) -> tuple[Array, Array, Array]:
    """Return (dx, dother, dmix) of `lerp`.

    Examples
    --------
    >>> lerp_vjp(np.array([[1.0]]), np.array([[8.0]]), np.array([[3.0]]), np.array([0.25]))
    (array([[0.75]]), array([[0.25]]), array([-5.]))
    """
    return dy * (1 - mix), dy * mix, sum_to(dy * (other - x), mix.shape)


def row_sum(x: Array) -> Array:
    """Add up each row, (..., N) to (..., 1).

    Examples
    --------
    >>> row_sum(np.array([[1.0, 2.0]]))
    array([[3.]])
    """
    return np.asarray(x.sum(axis=-1, keepdims=True))


def row_sum_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `row_sum`.

    Examples
    --------
    >>> row_sum_vjp(np.array([[5.0]]), np.array([[1.0, 2.0]]))
    array([[5., 5.]])
    """
    return np.broadcast_to(dy, x.shape)


def relu_squared(x: Array) -> Array:
    """Return max(x, 0)², (...).

    Examples
    --------
    >>> relu_squared(np.array([-3.0, 3.0]))
    array([0., 9.])
    """
    return np.maximum(x, 0) ** 2


def relu_squared_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `relu_squared`.

    Examples
    --------
    >>> relu_squared_vjp(np.array([1.0]), np.array([3.0]))
    array([6.])
    """
    return dy * 2 * np.maximum(x, 0)


def minus_exp(x: Array) -> Array:
    """Return -e^x, (...): the rates of decay that networks keep as logarithms.

    Examples
    --------
    >>> minus_exp(np.array([0.0]))
    array([-1.])
    """
    return -np.exp(x)


def minus_exp_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `minus_exp`.

    Examples
    --------
    >>> minus_exp_vjp(np.array([3.0]), np.array([0.0]))
    array([-3.])
    """
    return -dy * np.exp(x)


def scaled(x: Array, c: float) -> Array:
    """Return c x, (...).

    Examples
    --------
    >>> scaled(np.array([2.0]), 3.0)
    array([6.])
    """
    return x * x.dtype.type(c)


def scaled_vjp(dy: Array, x: Array, c: float) -> Array:
    """Return dx of `scaled`.

    Examples
    --------
    >>> scaled_vjp(np.array([1.0]), np.array([2.0]), 3.0)
    array([3.])
    """
    return dy * dy.dtype.type(c)
