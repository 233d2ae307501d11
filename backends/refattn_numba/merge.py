"""Merging attention over disjoint keys in place, without arrays in between; and sinks: keys that have no value."""

import math

import numpy as np
from numba import njit

from refattn.arrays import Array
from refattn_numba.layout import flat, read_only
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

ROWS = 256
"""Rows of one item of work."""


def merge_into(o: Array, lse: Array, other: Array, other_lse: Array) -> None:
    """Make (o, lse), contiguous, the result over its own keys and those of the other part, of the same shapes."""
    Dv, rows = o.shape[-1], lse.size
    parts = (read_only(x.reshape(-1)) for x in (np.ascontiguousarray(other), np.ascontiguousarray(other_lse)))
    items = -(-rows // ROWS)
    run(_merge, items, float(rows) * (Dv + 50), 0, o.dtype, o.reshape(-1), lse.reshape(-1), *parts, Dv)


def add_sinks(o: Array, lse: Array, sinks: Array) -> None:
    """Let a logit per head (H,) take its share of (o, lse), which are (..., H, Tq, Dv) and (..., H, Tq)."""
    other = np.zeros(o.shape[-1:], o.dtype)
    per_row = np.broadcast_to(sinks.astype(o.dtype)[:, None], lse.shape)
    rows = lse.size
    run(
        _merge, -(-rows // ROWS), float(rows) * (o.shape[-1] + 50), 0, o.dtype, o.reshape(-1), lse.reshape(-1),
        flat(other, o.dtype), flat(per_row, o.dtype), o.shape[-1],
    )  # fmt: skip


def sinks_gradient(sinks: Array, lse: Array, delta: Array) -> Array:
    """Return the gradient of the sinks (H,) from lse (..., H, Tq) or (Tq,) and delta = do·o - dlse: -p_sink delta."""
    sink = sinks.astype(lse.dtype)[:, None] if lse.ndim > 1 else sinks.astype(lse.dtype)
    blind = np.isneginf(lse)  # sees no key, and a sink of -inf
    pulled = np.where(blind, 0, -np.exp(sink - np.where(blind, 0, lse)) * delta)
    return pulled.sum(axis=-1).reshape(-1, len(sinks)).sum(axis=0).astype(sinks.dtype)


@njit(nogil=True, cache=True, error_model="numpy")
def _merge(counter, items, space, o, lse, other, other_lse, Dv):
    """o, lse (rows, Dv), (rows,): the union with other; an `other` of one row is that of every row."""
    rows = lse.size
    shared = other.size == Dv and rows != 1
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        for row in range(item * ROWS, min((item + 1) * ROWS, rows)):
            mine, theirs = lse[row], other_lse[row]
            if theirs == -math.inf:
                continue
            m = mine if mine > theirs else theirs
            a = math.exp(mine - m) if mine != -math.inf else 0 * m
            b = math.exp(theirs - m)
            total = a + b
            lse[row] = m + math.log(total)
            wa, wb = lse.dtype.type(a / total), lse.dtype.type(b / total)
            here = o[row * Dv : row * Dv + Dv]
            there = other[:Dv] if shared else other[row * Dv : row * Dv + Dv]
            if wa == 0:
                for d in range(Dv):
                    here[d] = there[d] * wb
            elif wb != 0:
                for d in range(Dv):
                    here[d] = wa * here[d] + wb * there[d]
