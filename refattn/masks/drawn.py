"""Keys drawn at random, the random part of Zaheer et al. 2020, arXiv:2007.14062, section 2.

A draw is a table of indices that depends on the seed, the lengths and the head alone. Its bits come from NumPy's PCG64,
whose stream NumPy promises to keep; what turns them into keys stands here, so that every machine draws the same.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Index, Ints, Mask


def random(n_keys: int, seed: int = 0, heads: int | None = None) -> Mask:
    """Each query sees min(n_keys, Tk) keys drawn without replacement, each set of keys as likely as any other.

    Parameters
    ----------
    n_keys : int
        Keys per query.
    seed : int
        The same (seed, Tq, Tk) draws the same keys, on every machine and backend.
    heads : int, optional
        Draw anew for each head: a mask with ``lead = (heads,)``, whose head 0 is the mask without `heads`.

    Examples
    --------
    >>> random(2).dense(3, 5).sum(axis=-1)
    array([2, 2, 2])
    >>> random(2).keys(3, 5).shape, random(2, heads=4).keys(3, 5).shape
    ((3, 2), (4, 3, 2))
    """
    check_count("random", "n_keys", n_keys)
    check_draw("random", seed, heads)
    return Random(int(n_keys), int(seed), None if heads is None else int(heads))


def check_draw(pattern: str, seed: int, heads: int | None) -> None:
    """Raise unless `seed` and `heads` can be drawn from."""
    check_count(pattern, "seed", seed, least=0)
    if heads is not None:
        check_count(pattern, "heads", heads)


@dataclass(frozen=True, repr=False)
class Random(Mask):
    """See `random`."""

    n_keys: int
    seed: int
    heads: int | None
    cacheable = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.heads is None else (self.heads,)

    def keys(self, Tq: int, Tk: int) -> Ints:
        """Return the keys that each query sees, ascending: int64 (*lead, Tq, min(n_keys, Tk)), read-only."""
        self._check_all(Tq, Tk)
        return self._table(Tq, Tk).reshape(*self.lead, Tq, min(self.n_keys, Tk))

    def _table(self, Tq: int, Tk: int) -> Ints:
        return draw(self.seed, 1 if self.heads is None else self.heads, Tq, Tk, min(self.n_keys, Tk))

    def listed(self, n: Index, i: Ints, Tq: int, Tk: int) -> Ints:
        return np.asarray(self._table(Tq, Tk)[n, i])

    def at(self, n: Index, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        row, keys = n * Tq + i, self._table(Tq, Tk)
        keys = keys.reshape(len(keys) * Tq, min(self.n_keys, Tk))
        if row.shape[-1:] == (1,) and j.ndim == 1:  # the same keys for all queries
            return _marked(keys[row[..., 0]], j, Tk)
        rows, place = np.unique(row, return_inverse=True)
        keys = keys[rows] + np.arange(len(rows))[:, None] * Tk
        wanted = place.reshape(row.shape) * Tk + j
        found = np.searchsorted(keys.ravel(), wanted)
        seen: Bools = np.append(keys.ravel(), -1)[found] == wanted
        return seen

    def below(self, n: Index, i: Ints, stop: Index, Tq: int, Tk: int) -> Ints:
        return np.count_nonzero(self.listed(n, i, Tq, Tk) < np.asarray(stop)[..., None], axis=-1)

    def tiles(self, n: Index, i: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> tuple[Bools, Bools]:
        keys = self._table(Tq, Tk)[n][..., i, :]
        some = np.zeros((*keys.shape[:-2], -(-len(i) // block_q), -(-Tk // block_k)), bool)
        for a in range(some.shape[-2]):
            columns = keys[..., a * block_q : (a + 1) * block_q, :] // block_k
            np.put_along_axis(some[..., a, :], columns.reshape(*keys.shape[:-2], -1), True, axis=-1)
        return some, np.full((1, 1), self.n_keys >= Tk)

    def patch(self, n: Index, q: Ints, k: Ints, Tq: int, Tk: int, block_q: int, block_k: int) -> Bools:
        i = np.minimum(q[:, None] + np.arange(block_q), Tq - 1)
        column = self._table(Tq, Tk)[np.asarray(n)[..., None], i] - k[:, None, None]  # (t, block_q, n_keys)
        tile, row, place = np.nonzero((column >= 0) & (column < block_k))
        seen = np.zeros((len(q), block_k, block_q), bool)
        seen[tile, column[tile, row, place], row] = True
        return seen

    def check(self, Tq: int, Tk: int) -> None:
        if Tk > 1 << 32:
            raise ValueError(f"random: there are {Tk} keys; wanted at most 2^32")

    def __repr__(self) -> str:
        return f"random({draw_words(self.n_keys, self.seed, self.heads)})"


def _marked(keys: Ints, j: Ints, Tk: int) -> Bools:
    """Return whether each of the keys `j` (m,) is in each row of `keys` (..., n)."""
    column = np.full(Tk, len(j))
    wanted, place = np.unique(j, return_inverse=True)
    column[wanted] = np.arange(len(wanted))
    seen = np.zeros((*keys.shape[:-1], len(j) + 1), bool)
    np.put_along_axis(seen, column[keys], True, axis=-1)
    return seen[..., place]


def draw_words(n: int, seed: int, heads: int | None) -> str:
    """Spell the arguments of a draw."""
    return f"{n}, {seed}" if heads is None else f"{n}, {seed}, {heads}"


@lru_cache(maxsize=2)
def draw(seed: int, heads: int, Tq: int, Tk: int, n: int) -> Ints:
    """Return `n` distinct numbers below `Tk` for each head and query, ascending: int64 (heads, Tq, n), read-only."""
    keys = np.empty((heads, Tq, n), np.int64)
    for head in range(heads):
        bits = np.random.PCG64([seed, Tq, Tk, head])
        keys[head] = _distinct(bits, Tq, Tk, n) if 2 * n <= Tk else _others(_distinct(bits, Tq, Tk, Tk - n), Tk)
    keys.flags.writeable = False
    return keys


def _distinct(bits: np.random.PCG64, rows: int, below: int, n: int) -> NDArray[np.uint32]:
    """Draw `n` numbers a row, and again for each that its row already has, until all of a row differ."""
    drawn = np.sort(_numbers(bits, rows * n, below).reshape(rows, n), axis=-1)
    unfinished = np.arange(rows)
    while len(unfinished) > 0:
        part = drawn[unfinished]
        again = part[:, 1:] == part[:, :-1]
        part[:, 1:][again] = _numbers(bits, int(again.sum()), below)
        drawn[unfinished] = np.sort(part, axis=-1)
        unfinished = unfinished[again.any(axis=-1)]
    return drawn


def _numbers(bits: np.random.PCG64, count: int, below: int) -> NDArray[np.uint32]:
    """Return `count` numbers in 0 ... below - 1: the upper half x of a random word becomes floor(x below / 2^32)."""
    words: NDArray[np.uint64] = np.asarray(bits.random_raw(count), np.uint64)
    return ((words >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.uint32)


def _others(keys: NDArray[np.uint32], Tk: int) -> Ints:
    """Return, for each row, the numbers below `Tk` that `keys` has not."""
    left = np.ones((len(keys), Tk), bool)
    np.put_along_axis(left, keys, False, axis=-1)
    return np.nonzero(left)[1].reshape(len(keys), Tk - keys.shape[1])
