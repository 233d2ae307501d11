r"""The short causal convolution that stands before the state space in Mamba: each channel by itself, K taps.

Gu and Dao, 2023, arXiv:2312.00752, section 3.4 (figure 3). Fu et al., 2022, arXiv:2212.14052, section 3, had a shift
there before.

| here | elsewhere |
|---|---|
| x (..., T, E), weight (E, K) | x (B, D, L), weight (D, K) of the package causal_conv1d |
| w_{K-1} | the tap of the token itself; w_0 reads K - 1 tokens back |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.results import ConvGradients, Recurrent
from refattn.ssm.checks import check_causal_conv1d
from refattn.ssm.common import packed, rounded, silu, silu_slope, widened


def _whole(x: Array, weight: Array, initial_state: Array | None) -> Array:
    """Return the inputs with the K - 1 before them, (..., K - 1 + T, E)."""
    before = (*x.shape[:-2], weight.shape[1] - 1, x.shape[-1])
    first = np.zeros(before, x.dtype) if initial_state is None else initial_state
    return np.concatenate([first, x], axis=-2)


def _filtered(whole: Array, weight: Array, bias: Array | None) -> Array:
    """Return Σ_i w_i x_{t-K+1+i} + bias, (..., T, E)."""
    K = weight.shape[1]
    T = whole.shape[-2] - (K - 1)
    y = weight[:, 0] * whole[..., :T, :]
    for i in range(1, K):
        y = y + weight[:, i] * whole[..., i : i + T, :]  # y_t = Σ_i w_i x_{t-K+1+i}
    return y if bias is None else y + bias


@dispatched(check_causal_conv1d("causal_conv1d"))
def causal_conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Filter each channel with its own K taps, which see the token and the K - 1 before it.

    .. math:: o_t = \sum_{i=0}^{K-1} w_i \, x_{t-K+1+i} + b

    Parameters
    ----------
    x : array, (..., T, E)
        Inputs.
    weight : array, (E, K)
        Taps, the last for the token itself; as bias, in the dtype of x or that of computation.
    bias : array, (E,), optional
        Added to each token.
    activation : "silu", optional
        What o passes through.
    initial_state : array, (..., K - 1, E), optional
        The inputs before the first, in the dtype of x; zeros unless given; (N, K - 1, E) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., T, E), and the last K - 1 inputs (..., K - 1, E), those of `initial_state` among them where T < K - 1;
        both in the dtype of x.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> o, state = causal_conv1d(x, np.array([[10.0, 1.0]]))
    >>> o[:, 0], state
    (array([ 1., 12., 23.]), array([[3.]]))
    """
    if cu_seqlens is not None:
        call = partial(causal_conv1d, weight=weight, bias=bias, activation=activation)
        return packed(call, cu_seqlens, {"x": (x, -2)}, {"initial_state": initial_state})
    whole = _whole(x, weight, initial_state)
    y = _filtered(*widened(compute_dtype(x.dtype), whole, weight, bias))
    y = silu(y) if activation == "silu" else y
    return Recurrent(y.astype(x.dtype), whole[..., x.shape[-2] :, :].copy())


@dispatched(check_causal_conv1d("causal_conv1d_vjp"))
def causal_conv1d_vjp(
    do: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> ConvGradients:
    r"""Return the gradients of `causal_conv1d`: the filter turned round.

    .. math:: dx_t = \sum_{i=0}^{K-1} w_i \, dy_{t+K-1-i}, \qquad dw_i = \sum_t dy_t \, x_{t-K+1+i}

    Parameters
    ----------
    do : array, (..., T, E)
        Gradient of o.
    x, weight, bias, activation, initial_state, cu_seqlens, backend
        As in `causal_conv1d`.
    dstate : array, (..., K - 1, E), optional
        Gradient of the state that is returned, in the dtype of x; zeros unless given.

    Returns
    -------
    ConvGradients
        dx, dweight, and dbias and dinitial_state if those were given.

    Raises
    ------
    TypeError, ValueError
        As `causal_conv1d`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> causal_conv1d_vjp(np.ones((3, 1)), x, np.array([[10.0, 1.0]])).dx[:, 0]
    array([11., 11.,  1.])
    """
    dtype, T, K = compute_dtype(x.dtype), x.shape[-2], weight.shape[1]
    given = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}
    do_, x_, weight_, bias_, first, last = widened(dtype, do, x, weight, bias, initial_state, dstate)
    if cu_seqlens is not None:
        call = partial(causal_conv1d_vjp, weight=weight_, bias=bias_, activation=activation)
        rows, states = {"do": (do_, -2), "x": (x_, -2)}, {"initial_state": first, "dstate": last}
        return rounded(packed(call, cu_seqlens, rows, states, dx=-2, dweight="sum", dbias="sum"), given)
    whole, tokens = _whole(x_, weight_, first), tuple(range(x.ndim - 1))
    dy = do_
    if activation == "silu":
        dy = dy * silu_slope(_filtered(whole, weight_, bias_))  # was: o = silu(y)
    dwhole, dweight = np.zeros_like(whole), np.empty_like(weight_)
    dwhole[..., T:, :] += 0 if last is None else last  # was: state = the last K - 1 of whole
    for i in range(K):
        dwhole[..., i : i + T, :] += weight_[:, i] * dy  # was: y = Σ_i w_i whole[i : i + T]
        dweight[:, i] = (dy * whole[..., i : i + T, :]).sum(axis=tokens)
    dbias = dy.sum(axis=tokens)
    return rounded(ConvGradients(dwhole[..., K - 1 :, :], dweight, dbias, dwhole[..., : K - 1, :]), given)
