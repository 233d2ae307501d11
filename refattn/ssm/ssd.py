r"""State space duality of Mamba-2: a state space whose decay is one number per head and token is linear attention.

Dao and Gu, 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", arXiv:2405.21060, section 3 (the matrix), section 6 (the chunks), listing 1 (segment sums).

| here | paper |
|---|---|
| x (..., H, T, P), dt: Δ | X (T, H, P); the paper's X and A have Δ in them already |
| B, C (..., G, T, N) | B, C (T, N), for all heads that share them; k and q of attention |
| e^{Δ A} | a_t |
| G | the logs of a_{j+1:i} |
| h (..., H, N, P) | h (N, P) |
"""

import math
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import decayed, first_state, heads_of, outer, share_heads
from refattn.results import Recurrent
from refattn.ssm.checks import check_ssd
from refattn.ssm.common import packed, segments, skip_and_gate, softplus, widened


def raw_steps(dt: Array, dt_bias: Array | None) -> Array:
    """Return dt with the bias of its head."""
    return dt if dt_bias is None else dt + of_head(dt_bias, dt)


def steps_of(dt: Array, dt_bias: Array | None, dt_softplus: bool, dt_limit: tuple[float, float]) -> Array:
    """Return Δ: dt with its bias, then through softplus, then within its limits."""
    step = raw_steps(dt, dt_bias)
    step = softplus(step) if dt_softplus else step
    return np.clip(step, *(step.dtype.type(x) for x in dt_limit))


def of_head(x: Array, dt: Array) -> Array:
    """Give a number of each head an axis for tokens: (H,) beside (..., H, T)."""
    return x[:, None] if dt.ndim > 1 else x


def skip_of(D: Array | None, dt: Array) -> Array | None:
    """Give D axes for tokens and channels: (H,) beside (..., H, T, P)."""
    return None if D is None else of_head(D, dt)[..., None]


@dispatched(check_ssd("ssd"))
def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Scan the heads of Mamba-2, all pairs of tokens at once: the matrix that the state space is.

    .. math::
        o_i = \Big( \sum_{j \le i} e^{G_{ij}} (C_i \cdot B_j)\, \Delta_j x_j + D x_i \Big)\, \text{silu}(z_i), \qquad
        G_{ij} = \sum_{j < s \le i} \Delta_s A

    This is `simple_gla` with q = C, k = B, v = Δ x, log_decay = Δ A and scale 1, before the skip and the gate.

    Parameters
    ----------
    x : array, (..., H, T, P)
        Inputs; a matrix is one head.
    dt : array, (..., H, T)
        Step sizes Δ, after bias, softplus and limits.
    A : array, (H,)
        At most 0; -inf forgets at every token. As dt, D, dt_bias, in the dtype of x or that of computation.
    B, C : array, (..., G, T, N)
        What a token writes to, and reads from, the state; head h uses group h // (H // G).
    D : array, (H,), optional
        The skip, before the gate.
    z : array, (..., H, T, P), optional
        The gate: o is multiplied by silu(z).
    dt_bias : array, (H,), optional
        Added to dt.
    dt_softplus : bool
        Whether dt passes through softplus, after its bias.
    dt_limit : (float, float)
        What Δ is clipped to, after softplus.
    initial_state : array, (..., H, N, P), optional
        The state before the first token, zeros unless given; (sequences, H, N, P) for packed ones.
    cu_seqlens : array of int, (sequences + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., H, T, P) in the dtype of x, and the state after the last token, in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit, or A is positive; the message names the argument.

    Examples
    --------
    With A = -log 2 and Δ = 1, each token halves what came before it:

    >>> ones = np.ones((3, 1))
    >>> o, state = ssd(ones, ones[:, 0], -np.log([2.0]), ones, ones)
    >>> o[:, 0], state
    (array([1.  , 1.5 , 1.75]), array([[1.75]]))
    """
    if cu_seqlens is not None:
        call = partial(ssd, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit)
        tokens = {"x": (x, -2), "dt": (dt, -1), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, H = compute_dtype(x.dtype), heads_of(x)
    state = first_state(initial_state, (*x.shape[:-2], B.shape[-1], x.shape[-1]), dtype)
    x_, dt_, A_, k, q, D_, z_, bias = widened(dtype, x, dt, A, B, C, D, z, dt_bias)
    k, q = share_heads(k, H), share_heads(q, H)
    step = steps_of(dt_, bias, dt_softplus, dt_limit)  # (..., H, T)
    v = step[..., None] * x_
    G = segments(step * of_head(A_, dt))  # (..., H, T + 1, T + 1)
    within, before, after = G[..., 1:, 1:], G[..., 1:, :1], G[..., -1:, 1:]
    s = decayed(within, q @ k.swapaxes(-1, -2))  # e^{G_ij} C_i · B_j
    y = select_matmul(s, v, ~np.isneginf(within)) + decayed(before, q @ state)
    new = select_matmul(decayed(after, k.swapaxes(-1, -2)), v, ~np.isneginf(after))
    state = decayed(G[..., -1:, :1], state) + new
    return Recurrent(skip_and_gate(y, x_, skip_of(D_, dt), z_).astype(x.dtype), state)


@dispatched(check_ssd("ssd_recurrent"))
def ssd_recurrent(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`ssd` a token at a time: what is kept between tokens is the state.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t^T, \qquad o_t = (h_t^T C_t + D x_t)\, \text{silu}(z_t)

    Parameters
    ----------
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state, cu_seqlens, backend
        As in `ssd`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `ssd`.

    Raises
    ------
    TypeError, ValueError
        As `ssd`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> ssd_recurrent(one, one[0], np.zeros(1), one, one, D=np.ones(1), initial_state=3 * one)
    Recurrent(o=array([[5.]]), state=array([[4.]]))
    """
    if cu_seqlens is not None:
        call = partial(ssd_recurrent, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit)
        tokens = {"x": (x, -2), "dt": (dt, -1), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    dtype, H = compute_dtype(x.dtype), heads_of(x)
    h = first_state(initial_state, (*x.shape[:-2], B.shape[-1], x.shape[-1]), dtype)
    x_, dt_, A_, k, q, D_, z_, bias = widened(dtype, x, dt, A, B, C, D, z, dt_bias)
    k, q = share_heads(k, H), share_heads(q, H)
    step = steps_of(dt_, bias, dt_softplus, dt_limit)
    g, v, y = step * of_head(A_, dt), step[..., None] * x_, np.empty(x.shape, dtype)
    for t in range(x.shape[-2]):
        h = decayed(g[..., t, None, None], h) + outer(k[..., t, :], v[..., t, :])  # h = e^{ΔA} h + Δ B xᵀ
        y[..., t, :] = (q[..., t, None, :] @ h)[..., 0, :]  # y = hᵀ C
    return Recurrent(skip_and_gate(y, x_, skip_of(D_, dt), z_).astype(x.dtype), h)


@dispatched(check_ssd("ssd_chunked"))
def ssd_chunked(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    """`ssd` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state, cu_seqlens, backend
        As in `ssd`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `ssd`.

    Raises
    ------
    TypeError, ValueError
        As `ssd`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> ssd_chunked(ones, ones[:, 0], np.zeros(1), ones, ones, chunk=2).o[:, 0]
    array([1., 2., 3.])
    """
    own = partial(ssd, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit)
    if cu_seqlens is not None:
        call = partial(ssd_chunked, **own.keywords, chunk=chunk)
        tokens = {"x": (x, -2), "dt": (dt, -1), "B": (B, -2), "C": (C, -2), "z": (z, -2)}
        return packed(call, cu_seqlens, tokens, {"initial_state": initial_state})
    state = first_state(initial_state, (*x.shape[:-2], B.shape[-1], x.shape[-1]), compute_dtype(x.dtype))
    o = np.empty(x.shape, x.dtype)
    for c in range(0, x.shape[-2], chunk):
        t = (..., slice(c, c + chunk), slice(None))
        gate = None if z is None else z[t]
        o[t], state = own(x[t], dt[..., c : c + chunk], B=B[t], C=C[t], z=gate, initial_state=state)
    return Recurrent(o, state)
