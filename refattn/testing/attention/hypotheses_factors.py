"""Mistakes with a parameter, which is estimated from what a kernel returned; see `hypotheses`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.backward import GRADIENTS
from refattn.testing.attention.hypotheses import Mistake, Twist, backward, forward, option, scale_of
from refattn.testing.attention.hypotheses_masks import View, looks

STEP = 1e-4
"""For the derivative."""


@dataclass(frozen=True)
class Factor:
    """Something that may be off by a factor e^x."""

    name: str
    sentence: str
    """With {x} for the percentage, {large} for large or small, {much} for much or little."""
    score: str
    """The name of its score test."""
    mistake: Callable[[float], Mistake]

    def says(self, x: float) -> str:
        """Return the sentence."""
        percent = abs(100 * np.expm1(x))
        words = ("large", "much") if x > 0 else ("small", "little")
        return self.sentence.format(
            x=f"{percent:.2g}" if percent < 10 else f"{percent:.0f}", large=words[0], much=words[1]
        )


def _twist(change: Callable[[float], Twist]) -> Callable[[float], Mistake]:
    return lambda x: change(x).everywhere


def _scale(x: float) -> Twist:
    return Twist(lambda p, c: (p.with_options(scale=scale_of(p) * np.exp(x)), c))


def _times(name: str) -> Callable[[float], Mistake]:
    return _twist(lambda x: option(name, lambda value, p: value * np.exp(x)))


def _gradient(name: str) -> Callable[[float], Mistake]:
    return lambda x: backward(lambda given: {name: given.right[name] * np.exp(x)} if name in given.right else None)


def _output(x: float) -> Mistake:
    return forward(lambda given: {"o": given.right["o"] * np.exp(x)})


FACTORS = (
    Factor("scale off by a factor", "the scale is {x} % too {large}", "log_scale", _twist(_scale)),
    Factor("softcap off by a factor", "the soft cap is {x} % too {large}", "log_softcap", _times("softcap")),
    Factor("bias off by a factor", "the bias is {x} % too {large}", "log_bias", _times("bias")),
    Factor("alibi off by a factor", "the ALiBi slopes are {x} % too {large}", "log_bias", _times("alibi_slopes")),
    Factor(
        "sinks off by a factor",
        "the sinks weigh {x} % too {much}",
        "sink",
        _twist(lambda x: option("sinks", lambda value, p: value + x)),
    ),
    Factor("o off by a factor", "o is {x} % too {large}", "normaliser", _output),
    *(
        Factor(f"{n} off by a factor", f"{n} is {{x}} % too {{large}}", f"{n}_amplitude", _gradient(n))
        for n in GRADIENTS
    ),
)


@dataclass(frozen=True)
class Shift:
    """Something that may be off by a number of keys."""

    name: str
    more: str
    """The sentence for n > 0, with {n} for the number."""
    less: str
    change: Callable[[View, int], View | None]

    def ways(self, n: int) -> tuple[Mistake, ...]:
        """Return what a kernel does that is n off, in both passes or in the backward pass alone."""
        twist = looks(lambda x, p: self.change(x, n))
        return twist.everywhere, twist.backwards

    def says(self, n: int) -> str:
        """Return the sentence."""
        return (self.more if n > 0 else self.less).format(n=abs(n))


def _moved(x: View, n: int) -> View | None:
    places = x.causal is not None or x.left is not None or x.right is not None
    return x.but(offset=x.offset + n) if places else None


SHIFTS = (
    Shift(
        "causal off by some keys",
        "each query sees {n} keys of the future",
        "the causal mask hides {n} keys up to the diagonal",
        lambda x, n: None if x.causal is None else x.but(causal=n),
    ),
    Shift(
        "window left off by some keys",
        "the window reaches {n} keys too far to the left",
        "the window ends {n} keys early on the left",
        lambda x, n: None if x.left is None else x.but(left=x.left + n),
    ),
    Shift(
        "window right off by some keys",
        "the window reaches {n} keys too far to the right",
        "the window ends {n} keys early on the right",
        lambda x, n: None if x.right is None else x.but(right=x.right + n),
    ),
    Shift(
        "offset off by some keys",
        "queries are placed {n} keys too late",
        "queries are placed {n} keys too early",
        _moved,
    ),
)
STEPS = (*range(1, 9), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


def fit(error: Callable[[float], Array | None], first: Array) -> float | None:
    """Return the x at which `error(x)` is smallest, by Gauss and Newton from `first` at 0; None if it fails."""
    x, now, size = 0.0, first, float(np.linalg.norm(first))
    for _ in range(8):
        ahead = error(x + STEP)
        if ahead is None:
            return None
        slope = (ahead - now) / STEP
        along = float((slope * slope).sum())
        if not along > 0 or not np.isfinite(along):
            return None
        step = float(np.clip(-(now * slope).sum() / along, -0.7, 0.7))
        x += step
        there = error(x)
        if there is None or not np.linalg.norm(there) <= 0.9 * size:
            return None
        now = there
        if abs(step) < 1e-3 * abs(x) + 1e-7:
            break
    return x
