"""Compare one result with the reference in float64, within the bounds of `bounds`."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import refattn
from refattn.arrays import Array, compute_dtype
from refattn.dispatch import OPERATIONS, REFERENCE
from refattn.testing.bounds import BOUNDS, SLACK
from refattn.testing.calls import as_float64
from refattn.testing.cases import Case


class Wrong(AssertionError):
    """A result that is not what it should be."""


def compare_with_reference(case: Case, result: Any) -> float:
    """Compare a result of a case's call with the reference, and return how much of the bound its error takes.

    Parameters
    ----------
    case : Case
        Which call.
    result : array, or tuple of arrays and None
        What the call returned.

    Returns
    -------
    float
        The largest error, as a share of what is allowed.

    Raises
    ------
    Wrong
        Says what differs and where.

    Examples
    --------
    >>> from refattn.testing import case
    >>> one = case("rope/plain/float64")
    >>> args, kwargs = one.call()
    >>> compare_with_reference(one, refattn.rope(*args, **kwargs))
    0.0
    """
    args, kwargs = case.call()
    wide_args, wide_kwargs = as_float64(args), {name: as_float64(x) for name, x in kwargs.items()}
    want = quietly(getattr(refattn, case.operation), wide_args, {**wide_kwargs, "backend": REFERENCE})
    eps = float(np.finfo(compute_dtype(arrays((args, kwargs))[0].dtype)).eps)
    bound = quietly(BOUNDS[case.operation], (eps, *wide_args), wide_kwargs)
    got, wanted = leaves(result), leaves(want)
    if [name for name, _ in got] != [name for name, _ in wanted]:
        raise Wrong(f"returned {_structure(result)}; wanted {_structure(want)}")
    worst = 0.0
    given = inspect.signature(OPERATIONS[case.operation]).bind(*args, **kwargs).arguments
    for (name, x), (_, y), (_, b) in zip(got, wanted, leaves(bound), strict=True):
        worst = max(worst, _compare_leaf(name, x, y, _dtype_of_result(case.operation, name, y, given), b, eps))
    return worst


def _dtype_of_result(operation: str, name: str, want: Any, given: dict[str, Any]) -> Any:
    """Return the dtype of a result: a gradient has its input's, lse and states that of computation, o the inputs'."""
    if isinstance(want, np.ndarray) and want.dtype.kind in "iub":
        return want.dtype  # indices of what was selected
    first = (given["v"] if "v" in given else arrays(given)[0]).dtype
    whole, _, part = name.partition(".")
    if whole == "lse" or (whole == "state" and not operation.startswith("causal_conv1d")):
        return compute_dtype(first)
    source = given.get(whole[1:]) if whole.startswith("d") else None
    if source is None:
        return first
    return (getattr(source, part) if part else source).dtype


def _compare_leaf(name: str, x: Any, want: Any, dtype: Any, bound: Any, eps: float) -> float:
    if x is None or want is None:
        if x is not want:
            raise Wrong(f"{name} is {type(x).__name__}; wanted {type(want).__name__}")
        return 0.0
    if not isinstance(x, np.ndarray):
        raise Wrong(f"{name} is {type(x).__name__}; wanted a NumPy array")
    if x.shape != want.shape or x.dtype != dtype:
        raise Wrong(f"{name} is {x.dtype} {x.shape}; wanted {dtype} {want.shape}")
    if want.dtype.kind in "iub":  # what was selected: exactly the same
        if (x != want).any():
            place = _place(x != want)
            raise Wrong(f"{name}{list(place)} is {x[place]}; wanted {want[place]} ({(x != want).sum()} such places)")
        return 0.0
    value, rounded = x.astype(np.float64), want.astype(x.dtype).astype(np.float64)
    special = ~np.isfinite(rounded)
    differs = (np.isfinite(value) == special) | (special & (value != rounded) & ~(np.isnan(value) & np.isnan(rounded)))
    if differs.any():
        place = _place(differs)
        raise Wrong(f"{name}{list(place)} is {value[place]}; wanted {rounded[place]} ({differs.sum()} such places)")
    if x.size == 0:
        return 0.0
    own_eps, smallest = float(_finfo(x.dtype).eps), float(_finfo(x.dtype).smallest_subnormal)
    with np.errstate(invalid="ignore"):
        error = np.where(special, 0, abs(value - want))
        allowed = SLACK * eps * np.broadcast_to(bound, x.shape) + own_eps / 2 * abs(want) + smallest * (want != 0)
    share = np.where(error == 0, 0, error / np.where((allowed > 0) & ~special, allowed, smallest))
    place = _place(share == share.max())
    if share[place] > 1:
        raise Wrong(
            f"{name}{list(place)} is {value[place]:.9g}; wanted {want[place]:.9g} to {allowed[place]:.2g} "
            f"({(share > 1).sum()} of {share.size} too far off, the worst {share[place]:.3g} times)"
        )
    return float(share[place])


def _finfo(dtype: Any) -> Any:
    if dtype.name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.finfo(dtype)
    return np.finfo(dtype)


def _place(where: Array) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(int(np.argmax(where)), where.shape))


def quietly(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call f without NumPy's warnings, which NaN and inf in inputs bring about."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return f(*args, **kwargs)


def arrays(x: Any) -> list[Array]:
    """Return the arrays among arguments, also inside tuples and dicts."""
    if isinstance(x, np.ndarray):
        return [x]
    inside: Iterable[Any] = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    return [array for y in inside for array in arrays(y)]


def leaves(result: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a result with their names; those of a tuple within it are called after both."""
    if not isinstance(result, tuple):
        return [("result", result)]
    names = getattr(result, "_fields", ("o", "lse") if len(result) == 2 else range(len(result)))
    found: list[tuple[str, Any]] = []
    for name, x in zip(names, result, strict=True):
        inside = leaves(x) if isinstance(x, tuple) else [("", x)]
        found += [(f"{name}.{part}" if part else str(name), y) for part, y in inside]
    return found


def _structure(result: Any) -> str:
    return f"{type(result).__name__} of {', '.join(name for name, _ in leaves(result))}"
