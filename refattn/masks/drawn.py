"""Keys drawn at random, the random part of Zaheer et al. 2020, arXiv:2007.14062, section 2.

A draw is a table of indices that depends on the seed, the lengths and the head alone. Its bits come from NumPy's PCG64,
whose stream NumPy promises to keep; what turns them into keys stands here, so that every machine draws the same.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count
from refattn.masks.algebra import Bools, Ints, Mask


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
        heads = range(1 if self.heads is None else self.heads)
        tables = [_draw(self.seed, head, Tq, Tk, min(self.n_keys, Tk)) for head in heads]
        return tables[0] if self.heads is None else np.stack(tables)

    def see(self, i: Ints, j: Ints, Tq: int, Tk: int) -> Bools:
        wanted, place = np.unique(j, return_inverse=True)
        keys = self.keys(Tq, Tk)[..., i[:, 0], :]
        column = np.minimum(np.searchsorted(wanted, keys), max(len(wanted) - 1, 0))
        seen = np.zeros((*keys.shape[:-1], len(wanted)), bool)
        if len(wanted) > 0:
            where = np.nonzero(wanted[column] == keys)
            seen[(*where[:-1], column[where])] = True
        return seen[..., place]

    def __repr__(self) -> str:
        return f"random({draw_words(self.n_keys, self.seed, self.heads)})"


def draw_words(n: int, seed: int, heads: int | None) -> str:
    """Spell the arguments of a draw."""
    return f"{n}, {seed}" if heads is None else f"{n}, {seed}, {heads}"


@lru_cache(maxsize=4)
def _draw(seed: int, head: int, Tq: int, Tk: int, n: int) -> Ints:
    """Return `n` distinct numbers below `Tk` for each query, ascending: int64 (Tq, n), read-only."""
    bits = np.random.PCG64([seed, Tq, Tk, head])
    keys = _distinct(bits, Tq, Tk, n) if 2 * n <= Tk else _others(_distinct(bits, Tq, Tk, Tk - n), Tk)
    keys.flags.writeable = False
    return keys


def _distinct(bits: np.random.PCG64, rows: int, below: int, n: int) -> Ints:
    """Draw `n` numbers a row, and again for each that its row already has, until all of a row differ."""
    drawn = np.sort(_numbers(bits, rows * n, below).reshape(rows, n), axis=-1)
    unfinished = np.arange(rows)
    while len(unfinished) > 0:
        part = drawn[unfinished]
        again = part[:, 1:] == part[:, :-1]
        part[:, 1:][again] = _numbers(bits, int(again.sum()), below)
        drawn[unfinished] = np.sort(part, axis=-1)
        unfinished = unfinished[again.any(axis=-1)]
    return drawn.astype(np.int64)


def _numbers(bits: np.random.PCG64, count: int, below: int) -> NDArray[np.uint32]:
    """Return `count` numbers in 0 ... below - 1: the upper half x of a random word becomes floor(x below / 2^32)."""
    words: NDArray[np.uint64] = np.asarray(bits.random_raw(count), np.uint64)
    return ((words >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.uint32)


def _others(keys: Ints, Tk: int) -> Ints:
    """Return, for each row, the numbers below `Tk` that `keys` has not."""
    left = np.ones((len(keys), Tk), bool)
    np.put_along_axis(left, keys, False, axis=-1)
    return np.nonzero(left)[1].reshape(len(keys), Tk - keys.shape[1])
