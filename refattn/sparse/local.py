"""Attention to the neighbours of each query: a window.

Beltagy, Peters and Cohan, "Longformer", 2020, arXiv:2004.05150, section 3.1 (sliding window). Causal, as the layers of
Mistral 7B have it: Jiang et al., 2023, arXiv:2310.06825, section 2.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, one_each, strips


def _check_window(operation: str, left: Any, right: Any) -> None:
    for name, size in (("left", left), ("right", right)):
        if size is not None:
            check_count(operation, name, size, least=0)


def _check(q: Any, k: Any, v: Any, *, left: Any, right: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="local_attention", **arguments)
    _check_window("local_attention", left, right)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, left: Any, right: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="local_attention_vjp", **arguments)
    _check_window("local_attention_vjp", left, right)


@dispatched(_check)
def local_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    left: int | None,
    right: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the keys around each query's own position: `left` before it, itself, and `right` after it.

    .. math::
        o_i = \sum_{j = i + T_k - T_q - \text{left}}^{i + T_k - T_q + \text{right}} p_{ij} v_j

    Equal to ``attention(q, k, v, mask=masks.window(left, right))``, in time and memory that grow with
    Tq (left + 1 + right).

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    left, right : int or None
        How many keys before and after; None for all there are. ``left=255, right=0`` is causal and sees 256 keys.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for a window that is negative.

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.array([[0.0], [2.0], [6.0]])
    >>> local_attention(q, k, v, left=1, right=0)  # equal scores: the mean of the value before and its own
    array([[0.],
           [1.],
           [4.]])
    """
    lists = window_lists(q.shape[-2], k.shape[-2], left, right)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def local_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    left: int | None,
    right: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `local_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, left, right, scale, softcap, sinks
        As given to `local_attention`.
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
        As `local_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((2, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> local_attention_vjp(np.ones((2, 1)), q, k, v, left=1, right=0).dv  # both queries see key 0
    array([[1.5],
           [0.5]])
    """
    lists = window_lists(q.shape[-2], k.shape[-2], left, right)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def window_lists(Tq: int, Tk: int, left: int | None, right: int | None) -> Iterator[Lists]:
    """Yield the keys start <= j < stop of each query."""
    position = np.arange(Tq) + Tk - Tq
    start = np.zeros(Tq, np.int64) if left is None else np.maximum(position - min(left, Tk), 0)
    stop = np.full(Tq, Tk) if right is None else np.minimum(position + 1 + min(right, Tq), Tk)
    for i in strips(np.arange(Tq), int((stop - start).max(initial=0))):
        keys = start[i, None] + np.arange((stop - start)[i].max(initial=0))  # (n, widest)
        yield one_each(i, keys, keys < stop[i, None])
