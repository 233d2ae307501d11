"""Patterns that reach far in few keys, by steps: every step-th key, or a summary of each block.

Child et al. 2019, arXiv:1904.10509, section 4.2 (strided, fixed); Beltagy et al. 2020, arXiv:2004.05150, section 3.1
(dilated sliding window). A query's position is i + offset with offset = Tk - Tq, as in `positions`.
"""

from dataclasses import dataclass

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Ints, Mask


def dilated(window: int, step: int) -> Mask:
    """Of the keys on both sides, every `step`-th is visible, `window` on each: j = i + offset + m step, |m| <= window.

    Examples
    --------
    >>> print(dilated(1, 2).picture(5, 5))
    █·█··
    ·█·█·
    █·█·█
    ·█·█·
    ··█·█
    """
    check_count("dilated", "window", window, least=0)
    check_count("dilated", "step", step)
    return Dilated(int(window), int(step))


@dataclass(frozen=True, repr=False)
class Dilated(Mask):
    """See `dilated`."""

    window: int
    step: int
    cacheable = True

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position = i + (Tk - Tq)
        reach = min(self.window * self.step, Tq + Tk)  # further out says no more
        near = (j >= position - reach) & (j <= position + reach)
        return near & (position % self.step == j % self.step)

    def __repr__(self) -> str:
        return f"dilated({self.window}, {self.step})"


def strided(local: int, stride: int) -> Mask:
    """Of the keys up to the query, the last `local` are visible and those whose distance is a multiple of `stride`.

    With distance d = i + offset - j: d >= 0 and (d < local or d mod stride = 0).

    Examples
    --------
    >>> print(strided(2, 3).picture(6, 6))
    █·····
    ██····
    ·██···
    █·██··
    ·█·██·
    ··█·██
    """
    check_count("strided", "local", local)
    check_count("strided", "stride", stride)
    return Strided(int(local), int(stride))


@dataclass(frozen=True, repr=False)
class Strided(Mask):
    """See `strided`."""

    local: int
    stride: int
    cacheable = True

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position = i + (Tk - Tq)
        seen: Bools = (j > position - min(self.local, Tq + Tk)) | (position % self.stride == j % self.stride)
        return seen & (j <= position)

    def __repr__(self) -> str:
        return f"strided({self.local}, {self.stride})"


def fixed(block: int, summary: int) -> Mask:
    """Of the keys up to the query, those in its own block are visible and the last `summary` of every block.

    With position t = i + offset: j <= t and (j // block = t // block or j mod block >= block - summary).

    Examples
    --------
    >>> print(fixed(3, 1).picture(6, 6))
    █·····
    ██····
    ███···
    ··██··
    ··███·
    ··████
    """
    check_count("fixed", "block", block)
    check_count("fixed", "summary", summary)
    if summary > block:
        raise ValueError(f"fixed: summary is {summary}; wanted at most the {block} keys of a block")
    return Fixed(int(block), int(summary))


@dataclass(frozen=True, repr=False)
class Fixed(Mask):
    """See `fixed`."""

    block: int
    summary: int
    cacheable = True

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position = i + (Tk - Tq)
        seen: Bools = (position // self.block == j // self.block) | (j % self.block >= self.block - self.summary)
        return seen & (j <= position)

    def __repr__(self) -> str:
        return f"fixed({self.block}, {self.summary})"
