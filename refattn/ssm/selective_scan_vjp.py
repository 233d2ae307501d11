"""The derivative of the selective scan of Mamba: Gu and Dao, 2023, arXiv:2312.00752, eq. 2a backwards in time."""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import decayed, first_state
from refattn.results import SelectiveScanGradients
from refattn.ssm.checks import check_selective_scan
from refattn.ssm.common import packed, rounded, sigmoid, silu, silu_slope, skip_and_gate, widened
from refattn.ssm.selective_scan import steps_of


@dispatched(check_selective_scan("selective_scan_vjp"))
def selective_scan_vjp(
    do: Array,
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
    dstate: Array | None = None,
    backend: str = "numpy",
) -> SelectiveScanGradients:
    r"""Return the gradients of `selective_scan`: the recurrence backwards, the gradient of the state carried along.

    .. math::
        dh_t = dy_t C_t^T + e^{\Delta_{t+1} A} \odot dh_{t+1}, \quad dC_t = h_t^T dy_t, \quad
        dg_t = dh_t \odot e^{\Delta_t A} \odot h_{t-1}, \quad
        d\Delta_t = \sum_n A\, dg_t + u_t\, dh_t B_t

    Parameters
    ----------
    do : array, (..., T, E)
        Gradient of o.
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, backend
        As in `selective_scan`.
    dstate : array, (..., E, N), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    SelectiveScanGradients
        du, ddelta, dA, dB, dC, and dD, dz, ddelta_bias, dinitial_state if those were given. Where Δ A is -inf, nothing
        comes from the decay.

    Raises
    ------
    TypeError, ValueError
        As `selective_scan`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> selective_scan_vjp(ones, ones, ones, 0 * ones[:1], ones, ones).du[:, 0]
    array([3., 2., 1.])
    """
    dtype, T = compute_dtype(u.dtype), u.shape[-2]
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    given |= {"initial_state": initial_state}
    do_, u_, delta_, A_, B_, C_ = widened(dtype, do, u, delta, A, B, C)
    D_, z_, bias, first, last = widened(dtype, D, z, delta_bias, initial_state, dstate)
    if cu_seqlens is not None:
        call = partial(selective_scan_vjp, A=A_, D=D_, delta_bias=bias, delta_softplus=delta_softplus)
        tokens = {"do": (do_, -2), "u": (u_, -2), "delta": (delta_, -2), "B": (B_, -2), "C": (C_, -2), "z": (z_, -2)}
        axes = {"du": -2, "ddelta": -2, "dB": -2, "dC": -2, "dz": -2}
        sums = dict.fromkeys(("dA", "dD", "ddelta_bias"), "sum")
        ends = {"initial_state": first, "dstate": last}
        return rounded(packed(call, cu_seqlens, tokens, ends, **axes, **sums), given)
    shape, each = (*u.shape[:-2], *A.shape), tuple(range(u.ndim - 2))
    step = steps_of(delta_, bias, delta_softplus)
    states, y = [first_state(first, shape, dtype)], np.empty_like(u_)  # before each token
    for t in range(T):
        g, new = step[..., t, :, None] * A_, (step * u_)[..., t, :, None] * B_[..., t, None, :]
        states.append(decayed(g, states[t]) + new)
        y[..., t, :] = (states[t + 1] @ C_[..., t, :, None])[..., 0]
    dy, dz = do_, None
    if z is not None:
        dy, dz = do_ * silu(z_), do_ * skip_and_gate(y, u_, D_, None) * silu_slope(z_)  # was: o = (y + D u) silu(z)
    dv, dstep, dB, dC = np.empty_like(u_), np.empty_like(u_), np.empty_like(B_), np.empty_like(C_)
    dA, dh = np.zeros(A.shape, dtype), first_state(last, shape, dtype)
    for t in reversed(range(T)):
        g = step[..., t, :, None] * A_
        dC[..., t, :] = (dy[..., t, None, :] @ states[t + 1])[..., 0, :]  # was: y = h C
        dh = dh + dy[..., t, :, None] * C_[..., t, None, :]
        dv[..., t, :] = (dh @ B_[..., t, :, None])[..., 0]  # was: h = e^g h + (Δ u) Bᵀ
        dB[..., t, :] = ((step * u_)[..., t, None, :] @ dh)[..., 0, :]
        dg = dh * decayed(g, states[t])
        dstep[..., t, :] = np.where(np.isneginf(g), 0, dg * A_).sum(axis=-1)  # was: g = Δ A
        dA += np.where(np.isneginf(g), 0, dg * step[..., t, :, None]).sum(axis=each)
        dh = decayed(g, dh)
    dstep = dstep + dv * u_  # was: v = Δ u
    du = dv * step
    if D is not None:
        du = du + D_ * dy
    if delta_softplus:
        dstep = dstep * sigmoid(delta_ if bias is None else delta_ + bias)  # was: Δ = softplus(delta + bias)
    dD, dbias = (dy * u_).sum(axis=(*each, -2)), dstep.sum(axis=(*each, -2))
    return rounded(SelectiveScanGradients(du, dstep, dA, dB, dC, dD, dz, dbias, dh), given)
