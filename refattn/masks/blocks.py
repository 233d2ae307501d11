"""The score matrix cut into tiles: which are empty, which full, and the bits of those in between.

Backends walk the tiles of each row and never look at an empty one, so the work grows with what the mask shows.
"""

import math
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
        heights, widths = self._extents()
        full = self.partial < 0
        return int((heights[full] * widths[full]).sum()) + int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def kinds(self) -> NDArray[np.uint8]:
        """Return EMPTY, PARTIAL or FULL for each tile, uint8 (*lead, tiles of queries, tiles of keys)."""
        kinds = np.full((len(self.rows) - 1, self.shape[1]), EMPTY, np.uint8)
        kinds[self._row_of_tile(), self.columns] = np.where(self.partial < 0, FULL, PARTIAL)
        return kinds.reshape(*self.lead, *self.shape)

    def to_scipy(self) -> "scipy.sparse.csr_array[Any]":
        """Return the pattern as a SciPy CSR array of bools (Tq, Tk)."""
        import scipy.sparse  # takes longer than all of this package

        row, heights, widths = self._row_of_tile(), *self._extents()
        i, j = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for tile, (r, c) in enumerate(zip(row, self.columns, strict=True)):
            seen = np.ones((heights[tile], widths[tile]), bool)
            if self.partial[tile] >= 0:
                unpacked = np.unpackbits(self.bits[self.partial[tile]], axis=-1, bitorder="little")
                seen = unpacked.T[: heights[tile], : widths[tile]].astype(bool)
            a, b = np.nonzero(seen)
            i.append(a + r * self.block_q)
            j.append(b + np.int64(c) * self.block_k)
        rows, cols = np.concatenate(i), np.concatenate(j)
        return scipy.sparse.csr_array((np.ones(len(rows), bool), (rows, cols)), shape=(self.Tq, self.Tk))

    def _row_of_tile(self) -> Ints:
        return np.repeat(np.arange(len(self.rows) - 1), np.diff(self.rows))

    def _extents(self) -> tuple[Ints, Ints]:
        """Return how many rows and columns of each tile exist."""
        tile_row = self._row_of_tile() % max(self.shape[0], 1)
        return (
            np.minimum(self.block_q, self.Tq - tile_row * self.block_q),
            np.minimum(self.block_k, self.Tk - self.columns.astype(np.int64) * self.block_k),
        )


def build(mask: "Mask", Tq: int, Tk: int, block_q: int, block_k: int) -> Blocks:
    """Cut `mask` into tiles; only tiles that `Mask.tiles` leaves undecided are looked into."""
    check_count("blocks", "block_q", block_q)
    check_count("blocks", "block_k", block_k)
    nq, nk, lead = -(-Tq // block_q), -(-Tk // block_k), mask.lead
    if nq == 0 or nk == 0:
        return _assemble(np.zeros((*lead, nq, nk), np.uint8), [], Tq, Tk, block_q, block_k, lead)
    some, every = mask.tiles(Tq, Tk, block_q, block_k)
    kinds = np.where(every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.uint8)
    kinds = np.array(np.broadcast_to(kinds, (*lead, nq, nk)))
    flat = kinds.reshape(-1, nq, nk)
    bits = []
    for a in range(nq):
        i = np.arange(a * block_q, min((a + 1) * block_q, Tq))
        undecided = np.flatnonzero((flat[:, a] == PARTIAL).any(axis=0))
        for some_tiles in np.array_split(undecided, -(-len(undecided) // 64) or 1):  # a strip at a time bounds memory
            if len(some_tiles) == 0:
                continue
            j = (some_tiles[:, None] * block_k + np.arange(block_k)).ravel()
            inside = j < Tk
            seen = np.zeros((len(flat), block_q, len(j)), bool)
            strip = np.broadcast_to(mask.see(i[:, None], j[inside], Tq, Tk), (*lead, len(i), int(inside.sum())))
            seen[:, : len(i), inside] = strip.reshape(len(flat), len(i), -1)
            tiles = seen.reshape(len(flat), block_q, len(some_tiles), block_k).swapaxes(1, 2)
            count = tiles.sum(axis=(-2, -1))
            widths = np.minimum(block_k, Tk - some_tiles * block_k)
            decided = np.where(count == 0, EMPTY, np.where(count == len(i) * widths, FULL, PARTIAL))
            before = flat[:, a, some_tiles]
            flat[:, a, some_tiles] = now = np.where(before == PARTIAL, decided, before)
            for n, tile in zip(*np.nonzero(now == PARTIAL), strict=True):
                packed = np.packbits(tiles[n, tile].T, axis=-1, bitorder="little")
                bits.append(((int(n) * nq + a) * nk + int(some_tiles[tile]), packed))
    return _assemble(kinds, bits, Tq, Tk, block_q, block_k, lead)


def _assemble(
    kinds: NDArray[np.uint8],
    bits: list[tuple[int, NDArray[np.uint8]]],
    Tq: int,
    Tk: int,
    block_q: int,
    block_k: int,
    lead: tuple[int, ...],
) -> Blocks:
    flat = kinds.reshape(math.prod(kinds.shape[:-1]), kinds.shape[-1])
    row, column = np.nonzero(flat)
    partial = np.full(len(row), -1, np.int64)
    is_partial = flat[row, column] == PARTIAL
    partial[is_partial] = np.arange(is_partial.sum())
    packed = np.zeros((len(bits), block_k, -(-block_q // 8)), np.uint8)
    for n, (_, tile) in enumerate(sorted(bits, key=lambda entry: entry[0])):  # the order of the CSR form
        packed[n] = tile
    return Blocks(
        Tq=Tq,
        Tk=Tk,
        block_q=block_q,
        block_k=block_k,
        lead=lead,
        rows=np.concatenate([[0], np.cumsum(np.count_nonzero(flat, axis=-1))]).astype(np.int64),
        columns=column.astype(np.int32),
        partial=partial,
        bits=packed,
    )


def tiles_of_spans(start: Ints, stop: Ints, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
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
