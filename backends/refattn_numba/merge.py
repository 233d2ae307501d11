"""Merging attention over disjoint keys in place, without arrays in between; and sinks: keys that have no value."""

import math

import numpy as np
from numba import njit

from refattn.arrays import Array
from refattn_numba.layout import flat
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

ROWS = 256
"""Rows of one item of work."""


def merge_into(o: Array, lse: Array, other: Array, other_lse: Array) -> None:
    """Make (o, lse), contiguous, the result over its own keys and those of the other part, of the same shapes."""
    _launch(o, lse, other, other_lse, shared=False)


def add_sinks(o: Array, lse: Array, sinks: Array) -> None:
    """Let a logit per head (H,) take its share of (o, lse), which are (..., H, Tq, Dv) and (..., H, Tq)."""
    nothing = np.zeros(o.shape[-1:], o.dtype)
    _launch(o, lse, nothing, np.broadcast_to(_per_head(sinks, lse), lse.shape), shared=True)


def _launch(o: Array, lse: Array, other: Array, other_lse: Array, shared: bool) -> None:
    Dv, rows = o.shape[-1], lse.size
    run(
        _merge, -(-rows // ROWS), float(rows) * (Dv + 50), 0, o.dtype, o.reshape(-1), lse.reshape(-1),
        flat(other, o.dtype), flat(other_lse, o.dtype), Dv, shared,
    )  # fmt: skip


def _per_head(sinks: Array, lse: Array) -> Array:
    """Return sinks (H,) so that they broadcast against lse (..., H, Tq), or (Tq,) for one head."""
    sinks = sinks.astype(lse.dtype)
    return sinks[:, None] if lse.ndim > 1 else sinks


def sinks_gradient(sinks: Array, lse: Array, delta: Array) -> Array:
    """Return the gradient of the sinks (H,) from lse (..., H, Tq) or (Tq,) and delta = do·o - dlse: -p_sink delta."""
    sink = _per_head(sinks, lse)
    blind = np.isneginf(lse)  # sees no key, and a sink of -inf
    pulled = np.where(blind, 0, -np.exp(sink - np.where(blind, 0, lse)) * delta)
    return pulled.sum(axis=-1).reshape(-1, len(sinks)).sum(axis=0).astype(sinks.dtype)


@njit(nogil=True, cache=True, error_model="numpy")
def _merge(counter, items, space, o, lse, other, other_lse, Dv, shared):
    """o, lse (rows, Dv), (rows,): the union with other, which has one row of values for all if it is `shared`."""
    rows = lse.size
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
