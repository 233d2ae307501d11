r"""Linear attention with weights that fall with distance: relu features times the cosine and sine of the position.

Qin et al., 2022, "cosFormer: Rethinking Softmax in Attention", arXiv:2202.08791, equations 10 to 12. By Ptolemy's
identity cos(a - b) = cos a cos b + sin a sin b, a cosine of the distance is a product of features.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats
from refattn.dispatch import dispatched
from refattn.linear.features import (
    attend,
    attend_recurrent,
    attend_vjp,
    check_features,
    computed,
    divided,
    divided_vjp,
    joined,
    named,
    parted,
    relu,
    with_ones,
)
from refattn.results import LinearState, Recurrent, RecurrentGradients


def _check(operation: str) -> Callable[..., None]:
    def check(*arrays: Any, start: Any = 0, **given: Any) -> None:
        found = named(operation, "q k v length", arrays, given)
        q, length = found.pop("q"), found.pop("length")
        check_floats(operation, 2, q=q)
        check_count(operation, "length", length)
        check_count(operation, "start", start, least=0)
        if start + q.shape[-2] > length:
            raise ValueError(
                f"{operation}: {q.shape[-2]} tokens from position {start} on go beyond the length of {length}"
            )
        check_features(operation, q, found.pop("k"), found.pop("v"), 2 * q.shape[-1], **found)

    return check


@dispatched(_check("cosformer_attention"))
def cosformer_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    length: int,
    start: int = 0,
    causal: bool = True,
    initial_state: LinearState | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Attend with the weights relu(q_i)·relu(k_j) cos(π (i - j) / 2M), all pairs at once.

    .. math::
        \phi_i(x) = \Big[ \text{relu}(x) \cos \frac{\pi i}{2M},\; \text{relu}(x) \sin \frac{\pi i}{2M} \Big], \qquad
        o_i = \frac{\sum_{j \le i} (\phi_i(q_i) \cdot \phi_j(k_j))\, v_j}{\sum_{j \le i} \phi_i(q_i) \cdot \phi_j(k_j)}

    and 0 where the denominator is exactly 0.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    length : int
        M. No position may reach it: then no distance does, and no weight is negative.
    start : int
        Position of the first token, from 0: how many tokens `initial_state` has seen.
    causal : bool
        Whether a query sees only the keys up to its own.
    initial_state : LinearState, optional
        S (..., Hv, 2D, Dv) and z (..., Hv, 2D) before the first token, cosines first; zeros unless given.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the state after the last token, a
        LinearState in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit, and for start + T > length; the message names the argument.

    Examples
    --------
    The second token sees the first with the weight cos(π / 4), itself with 1:

    >>> ones, v = np.ones((2, 1)), np.array([[1.0], [0.0]])
    >>> cosformer_attention(ones, ones, v, length=2).o[:, 0].round(4)
    array([1.    , 0.4142])
    """
    q_, k_, v_ = computed(q, k, v)
    q_, k_, v_ = _features(q_, start, length), _features(k_, start, length), with_ones(v_)
    S = joined(initial_state, (*v.shape[:-2], k_.shape[-1], v_.shape[-1]), v_.dtype)
    o, S = attend(q_, k_, v_, S, causal)
    return Recurrent(divided(o).astype(q.dtype), parted(S))


@dispatched(_check("cosformer_attention_recurrent"))
def cosformer_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    *,
    length: int,
    start: int = 0,
    initial_state: LinearState | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Causal `cosformer_attention` a token at a time: what is kept between tokens is the state.

    .. math::
        S_t = S_{t-1} + \phi_t(k_t) v_t^T, \qquad z_t = z_{t-1} + \phi_t(k_t), \qquad
        o_t = \frac{S_t^T \phi_t(q_t)}{z_t \cdot \phi_t(q_t)}

    Parameters
    ----------
    q, k, v, length, start, initial_state, backend
        As in `cosformer_attention`; a call with T = 1, the last state and its position is a step of decoding.

    Returns
    -------
    Recurrent
        As of `cosformer_attention`.

    Raises
    ------
    TypeError, ValueError
        As `cosformer_attention`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = cosformer_attention_recurrent(one, one, one, length=2)
    >>> cosformer_attention_recurrent(one, one, 0 * one, length=2, start=1, initial_state=state).o.round(4)
    array([[0.4142]])
    """
    q_, k_, v_ = computed(q, k, v)
    q_, k_, v_ = _features(q_, start, length), _features(k_, start, length), with_ones(v_)
    S = joined(initial_state, (*v.shape[:-2], k_.shape[-1], v_.shape[-1]), v_.dtype)
    o, S = attend_recurrent(q_, k_, v_, S)
    return Recurrent(divided(o).astype(q.dtype), parted(S))


@dispatched(_check("cosformer_attention_vjp"))
def cosformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    length: int,
    start: int = 0,
    causal: bool = True,
    initial_state: LinearState | None = None,
    dstate: LinearState | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `cosformer_attention`: those of linear attention, through the features.

    .. math:: dx_i = [x_i > 0] \Big( \cos \frac{\pi i}{2M}\, d\phi_{\cos} + \sin \frac{\pi i}{2M}\, d\phi_{\sin} \Big)

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, length, start, causal, initial_state, backend
        As in `cosformer_attention`.
    dstate : LinearState, optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, and dinitial_state, a LinearState, if that was given; the others are None.

    Raises
    ------
    TypeError, ValueError
        As `cosformer_attention`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((2, 1))
    >>> cosformer_attention_vjp(ones, ones, ones, ones, length=2).dv[:, 0].round(4)
    array([1.4142, 0.5858])
    """
    do_, q_, k_, v_ = computed(do, q, k, v)
    phi_q, phi_k, v_ = _features(q_, start, length), _features(k_, start, length), with_ones(v_)
    shape = (*v.shape[:-2], phi_k.shape[-1], v_.shape[-1])
    S, dlast = joined(initial_state, shape, v_.dtype), joined(dstate, shape, v_.dtype)
    do_ = divided_vjp(do_, attend(phi_q, phi_k, v_, S, causal)[0])
    dphi_q, dphi_k, dv, dS = attend_vjp(do_, phi_q, phi_k, v_, S, dlast, causal)
    dq, dk = _features_vjp(dphi_q, q_, start, length), _features_vjp(dphi_k, k_, start, length)
    dinitial = None
    if initial_state is not None:
        dinitial = LinearState(*(x.astype(y.dtype) for x, y in zip(parted(dS), initial_state, strict=True)))
    dv = dv[..., :-1].astype(v.dtype)
    return RecurrentGradients(dq.astype(q.dtype), dk.astype(k.dtype), dv, None, None, dinitial)


def _turns(x: Array, start: int, length: int) -> tuple[Array, Array]:
    """Return the cosine and the sine of each token's angle, (T, 1), made in float64."""
    angle = np.pi / (2 * length) * (start + np.arange(x.shape[-2]))[:, None]
    return np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)


def _features(x: Array, start: int, length: int) -> Array:
    return np.concatenate([relu(x) * turn for turn in _turns(x, start, length)], axis=-1)


def _features_vjp(dphi: Array, x: Array, start: int, length: int) -> Array:
    cos, sin = _turns(x, start, length)
    D = x.shape[-1]
    return relu.vjp(cos * dphi[..., :D] + sin * dphi[..., D:], x)
