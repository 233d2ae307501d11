"""Relations that hold between calls: exact ones to the bit, and that a sequence may be cut anywhere.

They find what one call cannot show: a state that is not the one to go on with, a workspace that keeps something of the
last call, a neighbour in the batch that matters, a future that leaks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refattn.testing.checks import Run
from refattn.testing.contract import Contract
from refattn.testing.formats import TINY, decode, encode
from refattn.testing.recurrence.draw import Draw
from refattn.testing.recurrence.family import FAMILIES
from refattn.testing.recurrence.judge import analyse, where
from refattn.testing.recurrence.problem import HEADS, Problem, coded, head_order, problem, take
from refattn.testing.session import Output

Relation = Callable[[Run, Problem], Iterator[str]]
SIZES = {"T": 70, "H": 4}


def base(contract: Contract, seed: int, sizes: dict[str, int] | None = None, initial: bool = False) -> Problem:
    """Return the usual problem that relations start from."""
    rng = np.random.default_rng([404, seed])
    draw = Draw(rng, contract, FAMILIES[contract.op], SIZES | (sizes or {}))
    options = {"initial_state": draw.states()} if initial else {}
    return problem(contract, contract.op, draw.arrays(), normal=True, **options)


def differ(a: Output, b: Output, p: Problem, take: Any = slice(None), also: Any = slice(None)) -> Iterator[str]:
    """Say where the bits of two outputs differ, part by part."""
    axes = {"o": p.family.o} | {f.name: f.axes for f in p.family.states}
    for name in a.parts:
        x, y = a.bits(name)[take], b.bits(name)[also]
        if (x != y).any():
            yield f"{name} differs in {(x != y).sum()} of {x.size} places, {where(x != y, axes[name])}"


def times(p: Problem, factor: float, run: Run, *names: str) -> Problem:
    """Return the problem with arrays of the kernel's dtype times a power of two: exact."""
    changed = {}
    for name in names:
        x = p.arrays[name]
        changed[name] = encode(decode(x, run.contract.dtype) * factor, run.contract.dtype, x.dtype == np.uint16)
    return p.changed(**changed)


def tokens(p: Problem, name: str, at: Any) -> tuple[Any, ...]:
    """Return the index of some tokens of an argument."""
    axes = next(f.axes for f in p.family.arrays if f.name == name)
    return (*[slice(None)] * axes.index("T"), at)


def put(p: Problem, name: str, at: Any, value: Any, contract: Contract) -> Problem:
    """Return the problem with a value put in some places of one array."""
    x = p.arrays[name].copy()
    x[at] = coded(np.asarray(value, np.float64), contract, next(f.wide for f in p.family.arrays if f.name == name))
    return p.changed(**{name: x})


def repeat(run: Run, p: Problem) -> Iterator[str]:
    """The same call gives the same bits, and a result outlives the next call."""
    first = run.session.call(p)
    kept = {name: x.tobytes() for name, x in first.parts.items()}
    for _ in range(4 if run.contract.deterministic else 1):
        again = run.session.call(p)
        if run.contract.deterministic:
            yield from differ(again, first, p)
    if kept != {name: x.tobytes() for name, x in first.parts.items()}:
        yield "a later call wrote to an earlier result"


def stale_memory(run: Run, p: Problem) -> Iterator[str]:
    """Calls of the same shapes and of others with large numbers leave nothing behind."""
    first = run.session.call(p)
    small = base(run.contract, run.seed, {"T": 17, "B": 1})
    alone = run.session.call(small)
    loud = times(p, 64.0, run, *p.family.linear)
    gates = {f.name: p.arrays[f.name] * np.float32(0.5) for f in p.family.arrays if f.wide}
    run.session.call(loud.changed(**{n: x.astype(p.arrays[n].dtype) for n, x in gates.items()}))
    run.session.call(times(base(run.contract, run.seed, {"B": 3, "T": 140}), 64.0, run, *p.family.linear))
    yield from differ(run.session.call(p), first, p)
    run.session.call(loud)
    yield from differ(run.session.call(small), alone, p)
    if run.session.takes("initial_state"):
        run.session.call(base(run.contract, run.seed, initial=True))
        yield from differ(run.session.call(p), first, p)


def permuted_batch(run: Run, p: Problem) -> Iterator[str]:
    """Sequences in another order give the results in that order."""
    turned = run.session.call(take(p, "B", slice(None, None, -1)))
    yield from differ(turned, run.session.call(p), p, also=slice(None, None, -1))


def batch_invariance(run: Run, p: Problem) -> Iterator[str]:
    """A sequence alone gives the bits that it gives beside others."""
    many = base(run.contract, run.seed, {"B": 4})
    whole = run.session.call(many)
    for n in (0, 3):
        part = slice(n, n + 1)
        yield from differ(run.session.call(take(many, "B", part)), whole, p, also=part)


def permuted_heads(run: Run, p: Problem) -> Iterator[str]:
    """Heads in another order give the results in that order."""
    p = base(run.contract, run.seed, {"H": 4, "V": 4, "G": 2 if p.op == "ssd" else 4})
    turned = p
    letters = [letter for letter in HEADS if letter in p.sizes]
    for letter in letters:
        turned = take(turned, letter, head_order(p, letter))
    a, b = run.session.call(turned), run.session.call(p)
    for name in b.parts:
        axes = p.family.o if name == "o" else next(f.axes for f in p.family.states if f.name == name)
        off = a.bits(name) != b.bits(name)[:, head_order(p, axes[1])]
        if off.any():
            yield f"{name} depends on the order of heads in {off.sum()} of {off.size} places, {where(off, axes)}"


def future(run: Run, p: Problem) -> Iterator[str]:
    """Later tokens change no bit of earlier ones; later gates may change their rounding, where chunks share it."""
    plain, T, axes = run.session.call(p), p.sizes["T"], p.family.o
    bound = run.kept("bound of future", lambda: analyse(p, run.contract).parts["o"].bound)
    rng = np.random.default_rng(run.seed)
    for cut in sorted({T // 3, T * 2 // 3, T - 1}):
        other, rows = p, (*[slice(None)] * axes.index("T"), slice(None, cut))
        for gates in (False, True):
            for f in p.family.arrays:
                if "T" in f.axes and f.wide is gates:
                    at = tokens(p, f.name, slice(cut, None))
                    x = (p.arrays[f.name] if f.wide else decode(p.arrays[f.name], run.contract.dtype))[at]
                    other = put(other, f.name, at, x * rng.uniform(0.3, 1.5, x.shape), run.contract)
            got = run.session.call(other)
            off = got.bits("o")[rows] != plain.bits("o")[rows]
            if gates:
                off = off & ~(np.abs(got["o"] - plain["o"])[rows] <= 2 * bound[rows])
            if off.any():
                yield f"tokens from {cut} on change earlier ones in {off.sum()} places, {where(off, axes)}"
                break


def future_nan(run: Run, p: Problem) -> Iterator[str]:
    """A NaN in a token reaches that token, and none before it."""
    plain, axes = run.session.call(p), p.family.o
    T = p.sizes["T"]
    rows = axes.index("T")
    for name in p.family.tokens:
        for t in (T // 2, T - 1):
            got = run.session.call(put(p, name, tokens(p, name, t), np.nan, run.contract))
            before = (*[slice(None)] * rows, slice(None, t))
            off = got.bits("o")[before] != plain.bits("o")[before]
            if off.any():
                yield f"NaN in {name} of token {t} reaches earlier ones in {off.sum()} places, {where(off, axes)}"
            if not np.isnan(got["o"].take(t, axis=rows)).all():
                yield f"NaN in {name} of token {t} is swallowed"
            if t == T - 1 and name in p.family.linear and p.family.states[0].name in ("state", "num"):
                last = got[p.family.states[0].name]
                if p.family.states[0].axes != "BJE" and not np.isnan(last).all():
                    yield f"NaN in {name} of the last token does not reach the state"


def powers_of_values(run: Run, p: Problem) -> Iterator[str]:
    """Twice the values give twice o and twice the state: exponents shift and mantissas stay."""
    name = p.family.linear
    slack = 4 * p.sizes["T"] * TINY[run.contract.numerics["p"]] if run.contract.dtype == "float16" else 0.0
    pairs = [(base(run.contract, run.seed), False)]
    if run.session.takes("initial_state") and len(p.family.states) == 1:
        pairs.append((base(run.contract, run.seed, initial=True), True))
    for one, initial in pairs:
        small, large = times(one, 8.0, run, *name), times(one, 16.0, run, *name)
        if initial and one.initial is not None:
            small = small.starting(tuple(8 * x for x in one.initial))
            large = large.starting(tuple(16 * x for x in one.initial))
        a, b = run.session.call(large), run.session.call(small)
        for part in a.parts:
            if part in ("normaliser", "den", "max"):
                continue
            x, y = a[part], 2 * b[part]
            off = (np.abs(x - y) > slack) & (np.abs(y) > 1e-3)
            if off.any():
                yield f"twice the values do not give twice {part} in {off.sum()} of {off.size} places"


def negated_values(run: Run, p: Problem) -> Iterator[str]:
    """o(-v) = -o(v)."""
    a, b = run.session.call(times(p, -1.0, run, *p.family.linear)), run.session.call(p)
    off = a["o"] != -b["o"]
    if off.any():
        yield f"o(-v) is not -o(v) in {off.sum()} of {off.size} places, {where(off, p.family.o)}"
