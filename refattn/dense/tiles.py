"""The tiles that `flash` walks: which there are, their scores, and the bytes they move."""

import math
from typing import NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import Bools
from refattn.masks import EMPTY, Mask, as_mask


class Tile(NamedTuple):
    """One step of `flash_attention`: which scores it held, and what it moved between slow and fast memory."""

    i: slice
    """The queries of the tile."""
    j: slice
    """Its keys; empty for the step that writes a finished tile of queries."""
    read: int
    """Bytes read: keys, values, bias and mask of the tile, and its queries if they were not there yet."""
    written: int
    """Bytes written: o and lse, when the last keys have passed."""


class Tiles:
    """The tiles of one problem: which there are, their scores, and what belongs to them of bias and mask."""

    def __init__(
        self,
        q: Array,
        k: Array,
        mask: Mask | Bools | None,
        bias: Array | None,
        dropout_mask: Bools | None,
        tile_q: int,
        tile_k: int,
    ) -> None:
        self.Tq, self.Tk, self.tile_q, self.tile_k = q.shape[-2], k.shape[-2], tile_q, tile_k
        self.mask, self.bias, self.dropout_mask = as_mask(mask), bias, dropout_mask
        self.wanted = np.ones((-(-self.Tq // tile_q), -(-self.Tk // tile_k)), bool)
        if self.mask is not None:  # a tile is skipped when no head of no sequence sees anything in it
            kinds = self.mask.blocks(self.Tq, self.Tk, tile_q, tile_k).kinds()
            self.wanted = (kinds != EMPTY).any(axis=tuple(range(kinds.ndim - 2)))

    def queries(self) -> list[slice]:
        return [slice(i, min(i + self.tile_q, self.Tq)) for i in range(0, self.Tq, self.tile_q)]

    def keys(self, i: slice) -> list[slice]:
        wanted = np.flatnonzero(self.wanted[i.start // self.tile_q]) * self.tile_k
        return [slice(int(j), min(int(j) + self.tile_k, self.Tk)) for j in wanted]

    def scores(
        self, q_i: Array, k_j: Array, i: slice, j: slice, scale: float, softcap: float | None
    ) -> tuple[Array, Array | float, Bools]:
        """Return s, the slope of the soft cap, and which pairs are visible, each of the tile."""
        s = scale * (q_i @ k_j.swapaxes(-1, -2))
        slope: Array | float = 1.0
        if softcap is not None:
            t = np.tanh(s / float(softcap))
            s, slope = float(softcap) * t, 1 - t**2
        if self.bias is not None:
            s = s + self.part(self.bias, i, j).astype(s.dtype)
        if self.mask is None:
            return s, slope, np.ones(s.shape, bool)
        visible = self.mask.see(np.arange(i.start, i.stop)[:, None], np.arange(j.start, j.stop), self.Tq, self.Tk)
        return s, slope, np.broadcast_to(visible, s.shape)

    @staticmethod
    def part(x: Array, i: slice, j: slice) -> Array:
        """Return the tile's part of an array that broadcasts to (..., Tq, Tk), as a view."""
        x = x[..., j] if x.ndim > 0 and x.shape[-1] != 1 else x
        return x[..., i, :] if x.ndim > 1 and x.shape[-2] != 1 else x

    def bytes_of(self, i: slice, j: slice, k: Array, v: Array) -> int:
        """Return the bytes of keys, values, bias, dropout and mask (as bits) that the tile reads."""
        moved = k[..., j, :].nbytes + v[..., j, :].nbytes
        if self.bias is not None:
            moved += self.part(self.bias, i, j).nbytes
        if self.dropout_mask is not None:
            moved += self.part(self.dropout_mask, i, j).nbytes
        if self.mask is not None:
            moved += math.prod(self.mask.lead) * (i.stop - i.start) * -(-(j.stop - j.start) // 8)
        return moved
