"""Score tests: the ways in which a recurrence is a little wrong everywhere, and how o moves with each.

See `refattn.testing.attention.scores` for the test. Here the directions are differences of the oracle: o is linear in
the values, so that what some tokens add is o of these tokens alone; for gates it is the central difference.
"""

from collections.abc import Iterator

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.recurrence.oracle import shared, truth
from refattn.testing.recurrence.problem import Problem, take, wide_values

CHUNKS = (16, 32, 64)
STEP = 1e-4


def slope(p: Problem, contract: Contract, name: str, shift: Array, part: float = STEP) -> Array:
    """Return d o / dθ for an array that becomes x + θ shift."""
    x = wide_values(p, contract)[name]
    given = [truth(p, contract, **{name: x + sign * part * shift})[0] for sign in (1, -1)]
    return np.asarray(given[0] - given[1], np.float64) / (2 * part)


def directions(p: Problem, contract: Contract, o: Array) -> Iterator[tuple[str, Array]]:
    """Yield the name of each possible mistake and how o moves with it."""
    x = wide_values(p, contract)
    yield "amplitude", o
    for name in ("log_decay", "w"):
        if name in x:  # a decay is off by a factor 1 + θ in every step
            yield "decay", slope(p, contract, name, np.where(np.isfinite(x[name]), 1.0, 0.0))
    for name, what in (("A", "decay"), ("beta", "beta"), ("a", "a")):
        if name in x:
            yield f"log_{what}", slope(p, contract, name, x[name])
    if "beta" in x:
        yield "log_keys", slope(p, contract, "k", x["k"])
    if "u" in p.arrays and p.op.startswith("rwkv"):
        yield "bonus", slope(p, contract, "u", x["u"])
    if "weight" in p.arrays:
        for tap in range(p.sizes["K"]):
            yield f"tap_{tap}", slope(p, contract, "weight", x["weight"] * (np.arange(p.sizes["K"]) == tap))
    if p.op in ("retention", "simple_gla", "gated_linear_attention"):
        q, k, v = (shared(x[name], p.sizes["O"]) for name in "qkv")
        yield "read_before_update", (q * k).sum(-1, keepdims=True) * v
    if p.op not in ("rwkv4", "causal_conv1d"):
        yield from _tokens(p, contract, o)
    if "D" in p.options:
        without = truth(p.with_options(D=None), contract)[0]
        yield "skip", o - np.asarray(without, np.float64)


def _tokens(p: Problem, contract: Contract, o: Array) -> Iterator[tuple[str, Array]]:
    """Yield what the last token adds, the first ones of chunks, the tail of the last chunk, and the initial state."""
    T, t = p.sizes["T"], np.arange(p.sizes["T"])
    sets = {"last_token": t == T - 1}
    for n in CHUNKS:
        if n < T and "cu_seqlens" not in p.options:
            sets[f"chunk_first_{n}"] = (t % n == 0) & (t > 0)
            if T % n:
                sets[f"tail_{n}"] = t >= T - T % n
    for name, chosen in sets.items():
        yield name, share_of(p, contract, o, chosen)
    if p.initial is not None:
        yield "initial_state", o - share_of(p, contract, o, np.ones(T, bool))


def share_of(p: Problem, contract: Contract, o: Array, chosen: Array) -> Array:
    """Return how o moves when the chosen tokens weigh 1 + θ."""
    name = p.family.linear[0]
    axes = next(f.axes for f in p.family.arrays if f.name == name)
    keep = chosen.reshape([-1 if letter == "T" else 1 for letter in axes])
    v = wide_values(p, contract)[name]
    alone = p.starting(None).with_options(D=None)
    if p.op != "linear_attention":
        return np.asarray(truth(alone, contract, **{name: v * keep})[0], np.float64)
    sums, ones = p.with_options(normalize=False), np.ones_like(v[..., :1])
    total = truth(_ones(sums), contract, v=ones)[0]
    num = truth(sums.starting(None), contract, v=v * keep)[0]
    den = truth(_ones(sums).starting(None), contract, v=ones * keep)[0]
    return np.asarray((num - o * den) / np.where(total == 0, 1, total), np.float64)


def _ones(p: Problem) -> Problem:
    """Return the problem whose sums are the normaliser of linear attention."""
    one = take(p, "W", slice(0, 1))
    return one if p.initial is None else one.starting((p.initial[1][..., None], p.initial[1]))
