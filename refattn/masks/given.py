"""The arrays that masks are made from, and how their numbers meet the axes of the scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn.masks.algebra import Bools, Index, Ints


@dataclass(frozen=True)
class Given:
    """An array that a mask was made from: read-only, compared and hashed by its content."""

    array: Any  # an NDArray, or None for an argument left out

    @classmethod
    def integers(cls, pattern: str, name: str, values: ArrayLike, axes: int = 0) -> "Given":
        array = np.array(values)
        if array.size > 0 and array.dtype.kind not in "iu":
            raise TypeError(f"{pattern}: {name} has dtype {array.dtype}; wanted integers")
        if array.size > 0 and array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{pattern}: {name} holds {array.max()}; wanted what fits into 64 bits with a sign")
        if array.ndim < axes:
            raise ValueError(f"{pattern}: {name} has shape {array.shape}; wanted at least {axes} axes")
        return cls.frozen(array.astype(np.int64))

    @classmethod
    def bools(cls, name: str, values: ArrayLike, meaning: str = "(..., Tq, Tk)") -> "Given":
        array = np.array(values)
        if array.dtype != bool:
            raise TypeError(f"{name} has dtype {array.dtype}; wanted bool, True = may look (floats go to bias=)")
        if array.ndim < 2:
            raise ValueError(f"{name} has shape {array.shape}; wanted {meaning}")
        return cls.frozen(array)

    @classmethod
    def frozen(cls, array: NDArray[Any]) -> "Given":
        array.flags.writeable = False
        return cls(array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash(None if self.array is None else (self.array.shape, self.array.tobytes()))

    def __repr__(self) -> str:
        return "" if self.array is None else repr(self.array.tolist())

    def shortly(self) -> str:
        """Spell bools; beyond 4,096 of them say how many there are: a repr is to be read, and no longer round-trips."""
        array = self.array
        return repr(self) if array.size <= 4096 else f"<bool {array.shape}, {int(array.sum())} visible>"


def per_sequence(values: NDArray[Any] | None) -> tuple[int, ...]:
    """Return the leading axes of a mask with one number per sequence: (B, 1), and none for a single number."""
    return () if values is None or values.ndim == 0 else (*values.shape, 1)


def number(values: NDArray[Any] | None, n: Index, default: int) -> Index:
    """Return the number of sequence `n`: the only one if there is one for all, and `default` if none is given."""
    if values is None:
        return default
    found: Ints = values.reshape(-1)[n]
    return found


def within(size: int, Tq: int, Tk: int) -> int:
    """Return `size`, or the least size that says the same about Tq queries and Tk keys: positions are -Tq < p < Tk."""
    return min(size, max(1, Tq + Tk))


def extremes(values: NDArray[Any], block: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and the greatest value in each run of `block` entries of the last axis."""
    starts = np.arange(0, values.shape[-1], block)
    return np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)


def stretches(values: Bools, first: Ints, last: Ints) -> tuple[Bools, Bools]:
    """Return whether all, and whether any, of the entries first ... last of the last axis are True."""
    total = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.int32)
    np.cumsum(values, axis=-1, out=total[..., 1:])
    found = total[..., last + 1] - total[..., first]
    return found == last - first + 1, found > 0
