"""What the files of the linear-time family share: heads that share heads, decays, packed sequences, and the checks.

The state S (..., Hv, D, Dv) maps keys to values. There may be more query heads than value heads (GQA) or more value
heads than query heads (GVA): o has the larger number, Ho, and head n of o reads query head n // (Ho // H) and state
n // (Ho // Hv); value head n uses key head n // (Hv // Hk).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_count, check_floats, check_number, check_shape, compute_dtype

Bools = NDArray[np.bool_]
R = TypeVar("R", bound=NamedTuple)


def share_heads(x: Array, heads: int, axis: int = -3) -> Array:
    """Give each of `heads` heads its own copy of the head that it reads; a matrix, which is one head, stays one."""
    return x if x.ndim < -axis else np.repeat(x, heads // x.shape[axis], axis=axis)


def sum_heads(dx: Array, heads: int, axis: int = -3) -> Array:
    """Transpose of `share_heads`: add up what the heads that read the same one give back."""
    if dx.ndim < -axis:
        return dx
    axis += dx.ndim
    return dx.reshape(*dx.shape[:axis], heads, dx.shape[axis] // heads, *dx.shape[axis + 1 :]).sum(axis=axis + 1)


def heads_of(x: Array, axis: int = -3) -> int:
    """Return how many heads (..., H, T, D) has; a matrix is one."""
    return int(x.shape[axis]) if x.ndim >= -axis else 1


def scale_of(q: Array, scale: float | None) -> float:
    """Return the scale: 1/sqrt(D) unless given."""
    return float(1 / np.sqrt(q.shape[-1]) if scale is None else scale)


def decayed(g: Array, x: Array) -> Array:
    """Return e^g ⊙ x, where g = -inf forgets by selection: x is gone, be it NaN or infinite."""
    return np.where(np.isneginf(g), np.zeros((), x.dtype), np.exp(g) * x)


def sums_through(g: Array, axis: int = -1) -> Array:
    """Return Σ_{s <= t} g_s for each token t: -inf after a gate of -inf, even if there was NaN before.

    Examples
    --------
    >>> sums_through(np.array([-1.0, np.nan, -np.inf, -2.0]))
    array([ -1.,  nan, -inf, -inf])
    """
    gone = np.logical_or.accumulate(np.isneginf(g), axis=axis)
    return np.where(gone, -np.inf, np.cumsum(g, axis=axis))


def sum_of(g: Array, axis: int = -1) -> Array:
    """Return Σ_t g_t over the axis of tokens: -inf if one gate is -inf, even if others are NaN."""
    return np.where(np.isneginf(g).any(axis=axis), -np.inf, g.sum(axis=axis))


def segment_sums(g: Array) -> Array:
    r"""Return the sums of log-decays between tokens, (..., T, T), each added up by itself.

    .. math:: G_{ij} = \sum_{j < s \le i} g_s \quad (j \le i), \qquad -\infty \quad (j > i)

    A difference of cumulative sums is the same in exact numbers; in floats it loses digits, and with g = -inf it is
    NaN. Dao and Gu, 2024, arXiv:2405.21060, listing 1.

    Parameters
    ----------
    g : array, (..., T)
        Log-decays.

    Examples
    --------
    >>> segment_sums(np.array([-1.0, -2.0, -4.0]))
    array([[  0., -inf, -inf],
           [ -2.,   0., -inf],
           [ -6.,  -4.,   0.]])
    """
    T = g.shape[-1]
    below = np.tri(T, k=-1, dtype=bool)
    steps = np.where(below, g[..., :, None], 0)  # g_i at each j < i
    return np.where(np.tri(T, dtype=bool), sums_through(steps, axis=-2), -np.inf)


def sums_after(g: Array) -> Array:
    """Return Σ_{s > j} g_s for each token j, (..., T): the log-decay from there to the end."""
    later = np.concatenate([g[..., 1:], np.zeros_like(g[..., :1])], axis=-1)
    return np.asarray(np.flip(sums_through(np.flip(later, axis=-1)), axis=-1))


def outer(k: Array, v: Array) -> Array:
    """Return k vᵀ, (..., D, Dv)."""
    return k[..., :, None] * v[..., None, :]


def first_state(initial_state: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return the state before the first token: zeros of `shape` unless given."""
    return np.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)


def by_sequence(
    call: Callable[..., R],
    cu_seqlens: Any,
    tokens: Sequence[tuple[Array, int]],
    states: dict[str, Any],
    **axes: int | str,
) -> R:
    """Call an operation for each packed sequence, and join what it returns.

    Parameters
    ----------
    call : function
        Takes the arrays of one sequence by position, and its states by keyword; returns a named tuple.
    cu_seqlens : array of int, (N + 1,)
        Where sequences begin, and where the last one ends.
    tokens : sequence of (array, axis)
        The arrays, and which axis of each, counted from the end, has the tokens.
    states : dict
        By keyword, an array (N, ...), a named tuple of such arrays, or None.
    **axes : int or "sum"
        How a field of the result is joined: along which axis, or added up. o, dq, dk and dv have their tokens at -2;
        all others are stacked, (N, ...), unless named.
    """
    how: dict[str, int | str] = {"o": -2, "dq": -2, "dk": -2, "dv": -2, **axes}
    parts = []
    for n, (first, stop) in enumerate(itertools.pairwise(int(border) for border in cu_seqlens)):
        places: list[tuple[Any, ...]] = [(..., slice(first, stop), *[slice(None)] * (-axis - 1)) for _, axis in tokens]
        own = [x[place] for (x, _), place in zip(tokens, places, strict=True)]
        parts.append(call(*own, **{name: _nth(state, n) for name, state in states.items()}))
    kind: Any = type(parts[0])
    return cast(R, kind(*(_joined([getattr(x, name) for x in parts], how.get(name)) for name in kind._fields)))


def _nth(state: Any, n: int) -> Any:
    if state is None:
        return None
    return type(state)(*(x[n] for x in state)) if isinstance(state, tuple) else state[n]


def _joined(xs: list[Any], how: int | str | None) -> Any:
    if xs[0] is None:
        return None
    if isinstance(xs[0], tuple):
        return type(xs[0])(*(np.stack(x) for x in zip(*xs, strict=True)))
    if how is None:
        return np.stack(xs)
    return np.sum(xs, axis=0) if isinstance(how, str) else np.concatenate(xs, axis=how)


def arguments(operation: str, names: Sequence[str], arrays: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; those in `names`, and do for a derivative, must be there."""
    wanted = ["do"] * operation.endswith("_vjp") + list(names)
    found = dict(zip(wanted, arrays, strict=False)) | given
    if len(arrays) > len(wanted) or not found.keys() >= set(wanted):
        raise TypeError(f"{operation}: wanted {', '.join(wanted)}")
    return found


def check_of(operation: str, queries: str = "q", **gates: str) -> Callable[..., None]:
    """Return the check of an operation on q, k and v, and on `gates`: the axes of each, "H", "HT" or "HTD".

    For a derivative (``..._vjp``) the check takes `do` first.
    """

    def check(*arrays: Any, **given: Any) -> None:
        found = arguments(operation, (queries, "k", "v", *gates), arrays, given)
        q, k, v = (found.pop(name) for name in (queries, "k", "v"))
        do, dstate = found.pop("do", None), found.pop("dstate", None)
        check_recurrence(operation, q, k, v, gates, queries=queries, **found)
        if operation.endswith("_vjp"):
            check_cotangent(operation, do, q, v)
            check_state_cotangent(operation, dstate, q, v, found.get("cu_seqlens"))

    return check


def check_recurrence(
    operation: str,
    q: Any,
    k: Any,
    v: Any,
    gates: dict[str, str],
    *,
    queries: str = "q",
    scale: Any = None,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    chunk: Any = 1,
    **given: Any,
) -> None:
    """Refuse what the operations on q, k and v of this family cannot take; in one place, for every backend.

    `gates` says which axes after the batch each gate in `given` has, `queries` what the operation calls q.
    """
    check_floats(operation, 2, **{queries: q, "k": k, "v": v})
    shapes = f"{queries} {q.shape}, k {k.shape}, v {v.shape}"
    if not q.ndim == k.ndim == v.ndim:
        raise ValueError(f"{operation}: {queries}, k, v differ in their number of axes: {shapes}")
    if not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        raise ValueError(f"{operation}: the batch axes before (H, T, D) differ: {shapes}")
    if not q.shape[-2] == k.shape[-2] == v.shape[-2]:
        raise ValueError(f"{operation}: the numbers of tokens differ: {shapes}")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"{operation}: the last axis of {queries} and k must be one D >= 1: {shapes}")
    H, Hk, Hv = heads_of(q), heads_of(k), heads_of(v)
    if min(H, Hk, Hv) == 0 or Hv % Hk or max(H, Hv) % min(H, Hv):
        raise ValueError(
            f"{operation}: {H} query, {Hk} key and {Hv} value heads; wanted Hv a multiple of Hk, "
            f"and one of H and Hv a multiple of the other: {shapes}"
        )
    check_packing(operation, cu_seqlens, q)
    for name, axes in gates.items():
        check_gate(operation, name, given[name], q, v, axes)
        if name == "log_decay" and (given[name] > 0).any():
            raise ValueError(f"{operation}: log_decay holds {given[name].max()}; wanted logs of decays, at most 0")
    if scale is not None:
        check_number(operation, "scale", scale)
    if initial_state is not None:
        lead = v.shape[:-2] if cu_seqlens is None else (len(cu_seqlens) - 1, *v.shape[:-2])
        letters = "(..., Hv, D, Dv)" if cu_seqlens is None else "(N, Hv, D, Dv)"
        check_wide(operation, "initial_state", initial_state, q)
        check_shape(operation, "initial_state", initial_state, (*lead, q.shape[-1], v.shape[-1]), letters)
    check_count(operation, "chunk", chunk)


def check_gate(operation: str, name: str, x: Any, q: Any, v: Any, axes: str) -> None:
    """Refuse gates that do not have the axes "H", "HT" or "HTD" of the value heads."""
    check_wide(operation, name, x, q)
    if axes == "H":
        check_shape(operation, name, x, (heads_of(v),), "(Hv,), one per value head")
    elif axes == "HT":
        check_shape(operation, name, x, v.shape[:-1], "(..., Hv, T)")
    else:
        check_shape(operation, name, x, (*v.shape[:-1], q.shape[-1]), "(..., Hv, T, D)")


def check_wide(operation: str, name: str, x: Any, q: Any) -> None:
    """Refuse what is neither in the dtype of q nor in the one that it is computed in."""
    check_floats(operation, 0, **{name: x})
    if compute_dtype(x.dtype) != compute_dtype(q.dtype):
        wanted = " or ".join(dict.fromkeys((str(q.dtype), str(compute_dtype(q.dtype)))))
        raise TypeError(f"{operation}: {name} has dtype {x.dtype}; wanted {wanted}")


def check_packing(operation: str, cu_seqlens: Any, q: Any) -> None:
    """Refuse borders of packed sequences that do not run from 0 to T, and batches of packed sequences."""
    if cu_seqlens is None:
        return
    if getattr(getattr(cu_seqlens, "dtype", None), "kind", "") not in ("i", "u") or cu_seqlens.ndim != 1:
        got = f"{getattr(cu_seqlens, 'dtype', type(cu_seqlens).__name__)} {getattr(cu_seqlens, 'shape', '')}".strip()
        raise TypeError(f"{operation}: cu_seqlens is {got}; wanted an array of integers, (N + 1,)")
    T = q.shape[-2]
    borders = [int(border) for border in cu_seqlens]
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != T or any(a > b for a, b in itertools.pairwise(borders)):
        raise ValueError(f"{operation}: cu_seqlens is {borders}; wanted borders that rise from 0 to T = {T}")
    if q.ndim > 3:
        raise ValueError(f"{operation}: packed sequences have no batch axes, got an array of shape {q.shape}")


def check_cotangent(operation: str, do: Any, q: Any, v: Any, heads: str = "Ho") -> None:
    """Refuse a gradient of o that is not in the dtype of q, or of another shape."""
    check_floats(operation, 2, do=do, v=v)
    lead = q.shape[:-1] if heads_of(q) > heads_of(v) else v.shape[:-1]
    check_shape(operation, "do", do, (*lead, v.shape[-1]), f"(..., {heads}, T, Dv)")


def check_state_cotangent(operation: str, dstate: Any, q: Any, v: Any, cu_seqlens: Any) -> None:
    """Refuse a gradient of the last state that is not of the state's shape."""
    if dstate is None:
        return
    lead = v.shape[:-2] if cu_seqlens is None else (len(cu_seqlens) - 1, *v.shape[:-2])
    check_wide(operation, "dstate", dstate, q)
    check_shape(operation, "dstate", dstate, (*lead, q.shape[-1], v.shape[-1]), "that of the state")
