"""What a transformer has besides attention: each operation, and right below it its derivative.

Every function computes in the dtype it receives. ``f_vjp(dy, ...)`` pulls the cotangent dy of f's result back to the
inputs, in their order.
"""

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array
from refattn.models.elementwise import sigmoid

Tokens = NDArray[np.integer]


def linear(x: Array, w: Array) -> Array:
    """Multiply each row by a matrix.

    Parameters
    ----------
    x : array, (..., n)
    w : array, (n, m)

    Returns
    -------
    array, (..., m)

    Examples
    --------
    >>> linear(np.array([1.0, 2.0]), np.array([[3.0], [4.0]]))
    array([11.])
    """
    return x @ w


def linear_vjp(dy: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """Return (dx, dw) of `linear`.

    Examples
    --------
    >>> linear_vjp(np.array([1.0]), np.array([1.0, 2.0]), np.array([[3.0], [4.0]]))
    (array([3., 4.]), array([[1.],
           [2.]]))
    """
    return dy @ w.T, x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])  # was: y = x @ w


def embedding(tokens: Tokens, table: Array) -> Array:
    """Look up the row of each token.

    Parameters
    ----------
    tokens : int array, (...)
        Each in [0, V).
    table : array, (V, n)

    Returns
    -------
    array, (..., n)

    Examples
    --------
    >>> embedding(np.array([1, 1, 0]), np.array([[5.0], [7.0]])).ravel()
    array([7., 7., 5.])
    """
    return table[tokens]


def embedding_vjp(dy: Array, tokens: Tokens, table: Array) -> Array:
    """Return dtable of `embedding`: each row adds up what its occurrences received.

    Examples
    --------
    >>> embedding_vjp(np.ones((3, 1)), np.array([1, 1, 0]), np.array([[5.0], [7.0]])).ravel()
    array([1., 2.])
    """
    dtable = np.zeros_like(table)
    np.add.at(dtable, tokens, dy)  # was: y = table[tokens]
    return dtable


def rms_norm(x: Array, gain: Array, eps: float = 1e-5) -> Array:
    r"""Divide each row by its root mean square, then scale each column.

    .. math::
        y_n = g_n x_n / r, \quad r = \sqrt{\tfrac{1}{N} \sum_n x_n^2 + \epsilon}

    Zhang and Sennrich, 2019, arXiv:1910.07467, eq. 4.

    Parameters
    ----------
    x : array, (..., N)
    gain : array, (N,)
    eps : float
        Keeps a row of zeros finite.

    Returns
    -------
    array, (..., N)

    Examples
    --------
    >>> rms_norm(np.array([3.0, -3.0]), np.array([1.0, 2.0]), eps=0.0)
    array([ 1., -2.])
    """
    return gain * (x / _rms(x, eps))


def rms_norm_vjp(dy: Array, x: Array, gain: Array, eps: float = 1e-5) -> tuple[Array, Array]:
    """Return (dx, dgain) of `rms_norm`.

    Examples
    --------
    >>> dx, dgain = rms_norm_vjp(np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]]), np.ones(2), eps=0.0)
    >>> dx, dgain  # a longer row with the same direction changes nothing
    (array([[0., 0.]]), array([1., 1.]))
    """
    r = _rms(x, eps)
    n = x / r
    dgain = (dy * n).reshape(-1, x.shape[-1]).sum(axis=0)  # was: y = gain * n
    dn = dy * gain
    dx = (dn - n * (dn * n).mean(axis=-1, keepdims=True)) / r  # was: n = x / r, and dr/dx = n / N
    return dx, dgain


def swiglu(gate: Array, up: Array) -> Array:
    r"""Let one half of the hidden layer decide how much of the other passes.

    .. math::
        y = \text{silu}(g) \, u, \quad \text{silu}(g) = g \, \sigma(g)

    Shazeer, 2020, arXiv:2002.05202, eq. 5.

    Parameters
    ----------
    gate, up : array, (..., n)

    Returns
    -------
    array, (..., n)

    Examples
    --------
    >>> swiglu(np.array([0.0, 50.0]), np.array([3.0, 3.0]))
    array([  0., 150.])
    """
    return gate * sigmoid(gate) * up


def swiglu_vjp(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """Return (dgate, dup) of `swiglu`.

    Examples
    --------
    >>> swiglu_vjp(np.array([1.0]), np.array([0.0]), np.array([3.0]))
    (array([1.5]), array([0.]))
    """
    sigma = sigmoid(gate)
    silu = gate * sigma
    return dy * up * (sigma + silu * (1 - sigma)), dy * silu  # was: y = silu(gate) * up; σ' = σ (1 - σ)


def cross_entropy(logits: Array, targets: Tokens) -> float:
    r"""Return the mean surprise at the targets, in nats.

    .. math::
        L = \frac{1}{T} \sum_t \Big( \log \sum_n e^{z_{tn}} - z_{t, y_t} \Big)

    Parameters
    ----------
    logits : array, (..., V)
        z
    targets : int array, (...)
        y, each in [0, V).

    Returns
    -------
    float

    Examples
    --------
    >>> np.exp(cross_entropy(np.log([[0.25, 0.75]]), np.array([0]))).round(12)
    np.float64(4.0)
    """
    return -float(np.take_along_axis(_log_softmax(logits), targets[..., None], axis=-1).mean())


def cross_entropy_vjp(dloss: float, logits: Array, targets: Tokens) -> Array:
    """Return dlogits of `cross_entropy`: what the model expected, less what came.

    Examples
    --------
    >>> np.round(cross_entropy_vjp(1.0, np.log([[0.25, 0.75]]), np.array([0])), 12)
    array([[-0.75,  0.75]])
    """
    dlogits = np.exp(_log_softmax(logits))
    rows = dlogits.reshape(-1, dlogits.shape[-1])
    rows[np.arange(targets.size), targets.ravel()] -= 1
    dlogits *= dloss / targets.size
    return dlogits


def split_heads(x: Array, heads: int) -> Array:
    """Reshape (..., T, H * D) to (..., H, T, D); `merge_heads` is both its inverse and its transpose.

    Examples
    --------
    >>> split_heads(np.array([[1.0, 2.0]]), 2)
    array([[[1.]], [[2.]]])
    """
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)


def split_heads_vjp(dy: Array, x: Array, heads: int) -> Array:
    """Return dx of `split_heads`.

    Examples
    --------
    >>> split_heads_vjp(np.array([[[1.0]], [[2.0]]]), np.zeros((1, 2)), 2)
    array([[1., 2.]])
    """
    return merge_heads(dy)


def merge_heads(x: Array) -> Array:
    """Reshape (..., H, T, D) to (..., T, H * D).

    Examples
    --------
    >>> merge_heads(np.array([[[1.0]], [[2.0]]]))
    array([[1., 2.]])
    """
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def merge_heads_vjp(dy: Array, x: Array) -> Array:
    """Return dx of `merge_heads`.

    Examples
    --------
    >>> merge_heads_vjp(np.array([[1.0, 2.0]]), np.zeros((2, 1, 1)))
    array([[[1.]],
    <BLANKLINE>
           [[2.]]])
    """
    return split_heads(dy, x.shape[-3])


def _rms(x: Array, eps: float) -> Array:
    return np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _log_softmax(logits: Array) -> Array:
    z = logits - logits.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
