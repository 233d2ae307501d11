"""Relations of the state: it stays where nothing happens, forgets what a gate forgets, and is a new array."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.checks import Run
from refattn.testing.recurrence.judge import where
from refattn.testing.recurrence.problem import Problem
from refattn.testing.recurrence.properties import Relation, base, differ, put, tokens


def zero_state(run: Run, p: Problem) -> Iterator[str]:
    """A state of zeros is no state."""
    wide = np.float64 if run.contract.dtype == "float64" else np.float32
    zeros = tuple(np.full(p.state_shape(f), -np.inf if f.name == "max" else 0, wide) for f in p.family.states)
    yield from differ(run.session.call(p.starting(zeros)), run.session.call(p), p)


STILL = {
    **dict.fromkeys(("beta", "log_decay", "dt", "delta", "kappa_hat"), "every operation"),
    "k": "those that have no beta to stop it",
}
"""What is 0 where nothing happens to a state."""


def no_update(run: Run, p: Problem) -> Iterator[str]:
    """Where there is nothing to add and nothing decays, the state stays as it is, to the bit."""
    one = base(run.contract, run.seed, {"T": 40}, initial=True)
    names = [name for name in STILL if name in one.arrays and not (name == "k" and "beta" in one.arrays)]
    got = run.session.call(one.changed(**{name: np.zeros_like(one.arrays[name]) for name in names}))
    initial, f = one.initial, one.family.states[0]
    off = got["state"] != (0 if initial is None else initial[0])
    if off.any():
        yield f"{', '.join(names)} of 0 change the state in {off.sum()} of {off.size} places, {where(off, f.axes)}"


def forgets(value: float, keys: bool) -> Relation:
    """Return the relation that a log-decay of -inf forgets what came before, to the bit."""

    def relation(run: Run, p: Problem) -> Iterator[str]:
        T = p.sizes["T"]
        cut = T // 2 + 3
        p = put(p, "log_decay", tokens(p, "log_decay", cut), -np.inf, run.contract)
        plain = run.session.call(p)
        for name in ("v", "k") if keys else ("v",):
            poisoned = put(p, name, tokens(p, name, slice(cut - 9, cut)), value, run.contract)
            got, later = run.session.call(poisoned), np.s_[:, :, cut + (p.op == "rwkv6") :]  # which reads first
            off = got.bits("o")[later] != plain.bits("o")[later]
            if off.any():
                yield f"{value:g} in {name} before a decay of -inf reaches later tokens in {off.sum()} places"
            if (got.bits("state") != plain.bits("state")).any():
                yield f"{value:g} in {name} before a decay of -inf reaches the state"

    return relation


class Watched:
    """A problem that remembers the initial states that it handed out; a `refattn.testing.session.Call`."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.given: list[Array] = []
        self.arguments, self.results = p.arguments, p.results

    def fresh_options(self) -> dict[str, Any]:
        """Return the options of the problem."""
        options = self.p.fresh_options()
        given = options.get("initial_state")
        self.given = [given] if isinstance(given, np.ndarray) else list(given or ())
        return options


def own_state(run: Run, p: Problem) -> Iterator[str]:
    """The state that comes back is a new array, with something to do and without."""
    for T in (0, 5) if run.contract.empty else (5,):
        watched = Watched(base(run.contract, run.seed, {"T": T}, initial=True))
        got = run.session.call(watched)
        for name, x in got.parts.items():
            if any(np.may_share_memory(x, y) and np.shares_memory(x, y) for y in watched.given):
                yield f"{name} shares memory with initial_state (T = {T})"
