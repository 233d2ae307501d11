"""Masks are values: ``causal() & (window(255, 0) | global_tokens([0]))`` says which query may look at which key.

A mask knows nothing about data. It answers questions about a problem of Tq queries and Tk keys: `Mask.dense`,
`Mask.pairs`, `Mask.blocks` (what the fast backends consume), `Mask.density`, `Mask.to_scipy`, `Mask.picture`,
`Mask.svg`. Read `algebra` first, then `positions`, `steps` and `contents`.
"""

from refattn.masks.algebra import Mask
from refattn.masks.blocks import EMPTY, FULL, PARTIAL, Blocks
from refattn.masks.contents import document, global_tokens, padding
from refattn.masks.drawn import random
from refattn.masks.free import as_mask, from_array, from_function
from refattn.masks.parse import parse
from refattn.masks.positions import causal, chunked, prefix_lm, window
from refattn.masks.steps import dilated, fixed, strided
from refattn.masks.tiled import bigbird, block, longformer, random_blocks

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Blocks",
    "Mask",
    "as_mask",
    "bigbird",
    "block",
    "causal",
    "chunked",
    "dilated",
    "document",
    "fixed",
    "from_array",
    "from_function",
    "global_tokens",
    "longformer",
    "padding",
    "parse",
    "prefix_lm",
    "random",
    "random_blocks",
    "strided",
    "window",
]
