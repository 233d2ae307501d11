"""Attention by way of a few global tokens: they see every key, and every query sees them.

Beltagy, Peters and Cohan, "Longformer", 2020, arXiv:2004.05150, section 3.1 (global attention). Zaheer et al., "Big
Bird", 2020, arXiv:2007.14062, section 2 (internal transformer construction).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.results import AttentionGradients
from refattn.sparse.common import Ints, Lists, attend, attend_vjp, check_positions, shared, strips


def _check(q: Any, k: Any, v: Any, *, indices: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="global_attention", **arguments)
    check_positions("global_attention", "indices", indices)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, indices: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="global_attention_vjp", **arguments)
    check_positions("global_attention_vjp", "indices", indices)


@dispatched(_check)
def global_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    indices: Sequence[int],
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the global tokens only; a query that is one of them attends to every key.

    .. math::
        o_i = \sum_{j \in G} p_{ij} v_j \ \text{ for } i + T_k - T_q \notin G, \qquad
        o_i = \sum_j p_{ij} v_j \ \text{ for } i + T_k - T_q \in G

    Equal to ``attention(q, k, v, mask=masks.global_tokens(indices))``, in time and memory that grow with
    (Tq + Tk) times the number of global tokens.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    indices : sequence of int
        The positions of the global tokens, in any order; those of Tk and beyond name nobody. Query i stands at the
        position i + Tk - Tq.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for positions that are no integers or negative.

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.array([[0.0], [3.0], [6.0]])
    >>> global_attention(q, k, v, indices=[0])  # token 0 takes the mean of all, the others see token 0
    array([[3.],
           [0.],
           [0.]])
    """
    lists = global_lists(q.shape[-2], k.shape[-2], indices)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def global_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    indices: Sequence[int],
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `global_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, indices, scale, softcap, sinks
        As given to `global_attention`.
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
        As `global_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((2, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> global_attention_vjp(np.ones((2, 1)), q, k, v, indices=[0]).dv  # query 0 sees both, query 1 sees key 0
    array([[1.5],
           [0.5]])
    """
    lists = global_lists(q.shape[-2], k.shape[-2], indices)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def global_lists(Tq: int, Tk: int, indices: Sequence[int]) -> Iterator[Lists]:
    """Yield two lists that are shared: the global keys for every other query, all keys for the global ones."""
    keys, rows, others = global_and_others(Tq, Tk, indices)
    for i in strips(others, len(keys)):
        yield shared(i, keys, np.ones((1, len(keys)), bool))
    for i in strips(rows, Tk):
        yield shared(i, np.arange(Tk), np.ones((1, Tk), bool))


def global_and_others(Tq: int, Tk: int, indices: Sequence[int]) -> tuple[Ints, Ints, Ints]:
    """Return the keys that are global, the queries that are, and the queries that are not."""
    keys = np.unique(np.asarray(indices, np.int64))
    keys = keys[keys < Tk]
    is_global = np.isin(np.arange(Tq) + Tk - Tq, keys)
    return keys, np.flatnonzero(is_global), np.flatnonzero(~is_global)
