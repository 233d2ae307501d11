r"""The gated delta rule: a memory that decays as a whole, and in which a write replaces what its key held before.

Yang et al., 2024, arXiv:2412.06464, eq. 10. S (D, Dv) is the paper's Sᵀ, e^{log_decay} its α, and e^G its Γ.
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
from refattn.linear.triangular import solve_lower
from refattn.results import Recurrent, RecurrentGradients


@dispatched(check_of("gated_delta_rule", log_decay="HT", beta="HT"))
def gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Read from a memory that decays by e^{log_decay} a token before each token replaces what its key holds.

    .. math::
        o_i = \text{scale} \Big( e^{G_{i0}} S_0^T q_i + \sum_{j \le i} e^{G_{ij}} (q_i \cdot k_j)\, u_j \Big), \qquad
        u_i + \beta_i \sum_{j < i} e^{G_{ij}} (k_i \cdot k_j)\, u_j = \beta_i (v_i - e^{G_{i0}} S_0^T k_i)

    with G_ij the sum of log_decay after j up to i. `gated_delta_rule_recurrent` says the same a token at a time,
    `gated_delta_rule_chunked` in time and memory linear in T.

    Parameters
    ----------
    q, k, v, beta, scale, initial_state, cu_seqlens, backend
        As in `delta_rule`.
    log_decay : array, (..., Hv, T)
        Natural logs g <= 0 of the decays, in the dtype of q or that of computation; -inf forgets all that came before.

    Returns
    -------
    Recurrent
        As of `delta_rule`.

    Raises
    ------
    TypeError, ValueError
        As `delta_rule`, and for a log_decay above 0.

    Examples
    --------
    The state is halved; then a quarter of what is missing between it and the new value is added.

    >>> ones = np.ones((2, 1))
    >>> gated_delta_rule(ones, ones, 8 * ones, np.log([1.0, 0.5]), np.array([1.0, 0.25])).o[:, 0]
    array([8., 5.])
    """
    if cu_seqlens is not None:
        call, states = partial(gated_delta_rule, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -1), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    G, before = segment_sums(g), sums_through(g)[..., None]  # (..., Hv, T, T), (..., Hv, T, 1)
    seen = ~np.isneginf(G)
    A = b * decayed(G, k_ @ k_.swapaxes(-1, -2))
    u = solve_lower(A, b * (v_ - decayed(before, k_ @ S)), seen)  # (..., Hv, T, Dv)
    s = decayed(share_heads(G, Ho), q_ @ share_heads(k_, Ho).swapaxes(-1, -2))  # e^{G_ij} q_i · k_j
    o = decayed(share_heads(before, Ho), q_ @ share_heads(S, Ho))
    o = o + select_matmul(s, share_heads(u, Ho), share_heads(seen, Ho))
    after = sums_after(g)[..., None]  # (..., Hv, T, 1)
    new = select_matmul(decayed(after, k_).swapaxes(-1, -2), u, ~np.isneginf(after).swapaxes(-1, -2))
    return Recurrent(o.astype(q.dtype), decayed(sum_of(g)[..., None, None], S) + new)


@dispatched(check_of("gated_delta_rule_recurrent", log_decay="HT", beta="HT"))
def gated_delta_rule_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`gated_delta_rule` a token at a time: what is kept between tokens is the state.

    .. math::
        S' = e^{g_t} S_{t-1}, \qquad S_t = S' + k_t \big( \beta_t (v_t - S'^T k_t) \big)^T, \qquad
        o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, backend
        As in `gated_delta_rule`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `gated_delta_rule`.

    Raises
    ------
    TypeError, ValueError
        As `gated_delta_rule`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = gated_delta_rule_recurrent(one, one, 8 * one, np.zeros(1), np.ones(1))
    >>> gated_delta_rule_recurrent(one, one, 8 * one, np.log([0.5]), np.array([0.25]), initial_state=state).o
    array([[5.]])
    """
    if cu_seqlens is not None:
        call, states = partial(gated_delta_rule_recurrent, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -1), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        S = decayed(g[..., t, None, None], S)  # S = e^g S
        held = (k_[..., t, None, :] @ S)[..., 0, :]  # Sᵀ k
        S = S + outer(k_[..., t, :], b[..., t, :] * (v_[..., t, :] - held))  # S = S + k (β (v - Sᵀ k))ᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("gated_delta_rule_chunked", log_decay="HT", beta="HT"))
def gated_delta_rule_chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`gated_delta_rule` in chunks: one triangular inverse T within a chunk, the state from one chunk to the next.

    .. math::
        T = \big( I + \text{tril}(\text{diag}(\beta) (e^G \odot K K^T), -1) \big)^{-1} \text{diag}(\beta), \qquad
        w = T (e^{G_{i0}} K), \qquad u = T V - w S

    Parameters
    ----------
    q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, chunk, backend
        As in `gated_delta_rule` and `delta_rule_chunked`.

    Returns
    -------
    Recurrent
        As of `gated_delta_rule`.

    Raises
    ------
    TypeError, ValueError
        As `gated_delta_rule`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((2, 1))
    >>> gated_delta_rule_chunked(ones, ones, 8 * ones, np.log([1.0, 0.5]), np.array([1.0, 0.25]), chunk=1).o[:, 0]
    array([8., 5.])
    """
    if cu_seqlens is not None:
        call, states = partial(gated_delta_rule_chunked, scale=scale, chunk=chunk), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -1), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for first in range(0, q.shape[-2], chunk):
        c = slice(first, first + chunk)
        q_c, k_c, v_c, g_c, b_c = q_[..., c, :], k_[..., c, :], v_[..., c, :], g[..., c], b[..., c, :]
        G, before, after = segment_sums(g_c), sums_through(g_c)[..., None], sums_after(g_c)[..., None]
        seen, seen_after = ~np.isneginf(G), ~np.isneginf(after).swapaxes(-1, -2)
        A = b_c * decayed(G, k_c @ k_c.swapaxes(-1, -2))
        T = solve_lower(A, np.where(np.eye(A.shape[-1], dtype=bool), b_c, 0), seen)  # (I + tril(A, -1))⁻¹ diag(β)
        w = select_matmul(T, decayed(before, k_c), seen)
        u = select_matmul(T, v_c, seen) - np.where(np.isneginf(before), 0, w @ S)
        s = decayed(share_heads(G, Ho), q_c @ share_heads(k_c, Ho).swapaxes(-1, -2))
        old = decayed(share_heads(before, Ho), q_c @ share_heads(S, Ho))
        o[..., c, :] = old + select_matmul(s, share_heads(u, Ho), share_heads(seen, Ho))
        new = select_matmul(decayed(after, k_c).swapaxes(-1, -2), u, seen_after)
        S = decayed(sum_of(g_c)[..., None, None], S) + new
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("gated_delta_rule_vjp", log_decay="HT", beta="HT"))
def gated_delta_rule_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `gated_delta_rule`: the recurrence backwards, with the state's gradient carried along.

    .. math::
        du_t = dS_t^T k_t, \quad dk_t = dS_t u_t - \beta_t S' du_t, \quad dv_t = \beta_t du_t, \quad
        d\beta_t = du_t \cdot (v_t - S'^T k_t), \quad dS' = dS_t - \beta_t k_t du_t^T, \quad
        dg_t = \sum dS' \odot S', \quad dS_{t-1} = e^{g_t} dS'

    Each step first adds scale · q doᵀ to dS, and dq = scale · S do.

    Parameters
    ----------
    do, q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, dstate, backend
        As in `gated_delta_rule` and `delta_rule_vjp`.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dlog_decay, dbeta, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `gated_delta_rule`, and for `do` or `dstate` of another shape.

    Examples
    --------
    A value that is halved, and then replaced by half, counts for a quarter of what it did:

    >>> ones = np.ones((2, 1))
    >>> gated_delta_rule_vjp(ones, ones, ones, ones, np.log([1.0, 0.5]), np.array([1.0, 0.5])).dv[:, 0]
    array([1.25, 0.5 ])
    """
    if cu_seqlens is not None:
        call, given = partial(gated_delta_rule_vjp, scale=scale), {"initial_state": initial_state, "dstate": dstate}
        tokens = [(do, -2), (q, -2), (k, -2), (v, -2), (log_decay, -1), (beta, -1)]
        return by_sequence(call, cu_seqlens, tokens, given, dlog_decay=-1, dbeta=-1)
    dtype, H, Hk, Hv, T = compute_dtype(q.dtype), heads_of(q), heads_of(k), heads_of(v), q.shape[-2]
    Ho, size = max(H, Hv), scale_of(q, scale)
    g, b, v_, do_ = (x.astype(dtype) for x in (log_decay[..., None], beta[..., None], v, do))
    q_, k_ = share_heads(q.astype(dtype), Ho), share_heads(k.astype(dtype), Hv)
    states = [first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)]  # before each token
    miss = np.empty_like(v_)  # v - S'ᵀ k, where S' = e^g S
    for t in range(T):
        kept = decayed(g[..., t, :, None], states[t])
        miss[..., t, :] = v_[..., t, :] - (k_[..., t, None, :] @ kept)[..., 0, :]
        states.append(kept + outer(k_[..., t, :], b[..., t, :] * miss[..., t, :]))
    dq, dk, dv, dg, db = (np.empty(x.shape, dtype) for x in (q_, k_, v_, g, beta))
    dS = first_state(dstate, states[0].shape, dtype)
    for t in reversed(range(T)):
        kept = decayed(g[..., t, :, None], states[t])
        dq[..., t, :] = size * (share_heads(states[t + 1], Ho) @ do_[..., t, :, None])[..., 0]  # was: o = scale Sᵀ q
        dS = dS + sum_heads(outer(size * q_[..., t, :], do_[..., t, :]), Hv)
        du = (k_[..., t, None, :] @ dS)[..., 0, :]  # was: S = S' + k uᵀ
        dv[..., t, :] = b[..., t, :] * du  # was: u = β (v - S'ᵀ k)
        db[..., t] = (du * miss[..., t, :]).sum(axis=-1)
        dk[..., t, :] = (dS @ (b * miss)[..., t, :, None] - kept @ dv[..., t, :, None])[..., 0]
        dS = dS - outer(k_[..., t, :], dv[..., t, :])
        pull = np.where(np.isneginf(g[..., t, :, None]), 0, dS * kept)
        dg[..., t, 0] = pull.sum(axis=(-2, -1))  # was: S' = e^g S
        dS = decayed(g[..., t, :, None], dS)
    dq, dk = sum_heads(dq, H).astype(q.dtype), sum_heads(dk, Hk).astype(k.dtype)
    dg, db = dg[..., 0].astype(log_decay.dtype), db.astype(beta.dtype)
    dinitial = None if initial_state is None else dS.astype(initial_state.dtype)
    return RecurrentGradients(dq, dk, dv.astype(v.dtype), dg, db, dinitial)
