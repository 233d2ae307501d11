"""Patterns of whole blocks: positions p // block_size look at positions j // block_size.

Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D: BigBird's window, global and random blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Ints, Mask
from refattn.masks.contents import global_tokens
from refattn.masks.drawn import Random, check_draw, draw_words
from refattn.masks.given import Given
from refattn.masks.positions import window as sides


class Tiled(Mask):
    """A pattern of blocks: the query at position p sees key j if `coarse` lets block p // size see block j // size."""

    size: int

    def coarse(self, nk: int) -> Mask:
        """Return the pattern of the blocks, when there are `nk` blocks of keys."""
        raise NotImplementedError

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        nk = -(-Tk // self.size)
        first = (Tk - Tq) // self.size
        return self.coarse(nk).see((i + (Tk - Tq)) // self.size - first, j // self.size, nk - first, nk)


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

    def coarse(self, nk: int) -> Mask:
        return Random(self.n_blocks, self.seed, self.heads)

    def keys(self, Tq: int, Tk: int) -> Ints:
        """Return the blocks of keys that each block of queries sees, ascending: int64 (*lead, blocks, n), read-only."""
        nk, first = -(-Tk // self.size), (Tk - Tq) // self.size
        return Random(self.n_blocks, self.seed, self.heads).keys(nk - first, nk)

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

    def coarse(self, nk: int) -> Mask:
        half = self.n_window // 2
        blocks = [b + nk if b < 0 else b for b in self.global_blocks.array.tolist() if b >= -nk]
        pattern = sides(half, half) | global_tokens(blocks)
        return pattern | Random(self.n_random, self.seed, self.heads)

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
class Block(Mask):
    """See `block`."""

    layout: Given
    size: int
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.layout.array.shape[:-2])

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        seen: Bools = self.layout.array[..., i // self.size, j // self.size]
        return seen

    def check(self, Tq: int, Tk: int) -> None:
        have, want = self.layout.array.shape[-2:], (-(-Tq // self.size), -(-Tk // self.size))
        if have != want:
            raise ValueError(
                f"block: layout has {have[0]} x {have[1]} blocks; {Tq} queries and {Tk} keys in blocks of {self.size} "
                f"are {want[0]} x {want[1]}"
            )

    def __repr__(self) -> str:
        return f"block({self.layout!r}, {self.size})"
