"""How many pairs of a query and a key are computed: from the mask itself, never from N² or N²/2.

A kernel that works in tiles computes whole tiles; what it computes beyond the visible pairs is its waste.
"""

from typing import Any

import numpy as np

from refattn.arrays import check_count
from refattn.masks import EMPTY, Mask, as_mask, causal, window


def pairs(mask: Any, Tq: int, Tk: int) -> int:
    """Return how many query-key pairs a mask shows, exactly.

    Parameters
    ----------
    mask : Mask, bool array (..., Tq, Tk), or None
        None shows all. A mask with leading axes counts all of its patterns.
    Tq, Tk : int
        Queries and keys, 0 or more.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        For lengths that are none, and for a mask that does not describe them.

    Examples
    --------
    >>> from refattn import masks
    >>> pairs(None, 3, 4), pairs(masks.causal(), 4, 4), pairs(masks.causal(), 1, 4)
    (12, 10, 4)
    """
    _check("pairs", Tq, Tk)
    found = _given(mask)
    return Tq * Tk if found is None else int(found.pairs(Tq, Tk))


def tile_pairs(mask: Any, Tq: int, Tk: int, block_q: int = 64, block_k: int = 64) -> int:
    """Return how many pairs lie in tiles in which something is visible: what a tiled kernel computes.

    Parameters
    ----------
    mask : Mask, bool array, or None
        As for `pairs`.
    Tq, Tk : int
        Queries and keys.
    block_q, block_k : int
        Height and width of a tile; the last ones end where the problem does.

    Returns
    -------
    int
        At least ``pairs(mask, Tq, Tk)``.

    Raises
    ------
    TypeError, ValueError
        As `pairs`, and for tiles that are none.

    Examples
    --------
    >>> from refattn import masks
    >>> tile_pairs(masks.causal(), 4, 4, 2, 2)  # three tiles of four
    12
    """
    _check("tile_pairs", Tq, Tk)
    check_count("tile_pairs", "block_q", block_q)
    check_count("tile_pairs", "block_k", block_k)
    found = _given(mask)
    if found is None:
        return Tq * Tk
    heights = np.minimum(block_q, Tq - np.arange(-(-Tq // block_q)) * block_q)
    widths = np.minimum(block_k, Tk - np.arange(-(-Tk // block_k)) * block_k)
    kinds = found.blocks(Tq, Tk, block_q, block_k).kinds()
    return int(((kinds != EMPTY) * heights[:, None] * widths).sum())


def causal_window(size: int) -> Mask:
    """Return the mask of a token that sees itself and the size - 1 before it.

    Examples
    --------
    >>> pairs(causal_window(2), 4, 4)
    7
    """
    check_count("causal_window", "size", size)
    return causal() & window(size - 1, 0)


def _given(mask: Any) -> Mask | None:
    return as_mask(np.asarray(mask) if isinstance(mask, list) else mask)


def _check(operation: str, Tq: int, Tk: int) -> None:
    check_count(operation, "Tq", Tq, least=0)
    check_count(operation, "Tk", Tk, least=0)
