r"""Gated linear attention (GLA): linear attention in which every key dimension has a decay of its own at every token.

Yang et al., 2023, arXiv:2312.06635: eq. 3 (the recurrence), eq. 4 (the parallel form); e^{log_decay} is its α_t.
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


@dispatched(check_of("gated_linear_attention", log_decay="HTD"))
def gated_linear_attention(
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
    r"""Attend with products q·k in which each dimension decays by a gate of its own, all pairs at once.

    .. math::
        o_i = \text{scale} \sum_{j \le i} \Big( \sum_d q_{id}\, k_{jd}\, e^{G_{ijd}} \Big) v_j, \qquad
        G_{ijd} = \sum_{j < s \le i} g_{sd}

    The decays do not leave the sum over d, so that the scores are no product of matrices. They are added up a
    dimension at a time, and no array here is larger than (T, T) per head: (T, T, D) is never made.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    log_decay : array, (..., Hv, T, D)
        Natural logs g <= 0 of the decays, in the dtype of q or that of computation; -inf forgets all that the state
        holds under this dimension of the keys.
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
    One dimension keeps everything, the other halves it at each token:

    >>> ones = np.ones((3, 2))
    >>> gates = np.log([[1.0, 0.5]] * 3)
    >>> o, state = gated_linear_attention(ones, ones, ones[:, :1], gates, scale=1.0)
    >>> o[:, 0], state[:, 0]
    (array([2.  , 3.5 , 4.75]), array([3.  , 1.75]))
    """
    if cu_seqlens is not None:
        call = partial(gated_linear_attention, scale=scale)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -2)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = log_decay.astype(dtype), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    s = np.zeros((*q_.shape[:-1], q.shape[-2]), dtype)
    remembered = np.zeros(s.shape, bool)
    for d in range(q.shape[-1]):
        G = share_heads(segment_sums(g[..., d]), Ho)  # (..., Ho, T, T)
        s = s + decayed(G, outer(q_[..., d], share_heads(k_, Ho)[..., d]))  # s_ij = Σ_d q_id k_jd e^{G_ijd}
        remembered |= ~np.isneginf(G)
    o = select_matmul(s, share_heads(v_, Ho), remembered)
    before = share_heads(sums_through(g, axis=-2), Ho)
    o = o + select_matmul(decayed(before, q_), share_heads(state, Ho), ~np.isneginf(before))
    after = sums_after(g.swapaxes(-1, -2))  # (..., Hv, D, T)
    new = select_matmul(decayed(after, k_.swapaxes(-1, -2)), v_, ~np.isneginf(after))
    state = decayed(sum_of(g, axis=-2)[..., None], state) + new
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_of("gated_linear_attention_recurrent", log_decay="HTD"))
def gated_linear_attention_recurrent(
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
    r"""`gated_linear_attention` a token at a time: each row of the state decays by its own gate.

    .. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + k_t v_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `gated_linear_attention`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `gated_linear_attention`.

    Raises
    ------
    TypeError, ValueError
        As `gated_linear_attention`.

    Examples
    --------
    >>> one = np.ones((1, 2))
    >>> gates = np.array([[0.0, -np.inf]])
    >>> gated_linear_attention_recurrent(one, 0 * one, one[:, :1], gates, initial_state=np.array([[3.0], [5.0]])).state
    array([[3.],
           [0.]])
    """
    if cu_seqlens is not None:
        call = partial(gated_linear_attention_recurrent, scale=scale)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -2)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = log_decay.astype(dtype), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        S = decayed(g[..., t, :, None], S) + outer(k_[..., t, :], v_[..., t, :])  # S = diag(e^g) S + k vᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("gated_linear_attention_chunked", log_decay="HTD"))
def gated_linear_attention_chunked(
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
    r"""`gated_linear_attention` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `gated_linear_attention`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `gated_linear_attention`.

    Raises
    ------
    TypeError, ValueError
        As `gated_linear_attention`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> gated_linear_attention_chunked(ones, ones, ones, np.full((3, 1), np.log(0.5)), chunk=2).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    if cu_seqlens is not None:
        call = partial(gated_linear_attention_chunked, scale=scale, chunk=chunk)
        tokens = [(q, -2), (k, -2), (v, -2), (log_decay, -2)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state})
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), compute_dtype(q.dtype))
    o = np.empty((*(q if heads_of(q) > heads_of(v) else v).shape[:-1], v.shape[-1]), q.dtype)
    for c in range(0, q.shape[-2], chunk):
        t = slice(c, c + chunk)
        within = q[..., t, :], k[..., t, :], v[..., t, :], log_decay[..., t, :]
        o[..., t, :], state = gated_linear_attention(*within, scale=scale, initial_state=state)
    return Recurrent(o, state)


@dispatched(check_of("gated_linear_attention_vjp", log_decay="HTD"))
def gated_linear_attention_vjp(
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
    r"""Return the gradients of `gated_linear_attention`: the recurrence backwards, the gradient of the state with it.

    .. math::
        dS_t = \text{scale} \cdot q_t\, do_t^T + \operatorname{diag}(e^{g_{t+1}})\, dS_{t+1}, \quad
        dq_t = \text{scale} \cdot S_t\, do_t, \quad dk_t = dS_t v_t, \quad dv_t = dS_t^T k_t, \quad
        dg_{td} = e^{g_{td}} \sum_e (dS_t \odot S_{t-1})_{de}

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `gated_linear_attention`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dlog_decay, and dinitial_state if that was given; dbeta is None. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `gated_linear_attention`, and for `do` or `dstate` of another shape.

    Examples
    --------
    The last token forgets the second dimension of the keys before it:

    >>> ones, gates = np.ones((3, 2)), np.zeros((3, 2))
    >>> gates[2, 1] = -np.inf
    >>> gated_linear_attention_vjp(ones[:, :1], ones, ones, ones[:, :1], gates, scale=1.0).dk
    array([[3., 2.],
           [2., 1.],
           [1., 1.]])
    """
    if cu_seqlens is not None:
        call = partial(gated_linear_attention_vjp, scale=scale)
        tokens = [(do, -2), (q, -2), (k, -2), (v, -2), (log_decay, -2)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state, "dstate": dstate}, dlog_decay=-2)
    dtype, H, Hk, Hv, T = compute_dtype(q.dtype), heads_of(q), heads_of(k), heads_of(v), q.shape[-2]
    Ho, size = max(H, Hv), scale_of(q, scale)
    g, v_, do_ = log_decay.astype(dtype), v.astype(dtype), do.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype), Ho), share_heads(k.astype(dtype), Hv)
    states = [first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)]  # before each token
    for t in range(T):
        states.append(decayed(g[..., t, :, None], states[t]) + outer(k_[..., t, :], v_[..., t, :]))
    dq, dk, dv, dg = np.empty_like(q_), np.empty_like(k_), np.empty_like(v_), np.empty_like(g)
    dS = first_state(dstate, states[0].shape, dtype)
    for t in reversed(range(T)):
        dq[..., t, :] = size * (share_heads(states[t + 1], Ho) @ do_[..., t, :, None])[..., 0]  # was: o = scale Sᵀ q
        dS = dS + sum_heads(outer(size * q_[..., t, :], do_[..., t, :]), Hv)
        dk[..., t, :] = (dS @ v_[..., t, :, None])[..., 0]  # was: S = diag(e^g) S + k vᵀ
        dv[..., t, :] = (k_[..., t, None, :] @ dS)[..., 0, :]
        dg[..., t, :] = decayed(g[..., t, :], (dS * states[t]).sum(axis=-1))
        dS = decayed(g[..., t, :, None], dS)
    return RecurrentGradients(
        sum_heads(dq, H).astype(q.dtype),
        sum_heads(dk, Hk).astype(k.dtype),
        dv.astype(v.dtype),
        dg.astype(log_decay.dtype),
        None,
        None if initial_state is None else dS.astype(initial_state.dtype),
    )
