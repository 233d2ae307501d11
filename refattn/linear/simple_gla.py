r"""Linear attention with one decay per head and token: the recurrence that retention, Lightning and Mamba-2 share.

Yang et al., 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv:2312.06635, section 3
with a scalar gate; Dao and Gu, 2024, arXiv:2405.21060, section 5 (the parallel form as a matrix).

| here | paper |
|---|---|
| S (D, Dv) | Sᵀ: the papers write states as (Dv, D) |
| e^{log_decay} | α_t, the gate; γ_t |
| G | the log of products of gates between two tokens |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import (
    by_sequence,
    check_of,
    decayed,
    first_state,
    heads_of,
    outer,
    scale_of,
    segment_sums,
    share_heads,
    sum_heads,
    sum_of,
    sums_after,
    sums_through,
)
from refattn.results import Recurrent, RecurrentGradients


@dispatched(check_of("simple_gla", log_decay="HT"))
def simple_gla(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Attend with weights that decay by e^{log_decay} a token, all pairs at once.

    .. math::
        o_i = \text{scale} \sum_{j \le i} e^{G_{ij}} (q_i \cdot k_j)\, v_j, \qquad G_{ij} = \sum_{j < s \le i} g_s

    This form makes the matrix (T, T); `simple_gla_recurrent` says the same a token at a time, and `simple_gla_chunked`
    in time and memory linear in T.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    log_decay : array, (..., Hv, T)
        Natural logs g <= 0 of the decays, in the dtype of q or that of computation; -inf forgets all that came before.
    scale : float, optional
        1/sqrt(D) unless given.
    initial_state : array, (..., Hv, D, Dv), optional
        The state before the first token, zeros unless given; (N, Hv, D, Dv) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the state after the last token, shaped as
        `initial_state`, in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Each token halves what came before it:

    >>> ones = np.ones((3, 1))
    >>> o, state = simple_gla(ones, ones, ones, np.full(3, np.log(0.5)))
    >>> o[:, 0], state
    (array([1.  , 1.5 , 1.75]), array([[1.75]]))
    """
    if cu_seqlens is not None:
        call = partial(simple_gla, scale=scale)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -1)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = log_decay.astype(dtype), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    G = segment_sums(g)  # (..., Hv, T, T)
    s = decayed(share_heads(G, Ho), q_ @ share_heads(k_, Ho).swapaxes(-1, -2))  # e^{G_ij} q_i · k_j
    o = select_matmul(s, share_heads(v_, Ho), ~np.isneginf(share_heads(G, Ho)))
    before = share_heads(sums_through(g)[..., None], Ho)
    o = o + decayed(before, q_ @ share_heads(state, Ho))
    after = sums_after(g)[..., None]  # (..., Hv, T, 1)
    new = select_matmul(decayed(after, k_).swapaxes(-1, -2), v_, ~np.isneginf(after).swapaxes(-1, -2))
    state = decayed(sum_of(g)[..., None, None], state) + new
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_of("simple_gla_recurrent", log_decay="HT"))
def simple_gla_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`simple_gla` a token at a time: what is kept between tokens is the state.

    .. math:: S_t = e^{g_t} S_{t-1} + k_t v_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `simple_gla`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `simple_gla`.

    Raises
    ------
    TypeError, ValueError
        As `simple_gla`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = simple_gla_recurrent(one, one, 8 * one, np.zeros(1))
    >>> simple_gla_recurrent(one, one, one, np.log([0.25]), initial_state=state).o
    array([[3.]])
    """
    if cu_seqlens is not None:
        call = partial(simple_gla_recurrent, scale=scale)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -1)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = log_decay.astype(dtype), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        S = decayed(g[..., t, None, None], S) + outer(k_[..., t, :], v_[..., t, :])  # S = e^g S + k vᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("simple_gla_chunked", log_decay="HT"))
def simple_gla_chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`simple_gla` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `simple_gla`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `simple_gla`.

    Raises
    ------
    TypeError, ValueError
        As `simple_gla`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> simple_gla_chunked(ones, ones, ones, np.full(3, np.log(0.5)), chunk=2).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    if cu_seqlens is not None:
        call = partial(simple_gla_chunked, scale=scale, chunk=chunk)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -1)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), compute_dtype(q.dtype))
    o = np.empty((*(q if heads_of(q) > heads_of(v) else v).shape[:-1], v.shape[-1]), q.dtype)
    for c in range(0, q.shape[-2], chunk):
        t = slice(c, c + chunk)
        within = q[..., t, :], k[..., t, :], v[..., t, :], log_decay[..., t]
        o[..., t, :], state = simple_gla(*within, scale=scale, initial_state=state)
    return Recurrent(o, state)


@dispatched(check_of("simple_gla_vjp", log_decay="HT"))
def simple_gla_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `simple_gla`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        dS_t = \text{scale} \cdot q_t\, do_t^T + e^{g_{t+1}} dS_{t+1}, \quad
        dq_t = \text{scale} \cdot S_t\, do_t, \quad dk_t = dS_t v_t, \quad dv_t = dS_t^T k_t, \quad
        dg_t = e^{g_t} \sum dS_t \odot S_{t-1}

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `simple_gla`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dlog_decay, and dinitial_state if that was given; dbeta is None. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `simple_gla`, and for `do` or `dstate` of another shape.

    Examples
    --------
    A key matters as long as its token is not forgotten:

    >>> ones = np.ones((3, 1))
    >>> simple_gla_vjp(ones, ones, ones, ones, np.array([0.0, 0.0, -np.inf])).dk[:, 0]
    array([2., 1., 1.])
    """
    if cu_seqlens is not None:
        call = partial(simple_gla_vjp, scale=scale)
        tokens = [(do, -2), (q, -2), (k, -2), (v, -2), (log_decay, -1)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state, "dstate": dstate}, dlog_decay=-1)
    dtype, H, Hk, Hv, T = compute_dtype(q.dtype), heads_of(q), heads_of(k), heads_of(v), q.shape[-2]
    Ho, size = max(H, Hv), scale_of(q, scale)
    g, v_, do_ = log_decay.astype(dtype), v.astype(dtype), do.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype), Ho), share_heads(k.astype(dtype), Hv)
    states = [first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)]  # before each token
    for t in range(T):
        states.append(decayed(g[..., t, None, None], states[t]) + outer(k_[..., t, :], v_[..., t, :]))
    dq, dk, dv, dg = np.empty_like(q_), np.empty_like(k_), np.empty_like(v_), np.empty_like(g)
    dS = first_state(dstate, states[0].shape, dtype)
    for t in reversed(range(T)):
        a = g[..., t, None, None]
        dq[..., t, :] = size * (share_heads(states[t + 1], Ho) @ do_[..., t, :, None])[..., 0]  # was: o = scale Sᵀ q
        dS = dS + sum_heads(outer(size * q_[..., t, :], do_[..., t, :]), Hv)
        dk[..., t, :] = (dS @ v_[..., t, :, None])[..., 0]  # was: S = e^g S + k vᵀ
        dv[..., t, :] = (k_[..., t, None, :] @ dS)[..., 0, :]
        dg[..., t] = decayed(g[..., t], (dS * states[t]).sum(axis=(-2, -1)))
        dS = decayed(a, dS)
    return RecurrentGradients(
        sum_heads(dq, H).astype(q.dtype),
        sum_heads(dk, Hk).astype(k.dtype),
        dv.astype(v.dtype),
        dg.astype(log_decay.dtype),
        None,
        None if initial_state is None else dS.astype(initial_state.dtype),
    )
