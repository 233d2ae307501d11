"""Dilated, strided and fixed attention on the CPU: the tokens are laid out so that a stride becomes a row.

Tokens whose positions leave the same remainder are put side by side. A dilated window is then an ordinary window within
each row, and the strided keys of Child et al. are the earlier tokens of the row; what is local stays a band of the
whole sequence. Work grows with the pairs, and the kernels see nothing but bands.
"""

from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.parts import AS_THEY_ARE, Below, Layout, Part, attend_parts, finish, folded, picked, pull_back_parts


def dilated_attention(
    q: Array, k: Array, v: Array, *, window: int, step: int, return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.dilated_attention`."""
    return finish(q, attend_parts(q, k, v, dilated_parts(q, k, window, step), **o), return_lse)


def dilated_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, window: int, step: int, **o: Any
) -> AttentionGradients:
    """As `refattn.dilated_attention_vjp`."""
    return pull_back_parts(do, q, k, v, dilated_parts(q, k, window, step), **o)


def strided_attention(
    q: Array, k: Array, v: Array, *, local: int, stride: int, return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.strided_attention`."""
    return finish(q, attend_parts(q, k, v, strided_parts(q, k, local, stride), **o), return_lse)


def strided_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, local: int, stride: int, **o: Any
) -> AttentionGradients:
    """As `refattn.strided_attention_vjp`."""
    return pull_back_parts(do, q, k, v, strided_parts(q, k, local, stride), **o)


def fixed_attention(
    q: Array, k: Array, v: Array, *, block: int, summary: int, return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.fixed_attention`."""
    return finish(q, attend_parts(q, k, v, fixed_parts(q, k, block, summary), **o), return_lse)


def fixed_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, block: int, summary: int, **o: Any
) -> AttentionGradients:
    """As `refattn.fixed_attention_vjp`."""
    return pull_back_parts(do, q, k, v, fixed_parts(q, k, block, summary), **o)


def _rows(Tq: int, Tk: int, step: int) -> tuple[Layout, Layout, int, Array]:
    """Return the layouts of queries and keys by remainder, the place of the first query in its row, and keys per row.

    Both kinds of rows end at the same place, so the alignment to the bottom right is that of the tokens.
    """
    length, behind = -(-Tk // step), Tk - Tq
    start = behind // step
    count = np.maximum(0, -(-(Tk - np.arange(step)) // step))  # (step,)
    return folded(Tq, step, start * step - behind, length - start), folded(Tk, step, 0, length), start, count


def dilated_parts(q: Array, k: Array, window: int, step: int) -> list[Part]:
    """Return the window of each row."""
    queries, keys, _, count = _rows(q.shape[-2], k.shape[-2], step)
    return [Part(queries, keys, masks.window(window, window) & masks.padding(count))]


def strided_parts(q: Array, k: Array, local: int, stride: int) -> list[Part]:
    """Return what is local, and the strided keys that are not."""
    queries, keys, start, _ = _rows(q.shape[-2], k.shape[-2], stride)
    return [
        Part(AS_THEY_ARE, AS_THEY_ARE, masks.causal() & masks.window(local - 1, 0)),
        Part(queries, keys, masks.causal(start - -(-local // stride))),  # the strided keys that are not local
    ]


def fixed_parts(q: Array, k: Array, block: int, summary: int) -> list[Part]:
    """Return the own block, and the summaries of those before."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    places = np.flatnonzero(np.arange(Tk) % block >= block - summary)
    before = np.maximum(0, (np.arange(Tq) + Tk - Tq) // block) * summary  # summaries of earlier blocks
    return [
        Part(AS_THEY_ARE, AS_THEY_ARE, masks.causal() & masks.chunked(block)),
        Part(AS_THEY_ARE, picked(Tk, places), Below(before)),
    ]
