"""Causal attention to the last few keys, and to every stride-th key before them.

Child, Gray, Radford and Sutskever, "Generating Long Sequences with Sparse Transformers", 2019, arXiv:1904.10509,
section 4.2 (strided), with both of its sets of keys seen by every head.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.masks.given import within
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, one_each, strips


def _check_pattern(operation: str, local: Any, stride: Any) -> None:
    check_count(operation, "local", local)
    check_count(operation, "stride", stride)


def _check(q: Any, k: Any, v: Any, *, local: Any, stride: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="strided_attention", **arguments)
    _check_pattern("strided_attention", local, stride)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, local: Any, stride: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="strided_attention_vjp", **arguments)
    _check_pattern("strided_attention_vjp", local, stride)


@dispatched(_check)
def strided_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    local: int,
    stride: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the last `local` keys, and to the earlier ones whose distance is a multiple of `stride`.

    .. math::
        o_i = \sum_{d \in \mathcal{D}} p_{ij} v_j, \quad j = i + T_k - T_q - d, \quad
        \mathcal{D} = \{ d \ge 0 : d < \text{local} \ \text{or} \ d \bmod \text{stride} = 0 \}

    Equal to ``attention(q, k, v, mask=masks.strided(local, stride))``, in time and memory that grow with
    Tq (local + Tk / stride): least where local and stride are about the square root of Tk.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    local : int
        How many of the latest keys, the query's own position included.
    stride : int
        From one of the earlier keys to the next.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for sizes below 1.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.array([[0.0], [2.0], [4.0], [9.0]])
    >>> strided_attention(q, k, v, local=1, stride=3)  # token 3 sees itself and token 0, the others themselves
    array([[0. ],
           [2. ],
           [4. ],
           [4.5]])
    """
    lists = strided_lists(q.shape[-2], k.shape[-2], local, stride)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def strided_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    local: int,
    stride: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `strided_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, local, stride, scale, softcap, sinks
        As given to `strided_attention`.
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
        As `strided_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 1))
    >>> strided_attention_vjp(np.ones((3, 1)), q, k, v, local=1, stride=2).dv  # token 2 sees itself and token 0
    array([[1.5],
           [1. ],
           [0.5]])
    """
    lists = strided_lists(q.shape[-2], k.shape[-2], local, stride)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def strided_lists(Tq: int, Tk: int, local: int, stride: int) -> Iterator[Lists]:
    """Yield the keys of each query: the same distances back from every position, as far as there are keys."""
    back = np.arange(Tk)
    back = back[(back < local) | (back % within(stride, Tq, Tk) == 0)]
    for i in strips(np.arange(Tq), len(back)):
        keys = i[:, None] + Tk - Tq - back  # (n, local + Tk / stride)
        yield one_each(i, keys, keys >= 0)
