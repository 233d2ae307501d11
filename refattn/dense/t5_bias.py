r"""Relative position bias of T5: a learnt number for each head and each bucket of distances, added to the scores.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
arXiv:1910.10683, section 2.1. Near distances have a bucket each; the others share buckets that widen as a logarithm.
"""

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_count, check_floats, check_shape, compute_dtype

Ints = NDArray[np.integer[Any]]


def t5_buckets(distance: Ints, *, n_buckets: int = 32, bidirectional: bool, max_distance: int = 128) -> Ints:
    r"""Return the bucket of each distance j - i from a query to a key.

    .. math::
        b(d) = \begin{cases} d & d < m \\
        \min\left(m + \left\lfloor \frac{\log(d / m)}{\log(M / m)} (n - m) \right\rfloor, n - 1\right) & d \ge m
        \end{cases}, \quad m = \lfloor n / 2 \rfloor

    for the d = i - j >= 0 of the past. One direction has n = n_buckets and puts the future into bucket 0; both have
    n = n_buckets / 2 each, and the future's buckets come after the past's.

    Parameters
    ----------
    distance : int array
        Position of the key minus position of the query, of any shape.
    n_buckets : int
        At least 2, and at least 4 and even for both directions.
    bidirectional : bool
        True in T5's encoder, False in its decoder.
    max_distance : int
        M: from here on everything is in the last bucket; above m.

    Returns
    -------
    int64 array
        In the shape of `distance`, 0 ... n_buckets - 1.

    Raises
    ------
    TypeError, ValueError
        For distances that are no integers, or numbers out of range.

    Examples
    --------
    >>> t5_buckets(-np.array([0, 1, 2, 3, 4, 7, 8, 99]), n_buckets=4, bidirectional=False, max_distance=8)
    array([0, 1, 2, 2, 3, 3, 3, 3])
    """
    _check("t5_buckets", n_buckets, bidirectional, max_distance)
    if getattr(distance, "dtype", None) is None or distance.dtype.kind not in "iu":
        got = getattr(distance, "dtype", type(distance).__name__)
        raise TypeError(f"t5_buckets: distance is {got}; wanted an array of integers")
    n = n_buckets // 2 if bidirectional else n_buckets
    m = n // 2
    j_minus_i = distance.astype(np.int64)
    d = np.abs(j_minus_i) if bidirectional else np.maximum(-j_minus_i, 0)
    bucket = np.searchsorted(_first_distances(n, m, max_distance), d, side="right") - 1
    return bucket + n * (j_minus_i > 0) if bidirectional else bucket


def t5_bias(
    table: Array, Tq: int, Tk: int, *, bidirectional: bool, max_distance: int = 128, offset: int | None = None
) -> Array:
    r"""Return the bias for the ``bias=`` of `attention`: what the table holds for the distance from query i to key j.

    .. math::
        b_{hij} = \text{table}[\text{bucket}(j - (i + \text{offset})), h]

    T5 does not scale its scores: call `attention` with ``scale=1.0``.

    Parameters
    ----------
    table : array, (n_buckets, H)
        The learnt numbers, as T5 stores them.
    Tq, Tk : int
        Queries and keys.
    bidirectional, max_distance
        As in `t5_buckets`.
    offset : int, optional
        Query i stands at i + offset; Tk - Tq unless given, so that the last query stands where the last key stands.

    Returns
    -------
    array, (H, Tq, Tk)
        In the dtype of `table`.

    Raises
    ------
    TypeError, ValueError
        For a table that is not a float array of two axes, or numbers out of range.

    Examples
    --------
    >>> t5_bias(np.array([[0.0], [-1.0]]), 3, 3, bidirectional=False, max_distance=2)
    array([[[ 0.,  0.,  0.],
            [-1.,  0.,  0.],
            [-1., -1.,  0.]]])
    """
    check_floats("t5_bias", 2, table=table)
    check_shape("t5_bias", "table", table, table.shape[:2], "(n_buckets, H)")
    _check("t5_bias", table.shape[0], bidirectional, max_distance)
    buckets = _buckets_of_pairs("t5_bias", Tq, Tk, table.shape[0], bidirectional, max_distance, offset)
    return np.moveaxis(table[buckets], -1, 0)  # table[b_ij, h]                            (H, Tq, Tk)


def t5_bias_vjp(
    dbias: Array, n_buckets: int, *, bidirectional: bool, max_distance: int = 128, offset: int | None = None
) -> Array:
    r"""Pull the cotangent of `t5_bias`'s result back to the table: each bucket adds up the pairs that read it.

    .. math::
        dtable_{bh} = \sum_{ij: \text{bucket}_{ij} = b} dbias_{hij}

    Parameters
    ----------
    dbias : array, (H, Tq, Tk)
        Cotangent of the result: the ``dbias`` of `attention_vjp`.
    n_buckets : int
        How many rows the table has.
    bidirectional, max_distance, offset
        As given to `t5_bias`.

    Returns
    -------
    array, (n_buckets, H)
        In the dtype of `dbias`; 0 for a bucket that no pair reads.

    Raises
    ------
    TypeError, ValueError
        As `t5_bias`.

    Examples
    --------
    >>> t5_bias_vjp(np.ones((1, 3, 3)), 2, bidirectional=False, max_distance=2)  # three pairs look back
    array([[6.],
           [3.]])
    """
    check_floats("t5_bias_vjp", 3, dbias=dbias)
    check_shape("t5_bias_vjp", "dbias", dbias, dbias.shape[:3], "(H, Tq, Tk)")
    _check("t5_bias_vjp", n_buckets, bidirectional, max_distance)
    H, Tq, Tk = dbias.shape
    buckets = _buckets_of_pairs("t5_bias_vjp", Tq, Tk, n_buckets, bidirectional, max_distance, offset)
    dtable = np.zeros((n_buckets, H), compute_dtype(dbias.dtype))
    np.add.at(dtable, buckets, np.moveaxis(dbias, 0, -1).astype(dtable.dtype))  # was: table[buckets]
    return dtable.astype(dbias.dtype)


def _first_distances(n: int, m: int, M: int) -> Ints:
    """Return the least distance of each bucket 0 ... n - 1, by integers: a rounded logarithm could miss it by one."""
    first = list(range(m))
    for b in range(n - m):
        border = M**b * m ** (n - m - b)  # the least d with (d / m)^(n-m) >= (M / m)^b
        first.append(bisect_left(range(M), border, key=lambda d: d ** (n - m)))
    return np.array(first)


def _buckets_of_pairs(
    operation: str, Tq: int, Tk: int, n_buckets: int, bidirectional: bool, max_distance: int, offset: int | None
) -> Ints:
    """Return the bucket of j - (i + offset) for every pair, (Tq, Tk)."""
    for name, count in (("Tq", Tq), ("Tk", Tk)):
        check_count(operation, name, count, least=0)
    Tq, Tk = int(Tq), int(Tk)  # as NumPy's they could be unsigned
    offset = Tk - Tq if offset is None else offset
    check_count(operation, "offset", offset, least=-(2**31))
    distance = np.arange(Tk) - (np.arange(Tq)[:, None] + int(offset))
    return t5_buckets(distance, n_buckets=n_buckets, bidirectional=bidirectional, max_distance=max_distance)


def _check(operation: str, n_buckets: Any, bidirectional: Any, max_distance: Any) -> None:
    if not isinstance(bidirectional, bool | np.bool_):
        raise TypeError(f"{operation}: bidirectional must be a bool, got {type(bidirectional).__name__}")
    check_count(operation, "n_buckets", n_buckets, least=4 if bidirectional else 2)
    if bidirectional and n_buckets % 2:
        raise ValueError(f"{operation}: n_buckets is {n_buckets}; wanted an even number for two directions")
    check_count(operation, "max_distance", max_distance, least=n_buckets // (4 if bidirectional else 2) + 1)
