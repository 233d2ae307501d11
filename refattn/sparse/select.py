"""What attention to chosen keys shares: choosing the best, naming them by indices, and attending to just those.

Indices are int64, in ascending order, and -1 stands for an empty place, after the others. Equal scores go to the lowest
index. A NaN counts as the largest score: it is chosen, and so it shows in the rows that see it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_count, check_shape
from refattn.dense.attention import softmax
from refattn.dense.common import Bools

Indices = NDArray[np.int64]


def best(scores: Array, n: int, allowed: Bools, forced: Bools | None = None) -> Indices:
    """Return the places of the n largest scores along the last axis, among those allowed.

    Parameters
    ----------
    scores : array, (..., m)
    n : int
        How many; where fewer are allowed, -1 fills up.
    allowed, forced : bool array that broadcasts to (..., m)
        What may be chosen; what comes before all others, whatever its score.

    Returns
    -------
    int64 array, (..., n)
        In ascending order, -1 last.

    Examples
    --------
    >>> best(np.array([3.0, 5.0, 5.0, 5.0]), 2, np.array([True, True, False, True]))
    array([1, 3])
    """
    m = scores.shape[-1]
    allowed = np.broadcast_to(allowed, scores.shape)
    behind = np.broadcast_to(True if forced is None else ~forced, scores.shape)
    rank = np.where(np.isnan(scores), np.inf, scores)
    order = np.lexsort((-rank, behind, ~allowed))[..., :n]  # the last of these keys counts most; ties stay in order
    places = np.sort(np.where(np.take_along_axis(allowed, order, axis=-1), order, m), axis=-1)
    room = np.full((*scores.shape[:-1], n), -1, np.int64)
    room[..., : min(n, m)] = np.where(places == m, -1, places)
    return room


def selected_keys(indices: Indices, Tk: int, *, size: int = 1) -> Bools:
    """Return as a mask which keys the indices of a selection name.

    Parameters
    ----------
    indices : int array, (..., Tq, n)
        Keys, or blocks of keys, that each query looks at; -1 is none.
    Tk : int
        How many keys there are.
    size : int
        How many keys a block has: index b stands for the keys b size to (b + 1) size - 1.

    Returns
    -------
    bool array, (..., Tq, Tk)
        True where the key is among those that the query looks at.

    Raises
    ------
    TypeError, ValueError
        For indices that are not integers, or name what is not there.

    Examples
    --------
    >>> selected_keys(np.array([[0, 2], [1, -1]]), 4).astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 0]])
    """
    check_count("selected_keys", "Tk", Tk, least=0)
    check_count("selected_keys", "size", size)
    Tk, size = int(Tk), int(size)  # as NumPy's they could be unsigned
    blocks = -(-Tk // size)
    if np.ndim(indices) < 1:
        raise ValueError(f"selected_keys: indices has shape {np.shape(indices)}; wanted (..., Tq, n)")
    check_indices("selected_keys", indices, np.shape(indices), "(..., Tq, n)", blocks)
    named = np.zeros((*indices.shape[:-1], blocks + 1), bool)  # the last one is for -1
    np.put_along_axis(named, np.where(indices < 0, blocks, indices).astype(np.int64), True, axis=-1)
    return np.repeat(named[..., :blocks], min(size, Tk), axis=-1)[..., :Tk]


def keys_of(blocks: Indices, size: int, last: Indices) -> Indices:
    """Return the keys of the named blocks up to key `last` of each query, -1 for the others.

    Parameters
    ----------
    blocks : int array, (..., Tq, n)
    size : int
        How many keys a block has.
    last : int array, (Tq,)
        The last key that each query may look at.

    Returns
    -------
    int64 array, (..., Tq, n size)

    Examples
    --------
    >>> keys_of(np.array([[0, 2, -1]]), 2, np.array([4]))
    array([[ 0,  1,  4, -1, -1, -1]])
    """
    keys = blocks[..., None] * size + np.arange(size)  # (..., Tq, n, size)
    seen = (blocks[..., None] >= 0) & (keys <= last[:, None, None])
    return np.where(seen, keys, -1).reshape(*blocks.shape[:-1], blocks.shape[-1] * size)


def attend_each(
    q: Array,
    k: Array,
    v: Array,
    keys: Indices,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Array | None = None,
    bias: Array | None = None,
) -> tuple[Array, Array]:
    """Attention of each query to its own few keys.

    Parameters
    ----------
    q, k, v : array, (..., H, Tq, D), (..., H, Tk, D), (..., H, Tk, Dv)
        In the dtype of computation; keys and values have a head for each query head.
    keys : int array that broadcasts to (..., H, Tq, n)
        Which keys each query looks at, -1 for none.
    scale, softcap, sinks
        As in `attention`.
    bias : array, (..., H, Tq, n), optional
        Added to the scores after the soft cap.

    Returns
    -------
    o, lse : array, (..., H, Tq, Dv), (..., H, Tq)
    """
    keys = np.broadcast_to(keys, (*q.shape[:-1], keys.shape[-1]))
    s = scale * np.einsum("...id,...ind->...in", q, _gather(k, keys))  # s_in = scale q_i·k_{j(i, n)}
    if softcap is not None:
        s = float(softcap) * np.tanh(s / float(softcap))
    if bias is not None:
        s = s + bias
    p, lse = softmax(s, keys >= 0, sinks)
    return np.einsum("...in,...ind->...id", p, _gather(v, keys)), lse  # o_i = Σ_n p_in v_{j(i, n)}


def _gather(x: Array, keys: Indices) -> Array:
    """Return the rows (..., Tq, n, D) of x (..., Tk, D) that `keys` (..., Tq, n) names; -1 reads a row of zeros."""
    zeros = np.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype)
    return np.take_along_axis(np.concatenate([x, zeros], axis=-2)[..., None, :, :], keys[..., None], axis=-2)


def check_indices(
    operation: str, indices: Any, want: tuple[int, ...], meaning: str, n: int, name: str = "indices"
) -> None:
    """Raise unless `indices` is an integer array of shape `want` of -1 and of different numbers below n."""
    if getattr(getattr(indices, "dtype", None), "kind", "") not in ("i", "u"):
        got = getattr(indices, "dtype", type(indices).__name__)
        raise TypeError(f"{operation}: {name} is {got}; wanted an integer array, -1 for an empty place")
    check_shape(operation, name, indices, want, meaning)
    wrong = indices[(indices < -1) | (indices >= n)]
    if wrong.size:
        raise ValueError(f"{operation}: {name} holds {wrong.flat[0]}; wanted -1 or 0 to {n - 1}")
    ordered = np.sort(indices, axis=-1)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
        raise ValueError(f"{operation}: {name} names one place twice for the same query")
