r"""Softmax attention to keys and values that were projected along the tokens, to a fixed number of them.

Wang et al., 2020, "Linformer: Self-Attention with Linear Complexity", arXiv:2006.04768, equation 7.
"""

from typing import Any

from refattn.arrays import Array, check_shape
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import check_attention, check_attention_vjp, heads_of
from refattn.dispatch import dispatched
from refattn.linear.common import check_wide
from refattn.linear.features import computed
from refattn.results import LinformerGradients


def _check(
    q: Any, k: Any, v: Any, e: Any, f: Any, *, scale: Any = None, operation: str = "linformer_attention"
) -> None:
    check_attention(q, k, v, scale=scale, operation=operation)
    for name, x in (("e", e), ("f", f)):
        check_wide(operation, name, x, q)
        r = x.shape[-2] if x.ndim > 1 and x.shape[-2] > 0 else 1
        heads = (heads_of(k),) if x.ndim > 2 else ()
        check_shape(operation, name, x, (*heads, r, k.shape[-2]), "(r, Tk) or (Hk, r, Tk), r >= 1")
    if e.shape[-2] != f.shape[-2]:
        raise ValueError(f"{operation}: e {e.shape} and f {f.shape} differ in their numbers of rows r")


def _check_vjp(do: Any, q: Any, k: Any, v: Any, e: Any, f: Any, *, scale: Any = None) -> None:
    _check(q, k, v, e, f, scale=scale, operation="linformer_attention_vjp")
    check_attention_vjp(do, q, k, v, scale=scale, operation="linformer_attention_vjp")


@dispatched(_check)
def linformer_attention(
    q: Array, k: Array, v: Array, e: Array, f: Array, *, scale: float | None = None, backend: str = "numpy"
) -> Array:
    r"""Attend to r mixtures of all keys and values in place of Tk of them.

    .. math:: O = \text{softmax}(\text{scale} \cdot Q (E K)^T)\, F V

    Each mixture has something of every token, so that there is no causal form.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
        Queries; a matrix is one head.
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        Keys and values; query head h reads head h // (H // Hk).
    e, f : array, (r, Tk) or (Hk, r, Tk)
        How keys and values are mixed, the same for all heads or not, in the dtype of q or that of computation.
    scale : float, optional
        1/sqrt(D) unless given.
    backend : str
        Who computes.

    Returns
    -------
    array, (..., H, Tq, Dv)
        o, in the dtype of q.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Two halves, each the mean of its tokens:

    >>> import numpy as np
    >>> halves = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    >>> zeros, v = np.zeros((4, 1)), np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> linformer_attention(zeros[:1], zeros, v, halves, halves)
    array([[4.]])
    """
    q_, k_, v_, e_, f_ = computed(q, k, v, e, f)
    o: Array = attention(q_, e_ @ k_, f_ @ v_, scale=scale)
    return o.astype(q.dtype)


@dispatched(_check_vjp)
def linformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    e: Array,
    f: Array,
    *,
    scale: float | None = None,
    backend: str = "numpy",
) -> LinformerGradients:
    r"""Return the gradients of `linformer_attention`: those of attention, through the projections.

    .. math:: dK = E^T d(EK), \quad dE = d(EK)\, K^T, \quad dV = F^T d(FV), \quad dF = d(FV)\, V^T

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Gradient of o.
    q, k, v, e, f, scale, backend
        As in `linformer_attention`.

    Returns
    -------
    LinformerGradients
        dq, dk, dv, de, df; those of e and f are sums over the batch, and over the heads that share them.

    Raises
    ------
    TypeError, ValueError
        As `linformer_attention`, and for `do` of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> halves = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    >>> zeros = np.zeros((4, 1))
    >>> linformer_attention_vjp(np.ones((1, 1)), zeros[:1], zeros, zeros, halves, halves).dv[:, 0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    do_, q_, k_, v_, e_, f_ = computed(do, q, k, v, e, f)
    g = attention_vjp(do_, q_, e_ @ k_, f_ @ v_, scale=scale)
    dk, dv = e_.swapaxes(-1, -2) @ g.dk, f_.swapaxes(-1, -2) @ g.dv  # was: E K, F V
    de, df = g.dk @ k_.swapaxes(-1, -2), g.dv @ v_.swapaxes(-1, -2)
    de, df = (dx.sum(axis=tuple(range(dx.ndim - x.ndim))).astype(x.dtype) for dx, x in ((de, e), (df, f)))
    return LinformerGradients(g.dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), de, df)
