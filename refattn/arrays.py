"""What counts as an array here, in which dtype one computes with it, and the checks that operations share."""

import math
import sys
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

FLOATS = ("float16", "bfloat16", "float32", "float64")
_COMPUTED = {np.dtype(np.float16): np.dtype(np.float32)} | {np.dtype(t): np.dtype(t) for t in (np.float32, np.float64)}


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype in which inputs of `dtype` are computed: float32 for the 16-bit ones, else `dtype` itself."""
    dtype = np.dtype(dtype)
    return _COMPUTED.get(dtype) or (np.dtype(np.float32) if dtype.name == "bfloat16" else dtype)


def check_floats(operation: str, min_ndim: int = 0, **arrays: Any) -> None:
    """Raise unless every named array is a float array of at least `min_ndim` axes and all share one dtype."""
    for name, x in arrays.items():
        if not hasattr(x, "shape") or not hasattr(x, "dtype") or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{operation}: {name} must be an array, got {type(x).__name__}")
        if x.dtype not in _COMPUTED and str(x.dtype) not in FLOATS:  # asking for a name takes its time
            raise TypeError(f"{operation}: {name} has dtype {x.dtype}; wanted one of {', '.join(FLOATS)}")
        if len(x.shape) < min_ndim:
            raise ValueError(f"{operation}: {name} has shape {x.shape}; wanted at least {min_ndim} axes")
    if len({x.dtype for x in arrays.values()}) > 1:
        dtypes = {name: str(x.dtype) for name, x in arrays.items()}
        raise TypeError(f"{operation}: the dtypes differ ({dtypes}); wanted one for all")


def check_shape(operation: str, name: str, x: Any, want: tuple[int, ...], meaning: str) -> None:
    """Raise unless `x` has exactly the shape `want`, which `meaning` spells out in letters."""
    if tuple(x.shape) != want:
        raise ValueError(f"{operation}: {name} has shape {tuple(x.shape)}; wanted {want} = {meaning}")


def check_broadcasts(operation: str, name: str, shape: tuple[int, ...], target: tuple[int, ...], meaning: str) -> None:
    """Raise unless an array of `shape` can be broadcast to `target` without growing it."""
    fits = len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )
    if not fits:
        raise ValueError(f"{operation}: {name} has shape {shape}; wanted one that broadcasts to {target} = {meaning}")


def check_number(operation: str, name: str, x: Any, *, above: float = -math.inf) -> None:
    """Raise unless `x` is a finite real number greater than `above`."""
    if isinstance(x, bool | np.bool_) or not isinstance(x, int | float | np.integer | np.floating):
        raise TypeError(f"{operation}: {name} must be a number, got {type(x).__name__}")
    if isinstance(x, int) and abs(x) > sys.float_info.max:
        raise ValueError(f"{operation}: {name} is an integer beyond the range of floats")
    if not math.isfinite(x) or x <= above:
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{operation}: {name} is {x}; wanted a finite number{bound}")


def check_count(operation: str, name: str, x: Any, *, least: int = 1) -> None:
    """Raise unless `x` is an integer of at least `least`."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{operation}: {name} must be an integer, got {type(x).__name__}")
    if x < least:
        raise ValueError(f"{operation}: {name} is {x}; wanted at least {least}")
