"""Masks are values: ``causal() & (window(255, 0) | global_tokens([0]))`` says which query may look at which key.

A mask knows nothing about data. It answers questions about a problem of Tq queries and Tk keys: `Mask.dense`,
`Mask.pairs`, `Mask.blocks` (what the fast backends consume), `Mask.to_scipy`, `Mask.picture`.
Read `algebra` first, then `positions` and `contents`.
"""

from refattn.masks.algebra import Mask
from refattn.masks.blocks import EMPTY, FULL, PARTIAL, Blocks
from refattn.masks.contents import as_mask, document, from_array, from_function, global_tokens, padding
from refattn.masks.parse import parse
from refattn.masks.positions import causal, window

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Blocks",
    "Mask",
    "as_mask",
    "causal",
    "document",
    "from_array",
    "from_function",
    "global_tokens",
    "padding",
    "parse",
    "window",
]
