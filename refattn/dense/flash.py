"""Flash attention: the result of `attention`, one tile of scores at a time.

Forward: Dao et al., 2022, arXiv:2205.14135, with the loop order of Dao, 2023, arXiv:2307.08691, Algorithm 1: a tile of
queries stays while the keys stream past, under the running maximum m and sum l of Milakov and Gimelshein, 2018,
arXiv:1805.02867. Backward: 2307.08691, Algorithm 2: the weights come back from lse, so no matrix was kept.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dense.common import (
    Bools,
    check_attention,
    check_attention_vjp,
    heads_of,
    per_head,
    repeat_heads,
    select_matmul,
    sinks_gradient,
    sum_heads,
    sum_to,
)
from refattn.dense.tiles import Tile, Tiles
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import AttentionGradients


def _check_flash(q: Any, k: Any, v: Any, *, on_tile: Any = None, **arguments: Any) -> None:
    check_attention(q, k, v, operation="flash_attention", **arguments)
    if on_tile is not None and not callable(on_tile):
        raise TypeError(f"flash_attention: on_tile must be a function of a Tile, got {type(on_tile).__name__}")


def _check_flash_vjp(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, **arguments: Any) -> None:
    check_attention_vjp(do, q, k, v, operation="flash_attention_vjp", **arguments)
    check_floats("flash_attention_vjp", 2, o=o, q=q)
    check_floats("flash_attention_vjp", 1, lse=lse)
    check_shape("flash_attention_vjp", "o", o, (*q.shape[:-1], v.shape[-1]), "(..., H, Tq, Dv)")
    check_shape("flash_attention_vjp", "lse", lse, q.shape[:-1], "(..., H, Tq)")


@dispatched(_check_flash)
def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    tile_q: int = 64,
    tile_k: int = 64,
    on_tile: Callable[[Tile], object] | None = None,
    backend: str = "numpy",
) -> tuple[Array, Array]:
    r"""Attend with tile_q × tile_k scores in memory at a time, whatever the lengths.

    For each tile of keys, with the maximum m and the sum l of what has passed so far:

    .. math::
        m' = \max(m, \max_j s_{ij}), \quad
        l' = e^{m - m'} l + \sum_j e^{s_{ij} - m'}, \quad
        o' = e^{m - m'} o + \sum_j e^{s_{ij} - m'} v_j

    and at the end o_i / l_i and lse_i = m_i + log l_i.

    Parameters
    ----------
    q, k, v, mask, bias, scale, softcap, sinks, dropout_mask, dropout_p
        As `attention`.
    tile_q, tile_k : int
        Queries and keys per tile. They change rounding, never meaning; a backend may round them to what suits it.
    on_tile : function, optional
        Called with a `Tile` after each step, which counts the bytes that the step moved.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o, lse : array, (..., H, Tq, Dv), (..., H, Tq)
        As `attention` with ``return_lse=True``.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((3, 2)), np.array([[0.0], [3.0], [6.0]])
    >>> o, lse = flash_attention(q, k, v, tile_k=2)
    >>> o, np.exp(lse)
    (array([[3.]]), array([3.]))
    """
    dtype, compute, H = q.dtype, compute_dtype(q.dtype), heads_of(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype
    tiles = Tiles(q, k, mask, bias, dropout_mask, tile_q, tile_k)
    o = np.zeros((*q.shape[:-1], v.shape[-1]), dtype)
    lse = np.full(q.shape[:-1], -np.inf, compute)

    for i in tiles.queries():
        q_i = q[..., i, :].astype(compute)
        m = np.full((*q_i.shape[:-1], 1), -np.inf, compute)
        if sinks is not None:  # a key that comes first, without a value
            m = np.maximum(m, per_head(sinks.astype(compute), q.ndim))
        l = np.where(np.isneginf(m), 0, 1).astype(compute)
        o_i = np.zeros((*q_i.shape[:-1], v.shape[-1]), compute)
        read = q_i.size * q.itemsize
        for j in tiles.keys(i):
            k_j, v_j = (repeat_heads(x[..., j, :], H).astype(compute) for x in (k, v))
            s, _, visible = tiles.scores(q_i, k_j, i, j, scale, softcap)
            m_new = np.maximum(m, np.where(visible, s, -np.inf).max(axis=-1, keepdims=True))
            safe = np.where(np.isneginf(m_new), 0, m_new)  # nothing seen yet: keep e^-inf, not e^nan
            p = np.exp(np.where(visible, s, -np.inf) - safe)  # e^(s_ij - m')         (..., tile_q, tile_k)
            shrink = np.exp(m - safe)  # e^(m - m'): what the old sums are worth under the new maximum
            l = shrink * l + p.sum(axis=-1, keepdims=True)
            if dropout_mask is not None:
                p = np.where(tiles.part(dropout_mask, i, j), p / (1 - float(dropout_p)), 0)
            o_i = shrink * o_i + select_matmul(p, v_j, visible)
            m = m_new
            read += tiles.bytes_of(i, j, k, v)
            if on_tile is not None:
                on_tile(Tile(i, j, read, 0))
            read = 0
        o[..., i, :] = o_i / np.where(l == 0, 1, l)
        lse[..., i] = (m + np.log(l))[..., 0]
        if on_tile is not None:
            on_tile(Tile(i, slice(0, 0), read, o[..., i, :].nbytes + lse[..., i].nbytes))
    return o, lse


@dispatched(_check_flash_vjp)
def flash_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
    tile_q: int = 64,
    tile_k: int = 64,
    backend: str = "numpy",
) -> AttentionGradients:
    r"""Pull cotangents back through `flash_attention`, tile by tile, from its results o and lse.

    .. math::
        \delta_i = \sum_d do_{id} o_{id} - dlse_i, \quad
        p_{ij} = e^{s_{ij} - \text{lse}_i}, \quad
        ds_{ij} = p_{ij} (do_i \cdot v_j - \delta_i)

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o.
    q, k, v : array
        As given to `flash_attention`.
    o, lse : array, (..., H, Tq, Dv), (..., H, Tq)
        What it returned.
    mask, bias, scale, softcap, sinks, dropout_mask, dropout_p, tile_q, tile_k
        As `flash_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        As `attention_vjp`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention_vjp`.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> o, lse = flash_attention(q, k, v)
    >>> flash_attention_vjp(np.ones((1, 1)), q, k, v, o, lse).dv
    array([[0.5],
           [0.5]])
    """
    dtype, compute, H, Hk = q.dtype, compute_dtype(q.dtype), heads_of(q), heads_of(k)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype
    tiles = Tiles(q, k, mask, bias, dropout_mask, tile_q, tile_k)
    lse = lse.astype(compute)[..., None]
    blind = np.isneginf(lse)
    do_o = np.where(o == 0, 0, do.astype(compute) * o.astype(compute))  # select: a blind row's do may be NaN
    delta = do_o.sum(axis=-1, keepdims=True)  # Σ_d do_id o_id
    if dlse is not None:
        delta = delta - dlse.astype(compute)[..., None]
    dq, dk, dv = (np.zeros(x.shape, compute) for x in (q, k, v))
    dbias = None if bias is None else np.zeros(bias.shape, compute)

    for i in tiles.queries():
        q_i, do_i = q[..., i, :].astype(compute), do[..., i, :].astype(compute)
        for j in tiles.keys(i):
            k_j, v_j = (repeat_heads(x[..., j, :], H).astype(compute) for x in (k, v))
            s, slope, visible = tiles.scores(q_i, k_j, i, j, scale, softcap)
            p = np.exp(np.where(visible, s - np.where(blind, 0, lse)[..., i, :], -np.inf))
            keep: Array | float = 1.0
            if dropout_mask is not None:
                keep = np.where(tiles.part(dropout_mask, i, j), 1 / (1 - dropout_p), 0).astype(compute)
            seen_by = visible.swapaxes(-1, -2)
            dv[..., j, :] += sum_heads(select_matmul((p * keep).swapaxes(-1, -2), do_i, seen_by), Hk)
            dp = do_i @ v_j.swapaxes(-1, -2) * keep
            ds = np.where(visible, p * (dp - delta[..., i, :]), 0)
            if bias is not None and dbias is not None:
                part = tiles.part(dbias, i, j)
                part += sum_to(ds, part.shape)
            ds_product = np.where(visible, scale * slope * ds, 0)
            dq[..., i, :] += select_matmul(ds_product, k_j, visible)
            dk[..., j, :] += sum_heads(select_matmul(ds_product.swapaxes(-1, -2), q_i, seen_by), Hk)

    dsinks = None if sinks is None else sinks_gradient(sinks, lse[..., 0], delta[..., 0])
    if bias is not None and dbias is not None:
        dbias = dbias.astype(bias.dtype)
    return AttentionGradients(dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), dbias, dsinks)
