r"""Feature maps, and the sums that attention by feature maps is made of.

A weight φ(q)·φ(k) lets the sum over keys be made before the query is known. With a 1 appended to each value, one state
(..., Hv, M, Dv + 1) holds the sum of φ(k) vᵀ and, in its last column, that of φ(k), which the division needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, check_shape, compute_dtype
from refattn.dense.common import select_matmul
from refattn.linear.common import (
    arguments,
    check_cotangent,
    check_recurrence,
    check_wide,
    heads_of,
    outer,
    share_heads,
    sum_heads,
)
from refattn.results import LinearState


@dataclass(frozen=True)
class FeatureMap:
    """A map φ of queries and keys, (..., D) to (..., M), with its derivative; called like a function.

    Parameters
    ----------
    name : str
        How it is known to backends that have it built in.
    forward : callable
        x -> φ(x).
    vjp : callable
        (dphi, x) -> dx.

    Examples
    --------
    >>> square = FeatureMap("square", lambda x: x * x, lambda dphi, x: 2 * x * dphi)
    >>> square(np.array([3.0])), square.vjp(np.ones(1), np.array([3.0]))
    (array([9.]), array([6.]))
    """

    name: str
    forward: Callable[[Array], Array]
    vjp: Callable[[Array, Array], Array]

    def __call__(self, x: Array) -> Array:
        """Return φ(x)."""
        return self.forward(x)


def _exp_below(x: Array) -> Array:
    return np.asarray(np.exp(np.minimum(x, 0)))


elu_plus_one = FeatureMap(
    "elu_plus_one",
    lambda x: np.where(x > 0, x + 1, _exp_below(x)),
    lambda dphi, x: dphi * np.where(x > 0, np.ones((), x.dtype), _exp_below(x)),
)
"""elu(x) + 1: x + 1 where x > 0, else e^x. Katharopoulos et al., 2020, arXiv:2006.16236, equation 7."""

relu = FeatureMap("relu", lambda x: np.maximum(x, 0), lambda dphi, x: np.where(x > 0, dphi, 0))
"""max(x, 0); at 0 its derivative counts as 0."""

identity = FeatureMap("identity", lambda x: x, lambda dphi, x: dphi)
"""x itself: weights may be negative, so that one rarely divides by their sum."""


def with_ones(v: Array) -> Array:
    """Append a 1 to each value."""
    return np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)


def joined(state: LinearState | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return S and z as one array of `shape`, (..., Hv, M, Dv + 1); zeros unless given."""
    if state is None:
        return np.zeros(shape, dtype)
    return np.concatenate([state.S, state.z[..., None]], axis=-1).astype(dtype)


def parted(S: Array) -> LinearState:
    """Return the two parts of a joined state."""
    return LinearState(S[..., :-1], S[..., -1])


def divided(o: Array, normalize: bool = True) -> Array:
    """Return the sums of values, divided by the sum of weights in the last column; 0 where that is exactly 0."""
    num, den = o[..., :-1], o[..., -1:]
    return np.where(den == 0, 0, num / np.where(den == 0, 1, den)) if normalize else num


def divided_vjp(do: Array, o: Array) -> Array:
    """Return the gradient of both parts of `o` from that of their quotient."""
    den = o[..., -1:]
    dnum = np.where(den == 0, 0, do / np.where(den == 0, 1, den))  # was: num / den
    return np.concatenate([dnum, -(dnum * divided(o)).sum(axis=-1, keepdims=True)], axis=-1)


def attend(q: Array, k: Array, v: Array, S: Array, causal: bool) -> tuple[Array, Array]:
    """Return Σ_j (q_i·k_j) v_j + Sᵀ q_i, all pairs at once, and S + Σ_j k_j v_jᵀ.

    q (..., H, T, M), k (..., Hk, T, M), v (..., Hv, T, W), S (..., Hv, M, W).
    """
    Hv, Ho = heads_of(v), max(heads_of(q), heads_of(v))
    q, k = share_heads(q, Ho), share_heads(k, Hv)
    last = S + k.swapaxes(-1, -2) @ v
    if not causal:
        return q @ share_heads(last, Ho), last
    seen = np.tri(q.shape[-2], dtype=bool)
    s = np.where(seen, q @ share_heads(k, Ho).swapaxes(-1, -2), 0)  # q_i · k_j, j <= i
    return select_matmul(s, share_heads(v, Ho), seen) + q @ share_heads(S, Ho), last


def attend_recurrent(q: Array, k: Array, v: Array, S: Array) -> tuple[Array, Array]:
    """Return the causal sums of `attend`, a token at a time."""
    Hv, Ho = heads_of(v), max(heads_of(q), heads_of(v))
    q, k = share_heads(q, Ho), share_heads(k, Hv)
    o = np.empty((*q.shape[:-1], v.shape[-1]), v.dtype)
    for t in range(q.shape[-2]):
        S = S + outer(k[..., t, :], v[..., t, :])  # S = S + φ(k) vᵀ
        o[..., t, :] = (q[..., t, None, :] @ share_heads(S, Ho))[..., 0, :]  # o = Sᵀ φ(q)
    return o, S


def attend_vjp(
    do: Array, q: Array, k: Array, v: Array, S: Array, dlast: Array, causal: bool
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients dq, dk, dv and dS of `attend`, from those of its results."""
    H, Hk, Hv, Ho = heads_of(q), heads_of(k), heads_of(v), max(heads_of(q), heads_of(v))
    q, k = share_heads(q, Ho), share_heads(k, Hv)
    k_, v_ = share_heads(k, Ho), share_heads(v, Ho)
    pulled = sum_heads(q.swapaxes(-1, -2) @ do, Hv)  # Σ_i q_i do_iᵀ
    if causal:
        seen = np.tri(q.shape[-2], dtype=bool)
        s = np.where(seen, q @ k_.swapaxes(-1, -2), 0)
        ds = np.where(seen, do @ v_.swapaxes(-1, -2), 0)
        dq = select_matmul(ds, k_, seen) + do @ share_heads(S, Ho).swapaxes(-1, -2)
        dk = sum_heads(select_matmul(ds.swapaxes(-1, -2), q, seen.T), Hv) + v @ dlast.swapaxes(-1, -2)
        dv = sum_heads(select_matmul(s.swapaxes(-1, -2), do, seen.T), Hv) + k @ dlast
        return sum_heads(dq, H), sum_heads(dk, Hk), dv, dlast + pulled
    last = S + k.swapaxes(-1, -2) @ v
    dlast = dlast + pulled  # was: o = lastᵀ q
    dq = do @ share_heads(last, Ho).swapaxes(-1, -2)
    return sum_heads(dq, H), sum_heads(v @ dlast.swapaxes(-1, -2), Hk), k @ dlast, dlast


def named(operation: str, names: str, arrays: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, without causal and normalize, which must be booleans."""
    found = arguments(operation, names.split(), arrays, given)
    for name in ("causal", "normalize"):
        if not isinstance(found.pop(name, True), bool | np.bool_):
            raise TypeError(f"{operation}: {name} must be True or False, got {type(given[name]).__name__}")
    return found


def check_features(
    operation: str,
    q: Any,
    k: Any,
    v: Any,
    M: int | None,
    *,
    kind: Any = LinearState,
    initial_state: Any = None,
    dstate: Any = None,
    do: Any = None,
    **options: Any,
) -> None:
    """Refuse what linear attention and its kin cannot take; `M` features, D unless given."""
    check_recurrence(operation, q, k, v, {}, **options)
    M = q.shape[-1] if M is None else M
    cu_seqlens = options.get("cu_seqlens")
    lead = v.shape[:-2] if cu_seqlens is None else (len(cu_seqlens) - 1, *v.shape[:-2])
    for name, state in (("initial_state", initial_state), ("dstate", dstate)):
        if state is not None:
            shapes = {"S": (*lead, M, v.shape[-1]), "z": (*lead, M), "m": lead}
            check_state(operation, name, state, q, kind, {part: shapes[part] for part in kind._fields})
    if operation.endswith("_vjp"):
        check_cotangent(operation, do, q, v)


def check_state(operation: str, name: str, state: Any, q: Any, kind: Any, shapes: dict[str, Any]) -> None:
    """Refuse what is no named tuple `kind` of arrays with these shapes."""
    if not isinstance(state, kind):
        raise TypeError(f"{operation}: {name} must be a {kind.__name__}, got {type(state).__name__}")
    for part, shape in shapes.items():
        x = getattr(state, part)
        check_wide(operation, f"{name}.{part}", x, q)
        check_shape(operation, f"{name}.{part}", x, shape, "that of the state")


def computed(*arrays: Array) -> list[Array]:
    """Return the arrays in the dtype of computation."""
    return [x.astype(compute_dtype(x.dtype)) for x in arrays]
