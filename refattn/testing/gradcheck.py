"""Whether a derivative is right: the dot-product identity in random directions.

For a direction dx of the inputs and cotangents do of the results, <do, J dx> = <Jᵀ do, dx>. The left side comes from
the function itself, see `refattn.testing.directional`; the right side from its `vjp`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, check_number
from refattn.testing.directional import METHODS, NAMES, Moved, derivative_of, finite, noise_of, results, size


@dataclass(frozen=True)
class GradCheck:
    """What came of `gradcheck`; true if the derivative is right."""

    ok: bool
    method: str
    """complex or differences: how the derivative of f itself was taken."""
    errors: tuple[float, ...]
    """Per input, as a share of the typical size of the sums that are compared."""
    joint: float
    """The same in a direction of all inputs together."""
    message: str
    """What is wrong, or that nothing is; and why complex steps were not taken."""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.message


def gradcheck(
    f: Callable[..., Any],
    inputs: Sequence[Array],
    vjp: Callable[..., Any] | None = None,
    *,
    rtol: float = 1e-6,
    seed: int = 0,
    method: str = "auto",
) -> GradCheck:
    """Check the derivative of a function, in a random direction of each input and of all together.

    Parameters
    ----------
    f : callable
        ``f(*inputs)`` returns a float64 array, or a tuple of them.
    inputs : sequence of arrays
        Finite real floats; f gets them in float64. What has no derivative (a mask, an index) belongs into f.
    vjp : callable, optional
        ``vjp(*cotangents, *inputs)`` returns a gradient per input, in float64 (None at the end are ignored). Without
        it, the check is whether f has a derivative there: whether differences in smaller and smaller steps settle, and
        whether the derivatives along the inputs add up to that along all of them.
    rtol : float
        How large an error may be, as a share of the size of what is compared.
    seed : int
        Of the directions and the cotangents.
    method : {"auto", "complex", "differences"}
        auto: complex steps where f takes complex input and is analytic, else central differences; `GradCheck.method`
        says which it was.

    Returns
    -------
    GradCheck
        True if all is right.

    Raises
    ------
    TypeError
        If something is not an array of the wanted dtype, or `method` is complex and f does not take complex input.
    ValueError
        If a shape or a number of arrays does not fit, or something is NaN or infinite.

    Examples
    --------
    >>> x = np.array([0.5, 1.0, 2.0])
    >>> check = gradcheck(np.sin, [x], lambda do, x: do * np.cos(x))
    >>> check.ok, check.method
    (True, 'complex')
    >>> bool(gradcheck(np.sin, [x], lambda do, x: -do * np.cos(x)))
    False
    """
    if method not in METHODS:
        raise ValueError(f"gradcheck: method is {method!r}; wanted one of {', '.join(METHODS)}")
    check_number("gradcheck", "rtol", rtol, above=0)
    xs = _inputs(inputs)
    ys = results(f, xs)
    for i, y in enumerate(ys):
        finite(f"result {i} of f", y)
    rng = np.random.default_rng(seed)
    cotangents = [rng.normal(size=y.shape) for y in ys]
    # A direction is as large as its input, but not larger than 1: large inputs do not make a function smoother.
    scales = [min(1.0, math.sqrt(float(np.mean(x * x)))) if x.any() else 1.0 for x in xs]
    every = [scale * rng.normal(size=x.shape) for scale, x in zip(scales, xs, strict=True)]
    gradients = None if vjp is None else _gradients(vjp, cotangents, xs)

    derivative, used, note = derivative_of(f, xs, ys, every, method)
    names = [*range(len(xs)), None]
    moved = [derivative([d if only in (None, i) else 0 * d for i, d in enumerate(every)]) for only in names]
    noise = noise_of(used) * _norm(cotangents, ys)
    if gradients is None:
        pairs = _without_vjp(cotangents, moved)
    else:
        pairs = [
            _against_vjp(cotangents, jdx, gradients, every, only) for only, (jdx, _) in zip(names, moved, strict=True)
        ]
    errors = [abs(left - right) / max(scale + noise / rtol, 1e-300) for left, right, scale in pairs]
    return _judged(errors, pairs, rtol, used, note, gradients is not None)


def _inputs(inputs: Any) -> list[Array]:
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"gradcheck: inputs must be a list or a tuple of arrays, got {type(inputs).__name__}")
    if not inputs:
        raise ValueError("gradcheck: inputs is empty; wanted at least one array")
    found = []
    for i, x in enumerate(inputs):
        x = np.asarray(x)
        if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            raise TypeError(f"gradcheck: input {i} has dtype {x.dtype}; wanted real floats (put the others into f)")
        x = x.astype(np.float64)
        finite(f"input {i}", x)
        found.append(x)
    return found


def _gradients(vjp: Callable[..., Any], cotangents: list[Array], xs: list[Array]) -> list[Array]:
    given = vjp(*(do.copy() for do in cotangents), *(x.copy() for x in xs))
    given = list(given) if isinstance(given, tuple | list) else [given]
    while len(given) > len(xs) and given[-1] is None:
        given.pop()
    if len(given) != len(xs):
        raise ValueError(f"gradcheck: vjp returned {len(given)} gradients for {len(xs)} inputs")
    for i, (g, x) in enumerate(zip(given, xs, strict=True)):
        if not isinstance(g, np.ndarray | np.generic) or g.dtype != np.float64:
            kind = g.dtype if hasattr(g, "dtype") else type(g).__name__
            raise TypeError(f"gradcheck: gradient {i} of vjp is {kind}; wanted a float64 array")
        if g.shape != x.shape:
            raise ValueError(f"gradcheck: gradient {i} of vjp has shape {g.shape}; input {i} has {x.shape}")
        finite(f"gradient {i} of vjp", np.asarray(g))
    return [np.asarray(g) for g in given]


def _norm(left: list[Array], right: list[Array]) -> float:
    """Return how large a sum of such products is, if their signs are random."""
    return size([a * b for a, b in zip(left, right, strict=True)])


def _dot(left: list[Array], right: list[Array]) -> float:
    return math.fsum(float(np.sum(a * b)) for a, b in zip(left, right, strict=True))


Pair = tuple[float, float, float]
"""Both sides of an identity, and the size of the sums."""


def _against_vjp(
    cotangents: list[Array], moved: list[Array], gradients: list[Array], every: list[Array], only: int | None
) -> Pair:
    chosen = slice(None) if only is None else slice(only, only + 1)
    g, dx = gradients[chosen], every[chosen]
    return _dot(cotangents, moved), _dot(g, dx), _norm(cotangents, moved) + _norm(g, dx)


def _without_vjp(cotangents: list[Array], moved: list[Moved]) -> list[Pair]:
    """Return, per input, the derivative and that of the step before; and at the end, that of all and the sum."""
    pairs = []
    for jdx, doubt in moved[:-1]:
        value = _dot(cotangents, jdx)
        pairs.append((value + _norm(cotangents, doubt), value, _norm(cotangents, jdx)))
    together = moved[-1][0]
    parts = [jdx for jdx, _ in moved[:-1]]
    scale = _norm(cotangents, together) + sum(_norm(cotangents, part) for part in parts)
    return [*pairs, (_dot(cotangents, together), math.fsum(_dot(cotangents, part) for part in parts), scale)]


def _judged(errors: list[float], pairs: list[Pair], rtol: float, used: str, note: str, has_vjp: bool) -> GradCheck:
    right = all(error <= rtol for error in errors)
    by = NAMES[used]
    if right:
        what = "the gradients agree with" if has_vjp else "f has a derivative by"
        message = f"{what} {by}: the largest error is {max(errors):.1e}, allowed {rtol:.0e}{note}"
    else:
        lines = []
        for i, (error, (left, other, _)) in enumerate(zip(errors, pairs, strict=True)):
            if not error <= rtol:
                where = "all inputs together" if i == len(pairs) - 1 else f"input {i}"
                sides = f"<do, J dx> is {left:.9g} by {by}, <vjp, dx> is {other:.9g}"
                if not has_vjp:
                    sides = f"the derivative does not settle: {left:.9g} and {other:.9g} by {by}"
                lines.append(f"{where}: {sides}; the error is {error:.1e}, allowed {rtol:.0e}")
        message = "\n".join(lines) + note
    return GradCheck(right, used, tuple(errors[:-1]), errors[-1], message)
