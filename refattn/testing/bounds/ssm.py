"""How far state spaces and the short convolution may lie from the reference: their sums again, with `Near` numbers."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.linear.common import share_heads, sum_heads
from refattn.results import ConvGradients, Recurrent, S4dGradients, SelectiveScanGradients, SsdGradients
from refattn.ssm.common import packed, sigmoid, silu
from refattn.testing.bounds.scans import Near, Scan, gate_slope, stacked, step_of, total
from refattn.testing.bounds.weights import UNDERFLOW, finite, size_of


def _given(found: Near, x: Any) -> Any:
    return None if x is None else found.e


STATES: tuple[str, ...] = ("initial_state", "dstate")
TOKENS = {"u": -2, "delta": -2, "x": -2, "dt": -1, "B": -2, "C": -2, "z": -2, "do": -2}
JOINED: dict[str, Any] = {f"d{name}": axis for name, axis in TOKENS.items()}
JOINED |= dict.fromkeys(("dA", "dD", "ddelta_bias", "ddt_bias", "dweight", "dbias"), "sum")


def by_sequences(bound: Callable[..., Any]) -> Callable[..., Any]:
    """Let a bound take packed sequences, one after the other."""

    def whole(eps: float, *args: Array, cu_seqlens: Any = None, chunk: int = 0, **options: Any) -> Any:
        if cu_seqlens is None:
            return bound(*args, **options)
        names = bound.__annotations__
        found = dict(zip(names, args, strict=False)) | options
        states = {name: found.pop(name, None) for name in STATES if name in names}
        tokens = {name: (found.pop(name), TOKENS[name]) for name in [*found] if name in TOKENS}
        return packed(partial(bound, **found), cu_seqlens, tokens, states, **JOINED)

    return whole


@by_sequences
def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    initial_state: Any = None,
) -> Recurrent:
    """Bound `selective_scan` and its forms."""
    bias = np.zeros(1) if delta_bias is None else delta_bias
    step = step_of(delta + bias, size_of(delta) + abs(bias), delta_softplus, (-math.inf, math.inf))
    scan = Scan(u, *step, A, B, C, initial_state)
    return Recurrent(scan.output(D, z), scan.states[-1].e)


@by_sequences
def selective_scan_vjp(
    do: Array,
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    initial_state: Any = None,
    dstate: Any = None,
) -> SelectiveScanGradients:
    """Bound `selective_scan_vjp`."""
    bias = np.zeros(1) if delta_bias is None else delta_bias
    raw, size = delta + bias, size_of(delta) + abs(bias)
    scan = Scan(u, *step_of(raw, size, delta_softplus, (-math.inf, math.inf)), A, B, C, initial_state)
    d = scan.backward(do, D, z, dstate)
    ddelta = _through(d["step"] + d["v_x"], raw, size, delta_softplus)
    dA, dD, dbias = total(d["A"], A.shape), total(d["D"], A.shape[:1]), total(ddelta, A.shape[:1])
    dz = d.get("z", dD)
    return SelectiveScanGradients(
        *(d["x"].e, ddelta.e, dA.e, d["B"].e, d["C"].e),
        *(_given(dD, D), _given(dz, z), _given(dbias, delta_bias), _given(d["state"], initial_state)),
    )


def _through(dstep: Near, raw: Array, size: Array, soft: bool) -> Near:
    """Return the gradient of raw steps."""
    slope = sigmoid(finite(raw))
    return dstep * Near(slope, 2 * slope + slope * (1 - slope) * size) if soft else dstep


def _ssd_scan(x: Array, dt: Array, A: Array, B: Array, C: Array, o: dict[str, Any]) -> tuple[Scan, Array, Array, Any]:
    """Return the scan of heads, its raw steps and their size, and D with axes."""
    H, heads = A.shape[0], x.ndim > 2
    bias = np.zeros(H) if o.get("dt_bias") is None else o["dt_bias"]
    bias = bias[:, None] if heads else bias
    raw, size = dt + bias, size_of(dt) + abs(bias)
    limit = o.get("dt_limit", (0.0, math.inf))
    value, step = step_of(raw, size, o.get("dt_softplus", False), limit)
    state = o.get("initial_state")
    state = None if state is None else state.swapaxes(-1, -2)
    k, q = share_heads(B, H), share_heads(C, H)
    A = A.reshape(-1, 1, 1, 1) if heads else A.reshape(1, 1, 1)
    scan = Scan(x, value[..., None], step.map(lambda y: y[..., None]), A, k, q, state)
    D = o.get("D")
    return scan, raw, size, D if D is None else D.reshape(-1, 1, 1) if heads else D


@by_sequences
def ssd(x: Array, dt: Array, A: Array, B: Array, C: Array, z: Any = None, initial_state: Any = None, **o: Any) -> Any:
    """Bound `ssd` and its forms."""
    scan, _, _, D = _ssd_scan(x, dt, A, B, C, {**o, "initial_state": initial_state})
    return Recurrent(scan.output(D, z), scan.states[-1].e.swapaxes(-1, -2))


@by_sequences
def ssd_vjp(
    do: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    z: Any = None,
    initial_state: Any = None,
    dstate: Any = None,
    **o: Any,
) -> SsdGradients:
    """Bound `ssd_vjp`."""
    scan, raw, size, D = _ssd_scan(x, dt, A, B, C, {**o, "initial_state": initial_state})
    d = scan.backward(do, D, z, None if dstate is None else dstate.swapaxes(-1, -2))
    step = (d["step"] + d["v_x"]).sum(-1)
    ddt = _through(step, raw, size, o.get("dt_softplus", False))
    soft = step_of(raw, size, o.get("dt_softplus", False), (-math.inf, math.inf))[0]
    low, high = o.get("dt_limit", (0.0, math.inf))
    ddt = ddt.map(lambda y: y * ((soft >= low) & (soft <= high)))
    heads = A.shape[:1]
    dA = total(d["A"].map(lambda y: np.broadcast_to(y, scan.states[0].x.shape)).sum((-1, -2)), heads)
    dD, dbias = (total(y.sum(-1), heads) for y in (d["D"].sum(-1), ddt))
    dB, dC = (d[name].map(lambda y: sum_heads(y, B.shape[-3] if B.ndim > 2 else 1)) for name in "BC")
    dstate_ = d["state"].map(lambda y: y.swapaxes(-1, -2))
    return SsdGradients(
        *(d["x"].e, ddt.e, dA.e, dB.e, dC.e),
        *(_given(dD, o.get("D")), _given(d.get("z", dD), z), _given(dbias, o.get("dt_bias"))),
        _given(dstate_, initial_state),
    )


class _Oscillations:
    """The state space S4D: sizes of complex numbers."""

    def __init__(self, u: Array, delta: Array, A: Array, C: Array, D: Any, state: Any) -> None:
        z = delta[:, None] * A
        size, decay = abs(z), np.exp(z.real)
        safe = np.where(size == 0, 1, size)
        phi = np.where(size == 0, 1, abs(np.expm1(z)) / safe)
        slope = np.minimum(0.5, (decay + phi) / safe)
        curve = np.minimum(1 / 3, (decay + 2 * slope) / safe)
        self.step, self.C, self.u = Near.exact(delta)[:, None], Near.exact(C), Near.exact(u)
        self.a = Near(decay, decay * (1 + 3 * size) + UNDERFLOW)
        self.phi, self.slope = Near(phi, 4 * phi + 2 * size * slope), Near(slope, 4 * slope + 2 * size * curve)
        self.b, self.A = self.step * self.phi, Near.exact(A)
        self.states = [Near.exact(np.zeros((*u.shape[:-2], *A.shape)) if state is None else _length(state))]
        y, two = [], Near.exact(np.full(1, 2.0))
        for t in range(u.shape[-2]):
            self.states.append(self.a * self.states[t] + self.b * self.u[..., t, :, None])
            y.append((two * self.C * self.states[-1]).sum(-1))
        y_ = stacked(y, u)
        self.y = y_ if D is None else y_ + Near.exact(D) * self.u


def _length(pairs: Array) -> Array:
    return np.asarray(np.hypot(pairs[..., 0], pairs[..., 1]))


def _pair(x: Near) -> Array:
    return np.stack([x.e, x.e], axis=-1)


def s4d(eps: float, u: Array, delta: Array, *parameters: Array, D: Any = None, initial_state: Any = None) -> Recurrent:
    """Bound `s4d` and `s4d_recurrent`."""
    A, C = (a + 1j * b for a, b in (parameters[:2], parameters[2:]))
    found = _Oscillations(u, delta, A, C, D, initial_state)
    return Recurrent(found.y.e, _pair(found.states[-1]))


def s4d_vjp(
    eps: float,
    do: Array,
    u: Array,
    delta: Array,
    *parameters: Array,
    D: Any = None,
    initial_state: Any = None,
    dstate: Any = None,
) -> S4dGradients:
    """Bound `s4d_vjp`."""
    A, C = (a + 1j * b for a, b in (parameters[:2], parameters[2:]))
    f = _Oscillations(u, delta, A, C, D, initial_state)
    zero = Near.exact(np.zeros((*u.shape[:-2], *A.shape)))
    dh, dy, du = zero if dstate is None else Near.exact(_length(dstate)), Near.exact(do), []
    da, db, dC, two = zero, zero, zero, Near.exact(np.full(1, 2.0))
    for t in reversed(range(u.shape[-2])):
        dh = dh + two * f.C * dy[..., t, :, None]
        dC = dC + two * f.states[t + 1] * dy[..., t, :, None]
        du.append((f.b * dh).sum(-1))
        da, db = da + f.states[t] * dh, db + f.u[..., t, :, None] * dh
        dh = f.a * dh
    da, db, dC = (total(y, A.shape) for y in (da, db, dC))
    dlog = f.a * da + f.step * f.slope * db
    ddelta = (f.A * dlog + f.phi * db).sum(-1)
    dA, du_ = (f.step * dlog).e, stacked(du[::-1], u)
    du_ = du_ if D is None else du_ + Near.exact(D) * dy
    dD = total(dy * f.u, A.shape[:1])
    dstate_ = None if initial_state is None else _pair(dh)
    return S4dGradients(du_.e, ddelta.e, dA, dA, dC.e, dC.e, _given(dD, D), dstate_)


def _filtered(x: Array, weight: Array, bias: Any, initial_state: Any) -> tuple[Array, Array, Near]:
    """Return the inputs with those before them, the filtered ones, and these with their errors."""
    K, T = weight.shape[1], x.shape[-2]
    before = np.zeros((*x.shape[:-2], K - 1, x.shape[-1])) if initial_state is None else initial_state
    whole = np.concatenate([before, x], axis=-2)
    b = np.zeros(1) if bias is None else bias
    y = sum((weight[:, i] * whole[..., i : i + T, :] for i in range(K)), np.zeros(x.shape)) + b
    taps = [Near.exact(weight[:, i]) * Near.exact(whole)[..., i : i + T, :] for i in range(K)]
    return whole, y, sum(taps, Near.exact(np.zeros(x.shape))) + Near.exact(b)


@by_sequences
def causal_conv1d(
    x: Array, weight: Array, bias: Any = None, activation: Any = None, initial_state: Any = None
) -> Recurrent:
    """Bound `causal_conv1d`; the state is copied."""
    whole, y, near = _filtered(x, weight, bias, initial_state)
    e = near.e if activation is None else gate_slope(y).x * near.e + 2 * abs(silu(finite(y))) + UNDERFLOW
    return Recurrent(e, np.zeros(whole[..., x.shape[-2] :, :].shape))


@by_sequences
def causal_conv1d_vjp(
    do: Array,
    x: Array,
    weight: Array,
    bias: Any = None,
    activation: Any = None,
    initial_state: Any = None,
    dstate: Any = None,
) -> ConvGradients:
    """Bound `causal_conv1d_vjp`."""
    whole, y, near = _filtered(x, weight, bias, initial_state)
    K, T, dy = weight.shape[1], x.shape[-2], Near.exact(do)
    if activation is not None:
        slope, y = gate_slope(y), finite(y)
        curve = sigmoid(y) * sigmoid(-y) * (2 + abs(y))
        dy = dy * Near(slope.x, slope.e + curve * near.e)
    rows = whole.shape[-2]
    last = np.zeros((*x.shape[:-2], K - 1, x.shape[-1])) if dstate is None else dstate
    dwhole = Near.exact(np.concatenate([np.zeros(x.shape), last], axis=-2))
    dweight = []
    for i in range(K):
        pad = [(0, 0)] * (x.ndim - 2) + [(i, rows - T - i), (0, 0)]
        dwhole = dwhole + (Near.exact(weight[:, i]) * dy).map(lambda y, pad=pad: np.pad(y, pad))  # type: ignore[misc]
        dweight.append(total(dy * Near.exact(whole)[..., i : i + T, :], x.shape[-1:]).e)
    dbias = total(dy, x.shape[-1:])
    state = None if initial_state is None else dwhole.e[..., : K - 1, :]
    return ConvGradients(dwhole.e[..., K - 1 :, :], np.stack(dweight, -1), _given(dbias, bias), state)


BOUNDS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("s4d", "s4d_recurrent"), s4d),
    "s4d_vjp": s4d_vjp,
    **{f"selective_scan{form}": selective_scan for form in ("", "_recurrent", "_chunked")},
    "selective_scan_vjp": selective_scan_vjp,
    **{f"ssd{form}": ssd for form in ("", "_recurrent", "_chunked")},
    "ssd_vjp": ssd_vjp,
    "causal_conv1d": causal_conv1d,
    "causal_conv1d_vjp": causal_conv1d_vjp,
}
