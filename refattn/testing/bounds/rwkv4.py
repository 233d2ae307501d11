"""How far `rwkv4` may lie from the reference: a mean whose weights are written out, token by token, in float64.

A weight's exponent is at most `reach` large, and a running maximum is rounded at each token: a relative error of
4 + reach (2 + T / 16) eps of each weight, times `SLACK`, of the sums and of their quotient alike.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.results import Recurrent, Rwkv4Gradients, Rwkv4State
from refattn.testing.bounds.weights import UNDERFLOW, finite, size_of


class _Means:
    """The weights of one problem: of every token j at every token t, and of the state before."""

    def __init__(self, w: Array, u: Array, k: Array, v: Array, state: Rwkv4State | None) -> None:
        *batch, T, E = k.shape
        nothing = (np.zeros((*batch, E)), np.zeros((*batch, E)), np.full((*batch, E), -np.inf))
        self.num, self.den, first = (np.asarray(x) for x in (nothing if state is None else state))
        k, self.v = finite(k), finite(v)
        steps = np.arange(T + 1)[:, None] - 1 - np.arange(T)  # of decay, from token j to what token t reads; T: the end
        self.steps = np.maximum(steps, 0)
        faded = np.where(self.steps[..., None] == 0, 0, self.steps[..., None] * w)  # (T + 1, T, E)
        exponents = np.where((steps >= 0)[..., None], k[..., None, :, :] - faded, -np.inf)
        here = np.eye(T + 1, T, dtype=bool)[..., None]
        exponents = np.where(here, (k + u)[..., None, :, :], exponents)  # (..., T + 1, T, E)
        since = np.arange(T + 1)[:, None]
        before = first[..., None, :] - np.where(since == 0, 0, since * w)  # (..., T + 1, E)
        top = np.maximum(exponents.max(axis=-2, initial=-np.inf), before)
        self.top = np.where(np.isneginf(top), 0, top)
        self.p, self.p_0 = np.exp(exponents - self.top[..., None, :]), np.exp(before - self.top)
        self.since, self.here = since, here
        sizes = (abs(k), abs(u), abs(finite(first)), np.minimum(w, 100))
        self.reach = sum(x.max(axis=tuple(range(x.ndim - 1)), initial=0) for x in sizes)  # (E,)
        self.c = 4 + self.reach * (2 + T / 16)
        whole = self.p.sum(axis=-2) + self.p_0 * self.den[..., None, :]
        z = np.where(whole == 0, 1, whole)
        self.P, self.P_0 = self.p / z[..., None, :], self.p_0 / z
        self.o = (self.P * self.v[..., None, :, :]).sum(axis=-2) + self.P_0 * self.num[..., None, :]
        summed = (self.P * abs(self.v)[..., None, :, :]).sum(axis=-2) + self.P_0 * abs(self.num)[..., None, :]
        self.o_error = self.c * (summed + abs(self.o)) + UNDERFLOW


def rwkv4(eps: float, w: Array, u: Array, k: Array, v: Array, *, initial_state: Any = None) -> Recurrent:
    """Bound `rwkv4`."""
    m = _Means(w, u, k, v, initial_state)
    q, q_0 = m.p[..., -1, :, :], m.p_0[..., -1, :]
    num = m.c * ((q * abs(m.v)).sum(axis=-2) + q_0 * abs(m.num)) + UNDERFLOW
    den = m.c * (q.sum(axis=-2) + q_0 * m.den) + UNDERFLOW
    largest = np.broadcast_to(m.c, num.shape)
    return Recurrent(m.o_error[..., :-1, :], Rwkv4State(num, den, largest))


def rwkv4_vjp(
    eps: float,
    do: Array,
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    *,
    initial_state: Any = None,
    dstate: Any = None,
) -> Rwkv4Gradients:
    """Bound `rwkv4_vjp`."""
    m, T = _Means(w, u, k, v, initial_state), k.shape[-2]
    every, d = tuple(range(k.ndim - 2)), size_of(do)[..., None, :]  # (..., T, 1, E)
    P, P_0 = m.P[..., :-1, :, :], m.P_0[..., :-1, :]
    o, o_error = abs(m.o)[..., :-1, :], m.o_error[..., :-1, :]
    from_o = P * d * (m.c * (abs(m.v)[..., None, :, :] + o[..., None, :]) + o_error[..., None, :])  # (..., T, T, E)
    dnum, dden, dm = (np.zeros(m.num.shape),) * 3 if dstate is None else (size_of(x) for x in dstate)
    q, q_0 = m.p[..., -1, :, :], m.p_0[..., -1, :]
    num, den = (q * abs(m.v)).sum(axis=-2) + q_0 * abs(m.num), q.sum(axis=-2) + q_0 * m.den
    moved = m.c * (dm + num * dnum + den * dden)
    at_top = (q > 1 - 1e-6) * moved[..., None, :]
    from_state = q * m.c * (abs(m.v) * dnum[..., None, :] + dden[..., None, :]) + at_top  # (..., T, E)
    dk = from_o.sum(axis=-3) + from_state
    dv = m.c * ((P * d).sum(axis=-3) + q * dnum[..., None, :])
    du = (from_o * m.here[:-1]).sum(axis=(-3, -2)).sum(axis=every)
    first_num = m.c * ((P_0 * d[..., 0, :]).sum(axis=-2) + q_0 * dnum)
    first_den = ((m.c * o + o_error) * P_0 * d[..., 0, :]).sum(axis=-2) + m.c * q_0 * dden
    old = P_0 * d[..., 0, :] * (m.c * (abs(m.num)[..., None, :] + m.den[..., None, :] * o) + o_error)
    old_state = q_0 * m.c * (abs(m.num) * dnum + m.den * dden) + moved
    dw = (from_o * m.steps[:-1, :, None]).sum(axis=(-3, -2)) + (from_state * m.steps[-1][:, None]).sum(axis=-2)
    dw = (dw + (old * m.since[:-1]).sum(axis=-2) + T * old_state).sum(axis=every)
    first = Rwkv4State(first_num, first_den, old.sum(axis=-2) + old_state)
    tiny = UNDERFLOW * (1 + size_of(do).sum())
    dw, du, dk, dv = (x + tiny for x in (dw, du, dk, dv))
    return Rwkv4Gradients(dw, du, dk, dv, None if initial_state is None else first)


BOUNDS: dict[str, Callable[..., Any]] = {"rwkv4": rwkv4, "rwkv4_recurrent": rwkv4, "rwkv4_vjp": rwkv4_vjp}
