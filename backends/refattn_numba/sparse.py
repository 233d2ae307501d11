"""Sparse attention on the CPU: patterns made of tiles and bands.

The flash kernels read the tiles of a mask and skip the empty ones (`flash` says how), so windows and blocks are masks.
Chosen tokens are picked out and meet the others as a small dense part (`parts`); drawn keys go through `gather`, and
strides through `strided`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import Array, compute_dtype
from refattn.masks import Mask
from refattn.masks.drawn import Random
from refattn.masks.steps import Dilated, Fixed, Strided
from refattn.results import AttentionGradients, LongformerGradients
from refattn_numba.attention import attention, attention_vjp
from refattn_numba.gather import Lists, attend_lists, lists, pull_back_lists
from refattn_numba.parts import AS_THEY_ARE, Part, attend_parts, finish, picked, pull_back_parts
from refattn_numba.strided import dilated_parts, fixed_parts, strided_parts


def sparse_attention(q: Array, k: Array, v: Array, mask: Any, *, return_lse: bool = False, **options: Any) -> Any:
    """As `refattn.sparse_attention`."""
    if _of_pairs(options):
        return attention(q, k, v, mask=mask, return_lse=return_lse, **options)
    options = {name: options[name] for name in options if name not in PAIRWISE}
    if isinstance(mask, Random):
        return finish(q, attend_lists(q, k, v, _drawn(q, k, mask), **options), return_lse)
    parts = _parts_of(mask, q, k)
    if parts is None:
        return attention(q, k, v, mask=mask, return_lse=return_lse, **options)
    return finish(q, attend_parts(q, k, v, parts, **options), return_lse)


def sparse_attention_vjp(do: Array, q: Array, k: Array, v: Array, mask: Any, **options: Any) -> AttentionGradients:
    """As `refattn.sparse_attention_vjp`."""
    if _of_pairs(options):
        return attention_vjp(do, q, k, v, mask=mask, **options)
    options = {name: options[name] for name in options if name not in PAIRWISE}
    if isinstance(mask, Random):
        return pull_back_lists(do, q, k, v, _drawn(q, k, mask), **options)
    parts = _parts_of(mask, q, k)
    if parts is None:
        return attention_vjp(do, q, k, v, mask=mask, **options)
    return pull_back_parts(do, q, k, v, parts, **options)


PAIRWISE = ("bias", "dropout_mask", "dropout_p")
"""Options that belong to pairs, which only the tiles know in their places."""


def _of_pairs(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("bias", "dropout_mask"))


def _parts_of(mask: Any, q: Array, k: Array) -> list[Part] | None:
    if isinstance(mask, Strided):
        return strided_parts(q, k, mask.local, mask.stride)
    if isinstance(mask, Fixed):
        return fixed_parts(q, k, mask.block, mask.summary)
    if isinstance(mask, Dilated):
        return dilated_parts(q, k, mask.window, mask.step)
    return None


def _drawn(q: Array, k: Array, mask: Random) -> Lists:
    Tq, Tk = q.shape[-2], k.shape[-2]
    return lists(mask.keys(Tq, Tk), 1, np.full(Tq, Tk), q.shape[:-2] if q.ndim > 2 else (1,))


def local_attention(
    q: Array, k: Array, v: Array, *, left: int | None, right: int | None, return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.local_attention`."""
    return attention(q, k, v, mask=masks.window(left, right), return_lse=return_lse, **o)


def local_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, left: int | None, right: int | None, **o: Any
) -> AttentionGradients:
    """As `refattn.local_attention_vjp`."""
    return attention_vjp(do, q, k, v, mask=masks.window(left, right), **o)


def block_sparse_attention(
    q: Array, k: Array, v: Array, *, layout: Array, block_size: int, return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.block_sparse_attention`."""
    return attention(q, k, v, mask=masks.block(layout, block_size), return_lse=return_lse, **o)


def block_sparse_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, layout: Array, block_size: int, **o: Any
) -> AttentionGradients:
    """As `refattn.block_sparse_attention_vjp`."""
    return attention_vjp(do, q, k, v, mask=masks.block(layout, block_size), **o)


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
    return_lse: bool = False,
    **o: Any,
) -> Any:
    """As `refattn.bigbird_attention`."""
    mask = masks.bigbird(block_size, n_window, global_blocks, n_random, seed, _heads(q) if per_head else None)
    return attention(q, k, v, mask=mask, return_lse=return_lse, **o)


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
    **o: Any,
) -> AttentionGradients:
    """As `refattn.bigbird_attention_vjp`."""
    mask = masks.bigbird(block_size, n_window, global_blocks, n_random, seed, _heads(q) if per_head else None)
    return attention_vjp(do, q, k, v, mask=mask, **o)


def random_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    seed: int = 0,
    per_head: bool = False,
    return_lse: bool = False,
    **o: Any,
) -> Any:
    """As `refattn.random_attention`."""
    drawn = _drawn(q, k, Random(n_keys, seed, _heads(q) if per_head else None))
    return finish(q, attend_lists(q, k, v, drawn, **o), return_lse)


def random_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, n_keys: int, seed: int = 0, per_head: bool = False, **o: Any
) -> AttentionGradients:
    """As `refattn.random_attention_vjp`."""
    drawn = _drawn(q, k, Random(n_keys, seed, _heads(q) if per_head else None))
    return pull_back_lists(do, q, k, v, drawn, **o)


def global_attention(
    q: Array, k: Array, v: Array, *, indices: Sequence[int], return_lse: bool = False, **o: Any
) -> Any:
    """As `refattn.global_attention`."""
    return finish(q, attend_parts(q, k, v, _global_parts(q, k, indices), **o), return_lse)


def global_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, *, indices: Sequence[int], **o: Any
) -> AttentionGradients:
    """As `refattn.global_attention_vjp`."""
    return pull_back_parts(do, q, k, v, _global_parts(q, k, indices), **o)


def longformer_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    return_lse: bool = False,
    **o: Any,
) -> Any:
    """As `refattn.longformer_attention`."""
    Tq, Tk, parts = q.shape[-2], k.shape[-2], _window_and_global(q, k, window, global_indices)
    if q_global is None and k_global is None and v_global is None:
        return finish(q, attend_parts(q, k, v, parts, **o), return_lse)
    out, lse = finish(q, attend_parts(q, k, v, parts[:-1], **o), True)
    _, rows, _ = _split(Tq, Tk, global_indices)
    if len(rows):
        own = _of_global(q, k, v, q_global, k_global, v_global, rows, Tk - Tq, global_indices)
        out[..., rows, :], lse[..., rows] = attention(*own, return_lse=True, **o)
    return (out, lse) if return_lse else out


def longformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    dlse: Array | None = None,
    sinks: Array | None = None,
    **o: Any,
) -> LongformerGradients:
    """As `refattn.longformer_attention_vjp`."""
    Tq, Tk, dtype = q.shape[-2], k.shape[-2], compute_dtype(q.dtype)
    _, rows, _ = _split(Tq, Tk, global_indices)
    parts = _window_and_global(q, k, window, global_indices)[:-1]
    given = [None if x is None else x.astype(dtype) for x in (q_global, k_global, v_global)]
    out, wide = q.dtype, [x.astype(dtype) for x in (do, q, k, v)]
    sink = None if sinks is None else sinks.astype(dtype)
    rest = wide[0].copy()
    rest[..., rows, :] = 0  # what comes back to the global rows belongs to their own call
    dlse_rest = None if dlse is None else dlse.copy()
    if dlse_rest is not None:
        dlse_rest[..., rows] = 0
    ordinary = pull_back_parts(rest, *wide[1:], parts, sinks=sink, dlse=dlse_rest, **o)
    own = _of_global(*wide[1:], *given, rows, Tk - Tq, global_indices)
    special = attention_vjp(
        wide[0][..., rows, :], *own, sinks=sink, dlse=None if dlse is None else dlse[..., rows], **o
    )  # fmt: skip
    dq, dk, dv = ordinary.dq, ordinary.dk, ordinary.dv
    named = _named(rows, Tk - Tq, global_indices)
    dq_global = None
    if given[0] is None:
        dq[..., rows, :] = special.dq
    else:
        dq_global = np.zeros_like(given[0])
        dq_global[..., named, :] = special.dq
    found = [dq, dk + special.dk if given[1] is None else dk, dv + special.dv if given[2] is None else dv, dq_global]
    found += [None if x is None else dx for x, dx in ((given[1], special.dk), (given[2], special.dv))]
    dsinks = None if sinks is None else (ordinary.dsinks + special.dsinks).astype(sinks.dtype)
    return LongformerGradients(*(None if x is None else x.astype(out, copy=False) for x in found), dsinks)


def _heads(q: Array) -> int:
    return q.shape[-3] if q.ndim > 2 else 1


def _split(Tq: int, Tk: int, indices: Sequence[int]) -> tuple[Array, Array, Array]:
    """Return the keys that are global, the queries that are, and those that are not."""
    keys = np.unique(np.asarray(indices, np.int64))
    keys = keys[keys < Tk]
    is_global = np.isin(np.arange(Tq) + Tk - Tq, keys)
    return keys, np.flatnonzero(is_global), np.flatnonzero(~is_global)


def _global_parts(q: Array, k: Array, indices: Sequence[int]) -> list[Part]:
    Tq, Tk = q.shape[-2], k.shape[-2]
    keys, rows, others = _split(Tq, Tk, indices)
    return [Part(picked(Tq, others), picked(Tk, keys), None), Part(picked(Tq, rows), AS_THEY_ARE, None)]


def _window_and_global(q: Array, k: Array, window: int, indices: Sequence[int]) -> list[Part]:
    """Return the windows without the global tokens, the global keys, and, last, the global queries."""
    near: Mask = masks.window(window, window)
    if len(indices):
        near = near & ~masks.global_tokens(tuple(int(n) for n in indices))
    return [Part(AS_THEY_ARE, AS_THEY_ARE, near), *_global_parts(q, k, indices)]


def _named(rows: Array, behind: int, indices: Sequence[int]) -> Array:
    """Return which row of q_global belongs to each of the global queries."""
    given = np.asarray(indices, np.int64)
    order = np.argsort(given, kind="stable")
    return order[np.searchsorted(given[order], rows + behind)] if len(rows) else np.zeros(0, np.int64)


def _of_global(
    q: Array,
    k: Array,
    v: Array,
    q_global: Array | None,
    k_global: Array | None,
    v_global: Array | None,
    rows: Array,
    behind: int,
    indices: Sequence[int],
) -> tuple[Array, Array, Array]:
    """Return the queries, keys and values of the global tokens."""
    own = q[..., rows, :] if q_global is None else q_global[..., _named(rows, behind, indices), :]
    return own, k if k_global is None else k_global, v if v_global is None else v_global
