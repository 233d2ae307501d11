"""What cosFormer and Performer share: `scan` on features, where each value has a 1 appended to add up the weights."""

from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.results import LinearState
from refattn_numba.scan import scanned
from refattn_numba.scan_back import heads_added, scanned_back


def heads_of(x: Array) -> int:
    """Return how many heads an array has; a matrix is one."""
    return x.shape[-3] if x.ndim > 2 else 1


def shared(x: Array, heads: int) -> Array:
    """Return x (..., H, T, D) for each of `heads` heads."""
    return x if x.ndim < 3 else np.repeat(x, heads // x.shape[-3], axis=-3)


def with_ones(v: Array) -> Array:
    """Append a 1 to each value."""
    return np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)


def joined(state: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return S and z as one array of `shape`; zeros for None."""
    if state is None:
        return np.zeros(shape, dtype)
    return np.concatenate([state.S, state.z[..., None]], axis=-1).astype(dtype)


def parted(S: Array) -> LinearState:
    """Return the two parts of a joined state."""
    return LinearState(np.ascontiguousarray(S[..., :-1]), np.ascontiguousarray(S[..., -1]))


def divided(o: Array) -> Array:
    """Return the sums of values divided by the sum of weights, the last column; 0 where that is 0."""
    num, den = o[..., :-1], o[..., -1:]
    return np.where(den == 0, 0, num / np.where(den == 0, 1, den))


def divided_vjp(do: Array, o: Array) -> Array:
    """Return the gradient of both parts of `o` from that of their quotient."""
    den = o[..., -1:]
    dnum = np.where(den == 0, 0, do / np.where(den == 0, 1, den))
    return np.concatenate([dnum, -(dnum * divided(o)).sum(axis=-1, keepdims=True)], axis=-1)


def summed(q: Array, k: Array, v: Array, S: Array, causal: bool, g: Array | None = None) -> tuple[Array, Array]:
    """Return Sᵀ q of each token, and the last state, of S = e^g S + k vᵀ; if not causal, all read the last state."""
    if causal:
        o, last = scanned(q, k, v, g, scale=1.0, initial_state=S)
        return o, last
    last = S + shared(k, heads_of(v)).swapaxes(-1, -2) @ v
    Ho = max(heads_of(q), heads_of(v))
    return shared(q, Ho) @ shared(last, Ho), last


def summed_vjp(
    do: Array, q: Array, k: Array, v: Array, S: Array, dlast: Array, causal: bool, g: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of q, k, v and S of `summed`, those of g left out."""
    if causal:
        found = scanned_back(do, q, k, v, g, scale=1.0, initial_state=S, dstate=dlast)
        return heads_added(found.dq, q), heads_added(found.dk, k), found.dv, found.dstate
    Hv, Ho = heads_of(v), max(heads_of(q), heads_of(v))
    last = S + shared(k, Hv).swapaxes(-1, -2) @ v
    dlast = dlast + heads_added(shared(q, Ho).swapaxes(-1, -2) @ do, v)
    dq = do @ shared(last, Ho).swapaxes(-1, -2)
    return heads_added(dq, q), heads_added(v @ dlast.swapaxes(-1, -2), k), shared(k, Hv) @ dlast, dlast
