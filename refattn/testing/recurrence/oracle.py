r"""What a kernel should return: the recurrences, token by token, in float64 (long double for float64 kernels).

The state S maps keys to values. Every operation is a case of

.. math:: S_t = A_t S_{t-1} + k_t u_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

with its own A and u. Katharopoulos et al., 2020, arXiv:2006.16236 (linear attention); Sun et al., 2023,
arXiv:2307.08621 (retention); Yang et al., 2023, arXiv:2312.06635 (gated linear attention); Yang et al., 2024,
arXiv:2406.06484 (delta rule) and arXiv:2412.06464 (gated delta rule); Kimi Team, 2025, arXiv:2510.26692 (kda);
Gu and Dao, 2023, arXiv:2312.00752 (selective scan); Dao and Gu, 2024, arXiv:2405.21060 (ssd); Peng et al., 2023,
arXiv:2305.13048 (rwkv4), 2024, arXiv:2404.05892 (rwkv6), 2025, arXiv:2503.14456 (rwkv7).

A decay of exactly 0 forgets by selection, so that it forgets infinities, too.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.recurrence.problem import Problem, sequences_of, wide_values

States = tuple[Array, ...]
Values = dict[str, Array]


def shared(x: Array, heads: int) -> Array:
    """Give each of `heads` heads its own copy of the head that it reads."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def kept(a: Array, S: Array) -> Array:
    """Return a ⊙ S; what is multiplied by 0 is gone, be it infinite."""
    return np.where(a == 0, np.zeros((), S.dtype), a * S)


def outer(k: Array, u: Array) -> Array:
    """Return k uᵀ, (..., D, W)."""
    return k[..., :, None] * u[..., None, :]


def read(q: Array, S: Array) -> Array:
    """Return Sᵀ q, (..., W)."""
    return np.asarray((q[..., :, None] * S).sum(axis=-2))


def scan(q: Array, k: Array, v: Array, a: Array, S: Array) -> tuple[Array, Array]:
    """S ← a ⊙ S + k vᵀ; o = Sᵀ q.

    q is (B, O, T, D), k (B, V, T, D), v (B, V, T, W), a broadcasts to (B, V, T, D, W).
    """
    o = np.zeros((*q.shape[:3], v.shape[3]), S.dtype)
    for t in range(q.shape[2]):
        S = kept(a[:, :, t], S) + outer(k[:, :, t], v[:, :, t])
        o[:, :, t] = read(q[:, :, t], shared(S, q.shape[1]))
    return o, S


def delta_scan(q: Array, k: Array, v: Array, a: Array, beta: Array, S: Array) -> tuple[Array, Array]:
    """S ← a ⊙ S; S ← S + k (β (v - Sᵀ k))ᵀ; o = Sᵀ q."""
    o = np.zeros((*q.shape[:3], v.shape[3]), S.dtype)
    for t in range(q.shape[2]):
        S = kept(a[:, :, t], S)
        u = beta[:, :, t, None] * (v[:, :, t] - read(k[:, :, t], S))
        S = S + outer(k[:, :, t], u)
        o[:, :, t] = read(q[:, :, t], shared(S, q.shape[1]))
    return o, S


def elu_plus_one(x: Array) -> Array:
    """Return the feature map of linear attention: x + 1 where x > 0, else e^x."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def softplus(x: Array) -> Array:
    """Return log(1 + e^x)."""
    return np.logaddexp(x.dtype.type(0), x)


def silu(x: Array) -> Array:
    """Return x / (1 + e^-x)."""
    return np.asarray(x / (1 + np.exp(-x)))


def scale_of(p: Problem) -> float:
    """Return the scale: 1/√D unless given, and 1 for RWKV."""
    given = p.options.get("scale")
    if given is not None:
        return float(given)
    return 1.0 if p.op.startswith("rwkv") else float(1 / np.sqrt(np.longdouble(p.sizes["D"])))


def _attend(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """Retention, simple_gla, gated_linear_attention, and the three delta rules."""
    B, V, T = p.shape("BVT")
    k = shared(x["k"], V)
    g = x.get("log_decay", np.zeros(1, x["v"].dtype))
    g = {1: g.reshape(1, -1, 1, 1, 1), 3: g[..., None, None], 4: g[..., None]}[g.ndim]
    a = np.broadcast_to(np.exp(g), (B, V, T, *g.shape[3:]))
    q = shared(x["q"], p.sizes["O"]) * np.longdouble(scale_of(p)).astype(x["q"].dtype)
    if "beta" in x:
        o, last = delta_scan(q, k, x["v"], a, x["beta"], S[0])
    else:
        o, last = scan(q, k, x["v"], a, S[0])
    return o, (last,)


def _linear_attention(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """The mean of the values seen, weighed by φ(q)·φ(k), and 0 where all weights are 0."""
    q, k = shared(elu_plus_one(x["q"]), p.sizes["O"]), shared(elu_plus_one(x["k"]), p.sizes["V"])
    v = np.concatenate([x["v"], np.ones_like(x["v"][..., :1])], axis=-1)
    a = np.ones((1, 1, p.sizes["T"], 1, 1), v.dtype)
    o, last = scan(q, k, v, a, np.concatenate([S[0], S[1][..., None]], axis=-1))
    num, den = o[..., :-1], o[..., -1:]
    if p.options.get("normalize", True):
        num = np.where(den == 0, 0, num / np.where(den == 0, 1, den))
    return num, (last[..., :-1], last[..., -1])


def step_sizes(dt: Array, bias: Array | None, soft: bool, limit: tuple[float, float]) -> Array:
    """Return Δ: with its bias, then through softplus, then within its limits."""
    dt = dt if bias is None else dt + bias
    dt = softplus(dt) if soft else dt
    return np.clip(dt, *(dt.dtype.type(x) for x in limit))


def _gated(y: Array, x: Values, skip: Array) -> Array:
    """Add D x, then multiply by silu(z)."""
    y = y + skip if "D" in x else y
    return y * silu(x["z"]) if "z" in x else y


def _ssd(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """H ← exp(ΔA) h + Δ B xᵀ; y = hᵀ C + D x."""
    H, limit = p.sizes["H"], p.options.get("dt_limit", (0.0, np.inf))
    bias = x["dt_bias"][:, None] if "dt_bias" in x else None
    dt = step_sizes(x["dt"], bias, p.options.get("dt_softplus", False), limit)
    a = np.exp(dt * x["A"][:, None])[..., None, None]
    y, last = scan(shared(x["C"], H), shared(x["B"], H), dt[..., None] * x["x"], a, S[0])
    return _gated(y, x, x["D"][:, None, None] * x["x"] if "D" in x else y), (last,)


def _selective_scan(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """H ← exp(ΔA) ⊙ h + (Δ u) Bᵀ; y = h C + D u, for each channel by itself."""
    dt = step_sizes(x["delta"], x.get("delta_bias"), p.options.get("delta_softplus", False), (-np.inf, np.inf))
    a = np.exp(dt[..., None, :] * x["A"].T)[:, None]  # (B, 1, T, N, E)
    y, last = scan(x["C"][:, None], x["B"][:, None], (dt * x["u"])[:, None], a, S[0].swapaxes(-1, -2)[:, None])
    return _gated(y[:, 0], x, x["D"] * x["u"] if "D" in x else y[:, 0]), (last[:, 0].swapaxes(-1, -2),)


def _causal_conv1d(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """y_t = Σ_i w_i x_{t-K+1+i} + bias; the state is the last K - 1 inputs."""
    whole = np.concatenate([S[0], x["x"]], axis=1)
    K, T = p.sizes["K"], p.sizes["T"]
    y: Array = np.zeros_like(x["x"])
    for i in range(K):
        y = y + x["weight"][:, i] * whole[:, i : i + T]
    y = y + x["bias"] if "bias" in x else y
    y = silu(y) if p.options.get("activation") else y
    return y, (whole[:, whole.shape[1] - (K - 1) :],)


def _rwkv4(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """The mean of v weighed by e^k, which decays by e^-w a token, and by e^(u + k) for the token itself."""
    num, den, m = S
    o = np.zeros_like(x["v"])
    for t in range(p.sizes["T"]):
        k, v = x["k"][:, t], x["v"][:, t]
        top = np.maximum(m, x["u"] + k)
        old, new = np.exp(m - top), np.exp(x["u"] + k - top)
        o[:, t] = (old * num + new * v) / (old * den + new)
        top = np.maximum(m - x["w"], k)
        old, new = np.exp(m - x["w"] - top), np.exp(k - top)
        num, den, m = old * num + new * v, old * den + new, top
    return o, (num, den, m)


def _rwkv6(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """O = (S + diag(u) k vᵀ)ᵀ r; then S ← diag(w) S + k vᵀ."""
    state, o = S[0], np.zeros_like(x["v"])
    for t in range(p.sizes["T"]):
        new = outer(x["k"][:, :, t], x["v"][:, :, t])
        o[:, :, t] = scale_of(p) * read(x["r"][:, :, t], state + x["u"][..., None] * new)
        state = kept(np.exp(x["log_decay"][:, :, t])[..., None], state) + new
    return o, (state,)


def _rwkv7(p: Problem, x: Values, S: States) -> tuple[Array, States]:
    """S ← diag(w) S - (a ⊙ κ)(Sᵀ κ)ᵀ + k vᵀ; o = Sᵀ r."""
    state, o = S[0], np.zeros_like(x["v"])
    for t in range(p.sizes["T"]):
        kappa = x["kappa_hat"][:, :, t]
        erased = outer(x["a"][:, :, t] * kappa, read(kappa, state))
        state = kept(np.exp(x["log_decay"][:, :, t])[..., None], state) - erased
        state = state + outer(x["k"][:, :, t], x["v"][:, :, t])
        o[:, :, t] = scale_of(p) * read(x["r"][:, :, t], state)
    return o, (state,)


ORACLES: dict[str, Callable[[Problem, Values, States], tuple[Array, States]]] = {
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


def wide_dtype(contract: Contract) -> Any:
    """Return the dtype of the oracle."""
    return np.longdouble if contract.dtype == "float64" else np.float64


def first_states(p: Problem, wide: Any) -> States:
    """Return the initial states as wide numbers; zeros, and a running maximum of -inf, unless they are given."""
    if p.initial is not None:
        return tuple(x.astype(wide) for x in p.initial)
    return tuple(np.full(p.state_shape(f), -np.inf if f.name == "max" else 0, wide) for f in p.family.states)


def truth(p: Problem, contract: Contract, **values: Array) -> tuple[Array, States]:
    """Return o and the states that are right for a problem; `values` stand in for some of its arrays."""
    wide = wide_dtype(contract)
    parts = []
    with np.errstate(all="ignore"):
        for one in sequences_of(p.changed(**values)):
            parts.append(ORACLES[p.op](one, wide_values(one, contract, wide), first_states(one, wide)))
    if len(parts) == 1:
        return parts[0]
    o = np.concatenate([o for o, _ in parts], axis=p.family.o.index("T"))
    return o, tuple(np.concatenate(states) for states in zip(*(s for _, s in parts), strict=True))
