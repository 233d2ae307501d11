"""Attention to every step-th neighbour of each query: a window with gaps, which reaches further in as many keys.

Beltagy, Peters and Cohan, "Longformer", 2020, arXiv:2004.05150, section 3.1 (dilated sliding window).
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


def _check_pattern(operation: str, window: Any, step: Any) -> None:
    check_count(operation, "window", window, least=0)
    check_count(operation, "step", step)


def _check(q: Any, k: Any, v: Any, *, window: Any, step: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="dilated_attention", **arguments)
    _check_pattern("dilated_attention", window, step)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, window: Any, step: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="dilated_attention_vjp", **arguments)
    _check_pattern("dilated_attention_vjp", window, step)


@dispatched(_check)
def dilated_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    step: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to every `step`-th key around each query, `window` of them on each side.

    .. math::
        o_i = \sum_{m=-\text{window}}^{\text{window}} p_{ij} v_j, \quad j = i + T_k - T_q + m \cdot \text{step}

    Equal to ``attention(q, k, v, mask=masks.dilated(window, step))``, in time and memory that grow with
    Tq (2 window + 1).

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    window : int
        How many keys on each side of the query's own position.
    step : int
        From one key to the next; 1 leaves no gaps.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for a negative window or a step below 1.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.array([[0.0], [2.0], [4.0], [8.0]])
    >>> dilated_attention(q, k, v, window=1, step=2)  # tokens 0 and 2 see each other, tokens 1 and 3 do
    array([[2.],
           [5.],
           [2.],
           [5.]])
    """
    lists = dilated_lists(q.shape[-2], k.shape[-2], window, step)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def dilated_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    step: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `dilated_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, window, step, scale, softcap, sinks
        As given to `dilated_attention`.
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
        As `dilated_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 1))
    >>> dilated_attention_vjp(np.ones((3, 1)), q, k, v, window=1, step=2).dv  # tokens 0 and 2 share, 1 is alone
    array([[1.],
           [1.],
           [1.]])
    """
    lists = dilated_lists(q.shape[-2], k.shape[-2], window, step)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def dilated_lists(Tq: int, Tk: int, window: int, step: int) -> Iterator[Lists]:
    """Yield the keys j = i + Tk - Tq + m step, -window <= m <= window, of each query."""
    step = within(step, Tq, Tk)
    window = min(window, (Tq + Tk) // step)  # further out there are no keys
    distances = step * np.arange(-window, window + 1)
    for i in strips(np.arange(Tq), len(distances)):
        keys = i[:, None] + Tk - Tq + distances  # (n, 2 window + 1)
        yield one_each(i, keys, (keys >= 0) & (keys < Tk))
