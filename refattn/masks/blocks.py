"""The score matrix cut into tiles: which are empty, which full, and the bits of those in between.

Backends walk the tiles of each row and never look at an empty one, so the work grows with what the mask shows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count

if TYPE_CHECKING:
    import scipy.sparse

    from refattn.masks.algebra import Mask

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

EMPTY, PARTIAL, FULL = 0, 1, 2

TILES = 1 << 22  # tiles whose kinds are held at a time
PAIRS = 1 << 21  # pairs looked at at a time


@dataclass(frozen=True)
class Blocks:
    """The tiles that are not empty, in CSR form: those of tile row r are ``columns[rows[r]:rows[r + 1]]``.

    With leading axes, row r = (index into the flattened lead) * (tiles of queries) + (tile of queries).
    A tile at the border that reaches beyond Tq or Tk is FULL when all of it that exists is visible.
    """

    Tq: int
    Tk: int
    block_q: int
    block_k: int
    lead: tuple[int, ...]
    rows: Ints
    """(lead * tiles of queries + 1,): where each row's tiles begin."""
    columns: NDArray[np.int32]
    """(tiles,): which tile of keys, ascending within a row."""
    partial: NDArray[np.int64]
    """(tiles,): index into `bits`, or -1 for a full tile."""
    bits: NDArray[np.uint8]
    """(partial tiles, block_k, ceil(block_q / 8)): query i is bit i % 8 of byte i // 8 in the row of key j."""

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles of queries, tiles of keys."""
        return -(-self.Tq // self.block_q), -(-self.Tk // self.block_k)

    @property
    def pairs(self) -> int:
        """How many (query, key) pairs are visible."""
        return int(self.visible().sum())

    def visible(self) -> Ints:
        """Return how many pairs of each tile are visible, int64 (tiles,)."""
        heights, widths = self.extents()
        count = heights * widths
        count[self.partial >= 0] = np.bitwise_count(self.bits).sum(axis=(-2, -1), dtype=np.int64)
        return count

    def kinds(self) -> NDArray[np.uint8]:
        """Return EMPTY, PARTIAL or FULL for each tile, uint8 (*lead, tiles of queries, tiles of keys)."""
        kinds = np.full((len(self.rows) - 1, self.shape[1]), EMPTY, np.uint8)
        kinds[self.row_of_tile(), self.columns] = np.where(self.partial < 0, FULL, PARTIAL)
        return kinds.reshape(*self.lead, *self.shape)

    def to_scipy(self) -> "scipy.sparse.csr_array[Any]":
        """Return the pattern as a SciPy CSR array of bools (Tq, Tk)."""
        import scipy.sparse  # takes longer than all of this package

        rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for first in range(0, len(self.columns), 1024):  # tiles at a time: bounds memory
            tiles = slice(first, first + 1024)
            seen = np.ones((len(self.columns[tiles]), self.block_k, 8 * self.bits.shape[-1]), bool)
            partial = self.partial[tiles]
            seen[partial >= 0] = np.unpackbits(self.bits[partial[partial >= 0]], axis=-1, bitorder="little")
            tile, b, a = np.nonzero(seen[..., : self.block_q])
            i = a + self.row_of_tile()[tiles][tile] * self.block_q
            j = b + self.columns[tiles][tile].astype(np.int64) * self.block_k
            inside = (i < self.Tq) & (j < self.Tk)
            rows.append(i[inside])
            columns.append(j[inside])
        i, j = np.concatenate(rows), np.concatenate(columns)
        return scipy.sparse.csr_array((np.ones(len(i), bool), (i, j)), shape=(self.Tq, self.Tk))

    def row_of_tile(self) -> Ints:
        """Return the row of each tile, int64 (tiles,)."""
        return np.repeat(np.arange(len(self.rows) - 1), np.diff(self.rows))

    def extents(self) -> tuple[Ints, Ints]:
        """Return how many queries and keys of each tile exist, int64 (tiles,) both."""
        top = self.row_of_tile() % max(self.shape[0], 1) * self.block_q
        left = self.columns.astype(np.int64) * self.block_k
        return np.minimum(self.block_q, self.Tq - top), np.minimum(self.block_k, self.Tk - left)


def build(mask: "Mask", Tq: int, Tk: int, block_q: int, block_k: int) -> Blocks:
    """Cut `mask` into tiles; only tiles that `Mask.tiles` leaves undecided are looked into."""
    check_count("blocks", "block_q", block_q)
    check_count("blocks", "block_k", block_k)
    nq, nk, L = -(-Tq // block_q), -(-Tk // block_k), math.prod(mask.lead)
    counts, columns, partial = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, bool)]
    bits = [np.zeros((0, block_k, -(-block_q // 8)), np.uint8)]
    for n, rows in _slabs(L, nq, nk):
        i = np.arange(rows.start * block_q, min(rows.stop * block_q, Tq))
        some, every = mask.tiles(n if mask.lead else 0, i, Tq, Tk, block_q, block_k)
        kinds = np.maximum(some.astype(np.uint8), every * np.uint8(FULL))
        kinds = np.array(np.broadcast_to(kinds, (len(n), len(rows), nk)), order="C")
        bits += _look(mask, kinds, n, rows.start, Tq, Tk, block_q, block_k)
        found = np.flatnonzero(kinds)
        counts.append(np.count_nonzero(kinds, axis=-1).ravel())
        columns.append((found % nk).astype(np.int32))
        partial.append(kinds.ravel()[found] == PARTIAL)
    is_partial = np.concatenate(partial)
    return Blocks(
        Tq=Tq,
        Tk=Tk,
        block_q=block_q,
        block_k=block_k,
        lead=mask.lead,
        rows=np.cumsum(np.concatenate(counts)) if nk > 0 else np.zeros(L * nq + 1, np.int64),
        columns=np.concatenate(columns),
        partial=np.where(is_partial, np.cumsum(is_partial) - 1, -1),
        bits=np.concatenate(bits),
    )


def _slabs(L: int, nq: int, nk: int) -> Iterator[tuple[Ints, range]]:
    """Yield (patterns, rows of tiles), in the order of the CSR form, so few at a time that memory stays bounded."""
    if nq * nk == 0:
        return
    patterns, rows = max(1, TILES // (nq * nk)), max(1, TILES // nk)
    for first in range(0, L, patterns):
        for top in range(0, nq, rows):
            yield np.arange(first, min(first + patterns, L)), range(top, min(top + rows, nq))


def _look(
    mask: "Mask", kinds: NDArray[np.uint8], n: Ints, top: int, Tq: int, Tk: int, block_q: int, block_k: int
) -> list[NDArray[np.uint8]]:
    """Decide the tiles that `kinds` has as PARTIAL, write there what they are, and return the bits of the partial ones.

    `kinds` is (patterns, rows of tiles, tiles of keys), its patterns being `n`, its first row the row `top` of tiles.
    """
    flat = kinds.reshape(-1)
    undecided = np.flatnonzero(flat == PARTIAL)
    pattern, row, column = np.unravel_index(undecided, kinds.shape)
    q, k = (row + top) * block_q, column * block_k
    table = np.zeros(0, np.uint8)
    if mask.shifts:
        distances, which = np.unique(q - k, return_inverse=True)
        at = distances[:, None, None] + np.arange(block_q)
        table = _pack(mask.at(0, at, np.arange(block_k)[:, None], Tq, Tk), len(distances), block_q, block_k)
    bits = []
    step = max(1, PAIRS // (block_q * block_k))
    for first in range(0, len(undecided), step):
        s = slice(first, first + step)
        if mask.shifts:
            packed = table[which[s]]
        else:
            patch = mask.patch(n[pattern[s]] if mask.lead else 0, q[s], k[s], Tq, Tk, block_q, block_k)
            packed = _pack(patch, len(q[s]), block_q, block_k)
        below, right = np.minimum(Tq - q[s], block_q), np.minimum(Tk - k[s], block_k)  # how much of a tile exists
        inside = np.arange(block_q) < (Tq - 1) % block_q + 1
        packed[below < block_q] &= np.packbits(inside, bitorder="little")
        packed[right < block_k, (Tk - 1) % block_k + 1 :] = 0
        count = np.bitwise_count(packed).sum(axis=(-2, -1), dtype=np.int64)
        flat[undecided[s]] = np.where(count == 0, EMPTY, np.where(count == below * right, FULL, PARTIAL))
        bits.append(packed[(count > 0) & (count < below * right)])
    return bits


def _pack(seen: Bools, tiles: int, block_q: int, block_k: int) -> NDArray[np.uint8]:
    """Return the bits of what broadcasts to (tiles, block_k, block_q): query i is bit i % 8 of byte i // 8."""
    return np.packbits(np.broadcast_to(seen, (tiles, block_k, block_q)), axis=-1, bitorder="little")


def tiles_of_runs(start: Ints, stop: Ints, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
    """Return bounds (some, all) for each tile when query i sees the keys start_i <= j < stop_i; see `Mask.tiles`."""
    start, stop = np.broadcast_arrays(start, stop)
    blind = start >= stop
    some_start, some_stop = np.where(blind, Tk, start), np.where(blind, 0, stop)
    tops = np.arange(0, start.shape[-1], block_q)
    first = np.minimum.reduceat(some_start, tops, axis=-1)[..., None]
    last = np.maximum.reduceat(some_stop, tops, axis=-1)[..., None]
    inner_first = np.maximum.reduceat(start, tops, axis=-1)[..., None]
    inner_last = np.minimum.reduceat(stop, tops, axis=-1)[..., None]
    left = np.arange(0, Tk, block_k)
    right = np.minimum(left + block_k, Tk)
    return (first < right) & (last > left), (inner_first <= left) & (inner_last >= right)
