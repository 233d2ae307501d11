"""What a family of calls is: the problems that one operation is tried on, and how each becomes a call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.testing.values import Rng

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """The cases of one operation."""

    names: tuple[str, ...]
    """The problems, each perhaps with ``+variant``."""
    build: Callable[[str, Rng, Any], Call]
    """(name, rng, dtype) -> (args, kwargs)."""
    sixteen: tuple[str, ...]
    """Those that 16-bit inputs are tried on too; where rounding plays no part they would repeat the others."""
    quick: tuple[str, ...]
    """Those of the quick level."""


def own(table: dict[str, Any], build: Callable[[str, Rng, Any], Call]) -> Family:
    """Return a family whose problems are tried in every dtype and at every level."""
    return Family(tuple(table), build, sixteen=tuple(table), quick=tuple(table))


def as_float64(x: Any) -> Any:
    """Return float arrays as float64, also inside tuples and lists, and everything else as it is."""
    if isinstance(x, tuple | list):
        wide = [as_float64(y) for y in x]
        return type(x)(*wide) if hasattr(x, "_fields") else type(x)(wide)
    floats = isinstance(x, np.ndarray) and x.dtype != bool and x.dtype.kind not in "iu"
    return x.astype(np.float64) if floats else x
