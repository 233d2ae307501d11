"""A service by formula: how many requests run, how fast each gets its tokens, and how long it waits for the first one.

Prefills are a queue of their own, M/G/1 (Pollaczek and Khinchine), as they go before decoding; how many decode follows
from Little's law: as many as come in while one is decoded.
"""

import math
from typing import NamedTuple

import numpy as np

from refattn.costs.engine import Serving
from refattn.costs.lengths import Lengths
from refattn.costs.queueing import mg1_wait


class Row(NamedTuple):
    """The engine with so many requests running, as the roofs have it: times are at least that, rates at most."""

    batch: int
    tpot: float
    """Seconds of a decode step; prefills of others come on top."""
    tokens_per_second: float
    """batch / tpot."""
    requests_per_second: float
    """That keep so many running, prefills included."""
    ttft: float | None
    """Mean at that rate; None at the limit, where requests wait without end."""
    kv_bytes: float
    bound_by: str
    """The largest part of a step: KV cache, weights, or compute."""


class Steady(NamedTuple):
    """The engine at a rate of requests, by formula."""

    running: float
    """Requests in decoding on average."""
    tpot: float
    ttft: float
    """Mean: prefill, the wait of M/G/1 for prefills before it, and the rest of a step."""
    prefilling: float
    """The share of time in prefills."""


class Forms:
    """The closed forms of a service.

    Examples
    --------
    >>> from refattn.costs.hardware import hardware
    >>> from refattn.costs.presets import preset
    >>> prompts, output = Lengths.of(1000), Lengths.of(200)
    >>> forms = Forms(Serving(preset("llama-3-8b"), hardware("h200"), longest=1200), prompts, output)
    >>> forms.concurrency, round(forms.capacity, 1), forms.row(64).bound_by
    (699, 42.4, 'weights')
    """

    def __init__(self, serving: Serving, prompts: Lengths, output: Lengths) -> None:
        self.serving, self.prompts, self.output = serving, prompts, output
        kept, last = serving.kept.astype(np.float64), serving.longest
        mean, seen = round(output.mean), round(output.expect(lambda n: n**2) / (2 * output.mean))
        self.reserved = prompts.expect(lambda p: kept[np.minimum(p.astype(int) + mean, last)])
        # a step finds a request with half its tokens, weighted by how long it stays: E[n²] / 2E[n]
        self.held = prompts.expect(lambda p: kept[np.minimum(p.astype(int) + max(1, seen), last)])
        self.concurrency = serving.fitting(self.reserved)
        p95 = prompts.quantile(0.95) + output.quantile(0.95)
        self.concurrency_p95 = serving.concurrency(p95)
        self.needed = serving.needed(self.reserved)
        self.limit = min(self.concurrency, serving.max_batch)
        self.prefill = prompts.expect(serving.prefill_each)
        self.square = prompts.expect(lambda p: serving.prefill_each(p) ** 2)
        self.steps = output.mean - 1

    def step(self, batch: float) -> float:
        """Return the seconds of a decode step."""
        return float(self.serving.step(batch, np.array(batch * self.held)))

    @property
    def capacity(self) -> float:
        """The requests a second that can be sustained."""
        return self.rate(self.limit) if self.limit else 0.0

    def rate(self, batch: int) -> float:
        """Return the requests a second that keep so many running: 1 / (F + (n - 1)·step / B)."""
        return 1 / (self.prefill + self.steps * self.step(batch) / batch)

    def steady(self, rate: float) -> Steady | None:
        """Return the state at a rate: by Little's law B = λ·(n - 1)·step / (1 - λF), found by iteration from 0.

        Where few of many possible requests run, one that runs has B others beside it on average.
        """
        free = 1 - rate * self.prefill
        if free <= 0 or rate >= self.rate(self.limit):
            return None
        running = 0.0
        for _ in range(10_000):
            before, running = running, rate * self.steps * self.step(min(running + 1, self.limit)) / free
            if running > self.limit:
                return None
            if running - before <= 1e-9 * running:
                break
        step = self.step(min(running + 1, self.limit))
        stepping = free * (1 - math.exp(-running))
        wait = mg1_wait(rate, self.prefill, self.square) + stepping * step / 2
        return Steady(running, step / free, self.prefill + wait, 1 - free)

    def row(self, batch: int) -> Row:
        """Return the row of a batch."""
        step, rate, held = self.step(batch), self.rate(batch), batch * self.held
        steady = self.steady(rate) if batch < self.limit else None
        ttft = None if steady is None else steady.ttft
        return Row(batch, step, batch / step, rate, ttft, held, self.serving.bound_by(batch, held))

    def rows(self) -> list[Row]:
        """Return rows for 1, 2, 4, ... and as many as fit; none where no output has a second token."""
        if not self.steps:
            return []
        batches = [2**n for n in range(self.limit.bit_length()) if 2**n < self.limit]
        return [self.row(batch) for batch in [*batches, self.limit]]
