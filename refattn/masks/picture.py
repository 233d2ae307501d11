"""Masks drawn in characters: a row per query, a column per key."""

import math
from typing import TYPE_CHECKING

import numpy as np

from refattn.arrays import check_count

if TYPE_CHECKING:
    from refattn.masks.algebra import Mask

SHADES = "·░▒▓█"


def draw(mask: "Mask", Tq: int, Tk: int, width: int = 64) -> str:
    """Draw a mask: █ visible, · hidden; where one character stands for several pairs, ░▒▓ say how many of them.

    Parameters
    ----------
    mask : Mask
        With leading axes, the pictures follow each other, a blank line between them.
    Tq, Tk : int
        Queries and keys.
    width : int
        The most columns (and rows) to draw.
    """
    check_count("picture", "width", width)
    step = max(1, -(-max(Tq, Tk) // width))
    pictures = []
    for share in _shares(mask, Tq, Tk, step):
        shade = np.ceil(share * (len(SHADES) - 2)).astype(int)  # any visible pair shows
        shade[share == 1] = len(SHADES) - 1
        pictures.append("\n".join("".join(SHADES[s] for s in row) for row in shade))
    return "\n\n".join(pictures)


def _shares(mask: "Mask", Tq: int, Tk: int, step: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Return the visible share of each step x step square, (lead, rows, columns)."""
    blocks = mask.blocks(Tq, Tk, step, step)
    heights, widths = blocks._extents()
    seen = (heights * widths).astype(float)
    partial = blocks.partial >= 0
    seen[partial] = np.bitwise_count(blocks.bits[blocks.partial[partial]]).sum(axis=(-2, -1))
    shares = np.zeros((len(blocks.rows) - 1, blocks.shape[1]))
    shares[blocks._row_of_tile(), blocks.columns] = seen / (heights * widths)
    return shares.reshape(math.prod(blocks.lead), *blocks.shape)
