"""A serving engine, simulated event by event: requests wait, are admitted where memory lets them, prefilled, decoded.

Scheduling by iteration, as in Yu et al., 2022, "Orca" (OSDI), section 3: after each pass those that are finished leave
and those that wait come in, first come first served. A pass is either a prefill of new requests, while the others
stand still, or one decode step of all that run. A request's cache is reserved at its full length when it is admitted,
so that nothing is ever thrown out. Between two events all steps are computed at once.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count, check_number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Engine:
    """What a pass takes, and how much memory there is.

    With one slot, a constant prefill and outputs of one token it is the queue M/D/1; with c slots, no prefill, short
    steps of constant length and geometric outputs it is M/M/c as closely as the steps are short.
    """

    prefill: Callable[[Ints], float]
    """Prompts of a pass, in tokens -> seconds."""
    step: Callable[[int, Floats], Floats]
    """Running sequences, and the bytes that they keep at each of some steps -> seconds of each."""
    kept: Ints
    """Bytes that a sequence keeps after 0, 1, 2, ... tokens."""
    room: float
    """Bytes for all of them."""
    slots: int = 256
    """Sequences that may run at once."""
    pass_tokens: int = 8192
    """Prompts are prefilled together up to so many tokens; a longer one alone."""


@dataclass(frozen=True, eq=False)
class Run:
    """When what happened to each request: seconds since the beginning, NaN for those that never fit into memory."""

    arrival: Floats
    start: Floats
    """Prefill begins."""
    first: Floats
    """The first token is there."""
    finish: Floats
    outputs: Ints
    busy: float
    """Seconds in passes."""
    in_service: float
    """Requests in service, integrated over time: request seconds, added up pass by pass."""
    most_bytes: int
    """Reserved at once, at most."""
    most_running: int

    @property
    def wait(self) -> Floats:
        """From arrival to prefill."""
        return self.start - self.arrival

    @property
    def ttft(self) -> Floats:
        """Time to the first token."""
        return self.first - self.arrival

    @property
    def tpot(self) -> Floats:
        """Time per output token after the first; NaN for outputs of one token."""
        gaps = np.where(self.outputs > 1, self.outputs - 1, np.nan)
        return (self.finish - self.first) / gaps

    @property
    def end(self) -> float:
        """When the last one is finished; 0 if none is."""
        return float(np.nanmax(self.finish, initial=0.0))

    @property
    def rejected(self) -> int:
        """Requests that do not fit into memory even alone."""
        return int(np.isnan(self.start).sum())


def poisson(rate: float, count: int, rng: np.random.Generator) -> Floats:
    """Return the times of `count` arrivals, `rate` a second; the same ones, stretched, for the same rng.

    Raises
    ------
    TypeError, ValueError
        For a rate that is not above 0 and a count below 1.
    """
    check_number("simulation", "rate", rate, above=0)
    check_count("simulation", "count", count)
    return np.cumsum(rng.exponential(size=count)) / rate


def simulate(engine: Engine, arrivals: Floats, prompts: Ints, outputs: Ints) -> Run:
    """Return what becomes of requests.

    Parameters
    ----------
    engine : Engine
    arrivals : array of float (n,)
        Seconds, ascending.
    prompts, outputs : array of int (n,)
        Tokens, at least 1; the first token of an output comes out of prefill.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For arrays of different lengths, arrivals that go back, lengths below 1 or beyond `engine.kept`.
    """
    arrivals, prompts, outputs = np.asarray(arrivals, float), np.asarray(prompts), np.asarray(outputs)
    need = _check(engine, arrivals, prompts, outputs)
    queue = np.flatnonzero(need <= engine.room)
    start, first, finish = (np.full(len(arrivals), np.nan) for _ in range(3))
    live = np.zeros(0, np.int64)  # who runs; how many tokens each has cached, and has still to make
    cached, left = live, live
    linear = _slope(engine.kept)
    t = busy = in_service = 0.0
    head = used = most_bytes = most_running = 0
    while head < len(queue) or live.size:
        new = _admitted(engine, queue[head:], t, arrivals, prompts, need, live.size, used)
        if new.size:
            head += new.size
            used += int(need[new].sum())
            most_bytes, most_running = max(most_bytes, used), max(most_running, live.size + new.size)
            start[new] = t
            seconds = float(engine.prefill(prompts[new]))
            t, busy, in_service = t + seconds, busy + seconds, in_service + seconds * (live.size + new.size)
            first[new] = t
            live = np.concatenate([live, new])
            cached, left = np.concatenate([cached, prompts[new]]), np.concatenate([left, outputs[new] - 1])
        elif not live.size:
            t = max(t, float(arrivals[queue[head]]))
            continue
        else:
            count = int(left.min())
            ends = np.cumsum(engine.step(live.size, _kept(engine.kept, cached, count, linear)))
            if head < len(queue) and arrivals[queue[head]] > t:  # who comes is looked at when the step is over
                count = min(count, int(np.searchsorted(ends, arrivals[queue[head]] - t)) + 1)
            seconds = float(ends[count - 1])
            t, busy, in_service = t + seconds, busy + seconds, in_service + seconds * live.size
            cached, left = cached + count, left - count
        done = left == 0
        if done.any():
            finish[live[done]] = t
            used -= int(need[live[done]].sum())
            live, cached, left = live[~done], cached[~done], left[~done]
    return Run(arrivals, start, first, finish, outputs, busy, in_service, most_bytes, most_running)


def _check(engine: Engine, arrivals: Floats, prompts: Ints, outputs: Ints) -> Ints:
    """Return the bytes that each request reserves."""
    if not arrivals.shape == prompts.shape == outputs.shape or arrivals.ndim != 1:
        shapes = f"{arrivals.shape}, {prompts.shape} and {outputs.shape}"
        raise ValueError(f"simulate: arrivals, prompts and outputs are {shapes}; wanted as many of each")
    if not np.isfinite(arrivals).all() or (np.diff(arrivals) < 0).any() or (arrivals < 0).any():
        raise ValueError("simulate: arrivals go back, or are no times; wanted finite ones in order, from 0 on")
    if arrivals.size and min(prompts.min(), outputs.min()) < 1:
        raise ValueError("simulate: a length below 1; wanted prompts and outputs of at least one token")
    if arrivals.size and (prompts + outputs).max() >= len(engine.kept):
        raise ValueError(f"simulate: {(prompts + outputs).max()} tokens; engine.kept goes to {len(engine.kept) - 1}")
    check_count("simulate", "slots", engine.slots)
    return engine.kept[prompts + outputs]


def _admitted(
    engine: Engine, queue: Ints, t: float, arrivals: Floats, prompts: Ints, need: Ints, running: int, used: int
) -> Ints:
    """Return who is prefilled now: from the head of the queue as many as have come, fit, and share a pass."""
    tokens = count = 0
    for i in queue[: engine.slots - running]:
        tokens, used = tokens + int(prompts[i]), used + int(need[i])
        if arrivals[i] > t or used > engine.room or (count and tokens > engine.pass_tokens):
            break
        count += 1
    return queue[:count]


def _slope(kept: Ints) -> int | None:
    """Return the bytes of a token, where each has as many as the other."""
    slopes = np.diff(kept[1:])
    return int(slopes[0]) if slopes.size and (slopes == slopes[0]).all() else None


def _kept(kept: Ints, cached: Ints, count: int, slope: int | None) -> Floats:
    """Return the bytes that all sequences keep in each of the next `count` steps, the new token's included."""
    steps = np.arange(1, count + 1)
    if slope is not None:
        return np.asarray(kept[cached].sum() + slope * cached.size * steps, dtype=np.float64)
    return np.asarray(kept[cached[:, None] + steps].sum(axis=0), dtype=np.float64)


def queue_waits(arrivals: Floats, services: Floats, servers: int = 1) -> Floats:
    """Return how long each request waits for the first free one of some servers, first come first served.

    Parameters
    ----------
    arrivals : array of float (n,)
        Seconds, ascending.
    services : array of float (n,)
        Seconds.
    servers : int

    Returns
    -------
    array of float (n,)

    Raises
    ------
    TypeError, ValueError
        For no servers.

    Examples
    --------
    >>> queue_waits([0, 1, 2], [3, 3, 3]), queue_waits([0, 1, 2], [3, 3, 3], servers=2)
    (array([0., 2., 4.]), array([0., 0., 1.]))
    """
    check_count("simulation", "servers", servers)
    free, waits = [0.0] * servers, np.zeros(len(arrivals))
    for i, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        begin = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begin + service)
        waits[i] = begin - arrival
    return waits
