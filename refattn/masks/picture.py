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
    for share in mask.density(Tq, Tk, step, step).reshape(math.prod(mask.lead), -(-Tq // step), -(-Tk // step)):
        shade = np.ceil(share * (len(SHADES) - 2)).astype(int)  # any visible pair shows
        shade[share == 1] = len(SHADES) - 1
        pictures.append("\n".join("".join(SHADES[s] for s in row) for row in shade))
    return "\n\n".join(pictures)
