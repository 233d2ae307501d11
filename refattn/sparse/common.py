"""Attention to listed keys: what the files of this folder share.

Each file says which keys a query sees, as a sequence of `Lists`. The rest is the same for all, and stands here: gather
the keys and values of a list, let `attention` mix them, put the results where they belong. Nothing of size Tq x Tk
is made; time and memory grow with the pairs that are listed.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, compute_dtype
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import Bools, heads_of
from refattn.results import AttentionGradients

Ints = NDArray[np.int64]

PAIRS = 1 << 14  # of each head, gathered at a time: 4 MiB of float32 keys where D is 64


class Lists(NamedTuple):
    """g groups of r queries; the queries of a group share a list of m keys."""

    rows: Ints
    """(g, r): the queries. Over all the lists of a problem, each query stands in one group."""
    keys: Ints
    """(*lead, g, m): the list of each group, each key once; the lead axes broadcast to (..., H)."""
    visible: Bools
    """(*lead, g, r, m): which entries a query sees. An entry that nobody sees may be any number."""


def attend(
    q: Array,
    k: Array,
    v: Array,
    lists: Iterable[Lists],
    *,
    bias: Array | None = None,
    dropout_mask: Bools | None = None,
    return_lse: bool = False,
    **options: Any,
) -> Any:
    """Return `attention` of each query to the keys of its list; the arguments are those of `attention`."""
    o = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    lse = np.zeros(q.shape[:-1], compute_dtype(q.dtype))
    for rows, keys, visible in lists:
        rows, keys, visible = _shorten(rows, keys, visible)
        of_keys, of_pairs = _key_places(q, k, keys), (rows, keys)
        o_part, lse_part = attention(
            _grouped(_headed(q)[..., rows, :]),
            _grouped(_headed(k)[of_keys]),
            _grouped(_headed(v)[of_keys]),
            mask=_grouped(visible),
            bias=_of_pairs(bias, q, *of_pairs),
            dropout_mask=_of_pairs(dropout_mask, q, *of_pairs),
            return_lse=True,
            **options,
        )
        _headed(o)[..., rows, :] = _grouped(o_part)
        _headed(lse[..., None])[..., rows, :] = _grouped(lse_part[..., None])
    return (o, lse) if return_lse else o


def attend_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    lists: Iterable[Lists],
    *,
    bias: Array | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dlse: Array | None = None,
    **options: Any,
) -> AttentionGradients:
    """Return the gradients of `attend`: where it gathers, its derivative adds up what comes back to one place."""
    dtype, compute = q.dtype, compute_dtype(q.dtype)
    do, q, k, v = (x.astype(compute) for x in (do, q, k, v))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dbias = None if bias is None else np.zeros(bias.shape, compute)
    dsinks = None if sinks is None else np.zeros(sinks.shape, compute)
    for rows, keys, visible in lists:
        rows, keys, visible = _shorten(rows, keys, visible)
        of_keys, of_pairs = _key_places(q, k, keys), (rows, keys)
        part = attention_vjp(
            _grouped(_headed(do)[..., rows, :]),
            _grouped(_headed(q)[..., rows, :]),
            _grouped(_headed(k)[of_keys]),
            _grouped(_headed(v)[of_keys]),
            mask=_grouped(visible),
            bias=None if bias is None else _of_pairs(bias.astype(compute), q, *of_pairs),
            sinks=None if sinks is None else sinks.astype(compute),
            dropout_mask=_of_pairs(dropout_mask, q, *of_pairs),
            dlse=None if dlse is None else _grouped(_headed(dlse[..., None])[..., rows, :])[..., 0],
            **options,
        )
        _headed(dq)[..., rows, :] = _grouped(part.dq)  # was: q[rows]
        np.add.at(_headed(dk), of_keys, _grouped(part.dk))  # was: k[keys]
        np.add.at(_headed(dv), of_keys, _grouped(part.dv))  # was: v[keys]
        if dbias is not None and part.dbias is not None:
            np.add.at(_like_scores(dbias, q), _pair_places(dbias, q, *of_pairs), _grouped(part.dbias))
        if dsinks is not None:
            dsinks = dsinks + part.dsinks
    return AttentionGradients(
        dq.astype(dtype),
        dk.astype(dtype),
        dv.astype(dtype),
        None if bias is None or dbias is None else dbias.astype(bias.dtype),
        None if sinks is None or dsinks is None else dsinks.astype(sinks.dtype),
    )


def strips(rows: Ints, width: int) -> Iterator[Ints]:
    """Cut queries (n,) whose lists have `width` keys into runs of at most `PAIRS` pairs, and of one query at least."""
    step = max(1, PAIRS // max(1, width))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def one_each(rows: Ints, keys: Ints, visible: Bools) -> Lists:
    """Return the lists of queries (n,) that each have one of their own: keys and visible are (*lead, n, m)."""
    return Lists(rows[:, None], keys, visible[..., None, :])


def shared(rows: Ints, keys: Ints, visible: Bools) -> Lists:
    """Return the lists of queries (n,) that share one: keys (*lead, m), visible (*lead, n, m) or that broadcasts."""
    return Lists(rows[None], keys[..., None, :], visible[..., None, :, :])


def check_positions(operation: str, name: str, indices: Any, least: int | None = 0) -> None:
    """Raise unless `indices` is a sequence of integers, each of at least `least` if there is one."""
    given = np.asarray(indices)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} has dtype {given.dtype}; wanted integers")
    if given.ndim != 1 or (least is not None and (given < least).any()):
        bound = "" if least is None else f", each {least} or more"
        raise ValueError(f"{operation}: {name} is {indices!r}; wanted a list of integers{bound}")


def check_flag(operation: str, name: str, x: Any) -> None:
    """Raise unless `x` is True or False."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{operation}: {name} must be True or False, got {type(x).__name__}")


def _shorten(rows: Ints, keys: Ints, visible: Bools) -> Lists:
    """Drop the places of a list that no group uses, and let the others that nobody sees name key 0."""
    used = visible.any(axis=tuple(range(visible.ndim - 1)))  # (m,)
    seen = visible.any(axis=-2)  # (*lead, g, m)
    return Lists(rows, np.where(seen, keys, 0)[..., used], visible[..., used])


def _headed(x: Array) -> Array:
    """Return a matrix as one head, and everything else as it is."""
    return x[None] if x.ndim == 2 else x


def _grouped(x: Array) -> Array:
    """Swap the axes of heads and groups, (..., H, g, n, m) to (..., g, H, n, m) or back: groups are a batch."""
    x = x[None] if x.ndim == 3 else x
    return x.swapaxes(-4, -3)


def _key_places(q: Array, k: Array, keys: Ints) -> tuple[Ints, ...]:
    """Return what picks the listed keys of k (..., Hk, Tk, D): index arrays that broadcast to (..., Hk, g, m).

    Where the lists differ from head to head, each query head picks from the head that it reads: (..., H, g, m).
    """
    H, Hk = heads_of(q), heads_of(k)
    own_lists = keys.ndim > 2 and keys.shape[-3] > 1
    heads = np.arange(H) // (H // Hk) if own_lists else np.arange(Hk)
    grid = np.ix_(*(np.arange(n) for n in k.shape[:-3]), heads)
    return (*(index[..., None, None] for index in grid), keys)


def _like_scores(x: Array, q: Array) -> Array:
    """Return x, which broadcasts to the scores (..., H, Tq, Tk), with as many axes as they have."""
    return x.reshape((1,) * (max(q.ndim, 3) - x.ndim) + x.shape)


def _pair_places(x: Array, q: Array, rows: Ints, keys: Ints) -> tuple[Ints, ...]:
    """Return what picks the listed pairs, (..., H, g, r, m), of an array that broadcasts to (..., H, Tq, Tk)."""
    *lead, Tq, Tk = _like_scores(x, q).shape
    grid = np.ix_(*(np.arange(n) for n in lead))
    i, j = rows[:, :, None], keys[..., :, None, :]
    of_one = np.zeros(1, np.int64)  # an axis of 1 has one entry for all
    return (*(index[..., None, None, None] for index in grid), i if Tq != 1 else of_one, j if Tk != 1 else of_one)


def _of_pairs(x: Any, q: Array, rows: Ints, keys: Ints) -> Any:
    """Return the entries of the listed pairs, (..., g, H, r, m)."""
    if x is None:
        return None
    picked = _like_scores(x, q)[_pair_places(x, q, rows, keys)]
    return _grouped(picked)
