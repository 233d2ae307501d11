"""A service rehearsed: the same requests at several rates, over several seeds, and what can be said from that.

A run's first fifth is left out, in which the engine fills up, and its last tenth, in which it empties. Intervals are
Student's, of 95 %, of the mean over seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from refattn.costs.engine import Serving
from refattn.costs.lengths import Lengths
from refattn.costs.simulation import Floats, Ints, Run, poisson, simulate

SIMULATED = "simulated"
FILLING, EMPTYING = 0.2, 0.1
"""Shares of the requests that are left out."""
TURNS = 8
"""Requests of a run, at least, for each that may run at once."""
HALVINGS = 7


class Figure(NamedTuple):
    """A mean over seeds, with the interval that holds the true mean in 95 % of cases."""

    value: float
    low: float
    high: float
    unit: str
    kind: str = SIMULATED


class Simulated(NamedTuple):
    """An engine at a rate of requests."""

    ttft_p50: Figure
    ttft_p95: Figure
    tpot_p50: Figure | None
    """None where all outputs are of one token."""
    tpot_p95: Figure | None
    wait_mean: Figure
    ttft_mean: Figure
    running: Figure
    """Requests in service, on average over time."""
    busy: Figure
    """The share of time in passes."""
    tokens_per_second: Figure
    """Of output."""
    rejected: float
    """The share of requests that do not fit into memory even alone."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Runs of an engine."""

    serving: Serving
    prompts: Lengths
    output: Lengths
    requests: int
    seeds: int

    def run(self, rate: float | None, seed: int, limit: int) -> Run:
        """Return one run: at a rate, or with all requests there from the beginning; its lengths depend on the seed."""
        count = max(self.requests, TURNS * limit)
        prompts, outputs = self._lengths(count, seed)
        arrivals = np.zeros(count) if rate is None else poisson(rate, count, np.random.default_rng([seed, 0]))
        return simulate(self.serving.engine(), arrivals, prompts, outputs)

    def _lengths(self, count: int, seed: int) -> tuple[Ints, Ints]:
        return (
            self.prompts.sample(count, np.random.default_rng([seed, 1])),
            self.output.sample(count, np.random.default_rng([seed, 2])),
        )

    def capacity(self, limit: int) -> Figure:
        """Return the requests a second that come out of a queue that never ends.

        Counted from prefill to prefill over whole turns of the batch, without the first and the last one.
        """
        return _figure([self._saturated(seed, limit) for seed in range(self.seeds)], "requests/s")

    def _saturated(self, seed: int, limit: int) -> float:
        run = self.run(None, seed, limit)
        starts = run.start[~np.isnan(run.start)]
        turn = max(1, min(run.most_running, len(starts) // 4))
        turns = len(starts) // turn
        if turns < 4:
            return len(starts) / run.end if run.end else 0.0
        return (turns - 2) * turn / float(starts[(turns - 1) * turn] - starts[turn])

    def at(self, rate: float, limit: int) -> Simulated:
        """Return what is seen at a rate that is below capacity."""
        runs = [self.run(rate, seed, limit) for seed in range(self.seeds)]

        def quantile(name: str, p: float) -> Figure | None:
            values = [_quantile(getattr(run, name), p) for run in runs]
            return None if any(x is None for x in values) else _figure([x for x in values if x is not None], "s")

        ttft50, ttft95 = quantile("ttft", 0.5), quantile("ttft", 0.95)
        if ttft50 is None or ttft95 is None:
            raise ValueError("serve_plan: no request of the simulation fits into memory; give more devices")
        return Simulated(
            ttft50,
            ttft95,
            quantile("tpot", 0.5),
            quantile("tpot", 0.95),
            _figure([float(np.nanmean(_middle(run.wait))) for run in runs], "s"),
            _figure([float(np.nanmean(_middle(run.ttft))) for run in runs], "s"),
            _figure([run.in_service / run.end for run in runs], "requests"),
            _figure([run.busy / run.end for run in runs], "", most=1.0),
            _figure([float(run.outputs[~np.isnan(run.start)].sum()) / run.end for run in runs], "tokens/s"),
            sum(run.rejected for run in runs) / sum(len(run.arrival) for run in runs),
        )

    def highest(self, promised: dict[str, float], capacity: float, limit: int, done: Callable[[float], None]) -> Figure:
        """Return the highest rate below capacity that keeps what is promised, by bisection for each seed."""
        found = []
        for seed in range(self.seeds):
            keeps = lru_cache(lambda rate, seed=seed: self._keeps(promised, rate, seed, limit))
            low, high = 0.0, capacity
            for n in range(HALVINGS):
                done((seed + n / HALVINGS) / self.seeds)
                middle = (low + high) / 2
                low, high = (middle, high) if keeps(middle) else (low, middle)
            found.append(low)
        return _figure(found, "requests/s")

    def _keeps(self, promised: dict[str, float], rate: float, seed: int, limit: int) -> bool:
        run = self.run(rate, seed, limit)
        for name, most in promised.items():
            what, _, percentile = name.partition("_p")
            value = _quantile(getattr(run, what), int(percentile) / 100)
            if value is not None and value > most:
                return False
        return True


def _middle(values: Floats) -> Floats:
    return values[int(FILLING * len(values)) : len(values) - int(EMPTYING * len(values))]


def _quantile(values: Floats, p: float) -> float | None:
    """Return a quantile of a run, without requests that have no such time; None if none has."""
    there = _middle(values)
    there = there[~np.isnan(there)]
    return float(np.quantile(there, p)) if there.size else None


def _figure(values: list[float], unit: str, most: float = math.inf) -> Figure:
    """Return the mean with its interval, which stays between 0 and `most`."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stdtrit(len(values) - 1, 0.975)) * spread
    return Figure(mean, max(0.0, mean - half), min(most, mean + half), unit)
