"""The triangular systems of the delta rules: what a token writes depends on what the tokens before it wrote."""

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import select_matmul
from refattn.linear.common import Bools, decayed, outer, segment_sums


def solve_lower(A: Array, b: Array, seen: Bools) -> Array:
    """Return x with (I + tril(A, -1)) x = b, a row at a time; row i reads row j only where `seen[..., i, j]`.

    Parameters
    ----------
    A : array, (..., T, T)
        Zero below the diagonal wherever `seen` is False.
    b : array, (..., T, n)
        With b = diag(β) this makes T, and with b = β (v - Sᵀ k) what is written.
    seen : bool array, (..., T, T)

    Examples
    --------
    >>> solve_lower(np.array([[9.0, 9.0], [2.0, 9.0]]), np.array([[1.0], [5.0]]), np.tri(2, dtype=bool))[:, 0]
    array([1., 3.])
    """
    x = np.empty_like(b)
    for i in range(b.shape[-2]):
        row = slice(i, i + 1)
        x[..., row, :] = b[..., row, :] - select_matmul(A[..., row, :i], x[..., :i, :], seen[..., row, :i])
    return x


def reached(seen: Bools) -> Bools:
    """Return which tokens j row i of `solve_lower` depends on, by way of other rows, too.

    Parameters
    ----------
    seen : bool array, (..., T, T)
        As in `solve_lower`; True on the diagonal.

    Examples
    --------
    The last row reads the second, which reads the first:

    >>> reached(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool))[2]
    array([ True,  True,  True])
    """
    reach = np.zeros_like(seen)
    for i in range(seen.shape[-1]):
        row = slice(i, i + 1)
        reach[..., row, :] = seen[..., row, :i] @ reach[..., :i, :]
        reach[..., i, i] = True
    return reach


def decayed_products(x: Array, y: Array, g: Array) -> tuple[Array, Bools]:
    r"""Return products in which each entry decays by itself, and which of them some entry reaches, (..., T, T).

    .. math:: P_{ij} = \sum_d x_{id}\, e^{G_{ijd}}\, y_{jd}, \qquad G_{ijd} = \sum_{j < s \le i} g_{sd}

    Examples
    --------
    >>> decayed_products(np.ones((2, 2)), np.array([[2.0, 3.0], [4.0, 5.0]]), np.log([[0.5, 0.5], [0.5, 1.0]]))[0]
    array([[5., 0.],
           [4., 9.]])
    """
    P, seen = np.zeros((*x.shape[:-1], x.shape[-2]), x.dtype), np.zeros((*x.shape[:-1], x.shape[-2]), bool)
    for d in range(x.shape[-1]):
        G = segment_sums(g[..., d])
        P, seen = P + decayed(G, outer(x[..., d], y[..., d])), seen | ~np.isneginf(G)
    return P, seen
