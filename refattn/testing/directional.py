"""The derivative J dx of a function in a direction, from the function alone.

Im f(x + i h dx) / h subtracts nothing and so takes a tiny h (Squire and Trapp, "Using complex variables to estimate
derivatives of real functions", SIAM Review 40, 1998); it wants an f that is analytic. Central differences of two steps,
extrapolated (Richardson, 1911), take any smooth f.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from refattn.arrays import Array

METHODS = ("auto", "complex", "differences")
NAMES = {"complex": "complex steps", "differences": "central differences"}
COMPLEX_STEP = 1e-30
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of differences; the pair of neighbours that agrees best is taken
EPS = float(np.finfo(np.float64).eps)
ROUGHLY = 1e-4  # how far complex steps may be from differences before f is taken as not analytic

Moved: TypeAlias = tuple[list[Array], list[Array]]
"""J dx, and how far the last two estimates of it are apart."""


def finite(name: str, x: Array) -> None:
    """Raise unless every number is finite."""
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(f"gradcheck: {name} is {x[where]} at {where}; wanted finite numbers ({len(bad)} are not)")


def results(
    f: Callable[..., Any], xs: list[Array], ys: list[Array] | None = None, dtype: Any = np.float64
) -> list[Array]:
    """Return what f gives for copies of the inputs: arrays of this dtype, with the shapes of `ys`."""
    given = f(*(x.copy() for x in xs))
    found = [np.asarray(y) for y in (given if isinstance(given, tuple | list) else [given])]
    if not found:
        raise ValueError("gradcheck: f returned an empty tuple")
    for i, y in enumerate(found):
        if y.dtype != dtype:
            raise TypeError(
                f"gradcheck: result {i} of f is {y.dtype} for {xs[0].dtype} inputs; wanted {np.dtype(dtype)}"
            )
    shapes = [y.shape for y in found]
    if ys is not None and shapes != [y.shape for y in ys]:
        raise ValueError(f"gradcheck: f returned shapes {[y.shape for y in ys]} once, and {shapes} near by")
    return found


def size(arrays: list[Array]) -> float:
    """Return the Euclidean norm of all the numbers together."""
    return math.sqrt(math.fsum(float(np.sum(np.abs(x) ** 2)) for x in arrays))


def noise_of(used: str) -> float:
    """Return the rounding error of J dx as a share of f."""
    return EPS * (64 if used == "complex" else 8 / STEPS[1])


def derivative_of(
    f: Callable[..., Any], xs: list[Array], ys: list[Array], every: list[Array], method: str
) -> tuple[Callable[[list[Array]], Moved], str, str]:
    """Return the function from dx to J dx, its name in NAMES, and why it is not complex steps.

    Parameters
    ----------
    f : callable
        Takes the inputs.
    xs, ys : list of arrays
        The inputs, and what f returns for them.
    every : list of arrays
        A direction of all inputs, in which the methods are compared.
    method : str
        One of METHODS.
    """

    def by_complex_steps(dx: list[Array]) -> Moved:
        moved = _complex(f, xs, ys, dx)
        return moved, [np.zeros(m.shape) for m in moved]

    def by_differences(dx: list[Array]) -> Moved:
        return _differences(f, xs, ys, dx)

    if method == "differences":
        return by_differences, "differences", ""
    try:
        steps = _complex(f, xs, ys, every)
    except Exception as error:  # f is the caller's, and may raise anything for complex input
        reason = str(error).removeprefix("gradcheck: ") or type(error).__name__
        if method == "complex":
            raise TypeError(f"gradcheck: method is 'complex', and f does not take complex input: {reason}") from error
        return by_differences, "differences", f"; no complex steps: {reason}"
    if method == "auto":
        moved, doubt = _differences(f, xs, ys, every)
        apart = [a - b for a, b in zip(steps, moved, strict=True)]
        if size(apart) > ROUGHLY * size(moved) + 10 * size(doubt) + noise_of("differences") * size(ys):
            return by_differences, "differences", "; no complex steps: f is not analytic"
    return by_complex_steps, "complex", ""


def _complex(f: Callable[..., Any], xs: list[Array], ys: list[Array], dx: list[Array]) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)  # a derivative that is thrown away
        shifted = [x + 1j * COMPLEX_STEP * d for x, d in zip(xs, dx, strict=True)]
        moved = results(f, shifted, ys, np.complex128)
    for m, y in zip(moved, ys, strict=True):
        if not np.allclose(m.real, y, rtol=1e-9, atol=1e-9 * size([y])):
            raise ValueError("f returns other numbers for complex input")
    return [m.imag / COMPLEX_STEP for m in moved]


def _differences(f: Callable[..., Any], xs: list[Array], ys: list[Array], dx: list[Array]) -> Moved:
    """Return central differences of fourth order, in the step at which they settle."""
    zeros = [np.zeros(y.shape) for y in ys]
    if not any(d.any() for d in dx):
        return zeros, zeros

    def central(h: float) -> list[Array]:
        ahead, behind = (results(f, [x + sign * h * d for x, d in zip(xs, dx, strict=True)], ys) for sign in (1, -1))
        return [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]

    estimates = []
    with np.errstate(all="ignore"):  # a wide step may leave the domain of f
        for h in STEPS:
            wide, narrow = central(h), central(h / 2)
            estimates.append([(4 * n - w) / 3 for n, w in zip(narrow, wide, strict=True)])
        pairs = [
            (second, [a - b for a, b in zip(first, second, strict=True)])
            for first, second in itertools.pairwise(estimates)
        ]
    usable = [pair for pair in pairs if math.isfinite(size(pair[1]))]
    if not usable:
        raise ValueError("gradcheck: f is not finite near the inputs")
    return min(usable, key=lambda pair: size(pair[1]))
