r"""The delta rule: a memory of keys and values in which a write replaces what its key held before.

Schlag, Irie and Schmidhuber, 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv:2102.11174,
section 4.2; Yang et al., 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
arXiv:2406.06484, equations 8 to 11 (the chunked form; T is their UT transform).

| here | paper |
|---|---|
| S (D, Dv) | Sᵀ: the papers write states as (Dv, D) |
| u | the values that are written, β (v - Sᵀ k); within a chunk T v - w S, the papers' U - W Sᵀ |
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
    first_state,
    heads_of,
    outer,
    scale_of,
    share_heads,
    sum_heads,
)
from refattn.linear.triangular import solve_lower
from refattn.results import Recurrent, RecurrentGradients


@dispatched(check_of("delta_rule", beta="HT"))
def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Read from a memory in which each token replaces, by the share beta, the value that its key holds.

    .. math::
        o_i = \text{scale} \Big( S_0^T q_i + \sum_{j \le i} (q_i \cdot k_j)\, u_j \Big), \qquad
        u_i + \beta_i \sum_{j < i} (k_i \cdot k_j)\, u_j = \beta_i (v_i - S_0^T k_i)

    The right equation is a triangular system for what the tokens write. This form makes matrices (T, T);
    `delta_rule_recurrent` says the same a token at a time, `delta_rule_chunked` in time and memory linear in T.

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys, as they are: whoever wants them of length 1 divides them by their lengths first.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    beta : array, (..., Hv, T)
        Shares of a value that are replaced, usually in [0, 1], in the dtype of q or that of computation.
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
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the last state, shaped as the first, in
        the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    The same key is written three times: the value is replaced, kept, and replaced by half.

    >>> ones = np.ones((3, 1))
    >>> delta_rule(ones, ones, np.array([[2.0], [8.0], [4.0]]), np.array([1.0, 0.0, 0.5])).o[:, 0]
    array([2., 2., 3.])
    """
    if cu_seqlens is not None:
        call = partial(delta_rule, scale=scale)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (beta, -1)], {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    b, v_ = beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    seen = np.tri(q.shape[-2], dtype=bool)
    u = solve_lower(b * (k_ @ k_.swapaxes(-1, -2)), b * (v_ - k_ @ S), seen)  # (..., Hv, T, Dv)
    s = np.where(seen, q_ @ share_heads(k_, Ho).swapaxes(-1, -2), 0)  # (..., Ho, T, T)
    o = q_ @ share_heads(S, Ho) + select_matmul(s, share_heads(u, Ho), seen)
    return Recurrent(o.astype(q.dtype), S + k_.swapaxes(-1, -2) @ u)


@dispatched(check_of("delta_rule_recurrent", beta="HT"))
def delta_rule_recurrent(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`delta_rule` a token at a time: what is kept between tokens is the state.

    .. math::
        u_t = \beta_t (v_t - S_{t-1}^T k_t), \qquad S_t = S_{t-1} + k_t u_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, beta, scale, initial_state, cu_seqlens, backend
        As in `delta_rule`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `delta_rule`.

    Raises
    ------
    TypeError, ValueError
        As `delta_rule`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = delta_rule_recurrent(one, one, 8 * one, np.ones(1))
    >>> delta_rule_recurrent(one, one, 4 * one, np.array([0.5]), initial_state=state).o
    array([[6.]])
    """
    if cu_seqlens is not None:
        call = partial(delta_rule_recurrent, scale=scale)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (beta, -1)], {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    b, v_ = beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        held = (k_[..., t, None, :] @ S)[..., 0, :]  # Sᵀ k
        S = S + outer(k_[..., t, :], b[..., t, :] * (v_[..., t, :] - held))  # S = S + k (β (v - Sᵀ k))ᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("delta_rule_chunked", beta="HT"))
def delta_rule_chunked(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`delta_rule` in chunks: one triangular inverse T within a chunk, the state from one chunk to the next.

    .. math::
        T = (I + \text{tril}(\text{diag}(\beta) K K^T, -1))^{-1} \text{diag}(\beta), \qquad w = T K, \qquad
        u = T V - w S

    Parameters
    ----------
    q, k, v, beta, scale, initial_state, cu_seqlens, backend
        As in `delta_rule`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `delta_rule`.

    Raises
    ------
    TypeError, ValueError
        As `delta_rule`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> delta_rule_chunked(ones, ones, np.array([[2.0], [8.0], [4.0]]), np.array([1.0, 0.0, 0.5]), chunk=2).o[:, 0]
    array([2., 2., 3.])
    """
    if cu_seqlens is not None:
        call = partial(delta_rule_chunked, scale=scale, chunk=chunk)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2), (beta, -1)], {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    b, v_ = beta.astype(dtype)[..., None], v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for first in range(0, q.shape[-2], chunk):
        c = slice(first, first + chunk)
        q_c, k_c, v_c, b_c = (x[..., c, :] for x in (q_, k_, v_, b))
        seen = np.tri(b_c.shape[-2], dtype=bool)
        diagonal = np.where(np.eye(len(seen), dtype=bool), b_c, 0)
        T = solve_lower(b_c * (k_c @ k_c.swapaxes(-1, -2)), diagonal, seen)  # (I + tril(diag(β) K Kᵀ, -1))⁻¹ diag(β)
        w = select_matmul(T, k_c, seen)
        u = select_matmul(T, v_c, seen) - w @ S
        s = np.where(seen, q_c @ share_heads(k_c, Ho).swapaxes(-1, -2), 0)
        o[..., c, :] = q_c @ share_heads(S, Ho) + select_matmul(s, share_heads(u, Ho), seen)
        S = S + k_c.swapaxes(-1, -2) @ u  # S = S + Kᵀ u
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("delta_rule_vjp", beta="HT"))
def delta_rule_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `delta_rule`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        du_t = dS_t^T k_t, \quad dk_t = dS_t u_t - \beta_t S_{t-1} du_t, \quad dv_t = \beta_t du_t, \quad
        d\beta_t = du_t \cdot (v_t - S_{t-1}^T k_t), \quad dS_{t-1} = dS_t - \beta_t k_t du_t^T

    Each step first adds scale · q doᵀ to dS, and dq = scale · S do.

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, beta, scale, initial_state, cu_seqlens, backend
        As in `delta_rule`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dbeta, and dinitial_state if that was given; dlog_decay is None.

    Raises
    ------
    TypeError, ValueError
        As `delta_rule`, and for `do` or `dstate` of another shape.

    Examples
    --------
    A value that is replaced, by half and then as a whole, matters until then:

    >>> ones = np.ones((3, 1))
    >>> delta_rule_vjp(ones, ones, ones, ones, np.array([1.0, 0.5, 1.0])).dv[:, 0]
    array([1.5, 0.5, 1. ])
    """
    if cu_seqlens is not None:
        call = partial(delta_rule_vjp, scale=scale)
        tokens = [(do, -2), (q, -2), (k, -2), (v, -2), (beta, -1)]
        return by_sequence(call, cu_seqlens, tokens, {"initial_state": initial_state, "dstate": dstate}, dbeta=-1)
    dtype, H, Hk, Hv, T = compute_dtype(q.dtype), heads_of(q), heads_of(k), heads_of(v), q.shape[-2]
    Ho, size = max(H, Hv), scale_of(q, scale)
    b, v_, do_ = beta.astype(dtype)[..., None], v.astype(dtype), do.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype), Ho), share_heads(k.astype(dtype), Hv)
    states = [first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)]  # before each token
    miss = np.empty_like(v_)  # v - Sᵀ k
    for t in range(T):
        miss[..., t, :] = v_[..., t, :] - (k_[..., t, None, :] @ states[t])[..., 0, :]
        states.append(states[t] + outer(k_[..., t, :], b[..., t, :] * miss[..., t, :]))
    dq, dk, dv, db = np.empty_like(q_), np.empty_like(k_), np.empty_like(v_), np.empty(beta.shape, dtype)
    dS = first_state(dstate, states[0].shape, dtype)
    for t in reversed(range(T)):
        dq[..., t, :] = size * (share_heads(states[t + 1], Ho) @ do_[..., t, :, None])[..., 0]  # was: o = scale Sᵀ q
        dS = dS + sum_heads(outer(size * q_[..., t, :], do_[..., t, :]), Hv)
        du = (k_[..., t, None, :] @ dS)[..., 0, :]  # was: S = S + k uᵀ
        dv[..., t, :] = b[..., t, :] * du  # was: u = β (v - Sᵀ k)
        db[..., t] = (du * miss[..., t, :]).sum(axis=-1)
        dk[..., t, :] = (dS @ (b * miss)[..., t, :, None] - states[t] @ dv[..., t, :, None])[..., 0]
        dS = dS - outer(k_[..., t, :], dv[..., t, :])
    dq, dk = sum_heads(dq, H).astype(q.dtype), sum_heads(dk, Hk).astype(k.dtype)
    dinitial = None if initial_state is None else dS.astype(initial_state.dtype)
    return RecurrentGradients(dq, dk, dv.astype(v.dtype), None, db.astype(beta.dtype), dinitial)
