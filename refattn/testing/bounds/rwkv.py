r"""How far RWKV's recurrences may lie from the reference.

rwkv5 and rwkv6 are linear attention with decays, read before the update: in absolute values, as in
`refattn.testing.bounds.gated`. rwkv7 turns the columns of its state by a matrix at each token: in lengths of columns,
as in `refattn.testing.bounds.delta`, with that matrix's largest singular value. rwkv4 stands in a file of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.linear.common import by_sequence, first_state
from refattn.results import Recurrent, Rwkv7Gradients, RwkvGradients
from refattn.rwkv.common import of_heads
from refattn.testing.bounds import rwkv4
from refattn.testing.bounds.gated import carried
from refattn.testing.bounds.weights import finite, size_of


def _outer(x: Array, y: Array) -> Array:
    return x[..., :, None] * y[..., None, :]


class _Before:
    """One sequence of rwkv6: the states before each token, their errors, and the bonus."""

    def __init__(
        self, r: Array, k: Array, v: Array, g: Array, u: Array, scale: float, initial_state: Array | None
    ) -> None:
        self.g = np.where(np.isneginf(g), g, finite(g))
        self.r, self.k, self.v, self.u = abs(scale) * size_of(r), size_of(k), size_of(v), of_heads(size_of(u), r)
        self.first = size_of(first_state(initial_state, (*v.shape[:-2], r.shape[-1], v.shape[-1]), np.float64))
        S, E = carried(self.g, _outer(self.k, self.v), self.first)
        first, T = self.first[..., None, :, :], v.shape[-2]
        self.S, self.E = (np.concatenate([first, x], axis=-3)[..., :T, :, :] for x in (S, E))
        self.last = E[..., -1, :, :] if T else self.first
        self.own = (self.r * self.u * self.k).sum(axis=-1, keepdims=True)

    def forward(self) -> Recurrent:
        """Return the bounds of o and the last state."""
        return Recurrent(np.einsum("...td,...tde->...te", self.r, self.E) + self.own * self.v, self.last)

    def backward(self, do: Array, scale: float, dstate: Array | None) -> RwkvGradients:
        """Return the bounds of all gradients."""
        d, last = abs(scale) * size_of(do), size_of(first_state(dstate, self.first.shape, np.float64))
        r = self.r / abs(scale) if scale else self.r
        X, F = carried(np.flip(self.g, axis=-2), np.flip(_outer(r, d), axis=-3), last)
        X, F = (np.concatenate([np.flip(x, axis=-3), last[..., None, :, :]], axis=-3) for x in (X, F))
        dfirst, X, F = F[..., 0, :, :], X[..., 1:, :, :], F[..., 1:, :, :]  # of the first state, then after each token
        old = self.E + (1 + abs(finite(self.g))[..., None]) * self.S
        through = (self.v * d).sum(axis=-1, keepdims=True)
        dr = np.einsum("...tde,...te->...td", self.E, d) + through * self.u * self.k
        dk = np.einsum("...tde,...te->...td", F, self.v) + through * self.u * r
        own = (r * self.u * self.k).sum(axis=-1, keepdims=True)
        dv = np.einsum("...tde,...td->...te", F, self.k) + own * d
        dg = np.exp(self.g) * (X * old + F * self.S).sum(axis=-1)
        du = (through * r * self.k).sum(axis=-2)
        du = 4 * du.reshape(-1, *(du.shape[-2:] if self.u.ndim > 2 else (1, *du.shape[-1:]))).sum(axis=0)
        return RwkvGradients(dr, dk, dv, dg, du, dfirst)


def rwkv6(
    eps: float,
    r: Array,
    k: Array,
    v: Array,
    g: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """Bound `rwkv6`, and `rwkv5` with its gates at every token."""
    if cu_seqlens is not None:
        call = partial(rwkv6, eps, u=u, scale=scale)
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (r, k, v, g)], {"initial_state": initial_state})
    return _Before(r, k, v, g, u, scale, initial_state).forward()


def rwkv6_vjp(
    eps: float,
    do: Array,
    r: Array,
    k: Array,
    v: Array,
    g: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    dstate: Any = None,
) -> RwkvGradients:
    """Bound `rwkv6_vjp`, and that of `rwkv5` with its gates at every token."""
    if cu_seqlens is not None:
        call, given = partial(rwkv6_vjp, eps, u=u, scale=scale), {"initial_state": initial_state, "dstate": dstate}
        tokens = [(x, -2) for x in (do, r, k, v, g)]
        return by_sequence(call, cu_seqlens, tokens, given, dr=-2, dlog_decay=-2, du="sum")
    found = _Before(r, k, v, g, u, scale, initial_state).backward(do, scale, dstate)
    return found if initial_state is not None else found._replace(dinitial_state=None)


def rwkv5(eps: float, r: Array, k: Array, v: Array, g: Array, u: Array, **options: Any) -> Recurrent:
    """Bound `rwkv5`."""
    return rwkv6(eps, r, k, v, np.broadcast_to(of_heads(g, r), r.shape), u, **options)


def rwkv5_vjp(eps: float, do: Array, r: Array, k: Array, v: Array, g: Array, u: Array, **options: Any) -> RwkvGradients:
    """Bound `rwkv5_vjp`."""
    found = rwkv6_vjp(eps, do, r, k, v, np.broadcast_to(of_heads(g, r), r.shape), u, **options)
    return found._replace(dlog_decay=4 * found.dlog_decay.sum(axis=-2).reshape(-1, *g.shape).sum(axis=0))


def _length(x: Array) -> Array:
    return np.sqrt((finite(x) ** 2).sum(axis=-1))


def _columns(state: Array | None, v: Array) -> Array:
    """Return the lengths of the columns of a state, (..., H, Dv)."""
    return np.zeros((*v.shape[:-2], v.shape[-1])) if state is None else _length(state.swapaxes(-1, -2))


class _Turned:
    """One sequence of rwkv7: lengths of columns N, of all that is added up M, and of errors E, before each token."""

    def __init__(self, arrays: tuple[Array, ...], initial_state: Array | None) -> None:
        r, k, v, g, kappa, a = arrays
        self.r, self.k, self.kappa = (_length(x)[..., None] for x in (r, k, kappa))
        self.v, self.b = size_of(v), _length(a * kappa)[..., None]
        decay = np.exp(np.where(np.isnan(g), 0, g))
        self.keep_error = (decay * (1 + size_of(g))).max(axis=-1)[..., None]
        turn = decay[..., None] * np.eye(g.shape[-1]) - _outer(finite(a * kappa), finite(kappa))
        self.norm = np.linalg.norm(turn, ord=2, axis=(-2, -1))[..., None]
        N = _columns(initial_state, v)
        M, E = N, np.zeros_like(N)
        self.before = []
        for t in range(v.shape[-2]):
            self.before.append((N, M, E))
            norm, b, kap, new = self.norm[..., t, :], self.b[..., t, :], self.kappa[..., t, :], self.written(t)
            held = b * kap
            E = norm * E + self.keep_error[..., t, :] * M + 2 * held * M
            N, M = norm * N + new, norm * M + held * N + new
            E = E + M
        self.last = (N, M, E)

    def written(self, t: int) -> Array:
        """Return the lengths of the columns of k vᵀ."""
        return self.k[..., t, :] * self.v[..., t, :]

    def after(self, t: int) -> tuple[Array, Array, Array]:
        """Return N, M and E after token t."""
        return self.before[t + 1] if t + 1 < len(self.before) else self.last


def rwkv7(
    eps: float,
    *arrays: Array,
    scale: float = 1.0,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """Bound `rwkv7`."""
    if cu_seqlens is not None:
        call = partial(rwkv7, eps, scale=scale)
        return by_sequence(call, cu_seqlens, [(x, -2) for x in arrays], {"initial_state": initial_state})
    s, (r, _, v, *_) = _Turned(arrays, initial_state), arrays
    o = np.zeros(v.shape)
    for t in range(v.shape[-2]):
        _, M, E = s.after(t)
        o[..., t, :] = abs(scale) * s.r[..., t, :] * (E + M)
    E = s.last[2]
    return Recurrent(o, np.broadcast_to(E[..., None, :], (*E.shape[:-1], r.shape[-1], E.shape[-1])))


def rwkv7_vjp(
    eps: float,
    do: Array,
    *arrays: Array,
    scale: float = 1.0,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    dstate: Any = None,
) -> Rwkv7Gradients:
    """Bound `rwkv7_vjp`."""
    if cu_seqlens is not None:
        call, given = partial(rwkv7_vjp, eps, scale=scale), {"initial_state": initial_state, "dstate": dstate}
        axes = {"dr": -2, "dlog_decay": -2, "dkappa_hat": -2, "da": -2}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (do, *arrays)], given, **axes)
    s, (r, _, v, g, kappa, a) = _Turned(arrays, initial_state), arrays
    d, X = abs(scale) * size_of(do), _columns(dstate, v)
    F = np.zeros_like(X)
    dr, dk, dg, dkappa, da = (np.zeros(r.shape) for _ in range(5))
    dv, decay = np.zeros(v.shape), np.exp(finite(np.where(np.isneginf(g), -1e9, g)))
    for t in reversed(range(v.shape[-2])):
        (N, M, E), (_, M_1, E_1) = s.before[t], s.after(t)
        norm, b, kap = s.norm[..., t, :], s.b[..., t, :], s.kappa[..., t, :]
        dr[..., t, :] = ((E_1 + M_1) * d[..., t, :]).sum(axis=-1, keepdims=True)
        X = X + s.r[..., t, :] * d[..., t, :]
        F = F + X
        wrong = F + X
        dk[..., t, :] = (wrong * s.v[..., t, :]).sum(axis=-1, keepdims=True)
        dv[..., t, :] = s.k[..., t, :] * wrong
        db = (wrong * kap * N + X * kap * (E + M)).sum(axis=-1, keepdims=True)
        dc = (N * b * wrong + (E + M) * b * X).sum(axis=-1, keepdims=True)
        da[..., t, :] = db * size_of(kappa)[..., t, :]
        dkappa[..., t, :] = db * size_of(a)[..., t, :] + dc
        both = (wrong * N + X * (E + M)).sum(axis=-1, keepdims=True)
        dg[..., t, :] = decay[..., t, :] * (1 + size_of(g)[..., t, :]) * both
        F = norm * F + s.keep_error[..., t, :] * X + 2 * b * kap * X
        X = norm * X
        F = F + X
    first = None if initial_state is None else np.broadcast_to(F[..., None, :], initial_state.shape)
    return Rwkv7Gradients(dr, dk, dv, dg, dkappa, da, first)


BOUNDS: dict[str, Callable[..., Any]] = {
    **{
        name + form: bound
        for name, bound in (("rwkv5", rwkv5), ("rwkv6", rwkv6), ("rwkv7", rwkv7))
        for form in ("", "_recurrent", "_chunked")
    },
    **{"rwkv5_vjp": rwkv5_vjp, "rwkv6_vjp": rwkv6_vjp, "rwkv7_vjp": rwkv7_vjp},
    **rwkv4.BOUNDS,
}
