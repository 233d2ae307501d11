r"""The diagonal state space S4D: a sum of damped oscillations per channel, as a recurrence or as one convolution.

Gu, Gupta, Goel and Re, 2022, "On the Parameterization and Initialization of Diagonal State Space Models",
arXiv:2206.11893, section 2 (zero-order hold), section 3 (the kernel of a diagonal A as a Vandermonde product).

| here | paper |
|---|---|
| u, o (..., T, E) | u, y of one channel |
| delta (E,) | Δ |
| A_real + i A_imag (E, N) | A_n, half of the conjugate pairs |
| C_real + i C_imag (E, N) | C_n; B_n = 1, as C B is all that matters |
| A_bar, B_bar | Ā = e^{ΔA}, B̄ = (Ā - 1) / A |
| h (..., E, N), complex | x |
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import first_state
from refattn.results import Recurrent, S4dGradients
from refattn.ssm.checks import check_s4d
from refattn.ssm.common import rounded, widened


def _complex(real: Array, imag: Array, dtype: Any) -> Array:
    """Return real + i imag, of which each part has that dtype."""
    x = np.empty(real.shape, np.result_type(dtype, np.complex64))
    x.real, x.imag = real, imag
    return x


def _pair(x: Array) -> Array:
    """Return complex numbers as real ones, (..., 2)."""
    return np.stack([x.real, x.imag], axis=-1)


def _phi(x: Array) -> Array:
    """Return (e^x - 1) / x, and 1 at 0."""
    return np.asarray(np.where(x == 0, 1, np.expm1(x) / np.where(x == 0, 1, x)))


def _phi_slope(x: Array) -> Array:
    """Return the derivative of `_phi`, (e^x - φ) / x; near 0, where that cancels, Σ (m + 1) x^m / (m + 2)!."""
    series, term = np.zeros_like(x), np.full_like(x, 0.5)  # x^m / (m + 2)!
    for m in range(20):
        series = series + (m + 1) * term
        term = term * x / (m + 3)
    near = abs(x) < 1
    return np.where(near, series, (np.exp(x) - _phi(x)) / np.where(near, 1, x))


@dispatched(check_s4d("s4d"))
def s4d(
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Convolve each channel with the kernel of its diagonal state space.

    .. math::
        o_t = \sum_{l=0}^{t} K_l u_{t-l} + D u_t, \qquad K_l = 2\, \text{Re} \sum_n C_n \bar B_n \bar A_n^l, \qquad
        \bar A = e^{\Delta A}, \quad \bar B = \frac{\bar A - 1}{A}

    The sums are direct ones: a Fourier transform would spread the rounding, or a NaN, of any token over all of them.

    Parameters
    ----------
    u : array, (..., T, E)
        Inputs.
    delta : array, (E,)
        Step sizes Δ >= 0; as all parameters, finite, in the dtype of u or that of computation.
    A_real, A_imag : array, (E, N)
        Growth, at most 0, and frequency of each oscillation; where A = 0, Ā is 1 and B̄ is Δ.
    C_real, C_imag : array, (E, N)
        What is read from it.
    D : array, (E,), optional
        The skip.
    initial_state : array, (..., E, N, 2), optional
        The state before the first token, its real and its imaginary part; zeros unless given.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., T, E) in the dtype of u, and the state after the last token, shaped as `initial_state`, in the dtype of
        computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit, or A_real is positive; the message names the argument.

    Examples
    --------
    With A = 0 the state adds up Δ u, and o is twice that:

    >>> zero, one = np.zeros((1, 1)), np.ones((1, 1))
    >>> o, state = s4d(np.ones((3, 1)), np.array([0.5]), zero, zero, one, zero)
    >>> o[:, 0], state
    (array([1., 2., 3.]), array([[[1.5, 0. ]]]))
    """
    dtype, T = compute_dtype(u.dtype), u.shape[-2]
    u_, step, D_ = widened(dtype, u, delta, D)
    A, C = _complex(A_real, A_imag, dtype), _complex(C_real, C_imag, dtype)
    state = first_state(initial_state, (*u.shape[:-2], *A.shape, 2), dtype)
    h = _complex(state[..., 0], state[..., 1], dtype)
    log_A_bar = step[:, None] * A  # log Ā = Δ A
    B_bar = step[:, None] * _phi(log_A_bar)  # B̄ = (Ā - 1) / A
    powers = np.exp(log_A_bar[..., None] * np.arange(T + 1, dtype=dtype))  # Ā^l, (E, N, T + 1)
    K = 2 * ((C * B_bar)[..., None] * powers[..., :T]).real.sum(axis=1)  # K_l, (E, T)
    lag = np.arange(T)[:, None] - np.arange(T)
    matrix = np.where(lag >= 0, K[:, abs(lag)], 0)  # (E, T, T)
    channels = u_.swapaxes(-1, -2)[..., None]  # (..., E, T, 1)
    y = select_matmul(matrix, channels, lag >= 0)[..., 0].swapaxes(-1, -2)
    y = y + 2 * ((C * h)[..., None] * powers[..., 1:]).real.sum(axis=-2).swapaxes(-1, -2)  # 2 Re C Ā^t x_0
    new = B_bar[..., None] * (powers[..., T - 1 :: -1] if T else powers[..., :0])  # B̄ Ā^{T-1-t}
    h = powers[..., T] * h + (new * u_.swapaxes(-1, -2)[..., None, :]).sum(axis=-1)
    return Recurrent((y if D is None else y + D_ * u_).astype(u.dtype), _pair(h))


@dispatched(check_s4d("s4d_recurrent"))
def s4d_recurrent(
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`s4d` a token at a time: what is kept between tokens is the state.

    .. math:: h_t = \bar A h_{t-1} + \bar B u_t, \qquad o_t = 2\, \text{Re} \sum_n C_n h_{tn} + D u_t

    Parameters
    ----------
    u, delta, A_real, A_imag, C_real, C_imag, D, initial_state, backend
        As in `s4d`; a call with T = 1 and the last state is a step of generation.

    Returns
    -------
    Recurrent
        As of `s4d`.

    Raises
    ------
    TypeError, ValueError
        As `s4d`.

    Examples
    --------
    Half a turn per token changes the sign of the state, here of 3:

    >>> zero, one = np.zeros((1, 1)), np.ones((1, 1))
    >>> state = np.array([[[3.0, 0.0]]])
    >>> o, state = s4d_recurrent(zero, one[0], zero, np.pi * one, one, zero, initial_state=state)
    >>> o[0, 0].round(9), state[0, 0, 0].round(9)
    (np.float64(-6.0), np.float64(-3.0))
    """
    dtype = compute_dtype(u.dtype)
    u_, step, D_ = widened(dtype, u, delta, D)
    A, C = _complex(A_real, A_imag, dtype), _complex(C_real, C_imag, dtype)
    state = first_state(initial_state, (*u.shape[:-2], *A.shape, 2), dtype)
    h, y = _complex(state[..., 0], state[..., 1], dtype), np.empty(u.shape, dtype)
    A_bar, B_bar = np.exp(step[:, None] * A), step[:, None] * _phi(step[:, None] * A)
    for t in range(u.shape[-2]):
        h = A_bar * h + B_bar * u_[..., t, :, None]  # h = Ā h + B̄ u
        y[..., t, :] = 2 * (C * h).real.sum(axis=-1)  # y = 2 Re C h
    return Recurrent((y if D is None else y + D_ * u_).astype(u.dtype), _pair(h))


@dispatched(check_s4d("s4d_vjp"))
def s4d_vjp(
    do: Array,
    u: Array,
    delta: Array,
    A_real: Array,
    A_imag: Array,
    C_real: Array,
    C_imag: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> S4dGradients:
    r"""Return the gradients of `s4d`: the recurrence backwards, dh that of Re h plus i times that of Im h.

    .. math::
        dh_t = 2 \overline{C}\, do_t + \overline{\bar A}\, dh_{t+1}, \quad du_t = \text{Re} \sum_n \overline{\bar B_n}\,
        dh_{tn} + D\, do_t, \quad d\bar A = \sum_t \overline{h_{t-1}}\, dh_t, \quad d\bar B = \sum_t u_t\, dh_t

    Parameters
    ----------
    do : array, (..., T, E)
        Gradient of o.
    u, delta, A_real, A_imag, C_real, C_imag, D, initial_state, backend
        As in `s4d`.
    dstate : array, (..., E, N, 2), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    S4dGradients
        du, ddelta, dA_real, dA_imag, dC_real, dC_imag, and dD and dinitial_state if those were given.

    Raises
    ------
    TypeError, ValueError
        As `s4d`, and for `do` or `dstate` of another shape.

    Examples
    --------
    With A = 0 every later token sees 2 Δ u:

    >>> zero, one = np.zeros((1, 1)), np.ones((1, 1))
    >>> ones = np.ones((3, 1))
    >>> s4d_vjp(ones, ones, np.array([0.5]), zero, zero, one, zero).du[:, 0]
    array([3., 2., 1.])
    """
    dtype, T = compute_dtype(u.dtype), u.shape[-2]
    do_, u_, step, D_ = widened(dtype, do, u, delta, D)
    A, C = _complex(A_real, A_imag, dtype), _complex(C_real, C_imag, dtype)
    shape, each = (*u.shape[:-2], *A.shape, 2), tuple(range(u.ndim - 2))
    first, last = first_state(initial_state, shape, dtype), first_state(dstate, shape, dtype)
    log_A_bar = step[:, None] * A
    phi, A_bar = _phi(log_A_bar), np.exp(log_A_bar)
    B_bar = step[:, None] * phi
    states = [_complex(first[..., 0], first[..., 1], dtype)]  # before each token
    for t in range(T):
        states.append(A_bar * states[t] + B_bar * u_[..., t, :, None])
    dh, du = _complex(last[..., 0], last[..., 1], dtype), np.empty_like(u_)
    dA_bar, dB_bar, dC = np.zeros_like(A), np.zeros_like(A), np.zeros_like(A)
    for t in reversed(range(T)):
        dy = do_[..., t, :, None]
        dh, dC = dh + 2 * C.conj() * dy, dC + 2 * (states[t + 1].conj() * dy).sum(axis=each)  # was: y = 2 Re C h
        du[..., t, :] = (B_bar.conj() * dh).real.sum(axis=-1)  # was: h = Ā h + B̄ u
        dA_bar, dB_bar = (
            dA_bar + (states[t].conj() * dh).sum(axis=each),
            dB_bar + (u_[..., t, :, None] * dh).sum(axis=each),
        )
        dh = A_bar.conj() * dh
    dlog = A_bar.conj() * dA_bar + step[:, None] * _phi_slope(log_A_bar).conj() * dB_bar  # was: Ā = e^{ΔA}, B̄ = Δ φ(ΔA)
    ddelta = (A.conj() * dlog + phi.conj() * dB_bar).real.sum(axis=-1)
    dA = step[:, None] * dlog
    dD = (do_ * u_).sum(axis=(*each, -2))
    du = du if D is None else du + D_ * do_
    given = {"u": u, "delta": delta, "A_real": A_real, "A_imag": A_imag, "C_real": C_real, "C_imag": C_imag, "D": D}
    found = S4dGradients(du, ddelta, dA.real, dA.imag, dC.real, dC.imag, dD, _pair(dh))
    return rounded(found, {**given, "initial_state": initial_state})
