"""Which calls are exported: the cases of `refattn.testing.cases`, or at the quick level few of them that cover all.

The quick set takes, for each operation, the smallest calls that have every option, in every dtype where the option
brings arithmetic of its own, and every unusual shape once, one of more tokens than a tile has among them. Calls of
attention may be cut down to their first sequence, first group of heads, and first tokens: masks are stored as arrays,
so that nothing changes for what is left.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dispatch import OPERATIONS
from refattn.masks import Mask, as_mask
from refattn.testing.cases import Case, cases
from refattn.testing.comparison import arrays, leaves, quietly

LEVELS = ("quick", "standard")
PER_DTYPE = ("bias", "sinks", "softcap", "dlse")
"""Options that every dtype is tried with; the others, once."""
MEANINGS = ("attention", "attention_vjp")
"""Of the operations on q, k and v, those whose vectors have every option in every dtype, and every unusual shape.

The others mean the same with other arguments, which are what their vectors try."""
LARGE = 150_000
"""Bytes from which on a call is not taken whole into the quick set."""
TOKENS = 33
"""Queries and keys that are left of a call that is cut."""
ENOUGH = 40
"""Numbers that go through a call from which on its errors say something about its dtype."""
LIKE_Q = ("q", "k", "v", "do", "o")
PAIRS = ("mask", "bias", "dropout_mask")
"""They broadcast to (..., H, Tq, Tk)."""


PER_SEQUENCE = frozenset(("cu_seqlens_q", "page_table"))
"""Where one of these is given, a mask is asked for the lengths of each sequence, and stays a value."""


@dataclass(frozen=True)
class Given:
    """The arguments of one call, masks as bool arrays where one array can say it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: str | None
    """What the mask was: its repr, or "array"."""

    def named(self, operation: str) -> dict[str, Any]:
        """Return the arguments by the names of the signature, those that were given."""
        found = inspect.signature(OPERATIONS[operation]).bind(*self.args, **self.kwargs).arguments
        return {name: x for name, x in found.items() if x is not None}


@dataclass(frozen=True)
class Vector:
    """One call to export."""

    case: Case
    cut: str = ""
    """"tokens" takes only the first `TOKENS` of them; "first", of those, the first sequence and group of heads."""

    def given(self, seed: int = 0) -> Given:
        """Return the arguments of the call; another seed gives other numbers in the same shapes."""
        args, kwargs = self.case.call(again=seed)
        given = _with_dense_mask(self.case.operation, args, kwargs)
        return cut(self.case.operation, given, self.cut) if self.cut else given


def _with_dense_mask(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    names = Given(args, kwargs, None).named(operation)
    mask = names.get("mask")
    if mask is None or not PER_SEQUENCE.isdisjoint(names):
        return Given(args, kwargs, None if mask is None else repr(mask))
    queries = next(names[name] for name in ("q", "q_nope", "x") if name in names)
    keys = next((names[name] for name in ("k", "c_kv", "context") if name in names), queries)
    pattern = as_mask(mask)
    assert pattern is not None
    dense = pattern.dense(queries.shape[-2], keys.shape[-2])
    args = tuple(dense if x is mask else x for x in args)
    kwargs = {name: dense if x is mask else x for name, x in kwargs.items()}
    return Given(args, kwargs, repr(mask) if isinstance(mask, Mask) else "array")


def cut(operation: str, given: Given, how: str) -> Given:
    """Return the call cut down as `Vector.cut` says, in arrays of their own.

    Where results of a forward pass are given, all keys stay: those belong to them.
    """
    names = given.named(operation)
    q, k = names["q"], names["k"]
    first = how == "first"
    heads = {"k": 1, "v": 1} if first else {"k": k.shape[-3], "v": k.shape[-3]}
    of_queries = q.shape[-3] // k.shape[-3] if first else q.shape[-3]
    keys = k.shape[-2] if "lse" in names else TOKENS

    def part(name: str, x: Array) -> Array:
        if name == "sinks":
            return x[:of_queries].copy()
        tail = 1 if name in ("lse", "dlse") else 2
        lead = max(0, x.ndim - tail - 1)  # axes before the heads
        places = [slice(0, 1 if first else None)] * lead + [slice(0, heads.get(name, of_queries))] * (
            x.ndim - tail - lead
        )
        tokens = [slice(0, keys if name in heads else TOKENS)]
        if name in PAIRS:
            tokens = [slice(0, TOKENS), slice(0, keys)]
        elif tail == 2:
            tokens.append(slice(None))
        return x[tuple([*places, *tokens][-x.ndim :] if x.ndim else ())].copy()

    positional = list(names)[: len(given.args)]
    args = tuple(part(name, x) for name, x in zip(positional, given.args, strict=True))
    kwargs = {name: part(name, x) if isinstance(x, np.ndarray) else x for name, x in given.kwargs.items()}
    return Given(args, kwargs, given.mask)


def can_be_cut(operation: str, given: Given) -> bool:
    """Return whether the call has several sequences or heads, and no array whose axes are not known here."""
    names = given.named(operation)
    if not {"q", "k", "v"} <= names.keys():
        return False
    known = (*LIKE_Q, *PAIRS, "lse", "dlse", "sinks")
    if not all(name in known for name, x in names.items() if arrays(x)):
        return False
    return names["q"].ndim > 2 and 0 not in names["q"].shape[:-2] and names["k"].shape[-3] > 1


def features(operation: str, case: Case, given: Given) -> set[tuple[str, str]]:
    """Return what a call tries: (what, dtype), or (what, "") where one dtype is enough."""
    names, found = given.named(operation), set()
    usual = {name: p.default for name, p in inspect.signature(OPERATIONS[operation]).parameters.items()}
    options = [name for name, x in given.kwargs.items() if x is not None and x is not usual[name]]
    heads = {"q", "k", "v"} <= names.keys() and PER_SEQUENCE.isdisjoint(names)
    whole = operation in MEANINGS or not heads
    found |= {(name, case.dtype if name in PER_DTYPE and whole else "") for name in options}
    found |= {(f"{word} mask", "") for word in re.findall(r"(causal|padding)\(", given.mask or "")}
    every = arrays((given.args, given.kwargs))
    first = every[0]
    floats = [x.astype(np.float64) for x in every if x.dtype != bool and x.dtype.kind not in "iu"]
    tokens = next((names[name] for name in ("v", "u") if name in names), None)
    enough = first.size > 100
    if tokens is not None:
        enough = tokens.size >= ENOUGH and all(np.isfinite(x).all() and abs(x).max(initial=0) < 6 for x in floats)
    tried = {
        "one head": first.ndim == 2,
        "empty": any(x.size == 0 for x in every),
        case.dtype: enough and not any(isinstance(x, tuple) and len(x) == 1 for x in names.values()),
        "blind rows": _blind(names.get("mask")),
    }
    if whole:
        tried |= {
            "odd width": first.size > 0 and first.shape[-1] % 8 != 0,
            "not finite": any(not np.isfinite(x).all() for x in floats),
        }
    if not heads:
        return found | {(what, "") for what, yes in tried.items() if yes}
    q, k, v = names["q"], names["k"], names["v"]
    grouped = q.ndim > 3 and q.shape[-3] > k.shape[-3] > 1
    tried |= {
        "few queries": q.shape[-2] < k.shape[-2],
        "sequences of grouped heads": grouped and q.shape[-4] > 1 and min(q.shape[-2], v.size) > 1,
    }
    if whole:
        tried |= {
            "no keys": k.shape[-2] == 0,
            "no queries": q.shape[-2] == 0,
            "few keys": q.shape[-2] > k.shape[-2],
            "more than a tile": min(q.shape[-2], k.shape[-2]) > 64,
            "narrow or wide values": q.shape[-1] != v.shape[-1],
        }
    return found | {(what, "") for what, yes in tried.items() if yes}


def _blind(mask: Any) -> bool:
    """Return whether a bool array hides everything from some query."""
    return isinstance(mask, np.ndarray) and mask.size > 0 and not mask.any(axis=-1).all()


def size_of(operation: str, given: Given) -> int:
    """Return how many bytes an entry takes in float32, about: inputs, and per result a float64 and two float32."""
    found = quietly(OPERATIONS[operation], given.args, given.kwargs)
    numbers = sum(x.size for _, x in leaves(found) if x is not None)
    return 2000 + 16 * numbers + 4 * sum(x.size for x in arrays((given.args, given.kwargs)))


def choose(operation: str, level: str, dtypes: tuple[str, ...] | None) -> list[Vector]:
    """Return the calls of one operation, in the order of its table of cases; the same for every seed."""
    allowed = ("float32", "bfloat16") if dtypes is None and level == "quick" else dtypes
    quick = {case.problem for case in cases(operation, "quick")}
    found = [case for case in cases(operation, "standard") if allowed is None or case.dtype in allowed]
    if level == "standard":
        return [Vector(case) for case in found]
    candidates: list[tuple[int, set[tuple[str, str]], Vector]] = []
    for case in (case for case in found if case.problem in quick):
        whole = Vector(case)
        versions = [(whole, whole.given())]
        if can_be_cut(operation, versions[0][1]):
            versions += [(Vector(case, how), cut(operation, versions[0][1], how)) for how in ("tokens", "first")]
        for vector, given in versions:
            size = size_of(operation, given)
            if vector.cut == "first" or size < LARGE or len(versions) == 1:
                candidates.append((size, features(operation, case, given), vector))
    return _cover(candidates)


def _cover(candidates: list[tuple[int, set[tuple[str, str]], Vector]]) -> list[Vector]:
    """Return vectors that have every feature: again and again the one that is cheapest per new feature."""
    missing = set().union(*(found for _, found, _ in candidates))
    chosen: list[Vector] = []
    while missing:
        useful = [(size / len(found & missing), n) for n, (size, found, _) in enumerate(candidates) if found & missing]
        best = min(useful)[1]
        chosen.append(candidates[best][2])
        missing -= candidates[best][1]
    largest: dict[Case, str] = {}  # a case is written once, with the least cut of its versions
    for vector in sorted(chosen, key=lambda vector: ("first", "tokens", "").index(vector.cut)):
        largest[vector.case] = vector.cut
    kept = {Vector(case, how) for case, how in largest.items()}
    return [vector for _, _, vector in candidates if vector in kept]
