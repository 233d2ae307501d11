"""Attention between blocks of queries and blocks of keys, as an array says.

Gray, Radford and Kingma, "GPU Kernels for Block-Sparse Weights", 2017, OpenAI; Dao et al., "FlashAttention", 2022,
arXiv:2205.14135, section 3.3 (block-sparse FlashAttention).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_broadcasts, check_count
from refattn.dense.common import Bools, check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, shared


def _check_pattern(operation: str, q: Any, k: Any, layout: Any, block_size: Any) -> None:
    check_count(operation, "block_size", block_size)
    if str(getattr(layout, "dtype", None)) != "bool":
        got = getattr(layout, "dtype", type(layout).__name__)
        raise TypeError(f"{operation}: layout is {got}; wanted a bool array, True = may look")
    blocks = tuple(-(-T // block_size) for T in (q.shape[-2], k.shape[-2]))
    if layout.shape[-2:] != blocks:
        raise ValueError(
            f"{operation}: layout has shape {layout.shape}; wanted (..., {blocks[0]}, {blocks[1]}), the blocks of "
            f"{block_size} of {q.shape[-2]} queries and {k.shape[-2]} keys"
        )
    check_broadcasts(operation, "layout", layout.shape, (*q.shape[:-2], *blocks), "(..., H, blocks, blocks)")


def _check(q: Any, k: Any, v: Any, *, layout: Any, block_size: Any, **arguments: Any) -> None:
    operation = "block_sparse_attention"
    check_attention(q, k, v, operation=operation, **arguments)
    _check_pattern(operation, q, k, layout, block_size)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, *, layout: Any, block_size: Any, **arguments: Any) -> None:
    operation = "block_sparse_attention_vjp"
    check_attention_vjp(do, q, k, v, operation=operation, **arguments)
    _check_pattern(operation, q, k, layout, block_size)


@dispatched(_check)
def block_sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    layout: Bools,
    block_size: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the blocks of keys that `layout` gives to the query's block.

    .. math::
        o_i = \sum_{j : \text{layout}[\lfloor i / b \rfloor, \lfloor j / b \rfloor]} p_{ij} v_j

    with b = block_size. Equal to ``attention(q, k, v, mask=masks.block(layout, block_size))``, in time and memory that
    grow with the blocks that are True. Keys are gathered a block at a time, and all queries of a block share them: the
    products are products of matrices.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    layout : bool array, (..., ceil(Tq / block_size), ceil(Tk / block_size))
        True where a block of queries may look at a block of keys; leading axes broadcast to (..., H).
    block_size : int
        Queries and keys per block, counted from the first of each; the last block may be short.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for a layout of another dtype or shape.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.array([[0.0], [2.0], [4.0], [10.0]])
    >>> block_sparse_attention(q, k, v, layout=np.array([[True, False], [True, True]]), block_size=2)
    array([[1.],
           [1.],
           [4.],
           [4.]])
    """
    lists = block_lists(q.shape[-2], k.shape[-2], layout, block_size)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def block_sparse_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    layout: Bools,
    block_size: int,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `block_sparse_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, layout, block_size, scale, softcap, sinks
        As given to `block_sparse_attention`.
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
        As `block_sparse_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((4, 1))
    >>> layout = np.array([[True, False], [True, True]])
    >>> block_sparse_attention_vjp(np.ones((4, 1)), q, k, v, layout=layout, block_size=2).dv.T
    array([[1.5, 1.5, 0.5, 0.5]])
    """
    lists = block_lists(q.shape[-2], k.shape[-2], layout, block_size)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def block_lists(Tq: int, Tk: int, layout: Bools, block_size: int) -> Iterator[Lists]:
    """Yield one list for the queries of each block: the keys of the blocks in its row of the layout."""
    inside = np.arange(block_size)
    for a in range(layout.shape[-2]):
        row = layout[..., a, :]
        most = int(row.sum(axis=-1).max(initial=0))
        seen = np.argsort(~row, axis=-1, kind="stable")[..., :most]  # (*lead, most): the blocks it sees come first
        keys = seen[..., None] * block_size + inside  # (*lead, most, block_size)
        visible = np.take_along_axis(row, seen, axis=-1)[..., None] & (keys < Tk)
        flat = (*row.shape[:-1], most * block_size)
        rows = np.arange(a * block_size, min((a + 1) * block_size, Tq))
        yield shared(rows, keys.reshape(flat), visible.reshape(flat)[..., None, :])
