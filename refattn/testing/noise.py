"""Run a reference function with every rounding of a narrower precision put in by chance.

A `Noisy` array computes in float64 and makes each result wrong by a random error, as large as a rounding to the working
precision would make (see `refattn.testing.attention.forward.SHARE`). The spread of the outcomes over some runs is what
the error of a correct implementation should look like, whatever the operation: nobody has to derive it. Parker, Monte
Carlo Arithmetic, 1997, has the idea.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import SHARE

EXACT = {
    *(np.negative, np.positive, np.absolute, np.sign, np.maximum, np.minimum, np.fmax, np.fmin, np.floor, np.ceil),
    *(np.conjugate, np.copysign, np.trunc, np.rint, np.clip),
}
"""What makes no rounding error."""
TRANSCENDENTAL = {np.exp, np.exp2, np.expm1, np.log, np.log2, np.log1p, np.tanh, np.sin, np.cos, np.power}
"""What is off by about two units in the last place, not by half a unit."""


class Source:
    """Where the errors come from: a unit roundoff and a generator."""

    def __init__(self, unit: float, rng: np.random.Generator) -> None:
        self.size, self.rng = unit * math.sqrt(SHARE), rng

    def relative(self, x: Array, times: float = 1.0) -> Array:
        """Return `x`, each number off by a relative error of its own."""
        finite = np.isfinite(x)
        error = np.where(finite, np.abs(x), 0) * (times * self.size) * self._normal(x)
        return np.where(finite, x + error, x)

    def summed(self, total: Array, squares: Array, terms: Any) -> Array:
        """Return sums of `terms` numbers, given the sums of their squares, off as adding them one by one is."""
        error = self.size * np.sqrt(np.maximum(terms, 1) / 2 * squares) * self._normal(total)
        return np.where(np.isfinite(total) & np.isfinite(error), total + error, total)

    def _normal(self, like: Array) -> Array:
        """Return standard normal numbers; of complex ones, both parts."""
        real = self.rng.standard_normal(like.shape)
        return real + 1j * self.rng.standard_normal(like.shape) if like.dtype.kind == "c" else real


class Noisy(np.ndarray):
    """A float64 or complex128 array whose arithmetic is off by chance."""

    source: Source | None = None

    def __array_finalize__(self, other: Any) -> None:
        self.source = getattr(other, "source", None)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        source = next(x.source for x in (*inputs, *(out or ())) if isinstance(x, Noisy))
        plain = [_plain(x) for x in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if source is not None and _has_noise(result):
            result = _disturbed(source, ufunc, method, np.asarray(result), plain, kwargs)
        if out is not None:
            out[0][...] = result
            return out[0]
        return _noisy(result, source)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        source = self.source
        if func is np.einsum and source is not None and isinstance(args[0], str):
            given = [np.asarray(_plain(x), np.float64) for x in args[1:]]
            total, squares = (np.einsum(args[0], *(x**n for x in given)) for n in (1, 2))
            terms = np.einsum(args[0], *(np.ones(x.shape) for x in given))
            return _noisy(source.summed(np.asarray(total), squares, terms), source)
        return _noisy(super().__array_function__(func, types, args, kwargs), source)  # ufuncs inside see noisy arrays


def _disturbed(
    source: Source, ufunc: np.ufunc, method: str, result: Array, inputs: list[Any], kwargs: dict[str, Any]
) -> Array:
    if ufunc in EXACT or method not in ("__call__", "reduce"):
        return result
    if ufunc is np.matmul:
        a, b = inputs
        return source.summed(result, np.abs(a) ** 2 @ np.abs(b) ** 2, a.shape[-1])
    if method == "reduce":
        if ufunc is not np.add:
            return result
        squares = np.add.reduce(np.abs(inputs[0]) ** 2, **kwargs)
        return source.summed(result, squares, inputs[0].size / max(1, result.size))
    return source.relative(result, 2.0 if ufunc in TRANSCENDENTAL else 1.0)


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Noisy) else x


def _has_noise(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype in (np.float64, np.complex128)


def _noisy(x: Any, source: Source | None) -> Any:
    if _has_noise(x):
        x = np.asarray(x).view(Noisy)
        x.source = source
        return x
    return tuple(_noisy(y, source) for y in x) if type(x) is tuple else x


def disturb(x: Any, source: Source) -> Any:
    """Return float arrays as noisy ones, also inside tuples, and everything else as it is."""
    if isinstance(x, tuple):
        several = [disturb(y, source) for y in x]
        return type(x)(*several) if hasattr(x, "_fields") else tuple(several)
    return _noisy(x, source) if isinstance(x, np.ndarray) else x


def spread(f: Callable[..., Any], args: Any, kwargs: Any, unit: float, seed: list[int], draws: int = 16) -> list[Any]:
    """Return the results of `draws` runs of f, each with roundings of its own; the same for the same seed."""
    found = []
    for n in range(draws):
        source = Source(unit, np.random.default_rng([*seed, n]))
        noisy = {name: disturb(x, source) for name, x in kwargs.items()}
        with np.errstate(all="ignore"):
            found.append(f(*disturb(tuple(args), source), **noisy))
    return found
