"""Attention as parts that see disjoint keys: each is one call of the flash kernels, on tokens laid out for it.

Tokens whose positions leave the same remainder are put side by side: a dilated window is then an ordinary window within
each row, and the strided keys of Child et al. are the earlier tokens of the row. Work grows with the pairs, and the
kernels see nothing but bands. The parts are merged by lse; backward, each part takes lse and delta of the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.masks import Mask
from refattn.results import AttentionGradients
from refattn_numba.flash import attend, gradients
from refattn_numba.layout import problem
from refattn_numba.merge import add_sinks, merge_into, sinks_gradient


@dataclass(frozen=True)
class Part:
    """One call: how queries and keys are laid out for it, and who sees whom then.

    The layouts take (..., H, T, C) to what the kernels read, (*other axes, H, T', C), and back; places that no token
    fills are 0 there, and lost on the way back.
    """

    queries: "Layout"
    keys: "Layout"
    mask: Mask | None


@dataclass(frozen=True)
class Layout:
    """A way to lay tokens out, and its inverse."""

    lay: Callable[[Array], Array]
    back: Callable[[Array, float], Array]
    """(array, what stands where no place was): the inverse."""


class Below(Mask):
    """Query i sees the keys j < stop[i]."""

    def __init__(self, stop: Array) -> None:
        self.stop = stop

    def at(self, n: Any, i: Array, j: Array, Tq: int, Tk: int) -> Array:
        return j < self.stop[i]

    def runs(self, n: Any, i: Array, Tq: int, Tk: int) -> tuple[Array, Array]:
        return np.zeros_like(i), np.minimum(self.stop[i], Tk)

    def __repr__(self) -> str:
        return f"Below({self.stop.tolist()!r})"


AS_THEY_ARE = Layout(lambda x: x, lambda x, _: x)


def folded(T: int, step: int, first: int, length: int) -> Layout:
    """Return the layout that deals tokens out to `step` rows of `length`: token t is place t - first of them all.

    Row r has the places r, r + step, r + 2 step ...; (..., H, T, C) becomes (..., step, H, length, C).
    """

    def lay(x: Array) -> Array:
        whole = x
        if length * step != T:
            whole = np.zeros((*x.shape[:-2], length * step, x.shape[-1]), x.dtype)
            whole[..., -first : T - first, :] = x
        rows = whole.reshape(*x.shape[:-2], length, step, x.shape[-1])
        return np.ascontiguousarray(np.moveaxis(rows, -2, -4))

    def back(x: Array, missing: float) -> Array:
        whole = np.moveaxis(x, -4, -2)
        return whole.reshape(*whole.shape[:-3], length * step, x.shape[-1])[..., -first : T - first, :]

    return Layout(lay, back)


def by_remainder(Tq: int, Tk: int, step: int) -> tuple[Layout, Layout, int, Array]:
    """Return the layouts of queries and keys by the remainder of their positions, and two things about the rows.

    The third is the place of the first query in its row, the fourth (step,) how many keys each row has. Both kinds of
    rows end at the same place, so the alignment to the bottom right is that of the tokens.
    """
    length, behind = -(-Tk // step), Tk - Tq
    start = behind // step
    count = np.maximum(0, -(-(Tk - np.arange(step)) // step))
    return folded(Tq, step, start * step - behind, length - start), folded(Tk, step, 0, length), start, count


def picked(T: int, places: Array) -> Layout:
    """Return the layout that keeps only some tokens, in their order."""

    def back(x: Array, missing: float) -> Array:
        whole = np.full((*x.shape[:-2], T, x.shape[-1]), missing, x.dtype)
        whole[..., places, :] = x
        return whole

    return Layout(lambda x: x[..., places, :], back)


def attend_parts(
    q: Array, k: Array, v: Array, parts: list[Part], *, sinks: Array | None = None, **options: Any
) -> tuple[Array, Array]:
    """Return (o, lse) of the union of the parts' keys, in the compute dtype."""
    q, k, v = (_headed(x) for x in (q, k, v))
    whole = None
    for part in parts:
        q_part, k_part, v_part = part.queries.lay(q), part.keys.lay(k), part.keys.lay(v)
        call = problem(q_part, k_part, v_part, mask=part.mask, **options)
        ((o, lse),) = attend(call, q_part, k_part, v_part)
        o, lse = part.queries.back(o, 0), part.queries.back(lse[..., None], -np.inf)[..., 0]
        if whole is None:
            whole = np.ascontiguousarray(o), np.ascontiguousarray(lse)
        else:
            merge_into(*whole, o, lse)
    assert whole is not None
    if sinks is not None:
        add_sinks(*whole, sinks)
    return whole


def pull_back_parts(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    parts: list[Part],
    *,
    sinks: Array | None = None,
    dlse: Array | None = None,
    **options: Any,
) -> AttentionGradients:
    """Return the gradients of `attend_parts`, in the dtypes and shapes of their inputs."""
    dtype, shapes = compute_dtype(q.dtype), (q.shape, k.shape, v.shape)
    own = q.dtype
    do, q, k, v = (_headed(x).astype(dtype, copy=False) for x in (do, q, k, v))
    o, lse = attend_parts(q, k, v, parts, sinks=sinks, **options)
    delta = np.where(o == 0, 0, do * o).sum(axis=-1)  # select: a blind row's do may be NaN
    if dlse is not None:
        delta = delta - dlse.astype(dtype).reshape(delta.shape)
    sums = [np.zeros(x.shape, dtype) for x in (q, k, v)]
    for part in parts:
        q_part, k_part, v_part = part.queries.lay(q), part.keys.lay(k), part.keys.lay(v)
        call = problem(q_part, k_part, v_part, mask=part.mask, **options)
        lse_part, delta_part = (part.queries.lay(x[..., None])[..., 0] for x in (lse, delta))
        dq, dk, dv, _ = gradients(call, part.queries.lay(do), q_part, k_part, v_part, lse_part, delta_part)
        sums[0] += part.queries.back(dq.reshape(q_part.shape), 0)
        sums[1] += part.keys.back(dk.reshape(k_part.shape), 0)
        sums[2] += part.keys.back(dv.reshape(v_part.shape), 0)
    dsinks = None if sinks is None else sinks_gradient(sinks, lse, delta)
    dq, dk, dv = (x.reshape(shape).astype(own, copy=False) for x, shape in zip(sums, shapes, strict=True))
    return AttentionGradients(dq, dk, dv, None, dsinks)


def finish(q: Array, found: tuple[Array, Array], return_lse: bool) -> Any:
    """Return what the caller asked for, in the shapes and dtypes of its queries."""
    o, lse = found
    o, lse = o.reshape(*q.shape[:-1], o.shape[-1]).astype(q.dtype, copy=False), lse.reshape(q.shape[:-1])
    return (o, lse) if return_lse else o


def _headed(x: Array) -> Array:
    return x if x.ndim > 2 else x[None]
