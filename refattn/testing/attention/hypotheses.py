"""What might be wrong with a kernel: each hypothesis says what it would return, so that it can be held against it.

Most mistakes are another problem: "window left one too wide" is the same one with another window, "heads round robin"
the same with the key heads laid out anew. A `Twist` says which. The rest says what is returned, given the right steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.backward import Slopes, gradients, over, slopes
from refattn.testing.attention.oracle import Truth, declared_lse, declared_output, offsets, truth, wide_dtype
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract
from refattn.testing.formats import decode

Results = dict[str, Array]
Change = Callable[[Problem, Contract], "tuple[Problem, Contract] | None"]


class Given:
    """One problem under one contract, with its right steps, each computed once."""

    def __init__(self, p: Problem, contract: Contract) -> None:
        self.p, self.contract = p, contract
        self._last: tuple[Twist, Given | None] | None = None

    def twisted(self, twist: "Twist") -> "Given | None":
        """Return what the twist makes of it; the last one is kept."""
        if self._last is None or self._last[0] is not twist:
            other = twist.change(self.p, self.contract)
            self._last = twist, None if other is None else Given(*other)
        return self._last[1]

    @cached_property
    def t(self) -> Truth:
        """The steps of the forward pass."""
        return truth(self.p, self.contract) if self.p.do is None else self.s.t

    @cached_property
    def s(self) -> Slopes:
        """The steps of the backward pass."""
        return slopes(self.p, self.contract)

    @cached_property
    def right(self) -> Results:
        """What a correct kernel returns."""
        if self.p.do is not None:
            return gradients(self.p, self.s)
        return {"o": declared_output(self.p, self.contract, self.t), "lse": declared_lse(self.contract, self.p, self.t)}

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return scale_of(self.p)


Mistake = Callable[[Given], "Results | None"]
"""What a kernel that makes it returns, or those results that differ; None where it changes nothing."""


@dataclass(frozen=True)
class Twist:
    """Another problem, or another contract: what a mistaken kernel computes instead."""

    change: Change

    def everywhere(self, given: Given) -> Results | None:
        """Return what a kernel returns that makes the mistake in both passes."""
        twisted = given.twisted(self)
        return None if twisted is None else twisted.right

    def backwards(self, given: Given) -> Results | None:
        """Return what a backward kernel returns that makes the mistake, from the lse and o of a right forward pass."""
        if given.p.do is None:
            return None
        twisted = given.twisted(self)
        if twisted is None:
            return None
        right, wrong = given.s, twisted.s
        do = decode(given.p.do, given.contract.dtype, wide_dtype(given.contract))
        seen, keep = wrong.t.visible, wrong.t.keep
        lse = np.where(np.isneginf(right.t.lse), 0, right.t.lse)[..., None]
        weights = np.where(seen, np.exp(np.minimum(np.where(seen, wrong.t.s, 0) - lse, 700)), 0)
        dp = np.where(seen, keep * (do @ wrong.t.v.swapaxes(-1, -2)), 0)
        t = replace(wrong.t, p=weights, p_sink=right.t.p_sink)
        return gradients(twisted.p, replace(wrong, t=t, do=do, dp=dp, pull=right.pull, ds=weights * (dp - right.pull)))


@dataclass(frozen=True)
class Hypothesis:
    """One mistake, and the ways in which kernels make it."""

    name: str
    sentence: str
    ways: tuple[Mistake, ...]


HYPOTHESES: dict[str, Hypothesis] = {}
"""By name, in the order in which they are tried."""


def enter(name: str, sentence: str, *ways: Twist | Mistake) -> None:
    """Enter a hypothesis."""
    if name in HYPOTHESES:
        raise ValueError(f"there is a hypothesis {name!r} already")
    plain: list[Mistake] = []
    for way in ways:
        plain += [way.everywhere, way.backwards] if isinstance(way, Twist) else [way]
    HYPOTHESES[name] = Hypothesis(name, sentence, tuple(plain))


def also(name: str, *ways: Mistake) -> None:
    """Add ways to make a mistake that is entered already."""
    known = HYPOTHESES[name]
    HYPOTHESES[name] = replace(known, ways=(*known.ways, *ways))


def scale_of(p: Problem) -> float:
    """Return the factor of the product."""
    given = p.options.get("scale")
    return float(1 / np.sqrt(p.q.shape[-1])) if given is None else float(given)


def option(name: str, change: Callable[[Any, Problem], Any]) -> Twist:
    """Take another value of one option where it is given."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        value = p.options.get(name)
        return None if value is None else (p.with_options(**{name: change(value, p)}), c)

    return Twist(twist)


def without(*names: str) -> Twist:
    """Ignore options."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        given = [name for name in names if p.options.get(name) is not None]
        return (p.with_options(**dict.fromkeys(given)), c) if given else None

    return Twist(twist)


def convention(**changes: Any) -> Twist:
    """Follow another convention."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        other = replace(c, **changes)
        return None if other == c else (p, other)

    return Twist(twist)


def arrays(change: Callable[[Array, Array, Array], tuple[Array, Array, Array] | None]) -> Twist:
    """Read q, k or v otherwise."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        changed = change(p.q, p.k, p.v)
        return None if changed is None else (replace(p, q=changed[0], k=changed[1], v=changed[2]), c)

    return Twist(twist)


def full(name: str, change: Callable[[Array, Problem], Array]) -> Twist:
    """Read a mask or a bias otherwise; `change` gets it as (B, H, Tq, Tk)."""

    def changed(x: Array, p: Problem) -> Array:
        shape = (*p.q.shape[:3], p.k.shape[2])
        return np.broadcast_to(change(np.broadcast_to(x, shape), p), shape)

    return option(name, changed)


def distances(measure: Callable[[Array, Problem], Array | None]) -> Twist:
    """Let ALiBi measure distances otherwise; `measure` gets i + offset - j."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        slopes_, bias = p.options.get("alibi_slopes"), p.options.get("bias")
        if slopes_ is None:
            return None
        ahead = np.arange(p.q.shape[2])[:, None] + offsets(p, c) - np.arange(p.k.shape[2])
        distance = measure(ahead, p)
        if distance is None:
            return None
        total = -slopes_[:, None, None] * distance
        return p.with_options(bias=total if bias is None else total + bias, alibi_slopes=None), c

    return Twist(twist)


def logits(change: Callable[[Given], Array | None]) -> Mistake:
    """Compute other scores: a bias makes up for the difference. `change` returns them before any mask."""

    def mistake(given: Given) -> Results | None:
        p = given.p
        s = None if p.do is not None else change(given)
        if s is None:
            return None
        difference = np.nan_to_num(s - given.t.product, posinf=np.inf, neginf=-np.inf)
        return Given(p.with_options(bias=difference, softcap=None, alibi_slopes=None), given.contract).right

    return mistake


def forward(change: Callable[[Given], Results | None]) -> Mistake:
    """Return other results of the forward pass."""
    return lambda given: change(given) if given.p.do is None else None


def backward(change: Callable[[Given], Results | None]) -> Mistake:
    """Return other gradients."""
    return lambda given: change(given) if given.p.do is not None else None


def steps(change: Callable[[Given, Slopes], Slopes | None]) -> Mistake:
    """Take another step in the backward pass."""

    def mistake(given: Given) -> Results | None:
        changed = None if given.p.do is None else change(given, given.s)
        return None if changed is None else gradients(given.p, changed)

    return mistake


def fitted(results: Results, right: Results) -> Results:
    """Return the results in the shapes of the right ones: gradients of what a twist laid out anew are added up."""
    found = {}
    for name, want in right.items():
        x = results.get(name, want)
        if x.shape != want.shape and name in ("dk", "dv"):
            B, Hk, T, D = want.shape
            x = x.reshape(B, Hk, -1, T, D).sum(axis=2)
        elif x.shape != want.shape and name == "dbias":
            x = over(x, want.shape)
        found[name] = x
    return found
