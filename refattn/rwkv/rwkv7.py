r"""RWKV-7: the state decays row by row, and what one direction of the keys holds is replaced in part.

Peng et al., 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv:2503.14456, section 4.1 (the
recurrence); the triangular system is that of Yang et al., 2024, arXiv:2406.06484, with other factors.

| here | paper |
|---|---|
| S (D, Dv) and e^{log_decay} | wkv, which is (Dv, D), and w |
| kappa_hat, or κ | κ̂, the removal key, of length 1 |
| a, k | a, the in-context learning rate, and k̃, the replacement key |
| c | Sᵀ κ, what is removed, a times |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import by_sequence, decayed, first_state, outer, sum_of, sums_after, sums_through
from refattn.linear.triangular import decayed_products, solve_lower
from refattn.results import Recurrent, Rwkv7Gradients
from refattn.rwkv.common import check_rwkv, products_before, sums_before


@dispatched(check_rwkv("rwkv7", log_decay="HTD", kappa_hat="HTD", a="HTD"))
def rwkv7(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Read all tokens at once, of each what it wrote less what it removed, as it has decayed since.

    .. math::
        o_i = \text{scale} \sum_{j \le i} (r_i \odot e^{G_{ij}}) \cdot k_j\; v_j
        - (r_i \odot e^{G_{ij}}) \cdot (a_j \odot \kappa_j)\; c_j, \qquad G_{ij} = \sum_{j < s \le i} g_s

    What token i removes depends on what those before it wrote and removed: a triangular system,

    .. math::
        c_i = \sum_{j < i} (\kappa_i \odot e^{G_{i-1,j}}) \cdot k_j\; v_j
        - (\kappa_i \odot e^{G_{i-1,j}}) \cdot (a_j \odot \kappa_j)\; c_j

    `rwkv7_recurrent` says the same a token at a time, and `rwkv7_chunked` in time and memory linear in T.

    Parameters
    ----------
    r, k : array, (..., H, T, D)
        Receptances, which read, and keys that are written to; a matrix is one head.
    v : array, (..., H, T, Dv)
        Values.
    log_decay : array, (..., H, T, D)
        Natural logs g <= 0 of the decays, in the dtype of r or that of computation.
    kappa_hat : array, (..., H, T, D)
        Directions that are removed from, of length 1 where the state is to stay bounded.
    a : array, (..., H, T, D)
        How much of it is removed, 0 to 1, in the dtype of r or that of computation.
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
    The second token replaces what the first wrote under their key, the third removes half of it:

    >>> ones = np.ones((3, 1))
    >>> k, a = np.array([[1.0], [1.0], [0.0]]), np.array([[1.0], [1.0], [0.5]])
    >>> rwkv7(ones, k, np.array([[4.0], [6.0], [9.0]]), 0 * ones, ones, a).o[:, 0]
    array([4., 6., 3.])
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv7, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay, kappa_hat, a)], states)
    dtype = compute_dtype(r.dtype)
    S = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)
    r_, k_, v_, g, kappa, a_ = (x.astype(dtype) for x in (r, k, v, log_decay, kappa_hat, a))
    r_, b = r_ * dtype.type(scale), a_ * kappa
    (A, seen), (written, _), before = products_before(kappa, b, g), products_before(kappa, k_, g), sums_before(g)
    held = select_matmul(decayed(before, kappa), S, ~np.isneginf(before))
    c = solve_lower(A, select_matmul(written, v_, seen) + held, seen)  # (I + A) c = what was written
    (s_k, seen), (s_b, _) = decayed_products(r_, k_, g), decayed_products(r_, b, g)
    through, after = sums_through(g, axis=-2), sums_after(g.swapaxes(-1, -2))
    o = select_matmul(s_k, v_, seen) - select_matmul(s_b, c, seen)
    o = o + select_matmul(decayed(through, r_), S, ~np.isneginf(through))
    kept = ~np.isneginf(after)  # (..., H, D, T)
    new = select_matmul(decayed(after, k_.swapaxes(-1, -2)), v_, kept)
    new = new - select_matmul(decayed(after, b.swapaxes(-1, -2)), c, kept)
    return Recurrent(o.astype(r.dtype), decayed(sum_of(g, axis=-2)[..., None], S) + new)


@dispatched(check_rwkv("rwkv7_recurrent", log_decay="HTD", kappa_hat="HTD", a="HTD"))
def rwkv7_recurrent(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`rwkv7` a token at a time: what is kept between tokens is the state.

    .. math::
        S_t = \text{diag}(e^{g_t}) S_{t-1} - (a_t \odot \kappa_t) (S_{t-1}^T \kappa_t)^T + k_t v_t^T, \qquad
        o_t = \text{scale} \cdot S_t^T r_t

    Parameters
    ----------
    r, k, v, log_decay, kappa_hat, a, scale, initial_state, cu_seqlens, backend
        As in `rwkv7`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `rwkv7`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv7`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> rwkv7_recurrent(one, one, 5 * one, 0 * one, one, 0.25 * one, initial_state=8 * one)
    Recurrent(o=array([[11.]]), state=array([[11.]]))
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv7_recurrent, scale=scale), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay, kappa_hat, a)], states)
    dtype = compute_dtype(r.dtype)
    S = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)
    r_, k_, v_, g, kappa, a_ = (x.astype(dtype) for x in (r, k, v, log_decay, kappa_hat, a))
    r_, b = r_ * dtype.type(scale), a_ * kappa
    o = np.empty(v.shape, dtype)
    for t in range(r.shape[-2]):
        c = (kappa[..., t, None, :] @ S)[..., 0, :]  # c = Sᵀ κ
        S = decayed(g[..., t, :, None], S) - outer(b[..., t, :], c)  # S = diag(e^g) S - (a ⊙ κ) cᵀ
        S = S + outer(k_[..., t, :], v_[..., t, :])  # + k vᵀ
        o[..., t, :] = (r_[..., t, None, :] @ S)[..., 0, :]  # o = Sᵀ r
    return Recurrent(o.astype(r.dtype), S)


@dispatched(check_rwkv("rwkv7_chunked", log_decay="HTD", kappa_hat="HTD", a="HTD"))
def rwkv7_chunked(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`rwkv7` in chunks: one triangular system for each, the state from one chunk to the next.

    Parameters
    ----------
    r, k, v, log_decay, kappa_hat, a, scale, initial_state, cu_seqlens, backend
        As in `rwkv7`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `rwkv7`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv7`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> rwkv7_chunked(ones, ones, 4 * ones, 0 * ones, ones, 0.5 * ones, chunk=2).o[:, 0]
    array([4., 6., 7.])
    """
    if cu_seqlens is not None:
        call, states = partial(rwkv7_chunked, scale=scale, chunk=chunk), {"initial_state": initial_state}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, log_decay, kappa_hat, a)], states)
    state = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), compute_dtype(r.dtype))
    o = np.empty(v.shape, r.dtype)
    for t in (slice(first, first + chunk) for first in range(0, r.shape[-2], chunk)):
        within = (x[..., t, :] for x in (r, k, v, log_decay, kappa_hat, a))
        o[..., t, :], state = rwkv7(*within, scale=scale, initial_state=state)
    return Recurrent(o, state)


@dispatched(check_rwkv("rwkv7_vjp", log_decay="HTD", kappa_hat="HTD", a="HTD"))
def rwkv7_vjp(
    do: Array,
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> Rwkv7Gradients:
    r"""Return the gradients of `rwkv7`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        db_t = -dS_t\, c_t, \quad dc_t = -dS_t^T b_t, \quad d\kappa_t = a_t \odot db_t + S_{t-1}\, dc_t, \quad
        dS_{t-1} = \text{diag}(e^{g_t}) dS_t + \kappa_t\, dc_t^T, \quad b = a \odot \kappa

    Parameters
    ----------
    do : array, (..., H, T, Dv)
        Gradient of o.
    r, k, v, log_decay, kappa_hat, a, scale, initial_state, cu_seqlens, backend
        As in `rwkv7`.
    dstate : array, (..., H, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    Rwkv7Gradients
        dr, dk, dv, dlog_decay, dkappa_hat, da, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `rwkv7`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones, a = np.ones((2, 1)), np.array([[0.0], [1.0]])
    >>> rwkv7_vjp(ones, ones, ones, ones, 0 * ones, ones, a).dv[:, 0]
    array([1., 1.])
    """
    every = (r, k, v, log_decay, kappa_hat, a)
    if cu_seqlens is not None:
        call, given = partial(rwkv7_vjp, scale=scale), {"initial_state": initial_state, "dstate": dstate}
        axes = {"dr": -2, "dlog_decay": -2, "dkappa_hat": -2, "da": -2}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (do, *every)], given, **axes)
    dtype, T = compute_dtype(r.dtype), r.shape[-2]
    r_, k_, v_, g, kappa, a_ = (x.astype(dtype) for x in every)
    d, b = do.astype(dtype) * dtype.type(scale), a_ * kappa
    states = [first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)]  # before each token
    c = np.empty_like(v_)
    for t in range(T):
        c[..., t, :] = (kappa[..., t, None, :] @ states[t])[..., 0, :]
        S = decayed(g[..., t, :, None], states[t]) - outer(b[..., t, :], c[..., t, :])
        states.append(S + outer(k_[..., t, :], v_[..., t, :]))
    dS = first_state(dstate, states[0].shape, dtype)
    dr, dk, dv, dg, dkappa, da = (np.empty_like(x) for x in (r_, k_, v_, g, kappa, a_))
    for t in reversed(range(T)):
        dr[..., t, :] = (states[t + 1] @ d[..., t, :, None])[..., 0]  # was: o = scale Sᵀ r
        dS = dS + outer(r_[..., t, :], d[..., t, :])
        dk[..., t, :] = (dS @ v_[..., t, :, None])[..., 0]  # was: S = diag(e^g) S - b cᵀ + k vᵀ
        dv[..., t, :] = (k_[..., t, None, :] @ dS)[..., 0, :]
        db, dc = -(dS @ c[..., t, :, None])[..., 0], -(b[..., t, None, :] @ dS)[..., 0, :]
        dg[..., t, :] = decayed(g[..., t, :], (dS * states[t]).sum(axis=-1))
        da[..., t, :] = db * kappa[..., t, :]  # was: b = a ⊙ κ
        dkappa[..., t, :] = db * a_[..., t, :] + (states[t] @ dc[..., None])[..., 0]  # was: c = Sᵀ κ
        dS = decayed(g[..., t, :, None], dS) + outer(kappa[..., t, :], dc)
    grads = (dr, dk, dv, dg, dkappa, da)
    dr, dk, dv, dg, dkappa, da = (y.astype(x.dtype) for y, x in zip(grads, every, strict=True))
    return Rwkv7Gradients(dr, dk, dv, dg, dkappa, da, None if initial_state is None else dS.astype(initial_state.dtype))
