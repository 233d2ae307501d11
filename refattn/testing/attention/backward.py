r"""The gradients in float64, and how far rounding may carry them.

.. math::
    dp_{ij} = do_i \cdot v_j, \quad
    \Delta_i = \sum_j p_{ij} dp_{ij} - dlse_i, \quad
    ds_{ij} = p_{ij}(dp_{ij} - \Delta_i)

Three errors meet in ds: that of p, which is recomputed from lse (:math:`\varepsilon`), that of dp
(:math:`\gamma_{D_v} \sum |do||v|`), and that of :math:`\Delta`, the same for a whole row, which kernels take from the
*rounded* o. The products with k and q round ds to the format of p, and add up. FlashAttention-2, Dao, 2023,
arXiv:2307.08691, algorithm 2, is the order of steps assumed.
"""

from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention import forward
from refattn.testing.attention.forward import SHARE, Sizes, Units, gamma
from refattn.testing.attention.oracle import Truth, truth, wide_dtype
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract
from refattn.testing.formats import UNIT, decode

GRADIENTS = ("dq", "dk", "dv", "dbias", "dsinks")


@dataclass(frozen=True)
class Slopes:
    """The steps of the backward pass in float64."""

    t: Truth
    do: Array
    dp: Array
    """do·v with dropout, 0 where hidden, (B, H, Tq, Tk)."""
    pull: Array
    """Δ, (B, H, Tq, 1)."""
    ds: Array
    """p (dp - Δ): the gradient of a score after soft cap and bias."""
    chain: Array
    """scale times the slope of the soft cap: the gradient of q·k per ds."""


def slopes(p: Problem, contract: Contract) -> Slopes:
    """Return the steps of the backward pass of one problem; do must be given."""
    wide = wide_dtype(contract)
    t = truth(p, contract)
    if p.do is None:
        raise ValueError("a backward problem needs do, the cotangent of o")
    do = decode(p.do, contract.dtype, wide)
    do = np.where(t.blind[..., None], 0, do)
    dp = np.where(t.visible, t.keep * (np.where(np.isfinite(do), do, 0) @ t.v.swapaxes(-1, -2)), 0)
    pull = (t.p * dp).sum(axis=-1, keepdims=True)
    if p.options.get("dlse") is not None:
        pull = pull - np.where(t.blind, 0, p.options["dlse"].astype(wide))[..., None]
    return Slopes(t, do, dp, pull, t.p * (dp - pull), t.scale * t.slope)


def per_kv_head(x: Array, Hk: int) -> Array:
    """Add up the query heads that share a key head: (B, H, T, D) to (B, Hk, T, D)."""
    B, H, T, D = x.shape
    return x.reshape(B, Hk, H // Hk, T, D).sum(axis=2)


def over(x: Array, shape: tuple[int, ...]) -> Array:
    """Add up the axes along which an array of `shape` was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1 and x.shape[axis] != 1)
    return np.asarray(x.sum(axis=repeated, keepdims=True))


def gradients(p: Problem, s: Slopes) -> dict[str, Array]:
    """Return the gradients of every input that was given, NaN where a NaN was seen."""
    t, Hk = s.t, p.k.shape[1]
    through = s.ds * s.chain
    found = {
        "dq": through @ t.k,  # was: s = softcap(scale q @ k.T) + bias
        "dk": per_kv_head(through.swapaxes(-1, -2) @ t.q, Hk),
        "dv": per_kv_head((t.p * t.keep).swapaxes(-1, -2) @ s.do, Hk),  # was: o = (p keep) @ v
    }
    if p.options.get("bias") is not None:
        found["dbias"] = over(s.ds, p.options["bias"].shape)
    if p.options.get("sinks") is not None:
        found["dsinks"] = -(t.p_sink * s.pull).sum(axis=(0, 2, 3))
    return found


def backward_errors(p: Problem, contract: Contract, s: Slopes) -> dict[str, dict[str, Array]]:
    """Return bound and sigma of each gradient, by name."""
    u = Units.of(contract)
    sizes = Sizes.of(s.t, u)
    bounds, variances = _bounds(p, contract, s, u, sizes), _variances(p, contract, s, u, sizes)
    out = contract.numerics["out"]
    wide_out = "float64" if contract.dtype == "float64" else "float32"  # of bias and sinks
    found: dict[str, dict[str, Array]] = {}
    for name, x in gradients(p, s).items():
        of = out if name in ("dq", "dk", "dv") else wide_out
        unit = u.out if name in ("dq", "dk", "dv") else UNIT[wide_out]
        found[name] = {
            "o": x,
            "bound": forward.rounded(bounds[name], x, unit, u.tiny_out),
            "sigma": forward.spread_of(variances[name], x, u if of == out else _with_out(u, unit), of),
        }
    return found


def _with_out(u: Units, unit: float) -> Units:
    return Units(**{**u.__dict__, "out": unit})


def _bounds(p: Problem, contract: Contract, s: Slopes, u: Units, sizes: Sizes) -> dict[str, Array]:
    t, Hk, N, Tq, Dv = s.t, p.k.shape[1], s.t.k.shape[-2], s.t.q.shape[-2], s.t.v.shape[-1]
    eps = forward.weight_error(t, u, sizes)
    lse = forward.lse_error(t, u, sizes, eps)[..., None]
    eps = np.where(t.visible, np.expm1(np.minimum(np.log1p(eps) + lse, 50.0)), 0)
    do, size = np.abs(s.do), np.abs(s.do) @ np.abs(t.v).swapaxes(-1, -2) * t.keep
    over_values = gamma(Dv + 2, u.acc)
    e_dp = np.where(t.visible, ((1 + u.products) ** 2 * (1 + over_values) - 1) * size, 0)
    raw = forward.bound(t, u, sizes, forward.weight_error(t, u, sizes))
    again = (1 + u.out) * (1 + over_values) - 1  # o is rounded, and summed against do
    from_o = (do * (np.abs(np.nan_to_num(t.o)) * again + raw * (1 + again))).sum(-1, keepdims=True)
    from_p = (t.p * (eps * np.abs(s.dp) + e_dp + gamma(N + 2, u.acc) * np.abs(s.dp))).sum(-1, keepdims=True)
    e_pull = np.maximum(from_o, from_p) + 2 * u.acc * np.abs(s.pull)
    if p.options.get("dlse") is not None:
        e_pull = e_pull + 4 * u.acc * np.abs(p.options["dlse"])[..., None]
    centred = np.abs(s.dp - s.pull)
    e_ds = t.p * (eps * centred + (1 + eps) * (e_dp + e_pull + 2 * u.acc * (np.abs(s.dp) + np.abs(s.pull))))
    chain = np.abs(s.chain)
    bend = 0.0
    if p.options.get("softcap") is not None:  # the slope 1 - tanh² is off, too
        shift = forward.score_error(t, u, sizes) / p.options["softcap"]
        bend = np.abs(t.scale) * (2 * np.sqrt(np.maximum(1 - t.slope, 0)) * (shift + 4 * u.acc) + shift**2 + 4 * u.acc)
    through = chain * e_ds * (1 + u.p) + (u.p + 3 * u.acc) * chain * np.abs(s.ds) + bend * (np.abs(s.ds) + e_ds)
    through = through + np.where(t.visible, u.tiny_p * max(1.0, float(np.abs(t.scale))), 0)
    size_through = chain * np.abs(s.ds)
    over_keys, over_queries = gamma(N + 2 * sizes.tiles, u.acc) + u.products, gamma(Tq + 8, u.acc) + u.products
    w = t.p * t.keep
    e_w = t.keep * (t.p * (eps + u.p * (1 + eps)) + np.where(t.visible, u.tiny_p, 0))
    group = 2 * u.acc * (t.q.shape[1] // Hk)
    found = {
        "dq": (through * (1 + over_keys) + over_keys * size_through) @ np.abs(t.k),
        "dk": per_kv_head(
            (through * (1 + over_queries) + (over_queries + group) * size_through).swapaxes(-1, -2) @ np.abs(t.q), Hk
        ),
        "dv": per_kv_head((e_w * (1 + over_queries) + (over_queries + group) * w).swapaxes(-1, -2) @ do, Hk),
    }
    if p.options.get("bias") is not None:
        shape = p.options["bias"].shape
        terms = s.ds.size / max(1, int(np.prod(shape)))
        found["dbias"] = over(e_ds + gamma(terms + 2, u.acc) * np.abs(s.ds), shape)
    if p.options.get("sinks") is not None:
        e_sink = np.expm1(np.minimum(lse + 8 * u.acc * (1 + np.abs(t.m)), 50.0))
        terms = t.q.shape[0] * Tq
        each = t.p_sink * (np.abs(s.pull) * (e_sink + gamma(terms + 2, u.acc)) + (1 + e_sink) * e_pull)
        found["dsinks"] = each.sum(axis=(0, 2, 3))
    return found


def _variances(p: Problem, contract: Contract, s: Slopes, u: Units, sizes: Sizes) -> dict[str, Array]:
    t, Hk, Dv = s.t, p.k.shape[1], s.t.v.shape[-1]
    e2 = forward.score_variance(t, u, sizes)
    row = (t.p**2 * e2).sum(-1, keepdims=True) + SHARE * u.acc**2 * (np.where(t.blind, 0, t.lse)[..., None] ** 2 + 3)
    do2, v2 = s.do**2, t.v**2
    of_dp = np.where(t.visible, SHARE * (u.acc**2 * (Dv / 2) + 2 * u.products**2) * (do2 @ v2.swapaxes(-1, -2)), 0)
    of_dp = of_dp * t.keep**2
    o2 = np.nan_to_num(t.o) ** 2
    own = forward.variance(t, u, sizes, e2)
    of_pull = (do2 * (own + SHARE * (u.out**2 + u.acc**2 * (Dv / 2)) * o2)).sum(-1, keepdims=True)
    centred = (s.dp - s.pull) ** 2
    of_ds = t.p**2 * (centred * e2 + of_dp)  # of each pair by itself; what a whole row shares comes separately
    through = s.chain**2 * (of_ds + SHARE * (u.p**2 + 3 * u.acc**2) * t.p**2 * centred)
    if p.options.get("softcap") is not None:  # the slope 1 - tanh² is off by the score's error and by its own
        t2, cap = 1 - t.slope, p.options["softcap"]
        raw = (u.acc**2 * (t.q.shape[-1] / 2) + 2 * u.products**2 + u.q**2) * sizes.squares
        bend = SHARE * t.scale**2 * (4 * t2 * t.slope**2 * raw / cap**2 + u.acc**2 * (16 * t2**2 + t.slope**2))
        through = through + bend * s.ds**2
    shared_p, shared_ds = s.chain * t.p, s.chain * s.ds
    k2, q2 = t.k**2, t.q**2
    across = through.swapaxes(-1, -2)
    sums = SHARE * (u.acc**2 * (u.tile / 2) + u.products**2)
    of_row = of_pull * shared_p**2 + row * shared_ds**2
    dq = through @ k2 + of_pull * (shared_p @ t.k) ** 2 + row * (shared_ds @ t.k) ** 2
    dk = across @ q2 + of_row.swapaxes(-1, -2) @ q2
    dv = (t.p**2 * t.keep**2 * (e2 + row + SHARE * (u.p**2 + u.products**2))).swapaxes(-1, -2) @ do2
    dv = dv + SHARE * u.acc**2 * (u.tile / 2) * ((t.p * t.keep) ** 2).swapaxes(-1, -2) @ do2
    found = {
        "dq": dq + sums * (shared_ds**2 @ k2) + u.tiny_p**2 / 3 * k2.sum(-2, keepdims=True),
        "dk": per_kv_head(
            dk + sums * (shared_ds**2).swapaxes(-1, -2) @ q2 + u.tiny_p**2 / 3 * q2.sum(-2, keepdims=True), Hk
        ),
        "dv": per_kv_head(dv + u.tiny_p**2 / 3 * do2.sum(-2, keepdims=True), Hk),
    }
    if p.options.get("bias") is not None:
        found["dbias"] = over(of_ds + of_pull * t.p**2 + row * s.ds**2, p.options["bias"].shape)
    if p.options.get("sinks") is not None:
        found["dsinks"] = (t.p_sink**2 * (of_pull + s.pull**2 * (row + 4 * SHARE * u.acc**2))).sum(axis=(0, 2, 3))
    return found
