"""Attention by blocks: a window of blocks, a few global ones, and a few that are drawn at random.

Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020, arXiv:2007.14062, section 2 and appendix D (the
three kinds of blocks, and why a pattern of blocks: gathered keys are then read in runs, and multiplied as matrices).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp, heads_of
from refattn.dispatch import dispatched
from refattn.masks.drawn import Random
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, check_flag, check_positions, shared


def _check_pattern(
    operation: str, block_size: Any, n_window: Any, global_blocks: Any, n_random: Any, seed: Any, per_head: Any
) -> None:
    check_count(operation, "block_size", block_size)
    check_count(operation, "n_window", n_window)
    if n_window % 2 == 0:
        raise ValueError(f"{operation}: n_window is {n_window}; wanted an odd number, the block itself in the middle")
    check_positions(operation, "global_blocks", global_blocks, least=None)
    check_count(operation, "n_random", n_random, least=0)
    check_count(operation, "seed", seed, least=0)
    check_flag(operation, "per_head", per_head)


def _check(
    q: Any,
    k: Any,
    v: Any,
    *,
    block_size: Any,
    n_window: Any = 3,
    global_blocks: Any = (0, -1),
    n_random: Any = 3,
    seed: Any = 0,
    per_head: Any = False,
    **arguments: Any,
) -> None:
    check_attention(q, k, v, operation="bigbird_attention", **arguments)
    _check_pattern("bigbird_attention", block_size, n_window, global_blocks, n_random, seed, per_head)


def _check_vjp(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    block_size: Any,
    n_window: Any = 3,
    global_blocks: Any = (0, -1),
    n_random: Any = 3,
    seed: Any = 0,
    per_head: Any = False,
    **arguments: Any,
) -> None:
    check_attention_vjp(do, q, k, v, operation="bigbird_attention_vjp", **arguments)
    _check_pattern("bigbird_attention_vjp", block_size, n_window, global_blocks, n_random, seed, per_head)


@dispatched(_check)
def bigbird_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    block_size: int,
    n_window: int = 3,
    global_blocks: Sequence[int] = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to the blocks around the query's own, to global blocks, and to blocks drawn at random.

    .. math::
        o_i = \sum_{j : \lfloor j / b \rfloor \in W_a \cup G \cup R_a} p_{ij} v_j, \quad
        a = \lfloor (i + T_k - T_q) / b \rfloor

    with b = block_size, W_a the n_window blocks around block a, G the global blocks, R_a those that it drew; a query of
    a global block attends to every key. Equal to ``attention(q, k, v, mask=masks.bigbird(...))`` with the same
    arguments (``heads=H`` with `per_head`), in time and memory that grow with
    Tq block_size (n_window + n_random + len(global_blocks)).

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    block_size : int
        Positions per block, counted from position 0.
    n_window : int
        Blocks in the window, an odd number.
    global_blocks : sequence of int
        Blocks that see all and are seen by all; negative ones count from the last block of keys.
    n_random : int
        Blocks that each block draws of all there are.
    seed : int
        What the draw depends on, besides the number of blocks.
    per_head : bool
        Draw for each query head anew; one draw serves all heads otherwise.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for sizes below 1, an even n_window, or global_blocks that are no integers.

    Examples
    --------
    >>> q, k, v = np.zeros((12, 2)), np.zeros((12, 2)), np.arange(12.0)[:, None]
    >>> o = bigbird_attention(q, k, v, block_size=2, n_window=1, global_blocks=[0], n_random=0)
    >>> o[0], o[11]  # token 0 is global and takes the mean of all; token 11 sees 0, 1, 10 and 11
    (array([5.5]), array([5.5]))
    """
    lists = bigbird_lists(q, k, block_size, n_window, global_blocks, n_random, seed, per_head)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def bigbird_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    block_size: int,
    n_window: int = 3,
    global_blocks: Sequence[int] = (0, -1),
    n_random: int = 3,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `bigbird_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, block_size, n_window, global_blocks, n_random, seed, per_head, scale, softcap, sinks
        As given to `bigbird_attention`.
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
        As `bigbird_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((4, 1))
    >>> g = bigbird_attention_vjp(
    ...     np.ones((4, 1)), q, k, v, block_size=2, n_window=1, global_blocks=[], n_random=0
    ... )
    >>> g.dv.T  # two blocks, each by itself
    array([[1., 1., 1., 1.]])
    """
    lists = bigbird_lists(q, k, block_size, n_window, global_blocks, n_random, seed, per_head)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def bigbird_lists(
    q: Array,
    k: Array,
    block_size: int,
    n_window: int,
    global_blocks: Sequence[int],
    n_random: int,
    seed: int,
    per_head: bool,
) -> Iterator[Lists]:
    """Yield one list for the queries of each block: the keys of the blocks that it sees."""
    b, Tq, Tk, offset = block_size, q.shape[-2], k.shape[-2], k.shape[-2] - q.shape[-2]
    nk, first = -(-Tk // b), offset // b  # blocks of keys; the block of query 0
    given = np.asarray(global_blocks, np.int64)
    G = np.where(given < 0, given + nk, given)
    G = G[np.isin(G, np.arange(nk))]
    R = Random(n_random, seed, heads_of(q) if per_head else None).keys(nk - first, nk)  # (blocks, n), or (H, blocks, n)
    half = min(n_window // 2, Tq + Tk)
    for a in range(first, nk):
        i = np.arange(max(a * b - offset, 0), min((a + 1) * b - offset, Tq))
        if a in G:
            yield shared(i, np.arange(Tk), np.ones((1, Tk), bool))
            continue
        W = np.arange(max(a - half, 0), min(a + half + 1, nk))
        drawn = R[..., a - first, :]
        always = np.concatenate([W, G])
        seen = np.concatenate([np.broadcast_to(always, (*drawn.shape[:-1], len(always))), drawn], axis=-1)
        seen = np.sort(seen, axis=-1)
        again = np.zeros(seen.shape, bool)
        again[..., 1:] = seen[..., 1:] == seen[..., :-1]  # a block counts once
        keys = seen[..., None] * b + np.arange(b)  # (..., blocks, b)
        visible = (keys < Tk) & ~again[..., None]
        flat = (*seen.shape[:-1], seen.shape[-1] * b)
        yield shared(i, keys.reshape(flat), visible.reshape(flat)[..., None, :])
