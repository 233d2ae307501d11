"""Relations that hold within the bounds of rounding: another order of the same sums."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import Units
from refattn.testing.attention.judge import analyse, where
from refattn.testing.attention.problem import Problem
from refattn.testing.attention.relations import base, changed, times
from refattn.testing.checks import Run
from refattn.testing.formats import UNIT, decode


def _near(run: Run, p: Problem, got: Array, want: Array, part: Any = slice(None)) -> Array:
    bound = run.kept(("bound", p.sizes, tuple(sorted(p.options))), lambda: analyse(p, run.contract).parts["o"].bound)
    return np.asarray(np.abs(got - want) > 2 * bound[part])


def permuted_keys(run: Run, p: Problem) -> Iterator[str]:
    """The order of keys matters only to rounding."""
    order = np.random.default_rng(run.seed).permutation(p.k.shape[2])
    off = _near(
        run, p, run.session.call(changed(p, k=p.k[:, :, order], v=p.v[:, :, order]))["o"], run.session.call(p)["o"]
    )
    if off.any():
        yield f"keys in another order change o beyond rounding in {off.sum()} places, {where(off)}"


def split_keys(run: Run, p: Problem) -> Iterator[str]:
    """Any number of splits gives the same."""
    whole = run.session.call(p)["o"]
    for n in (2, 3, 5, 8):
        off = _near(run, p, run.session.call(p.with_options(num_splits=n))["o"], whole)
        if off.any():
            yield f"num_splits={n} changes o beyond rounding in {off.sum()} places, {where(off)}"


def merged_halves(run: Run, p: Problem) -> Iterator[str]:
    """Two halves of the keys, merged by their lse, are the whole."""
    cut = -(-p.k.shape[2] // 2 // run.contract.seq_multiple) * run.contract.seq_multiple
    problems = [changed(p, k=p.k[:, :, a], v=p.v[:, :, a]) for a in (slice(cut), slice(cut, None))]
    halves, whole = [run.session.call(half) for half in problems], run.session.call(p)
    if any("lse" not in out.parts for out in [*halves, whole]):
        return
    unit = np.log(2) if run.contract.lse == "base2" else 1.0
    known = run.kept("halves", lambda: [analyse(x, run.contract).parts for x in [*problems, p]])
    merged, allowed = np.zeros_like(whole["o"]), known[2]["o"].bound
    for half, parts in zip(halves, known[:2], strict=True):
        weight = np.exp((half["lse"] - whole["lse"]) * unit)[..., None]
        merged = merged + weight * half["o"]
        slack = (parts["lse"].bound + known[2]["lse"].bound)[..., None] + 4 * UNIT["float32"]
        allowed = allowed + weight * (parts["o"].bound + 2 * slack * np.abs(half["o"]))
    off = np.abs(merged - whole["o"]) > allowed
    if off.any():
        yield f"two halves merged by lse are not the whole in {off.sum()} places, {where(off)}"


def some_queries(run: Run, p: Problem) -> Iterator[str]:
    """Some of the queries give what they give among all."""
    n = run.contract.seq_multiple
    part = np.s_[:, :, n * 9 : n * 20]
    off = _near(run, p, run.session.call(changed(p, q=p.q[part]))["o"], run.session.call(p)["o"][part], part)
    if off.any():
        yield f"a subset of queries differs beyond rounding in {off.sum()} places, {where(off)}"


def decoded(run: Run, p: Problem) -> Iterator[str]:
    """Causal rows, one call each over the keys so far, are those of one pass."""
    p = base(run, 1, 4, 2, 70, 70, causal=True)
    whole = run.session.call(p)["o"]
    m = run.contract.seq_multiple
    for t in {0, 1, 15, 16, 40, 63, 64, 69}:
        rows, keys = np.s_[:, :, t * m : (t + 1) * m], np.s_[:, :, : (t + 1) * m]
        if (t + 1) * m > p.k.shape[2]:
            continue
        one = run.session.call(changed(p, q=p.q[rows], k=p.k[keys], v=p.v[keys]))["o"]
        off = _near(run, p, one, whole[rows], rows)
        if off.any():
            yield f"row {t * m} decoded over its {(t + 1) * m} keys differs beyond rounding in {off.sum()} channels"


def shifted_logits(run: Run, p: Problem) -> Iterator[str]:
    """The same number added to all scores of a row changes nothing but lse."""
    shift = np.full((1, 1, 1, 1), 3.0, np.float32)
    plain, moved = run.session.call(p), run.session.call(p.with_options(bias=shift))
    off = _near(run, p, moved["o"], plain["o"])
    if off.any():
        yield f"scores shifted by 3 change o beyond rounding in {off.sum()} places, {where(off)}"


def hull(run: Run, p: Problem) -> Iterator[str]:
    """O lies between the smallest and the largest value."""
    loud = changed(p, q=times(p.q, 64, run))
    o = run.session.call(loud)["o"]
    group = p.q.shape[1] // p.k.shape[1]
    v = np.repeat(decode(p.v, run.contract.dtype), group, axis=1)
    u = Units.of(run.contract)
    low, high = v.min(axis=2, keepdims=True), v.max(axis=2, keepdims=True)
    slack = (2 * u.p + 2 * u.out + u.products + 4 * np.sqrt(p.k.shape[2]) * u.acc) * np.maximum(abs(low), abs(high))
    off = (o < low - slack) | (o > high + slack)
    if off.any():
        yield f"o lies outside the range of the values in {off.sum()} places, {where(off)}"
