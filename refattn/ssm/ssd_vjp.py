"""The derivative of SSD (Mamba-2): Dao and Gu, 2024, arXiv:2405.21060, eq. 1 backwards in time."""

import math
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import decayed, first_state, heads_of, outer, share_heads, sum_heads
from refattn.results import SsdGradients
from refattn.ssm.checks import check_ssd
from refattn.ssm.common import packed, rounded, sigmoid, silu, silu_slope, skip_and_gate, softplus, widened
from refattn.ssm.ssd import of_head, raw_steps, skip_of, steps_of


@dispatched(check_ssd("ssd_vjp"))
def ssd_vjp(
    do: Array,
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
    dstate: Array | None = None,
    backend: str = "numpy",
) -> SsdGradients:
    r"""Return the gradients of `ssd`: the recurrence backwards, with the gradient of the state carried along.

    .. math::
        dh_t = C_t\, dy_t^T + e^{\Delta_{t+1} A} dh_{t+1}, \quad dC_t = h_t\, dy_t, \quad dB_t = \Delta_t\, dh_t x_t,
        \quad d\Delta_t = A \sum dh_t \odot e^{\Delta_t A} h_{t-1} + x_t \cdot dh_t^T B_t

    Parameters
    ----------
    do : array, (..., H, T, P)
        Gradient of o.
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state, cu_seqlens, backend
        As in `ssd`.
    dstate : array, (..., H, N, P), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    SsdGradients
        dx, ddt, dA, dB, dC, and dD, dz, ddt_bias, dinitial_state if those were given. A step outside dt_limit passes
        nothing on to dt and its bias, one on the limit does; where Δ A is -inf, nothing comes from the decay.

    Raises
    ------
    TypeError, ValueError
        As `ssd`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> ssd_vjp(ones, ones, ones[:, 0], np.zeros(1), ones, ones).dx[:, 0]
    array([3., 2., 1.])
    """
    dtype, H, T = compute_dtype(x.dtype), heads_of(x), x.shape[-2]
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    given |= {"initial_state": initial_state}
    do_, x_, dt_, A_, B_, C_ = widened(dtype, do, x, dt, A, B, C)
    D_, z_, bias, first, last = widened(dtype, D, z, dt_bias, initial_state, dstate)
    if cu_seqlens is not None:
        call = partial(ssd_vjp, A=A_, D=D_, dt_bias=bias, dt_softplus=dt_softplus, dt_limit=dt_limit)
        tokens = {"do": (do_, -2), "x": (x_, -2), "dt": (dt_, -1), "B": (B_, -2), "C": (C_, -2), "z": (z_, -2)}
        axes = {"dx": -2, "ddt": -1, "dB": -2, "dC": -2, "dz": -2}
        sums = dict.fromkeys(("dA", "dD", "ddt_bias"), "sum")
        ends = {"initial_state": first, "dstate": last}
        return rounded(packed(call, cu_seqlens, tokens, ends, **axes, **sums), given)
    shape = (*x.shape[:-2], B.shape[-1], x.shape[-1])
    k, q = share_heads(B_, H), share_heads(C_, H)
    step = steps_of(dt_, bias, dt_softplus, dt_limit)
    g, v = step * of_head(A_, dt), step[..., None] * x_
    states, y = [first_state(first, shape, dtype)], np.empty_like(x_)  # before each token
    for t in range(T):
        states.append(decayed(g[..., t, None, None], states[t]) + outer(k[..., t, :], v[..., t, :]))
        y[..., t, :] = (q[..., t, None, :] @ states[t + 1])[..., 0, :]
    skip, dy, dz = skip_of(D_, dt), do_, None
    if z is not None:
        dy, dz = do_ * silu(z_), do_ * skip_and_gate(y, x_, skip, None) * silu_slope(z_)  # was: o = (y + D x) silu(z)
    dk, dq, dv, dg = np.empty_like(k), np.empty_like(q), np.empty_like(v), np.empty_like(g)
    dh = first_state(last, shape, dtype)
    for t in reversed(range(T)):
        a = g[..., t, None, None]
        dq[..., t, :] = (states[t + 1] @ dy[..., t, :, None])[..., 0]  # was: y = hᵀ C
        dh = dh + outer(q[..., t, :], dy[..., t, :])
        dk[..., t, :] = (dh @ v[..., t, :, None])[..., 0]  # was: h = e^g h + B vᵀ
        dv[..., t, :] = (k[..., t, None, :] @ dh)[..., 0, :]
        dg[..., t] = np.where(np.isneginf(g[..., t]), 0, (dh * decayed(a, states[t])).sum(axis=(-2, -1)))
        dh = decayed(a, dh)
    forgets = np.isneginf(g)
    dstep = np.where(forgets, 0, dg * of_head(A_, dt)) + (dv * x_).sum(axis=-1)  # was: g = Δ A, v = Δ x
    dA = _per_head(np.where(forgets, 0, dg * step))
    dx = dv * step[..., None] if skip is None else dv * step[..., None] + skip * dy
    raw = raw_steps(dt_, bias)
    soft = softplus(raw) if dt_softplus else raw
    dstep = np.where((soft < dt_limit[0]) | (soft > dt_limit[1]), 0, dstep)  # was: Δ = clip(soft, *dt_limit)
    dstep = dstep * sigmoid(raw) if dt_softplus else dstep
    dB, dC = (sum_heads(d, heads_of(B)) for d in (dk, dq))
    dD, dbias = _per_head((dy * x_).sum(axis=-1)), _per_head(dstep)
    return rounded(SsdGradients(dx, dstep, dA, dB, dC, dD, dz, dbias, dh), given)


def _per_head(x: Array) -> Array:
    """Return (..., H, T) summed up for each head, (H,)."""
    x = x if x.ndim > 1 else x[None]
    return np.asarray(x.sum(axis=(*range(x.ndim - 2), -1)))
