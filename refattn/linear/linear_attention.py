r"""Linear attention: weights φ(q)·φ(k) in place of e^{q·k}, so that the sums over keys can be carried along.

Katharopoulos, Vyas, Pappas and Fleuret, 2020, "Transformers are RNNs", arXiv:2006.16236, equations 5 (all pairs), 6
(the sums taken out) and 18 to 20 (a token at a time).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import by_sequence, heads_of, sum_heads
from refattn.linear.features import (
    FeatureMap,
    attend,
    attend_recurrent,
    attend_vjp,
    check_features,
    computed,
    divided,
    divided_vjp,
    elu_plus_one,
    joined,
    named,
    parted,
    with_ones,
)
from refattn.results import LinearState, Recurrent, RecurrentGradients


def _check(operation: str) -> Callable[..., None]:
    def check(*arrays: Any, feature_map: Any = elu_plus_one, **given: Any) -> None:
        found = named(operation, "q k v", arrays, given)
        if not callable(feature_map):
            raise TypeError(f"{operation}: feature_map must be callable, got {type(feature_map).__name__}")
        if operation.endswith("_vjp") and not callable(getattr(feature_map, "vjp", None)):
            raise TypeError(f"{operation}: feature_map has no vjp; wanted a FeatureMap")
        M, shape = None, tuple(getattr(found["q"], "shape", ()))
        if len(shape) > 1:
            *rows, M = feature_map(np.zeros((3, shape[-1]))).shape
            if rows != [3]:
                raise ValueError(f"{operation}: feature_map makes {(*rows, M)} of (3, D); wanted (3, M)")
        check_features(operation, found.pop("q"), found.pop("k"), found.pop("v"), M, **found)

    return check


@dispatched(_check("linear_attention"))
def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: Callable[[Array], Array] = elu_plus_one,
    causal: bool = True,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Attend with the weights φ(q)·φ(k), all pairs at once.

    .. math::
        o_i = \frac{\sum_{j \le i} (\phi(q_i) \cdot \phi(k_j))\, v_j + S_0^T \phi(q_i)}
                   {\sum_{j \le i} \phi(q_i) \cdot \phi(k_j) + z_0 \cdot \phi(q_i)}

    and 0 where the denominator is exactly 0; nothing is added to it. This form makes the matrix (T, T);
    `linear_attention_recurrent` says the same a token at a time, `linear_attention_chunked` in time and memory linear
    in T.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    feature_map : callable
        φ, from (..., D) to (..., M), applied in the dtype of computation; `elu_plus_one`, `relu`, `identity`, any
        `FeatureMap` or function of an array.
    causal : bool
        Whether a query sees only the keys up to its own; otherwise all of its sequence.
    normalize : bool
        Whether to divide by the sum of the weights.
    initial_state : LinearState, optional
        S (..., Hv, M, Dv) and z (..., Hv, M) before the first token, zeros unless given; (N, ...) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
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
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Equal weights: the mean of the values so far.

    >>> zeros, v = np.zeros((3, 1)), np.array([[2.0], [4.0], [9.0]])
    >>> linear_attention(zeros, zeros, v).o[:, 0]
    array([2., 3., 5.])
    """
    if cu_seqlens is not None:
        call = partial(linear_attention, feature_map=feature_map, causal=causal, normalize=normalize)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    q_, k_, v_ = computed(q, k, v)
    q_, k_, v_ = feature_map(q_), feature_map(k_), with_ones(v_)
    S = joined(initial_state, (*v.shape[:-2], k_.shape[-1], v_.shape[-1]), v_.dtype)
    o, S = attend(q_, k_, v_, S, causal)
    return Recurrent(divided(o, normalize).astype(q.dtype), parted(S))


@dispatched(_check("linear_attention_recurrent"))
def linear_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: Callable[[Array], Array] = elu_plus_one,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Causal `linear_attention` a token at a time: what is kept between tokens is the state.

    .. math::
        S_t = S_{t-1} + \phi(k_t) v_t^T, \qquad z_t = z_{t-1} + \phi(k_t), \qquad
        o_t = \frac{S_t^T \phi(q_t)}{z_t \cdot \phi(q_t)}

    Parameters
    ----------
    q, k, v, feature_map, normalize, initial_state, cu_seqlens, backend
        As in `linear_attention`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `linear_attention`.

    Raises
    ------
    TypeError, ValueError
        As `linear_attention`.

    Examples
    --------
    >>> zero, v = np.zeros((1, 1)), np.array([[2.0]])
    >>> _, state = linear_attention_recurrent(zero, zero, v)
    >>> linear_attention_recurrent(zero, zero, 2 * v, initial_state=state).o
    array([[3.]])
    """
    if cu_seqlens is not None:
        call = partial(linear_attention_recurrent, feature_map=feature_map, normalize=normalize)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    q_, k_, v_ = computed(q, k, v)
    q_, k_, v_ = feature_map(q_), feature_map(k_), with_ones(v_)
    S = joined(initial_state, (*v.shape[:-2], k_.shape[-1], v_.shape[-1]), v_.dtype)
    o, S = attend_recurrent(q_, k_, v_, S)
    return Recurrent(divided(o, normalize).astype(q.dtype), parted(S))


@dispatched(_check("linear_attention_chunked"))
def linear_attention_chunked(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: Callable[[Array], Array] = elu_plus_one,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""Causal `linear_attention` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    q, k, v, feature_map, normalize, initial_state, cu_seqlens, backend
        As in `linear_attention`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `linear_attention`.

    Raises
    ------
    TypeError, ValueError
        As `linear_attention`, and for a chunk below 1.

    Examples
    --------
    >>> zeros, v = np.zeros((3, 1)), np.array([[2.0], [4.0], [9.0]])
    >>> linear_attention_chunked(zeros, zeros, v, chunk=2).o[:, 0]
    array([2., 3., 5.])
    """
    if cu_seqlens is not None:
        call = partial(linear_attention_chunked, feature_map=feature_map, normalize=normalize, chunk=chunk)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    q_, k_, v_ = computed(q, k, v)
    q_, k_, v_ = feature_map(q_), feature_map(k_), with_ones(v_)
    S = joined(initial_state, (*v.shape[:-2], k_.shape[-1], v_.shape[-1]), v_.dtype)
    o = np.empty((*(q if heads_of(q) > heads_of(v) else v).shape[:-1], v.shape[-1]), q.dtype)
    for c in range(0, q.shape[-2], chunk):
        t = slice(c, c + chunk)
        sums, S = attend(q_[..., t, :], k_[..., t, :], v_[..., t, :], S, True)
        o[..., t, :] = divided(sums, normalize)
    return Recurrent(o, parted(S))


@dispatched(_check("linear_attention_vjp"))
def linear_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: FeatureMap = elu_plus_one,
    causal: bool = True,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    dstate: LinearState | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `linear_attention`.

    .. math::
        dn_i = do_i / d_i, \quad dd_i = -dn_i \cdot o_i, \quad ds_{ij} = dn_i \cdot v_j + dd_i, \quad
        d\phi(q_i) = \sum_{j \le i} ds_{ij}\, \phi(k_j) + S_0\, dn_i + z_0\, dd_i

    with d the denominator, n the numerator, and alike for φ(k) and v; where d is exactly 0, nothing flows back.

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, causal, normalize, initial_state, cu_seqlens, backend
        As in `linear_attention`.
    feature_map : FeatureMap
        Anything callable that has its derivative as ``.vjp(dphi, x)``.
    dstate : LinearState, optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, and dinitial_state, a LinearState, if that was given; the others are None.

    Raises
    ------
    TypeError, ValueError
        As `linear_attention`, for a `feature_map` without vjp, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> zeros = np.zeros((2, 1))
    >>> linear_attention_vjp(np.ones((2, 1)), zeros, zeros, zeros).dv[:, 0]  # all of o_1, half of o_2
    array([1.5, 0.5])
    """
    if cu_seqlens is not None:
        call = partial(linear_attention_vjp, feature_map=feature_map, causal=causal, normalize=normalize)
        states = {"initial_state": initial_state, "dstate": dstate}
        return by_sequence(call, cu_seqlens, [(do, -2), (q, -2), (k, -2), (v, -2)], states)
    dtype = compute_dtype(q.dtype)
    do_, q_, k_, v_ = (x.astype(dtype) for x in (do, q, k, v))
    phi_q, phi_k, v_ = feature_map(q_), feature_map(k_), with_ones(v_)
    shape = (*v.shape[:-2], phi_k.shape[-1], v_.shape[-1])
    S, dlast = joined(initial_state, shape, dtype), joined(dstate, shape, dtype)
    if normalize:
        do_ = divided_vjp(do_, attend(phi_q, phi_k, v_, S, causal)[0])
        dq, dk, dv, dS = attend_vjp(do_, phi_q, phi_k, v_, S, dlast, causal)
    else:
        dq, dk, dv, dS = attend_vjp(do_, phi_q, phi_k, v_[..., :-1], S[..., :-1], dlast[..., :-1], causal)
        dz = dlast[..., -1]
        dk, dS = dk + sum_heads(dz[..., None, :], heads_of(k)), np.concatenate([dS, dz[..., None]], axis=-1)
        dv = with_ones(dv)
    dinitial = None
    if initial_state is not None:
        parts = parted(dS)
        dinitial = LinearState(parts.S.astype(initial_state.S.dtype), parts.z.astype(initial_state.z.dtype))
    dq, dk = feature_map.vjp(dq, q_), feature_map.vjp(dk, k_)
    dv = dv[..., :-1].astype(v.dtype)
    return RecurrentGradients(dq.astype(q.dtype), dk.astype(k.dtype), dv, None, None, dinitial)
