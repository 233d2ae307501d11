"""Mistakes in how tiles and parts of the keys are put together; see `hypotheses`.

Which tiles a kernel takes is not known from outside, so the usual sizes are tried.
"""

import math
from typing import Any

import numpy as np

from refattn.testing.attention.hypotheses import Given, Results, enter, forward
from refattn.testing.attention.hypotheses_lengths import TILES


def _online() -> None:
    def swept(tile: int, mistake: str) -> Any:
        def results(given: Given) -> Results | None:
            if given.t.s.shape[-1] <= tile or given.p.options.get("num_splits", 1) > 1:
                return None
            return sweep(given, tile, mistake)

        return forward(results)

    for mistake, sentence in (
        ("accumulator not rescaled", "o is not rescaled when the running maximum grows"),
        ("sum not rescaled", "the normaliser is not rescaled when the running maximum grows"),
        ("nothing rescaled", "neither o nor the normaliser is rescaled when the running maximum grows"),
        ("accumulator rescaled twice", "o is rescaled twice when the running maximum grows"),
        ("rescaled by a power of two", "o and the normaliser are rescaled by 2^x instead of e^x"),
        ("sum of the last tile", "the normaliser is that of the last tile of keys"),
        ("accumulator of the last tile", "o is that of the last tile of keys"),
    ):
        enter(mistake, sentence, *(swept(n, mistake) for n in TILES))


def sweep(given: Given, tile: int, mistake: str) -> Results:
    """Go through the keys tile by tile, as kernels do, and make one mistake with the running maximum and sum."""
    t, sinks = given.t, given.p.options.get("sinks")
    m: Any = np.full((*t.s.shape[:3], 1), -np.inf)
    if sinks is not None:
        m[:] = sinks[None, :, None, None]
    l, o = np.where(np.isneginf(m), 0.0, 1.0), np.zeros(t.o.shape)
    for j in range(0, t.s.shape[-1], tile):
        s = np.where(t.visible, t.s, -np.inf)[..., j : j + tile]
        new = np.maximum(m, s.max(axis=-1, keepdims=True))
        safe = np.where(np.isneginf(new), 0, new)
        p, shrink = np.exp(s - safe), np.exp(m - safe)
        of_sum, of_o = {
            "accumulator not rescaled": (shrink, 1),
            "sum not rescaled": (1, shrink),
            "nothing rescaled": (1, 1),
            "accumulator rescaled twice": (shrink, shrink**2),
            "rescaled by a power of two": (np.exp2(m - safe), np.exp2(m - safe)),
            "sum of the last tile": (0, shrink),
            "accumulator of the last tile": (shrink, 0),
        }[mistake]
        l = l * of_sum + p.sum(axis=-1, keepdims=True)
        o = o * of_o + (np.broadcast_to(t.keep, t.s.shape)[..., j : j + tile] * p) @ t.v[..., j : j + tile, :]
        m = new
    return {"o": o / np.where(l == 0, 1, l), "lse": (m + np.log(l))[..., 0]}


def _parts() -> None:
    def merged(tile: int, mistake: str) -> Any:
        def results(given: Given) -> Results | None:
            n = given.p.options.get("num_splits", 1)
            return merge(given, tile, n, mistake) if n > 1 and given.p.k.shape[2] else None

        return forward(results)

    for mistake, sentence in (
        ("parts averaged without weights", "the parts of a split are averaged without weights"),
        ("parts added up", "the parts of a split are added up without weights"),
        ("parts weighed in base 2", "the parts of a split are weighed by 2^lse instead of e^lse"),
        ("o of the heaviest part", "o is that of the part with the largest lse"),
        ("lse of the heaviest part", "lse is that of the part with the largest lse"),
        ("o of the first part", "o is that of the first part of a split"),
    ):
        enter(mistake, sentence, *(merged(n, mistake) for n in (1, *TILES)))


def merge(given: Given, tile: int, n: int, mistake: str) -> Results:
    """Split the keys into n parts of whole tiles, and make one mistake when the parts are merged."""
    t, right = given.t, given.right
    tiles = math.ceil(t.s.shape[-1] / tile)
    step = math.ceil(tiles / n) * tile
    o, lse = [], []
    sink = given.p.options.get("sinks")
    for part in range(n):
        keys = slice(part * step, (part + 1) * step)
        s = np.where(t.visible, t.s, -np.inf)[..., keys]
        first = np.full((*t.s.shape[:3], 1), -np.inf)
        if sink is not None and part == 0:
            first = np.broadcast_to(sink[None, :, None, None], first.shape)
        m = np.maximum(first, s.max(axis=-1, keepdims=True, initial=-np.inf))
        m = np.where(np.isneginf(m), 0, m)
        e, l = np.exp(s - m), (np.exp(s - m).sum(axis=-1, keepdims=True) + np.exp(first - m))
        kept = np.broadcast_to(t.keep, t.s.shape)[..., keys]
        o.append((e * kept) @ t.v[..., keys, :] / np.where(l == 0, 1, l))
        lse.append((m + np.log(l))[..., 0])
    outputs, sums = np.stack(o), np.stack(lse)
    top = np.where(np.isneginf(sums.max(axis=0)), 0, sums.max(axis=0))
    heaviest = sums.argmax(axis=0)[None, ..., None]
    if mistake == "parts averaged without weights":
        return {"o": outputs.mean(axis=0)}
    if mistake == "parts added up":
        return {"o": outputs.sum(axis=0)}
    if mistake == "lse of the heaviest part":
        return {"lse": sums.max(axis=0)}
    if mistake == "o of the heaviest part":
        return {"o": np.take_along_axis(outputs, heaviest, axis=0)[0]}
    if mistake == "o of the first part":
        return {"o": outputs[0]}
    weights = np.exp2(sums - top)
    total = weights.sum(axis=0)
    return right | {
        "o": (weights[..., None] * outputs).sum(axis=0) / np.where(total == 0, 1, total)[..., None],
        "lse": top + np.log(total),
    }


_online()
_parts()
