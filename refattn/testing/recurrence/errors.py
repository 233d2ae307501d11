r"""How far rounding may carry the result of a recurrence: a bound that holds, and the deviation that one expects.

Every operation is a case of (`Steps`)

.. math:: S_t = a_t \odot S_{t-1} - b_t (S_{t-1}^T c_t)^T + k_t v_t^T, \qquad o_t = S_t^T q_t

and a kernel may go token by token, or by chunks in which weights :math:`q_i \cdot k_j` are formed first. Both add the
same products in another order, so that the sizes that their roundings are relative to stay below the recurrence of
absolute values

.. math:: M_t = |a_t| \odot M_{t-1} + |b_t| \rho_t^T + |k_t| |v_t|^T, \qquad
    \rho_t = \max(|S_{t-1}|^T |c_t|,\; \|c_t\| \max_{s<t} \|S_s\|)

where the second part of ρ is what the WY form of a delta rule subtracts. With u the roundoff of the accumulator and
:math:`u_p` that of operands (0 where they are not rounded), step t adds at most

.. math:: \ell_t = e_a M_{t-1} + c u M_t + |b_t| \left( (\gamma_D + c u_p) |c_t|^T M_{t-1} \right)
    + (2 u_p + \ldots) |k_t| |v_t|^T

to the error of S, :math:`e_a` being that of the decay: a chunked kernel takes differences of sums of log-decays, and so
loses :math:`2u \sum |g|` of the chunk. The errors of earlier steps pass through :math:`A_t = \text{diag}(a_t) - b_t
c_t^T`. Two bounds follow, and the smaller one counts, element by element:

.. math:: E_t = |a_t| E_{t-1} + |b_t| (|c_t|^T E_{t-1}) + \ell_t, \qquad
    \epsilon_t = \|A_t\|_2\, \epsilon_{t-1} + \|\ell_t\|

The first is tight where keys do not overlap, the second where they do: :math:`I - \beta k k^T` does not lengthen a
vector when :math:`\beta \|k\|^2 \le 2`, though its absolute values would. Without b and c the first is always taken.

The variance takes all of them as independent. It passes through the squares of the elements of A,

.. math:: V_t = a_t^2 V_{t-1} - 2 a_t b_t c_t V_{t-1} + b_t^2 (c_t^2)^T V_{t-1} + \text{SHARE} \cdot (\ldots)

except for decays that are the same in every step: their error is the same, too, and moves S along
:math:`X_t = a \odot (X_{t-1} + S_{t-1})`.
"""

from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import SHARE, Units, gamma
from refattn.testing.recurrence.oracle import kept
from refattn.testing.recurrence.rough import Rough

FIRST_ORDER = 1.1  # for what the first-order rules leave out


@dataclass(frozen=True)
class Steps:
    """A recurrence in the general form: one batch of sequences."""

    q: Rough
    """(B, O, T, D), the scale included; O is a multiple of V."""
    k: Rough
    """(B, V, T, D)."""
    v: Rough
    """(B, V, T, W)."""
    a: Rough
    """Decays: broadcasts to (B, V, T, D, W)."""
    S: Array
    """(B, V, D, W)."""
    b: Array | None = None
    """(B, V, T, D), as is c."""
    c: Array | None = None
    b_error: Array | None = None
    """(B, V, T): the relative error of b and c."""
    delta: bool = False
    """Whether b is k times a number, so that the new values are v - Sᵀc."""
    before: bool = False
    """Whether q reads the state before the update, and the token itself weighed by `bonus`."""
    bonus: Rough | None = None
    """Broadcasts to (B, V, T, D)."""


@dataclass(frozen=True)
class Sums:
    """What is carried along, each (B, V, D, W)."""

    S: Array
    M: Array
    Q: Array
    """Squares of the terms, decayed: what M is to the bound, this is to the variance."""
    E: Array
    V: Array
    X: Array
    F: Array
    """(B, V, 1, W): the norm of the error of a column; a bound beside E."""
    top: Array
    """(B, V, 1, W): the largest norm of a column so far."""


def _row(x: Array, t: int) -> Array:
    """Return token t of (B, V, T, ...) as a column (B, V, D, 1)."""
    return x[:, :, t, :, None]


def _norm(x: Array) -> Array:
    return np.sqrt((x * x).sum(axis=-2, keepdims=True))


class Propagation:
    """The errors of one recurrence under one set of units."""

    def __init__(self, s: Steps, u: Units) -> None:
        self.s, self.u = s, u
        B, V, D, W = s.S.shape
        self.D, self.width = D, (B, V, D, W)
        self.p = u.p + 2 * u.products
        T = s.q.x.shape[2]
        full = (B, V, T, *s.a.x.shape[3:])
        self.a, self.a_e, self.a_s2 = (np.broadcast_to(x, full) for x in (s.a.x, s.a.e, s.a.s2))
        self.constant = T > 1 and bool((self.a == self.a[:, :, :1]).all())
        self.k_e, self.k_s2 = (np.broadcast_to(x, s.k.x.shape) for x in (s.k.e, s.k.s2))
        self.v_e, self.v_s2 = (np.broadcast_to(x, s.v.x.shape) for x in (s.v.e, s.v.s2))
        if s.b is not None and s.c is not None:
            wide = np.broadcast_to(self.a[..., 0], (B, V, T, D))
            A = wide[..., :, None] * np.eye(D) - s.b[..., :, None] * s.c[..., None, :]
            finite = np.where(np.isfinite(A), A, 0)
            self.norms = np.linalg.norm(finite, ord=2, axis=(-2, -1)) * (1 + 1e-12)

    def start(self) -> Sums:
        """Return the sums before the first token."""
        S = self.s.S
        none = np.zeros(self.width)
        return Sums(S, np.abs(S), S**2, none, none, none, none[..., :1, :], _norm(S))

    def step(self, t: int, m: Sums) -> Sums:
        """Return the sums after token t."""
        s, u, p = self.s, self.u, self.p
        a, a_e, a_s2 = self.a[:, :, t], self.a_e[:, :, t], self.a_s2[:, :, t]
        k, v = _row(s.k.x, t), s.v.x[:, :, t, None, :]
        k_e, v_e = _row(self.k_e, t), self.v_e[:, :, t, None, :]
        k_s2, v_s2 = _row(self.k_s2, t), self.v_s2[:, :, t, None, :]
        size, square = np.abs(k) * np.abs(v), (k * v) ** 2
        old, M, Q, E, passed = (kept(y, x) for y, x in ((a, m.S), (a, m.M), (a**2, m.Q), (a, m.E), (a**2, m.V)))
        S, local, var = old + k * v, np.zeros(self.width), np.zeros(self.width)
        if s.b is not None and s.c is not None and s.b_error is not None:
            b, c, b_error = _row(s.b, t), _row(s.c, t), s.b_error[:, :, t, None, None]
            r = (c * m.S).sum(axis=-2, keepdims=True)
            rho = np.maximum((np.abs(c) * np.abs(m.S)).sum(axis=-2, keepdims=True), _norm(c) * m.top)
            over = (np.abs(c) * m.M).sum(axis=-2, keepdims=True)
            S, M = S - b * r, M + np.abs(b) * rho
            E = E + np.abs(b) * (np.abs(c) * m.E).sum(axis=-2, keepdims=True)
            local = np.abs(b) * ((gamma(self.D + 4, u.acc) + 4 * p) * over + 2 * b_error * rho)
            seen = (c**2 * (m.S**2 + m.Q)).sum(axis=-2, keepdims=True)
            var = b**2 * ((u.acc**2 * (self.D / 2 + 2) + 3 * p**2) * seen + b_error**2 * r**2)
            passed = passed - 2 * a * b * c * m.V + b**2 * (c**2 * m.V).sum(axis=-2, keepdims=True)
            square = (k * v - b * r) ** 2 if s.delta else square + (b * r) ** 2
        M, Q = M + size, Q + square
        local = local + a_e * m.M + 3 * u.acc * M + 2 * p * size + np.abs(k) * v_e + k_e * (np.abs(v) + v_e)
        local = local + u.tiny_p * (np.abs(k) + np.abs(v))
        operands = (2 if s.b is None else 3) * p**2 * square
        V = passed + SHARE * (var + u.acc**2 * (2 * S**2 + old**2) + operands) + k**2 * v_s2 + k_s2 * v**2
        V = V + u.tiny_p**2 * (k**2 + v**2) / 3 + (0 if self.constant else a_s2 * m.S**2)
        X = kept(a, m.X) + m.S * np.sqrt(a_s2) if self.constant else m.X
        F = self.norms[:, :, t, None, None] * m.F + _norm(local) if s.b is not None else m.F
        return Sums(S, M, Q, E + local, np.maximum(V, 0), X, F, np.maximum(a.max() * m.top, _norm(S)))

    def read(self, t: int, m: Sums) -> tuple[Array, Array, Array]:
        """Return o, its bound and its variance at one token, (B, O, W)."""
        s, u, p = self.s, self.u, self.p
        B, V, _, W = self.width
        q = s.q[:, :, t]
        x, e, s2 = (y.reshape(B, V, -1, self.D) for y in (q.x, q.e, q.s2))
        size, squared = np.abs(x), x**2
        error = size @ m.E
        if s.b is not None:
            length = np.sqrt(squared.sum(axis=-1, keepdims=True))
            error = np.minimum(error, length @ m.F)
        o = x @ m.S
        error = error + (gamma(self.D + 3, u.acc) + 3 * u.acc + 4 * p) * (size @ m.M) + e @ m.M
        error = error + u.tiny_p * (m.M.sum(axis=-2, keepdims=True) + size.sum(axis=-1, keepdims=True))
        both = m.S**2 + m.Q
        var = squared @ m.V + s2 @ m.S**2 + SHARE * (u.acc**2 * (self.D / 2 + 2) + 2 * p**2) * (squared @ both)
        var = var + (x @ m.X) ** 2 + u.tiny_p**2 * (self.D + both.sum(axis=-2, keepdims=True)) / 3
        return tuple(y.reshape(B, -1, W) for y in (o, error, var))  # type: ignore[return-value]

    def own(self, t: int) -> Sums:
        """Return the sums of the token itself, weighed by the bonus."""
        s, u = self.s, self.u
        assert s.bonus is not None
        weighed = (s.bonus * s.k)[:, :, t]
        k, v = weighed.x[..., :, None], s.v.x[:, :, t, None, :]
        v_e, v_s2 = self.v_e[:, :, t, None, :], self.v_s2[:, :, t, None, :]
        S = k * v
        E = weighed.e[..., None] * (np.abs(v) + v_e) + np.abs(k) * v_e + (3 * u.acc + 2 * self.p) * np.abs(S)
        V = weighed.s2[..., None] * v**2 + k**2 * v_s2 + SHARE * (3 * u.acc**2 + 2 * self.p**2) * S**2
        none = np.zeros(self.width)
        return Sums(S, np.abs(S), S**2, E, V, none, _norm(E), _norm(S))


def _both(m: Sums, n: Sums) -> Sums:
    return Sums(m.S + n.S, m.M + n.M, m.Q + n.Q, m.E + n.E, m.V + n.V, m.X + n.X, m.F + n.F, m.top + n.top)


def propagate(s: Steps, u: Units) -> tuple[Rough, Rough]:
    """Return o (B, O, T, W), before its last rounding, and the last state (B, V, D, W)."""
    run = Propagation(s, u)
    m, shape = run.start(), (*s.q.x.shape[:3], s.v.x.shape[3])
    o, error, var = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for t in range(shape[2]):
        seen = _both(m, run.own(t)) if s.before else m
        m = run.step(t, m)
        o[:, :, t], error[:, :, t], var[:, :, t] = run.read(t, seen if s.before else m)
    E = np.minimum(m.E, m.F) if s.b is not None else m.E
    return (
        Rough(o, FIRST_ORDER * error, var),
        Rough(m.S, FIRST_ORDER * E, m.V + m.X**2),
    )
