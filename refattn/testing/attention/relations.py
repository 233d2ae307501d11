"""What relations between calls are made of: the problem they start from, changed arrays, bits compared."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.draw import Draw
from refattn.testing.attention.judge import Findings, where
from refattn.testing.attention.problem import Problem, problem
from refattn.testing.checks import Check, Run
from refattn.testing.formats import decode, encode
from refattn.testing.session import Output

Relation = Callable[[Run, Problem], Iterator[str]]


def base(run: Run, *size: int, **options: Any) -> Problem:
    """Return the standard normal problem that relations start from."""
    rng = np.random.default_rng([303, run.seed])
    draw = Draw(rng, run.contract)
    q, k, v = draw.qkv(*(size or (2, 4, 2, 70, 150)))
    do = rng.standard_normal((*q.shape[:3], v.shape[3])) if run.contract.op.endswith("_vjp") else None
    return problem(run.contract, q, k, v, do=do, **options)


def changed(p: Problem, **arrays: Array | None) -> Problem:
    """Return the problem with other arrays; None, where there was none, stays None."""
    given: dict[str, Any] = {name: x for name, x in arrays.items() if x is not None}
    return replace(p, arrange=None, **given)


def differ(a: Output, b: Output, take: Any = slice(None), also: Any = slice(None)) -> Iterator[str]:
    """Say where the bits of two outputs differ, part by part."""
    for name in a.parts:
        if name in b.parts:
            x, y = a.bits(name)[take], b.bits(name)[also]
            if x.shape != y.shape:
                yield f"{name} has another shape"
            elif (x != y).any():
                yield f"{name} differs in {(x != y).sum()} of {x.size} places, {where(x != y)}"


def times(x: Array | None, factor: float, run: Run) -> Array:
    """Return an array of the kernel's dtype times a power of two: exact."""
    if x is None:
        raise ValueError("there is no array to multiply")
    return encode(decode(x, run.contract.dtype) * factor, run.contract.dtype, x.dtype == np.uint16)


def put(x: Array, at: Any, value: Any, run: Run) -> Array:
    """Return the array with a value put in some places."""
    x = x.copy()
    x[at] = encode(value, run.contract.dtype, x.dtype == np.uint16)
    return x


def as_check(id: str, relation: Relation, needs: tuple[str, ...] = (), features: tuple[str, ...] = ()) -> Check:
    """Return a relation as a check."""
    return Check(id, lambda run: Findings(wrong=list(relation(run, base(run)))), needs, features)
