"""Arrays for kernels that could write or read anywhere: each in the middle of a buffer, where it leaves traces.

Before and after an output, and in the gaps of its strides, stands a bit pattern that must still be there after the
call. Before and after an input stands NaN, which spoils the result of a kernel that reads there.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array

GUARD = 1 << 16  # bytes before and after: a tile of 128 rows of 128 float32
ALIGNED = 64  # bytes to which arrays and, where there are gaps, rows are aligned
PATTERN = 0xA5  # around outputs: an ordinary number in every format, so that NaN from an input cannot look like it
UNWRITTEN = 0xFF  # all bits set: NaN in every float format, -1 in integers


class Guarded:
    """An array and its surroundings."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, *, gaps: bool = False):
        self._name = name
        dtype = np.dtype(dtype)
        strides, step = [0] * len(shape), dtype.itemsize
        for axis in reversed(range(len(shape))):
            strides[axis] = step
            step *= max(1, shape[axis])
            if gaps and axis == len(shape) - 1:  # at least one aligned unit between any two rows
                step = -(-step // ALIGNED) * ALIGNED + ALIGNED
        self._outside = np.full(2 * GUARD + max(step, dtype.itemsize) + ALIGNED, PATTERN, np.uint8)
        start = GUARD + -(self._outside.ctypes.data + GUARD) % ALIGNED
        self._span = start, start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
        if 0 in shape:
            self._span = start, start
        self.array: Array = np.ndarray(shape, dtype, self._outside.data, start, strides)
        self._bytes: Array = np.ndarray((*shape, dtype.itemsize), np.uint8, self._outside.data, start, (*strides, 1))
        self._bytes[...] = UNWRITTEN
        self._before: Array | None = None

    @classmethod
    def holding(cls, name: str, x: Array) -> "Guarded":
        """Return an input: a contiguous copy of `x` that must not change, NaN around it."""
        guarded = cls(name, x.shape, x.dtype)
        guarded._outside[...] = UNWRITTEN
        guarded.array[...] = x
        guarded._before = guarded._outside.copy()
        return guarded

    def faults(self) -> list[str]:
        """Return what was written that must not be written."""
        if self._before is not None:
            changed = self._outside != self._before
        else:
            changed = self._outside != PATTERN
            inside = np.zeros(changed.shape, bool)
            np.ndarray(self._bytes.shape, bool, inside.data, self._span[0], self._bytes.strides)[...] = True
            changed &= ~inside
        start, end = self._span
        within = "into the gaps between the rows of" if self._before is None else "to its argument"
        places = (
            ("before the start of", changed[:start]),
            (within, changed[start:end]),
            ("past the end of", changed[end:]),
        )
        counts = [(self._elements(part), where) for where, part in places]
        return [f"wrote {n} element{'s' * (n != 1)} {where} {self._name}" for n, where in counts if n]

    def _elements(self, changed: Array) -> int:
        """Count the elements of which a byte changed; writes to part of one count as one."""
        return len(np.unique(np.flatnonzero(changed) // self.array.itemsize))
