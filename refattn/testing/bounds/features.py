"""How far attention by features, projections and landmarks may lie from the reference.

Linformer is softmax attention on mixtures of keys and values, and is bounded as that is. The others put several things
in a row (exponents of features, quotients, an iterated inverse), each of which passes on the errors of those before it
by as much as the numbers at hand have it. So the bound is not derived but taken from the reference itself: it is run in
float64 with roundings put in by chance (`refattn.testing.noise`), and the bound is a little more than the largest
deviation of some runs; the caller grants `SLACK` times that.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import heads_of, repeat_heads, sum_to
from refattn.dispatch import OPERATIONS
from refattn.results import LinformerGradients
from refattn.testing.bounds.weights import UNDERFLOW, Weights, finite, size_of
from refattn.testing.noise import spread

RUNS = 8
NAMES = (
    *(f"linear_attention{form}" for form in ("", "_recurrent", "_chunked", "_vjp")),
    *(f"{name}_attention{form}" for name in ("performer", "cosformer") for form in ("", "_recurrent", "_vjp")),
    *(f"nystrom_attention{form}" for form in ("", "_vjp")),
)
UNIT = 2.0**-23
"""The eps of the roundings put in: small enough that errors add up as they would for any, large beside float64's."""


def scattered(operation: str, eps: float, *args: Any, **options: Any) -> Any:
    """Bound an operation by how far runs of the reference with roundings by chance scatter, in units of eps."""
    form = operation.removesuffix("_recurrent").removesuffix("_chunked")  # all forms mean the same
    takes = inspect.signature(OPERATIONS[form]).parameters
    given = {name: x for name, x in options.items() if name in takes}
    want = OPERATIONS[form](*args, **given)
    return _largest(want, spread(OPERATIONS[form], args, given, UNIT / 2, [7], draws=RUNS))


def _largest(want: Any, runs: list[Any]) -> Any:
    """Return the largest deviations, and for numbers that cancel a share of the largest in their array."""
    if want is None:
        return None
    if isinstance(want, tuple):
        return type(want)(*(_largest(x, [run[n] for run in runs]) for n, x in enumerate(want)))
    off = np.max([abs(np.asarray(run) - want) for run in runs], axis=0, initial=0)
    off = np.where(np.isfinite(off), off, 0) / UNIT
    return 2.5 * off + 0.05 * off.max(initial=0) + UNDERFLOW * (off > 0)


class _Mixed:
    """One problem of Linformer: its weights, and the sizes of q, e k and f v with every product in absolute values."""

    def __init__(self, q: Array, k: Array, v: Array, e: Array, f: Array, scale: float | None) -> None:
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        self.q, self.k, self.v = size_of(q), abs(e) @ size_of(k), abs(f) @ size_of(v)
        size = abs(scale) * (self.q @ repeat_heads(self.k, heads_of(q)).swapaxes(-1, -2))
        self.weights = Weights(q, e @ finite(k), size=size, scale=scale)


def linformer(eps: float, q: Array, k: Array, v: Array, e: Array, f: Array, *, scale: float | None = None) -> Array:
    """Bound `linformer_attention`."""
    m = _Mixed(q, k, v, e, f, scale)
    return m.weights.forward(m.v)


def linformer_vjp(
    eps: float, do: Array, q: Array, k: Array, v: Array, e: Array, f: Array, *, scale: float | None = None
) -> LinformerGradients:
    """Bound `linformer_attention_vjp`."""
    m = _Mixed(q, k, v, e, f, scale)
    g = m.weights.backward(size_of(do), m.q, m.k, m.v, None, None, None)
    de, df = g.dk @ size_of(k).swapaxes(-1, -2), g.dv @ size_of(v).swapaxes(-1, -2)  # (..., Hk, r, Tk)
    dk, dv = abs(e).swapaxes(-1, -2) @ g.dk, abs(f).swapaxes(-1, -2) @ g.dv
    return LinformerGradients(g.dq, dk, dv, sum_to(de, e.shape), sum_to(df, f.shape))


BOUNDS: dict[str, Callable[..., Any]] = {
    **{name: partial(scattered, name) for name in NAMES},
    "linformer_attention": linformer,
    "linformer_attention_vjp": linformer_vjp,
}
