"""Mistakes of lengths, offsets, masks and dropout: left out, of another sequence or tile; see `hypotheses`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.hypotheses import Given, Results, Twist, enter, forward, full, option, steps, without
from refattn.testing.attention.oracle import offsets
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract

TILES = (16, 32, 64, 128)
"""How many keys or queries kernels take at a time."""


def lengths(change: Callable[[Array, int], Array]) -> tuple[Twist, Twist]:
    """Count the keys otherwise, and leave the diagonal where it is, or move it along."""

    def stays(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        n = p.options.get("seqlens_k")
        return (
            None if n is None else (p.with_options(seqlens_k=other(n, p), q_offset=offsets(p, c).ravel().tolist()), c)
        )

    def moves(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        n = p.options.get("seqlens_k")
        return None if n is None else (p.with_options(seqlens_k=other(n, p)), c)

    def other(n: Array, p: Problem) -> Array:
        return np.clip(change(n, p.k.shape[2]), 0, p.k.shape[2])

    return Twist(stays), Twist(moves)


def column_by_column(x: Array, p: Problem) -> Array:
    """Read rows of keys as if they were columns of queries."""
    B, H, Tq, Tk = x.shape
    return x.reshape(B, H, Tk, Tq).swapaxes(-1, -2)


def transposed(x: Array, p: Problem) -> Array:
    """Exchange queries and keys where there are as many of either."""
    return x.swapaxes(-1, -2) if x.shape[-1] == x.shape[-2] else x


def first_tile(n: int) -> Callable[[Array, Problem], Array]:
    """Take the first n keys for every further n."""
    return lambda x, p: x[..., np.arange(x.shape[-1]) % n]


def row_of_tile(n: int) -> Callable[[Array, Problem], Array]:
    """Take the first n queries for every further n."""
    return lambda x, p: x[..., np.arange(x.shape[-2]) % n, :]


def _lengths_and_offsets() -> None:
    stays, moves = lengths(lambda n, Tk: np.full_like(n, Tk))
    enter("seqlens ignored", "the lengths of sequences are ignored", stays, moves)
    enter("seqlens one too long", "sequences are one key too long", *lengths(lambda n, Tk: n + 1))
    enter("seqlens one too short", "sequences are one key too short", *lengths(lambda n, Tk: n - 1))
    enter(
        "seqlens of the first sequence",
        "every sequence has the length of the first",
        *lengths(lambda n, Tk: n[:1].repeat(len(n))),
    )
    enter(
        "seqlens of the next sequence",
        "every sequence has the length of its neighbour",
        *lengths(lambda n, Tk: np.roll(n, -1)),
        *lengths(lambda n, Tk: np.roll(n, 1)),
    )

    def padded(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        if p.options.get("seqlens_k") is None or p.options.get("q_offset") is not None:
            return None
        return p.with_options(q_offset=p.k.shape[2] - p.q.shape[2]), c

    def added(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        given = p.options.get("q_offset")
        if given is None:
            return None
        default = offsets(p.with_options(q_offset=None), c).ravel()
        return p.with_options(q_offset=(default + np.asarray(given)).tolist()), c

    enter(
        "offset from the padded length",
        "queries are placed by the padded length, not by their sequence's",
        Twist(padded),
    )
    enter("q_offset ignored", "q_offset is ignored", without("q_offset"))
    enter(
        "q_offset added to the default", "q_offset is added to the default offset, not put in its place", Twist(added)
    )
    enter("q_offset one too large", "q_offset is one too large", option("q_offset", lambda n, p: np.asarray(n) + 1))
    enter("q_offset one too small", "q_offset is one too small", option("q_offset", lambda n, p: np.asarray(n) - 1))
    enter("q_offset negated", "q_offset has the wrong sign", option("q_offset", lambda n, p: -np.asarray(n)))
    enter(
        "q_offset cut off at zero",
        "a negative q_offset is taken for 0",
        option("q_offset", lambda n, p: np.maximum(n, 0)),
    )
    enter(
        "q_offset of the first sequence",
        "every sequence has the first q_offset",
        option("q_offset", lambda n, p: int(np.ravel(n)[0])),
    )


def _masks() -> None:
    enter("mask ignored", "the mask is ignored", without("mask"))
    enter("mask inverted", "the mask is read the other way round: True hides", option("mask", lambda m, p: ~m))
    enter("mask of the first head", "every head takes the mask of the first", full("mask", lambda m, p: m[:, :1]))
    enter("mask of the first sequence", "every sequence takes the mask of the first", full("mask", lambda m, p: m[:1]))
    enter("mask of the first query", "every query takes the mask of the first", full("mask", lambda m, p: m[:, :, :1]))
    enter(
        "mask transposed",
        "queries and keys of the mask are exchanged",
        full("mask", column_by_column),
        full("mask", transposed),
    )
    enter(
        "mask of the first key tile",
        "every key tile takes the mask of the first",
        *(full("mask", first_tile(n)) for n in TILES),
    )
    enter(
        "mask of the first query tile",
        "every query tile takes the mask of the first",
        *(full("mask", row_of_tile(n)) for n in TILES),
    )


def _dropout() -> None:
    def normalised(given: Given) -> Results | None:
        p = given.p
        keep = p.options.get("dropout_mask")
        if keep is None:
            return None
        mask = p.options.get("mask")
        kept = p.with_options(dropout_mask=None, dropout_p=None, mask=keep if mask is None else mask & keep)
        results = Given(kept, given.contract).right
        return results | {"lse": results["lse"] - np.log(1 - p.options.get("dropout_p", 0.0))}

    def share(change: Callable[[float], float]) -> Twist:
        """Multiply what is kept by another factor, a function of the share that is dropped."""
        return option("dropout_p", lambda d, p: 1 - 1 / change(float(d)) if 0 < d < 1 else d)

    enter("dropout ignored", "dropout is ignored", without("dropout_mask", "dropout_p"))
    enter("dropout not rescaled", "kept weights are not divided by 1 - p", share(lambda d: 1.0))
    enter("dropout rescaled the wrong way", "kept weights are multiplied by 1 - p", share(lambda d: 1 - d))
    enter("dropout rescaled by the drop rate", "kept weights are divided by p", share(lambda d: 1 / d))
    enter("dropout rescaled twice", "kept weights are divided by 1 - p twice", share(lambda d: (1 - d) ** -2))
    enter("dropout before normalisation", "weights are dropped before they are normalised", forward(normalised))
    enter(
        "dropout mask inverted",
        "the keep mask is read the other way round: True drops",
        option("dropout_mask", lambda m, p: ~m),
    )
    enter(
        "dropout mask of the first head",
        "every head drops what the first drops",
        full("dropout_mask", lambda m, p: m[:, :1]),
    )
    enter(
        "dropout mask of the first sequence",
        "every sequence drops what the first drops",
        full("dropout_mask", lambda m, p: m[:1]),
    )
    enter(
        "dropout mask transposed",
        "queries and keys of the keep mask are exchanged",
        full("dropout_mask", column_by_column),
        full("dropout_mask", transposed),
    )
    enter(
        "dropout mask of the first key tile",
        "every key tile drops what the first drops",
        *(full("dropout_mask", first_tile(n)) for n in TILES),
    )

    def dropped(given: Given, s: Any) -> Any:
        """The gradient of the weights, as if nothing had been dropped."""
        if given.p.options.get("dropout_mask") is None:
            return None
        dp = np.where(s.t.visible, s.do @ s.t.v.swapaxes(-1, -2), 0)
        return replace(s, dp=dp, ds=s.t.p * (dp - s.pull))

    enter("dp without dropout", "dropped weights get a gradient: dp lacks the dropout", steps(dropped))


_lengths_and_offsets()
_masks()
_dropout()
