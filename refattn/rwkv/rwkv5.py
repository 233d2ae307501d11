r"""RWKV-5: each row of the state decays at its own constant rate; a token is read with a bonus before it is written.

Peng et al., 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv:2404.05892, section
4.1 (Eagle). It is `refattn.rwkv6` with the same gates at every token.

| here | paper |
|---|---|
| r, k, v (..., H, T, D) | r_t, k_t, v_t of one head |
| e^{log_decay} (H, D) | w = e^{-e^ω} |
| u (H, D) | u, the bonus of the present token |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import by_sequence, decayed, first_state, outer
from refattn.results import Recurrent, RwkvGradients
from refattn.rwkv.common import check_rwkv, of_heads
from refattn.rwkv.rwkv6 import rwkv6, rwkv6_chunked, rwkv6_vjp


def each_token(log_decay: Array, r: Array) -> Array:
    """Repeat the gates (H, D) at every token, (..., H, T, D)."""
    return np.broadcast_to(of_heads(log_decay, r), r.shape)


@dispatched(check_rwkv("rwkv5", log_decay="HD", u="HD"))
def rwkv5(
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
    r"""Read all tokens at once: those before as their rows have decayed since, the token itself by its bonus.

    .. math::
        o_i = \text{scale} \Big(
        \sum_{j < i} (r_i \odot e^{(i - 1 - j) g}) \cdot k_j\; v_j + r_i \cdot (u \odot k_i)\; v_i \Big)

    Parameters
    ----------
    r, k : array, (..., H, T, D)
        Receptances, which read, and keys; a matrix is one head.
    v : array, (..., H, T, Dv)
        Values.
    log_decay : array, (H, D)
        Natural logs g <= 0 of the decays, in the dtype of r or that of computation; -inf keeps nothing.
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

    >>> ones, half = np.ones((3, 1)), np.log([[0.5]])
    >>> o, state = rwkv5(ones, ones, ones, half, np.array([[5.0]]))
    >>> o[:, 0], state
    (array([5. , 6. , 6.5]), array([[1.75]]))
    """
    given: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return rwkv6(r, k, v, each_token(log_decay, r), u, **given)


@dispatched(check_rwkv("rwkv5_recurrent", log_decay="HD", u="HD"))
def rwkv5_recurrent(
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
    r"""`rwkv5` a token at a time: what is kept between tokens is the state.

    .. math::
        o_t = \text{scale} \cdot (S_{t-1} + (u \odot k_t) v_t^T)^T r_t, \qquad
        S_t = \text{diag}(e^g) S_{t-1} + k_t v_t^T

    Parameters
    ----------
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv5`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `rwkv5`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv5`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> _, state = rwkv5_recurrent(one, one, 8 * one, 0 * one, one)
    >>> rwkv5_recurrent(one, one, one, np.log(0.5 * one), one, initial_state=state)
    Recurrent(o=array([[9.]]), state=array([[5.]]))
    """
    if cu_seqlens is not None:
        call = partial(rwkv5_recurrent, log_decay=log_decay, u=u, scale=scale)
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v)], {"initial_state": initial_state})
    dtype = compute_dtype(r.dtype)
    S = first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), dtype)
    r_, k_, v_, g = (x.astype(dtype) for x in (r, k, v, log_decay))
    g = g if r.ndim > 2 else g[0]
    r_, bonus = r_ * dtype.type(scale), of_heads(u.astype(dtype), r) * k_
    o = np.empty(v.shape, dtype)
    for t in range(r.shape[-2]):
        own = outer(bonus[..., t, :], v_[..., t, :])
        o[..., t, :] = (r_[..., t, None, :] @ (S + own))[..., 0, :]  # o = (S + (u ⊙ k) vᵀ)ᵀ r
        S = decayed(g[..., None], S) + outer(k_[..., t, :], v_[..., t, :])  # S = diag(e^g) S + k vᵀ
    return Recurrent(o.astype(r.dtype), S)


@dispatched(check_rwkv("rwkv5_chunked", log_decay="HD", u="HD"))
def rwkv5_chunked(
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
    r"""`rwkv5` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv5`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `rwkv5`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv5`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> rwkv5_chunked(ones, ones, ones, np.log([[0.5]]), np.array([[5.0]]), chunk=2).o[:, 0]
    array([5. , 6. , 6.5])
    """
    given: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens, "chunk": chunk}
    return rwkv6_chunked(r, k, v, each_token(log_decay, r), u, **given)


@dispatched(check_rwkv("rwkv5_vjp", log_decay="HD", u="HD"))
def rwkv5_vjp(
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
    r"""Return the gradients of `rwkv5`: those of `refattn.rwkv6`, the gates' added up over tokens and sequences.

    Parameters
    ----------
    do : array, (..., H, T, Dv)
        Gradient of o.
    r, k, v, log_decay, u, scale, initial_state, cu_seqlens, backend
        As in `rwkv5`.
    dstate : array, (..., H, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RwkvGradients
        dr, dk, dv, dlog_decay, du, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `rwkv5`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> rwkv5_vjp(ones, ones, ones, ones, np.zeros((1, 1)), np.array([[5.0]])).dlog_decay  # one pair is two apart
    array([[1.]])
    """
    given: dict[str, Any] = {"scale": scale, "cu_seqlens": cu_seqlens, "dstate": dstate}
    g = each_token(log_decay.astype(compute_dtype(r.dtype)), r)  # added up before it is rounded
    grads = rwkv6_vjp(do, r, k, v, g, u, initial_state=initial_state, **given)
    dg = grads.dlog_decay.sum(axis=-2).reshape(-1, *log_decay.shape).sum(axis=0)
    return grads._replace(dlog_decay=dg.astype(log_decay.dtype))
