"""One call of a kernel of the linear-time family, and how to take parts of it."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.problem import result_dtypes
from refattn.testing.contract import Contract
from refattn.testing.faults import KernelFault
from refattn.testing.formats import decode, encode
from refattn.testing.recurrence.family import FAMILIES, Family, Field

HEADS = "HGVO"


@dataclass(frozen=True)
class Problem:
    """The positional arrays of an operation in the dtypes that its kernels get, and the keywords."""

    op: str
    arrays: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    """`initial_state` is an array, or a tuple of them for an operation with several states."""
    normal: bool = False
    """Drawn so that statistics of the error mean something."""
    scored: bool = False
    """Whether score tests are made of it."""
    arrange: Callable[[Array], Array] | None = None
    """How the arrays lie in memory: applied to a fresh copy of each before the call."""

    @property
    def family(self) -> Family:
        """Return what the operation takes."""
        return FAMILIES[self.op]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Return the length of each axis by its letter; N_ is the number of states."""
        found: dict[str, int] = {}
        for f in self.family.arrays:
            found.update(zip(f.axes, self.arrays[f.name].shape, strict=True))
        if "V" in found:
            found["O"] = max(found.get("H", 1), found["V"])
        if "K" in found:
            found["J"] = found["K"] - 1
        return found

    @property
    def sequences(self) -> int:
        """Return how many sequences there are, and states."""
        packed = self.options.get("cu_seqlens")
        return self.sizes["B"] if packed is None else len(packed) - 1

    def shape(self, axes: str) -> tuple[int, ...]:
        """Return the shape of an array with these axes."""
        return tuple(self.sizes[letter] for letter in axes)

    def state_shape(self, f: Field) -> tuple[int, ...]:
        """Return the shape of one state."""
        return (self.sequences, *self.shape(f.axes[1:]))

    @property
    def initial(self) -> tuple[Array, ...] | None:
        """Return the initial states, always as a tuple, or None."""
        given = self.options.get("initial_state")
        return given if given is None or isinstance(given, tuple) else (given,)

    def changed(self, **arrays: Array) -> "Problem":
        """Return this problem with other arrays."""
        return replace(self, arrays={**self.arrays, **arrays})

    def with_options(self, **options: Any) -> "Problem":
        """Return this problem with some options set anew; None takes an option away."""
        merged = {name: x for name, x in {**self.options, **options}.items() if x is not None}
        return replace(self, options=merged)

    def starting(self, states: tuple[Array, ...] | None) -> "Problem":
        """Return this problem with other initial states."""
        if states is None:
            return self.with_options(initial_state=None)
        return self.with_options(initial_state=states if len(self.family.states) > 1 else states[0])

    def results(
        self, several: list[Any], contract: Contract
    ) -> dict[str, tuple[tuple[int, ...], tuple[np.dtype[Any], ...]]]:
        """Return name, shape and allowed dtypes of each result; several states that come as a tuple are taken apart."""
        states = self.family.states
        if len(several) == 2 and len(states) > 1 and isinstance(several[1], tuple | list):
            several[1:] = [*several[1]]
        if len(several) != 1 + len(states):
            names = ", ".join(f.name for f in states)
            raise KernelFault(f"returned {len(several)} results; wanted o and the state ({names})")
        own = result_dtypes(contract)
        sums = (np.dtype(np.float64 if contract.dtype == "float64" else np.float32), np.dtype(np.float64))
        wanted = {"o": (self.shape(self.family.o), own)}
        for f in states:
            allowed = tuple(dict.fromkeys(sums if f.wide else (*own, *sums)))
            wanted[f.name] = (self.state_shape(f), allowed)
        return wanted

    def arguments(self) -> list[Array]:
        """Return fresh arrays, in the order in which the kernel takes them."""
        copies = [self.arrays[f.name].copy() for f in self.family.arrays]
        return copies if self.arrange is None else [self.arrange(x) for x in copies]

    def fresh_options(self) -> dict[str, Any]:
        """Return the options with their arrays copied, so that a kernel that writes to one spoils nothing."""
        return {name: _fresh(x) for name, x in self.options.items()}


def _fresh(x: Any) -> Any:
    if isinstance(x, tuple) and x and isinstance(x[0], np.ndarray):
        return tuple(y.copy() for y in x)
    return x.copy() if isinstance(x, np.ndarray) else x


def coded(x: Any, contract: Contract, wide: bool) -> Array:
    """Round numbers to the dtype that a kernel gets."""
    x = np.asarray(x)
    if wide:
        return x.astype(np.float64 if contract.dtype == "float64" else np.float32)
    done = x.dtype == np.uint16 or x.dtype.name == contract.dtype
    return x if done else encode(x, contract.dtype, contract.uint16)


def problem(
    contract: Contract,
    op: str,
    arrays: Mapping[str, Any],
    *,
    normal: bool = False,
    scored: bool = False,
    arrange: Callable[[Array], Array] | None = None,
    **options: Any,
) -> Problem:
    """Return a problem with the arrays in the dtypes of the contract.

    What the contract says of an option in `always` holds where nothing else is asked for, and everywhere if the kernel
    has no such keyword.
    """
    family = FAMILIES[op]
    given = {f.name: coded(arrays[f.name], contract, f.wide) for f in family.arrays}
    fixed = {name: x for name, x in contract.always.items() if name not in (contract.options or ())}
    merged = {name: x for name, x in {**contract.always, **options, **fixed}.items() if x is not None}
    for f in family.options:
        if f.name in merged:
            merged[f.name] = coded(merged[f.name], contract, f.wide)
    if "initial_state" in merged:
        states = merged["initial_state"]
        wide = tuple(coded(x, contract, True) for x in (states if isinstance(states, tuple) else (states,)))
        merged["initial_state"] = wide if len(family.states) > 1 else wide[0]
    if "cu_seqlens" in merged:
        merged["cu_seqlens"] = np.asarray(merged["cu_seqlens"], np.int32)
    return Problem(op, given, merged, normal, scored, arrange)


def wide_values(p: Problem, contract: Contract, wide: Any = np.float64) -> dict[str, Array]:
    """Return every array of a problem, keywords included, as the numbers that they stand for."""
    found = {}
    for f in p.family.all_fields:
        x = p.arrays.get(f.name, p.options.get(f.name))
        if x is not None:
            found[f.name] = x.astype(wide) if f.wide else decode(x, contract.dtype, wide)
    return found


def take(p: Problem, letter: str, at: Any) -> Problem:
    """Return the problem with every axis of that letter indexed by `at`, a slice or an array."""

    def part(x: Array, axes: str) -> Array:
        if letter not in axes:
            return x
        return np.ascontiguousarray(x[(*[slice(None)] * axes.index(letter), at)])

    arrays = {f.name: part(p.arrays[f.name], f.axes) for f in p.family.arrays}
    options = dict(p.options)
    for f in p.family.options:
        if f.name in options:
            options[f.name] = part(options[f.name], f.axes)
    done = replace(p, arrays=arrays, options=options)
    if p.initial is not None:
        done = done.starting(tuple(part(x, f.axes) for x, f in zip(p.initial, p.family.states, strict=True)))
    return done


def sequences_of(p: Problem) -> list[Problem]:
    """Return the packed sequences of a problem as problems of their own; the problem itself if nothing is packed."""
    borders = p.options.get("cu_seqlens")
    if borders is None:
        return [p]
    plain, found = p.with_options(cu_seqlens=None), []
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        alone = take(plain.starting(None), "T", slice(int(first), int(stop)))
        if p.initial is not None:
            alone = alone.starting(tuple(x[n : n + 1] for x in p.initial))
        found.append(alone)
    return found


def head_order(p: Problem, letter: str) -> Array:
    """Return the heads of one letter with the groups that share something in reverse order."""
    groups = min(p.sizes[x] for x in HEADS if x in p.sizes)
    return (np.arange(groups)[::-1, None] * (p.sizes[letter] // groups) + np.arange(p.sizes[letter] // groups)).ravel()
