"""Reverse mode by this project's own derivatives: a list of what was called, read backwards.

Wengert, 1964, "A simple automatic derivative evaluation program". Nothing here knows a derivative: that of ``f`` is the
function ``f_vjp`` in the same module, and that of an operation of `refattn`, in whichever form, the one exported there.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.results import Recurrent

Call = Callable[..., Any]
"""How a network calls its parts: ``call(f, *args, **kwargs)``, which is `direct`, or a `Tape`."""


def direct(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ``f(*args, **kwargs)``, and remember nothing."""
    return f(*args, **kwargs)


class Step(NamedTuple):
    """One call."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Array, ...]
    """The arrays that gradients come back to: o alone of an operation with a state."""


class Tape:
    """Call functions, remember the calls, and pull a gradient back through them.

    Arrays are told apart by identity: what a function returns must be an array of its own, and no array may be changed
    in place after it was passed on.

    Examples
    --------
    >>> from refattn.models.layers import linear
    >>> tape, x, w = Tape(), np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])
    >>> y = tape(linear, tape(linear, x, w), np.array([[10.0]]))
    >>> gradient = tape.gradients(y, np.ones_like(y))
    >>> gradient(x), gradient(w)
    (array([[30., 40.]]), array([[10.],
           [20.]]))
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``f(*args, **kwargs)``."""
        result = f(*args, **kwargs)
        arrays = (result.o,) if isinstance(result, Recurrent) else result if isinstance(result, tuple) else (result,)
        self.steps.append(Step(f, args, kwargs, arrays))
        return result

    def gradients(self, y: Array, dy: Array) -> Callable[[Array], Array]:
        """Return a function that gives the gradient of <dy, y> with respect to any array that took part.

        Parameters
        ----------
        y : array
            The result of a call.
        dy : array
            Its cotangent, of the same shape.

        Returns
        -------
        function
            Of an array; zeros for one that y does not depend on.
        """
        found = {id(y): dy}
        for step in reversed(self.steps):
            cotangents = [found.get(id(x)) for x in step.results]
            if all(d is None for d in cotangents):
                continue
            filled = [np.zeros_like(x) if d is None else d for x, d in zip(step.results, cotangents, strict=True)]
            for x, dx in self.pull(step, filled):
                found[id(x)] = dx if id(x) not in found else found[id(x)] + dx
        return lambda x: found[id(x)] if id(x) in found else np.zeros_like(x)

    def pull(self, step: Step, cotangents: list[Array]) -> list[tuple[Array, Array]]:
        """Return the arrays that a call was given, each with its gradient, from those of its results."""
        return _pulled(step, cotangents)


def _pulled(step: Step, cotangents: list[Array]) -> list[tuple[Array, Array]]:
    """Return the arrays that a call was given, each with its gradient."""
    f = step.f
    result = _derivative_of(f)(*cotangents, *step.args, **step.kwargs)
    given = inspect.signature(f).bind(*step.args, **step.kwargs).arguments
    if hasattr(result, "_fields"):
        pairs = [(given.get(name[1:]), dx) for name, dx in result._asdict().items()]
    else:
        several = result if isinstance(result, tuple) else (result,)
        floats = [x for x in given.values() if isinstance(x, np.ndarray) and x.dtype.kind not in "iub"]
        pairs = list(zip(floats, several, strict=True))
    return [(x, dx) for x, dx in pairs if isinstance(x, np.ndarray) and dx is not None]


def _derivative_of(f: Callable[..., Any]) -> Callable[..., Any]:
    name = f"{f.__name__.removesuffix('_chunked').removesuffix('_recurrent')}_vjp"
    found = getattr(sys.modules[f.__module__], name, None) or getattr(sys.modules["refattn"], name, None)
    if found is None:
        raise LookupError(f"Tape: {f.__name__} has no derivative {name}")
    return found
