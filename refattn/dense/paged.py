"""Attention to keys and values that lie scattered over the pages of a pool, as an operating system keeps memory.

Kwon et al., "PagedAttention", 2023, arXiv:2309.06180, section 4.1. A table lists the pages of each sequence; key j of
sequence b is slot j % page_size of page page_table[b, j // page_size].
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import check_attention
from refattn.dense.varlen import Ints, check_heads, check_integers, check_mask_of_each
from refattn.dispatch import dispatched
from refattn.masks import Mask


def _check(
    q: Any,
    k_pages: Any,
    v_pages: Any,
    page_table: Any,
    seqlens_k: Any,
    *,
    mask: Any = None,
    scale: Any = None,
    softcap: Any = None,
    sinks: Any = None,
    return_lse: Any = False,
) -> None:
    operation = "paged_attention"
    check_floats(operation, 0, q=q, k_pages=k_pages, v_pages=v_pages)
    layout = {"q": "(B, H, Tq, D)", "k_pages": "(n_pages, page_size, Hk, D)", "v_pages": "(n_pages, page_size, Hk, Dv)"}
    for name, x in (("q", q), ("k_pages", k_pages), ("v_pages", v_pages)):
        if x.ndim != 4:
            raise ValueError(f"{operation}: {name} has shape {x.shape}; wanted {layout[name]}")
    if k_pages.shape[:2] != v_pages.shape[:2]:
        raise ValueError(f"{operation}: k_pages {k_pages.shape} and v_pages {v_pages.shape} are not the same pages")
    if k_pages.shape[1] == 0:
        raise ValueError(f"{operation}: k_pages has shape {k_pages.shape}; wanted pages of one slot at least")
    check_heads(operation, q, k_pages, v_pages, q.shape[1], "k_pages and v_pages")
    _check_table(operation, page_table, seqlens_k, len(q), *k_pages.shape[:2])
    check_mask_of_each(operation, mask, [(q.shape[2], int(length)) for length in seqlens_k])
    of_no_sequence = (q[:0], k_pages[:0].swapaxes(1, 2), v_pages[:0].swapaxes(1, 2))
    check_attention(*of_no_sequence, scale=scale, softcap=softcap, sinks=sinks, operation=operation)


def _check_table(operation: str, page_table: Any, seqlens_k: Any, B: int, n_pages: int, page_size: int) -> None:
    check_integers(operation, "page_table", page_table, 2, "(B, pages per sequence)")
    check_integers(operation, "seqlens_k", seqlens_k, 1, "(B,)")
    width = page_table.shape[1]
    check_shape(operation, "page_table", page_table, (B, width), "(B, pages per sequence)")
    check_shape(operation, "seqlens_k", seqlens_k, (B,), "(B,)")
    lengths = np.asarray(seqlens_k).astype(np.int64)
    for b in np.flatnonzero((lengths < 0) | (lengths > width * page_size)):
        wanted = f"0 to {width * page_size}, for which page_table has room ({width} pages of {page_size})"
        raise ValueError(f"{operation}: seqlens_k[{b}] is {lengths[b]}; wanted {wanted}")
    used = np.arange(width) < pages_for(lengths, page_size)[:, None]
    for b, n in np.argwhere(used & ((page_table < 0) | (page_table >= n_pages))):
        raise ValueError(f"{operation}: page_table[{b}, {n}] is {page_table[b, n]}; wanted one of {n_pages} pages")


def pages_for(lengths: Any, page_size: int) -> Any:
    """Return how many pages hold a length, or each of several; the last page may be partly filled."""
    return -(-lengths // page_size)


@dispatched(_check)
def paged_attention(
    q: Array,
    k_pages: Array,
    v_pages: Array,
    page_table: Ints,
    seqlens_k: Ints,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to keys and values that are found by a table of pages.

    .. math::
        k_{bj} = \text{k\_pages}[\text{page\_table}[b, \lfloor j / P \rfloor],\; j \bmod P], \quad
        j < \text{seqlens\_k}[b]

    with P slots to a page, the same for v, and `attention` on what is found.

    Parameters
    ----------
    q : array, (B, H, Tq, D)
        The queries, float16, bfloat16, float32 or float64. With the mask ``causal()`` they are the last Tq tokens of
        each sequence: one token that is decoded, or a chunk of a prompt.
    k_pages, v_pages : array, (n_pages, page_size, Hk, D), (n_pages, page_size, Hk, Dv)
        The pool of all pages, in the dtype of q. What no sequence uses influences nothing, NaN included.
    page_table : int array, (B, n)
        The pages of each sequence in the order of its tokens. Two sequences may share a page. Entries beyond those that
        the length of a sequence needs are not looked at, and may be anything, such as -1.
    seqlens_k : int array, (B,)
        How many keys each sequence has, those of the queries' own tokens included.
    mask : Mask, optional
        A mask value without leading axes; it is asked for each sequence with (Tq, seqlens_k[b]).
    scale, softcap, sinks
        As `attention`.
    return_lse : bool
        Return (o, lse) instead of o.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o : array, (B, H, Tq, Dv)
        In the dtype of q. A query that sees no key gets 0.
    lse : array, (B, H, Tq)
        As `attention`.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, pages that are not there and lengths for which the table has no room,
        naming the argument.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> k_pages = np.zeros((3, 2, 1, 4))  # three pages of two slots
    >>> v_pages = np.array([[5.0, np.nan], [np.nan, np.nan], [1.0, 3.0]]).reshape(3, 2, 1, 1)
    >>> table, lengths = np.array([[2, 0], [2, -1]]), np.array([3, 2])
    >>> paged_attention(np.zeros((2, 1, 1, 4)), k_pages, v_pages, table, lengths).ravel()
    array([3., 2.])
    """
    compute, (B, H, Tq, _) = compute_dtype(q.dtype), q.shape
    o, lse = np.zeros((B, H, Tq, v_pages.shape[-1]), q.dtype), np.full((B, H, Tq), -np.inf, compute)
    for b, length in enumerate(int(length) for length in seqlens_k):
        page, slot = np.divmod(np.arange(length), k_pages.shape[1])
        k, v = (x[page_table[b, page], slot].swapaxes(0, 1) for x in (k_pages, v_pages))  # (Hk, Tk, D), (Hk, Tk, Dv)
        o[b], lse[b] = attention(q[b], k, v, mask=mask, scale=scale, softcap=softcap, sinks=sinks, return_lse=True)
    return (o, lse) if return_lse else o
