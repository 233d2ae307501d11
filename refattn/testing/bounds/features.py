"""How far attention by features, projections and landmarks may lie from the reference.

These put several things in a row (exponents of features, quotients, an iterated inverse), each of which passes on the
errors of those before it by as much as the numbers at hand have it. So the bound is not derived but taken from the
reference itself: it is run in float64 with every rounding of the precision at hand put in by chance
(`refattn.testing.noise`), and the largest deviation of some runs is the bound, which the caller grants `SLACK`
times. What no rounding touches has the bound 0 and must be exact.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.dispatch import OPERATIONS
from refattn.testing.bounds.weights import UNDERFLOW
from refattn.testing.noise import spread

RUNS = 8
NAMES = (
    *(f"linear_attention{form}" for form in ("", "_recurrent", "_chunked", "_vjp")),
    *(f"{name}_attention{form}" for name in ("performer", "cosformer") for form in ("", "_recurrent", "_vjp")),
    *(f"{name}_attention{form}" for name in ("linformer", "nystrom") for form in ("", "_vjp")),
)


def scattered(operation: str, eps: float, *args: Any, **options: Any) -> Any:
    """Bound an operation by how far runs of the reference with roundings by chance scatter, in units of eps."""
    form = operation.removesuffix("_recurrent").removesuffix("_chunked")  # all forms mean the same
    takes = inspect.signature(OPERATIONS[form]).parameters
    given = {name: x for name, x in options.items() if name in takes}
    want = OPERATIONS[form](*args, **given)
    return _largest(want, spread(OPERATIONS[form], args, given, eps / 2, [7], draws=RUNS), eps)


def _largest(want: Any, runs: list[Any], eps: float) -> Any:
    if want is None:
        return None
    if isinstance(want, tuple):
        parts = [_largest(x, [run[n] for run in runs], eps) for n, x in enumerate(want)]
        return type(want)(*parts)
    off = np.max([abs(np.asarray(run) - want) for run in runs], axis=0, initial=0)
    return np.where(np.isfinite(off), off, 0) / eps + UNDERFLOW * (off > 0)


BOUNDS: dict[str, Callable[..., Any]] = {name: partial(scattered, name) for name in NAMES}
