"""Patterns of whole blocks: positions p // block_size look at positions j // block_size.

Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D: BigBird's window, global and random blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Index, Ints, Mask
from refattn.masks.contents import global_tokens
from refattn.masks.drawn import Random, check_draw, draw_words
from refattn.masks.free import FromArray
from refattn.masks.given import Given, stretches, within
from refattn.masks.positions import window as sides


class Coarse(NamedTuple):
    """A pattern of blocks."""

    mask: Mask
    nq: int
    nk: int
    size: int
    shift: int
    """How far into its block the first query stands."""


class Tiled(Mask):
    """A pattern of blocks: a block of queries looks at blocks of keys, all of them, as `coarse` says."""

    size: int

    def coarse(self, Tq: int, Tk: int) -> Coarse:
        """Return the pattern of the blocks."""
        size = within(self.size, Tq, Tk)
        nk, first = -(-Tk // size), (Tk - Tq) // size
        return Coarse(self.pattern(nk), nk - first, nk, size, (Tk - Tq) % size)

    def pattern(self, nk: int) -> Mask:
        """Return the mask of the blocks, if there are `nk` blocks of keys."""
        raise NotImplementedError

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        mask, nq, nk, size, shift = self.coarse(Tq, Tk)
        return mask.at(n, (i + shift) // size, j // size, nq, nk)

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints | None:
        mask, nq, nk, size, shift = self.coarse(Tq, Tk)
        rows, last = (i + shift) // size, np.asarray(stop) // size
        whole = mask.below(n, rows, last, nq, nk)
        if whole is None:
            return None
        cut = mask.at(n, rows, np.minimum(last, max(nk - 1, 0)), nq, nk) if nk > 0 else np.zeros(rows.shape, bool)
        return whole * size + np.where(cut, stop - last * size, 0)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        mask, nq, nk, size, shift = self.coarse(Tq, Tk)
        rows = np.arange((i[0] + shift) // size, (i[-1] + shift) // size + 1)
        if shift == 0 and block_q % size == 0 and block_k % size == 0:
            return mask.tiles(n, rows, nq, nk, block_q // size, block_k // size)
        if size < min(block_q, block_k) // 8:
            return np.ones((1, 1), bool), np.zeros((1, 1), bool)
        grid = mask.at(np.asarray(n)[..., None, None], rows[:, None], np.arange(nk), nq, nk)
        first = (np.arange(i[0], i[-1] + 1, block_q) + shift) // size - rows[0]
        last = (np.minimum(np.arange(i[0], i[-1] + 1, block_q) + block_q - 1, i[-1]) + shift) // size - rows[0]
        left = np.arange(0, Tk, block_k)
        right = np.minimum(left + block_k, Tk) - 1
        every, some = stretches(grid, left // size, right // size)
        every, some = every.swapaxes(-1, -2), some.swapaxes(-1, -2)
        return stretches(some, first, last)[1].swapaxes(-1, -2), stretches(every, first, last)[0].swapaxes(-1, -2)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        mask, nq, nk, size, shift = self.coarse(Tq, Tk)
        top, left = (q + shift) // size, k // size
        rows, columns = (block_q - 1) // size + 2, (block_k - 1) // size + 2
        grid = np.broadcast_to(mask.patch(n, top, left, nq, nk, rows, columns), (len(q), columns, rows))
        a = ((q + shift)[:, None] + np.arange(block_q)) // size - top[:, None]  # (t, block_q)
        b = (k[:, None] + np.arange(block_k)) // size - left[:, None]  # (t, block_k)
        seen = np.take_along_axis(grid, a[:, None, :], axis=2).reshape(-1, block_q)  # (t * columns, block_q)
        return np.asarray(seen[b + np.arange(len(q))[:, None] * columns])


def random_blocks(n_blocks: int, block_size: int, seed: int = 0, heads: int | None = None) -> Mask:
    """Each block of queries sees `n_blocks` blocks of keys, or all there are if fewer, drawn as `random` draws keys.

    Blocks are `block_size` positions, counted from position 0.

    Examples
    --------
    >>> print(random_blocks(1, 2, seed=1).picture(4, 4))
    ··██
    ··██
    ██··
    ██··
    """
    check_count("random_blocks", "n_blocks", n_blocks)
    check_count("random_blocks", "block_size", block_size)
    check_draw("random_blocks", seed, heads)
    return RandomBlocks(int(n_blocks), int(block_size), int(seed), None if heads is None else int(heads))


@dataclass(frozen=True, repr=False)
class RandomBlocks(Tiled):
    """See `random_blocks`."""

    n_blocks: int
    size: int
    seed: int
    heads: int | None
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.heads is None else (self.heads,)

    def pattern(self, nk: int) -> Mask:
        return Random(self.n_blocks, self.seed, self.heads)

    def keys(self, Tq: int, Tk: int) -> Ints:
        """Return the blocks of keys that each block of queries sees, ascending: int64 (*lead, blocks, n), read-only."""
        self._check_all(Tq, Tk)
        _, nq, nk, _, _ = self.coarse(Tq, Tk)
        return Random(self.n_blocks, self.seed, self.heads).keys(nq, nk)

    def __repr__(self) -> str:
        return f"random_blocks({self.n_blocks}, {draw_words(self.size, self.seed, self.heads)})"


def bigbird(
    block_size: int,
    n_window: int = 3,
    global_blocks: Sequence[int] = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    heads: int | None = None,
) -> Mask:
    """Blocks see a window of blocks, `n_random` random ones, and the global blocks, which see all.

    Parameters
    ----------
    block_size : int
        Positions per block.
    n_window : int
        Blocks in the window, an odd number: the block itself in the middle.
    global_blocks : sequence of int
        Blocks that see all and are seen by all; negative ones count from the last block of keys.
    n_random : int
        Blocks that each block draws of all (one in the window or a global one may be among them); 0 for none.
    seed, heads : int
        As in `random`.

    Examples
    --------
    >>> print(bigbird(1, n_random=0).picture(6, 6))
    ██████
    ███··█
    ████·█
    █·████
    █··███
    ██████
    """
    check_count("bigbird", "block_size", block_size)
    check_count("bigbird", "n_window", n_window)
    if n_window % 2 == 0:
        raise ValueError(f"bigbird: n_window is {n_window}; wanted an odd number, the block itself in the middle")
    check_count("bigbird", "n_random", n_random, least=0)
    check_draw("bigbird", seed, heads)
    given = Given.integers("bigbird", "global_blocks", global_blocks, axes=1)
    if given.array.ndim != 1:
        raise ValueError(f"bigbird: global_blocks has shape {given.array.shape}; wanted a list of blocks")
    heads = None if heads is None else int(heads)
    return BigBird(int(block_size), int(n_window), given, int(n_random), int(seed), heads)


@dataclass(frozen=True, repr=False)
class BigBird(Tiled):
    """See `bigbird`."""

    size: int
    n_window: int
    global_blocks: Given
    n_random: int
    seed: int
    heads: int | None
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.heads is None else (self.heads,)

    def pattern(self, nk: int) -> Mask:
        half = self.n_window // 2
        blocks = [b + nk if b < 0 else b for b in self.global_blocks.array.tolist() if b >= -nk]
        chosen = sides(half, half) | global_tokens(blocks)
        return chosen | Random(self.n_random, self.seed, self.heads)

    def __repr__(self) -> str:
        words = f"{self.n_window}, {self.global_blocks!r}, {draw_words(self.n_random, self.seed, self.heads)}"
        return f"bigbird({self.size}, {words})"


def longformer(window: int, global_indices: Sequence[int] = ()) -> Mask:
    """Each query sees `window` keys on both sides, and the global tokens see all and are seen by all.

    Beltagy et al. 2020, arXiv:2004.05150, section 3.1; ``window(window, window) | global_tokens(global_indices)``.

    Examples
    --------
    >>> longformer(2, [0])
    window(2, 2) | global_tokens([0])
    """
    check_count("longformer", "window", window, least=0)
    given = Given.integers("longformer", "global_indices", global_indices, axes=1)
    if given.array.ndim != 1 or (given.array < 0).any():
        raise ValueError(
            f"longformer: global_indices is {global_indices!r}; wanted a list of positions, each 0 or more"
        )
    return sides(int(window), int(window)) | global_tokens(given.array)


def block(layout: ArrayLike, block_size: int) -> Mask:
    """Whole blocks as an array says: query i sees key j if ``layout[..., i // block_size, j // block_size]``.

    Parameters
    ----------
    layout : bool array (..., ceil(Tq / block_size), ceil(Tk / block_size))
        True where a block of queries may look at a block of keys; axes before the last two become ``lead``.
    block_size : int
        Queries and keys per block, counted from the first of each.

    Examples
    --------
    >>> print(block([[True, False], [True, True]], 2).picture(4, 3))
    ██·
    ██·
    ███
    ███
    """
    check_count("block", "block_size", block_size)
    return Block(Given.bools("block: layout", layout, "(..., blocks of queries, blocks of keys)"), int(block_size))


@dataclass(frozen=True, repr=False)
class Block(Tiled):
    """See `block`."""

    layout: Given
    size: int

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.layout.array.shape[:-2])

    @property
    def cacheable(self) -> bool:  # type: ignore[override]
        return self.layout.array.size <= 1 << 16

    def coarse(self, Tq: int, Tk: int) -> Coarse:
        size = within(self.size, Tq, Tk)
        return Coarse(FromArray(self.layout), -(-Tq // size), -(-Tk // size), size, 0)

    def check(self, Tq: int, Tk: int) -> None:
        have, want = self.layout.array.shape[-2:], (-(-Tq // self.size), -(-Tk // self.size))
        if have != want:
            raise ValueError(
                f"block: layout has {have[0]} x {have[1]} blocks; {Tq} queries and {Tk} keys in blocks of {self.size} "
                f"are {want[0]} x {want[1]}"
            )

    def __repr__(self) -> str:
        return f"block({self.layout.shortly()}, {self.size})"
