"""Number formats: how wide their rounding error is, and how to put float64 numbers into them and back.

bfloat16 arrays are those of the package ml_dtypes where it is installed, and otherwise uint16 arrays of the same bits,
which need no package; `decode` reads both.
"""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array

UNIT: dict[str, float] = {  # unit roundoff: half the distance from 1 to the next number
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
TINY: dict[str, float] = {  # what an underflow may lose: the smallest normal number, since hardware flushes to zero;
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "tf32": 2.0**-126,
    "float16": 2.0**-25,  # but not in float16, where it is half the distance between subnormal numbers
    "bfloat16": 2.0**-126,
}
LARGEST: dict[str, float] = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "tf32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
}
STORED = ("float32", "float16", "bfloat16", "float64")
"""The formats that arrays come in; tf32 is one of products only."""


def storage(name: str, uint16: bool = False) -> np.dtype[Any]:
    """Return the NumPy dtype of arrays in format `name`."""
    if name not in STORED:
        raise ValueError(f"format {name!r} is none that arrays are stored in; wanted one of {', '.join(STORED)}")
    if name != "bfloat16":
        return np.dtype(name)
    if uint16 or importlib.util.find_spec("ml_dtypes") is None:
        return np.dtype(np.uint16)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def encode(x: Any, name: str, uint16: bool = False) -> Array:
    """Round `x` to format `name`, to nearest and ties to even, in the dtype that `storage` gives."""
    dtype = storage(name, uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        if name != "bfloat16":
            return np.asarray(x).astype(dtype)
        narrow = np.asarray(x).astype(np.float32)
        bits = np.ascontiguousarray(narrow).view(np.uint32).reshape(narrow.shape)
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
        rounded = np.where(np.isnan(narrow), np.uint16(0x7FC0), rounded)
    return rounded if dtype == np.uint16 else rounded.view(dtype)


def decode(x: Array, name: str, wide: Any = np.float64) -> NDArray[Any]:
    """Return the numbers of an array in format `name` as float64 (or `wide`)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        if name == "bfloat16" and x.dtype == np.uint16:
            bits = x.astype(np.uint32) << np.uint32(16)
            return np.ascontiguousarray(bits).view(np.float32).reshape(x.shape).astype(wide)
        return x.astype(wide)


def round_to(x: Any, name: str) -> NDArray[np.float64]:
    """Return `x`, rounded to format `name`, in float64."""
    if name != "tf32":
        return decode(encode(x, name), name)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = np.ascontiguousarray(np.asarray(x).astype(np.float32))
        bits = narrow.view(np.uint32)
        rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
        numbers = np.where(np.isnan(narrow), np.float32(np.nan), rounded.view(np.float32))
        return numbers.reshape(np.shape(x)).astype(np.float64)


def ulp(x: Any, name: str) -> NDArray[np.float64]:
    """Return the distance from |x| to the next number of the format."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log2(np.where(x == 0, 1e-320, np.abs(x)).astype(np.float64)))
    return np.maximum(2 * UNIT[name] * np.exp2(exponent), 2 * TINY[name])
