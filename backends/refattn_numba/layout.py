"""From what callers pass to what kernels read: flat arrays of one compute dtype, and tables that say which is which."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.masks import Blocks, Mask, as_mask
from refattn_numba.vectors import LANES

TILE_K = 128


@dataclass(frozen=True)
class Problem:
    """One call, flattened: with B the product of the batch axes, arrays hold (B * heads) matrices in a row."""

    batch: tuple[int, ...]
    H: int
    Hk: int
    Tq: int
    Tk: int
    D: int
    Dv: int
    dtype: np.dtype[Any]
    scale: Any
    softcap: Any
    """0 for none."""
    all_visible: bool
    tiles: tuple[Array, ...]
    """rows, columns, partial, words of the mask's blocks; words are (partial tiles * TILE_K,) uint64, a bit a query."""
    mask_of: Array
    """(B * H,): which of the mask's patterns a head of a sequence uses."""
    bias: Array
    """(planes, Tq or 1, Tk or 1), in the compute dtype; no planes if there is none."""
    bias_of: Array
    """(B * H,): which plane."""
    keep: Array
    """(planes, Tq or 1, Tk or 1) bool: the dropout mask."""
    keep_of: Array
    """(B * H,): which plane."""
    keep_scale: Any
    """1 / (1 - dropout_p)."""
    sinks: Array
    """(H,) or empty."""

    @property
    def heads(self) -> int:
        """How many query matrices there are."""
        return math.prod(self.batch) * self.H

    @property
    def pairs(self) -> float:
        """Query-key pairs in the tiles that are computed."""
        if self.all_visible:
            return float(self.heads) * self.Tq * self.Tk
        tile = min(LANES, self.Tq) * min(TILE_K, self.Tk)
        per_pattern = np.diff(self.tiles[0]).reshape(-1, max(1, tiles_of(self.Tq))).sum(axis=1)
        return float(per_pattern[self.mask_of].sum()) * tile

    def order(self) -> Array:
        """Return the (head, tile of queries) items, those with the most tiles of keys first: int64 (heads * tiles,)."""
        nq = tiles_of(self.Tq)
        items = np.arange(self.heads * nq)
        if self.all_visible or nq <= 1:
            return items
        counts = np.diff(self.tiles[0])[self.mask_of[items // nq] * nq + items % nq]
        return np.argsort(-counts, kind="stable")


def heads_of(q: Array) -> tuple[int, ...]:
    """Return the axes (*batch, H) of (*batch, H, T, D); a matrix is one head."""
    return q.shape[:-2] if q.ndim > 2 else (1,)


def tiles_of(Tq: int) -> int:
    """Return how many tiles of LANES queries there are."""
    return -(-Tq // LANES)


def tiles_of_keys(Tk: int) -> int:
    """Return how many tiles of TILE_K keys there are, at least one."""
    return max(1, -(-Tk // TILE_K))


def problem(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
) -> Problem:
    """Describe a call of `attention` or its kin."""
    batch = q.shape[:-3]
    H, Hk = (q.shape[-3], k.shape[-3]) if q.ndim > 2 else (1, 1)
    Tq, D = q.shape[-2:]
    Tk, Dv = v.shape[-2:]
    dtype = compute_dtype(q.dtype)
    pattern = as_mask(mask)
    tiles, mask_of = _everything(math.prod(batch) * H)
    if pattern is not None:
        blocks = _blocks(pattern, Tq, Tk)
        words = blocks.bits.reshape(-1, LANES // 8).view("<u8").ravel()
        tiles = (blocks.rows, blocks.columns, blocks.partial, words)
        mask_of = planes(pattern.lead, (*batch, H))
    bias_planes, bias_of = _table(bias, dtype, batch, H)
    keep_planes, keep_of = _table(dropout_mask, np.dtype(bool), batch, H)
    return Problem(
        batch=batch,
        H=H,
        Hk=Hk,
        Tq=Tq,
        Tk=Tk,
        D=D,
        Dv=Dv,
        dtype=dtype,
        scale=dtype.type(1 / math.sqrt(D) if scale is None else scale),
        softcap=cap_of(softcap, dtype),
        all_visible=pattern is None,
        tiles=tiles,
        mask_of=mask_of,
        bias=read_only(bias_planes),
        bias_of=bias_of,
        keep=read_only(keep_planes),
        keep_of=keep_of,
        keep_scale=dtype.type(1 / (1 - dropout_p)),
        sinks=flat(np.zeros(0) if sinks is None else sinks, dtype),
    )


def seen_keys(call: Problem) -> Array:
    """Return which keys at least one query sees, bool (heads, Tk)."""
    if call.all_visible or call.Tq == 0 or call.Tk == 0:
        return np.full((call.heads, call.Tk), call.Tq > 0)
    rows, columns, partial, words = call.tiles
    pattern = np.repeat(np.arange(len(rows) - 1), np.diff(rows)) // tiles_of(call.Tq)
    seen = np.zeros(((len(rows) - 1) // tiles_of(call.Tq), tiles_of_keys(call.Tk), TILE_K), bool)
    cut = partial >= 0
    seen[pattern[~cut], columns[~cut]] = True
    np.logical_or.at(seen, (pattern[cut], columns[cut]), words.reshape(-1, TILE_K)[partial[cut]] != 0)
    return seen.reshape(len(seen), -1)[call.mask_of, : call.Tk]


def cap_of(softcap: float | None, dtype: Any) -> Any:
    """Return the soft cap as kernels read it: 0 for none, and never 0 for one that is too small for the dtype."""
    return dtype.type(0) if softcap is None else max(dtype.type(softcap), np.finfo(dtype).tiny)


def flat(x: Array, dtype: Any) -> Array:
    """Return the numbers of `x` one after another in `dtype`, read-only; a view where that needs no copy."""
    return read_only(np.ascontiguousarray(x, dtype=dtype).reshape(-1))


def read_only(x: Array) -> Array:
    """Return a view that cannot be written: to Numba another type, so all inputs are made alike and compiled once."""
    x = x.view()
    x.flags.writeable = False
    return x


@lru_cache(maxsize=16)
def _cached_blocks(mask: Mask, Tq: int, Tk: int) -> Blocks:
    return mask.blocks(Tq, Tk, LANES, TILE_K)


def _blocks(mask: Mask, Tq: int, Tk: int) -> Blocks:
    return _cached_blocks(mask, Tq, Tk) if mask.cacheable else mask.blocks(Tq, Tk, LANES, TILE_K)


def _everything(heads: int) -> tuple[tuple[Array, ...], Array]:
    nothing = np.zeros(0, np.int64)
    return (nothing, nothing.astype(np.int32), nothing, nothing.astype(np.uint64)), np.zeros(heads, np.int64)


def planes(lead: tuple[int, ...], heads: tuple[int, ...]) -> Array:
    """Return, for each head of each sequence (*batch, H), its index into the flattened `lead`, which broadcasts."""
    return np.broadcast_to(np.arange(math.prod(lead)).reshape(lead), heads).reshape(-1).astype(np.int64)


def _table(x: Array | None, dtype: Any, batch: tuple[int, ...], H: int) -> tuple[Array, Array]:
    """Return `x`, which broadcasts to (*batch, H, Tq, Tk), as (planes, Tq or 1, Tk or 1), and each head's plane."""
    if x is None:
        return np.zeros((0, 1, 1), dtype), np.zeros(0, np.int64)
    x = x.reshape((1,) * max(0, 2 - x.ndim) + x.shape)
    lead = x.shape[:-2] if batch or H > 1 else ()
    return np.ascontiguousarray(x, dtype).reshape(math.prod(lead), *x.shape[-2:]), planes(lead, (*batch, H))
