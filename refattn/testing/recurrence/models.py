"""Each operation as a recurrence of the general form, with the errors of what goes in and of what is done to o."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import SHARE, Units, gamma
from refattn.testing.contract import Contract
from refattn.testing.recurrence.errors import Steps, propagate
from refattn.testing.recurrence.oracle import (
    States,
    elu_plus_one,
    first_states,
    scale_of,
    shared,
    silu,
    softplus,
    truth,
)
from refattn.testing.recurrence.problem import Problem, sequences_of, wide_values
from refattn.testing.recurrence.rough import Rough, joined

Values = dict[str, Array]
Parts = tuple[Rough, ...]
FORGETS = 128.0  # what a log-decay of -inf counts in a sum of log-decays: e^-128 is 0 in float32


def decays(g: Rough, u: Units, chunked: bool = True) -> Rough:
    """Return e^g (B, V, T, ...), as precise as differences of sums over a chunk are."""
    with np.errstate(invalid="ignore"):
        size = np.minimum(np.where(np.isneginf(g.x), FORGETS, np.abs(g.x)), 1e30)
    total = np.cumsum(size, axis=2)
    total[:, :, u.tile :] = total[:, :, u.tile :] - total[:, :, : -u.tile].copy() if size.shape[2] > u.tile else 0
    a = np.exp(g.x)
    relative = g.e + 2 * u.acc * (u.exp_ulp + size + total)
    variance = g.s2 + SHARE * u.acc**2 * (u.exp_ulp**2 + size**2 + (total**2 / 3 if chunked else 0))
    return Rough(a, a * np.expm1(np.minimum(relative, 50)), a**2 * variance)


def smallest(u: Units) -> float:
    """Return what x / (1 + e^-x) loses where e^-x overflows."""
    return 1e-36 if u.acc > 1e-10 else 1e-305


def _attend(p: Problem, x: Values, S: States, u: Units) -> Parts:
    B, V, T, D = p.shape("BVTD")
    g = x.get("log_decay", np.zeros(1))
    g = {1: g.reshape(1, -1, 1, 1, 1), 3: g[..., None, None], 4: g[..., None]}[g.ndim]
    a = decays(Rough.exact(np.broadcast_to(g, (B, V, T, *g.shape[3:]))), u)
    q = Rough.exact(shared(x["q"], p.sizes["O"]) * scale_of(p)).rounded(u.acc)
    q = q.rounded(u.q) if u.q else q
    k, v = shared(x["k"], V), Rough.exact(x["v"])
    if "beta" not in x:
        o, last = propagate(Steps(q, Rough.exact(k), v, a, S[0]), u)
        return o, last
    c = np.broadcast_to(a.x[..., 0], (B, V, T, D)) * k
    own = np.max(np.where(a.x > 0, a.e / np.where(a.x > 0, a.x, 1), 0), axis=(-2, -1))
    b = x["beta"][..., None] * k
    error = np.broadcast_to(own + 3 * u.acc, (B, V, T))
    o, last = propagate(Steps(q, Rough.exact(b).rounded(u.acc), v, a, S[0], b, c, error, delta=True), u)
    return o, last


def _mapped(x: Array, u: Units) -> Rough:
    """Return elu(x) + 1: the addition rounds to the accuracy of 1."""
    f = elu_plus_one(x)
    size = np.maximum(f, np.exp(np.minimum(x, 0) / 64))  # where e^x is below the accuracy of 1, it need not be precise
    return Rough(f, 4 * u.acc * size, SHARE * (u.acc * size) ** 2 * 2)


def quotient(num: Rough, den: Rough) -> Rough:
    """Return num / den, and 0 where den is exactly 0."""
    safe = np.where(den.x == 0, 1, den.x)
    o, left = np.where(den.x == 0, 0, num.x / safe), np.abs(den.x) - den.e
    e = np.where(left > 0, (num.e + np.abs(o) * den.e) / np.where(left > 0, left, 1), np.where(den.x == 0, 0, np.inf))
    return Rough(o, e, (num.s2 + o**2 * den.s2) / safe**2)


def _linear_attention(p: Problem, x: Values, S: States, u: Units) -> Parts:
    q, k = (_mapped(shared(x[name], p.sizes[heads]), u) for name, heads in (("q", "O"), ("k", "V")))
    v = Rough.exact(np.concatenate([x["v"], np.ones_like(x["v"][..., :1])], axis=-1))
    first = np.concatenate([S[0], S[1][..., None]], axis=-1)
    o, last = propagate(Steps(q, k, v, Rough.exact(np.ones((1, 1, 1, 1, 1))), first), u)
    num = o[..., :-1]
    if p.options.get("normalize", True):
        num = quotient(num, o[..., -1:])
    return num, last[..., :-1], last[..., -1]


def _step_sizes(dt: Array, bias: Array | None, soft: bool, limit: tuple[float, float], u: Units) -> Rough:
    d = Rough.exact(dt)
    if bias is not None:
        d = (d + Rough.exact(bias)).rounded(u.acc)
    if soft:  # log(1 + e^x), and not log1p: good to the accuracy of 1
        value = softplus(d.x)
        d = d.through(value, np.exp(np.minimum(d.x - value, 0)), 1.0)
        d = Rough(value, d.e + 6 * u.acc * (1 + value), d.s2 + SHARE * u.acc**2 * (2 + 2 * value**2))
        d = d.off(np.where(value > 20, np.exp(-np.maximum(value, 20)), 0))  # where libraries return x itself
    inside = (d.x > limit[0]) & (d.x < limit[1])
    return d.through(np.clip(d.x, *limit), inside, 1.0)


def _gated(y: Rough, x: Values, skip: Array | None, u: Units) -> Rough:
    if skip is not None:
        y = (y + Rough.exact(skip).rounded(u.acc)).rounded(u.acc)
    if "z" in x:
        z = x["z"]
        gate = silu(z)
        size = u.acc * np.abs(gate)
        gate_error = (np.abs(z) + 8 + 2 * u.exp_ulp) * size + smallest(u)
        variance = SHARE * size**2 * (z**2 / 2 + 4) + smallest(u) ** 2
        y = (y * Rough(gate, gate_error, variance)).rounded(u.acc)
    return y


def _ssd(p: Problem, x: Values, S: States, u: Units) -> Parts:
    H = p.sizes["H"]
    bias = x["dt_bias"][:, None] if "dt_bias" in x else None
    limit = p.options.get("dt_limit", (0.0, np.inf))
    dt = _step_sizes(x["dt"], bias, p.options.get("dt_softplus", False), limit, u)
    g = dt.times(x["A"][:, None]).rounded(u.acc)
    a = decays(g[..., None, None], u)
    v = (dt[..., None] * Rough.exact(x["x"])).rounded(u.acc)
    q, k = Rough.exact(shared(x["C"], H)), Rough.exact(shared(x["B"], H))
    y, last = propagate(Steps(q, k, v, a, S[0]), u)
    return _gated(y, x, x["D"][:, None, None] * x["x"] if "D" in x else None, u), last


def _selective_scan(p: Problem, x: Values, S: States, u: Units) -> Parts:
    u = replace(u, p=0.0)
    dt = _step_sizes(x["delta"], x.get("delta_bias"), p.options.get("delta_softplus", False), (-np.inf, np.inf), u)
    dt = Rough(*(np.broadcast_to(part, dt.x.shape) for part in (dt.x, dt.e, dt.s2)))
    a = decays(dt[:, None, :, None, :].times(x["A"].T).rounded(u.acc), u, chunked=False)
    v = (dt * Rough.exact(x["u"])).rounded(u.acc)[:, None]
    q, k = Rough.exact(x["C"][:, None]), Rough.exact(x["B"][:, None])
    y, last = propagate(Steps(q, k, v, a, S[0].swapaxes(-1, -2)[:, None]), u)
    last = Rough(*(part[:, 0].swapaxes(-1, -2) for part in (last.x, last.e, last.s2)))
    return _gated(y[:, 0], x, x["D"] * x["u"] if "D" in x else None, u), last


def _causal_conv1d(p: Problem, x: Values, S: States, u: Units) -> Parts:
    whole = np.concatenate([S[0], x["x"]], axis=1)
    K, T = p.sizes["K"], p.sizes["T"]
    y, size, square = np.zeros_like(x["x"]), np.zeros_like(x["x"]), np.zeros_like(x["x"])
    for i in range(K):
        term = x["weight"][:, i] * whole[:, i : i + T]
        y, size, square = y + term, size + np.abs(term), square + term**2
    if "bias" in x:
        y, size, square = y + x["bias"], size + np.abs(x["bias"]), square + x["bias"] ** 2
    r = Rough(y, gamma(K + 2, u.acc) * size, SHARE * u.acc**2 * (K / 2 + 2) * square)
    if p.options.get("activation"):
        value, half = silu(y), 1 / (1 + np.exp(-y))
        r = r.through(value, half * (1 + y * (1 - half)), 1.1)
        r = r.off((np.abs(y) + 8 + 2 * u.exp_ulp) * u.acc * np.abs(value) + smallest(u))
    return r, Rough.exact(whole[:, whole.shape[1] - (K - 1) :])


def _rwkv4(p: Problem, x: Values, S: States, u: Units) -> Parts:
    u = replace(u, p=0.0)
    num, den, m = S
    k, v = (x[name].swapaxes(-1, -2)[..., None] for name in ("k", "v"))  # (B, E, T, 1)
    reach = np.max(np.abs(k), axis=(-2, -1), keepdims=True, initial=0) + np.abs(x["u"])[:, None, None]
    reach = reach + np.where(np.isfinite(m), np.abs(m), 0)[..., None, None]
    weight = np.exp(k)
    relative = u.acc * (6 * reach + 2 * u.exp_ulp + 4)
    weigh = Rough(weight, relative * weight, SHARE * (weight * u.acc) ** 2 * (4 + reach**2))
    values = joined([(weigh * Rough.exact(v)).rounded(u.acc), weigh], axis=-1)
    rate = x["w"][:, None, None, None]
    a = np.exp(-rate)
    a_error = a * u.acc * (4 * reach[..., None] + 2 * rate + 2 * u.exp_ulp + 4)
    a_s2 = SHARE * (a * u.acc) ** 2 * (4 + rate**2 + reach[..., None] ** 2)
    decay = Rough(np.broadcast_to(a, a_error.shape), a_error, a_s2)
    first = np.where(np.isfinite(m), np.exp(m), 0)[..., None] * np.stack([num, den], axis=-1)
    ones = Rough.exact(np.ones_like(k))
    bonus = np.exp(x["u"])[:, None, None]
    own = Rough(bonus, 6 * u.acc * bonus * (1 + reach), SHARE * (bonus * u.acc) ** 2 * (4 + 2 * reach**2))
    s = Steps(ones, ones, values, decay, first[..., None, :], before=True, bonus=own)
    o, last = propagate(s, u)
    y = quotient(o[..., :1], o[..., 1:])
    top = truth(p, Contract(dtype="float64"))[1][2].astype(np.float64)
    slip = 2 * u.acc * (p.sizes["T"] + 2) * reach[..., 0, 0]
    down = np.where(np.isfinite(top), np.exp(-np.where(np.isfinite(top), top, 0)), 0)
    states = [last[:, :, 0, n].times(down) for n in (0, 1)]
    states = [Rough(s.x, s.e + np.abs(s.x) * slip, s.s2 + SHARE * (s.x * slip) ** 2) for s in states]
    y = Rough(*(np.broadcast_to(part, y.x.shape)[..., 0].swapaxes(-1, -2) for part in (y.x, y.e, y.s2)))
    return y, *states, Rough(top, slip, SHARE * slip**2)


def _rwkv6(p: Problem, x: Values, S: States, u: Units) -> Parts:
    a, r = decays(Rough.exact(x["log_decay"][..., None]), u), Rough.exact(x["r"] * scale_of(p))
    bonus = Rough.exact(x["u"][None, :, None])
    return propagate(Steps(r, Rough.exact(x["k"]), Rough.exact(x["v"]), a, S[0], before=True, bonus=bonus), u)


def _rwkv7(p: Problem, x: Values, S: States, u: Units) -> Parts:
    a, r = decays(Rough.exact(x["log_decay"][..., None]), u), Rough.exact(x["r"] * scale_of(p))
    b, error = x["a"] * x["kappa_hat"], np.full(p.shape("BHT"), 3 * u.acc)
    return propagate(Steps(r, Rough.exact(x["k"]), Rough.exact(x["v"]), a, S[0], b, x["kappa_hat"], error), u)


MODELS: dict[str, Callable[[Problem, Values, States, Units], Parts]] = {
    "linear_attention": _linear_attention,
    **dict.fromkeys(("retention", "simple_gla", "gated_linear_attention"), _attend),
    **dict.fromkeys(("delta_rule", "gated_delta_rule", "kda"), _attend),
    "ssd": _ssd,
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "rwkv4": _rwkv4,
    "rwkv6": _rwkv6,
    "rwkv7": _rwkv7,
}


def rough_result(p: Problem, contract: Contract) -> Parts:
    """Return o, before its last rounding, and the states, with the errors that a contract allows."""
    u, parts = Units.of(contract), []
    for one in sequences_of(p):
        made = MODELS[p.op](one, wide_values(one, contract), first_states(one, np.float64), u)
        parts.append([Rough(*(np.broadcast_to(y, r.x.shape) for y in (r.x, r.e, r.s2))) for r in made])
    o = joined([made[0] for made in parts], p.family.o.index("T"))
    o = Rough(o.x, o.e + 4 * u.acc * np.abs(o.x), o.s2 + 3 * SHARE * (u.acc * o.x) ** 2)
    return o, *(joined([made[n] for made in parts], 0) for n in range(1, len(parts[0])))
