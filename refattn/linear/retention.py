r"""Retention: linear attention in which each head forgets at a constant rate γ.

Sun et al., 2023, "Retentive Network: A Successor to Transformer for Large Language Models", arXiv:2307.08621: eq. 5
(the parallel form), eq. 6 (the recurrence), eq. 7 (chunks), eq. 8 (γ per head). Rotation, norm and gate stand outside.

| here | paper |
|---|---|
| S (D, Dv) | S_n, R_i |
| e^{log_decay} | γ |
| e^{G} | the matrix D of eq. 5 |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, compute_dtype
from refattn.dense.common import per_head, select_matmul
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
)
from refattn.linear.simple_gla import simple_gla_vjp
from refattn.results import Recurrent, RecurrentGradients


def retention_log_decay(heads: int) -> Array:
    """Return log γ of each head as the paper has it, log(1 - 2^(-5 - h)), float64 (H,).

    Parameters
    ----------
    heads : int
        H.

    Returns
    -------
    array, (H,)
        Negative numbers. The operations want them in the dtype of q or that of computation.

    Raises
    ------
    TypeError, ValueError
        If `heads` is not a positive integer.

    Examples
    --------
    >>> np.exp(retention_log_decay(3))
    array([0.96875  , 0.984375 , 0.9921875])
    """
    check_count("retention_log_decay", "heads", heads)
    return np.log1p(-(2.0 ** (-5.0 - np.arange(heads))))


def log_powers(log_decay: Array, n: Array, ndim: int) -> Array:
    """Return log γ^n, n log γ, (Hv, ...) or for one head that is a matrix (...): 0 for n = 0 and -inf for n < 0.

    Parameters
    ----------
    log_decay : array, (Hv,)
    n : array of int, two axes
        How many tokens lie between.
    ndim : int
        Axes of q, k and v.
    """
    g = per_head(log_decay, ndim)
    return np.where(n > 0, n.astype(g.dtype) * g, np.where(n == 0, 0, -np.inf).astype(g.dtype))


@dispatched(check_of("retention", log_decay="H"))
def retention(
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
    r"""Attend with weights that shrink by γ = e^{log_decay} for each token in between, all pairs at once.

    .. math::
        o_i = \text{scale} \sum_{j \le i} \gamma^{i-j} (q_i \cdot k_j)\, v_j

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    log_decay : array, (Hv,)
        log γ <= 0 of each value head, in the dtype of q or that of computation; -inf sees its own token only.
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
    >>> ones = np.ones((3, 1))
    >>> retention(ones, ones, ones, np.log([0.5])).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    if cu_seqlens is not None:
        call = partial(retention, log_decay=log_decay, scale=scale)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    dtype, Hv, Ho, T = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v)), q.shape[-2]
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_, n = log_decay.astype(dtype), v.astype(dtype), np.arange(T)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    G = share_heads(log_powers(g, n[:, None] - n, v.ndim), Ho)  # (Ho, T, T)
    s = decayed(G, q_ @ share_heads(k_, Ho).swapaxes(-1, -2))  # γ^(i-j) q_i · k_j
    o = select_matmul(s, share_heads(v_, Ho), ~np.isneginf(G))
    before = share_heads(log_powers(g, n[:, None] + 1, v.ndim), Ho)
    o = o + decayed(before, q_ @ share_heads(state, Ho))  # γ^(i+1) Sᵀ q_i
    after = log_powers(g, T - 1 - n[None], v.ndim)  # (Hv, 1, T)
    new = select_matmul(decayed(after, k_.swapaxes(-1, -2)), v_, ~np.isneginf(after))  # Σ γ^(T-1-j) k_j v_jᵀ
    state = decayed(log_powers(g, np.full((1, 1), T), v.ndim), state) + new
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_of("retention_recurrent", log_decay="H"))
def retention_recurrent(
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
    r"""`retention` a token at a time.

    .. math:: S_t = \gamma S_{t-1} + k_t v_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `retention`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `retention`.

    Raises
    ------
    TypeError, ValueError
        As `retention`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> retention_recurrent(one, one, one, np.log([0.25]), initial_state=8 * one).o
    array([[3.]])
    """
    if cu_seqlens is not None:
        call = partial(retention_recurrent, log_decay=log_decay, scale=scale)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = per_head(log_decay.astype(dtype), v.ndim), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for t in range(q.shape[-2]):
        S = decayed(g, S) + outer(k_[..., t, :], v_[..., t, :])  # S = γ S + k vᵀ
        o[..., t, :] = (q_[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ q
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("retention_chunked", log_decay="H"))
def retention_chunked(
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
    r"""`retention` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `retention`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `retention`.

    Raises
    ------
    TypeError, ValueError
        As `retention`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> retention_chunked(ones, ones, ones, np.log([0.5]), chunk=2).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    if cu_seqlens is not None:
        call = partial(retention_chunked, log_decay=log_decay, scale=scale, chunk=chunk)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), compute_dtype(q.dtype))
    o = np.empty((*(q if heads_of(q) > heads_of(v) else v).shape[:-1], v.shape[-1]), q.dtype)
    for c in range(0, q.shape[-2], chunk):
        t = slice(c, c + chunk)
        within = q[..., t, :], k[..., t, :], v[..., t, :], log_decay
        o[..., t, :], state = retention(*within, scale=scale, initial_state=state)
    return Recurrent(o, state)


@dispatched(check_of("retention_vjp", log_decay="H"))
def retention_vjp(
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
    r"""Return the gradients of `retention`: those of `simple_gla` with the same decay at every token.

    .. math:: d \log \gamma = \sum_t dg_t

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `retention`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        dq, dk, dv, dlog_decay (Hv,), added up over tokens and batch, and dinitial_state if that was given; dbeta is
        None. A decay of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `retention`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> retention_vjp(ones, ones, ones, ones, np.log([0.5])).dk[:, 0]
    array([1.75, 1.5 , 1.  ])
    """
    steps = np.broadcast_to(per_head(log_decay.astype(compute_dtype(q.dtype)), v.ndim)[..., 0], v.shape[:-1])
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    g = simple_gla_vjp(do, q, k, v, steps, **options, dstate=dstate)
    each = np.asarray(g.dlog_decay).sum(axis=-1).reshape(-1, heads_of(v))  # (batch, Hv)
    return g._replace(dlog_decay=each.sum(axis=0).astype(log_decay.dtype))
