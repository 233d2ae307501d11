r"""Kimi Delta Attention: the delta rule on a memory in which each entry of the keys decays by itself.

Kimi Team, 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture", arXiv:2510.26692, equation 1 and the
chunked form after it. S is (D, Dv) there, too, and diag(e^{log_decay}) is the paper's Diag(α).
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
    share_heads,
    sum_heads,
    sum_of,
    sums_after,
    sums_through,
)
from refattn.linear.triangular import decayed_products, reached, solve_lower
from refattn.results import Recurrent, RecurrentGradients


@dispatched(check_of("kda", log_decay="HTD", beta="HT"))
def kda(
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
    r"""Read from a memory whose rows decay by e^{log_decay} a token before each token replaces what its key holds.

    .. math::
        o_i = \text{scale} \Big( S_0^T (e^{G_{i0}} \odot q_i) + \sum_{j \le i} P(q, k)_{ij}\, u_j \Big), \qquad
        u_i + \beta_i \sum_{j < i} P(k, k)_{ij}\, u_j = \beta_i \big( v_i - S_0^T (e^{G_{i0}} \odot k_i) \big)

    with `decayed_products` P. `kda_recurrent` says the same a token at a time, `kda_chunked` in time linear in T.

    Parameters
    ----------
    q, k, v, beta, scale, initial_state, cu_seqlens, backend
        As in `delta_rule`.
    log_decay : array, (..., Hv, T, D)
        Natural logs g <= 0 of the decays, in the dtype of q or that of computation; -inf forgets that row of the state.

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
    One row of the state is halved, the other is kept; nothing is written after the first token.

    >>> ones = np.ones((2, 1))
    >>> kda(np.ones((2, 2)), np.ones((2, 2)), 4 * ones, np.log([[1, 1], [0.5, 1]]), np.array([1.0, 0]), scale=1).o[:, 0]
    array([8., 6.])
    """
    if cu_seqlens is not None:
        call, states = partial(kda, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -2), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    before, after = sums_through(g, axis=-2), sums_after(g.swapaxes(-1, -2))  # (..., Hv, T, D), (..., Hv, D, T)
    A, seen = decayed_products(k_, k_, g)
    held = select_matmul(decayed(before, k_), S, ~np.isneginf(before))
    u = solve_lower(b * A, b * (v_ - held), seen)  # (..., Hv, T, Dv)
    s, seen = decayed_products(q_, share_heads(k_, Ho), share_heads(g, Ho))
    before = share_heads(before, Ho)
    o = select_matmul(decayed(before, q_), share_heads(S, Ho), ~np.isneginf(before))
    o = o + select_matmul(s, share_heads(u, Ho), seen)
    new = select_matmul(decayed(after, k_.swapaxes(-1, -2)), u, ~np.isneginf(after))
    return Recurrent(o.astype(q.dtype), decayed(sum_of(g, axis=-2)[..., None], S) + new)


@dispatched(check_of("kda_recurrent", log_decay="HTD", beta="HT"))
def kda_recurrent(
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
    r"""`kda` a token at a time: what is kept between tokens is the state.

    .. math::
        S' = \text{diag}(e^{g_t}) S_{t-1}, \qquad S_t = S' + k_t \big( \beta_t (v_t - S'^T k_t) \big)^T, \qquad
        o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, backend
        As in `kda`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `kda`.

    Raises
    ------
    TypeError, ValueError
        As `kda`.

    Examples
    --------
    >>> one, two = np.ones((1, 1)), np.ones((1, 2))
    >>> _, state = kda_recurrent(two, two, 4 * one, np.zeros((1, 2)), np.ones(1))
    >>> kda_recurrent(two, two, one, np.log([[0.5, 1.0]]), np.zeros(1), scale=1.0, initial_state=state).o
    array([[6.]])
    """
    if cu_seqlens is not None:
        call, states = partial(kda_recurrent, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -2), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        S = decayed(g[..., t, :, None], S)  # S = diag(e^g) S
        held = (k_[..., t, None, :] @ S)[..., 0, :]  # Sᵀ k
        S = S + outer(k_[..., t, :], b[..., t, :] * (v_[..., t, :] - held))  # S = S + k (β (v - Sᵀ k))ᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("kda_chunked", log_decay="HTD", beta="HT"))
def kda_chunked(
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
    r"""`kda` in chunks: one triangular inverse T within a chunk, the state from one chunk to the next.

    .. math::
        T = \big( I + \text{tril}(\text{diag}(\beta) P(k, k), -1) \big)^{-1} \text{diag}(\beta), \qquad
        w = T (e^{G_{i0}} \odot K), \qquad u = T V - w S

    Parameters
    ----------
    q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, chunk, backend
        As in `kda` and `delta_rule_chunked`.

    Returns
    -------
    Recurrent
        As of `kda`.

    Raises
    ------
    TypeError, ValueError
        As `kda`, and for a chunk below 1.

    Examples
    --------
    >>> x, g, beta = np.ones((3, 2)), np.log([[1.0, 1.0], [0.5, 1.0], [0.5, 0.5]]), np.array([1.0, 0.0, 0.0])
    >>> kda_chunked(x, x, 4 * x, g, beta, scale=1.0, chunk=2).o[:, 0]
    array([8., 6., 3.])
    """
    if cu_seqlens is not None:
        call, states = partial(kda_chunked, scale=scale, chunk=chunk), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (log_decay, -2), (beta, -1)], states)
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, b, v_ = log_decay.astype(dtype), beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for first in range(0, q.shape[-2], chunk):
        c = slice(first, first + chunk)
        q_c, k_c, v_c, g_c, b_c = (x[..., c, :] for x in (q_, k_, v_, g, b))
        before, after = sums_through(g_c, axis=-2), sums_after(g_c.swapaxes(-1, -2))
        A, seen = decayed_products(k_c, k_c, g_c)
        T = solve_lower(b_c * A, np.where(np.eye(A.shape[-1], dtype=bool), b_c, 0), seen)
        reach = reached(seen)
        w = select_matmul(T, decayed(before, k_c), reach)
        u = select_matmul(T, v_c, reach) - select_matmul(w, S, reach @ ~np.isneginf(before))
        s, seen = decayed_products(q_c, share_heads(k_c, Ho), share_heads(g_c, Ho))
        before = share_heads(before, Ho)
        old = select_matmul(decayed(before, q_c), share_heads(S, Ho), ~np.isneginf(before))
        o[..., c, :] = old + select_matmul(s, share_heads(u, Ho), seen)
        new = select_matmul(decayed(after, k_c.swapaxes(-1, -2)), u, ~np.isneginf(after))
        S = decayed(sum_of(g_c, axis=-2)[..., None], S) + new
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("kda_vjp", log_decay="HTD", beta="HT"))
def kda_vjp(
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
    r"""Return the gradients of `kda`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        du_t = dS_t^T k_t, \quad dk_t = dS_t u_t - \beta_t S' du_t, \quad dv_t = \beta_t du_t, \quad
        d\beta_t = du_t \cdot (v_t - S'^T k_t), \\ dS' = dS_t - \beta_t k_t du_t^T, \quad
        dg_t = \sum_{\text{values}} dS' \odot S', \quad dS_{t-1} = \text{diag}(e^{g_t}) dS'

    Each step first adds scale · q doᵀ to dS, and dq = scale · S do.

    Parameters
    ----------
    do, q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, dstate, backend
        As in `kda` and `delta_rule_vjp`.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dlog_decay, dbeta, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `kda`, and for `do` or `dstate` of another shape.

    Examples
    --------
    Both rows of the state are read; one counts half by then:

    >>> two, one = np.ones((2, 2)), np.ones((2, 1))
    >>> g, beta = np.log([[1.0, 1.0], [0.5, 1.0]]), np.array([1.0, 0.0])
    >>> kda_vjp(one, two, two, one, g, beta, scale=1.0).dlog_decay[1]
    array([0.5, 1. ])
    """
    if cu_seqlens is not None:
        call, given = partial(kda_vjp, scale=scale), {"initial_state": initial_state, "dstate": dstate}
        tokens = [(do, -2), (q, -2), (k, -2), (v, -2), (log_decay, -2), (beta, -1)]
        return by_sequence(call, cu_seqlens, tokens, given, dlog_decay=-2, dbeta=-1)
    dtype, H, Hk, Hv, T = compute_dtype(q.dtype), heads_of(q), heads_of(k), heads_of(v), q.shape[-2]
    Ho, size = max(H, Hv), scale_of(q, scale)
    g, b, v_, do_ = (x.astype(dtype) for x in (log_decay, beta[..., None], v, do))
    q_, k_ = share_heads(q.astype(dtype), Ho), share_heads(k.astype(dtype), Hv)
    states = [first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)]  # before each token
    miss = np.empty_like(v_)  # v - S'ᵀ k, where S' = diag(e^g) S
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
        dg[..., t, :] = np.where(np.isneginf(g[..., t, :, None]), 0, dS * kept).sum(axis=-1)  # was: S' = diag(e^g) S
        dS = decayed(g[..., t, :, None], dS)
    dq, dk = sum_heads(dq, H).astype(q.dtype), sum_heads(dk, Hk).astype(k.dtype)
    dg, db = dg.astype(log_decay.dtype), db.astype(beta.dtype)
    dinitial = None if initial_state is None else dS.astype(initial_state.dtype)
    return RecurrentGradients(dq, dk, dv.astype(v.dtype), dg, db, dinitial)
