"""Patterns that reach far in few keys, by steps: every step-th key, or a summary of each block.

Child et al. 2019, arXiv:1904.10509, section 4.2 (strided, fixed); Beltagy et al. 2020, arXiv:2004.05150, section 3.1
(dilated sliding window). A query's position is i + offset with offset = Tk - Tq, as in `positions`.
"""

from dataclasses import dataclass

import numpy as np

from refattn.arrays import check_count
from refattn.masks import blocks
from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.given import extremes


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
        position, reach = i + (Tk - Tq), self._reach(Tq, Tk)
        seen: Bools = (j >= position - reach) & (j <= position + reach) & (position % self.step == j % self.step)
        return seen

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position, reach = i + (Tk - Tq), self._reach(Tq, Tk)
        first, last = np.maximum(position - reach, 0), np.minimum(position + reach, stop - 1)
        # the numbers that leave position's rest, up to last and before first
        count: Ints = (last - position) // self.step - (first - 1 - position) // self.step
        return np.where(last >= first, count, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        low, high = distances(i, Tq, Tk, block_q, block_k)
        reach = self._reach(Tq, Tk)
        low, high = np.maximum(low, -reach), np.minimum(high, reach)
        return high // self.step * self.step >= low, np.zeros((1, 1), bool)

    def _reach(self, Tq: int, Tk: int) -> int:
        return min(self.window, Tq + Tk) * self.step  # more steps lead out of the sequence

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
        position = i + (Tk - Tq)
        seen: Bools = (j > position - self._local(Tq, Tk)) | (position % self.stride == j % self.stride)
        return seen & (j <= position)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position = i + (Tk - Tq)
        return self._within(position, Tq, Tk) - self._within(position - stop, Tq, Tk)

    def _within(self, d: Ints, Tq: int, Tk: int) -> Ints:
        """Return how many of the distances 0 ... d are visible."""
        local = self._local(Tq, Tk)
        farther = np.maximum(d // self.stride - (local - 1) // self.stride, 0)
        return np.clip(d + 1, 0, local) + farther

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        low, high = distances(i, Tq, Tk, block_q, block_k)
        low0, local = np.maximum(low, 0), self._local(Tq, Tk)
        some = (high >= low0) & ((low0 < local) | (high // self.stride * self.stride >= low0))
        return some, (low >= 0) & (high < local)

    def _local(self, Tq: int, Tk: int) -> int:
        return min(self.local, Tq + Tk)  # further out says no more

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
        position = i + (Tk - Tq)
        seen: Bools = (position // self.block == j // self.block) | (j % self.block >= self.block - self.summary)
        return seen & (j <= position)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        position = i + (Tk - Tq)
        stop = np.minimum(stop, position + 1)
        own = position - position % self.block  # where the query's block begins
        earlier = np.minimum(stop, own)
        summaries = earlier // self.block * self.summary
        summaries += np.maximum(earlier % self.block - (self.block - self.summary), 0)
        return np.where(position >= 0, summaries + stop - earlier, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        position = i + (Tk - Tq)
        none, causal = np.zeros_like(position), np.clip(position + 1, 0, Tk)
        before, _ = blocks.tiles_of_runs(none, causal, Tk, block_q, block_k)
        own, every = blocks.tiles_of_runs(
            np.clip(position - position % self.block, 0, Tk), causal, Tk, block_q, block_k
        )
        (_, summary) = extremes(np.arange(Tk) % self.block >= self.block - self.summary, block_k)
        return own | (before & summary), every

    def __repr__(self) -> str:
        return f"fixed({self.block}, {self.summary})"


def distances(i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Ints, Ints]:
    """Return the least and the greatest distance, position - j, in each tile: int64 (tiles of queries, of keys)."""
    first, last = extremes(i + (Tk - Tq), block_q)
    left = np.arange(0, Tk, block_k)
    return first[:, None] - np.minimum(left + block_k, Tk) + 1, last[:, None] - left
