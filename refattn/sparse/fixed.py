"""Causal attention to the query's own block, and to a few keys at the end of every earlier block.

Child, Gray, Radford and Sutskever, "Generating Long Sequences with Sparse Transformers", 2019, arXiv:1904.10509,
section 4.2 (fixed), with both of its sets of keys seen by every head.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, one_each, strips


def _check_pattern(operation: str, block: Any, summary: Any) -> None:
    check_count(operation, "block", block)
    check_count(operation, "summary", summary)
    if summary > block:
        raise ValueError(f"{operation}: summary is {summary}; wanted at most the {block} keys of a block")


def _check(q: Any, k: Any, v: Any, *, block: Any, summary: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="fixed_attention", **arguments)
    _check_pattern("fixed_attention", block, summary)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, block: Any, summary: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="fixed_attention_vjp", **arguments)
    _check_pattern("fixed_attention_vjp", block, summary)


@dispatched(_check)
def fixed_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    block: int,
    summary: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the keys of the query's own block so far, and to the last `summary` of every block before it.

    .. math::
        o_i = \sum_{j \in A_i \cup S_i} p_{ij} v_j, \quad t = i + T_k - T_q, \quad
        A_i = \{ j \le t : \lfloor j / b \rfloor = \lfloor t / b \rfloor \}, \quad
        S_i = \{ j \le t : j \bmod b \ge b - \text{summary} \}

    with b = block. Equal to ``attention(q, k, v, mask=masks.fixed(block, summary))``, in time and memory that grow with
    Tq (block + summary Tk / block).

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    block : int
        Keys per block, counted from position 0; query i stands at position i + Tk - Tq.
    summary : int
        How many keys at the end of a block later blocks see, at most `block`.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for sizes below 1 or a summary beyond its block.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.array([[0.0], [2.0], [4.0], [9.0]])
    >>> fixed_attention(q, k, v, block=2, summary=1)  # token 3 sees its block, 2 and 3, and 1, the end of the other
    array([[0.],
           [1.],
           [3.],
           [5.]])
    """
    lists = fixed_lists(q.shape[-2], k.shape[-2], block, summary)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def fixed_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    block: int,
    summary: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `fixed_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, block, summary, scale, softcap, sinks
        As given to `fixed_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        As `attention_vjp`; dbias is None.

    Raises
    ------
    TypeError, ValueError
        As `fixed_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 1))
    >>> fixed_attention_vjp(np.ones((3, 1)), q, k, v, block=2, summary=1).dv  # token 2 sees itself and token 1
    array([[1.5],
           [1. ],
           [0.5]])
    """
    lists = fixed_lists(q.shape[-2], k.shape[-2], block, summary)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def fixed_lists(Tq: int, Tk: int, block: int, summary: int) -> Iterator[Lists]:
    """Yield the keys of each query: first the places of its own block, then the summaries of all blocks."""
    block = min(block, Tq + Tk)
    summaries = np.arange(Tk)[np.arange(Tk) % block >= block - summary]
    for i in strips(np.arange(Tq), block + len(summaries)):
        position = i[:, None] + Tk - Tq
        begin = position // block * block
        own = begin + np.arange(block)  # (n, block)
        earlier = np.broadcast_to(summaries, (len(i), len(summaries)))  # (n, summaries)
        keys = np.concatenate([own, earlier], axis=-1)
        yield one_each(i, keys, np.concatenate([(own >= 0) & (own <= position), earlier < begin], axis=-1))
