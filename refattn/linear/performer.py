r"""Attention by random features (FAVOR+): an unbiased estimate of the weights of softmax attention, in linear time.

Choromanski et al., 2020, "Rethinking Attention with Performers", arXiv:2009.14794, lemma 1 (positive features) and
section 2.4 (orthogonal projections). For w ~ N(0, I), the mean of e^{w·x - |x|²/2} e^{w·y - |y|²/2} is e^{x·y}.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_number, check_shape
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import check_wide, decayed, heads_of, outer, scale_of, share_heads, sum_heads
from refattn.linear.features import check_features, computed, divided, divided_vjp, joined, named, parted
from refattn.linear.random_features import below, exponents_vjp, features_below, kept, prepared, weights_of
from refattn.results import LinearState, PerformerGradients, PerformerState, Recurrent


def _check(operation: str) -> Callable[..., None]:
    def check(*arrays: Any, **given: Any) -> None:
        found = named(operation, "q k v projection", arrays, given)
        q, projection = found.pop("q"), found.pop("projection")
        check_floats(operation, 2, q=q)
        check_wide(operation, "projection", projection, q)
        features = projection.shape[0] if projection.ndim == 2 and len(projection) > 0 else 1
        check_shape(operation, "projection", projection, (features, q.shape[-1]), "(M, D), M >= 1")
        if found.get("scale") is not None:
            check_number(operation, "scale", found["scale"], above=0)
        check_features(operation, q, found.pop("k"), found.pop("v"), features, kind=PerformerState, **found)

    return check


@dispatched(_check("performer_attention"))
def performer_attention(
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    causal: bool = True,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Estimate softmax attention by linear attention with random features.

    .. math::
        \phi(x) = \frac{1}{\sqrt M} e^{W \hat x - |\hat x|^2 / 2 - m}, \quad \hat x = \sqrt{\text{scale}}\, x, \qquad
        o_i = \frac{\sum_{j \le i} (\phi(q_i) \cdot \phi(k_j))\, v_j}{\sum_{j \le i} \phi(q_i) \cdot \phi(k_j)}

    m keeps the exponentials at 1 or below, and cancels in o: the largest exponent of a query's own features; for the
    keys the largest so far if causal, so that no later key moves it, and the largest of all if not. Where the
    denominator is exactly 0 (all products underflow), o is 0. This form makes the matrix (T, T).

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    projection : array, (M, D)
        W, in the dtype of q or that of computation; see `draw_projection`.
    causal : bool
        Whether a query sees only the keys up to its own.
    scale : float, optional
        Above 0; 1/sqrt(D) unless given. q and k are multiplied by its root.
    initial_state : PerformerState, optional
        S (..., Hv, M, Dv), z (..., Hv, M) and m (..., Hv) before the first token; zeros, and m = -inf, unless given.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the state after the last token, a
        PerformerState in the dtype of computation, whose sums are divided by e^m.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Keys that are 0 weigh alike, whatever is drawn: the mean of the values so far.

    >>> from refattn import draw_projection
    >>> zeros, v = np.zeros((3, 2)), np.array([[2.0], [4.0], [9.0]])
    >>> performer_attention(zeros, zeros, v, draw_projection(4, 2)).o[:, 0]
    array([2., 3., 5.])
    """
    lq, lk, v_, S, first = prepared(q, k, v, projection, scale, initial_state)
    m, s, through, a, after = weights_of(lq, lk, first, causal)
    last = m[..., -1] if m.shape[-1] > 0 else first
    S_last = decayed(below(first, last)[..., None, None], S) + after.swapaxes(-1, -2) @ v_
    if causal:
        Ho = s.shape[-3] if s.ndim > 2 else 1
        seen = np.tri(s.shape[-1], dtype=bool)
        o = select_matmul(s, share_heads(v_, Ho), seen) + decayed(through, a @ share_heads(S, Ho))
    else:
        o = a @ share_heads(S_last, heads_of(a))
    return Recurrent(divided(o).astype(q.dtype), PerformerState(*parted(S_last), np.asarray(last)))


@dispatched(_check("performer_attention_recurrent"))
def performer_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Causal `performer_attention` a token at a time: what is kept between tokens is the state.

    .. math::
        m_t = \max(m_{t-1}, \max_r l_{tr}), \quad l_t = W \hat k_t - |\hat k_t|^2 / 2, \qquad
        S_t = e^{m_{t-1} - m_t} S_{t-1} + \tfrac{1}{\sqrt M} e^{l_t - m_t} v_t^T

    and z alike, with 1 in place of v.

    Parameters
    ----------
    q, k, v, projection, scale, initial_state, backend
        As in `performer_attention`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `performer_attention`.

    Raises
    ------
    TypeError, ValueError
        As `performer_attention`.

    Examples
    --------
    >>> from refattn import draw_projection
    >>> zero, v, w = np.zeros((1, 2)), np.array([[2.0]]), draw_projection(4, 2)
    >>> _, state = performer_attention_recurrent(zero, zero, v, w)
    >>> performer_attention_recurrent(zero, zero, 2 * v, w, initial_state=state).o
    array([[3.]])
    """
    lq, lk, v_, S, m = prepared(q, k, v, projection, scale, initial_state)
    a, root = features_below(lq, lq.max(axis=-1)), math.sqrt(lk.shape[-1])
    o = np.empty((*a.shape[:-1], v_.shape[-1]), v_.dtype)
    for t in range(q.shape[-2]):
        old, m = m, np.maximum(m, lk[..., t, :].max(axis=-1))
        new = np.exp(below(lk[..., t, :], m[..., None])) / root
        S = decayed(below(old, m)[..., None, None], S) + outer(new, v_[..., t, :])
        o[..., t, :] = (a[..., t, None, :] @ share_heads(S, heads_of(a)))[..., 0, :]  # o = Sᵀ φ(q)
    return Recurrent(divided(o).astype(q.dtype), PerformerState(*parted(S), np.asarray(m)))


@dispatched(_check("performer_attention_vjp"))
def performer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    projection: Array,
    *,
    causal: bool = True,
    scale: float | None = None,
    initial_state: PerformerState | None = None,
    dstate: PerformerState | None = None,
    backend: str = "numpy",
) -> PerformerGradients:
    r"""Return the gradients of `performer_attention`.

    As those of `linear_attention`, through the exponentials: :math:`dl = \phi \odot d\phi`,
    :math:`d\hat x = W^T dl - (\sum_r dl_r)\, \hat x`, :math:`dW = \sum dl\, \hat x^T`. Within o the stabilisers cancel
    and have no gradient. The state depends on its own m; that gradient goes to what m is the maximum of, the initial m
    or the first key that reaches it.

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, projection, causal, scale, initial_state, backend
        As in `performer_attention`.
    dstate : PerformerState, optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    PerformerGradients
        dq, dk, dv, dprojection, and dinitial_state if that was given.

    Raises
    ------
    TypeError, ValueError
        As `performer_attention`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> from refattn import draw_projection
    >>> zeros, w = np.zeros((2, 2)), draw_projection(4, 2)
    >>> performer_attention_vjp(np.ones((2, 1)), zeros, zeros, zeros[:, :1], w).dv[:, 0]
    array([1.5, 0.5])
    """
    H, Hk, Hv = heads_of(q), heads_of(k), heads_of(v)
    lq, lk, v_, S, first = prepared(q, k, v, projection, scale, initial_state)
    m, s, through, a, after = weights_of(lq, lk, first, causal)
    last, Ho = m[..., -1] if m.shape[-1] > 0 else first, heads_of(a)
    S_last = decayed(below(first, last)[..., None, None], S) + after.swapaxes(-1, -2) @ v_
    dS_last = joined(None if dstate is None else LinearState(dstate.S, dstate.z), S.shape, S.dtype)
    dm = np.zeros(last.shape, last.dtype) if dstate is None else dstate.m.astype(last.dtype)
    dm = dm - (dS_last * S_last).sum(axis=(-2, -1))  # was: S = e^{-m} ...
    do_, dlk, dv, dS = computed(do)[0], np.zeros_like(lk), np.zeros_like(v_), np.zeros_like(S)
    if causal:
        seen = np.tri(s.shape[-1], dtype=bool)
        o = select_matmul(s, share_heads(v_, Ho), seen) + decayed(through, a @ share_heads(S, Ho))
        do_ = divided_vjp(do_, o)
        b = share_heads(features_below(lk, m), Ho)
        ds = np.where(seen, do_ @ share_heads(v_, Ho).swapaxes(-1, -2), 0) * share_heads(kept(m), Ho)
        dlq = a * (select_matmul(ds, b, seen) + decayed(through, do_ @ share_heads(S, Ho).swapaxes(-1, -2)))
        dlk = sum_heads(b * select_matmul(ds.swapaxes(-1, -2), a, seen.T), Hv)
        dv = sum_heads(select_matmul(s.swapaxes(-1, -2), do_, seen.T), Hv)
        dS = sum_heads(a.swapaxes(-1, -2) @ decayed(through, do_), Hv)
    else:
        do_ = divided_vjp(do_, a @ share_heads(S_last, Ho))
        dlq = a * (do_ @ share_heads(S_last, Ho).swapaxes(-1, -2))
        dS_last = dS_last + sum_heads(a.swapaxes(-1, -2) @ do_, Hv)
    dlk = dlk + after * (v_ @ dS_last.swapaxes(-1, -2))
    dv = dv + after @ dS_last
    dS = dS + decayed(below(first, last)[..., None, None], dS_last)
    dm_first = np.where(np.isneginf(first), 0, (dS * S).sum(axis=(-2, -1)))  # as if S were e^m S
    keeps = first >= lk.max(axis=(-2, -1), initial=-np.inf)
    dm_first = dm_first + np.where(keeps, dm, 0)
    flat = lk.reshape(*first.shape, -1)
    top = np.arange(flat.shape[-1]) == flat.argmax(axis=-1)[..., None] if flat.shape[-1] > 0 else np.zeros(flat.shape)
    dlk = dlk + (top * np.where(keeps, 0, dm)[..., None]).reshape(lk.shape)
    root = math.sqrt(scale_of(q, scale))
    (W,) = computed(projection)
    dq, dW_q = exponents_vjp(sum_heads(dlq, H), computed(q)[0] * root, W)
    dk, dW_k = exponents_vjp(sum_heads(dlk, Hk), computed(k)[0] * root, W)
    dinitial = None
    if initial_state is not None:
        parts = (*parted(dS), dm_first)
        dinitial = PerformerState(*(np.asarray(x, y.dtype) for x, y in zip(parts, initial_state, strict=True)))
    dv = dv[..., :-1].astype(v.dtype)
    dprojection = (dW_q + dW_k).astype(projection.dtype)
    return PerformerGradients((root * dq).astype(q.dtype), (root * dk).astype(k.dtype), dv, dprojection, dinitial)
