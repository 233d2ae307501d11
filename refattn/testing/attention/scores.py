r"""Score tests: is the error what a particular mistake would look like?

An error that hides below every element's tolerance may still point somewhere. For a mistake with parameter
:math:`\theta` (a scale that is off by a factor :math:`1 + \theta`, a key that is weighed :math:`1 + \theta` times) the
output moves by :math:`\theta\, d` with :math:`d = \partial o / \partial \theta`. Least squares with weights
:math:`1 / \sigma^2` gives

.. math:: \hat\theta = \frac{\sum e\, d / \sigma^2}{\sum d^2 / \sigma^2}, \qquad
    T = \frac{\sum e\, d / \sigma^2}{\sqrt{\sum d^2 / \sigma^2}}

whose denominator holds if errors are independent, and is replaced by their true deviation where weights are rounded, is
about standard normal for a correct kernel (Rao's score test, 1948). Thousands of elements speak at once: a scale that
is 0.1 % too large hides, on standard normal inputs, below every element-wise tolerance of bfloat16, and gives T of 75.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import SHARE, Units, leaning, towards
from refattn.testing.attention.oracle import Truth, offsets
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract
from refattn.testing.formats import ulp

TILES = (16, 32, 64, 128)
UNSURE = 0.1
"""The deviation of a mean that is known but for the distribution of mantissas, as a share of it."""


def directions(p: Problem, contract: Contract, t: Truth) -> Iterator[tuple[str, Array]]:
    """Yield the name of each possible mistake and how o moves with it, (B, H, Tq, Dv)."""
    if p.options.get("dropout_mask") is not None:
        return  # 1 / (1 - p) times the largest weight, 1, is rounded in every row alike: an error with a direction
    Tk = t.visible.shape[-1]
    j = np.arange(Tk)
    tilt = np.where(t.visible, t.product * t.slope, 0)
    yield "log_scale", towards(t, t.p * tilt)
    yield "normaliser", np.nan_to_num(t.o)
    yield "last_key", -towards(t, t.p * (j == Tk - 1))
    for b in TILES:
        if Tk > b:
            yield f"tile_first_{b}", -towards(t, t.p * ((j % b == 0) & (j > 0)))
            if Tk % b:
                yield f"tail_{b}", -towards(t, t.p * (j >= Tk - Tk % b))
    yield from _edges(p, contract, t)
    cap = p.options.get("softcap")
    if cap is not None and contract.softcap == "before_bias":
        capped = np.sign(t.product) * np.sqrt(np.maximum(1 - t.slope, 0))  # tanh(product / cap)
        yield "log_softcap", towards(t, t.p * np.where(t.visible, cap * capped - t.product * t.slope, 0))
    if p.options.get("sinks") is not None:
        yield "sink", -t.p_sink * np.nan_to_num(t.o)
    if p.options.get("alibi_slopes") is not None or p.options.get("bias") is not None:
        yield "log_bias", towards(t, t.p * np.where(t.visible & np.isfinite(t.bias), t.bias, 0))


def _edges(p: Problem, contract: Contract, t: Truth) -> Iterator[tuple[str, Array]]:
    """Yield what leaks in, or is lost, at the edges of a causal mask and of a window."""
    Tq, Tk = t.visible.shape[-2:]
    ahead = np.arange(Tq)[:, None] + offsets(p, contract) - np.arange(Tk)  # keys back from the diagonal
    left, right = p.options.get("window") or (None, None)
    if left is not None and contract.window == "total":
        left = left - 1
    hidden = ~t.visible
    logit = (
        t.product
        if p.options.get("softcap") is None
        else p.options["softcap"] * np.tanh(t.product / p.options["softcap"])
    )
    with np.errstate(over="ignore", invalid="ignore"):
        would = np.exp(np.minimum(logit + t.bias - np.where(t.blind, 0, t.lse)[..., None], 20.0))
    would = np.where(hidden & np.isfinite(would), would, 0)

    def leak(where: Array) -> Array:
        return (would * where) @ t.v - np.nan_to_num(t.o) * (would * where).sum(axis=-1, keepdims=True)

    if p.options.get("causal"):
        yield "future_key", leak(ahead == -1)
        yield "diagonal_key", -towards(t, t.p * (ahead == 0))
    if left is not None:
        yield "window_left+1", leak(ahead == left + 1)
        yield "window_left-1", -towards(t, t.p * (ahead == left))
    if right is not None and not p.options.get("causal"):
        yield "window_right+1", leak(ahead == -right - 1)
        yield "window_right-1", -towards(t, t.p * (ahead == -right))


@dataclass(frozen=True)
class Direction:
    """A possible mistake, ready to be projected on."""

    name: str
    weighed: Array
    """d / sigma²."""
    size: float
    """Σ d² / sigma²."""
    deviation: float
    """The standard deviation of Σ e d / sigma² for a correct kernel."""
    expected: float = 0.0
    """Its mean: not 0 where numbers are cut off."""

    def estimate(self, error: Array) -> tuple[float, float]:
        """Return theta and T."""
        along = float((error * self.weighed).sum()) - self.expected
        return along / self.size, along / self.deviation


def direction(name: str, d: Array, sigma: Array, model: "Model | None" = None) -> Direction | None:
    """Return a direction; None where it moves nothing. Without a model, errors are taken as independent."""
    weighed = (d / sigma**2).astype(np.float64)
    size = float((weighed * d).sum())
    if not size > 0 or not np.isfinite(size):
        return None
    if model is None:
        return Direction(name, weighed, size, float(np.sqrt(size)))
    own, lean = float(model.along(weighed).sum()), model.leaning(weighed)
    return Direction(name, weighed, size, float(np.sqrt(own + (UNSURE * lean) ** 2)), lean)


class Model:
    """How the errors of the channels of a row belong together.

    A rounding of the weight p_ij moves all channels of row i at once, in the direction of v_j; one of the score s_ij in
    that of v_j - o_i. Along w their variance is Σ_j p_ij² (w_i·v_j)², not Σ_jc p_ij² w_ic² v_jc².
    """

    def __init__(self, t: Truth, u: Units, sigma: Array, e2: Array) -> None:
        self.t, self.own, self.o = t, SHARE * (u.p**2 + u.products**2), np.nan_to_num(t.o)
        self.lean = leaning(t, u)
        if u.cut_to is not None:
            self.lean = self.lean + np.sign(self.o) * ulp(self.o, u.cut_to) / 2
        self.w2 = (t.p * t.keep) ** 2
        self.moved = self.w2 * e2
        v2 = t.v**2
        parts = self.own * (self.w2 @ v2) + self.moved @ v2 - 2 * self.o * (self.moved @ t.v)
        self.rest = np.maximum(sigma**2 - parts - self.o**2 * self.moved.sum(axis=-1, keepdims=True), 0)

    def along(self, weighed: Array) -> Array:
        """Return the variance of Σ_c e_ic w_ic, (B, H, Tq), for a correct kernel."""
        values = weighed @ self.t.v.swapaxes(-1, -2)
        centred = values - (weighed * self.o).sum(axis=-1, keepdims=True)
        shared = (self.own * self.w2 * values**2 + self.moved * centred**2).sum(axis=-1)
        lean = (weighed * self.lean).sum(axis=-1) ** 2
        return np.asarray((weighed**2 * self.rest).sum(axis=-1) + shared + lean)

    def leaning(self, weighed: Array) -> float:
        """Return the mean of Σ e w: where numbers are cut off, o is too small everywhere."""
        return -float((weighed * self.lean).sum())


def row_scales(error: Array, weighed: Array, deviation: Array) -> float:
    """Return the mean square of T over rows, for an error in the direction of o in each row by itself.

    A normaliser that is rounded, or inverted roughly, moves every row by another factor: none of the tests above sees
    it, since the factors average out.
    """
    along = (error * weighed).sum(axis=-1)
    return float(((along / np.where(deviation > 0, deviation, np.inf)) ** 2).mean())
