"""Pictures made small: what to draw in each cell of a grid, whether in characters or in SVG."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.verdicts import Picture

HIDDEN, PARTLY, VISIBLE, MISSING, LEAKED = range(5)
"""What a cell of a mask is; one that stands for many pairs is LEAKED if any of them is, else MISSING if any is."""
LEVELS = 7
"""Of a heat map, above 0 for an exact zero; LEVELS + 1 is not a finite number."""


@dataclass(frozen=True)
class Grid:
    """The cells of a picture, each of which stands for `step` rows and columns of it."""

    codes: Array
    step: tuple[int, int]
    shape: tuple[int, int]
    """Of the whole picture."""


def matrix(values: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Return the values as a matrix: leading axes, if there are any, follow each other as rows."""
    x = np.asarray(values)
    if shape is not None:
        x = np.broadcast_to(x, shape)
    x = np.atleast_2d(x)
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return x.reshape(rows, x.shape[-1])


def is_mask(picture: Picture) -> bool:
    """Say whether the picture shows who sees whom."""
    return np.asarray(picture.values).dtype == bool


def mask_counts(picture: Picture) -> dict[int, int]:
    """Return how many pairs are visible (as they should be), missing and leaked."""
    values = matrix(picture.values)
    wanted = values if picture.wanted is None else matrix(picture.wanted, np.shape(picture.values)).astype(bool)
    return {
        VISIBLE: int((values & wanted).sum()),
        MISSING: int((wanted & ~values).sum()),
        LEAKED: int((values & ~wanted).sum()),
    }


def mask_grid(picture: Picture, rows: int, columns: int) -> Grid:
    """Return what each cell of a mask is, in at most so many rows and columns."""
    values = matrix(picture.values)
    wanted = values if picture.wanted is None else matrix(picture.wanted, np.shape(picture.values)).astype(bool)
    step = _step(values.shape, rows, columns)
    some, every = (_reduced(values, step, reduce) for reduce in (np.logical_or, np.logical_and))
    codes = np.where(every, VISIBLE, np.where(some, PARTLY, HIDDEN))
    codes[_reduced(wanted & ~values, step, np.logical_or)] = MISSING
    codes[_reduced(values & ~wanted, step, np.logical_or)] = LEAKED
    return Grid(codes, step, (values.shape[0], values.shape[1]))


def heat_grid(values: Any, cells: int, scale: tuple[float, float, bool]) -> Grid:
    """Return the level of each cell of a map: that of the largest number in it."""
    x = matrix(values).astype(np.float64)
    step = _step(x.shape, cells, cells)
    largest = _reduced(x, step, np.maximum)  # NaN wins
    low, high, logarithmic = scale
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.log(largest / low) / np.log(high / low) if logarithmic else (largest - low) / (high - low)
        codes = 1 + np.clip(np.floor(np.nan_to_num(share) * LEVELS), 0, LEVELS - 1)
    if low >= 0:
        codes[largest == 0] = 0
    codes[~np.isfinite(largest)] = LEVELS + 1
    return Grid(codes.astype(int), step, (x.shape[0], x.shape[1]))


def heat_scale(*maps: Any) -> tuple[float, float, bool]:
    """Return (low, high, whether the scale between them is logarithmic) for maps that share one scale.

    Maps without a negative number begin at 0; if they span more than a factor of 100, their scale is logarithmic and
    has four decades at most.
    """
    x = np.concatenate([np.asarray(values, np.float64).ravel() for values in maps])
    x = x[np.isfinite(x)]
    if x.size and x.min() < 0:
        return float(x.min()), float(max(x.max(), x.min() + 1e-9 * abs(x.min()))), False
    positive = x[x > 0]
    if positive.size == 0:
        return 0.0, 1.0, False
    low, high = float(positive.min()), float(positive.max())
    return (max(low, high * 1e-4), high, True) if high > 100 * low else (0.0, high, False)


def peak(values: Any) -> tuple[float, int, int] | None:
    """Return the largest number, NaN above all, with its row and column; None for an empty picture."""
    x = matrix(values).astype(np.float64)
    if x.size == 0:
        return None
    row, column = np.unravel_index(int(np.argmax(x)), x.shape)  # the first NaN, if there is one
    return float(x[row, column]), int(row), int(column)


def _step(shape: tuple[int, ...], rows: int, columns: int) -> tuple[int, int]:
    return max(1, -(-shape[0] // rows)), max(1, -(-shape[1] // columns))


def _reduced(x: Array, step: tuple[int, int], reduce: Any) -> Array:
    """Return one number for each step[0] x step[1] block; the last ones may be smaller."""
    if x.size == 0:
        return np.zeros((0, 0), x.dtype)
    down = reduce.reduceat(x, np.arange(0, x.shape[0], step[0]), axis=0)
    return reduce.reduceat(down, np.arange(0, x.shape[1], step[1]), axis=1)
