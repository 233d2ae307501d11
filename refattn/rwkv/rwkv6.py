r"""RWKV-6: each row of the state decays at a rate that depends on the token, which is read before it is written.

Peng et al., 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv:2404.05892, equations
for wkv in section 4.2.

| here | paper |
|---|---|
| r, k, v (..., H, T, D) | r_t, k_t, v_t of one head |
| e^{log_decay} | w_t, with log_decay = -e^{d_t} |
| u (H, D) | u, the bonus of the present token |
| S (D, Dv) | s (D, D); the paper's k_tᵀ v_t with rows |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import by_sequence, decayed, first_state, outer, sum_of, sums_after
from refattn.results import Recurrent, RwkvGradients
from refattn.rwkv.common import check_rwkv, of_heads, products_before, sums_before


@dispatched(check_rwkv("rwkv6", log_decay="HTD", u="HD"))
def rwkv6(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Read all tokens at once: those before through what their rows have decayed since, the token itself by its bonus.

    .. math::
        o_i = \text{scale} \Big( \sum_{j < i} (r_i \odot e^{G_{i-1,j}}) \cdot k_j\; v_j + r_i \cdot (u \odot k_i)\; v_i
        \Big), \qquad G_{ij} = \sum_{j < s \le i} g_s

    The matrix is summed up one dimension of the keys at a time, (T, T) each; `rwkv6_recurrent` says the same a token at
    a time, and `rwkv6_chunked` in time and memory linear in T.

    Parameters
    ----------
    r, k : array, (..., H, T, D)
        Receptances, which read, and keys; a matrix is one head.
    v : array, (..., H, T, Dv)
        Values.
    log_decay : array, (..., H, T, D)
        Natural logs g <= 0 of the decays, in the dtype of r or that of computation; -inf forgets what the state holds
        in this row.
    u : array, (H, D)
        Bonus of the present token, in the dtype of r or that of computation.
    scale : float
        1 unless given.
    initial_state : array, (..., H, D, Dv), optional
        The state before the first token, zeros unless given; (N, H, D, Dv) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., H, T, Dv) in the dtype of r; and the state after the last token, shaped as `initial_state`, in the dtype
        of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    A token sees itself with the bonus 5; what came before halves from then on:

    >>> ones = np.ones((3, 1))
    >>> o, state = rwkv6(ones, ones, ones, np.log(0.5 * ones), np.array([[5.0]]))
    >>> o[:, 0], state
    (array([5. , 6. , 6.5]), array([[1.75]]))
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv6, u=u, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay)], states)
    dtype = compute_dtype(r.dtype)
    S = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)
    r_, k_, v_, g = (x.astype(dtype) for x in (r, k, v, log_decay))
    r_, u_ = r_ * dtype.type(scale), of_heads(u.astype(dtype), r)
    s, seen = products_before(r_, k_, g)
    own = (r_ * u_ * k_).sum(axis=-1, keepdims=True)  # r_i · (u ⊙ k_i)
    before, after = sums_before(g), sums_after(g.swapaxes(-1, -2))  # (..., H, T, D), (..., H, D, T)
    o = select_matmul(s, v_, seen) + own * v_ + select_matmul(decayed(before, r_), S, ~np.isneginf(before))
    new = select_matmul(decayed(after, k_.swapaxes(-1, -2)), v_, ~np.isneginf(after))
    return Recurrent(o.astype(r.dtype), decayed(sum_of(g, axis=-2)[..., None], S) + new)


@dispatched(check_rwkv("rwkv6_recurrent", log_decay="HTD", u="HD"))
def rwkv6_recurrent(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`rwkv6` a token at a time: what is kept between tokens is the state.

    .. math::
        o_t = \text{scale} \cdot (S_{t-1} + (u \odot k_t) v_t^T)^T r_t, \qquad
        S_t = \text{diag}(e^{g_t}) S_{t-1} + k_t v_t^T

    Parameters
    ----------
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv6`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `rwkv6`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv6`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = rwkv6_recurrent(one, one, 8 * one, 0 * one, one)
    >>> rwkv6_recurrent(one, one, one, np.log(0.5 * one), one, initial_state=state)
    Recurrent(o=array([[9.]]), state=array([[5.]]))
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv6_recurrent, u=u, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay)], states)
    dtype = compute_dtype(r.dtype)
    S = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)
    r_, k_, v_, g = (x.astype(dtype) for x in (r, k, v, log_decay))
    r_, bonus = r_ * dtype.type(scale), of_heads(u.astype(dtype), r) * k_
    o = np.empty(v.shape, dtype)
    for t in range(r.shape[-2]):
        own = outer(bonus[..., t, :], v_[..., t, :])
        o[..., t, :] = (r_[..., t, None, :] @ (S + own))[..., 0, :]  # o = (S + (u ⊙ k) vᵀ)ᵀ r
        S = decayed(g[..., t, :, None], S) + outer(k_[..., t, :], v_[..., t, :])  # S = diag(e^g) S + k vᵀ
    return Recurrent(o.astype(r.dtype), S)


@dispatched(check_rwkv("rwkv6_chunked", log_decay="HTD", u="HD"))
def rwkv6_chunked(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`rwkv6` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv6`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `rwkv6`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv6`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> rwkv6_chunked(ones, ones, ones, np.log(0.5 * ones), np.array([[5.0]]), chunk=2).o[:, 0]
    array([5. , 6. , 6.5])
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv6_chunked, u=u, scale=scale, chunk=chunk), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay)], states)
    state = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), compute_dtype(r.dtype))
    o = np.empty(v.shape, r.dtype)
    for first in range(0, r.shape[-2], chunk):
        t = slice(first, first + chunk)
        within = r[..., t, :], k[..., t, :], v[..., t, :], log_decay[..., t, :]
        o[..., t, :], state = rwkv6(*within, u, scale=scale, initial_state=state)
    return Recurrent(o, state)


@dispatched(check_rwkv("rwkv6_vjp", log_decay="HTD", u="HD"))
def rwkv6_vjp(
    do: Array,
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> RwkvGradients:
    r"""Return the gradients of `rwkv6`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        dr_t = S_{t-1} d_t + (v_t \cdot d_t)\, u \odot k_t, \quad
        dk_t = dS_t v_t + (v_t \cdot d_t)\, u \odot r_t, \quad
        dS_{t-1} = \text{diag}(e^{g_t}) dS_t + r_t d_t^T, \quad d_t = \text{scale} \cdot do_t

    Parameters
    ----------
    do : array, (..., H, T, Dv)
        Gradient of o.
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv6`.
    dstate : array, (..., H, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RwkvGradients
        dr, dk, dv, dlog_decay, du, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `rwkv6`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> rwkv6_vjp(ones, ones, ones, ones, 0 * ones, np.array([[5.0]])).dk[:, 0]  # by the bonus, and by those behind
    array([7., 6., 5.])
    """
    if cu_seqlens is not None:
        call = partial(_u_last, scale=scale, u=u.astype(compute_dtype(u.dtype)))  # added up before it is rounded
        given, tokens = {"initial_state": initial_state, "dstate": dstate}, [(x, -2) for x in (do, r, k, v, log_decay)]
        found = by_sequence(call, cu_seqlens, tokens, given, dr=-2, dlog_decay=-2, du="sum")
        return found._replace(du=found.du.astype(u.dtype))
    dtype, T = compute_dtype(r.dtype), r.shape[-2]
    r_, k_, v_, g = (x.astype(dtype) for x in (r, k, v, log_decay))
    d, u_ = do.astype(dtype) * dtype.type(scale), of_heads(u.astype(dtype), r)
    states = [first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)]  # before each token
    for t in range(T):
        states.append(decayed(g[..., t, :, None], states[t]) + outer(k_[..., t, :], v_[..., t, :]))
    dS = first_state(dstate, states[0].shape, dtype)
    dr, dk, dv, dg = (np.empty_like(x) for x in (r_, k_, v_, g))
    for t in reversed(range(T)):
        dk[..., t, :] = (dS @ v_[..., t, :, None])[..., 0]  # was: S = diag(e^g) S + k vᵀ
        dv[..., t, :] = (k_[..., t, None, :] @ dS)[..., 0, :]
        dg[..., t, :] = decayed(g[..., t, :], (dS * states[t]).sum(axis=-1))
        dr[..., t, :] = (states[t] @ d[..., t, :, None])[..., 0]  # was: o = scale (S + (u ⊙ k) vᵀ)ᵀ r
        dS = decayed(g[..., t, :, None], dS) + outer(r_[..., t, :], d[..., t, :])
    own = (v_ * d).sum(axis=-1, keepdims=True)  # v · d
    dv += (r_ * u_ * k_).sum(axis=-1, keepdims=True) * d
    dr, dk, du = dr + own * u_ * k_, dk + own * u_ * r_, own * r_ * k_
    du = du.sum(axis=-2).reshape(-1, *u.shape).sum(axis=0)
    grads = (dr, dk, dv, dg, du)
    dr, dk, dv, dg, du = (y.astype(x.dtype) for y, x in zip(grads, (r, k, v, log_decay, u), strict=True))
    return RwkvGradients(dr, dk, dv, dg, du, None if initial_state is None else dS.astype(initial_state.dtype))


def _u_last(do: Array, r: Array, k: Array, v: Array, g: Array, *, u: Array, **given: Any) -> RwkvGradients:
    return rwkv6_vjp(do, r, k, v, g, u, **given)
