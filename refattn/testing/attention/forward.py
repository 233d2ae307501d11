r"""How far rounding may carry o and lse: a bound that holds, and the standard deviation that one expects.

With u the unit roundoff of the accumulator, :math:`\gamma_n = nu/(1-nu)`, :math:`A_{ij} = \text{scale} \sum |q||k|`, h
the slope of the soft cap, and :math:`g_{ij} = m_i - s_{ij}`, a score is off by at most

.. math:: \delta_{ij} \le \gamma_{D+3} A_{ij} h_{ij} + 6u(|s_{ij}| + |m_i|) + \ldots

and its weight by a factor within :math:`1 \pm \varepsilon`, :math:`\varepsilon = e^{\delta + 3ug + 2xu + 3Tu} - 1`, for
an exponential good to x units in the last place and T tiles. Since :math:`\sum_j p_{ij} (v_j - o_i) = 0`,

.. math:: o' - o = \frac{\sum_j p_j \varepsilon_j (v_j - o)}{1 + \sum_j p_j \varepsilon_j}, \qquad
    |o' - o| \lesssim \sqrt{\textstyle\sum_j p_j \varepsilon_j^2 \; \sum_j p_j (v_j - o)^2}

by Cauchy and Schwarz: much less than the sum of absolute values where the values agree. The weights' rounding as an
operand, the sums and the final rounding come on top. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
2002, ch. 3, has the calculus.

The standard deviation takes the same roundings as independent, each of mean square `SHARE` (u x)²: that of a uniformly
distributed error within half an ulp, averaged over the mantissa.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.oracle import Truth
from refattn.testing.contract import Contract
from refattn.testing.formats import TINY, UNIT, ulp

SHARE = 0.18
LEAN = 0.72
"""By how many u a number loses that is cut off instead of rounded, on average: 1 / (2 ln 2)."""
NARROW = 2.0**-20
"""An accumulator that is rougher than this is taken to sum all keys one by one; others sum a tile at a time."""


@dataclass(frozen=True)
class Units:
    """The roundoffs of one contract's steps."""

    acc: float
    """Of the accumulator; doubled if it truncates."""
    products: float
    """Of operands that are rounded for the products; 0 if they are taken as they are."""
    q: float
    """Of q times the scale."""
    s: float
    p: float
    l: float
    """Of the weights in the normaliser."""
    out: float
    exp_ulp: float
    tile: int
    tiny_p: float
    tiny_out: float
    lean_p: float = 0.0
    """By what factor weights shrink, on average, where they are cut off."""
    cut_to: str | None = None
    """The format that o is cut off to."""

    @classmethod
    def of(cls, contract: Contract) -> "Units":
        """Return the units that a contract declares."""
        n = contract.numerics
        cut = 2.0 if n["truncates"] else 1.0
        exact_p = n["p"] == n["acc"] and not n["products"]
        p = 0.0 if exact_p else cut * UNIT[n["p"]]
        return cls(
            acc=UNIT[n["acc"]] * (2.0 if n["acc_truncates"] else 1.0),
            products=UNIT[n["products"]] if n["products"] else 0.0,
            q=UNIT[contract.dtype] if n["q_prescaled"] else 0.0,
            s=UNIT[n["s"]] if n["s"] else 0.0,
            p=p,
            l=p if n["l_rounded"] else 0.0,
            out=cut * UNIT[n["out"]],
            exp_ulp=float(n["exp_ulp"]),
            tile=int(n["tile"]),
            tiny_p=cut * max(TINY[n["p"]], TINY[n["acc"]]),
            tiny_out=cut * TINY[n["out"]],
            lean_p=LEAN * p / 2 if n["truncates"] else 0.0,
            cut_to=n["out"] if n["truncates"] else None,
        )


def gamma(n: float, u: float) -> float:
    """Return the relative error of n roundings in a row."""
    return n * u / (1 - min(n * u, 0.5))


@dataclass(frozen=True)
class Sizes:
    """What both models share: sizes of the scores and their errors, (B, H, Tq, Tk)."""

    product: Array
    """scale Σ |q| |k|."""
    squares: Array
    """scale² Σ q² k²."""
    gap: Array
    """m - s, 0 where hidden."""
    added: Array
    """|bias|, 0 where hidden."""
    tiles: int

    @classmethod
    def of(cls, t: Truth, u: Units) -> "Sizes":
        """Measure the scores of a problem."""
        across = t.k.swapaxes(-1, -2)
        product = np.abs(t.scale) * (np.abs(t.q) @ np.abs(across))
        squares = t.scale**2 * (t.q**2 @ across**2)
        gap = np.where(t.visible, t.m - t.s, 0)
        bias = np.where(t.visible & np.isfinite(t.bias), np.abs(t.bias), 0)
        return cls(product, squares, gap, bias, -(-t.k.shape[-2] // u.tile))


def score_error(t: Truth, u: Units, sizes: Sizes) -> Array:
    """Return delta, a bound of the error of each score, (B, H, Tq, Tk)."""
    D = t.q.shape[-1]
    operands = (1 + u.products) ** 2 * (1 + u.q)
    raw = (operands * (1 + gamma(D + 3, u.acc)) - 1) * sizes.product + 2 * u.acc * np.abs(t.product)
    slope = t.slope
    if slope.ndim and slope.size > 1:  # a soft cap: the slope may be larger on the way
        cap = np.sqrt(np.maximum(t.slope, 0))
        slope = np.minimum(1, t.slope + 2 * raw * cap + raw**2)
    size = np.abs(t.s) + np.abs(t.m)
    return raw * slope * (1 + u.s) + 6 * u.acc * size + 6 * u.acc * sizes.added + u.s * (np.abs(t.s) + sizes.added)


def weight_error(t: Truth, u: Units, sizes: Sizes) -> Array:
    """Return eps, a bound of the relative error of each weight before normalisation; 0 where hidden."""
    exp = 2 * u.exp_ulp * u.acc
    delta = score_error(t, u, sizes) + 3 * u.acc * sizes.gap + exp + (exp + u.acc) * sizes.tiles
    return np.where(t.visible, np.expm1(np.minimum(delta, 50.0)), 0)


def bound(t: Truth, u: Units, sizes: Sizes, eps: Array) -> Array:
    """Return a bound of the error of o, (B, H, Tq, Dv), before its last rounding."""
    N = t.k.shape[-2]
    steps = gamma(N + 2 * sizes.tiles, u.acc)
    w, o = t.p * t.keep, np.nan_to_num(t.o)
    total = t.p.sum(axis=-1, keepdims=True)
    largest = eps.max(axis=-1, keepdims=True, initial=0)
    if t.keep.size > 1:  # dropped weights stay in the normaliser: no centre to measure from
        moved = (w * eps) @ np.abs(t.v) + np.abs(o) * (t.p * eps).sum(axis=-1, keepdims=True)
    else:
        spread = np.maximum(t.p @ t.v**2 - 2 * o * o + o * o * total, 0)
        moved = np.sqrt((t.p * eps**2).sum(axis=-1, keepdims=True) * spread)
        moved = moved + (1 - total) * np.abs(o) * largest
    hull = np.where(largest > 0.5, np.abs(t.v).max(axis=-2, keepdims=True, initial=0) * np.max(t.keep, initial=1), 0)
    moved = np.where(largest > 0.5, hull + np.abs(o), moved * (1 + 2 * largest))
    sums = w @ np.abs(t.v)
    operands = (1 + u.p) * (1 + u.products) * (1 + steps) - 1
    err = moved + operands * sums * (1 + (t.p * eps).sum(axis=-1, keepdims=True))
    divided = steps + u.l / (1 - u.l) + 4 * u.acc
    return err + divided * (np.abs(o) + err) + u.tiny_p * np.abs(t.v).sum(axis=-2, keepdims=True)


def rounded(err: Array, o: Array, u: float, tiny: float) -> Array:
    """Return a bound of the error after a result is rounded once more."""
    return err + u * (np.abs(o) + err) + tiny


def score_variance(t: Truth, u: Units, sizes: Sizes) -> Array:
    """Return the variance of the relative error of each weight before normalisation; 0 where hidden."""
    D = t.q.shape[-1]
    raw = (u.acc**2 * (D / 2) + 2 * u.products**2 + u.q**2) * sizes.squares * t.slope**2
    rest = u.acc**2 * (3 * t.s**2 + sizes.added**2 + 2 * sizes.gap**2 + 2 * u.exp_ulp**2) + u.s**2 * t.s**2
    return np.where(t.visible, SHARE * (raw + rest), 0)


def variance(t: Truth, u: Units, sizes: Sizes, e2: Array) -> Array:
    """Return the variance of o, (B, H, Tq, Dv), before its last rounding."""
    w, o = t.p * t.keep, np.nan_to_num(t.o)
    w2, v2 = w**2, t.v**2
    if t.keep.size > 1:
        moved = (w2 * e2) @ v2 + o**2 * (t.p**2 * e2).sum(axis=-1, keepdims=True)
    else:
        pe = w2 * e2
        moved = np.maximum(pe @ v2 - 2 * o * (pe @ t.v) + o * o * pe.sum(axis=-1, keepdims=True), 0)
    summed = w2 @ v2
    var = moved + SHARE * (u.p**2 + u.products**2) * summed
    several, rescaled = (t.k.shape[-2], t.k.shape[-2]) if u.acc > NARROW else (u.tile, sizes.tiles)
    var = var + SHARE * u.acc**2 * (several / 2 * summed + (rescaled / 3 + 7) * o**2)
    var = var + leaning(t, u) ** 2
    var = var + SHARE * u.l**2 * o**2 * (t.p**2).sum(axis=-1, keepdims=True)
    tilt = towards(t, t.p * np.where(t.visible, t.product * t.slope, 0))  # scale and log2(e), rounded once for all
    return var + 3 * SHARE * u.acc**2 * tilt**2 + u.tiny_p**2 / 3 * v2.sum(axis=-2, keepdims=True)


def leaning(t: Truth, u: Units) -> Array:
    """Return by how much o is too small, on average, where weights are cut off: all but the largest, which is 1."""
    if not u.lean_p:
        return np.zeros_like(t.o)
    cut = u.lean_p * t.p * t.keep * (t.s < t.m)
    return cut @ t.v - (np.nan_to_num(t.o) * cut.sum(axis=-1, keepdims=True) if u.l else 0)


def towards(t: Truth, weights: Array) -> Array:
    """Return Σ_j weights_ij (keep_ij v_j - o_i): how o moves when the logits do, p_ij ds_ij being the weights."""
    return (weights * t.keep) @ t.v - np.nan_to_num(t.o) * weights.sum(axis=-1, keepdims=True)


def lse_error(t: Truth, u: Units, sizes: Sizes, eps: Array) -> Array:
    """Return a bound of the error of lse, (B, H, Tq)."""
    finite = np.where(np.isfinite(t.lse), np.abs(t.lse), 0)
    sums = (t.p * eps).sum(axis=-1) + gamma(t.k.shape[-2] + sizes.tiles, u.acc) + u.l / (1 - u.l)
    return np.asarray(sums + 8 * u.acc * (finite + np.abs(t.m[..., 0]) + 1))


def spread_of(var: Array, o: Array, u: Units, out: str) -> Array:
    """Return sigma, the last rounding included: exactly ulp²/12 for the format `out`."""
    step = ulp(np.nan_to_num(o), out) * (u.out / UNIT[out])
    return np.sqrt(var + step**2 / 12)


def forward_errors(t: Truth, contract: Contract) -> dict[str, Any]:
    """Return bound, sigma, the bound of lse, and e2, the variance of each weight's relative error."""
    u = Units.of(contract)
    sizes = Sizes.of(t, u)
    eps = weight_error(t, u, sizes)
    if contract.blind_rows == "mean" and t.blind.any():  # equal weights, exactly
        blind = t.blind[..., None]
        weight = 1 / max(t.k.shape[-2], 1)
        mean = t.v.sum(axis=-2, keepdims=True) * weight
        t = replace(t, p=np.where(blind, weight, t.p), o=np.where(blind, mean, t.o))
    o = np.nan_to_num(t.o)
    raw, e2 = bound(t, u, sizes, eps), score_variance(t, u, sizes)
    return {
        "e2": e2,
        "bound": rounded(raw, o, u.out, u.tiny_out),
        "sigma": spread_of(variance(t, u, sizes, e2), o, u, contract.numerics["out"]),
        "lse_bound": lse_error(t, u, sizes, eps),
    }
