"""Attention under any mask, computed from the pairs that the mask shows and from no others.

The pattern as compressed sparse rows: Child, Gray, Radford and Sutskever, "Generating Long Sequences with Sparse
Transformers", 2019, arXiv:1904.10509, eq. 2 and 3 (the sets S_i). Its two products are known as SDDMM and SpMM: Gale,
Zaharia, Young and Elsen, 2020, arXiv:2006.10901.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import Bools, check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.masks import Mask, from_array
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, one_each, strips


def _check_mask(operation: str, mask: Any) -> None:
    if mask is None:
        raise TypeError(f"{operation}: mask is None; wanted a mask value or a bool array, True = may look")


def _check(q: Any, k: Any, v: Any, mask: Any, **arguments: Any) -> None:
    check_attention(q, k, v, mask=mask, operation="sparse_attention", **arguments)
    _check_mask("sparse_attention", mask)


def _check_vjp(do: Any, q: Any, k: Any, v: Any, mask: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, mask=mask, operation="sparse_attention_vjp", **arguments)
    _check_mask("sparse_attention_vjp", mask)


@dispatched(_check)
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Bools,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the keys that `mask` shows, and touch no others.

    .. math::
        o_i = \sum_{j \in S_i} p_{ij} v_j, \quad S_i = \{ j : \text{query } i \text{ may look at key } j \}

    Equal to ``attention(q, k, v, mask=mask)``. Time and memory grow with ``mask.pairs(Tq, Tk)``: the keys of S_i are
    listed, and only those are gathered.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    mask : Mask or bool array that broadcasts to (..., H, Tq, Tk)
        Which pairs there are; see `refattn.masks`.
    bias, scale, softcap, sinks, dropout_mask, dropout_p, return_lse, backend
        As `attention`. Of `bias` and `dropout_mask` only the entries of visible pairs are read.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and without a mask.

    Examples
    --------
    >>> from refattn import masks
    >>> q, k, v = np.zeros((2, 2)), np.zeros((3, 2)), np.array([[0.0], [2.0], [6.0]])
    >>> sparse_attention(q, k, v, masks.causal())  # the mean of two values, and of three
    array([[1.        ],
           [2.66666667]])
    """
    lists = mask_lists(mask, q.shape[-2], k.shape[-2])
    return attend(
        q,
        k,
        v,
        lists,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_mask=dropout_mask,
        dropout_p=dropout_p,
        return_lse=return_lse,
    )


@dispatched(_check_vjp)
def sparse_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Bools,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `sparse_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, mask, bias, scale, softcap, sinks, dropout_mask, dropout_p
        As given to `sparse_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        As `attention_vjp`. dbias has the shape of bias; it is 0 where no visible pair reads bias.

    Raises
    ------
    TypeError, ValueError
        As `sparse_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> from refattn import masks
    >>> q, k, v = np.zeros((2, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> sparse_attention_vjp(np.ones((2, 1)), q, k, v, masks.causal()).dv  # query 0 sees key 0, query 1 both
    array([[1.5],
           [0.5]])
    """
    lists = mask_lists(mask, q.shape[-2], k.shape[-2])
    return attend_vjp(
        do,
        q,
        k,
        v,
        lists,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_mask=dropout_mask,
        dropout_p=dropout_p,
        dlse=dlse,
    )


def mask_lists(mask: Mask | Bools, Tq: int, Tk: int, block: int = 64) -> Iterator[Lists]:
    """Yield the keys of each query as compressed sparse rows have them: indices[start:start + count].

    Queries that see equally many keys come together, so that a list as long as its longest row wastes little.
    """
    pattern = mask if isinstance(mask, Mask) else from_array(mask)
    tiles = pattern.blocks(Tq, Tk, block, block)
    patterns, tall = math.prod(tiles.lead), tiles.shape[0] * block  # one pattern for each place of the leading axes
    csr = replace(tiles, Tq=patterns * tall, lead=()).to_scipy()  # one above the other, each filled up to whole tiles
    starts = csr.indptr[:-1].reshape(*tiles.lead, tall)[..., :Tq]  # (*lead, Tq)
    counts = np.diff(csr.indptr).reshape(*tiles.lead, tall)[..., :Tq]
    longest = counts.max(axis=tuple(range(counts.ndim - 1)), initial=0)  # (Tq,)
    order = np.argsort(longest, kind="stable")
    for few in np.split(order, np.flatnonzero(np.diff(np.frexp(longest[order])[1])) + 1):  # lengths that differ by < 2x
        for i in strips(few, int(longest[few].max(initial=0))):
            place = np.arange(longest[i].max(initial=0))  # (m,)
            visible = place < counts[..., i, None]  # (*lead, n, m)
            entry = np.where(visible, starts[..., i, None] + place, 0)
            yield one_each(i, csr.indices[entry] if visible.any() else entry, visible)
