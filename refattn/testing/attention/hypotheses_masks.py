"""Mistakes of causal masks and windows: off by one, counted from the wrong end, left out; see `hypotheses`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.hypotheses import Twist, convention, enter, without
from refattn.testing.attention.oracle import offsets
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract


@dataclass(frozen=True)
class View:
    """What decides about visibility; arrays broadcast to (B, H, Tq, Tk)."""

    i: Array
    j: Array
    offset: Array
    causal: int | None
    """How many keys after its own a query sees; None if there is no causal mask."""
    left: int | None
    right: int | None
    lengths: Array | None
    mask: Array | None
    top: Array | None = None
    """The offset of the causal mask, where it is another one."""
    window_offset: Array | None = None

    @property
    def seen(self) -> Array:
        """Return which pairs are visible."""
        behind = self.i + self.offset - self.j
        causal = behind if self.top is None else self.i + self.top - self.j
        window = behind if self.window_offset is None else self.i + self.window_offset - self.j
        seen = np.ones(behind.shape, bool)
        if self.causal is not None:
            seen = seen & (causal >= -self.causal)
        if self.left is not None:
            seen = seen & (window <= self.left)
        if self.right is not None:
            seen = seen & (window >= -self.right)
        if self.lengths is not None:
            seen = seen & (self.j < self.lengths)
        return seen if self.mask is None else seen & self.mask

    def but(self, **changes: Any) -> "View":
        """Return this view with other edges."""
        return replace(self, **changes)


def view(p: Problem, c: Contract) -> View:
    """Return what decides about visibility in one problem."""
    left, right = p.options.get("window") or (None, None)
    if left is not None and c.window == "total":
        left -= 1
    lengths = p.options.get("seqlens_k")
    return View(
        i=np.arange(p.q.shape[2])[:, None],
        j=np.arange(p.k.shape[2]),
        offset=offsets(p, c),
        causal=0 if p.options.get("causal") else None,
        left=left,
        right=right,
        lengths=None if lengths is None else np.asarray(lengths).reshape(-1, 1, 1, 1),
        mask=p.options.get("mask"),
    )


def looks(change: Callable[[View, Problem], View | None]) -> Twist:
    """Look at other pairs; ALiBi stays as it is."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        here = view(p, c)
        there = change(here, p)
        if there is None:
            return None
        rest = p.with_options(causal=None, window=None, seqlens_k=None, q_offset=here.offset.ravel().tolist())
        return rest.with_options(mask=there.seen), c

    return Twist(twist)


def _causal() -> None:
    def with_causal(change: Callable[[View, Problem], View | None]) -> Twist:
        return looks(lambda x, p: None if x.causal is None else change(x, p))

    def reach(n: int) -> tuple[Twist, Twist]:
        """Move the edge; where there is a window, its right end stays, or moves along."""
        return with_causal(lambda x, p: x.but(causal=n)), with_causal(lambda x, p: x.but(causal=n, right=None))

    enter("causal ignored", "the causal mask is ignored", without("causal"))
    enter(
        "causal top left",
        "the causal mask is aligned to the top left: query i sees keys up to i, as in torch and JAX",
        with_causal(lambda x, p: x.but(top=0 * x.offset, right=None) if "q_offset" not in p.options else None),
        convention(causal="top_left"),
    )
    enter(
        "causal bottom right",
        "the causal mask is aligned to the bottom right: the last query sees every key",
        convention(causal="bottom_right"),
    )
    enter("causal one too wide", "each query sees one key of the future", *reach(1))
    enter("causal strict", "the diagonal of the causal mask is hidden: no query sees its own key", *reach(-1))
    enter(
        "causal the other way round",
        "the causal mask is transposed: queries see the future instead of the past",
        with_causal(lambda x, p: x.but(causal=None, mask=x.but(causal=None).seen & (x.i + x.offset <= x.j))),
    )
    enter(
        "mask replaces causal",
        "causal is ignored where a mask is given",
        with_causal(lambda x, p: None if x.mask is None else x.but(causal=None)),
    )
    enter(
        "causal replaces mask",
        "the mask is ignored where causal is given",
        with_causal(lambda x, p: None if x.mask is None else x.but(mask=None)),
    )
    enter(
        "window replaces causal",
        "causal is ignored where a window is given",
        with_causal(lambda x, p: None if p.options.get("window") is None else x.but(causal=None)),
    )
    enter(
        "causal replaces window",
        "the window is ignored where causal is given",
        with_causal(lambda x, p: None if p.options.get("window") is None else x.but(left=None, right=None)),
    )
    enter(
        "causal ignores lengths",
        "the causal mask replaces the lengths: it alone says where keys end",
        with_causal(lambda x, p: None if x.lengths is None else x.but(lengths=None)),
    )


def _windows() -> None:
    def windowed(change: Callable[[Any, Any], tuple[Any, Any] | None]) -> Twist:
        """Change the sides of the window; right of a causal mask it means nothing."""

        def other(x: View, p: Problem) -> View | None:
            if p.options.get("window") is None:
                return None
            sides = change(x.left, x.right)
            return None if sides is None else x.but(left=sides[0], right=sides[1])

        return looks(other)

    def by(left: int, right: int) -> Twist:
        return windowed(
            lambda a, b: (
                None
                if (left and a is None) or (right and b is None)
                else (None if a is None else a + left, None if b is None else b + right)
            )
        )

    def at_least_zero(side: Any) -> Any:
        return None if side is None else max(side - 1, 0)

    enter("window ignored", "the window is ignored", without("window"))
    enter("window left one too wide", "the window reaches one key too far to the left", by(1, 0))
    enter(
        "window left one too narrow",
        "the window is one key too narrow on the left: it counts the key itself, as in Hugging Face",
        by(-1, 0),
        windowed(lambda a, b: None if a is None else (max(a - 1, 0), b)),
    )
    enter("window right one too wide", "the window reaches one key too far to the right", by(0, 1))
    enter(
        "window right one too narrow",
        "the window is one key too narrow on the right",
        by(0, -1),
        windowed(lambda a, b: None if b is None else (a, max(b - 1, 0))),
    )
    enter("window both one too wide", "the window reaches one key too far on both sides", by(1, 1))
    enter(
        "window counts self",
        "the window counts the key itself on both sides",
        windowed(lambda a, b: (at_least_zero(a), at_least_zero(b))),
    )
    enter(
        "window without offset",
        "the window is counted from query i instead of i + offset",
        looks(lambda x, p: x.but(window_offset=0 * x.offset) if p.options.get("window") else None),
        looks(
            lambda x, p: (
                x.but(window_offset=0 * x.offset, right=None if x.causal is not None else x.right)
                if p.options.get("window")
                else None
            )
        ),
    )
    enter("window sides swapped", "left and right of the window are exchanged", windowed(lambda a, b: (b, a)))
    enter("window left ignored", "the left end of the window is ignored", windowed(lambda a, b: (None, b)))
    enter("window right ignored", "the right end of the window is ignored", windowed(lambda a, b: (a, None)))
    enter("window symmetric", "the window reaches as far to the right as to the left", windowed(lambda a, b: (a, a)))
    enter("window twice as wide", "the window is twice as wide", windowed(lambda a, b: (_times(a, 2), _times(b, 2))))
    enter("window half as wide", "the window is half as wide", windowed(lambda a, b: (_half(a), _half(b))))


def _times(side: Any, n: int) -> Any:
    return None if side is None else n * side


def _half(side: Any) -> Any:
    return None if side is None else side // 2


_causal()
_windows()
