"""What the files of state spaces share: step sizes, the skip and the gate, log-decays between tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from refattn.arrays import Array
from refattn.linear.common import by_sequence, segment_sums

R = TypeVar("R", bound=NamedTuple)


def softplus(x: Array) -> Array:
    """Return log(1 + e^x)."""
    return np.asarray(np.logaddexp(x.dtype.type(0), x))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x), the slope of softplus."""
    return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    """Return x / (1 + e^-x)."""
    return x * sigmoid(x)


def silu_slope(x: Array) -> Array:
    """Return the derivative of `silu`, σ(x) (1 + x (1 - σ(x)))."""
    return sigmoid(x) * (1 + x * sigmoid(-x))


def skip_and_gate(y: Array, x: Array, D: Array | None, z: Array | None) -> Array:
    """Return (y + D x) silu(z), without what is not given."""
    y = y if D is None else y + D * x
    return y if z is None else y * silu(z)


def segments(g: Array) -> Array:
    r"""Return the sums of log-decays between tokens, and from the state before them, (..., T + 1, T + 1).

    .. math:: G_{ij} = \sum_{j < s \le i} g_s \quad (0 \le j \le i \le T), \qquad -\infty \quad (j > i)

    Tokens count from 1, and 0 is the state before the first. A g = -inf forgets a NaN among the others, too.

    Parameters
    ----------
    g : array, (..., T)
        Log-decays.

    Examples
    --------
    >>> segments(np.array([-1.0, -2.0]))
    array([[  0., -inf, -inf],
           [ -1.,   0., -inf],
           [ -3.,  -2.,   0.]])
    """
    g = np.concatenate([np.zeros((*g.shape[:-1], 1), g.dtype), g], axis=-1)
    forgets = np.isneginf(g)
    times = np.cumsum(forgets, axis=-1)
    G = segment_sums(np.where(forgets, 0, g))
    return np.where(times[..., :, None] > times[..., None, :], -np.inf, G)


def packed(
    call: Callable[..., R],
    cu_seqlens: Any,
    tokens: dict[str, tuple[Array | None, int]],
    states: dict[str, Any],
    **axes: int | str,
) -> R:
    """Call an operation for each packed sequence, and join what it returns: `by_sequence` by name, None left out."""
    given = {name: (x, axis) for name, (x, axis) in tokens.items() if x is not None}

    def one(*own: Array, **state: Any) -> R:
        return call(**dict(zip(given, own, strict=True)), **state)

    return by_sequence(one, cu_seqlens, list(given.values()), states, **axes)


def widened(dtype: Any, *arrays: Array | None) -> list[Any]:
    """Return arrays in the dtype of computation, None where None."""
    return [None if x is None else x.astype(dtype) for x in arrays]


def rounded(gradients: R, given: dict[str, Any]) -> R:
    """Return gradients in the dtypes of their inputs, None for what was not given."""
    kind: Any = type(gradients)
    fields = ((getattr(gradients, name), given[name[1:]]) for name in kind._fields)
    found: R = kind(*(None if x is None else dx.astype(x.dtype) for dx, x in fields))
    return found
