r"""The selective state space of Mamba: each channel has a small state whose step size depends on the token.

Gu and Dao, 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752, algorithm 2;
eqs. 2a and 2b are the recurrence. The scan by doubling: Hillis and Steele, 1986, "Data parallel algorithms".

| here | paper |
|---|---|
| u (..., T, E) | x (B, L, D): E is the paper's D, and D here is its skip |
| delta, after bias and softplus: Δ | Δ |
| A (E, N), e^{ΔA}, Δ B | A (D, N), Ā, B̄: ZOH for A, and B̄ to first order, as in the authors' code |
| h (..., E, N) | h |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import decayed, first_state
from refattn.results import Recurrent
from refattn.ssm.checks import check_selective_scan
from refattn.ssm.common import packed, skip_and_gate, softplus, widened


def steps_of(delta: Array, delta_bias: Array | None, delta_softplus: bool) -> Array:
    """Return Δ: delta with its bias, then through softplus."""
    delta = delta if delta_bias is None else delta + delta_bias
    return softplus(delta) if delta_softplus else delta


@dispatched(check_selective_scan("selective_scan"))
def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Scan the channels of Mamba, all tokens at once, by doubling the runs that are summed up.

    .. math::
        h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t u_t B_t^T, \qquad o_t = (h_t C_t + D u_t)\, \text{silu}(z_t)

    After step n, h_t sums up the last 2^n tokens; two runs that meet make one: e^{G'} h + h'.

    Parameters
    ----------
    u : array, (..., T, E)
        Inputs.
    delta : array, (..., T, E)
        Step sizes Δ, after bias and softplus if those are asked for. One below 0 makes the state grow.
    A : array, (E, N)
        At most 0; -inf forgets at every token. As delta, D, delta_bias, in the dtype of u or that of computation.
    B, C : array, (..., T, N)
        What a token writes to, and reads from, the states; for all channels.
    D : array, (E,), optional
        The skip, before the gate.
    z : array, (..., T, E), optional
        The gate: o is multiplied by silu(z).
    delta_bias : array, (E,), optional
        Added to delta.
    delta_softplus : bool
        Whether delta passes through softplus, after its bias.
    initial_state : array, (..., E, N), optional
        The state before the first token, zeros unless given; (sequences, E, N) for packed ones.
    cu_seqlens : array of int, (sequences + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., T, E) in the dtype of u, and the state after the last token, in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit, or A is positive; the message names the argument.

    Examples
    --------
    With A = -log 2 and Δ = 1, each token halves what came before it:

    >>> ones = np.ones((3, 1))
    >>> o, state = selective_scan(ones, ones, -np.log(2 * np.ones((1, 1))), ones, ones)
    >>> o[:, 0], state
    (array([1.  , 1.5 , 1.75]), array([[1.75]]))
    """
    if cu_seqlens is not None:
        call = partial(selective_scan, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
        tokens = {"u": (u, -2), "delta": (delta, -2), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, T = compute_dtype(u.dtype), u.shape[-2]
    state = first_state(initial_state, (*u.shape[:-2], *A.shape), dtype)
    u_, delta_, A_, B_, C_, D_, z_, bias = widened(dtype, u, delta, A, B, C, D, z, delta_bias)
    step = steps_of(delta_, bias, delta_softplus)
    G = step[..., None] * A_  # (..., T, E, N)
    h = (step * u_)[..., None] * B_[..., None, :]
    h[..., :1, :, :] += decayed(G[..., :1, :, :], state[..., None, :, :])
    n = 1
    while n < T:
        earlier, later = G[..., :-n, :, :], G[..., n:, :, :]
        run = decayed(later, h[..., :-n, :, :]) + h[..., n:, :, :]  # e^{G'} h + h'
        h = np.concatenate([h[..., :n, :, :], run], axis=-3)
        run = np.where(np.isneginf(later), later, np.where(np.isneginf(earlier), earlier, earlier + later))
        G = np.concatenate([G[..., :n, :, :], run], axis=-3)
        n *= 2
    y = (h @ C_[..., None])[..., 0]  # h C
    o = skip_and_gate(y, u_, D_, z_)
    return Recurrent(o.astype(u.dtype), h[..., -1, :, :] if T else state)


@dispatched(check_selective_scan("selective_scan_recurrent"))
def selective_scan_recurrent(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    """`selective_scan` a token at a time: what is kept between tokens is the state.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, backend
        As in `selective_scan`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `selective_scan`.

    Raises
    ------
    TypeError, ValueError
        As `selective_scan`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> selective_scan_recurrent(one, one, 0 * one, one, one, D=np.ones(1), initial_state=3 * one)
    Recurrent(o=array([[5.]]), state=array([[4.]]))
    """
    if cu_seqlens is not None:
        call = partial(selective_scan_recurrent, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
        tokens = {"u": (u, -2), "delta": (delta, -2), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype = compute_dtype(u.dtype)
    h = first_state(initial_state, (*u.shape[:-2], *A.shape), dtype)
    u_, delta_, A_, B_, C_, D_, z_, bias = widened(dtype, u, delta, A, B, C, D, z, delta_bias)
    step = steps_of(delta_, bias, delta_softplus)
    y = np.empty(u.shape, dtype)
    for t in range(u.shape[-2]):
        g, new = step[..., t, :, None] * A_, (step * u_)[..., t, :, None] * B_[..., t, None, :]
        h = decayed(g, h) + new  # h = e^{ΔA} h + Δ u Bᵀ
        y[..., t, :] = (h @ C_[..., t, :, None])[..., 0]  # y = h C
    return Recurrent(skip_and_gate(y, u_, D_, z_).astype(u.dtype), h)


@dispatched(check_selective_scan("selective_scan_chunked"))
def selective_scan_chunked(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    """`selective_scan` in chunks: the states of one chunk exist at a time.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, backend
        As in `selective_scan`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `selective_scan`.

    Raises
    ------
    TypeError, ValueError
        As `selective_scan`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> selective_scan_chunked(ones, ones, 0 * ones[:1], ones, ones, chunk=2).o[:, 0]
    array([1., 2., 3.])
    """
    own = partial(selective_scan, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
    if cu_seqlens is not None:
        call = partial(selective_scan_chunked, **own.keywords, chunk=chunk)
        tokens = {"u": (u, -2), "delta": (delta, -2), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    state = first_state(initial_state, (*u.shape[:-2], *A.shape), compute_dtype(u.dtype))
    o = np.empty(u.shape, u.dtype)
    for c in range(0, u.shape[-2], chunk):
        t = (..., slice(c, c + chunk), slice(None))
        gate = None if z is None else z[t]
        o[t], state = own(u[t], delta[t], B=B[t], C=C[t], z=gate, initial_state=state)
    return Recurrent(o, state)
