"""Patterns that reach far in few keys, by steps: every step-th key, or a summary of each block.

Child et al. 2019, arXiv:1904.10509, section 4.2 (strided, fixed); Beltagy et al. 2020, arXiv:2004.05150, section 3.1
(dilated sliding window). A query's position is i + offset with offset = Tk - Tq, as in `positions`.
"""

from dataclasses import dataclass

import numpy as np

from refattn.arrays import check_count
from refattn.masks import blocks
from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.given import extremes, within


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
    shifts = True

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position, (reach, step) = i + (Tk - Tq), self._sizes(Tq, Tk)
        seen: Bools = (j >= position - reach) & (j <= position + reach) & (position % step == j % step)
        return seen

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position, (reach, step) = i + (Tk - Tq), self._sizes(Tq, Tk)
        first, last = np.maximum(position - reach, 0), np.minimum(position + reach, stop - 1)
        # the multiples of step up to last - position, less those before first - position
        count: Ints = (last - position) // step - (first - 1 - position) // step
        return np.where(last >= first, count, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        low, high = distances(i, Tq, Tk, block_q, block_k)
        reach, step = self._sizes(Tq, Tk)
        low, high = np.maximum(low, -reach), np.minimum(high, reach)
        return high // step * step >= low, np.zeros((1, 1), bool)

    def _sizes(self, Tq: int, Tk: int) -> tuple[int, int]:
        """Return how far the window reaches and the step."""
        step = within(self.step, Tq, Tk)
        return min(self.window, Tq + Tk) * step, step

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
    shifts = True

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position, (local, stride) = i + (Tk - Tq), self._sizes(Tq, Tk)
        seen: Bools = (j > position - local) | (position % stride == j % stride)
        return seen & (j <= position)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position = i + (Tk - Tq)
        return self._up_to(position, Tq, Tk) - self._up_to(position - stop, Tq, Tk)

    def _up_to(self, d: Ints, Tq: int, Tk: int) -> Ints:
        """Return how many of the distances 0 ... d are visible."""
        local, stride = self._sizes(Tq, Tk)
        return np.clip(d + 1, 0, local) + np.maximum(d // stride - (local - 1) // stride, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        low, high = distances(i, Tq, Tk, block_q, block_k)
        first, (local, stride) = np.maximum(low, 0), self._sizes(Tq, Tk)
        some = (high >= first) & ((first < local) | (high // stride * stride >= first))
        return some, (low >= 0) & (high < local)

    def _sizes(self, Tq: int, Tk: int) -> tuple[int, int]:
        return within(self.local, Tq, Tk), within(self.stride, Tq, Tk)

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

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        position, (block, summary) = i + (Tk - Tq), self._sizes(Tq, Tk)
        seen: Bools = (position // block == j // block) | (j % block >= block - summary)
        return seen & (j <= position)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position, (block, summary) = i + (Tk - Tq), self._sizes(Tq, Tk)
        stop = np.minimum(stop, position + 1)
        earlier = np.minimum(stop, position - position % block)  # before the query's own block
        summaries = earlier // block * summary + np.maximum(earlier % block - (block - summary), 0)
        return np.where(position >= 0, summaries + stop - earlier, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        position, (block, summary) = i + (Tk - Tq), self._sizes(Tq, Tk)
        own, stop = np.clip(position - position % block, 0, Tk), np.clip(position + 1, 0, Tk)
        before, _ = blocks.tiles_of_runs(np.zeros_like(stop), stop, Tk, block_q, block_k)
        near, every = blocks.tiles_of_runs(own, stop, Tk, block_q, block_k)
        _, summaries = extremes(np.arange(Tk) % block >= block - summary, block_k)
        return near | (before & summaries), every

    def _sizes(self, Tq: int, Tk: int) -> tuple[int, int]:
        block = within(self.block, Tq, Tk)
        return block, block - min(self.block - self.summary, block)

    def __repr__(self) -> str:
        return f"fixed({self.block}, {self.summary})"


def distances(i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Ints, Ints]:
    """Return the least and the greatest distance, position - j, in each tile: int64 (tiles of queries, of keys)."""
    first, last = extremes(i + (Tk - Tq), block_q)
    left = np.arange(0, Tk, block_k)
    return first[:, None] - np.minimum(left + block_k, Tk) + 1, last[:, None] - left
