"""Where the time of a pass goes: a network is run for some rounds, its components timed apart, and a verdict given.

The verdict is Amdahl's (1967): if attention is a share p of the time, no change to it gives more than 1 / (1 - p).
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn import dispatch
from refattn.arrays import Array, check_count
from refattn.costs.names import unknown
from refattn.dense.common import heads_of, repeat_heads
from refattn.models.tape import Tape, direct
from refattn.watch.clock import COMPONENTS, Clock, ClockedTape, peak_bytes
from refattn.watch.needs import check, counts
from refattn.watch.network import Network
from refattn.watch.roofs import Rates, best, measure_rates
from refattn.watch.verdict import amdahl

LEAST_ROUNDS, MOST_ROUNDS = 3, 200
Tick = Callable[[str, float], None]


@dataclass(frozen=True)
class Part:
    """What was measured of one component, of all layers that ran."""

    component: str
    seconds: float
    """Median of the rounds."""
    low: float
    high: float
    """The quartiles."""
    share: float
    """Of the whole model's time: median over the rounds, made to add up to 1."""
    flops: int
    """Exact, from `refattn.costs`; 0 for what is no matrix product or scan."""
    roof: str
    """The limit of the machine that is the nearest."""
    roof_seconds: float
    """What the component would take at that limit."""
    calls: int
    backward: float = 0.0
    """Median seconds of the derivatives, which `seconds` includes."""

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """What `profile` found."""

    parts: list[Part]
    seconds: float
    """Of the whole pass, without the clock: median of the rounds."""
    low: float
    high: float
    clocked: float
    """Of the whole pass with the clock, of which the parts are parts."""
    peak_bytes: int
    """The most that a pass allocates, its result included."""
    attention_share: tuple[float, float, float]
    """Of mixing tokens (attention and scan): median and quartiles."""
    phase: str
    backend: str
    batch: int
    seq: int
    rounds: int
    network: Network
    rates: Rates
    inside: dict[str, float] = field(default_factory=dict)
    """On numpy: seconds of the two products of attention alone, and what is left to the softmax."""

    def part(self, component: str) -> Part:
        """Return the part of a component; LookupError if it did not run."""
        for part in self.parts:
            if part.component == component:
                return part
        raise unknown("component of this profile", component, [part.component for part in self.parts])

    @property
    def whole(self) -> float | None:
        """Seconds of all layers, predicted from those that ran; None where some are missing and mechanisms differ."""
        scale = scale_of(self.network)
        return None if scale is None else sum(part.seconds * _times(part.component, scale) for part in self.parts)

    @property
    def verdict(self) -> str:
        """What a change to attention can give at most, and what is the bottleneck."""
        return amdahl(self)


def profile(
    network: Network,
    *,
    batch: int = 1,
    seq: int = 128,
    phase: str = "prefill",
    backend: str = "numpy",
    rounds: int | None = None,
    seconds: float = 5.0,
    seed: int = 0,
    rates: Rates | None = None,
    memory: bool = True,
    tick: Tick = lambda text, share: None,
) -> Profile:
    """Time the components of a network.

    Parameters
    ----------
    network : Network
    batch, seq : int
        So many sequences of so many tokens; in decoding, the last one is new.
    phase : {"prefill", "decode", "train"}
        Training runs forward, and backward from a gradient of the result, without a loss or an optimizer.
    backend : str
        Of the operations; matrices are NumPy's.
    rounds : int, optional
        How many; else as many as fit into `seconds`, from 3 to 200.
    seconds : float
        Of the rounds.
    seed : int
        Of the input.
    rates : Rates, optional
        The roofs; measured unless given.
    memory : bool
        Measure the peak, by one more pass.
    tick : function, optional
        Called with what happens and which share is done.

    Returns
    -------
    Profile

    Raises
    ------
    TypeError, ValueError, LookupError
        For sizes that are none, more tokens than positions, a phase or a backend that is not known, and where the pass
        does not fit into free memory: before anything runs.
    Unsupported
        Where the backend does not cover an operation.
    """
    check(network.sizes, network.causal, batch, seq, phase, backend)
    check_count("profile", "rounds", LEAST_ROUNDS if rounds is None else rounds)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"profile: seconds is {seconds}; wanted 0 or more")
    run = _Run(network, batch, seq, phase, seed)
    with dispatch.use_backend(backend), np.errstate(all="ignore"):
        tick("the roofs of this machine", 0.0)
        rates = measure_rates(backend) if rates is None else rates
        tick("first pass, which may compile", 0.1)
        counted = run.clocked()
        tick("peak memory", 0.2)
        peak = peak_bytes(run.plain) if memory else 0
        plain: list[float] = []
        clocks: list[Clock] = []
        clocked: list[float] = []
        begin = time.perf_counter()
        while len(plain) < (MOST_ROUNDS if rounds is None else rounds):
            spent = time.perf_counter() - begin
            if rounds is None and len(plain) >= LEAST_ROUNDS and spent >= seconds:
                break
            done = spent / max(seconds, 1e-9) if rounds is None else len(plain) / rounds
            tick(f"round {len(plain) + 1}", 0.3 + 0.65 * min(1.0, done))
            plain.append(_seconds(run.plain))
            start = time.perf_counter()
            clock = run.clocked()
            clocked.append(time.perf_counter() - start)
            clock.seconds["other"] += max(0.0, clocked[-1] - sum(clock.seconds.values()) - sum(clock.backward.values()))
            clocks.append(clock)
        inside = _products(counted) if backend == dispatch.REFERENCE and phase != "train" else {}
    low, middle, high = (float(x) for x in np.quantile(plain, [0.25, 0.5, 0.75]))
    parts = _parts(network, run, counted, clocks, rates, backend)
    if inside:
        own = next(part.seconds for part in parts if part.component == "attention")
        inside["softmax"] = max(0.0, own - inside["scores"] - inside["values"])
    return Profile(
        parts, middle, low, high, float(np.median(clocked)), peak, _share(network, clocks), phase, backend, batch, seq,
        len(plain), network, rates, inside,
    )  # fmt: skip


class _Run:
    """One pass, again and again, on the same input."""

    def __init__(self, network: Network, batch: int, seq: int, phase: str, seed: int) -> None:
        self.network, self.batch, self.seq, self.phase = network, batch, seq, phase
        self.new = 1 if phase == "decode" else seq
        self.past = seq - 1 if phase == "decode" else 0
        rng, m = np.random.default_rng(seed), network.sizes
        self.x: Any = rng.integers(0, m.vocab, (batch, self.new)) if m.vocab else None
        if self.x is None:
            self.x = rng.standard_normal((batch, self.new, m.d_model), np.float32)
        self.state = network.new_state(batch, self.past, seed=seed) if phase == "decode" else None
        columns = m.vocab if m.vocab and m.logits else m.d_model
        self.dy = rng.standard_normal((batch, seq, columns), np.float32) if phase == "train" else None

    def plain(self) -> Array:
        """Run without a clock."""
        return self._pass(Tape() if self.phase == "train" else direct)

    def clocked(self) -> Clock:
        """Run with one."""
        clock = Clock()
        self._pass(ClockedTape(clock) if self.phase == "train" else clock)
        return clock

    def _pass(self, call: Any) -> Array:
        state = None if self.state is None else [(copy.copy(kept), last) for kept, last in self.state]
        y = self.network(self.x, call, state, self.past)
        if self.dy is not None:
            call.gradients(y, self.dy)
        return y


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _share(network: Network, clocks: list[Clock]) -> tuple[float, float, float]:
    shares = _shares(network, clocks, "attention", "scan")
    low, middle, high = (float(x) for x in np.quantile(shares, [0.25, 0.5, 0.75]))
    return middle, low, high


def _products(clock: Clock) -> dict[str, float]:
    """Return the seconds of q @ k.T and of p @ v alone, for all calls of attention; {} if there were none."""
    if "attention" not in clock.kept:
        return {}
    q, k, v = clock.kept["attention"][0]
    k, v = (repeat_heads(x, heads_of(q)) for x in (k, v))
    p = np.full((*q.shape[:-1], k.shape[-2]), 1 / k.shape[-2], q.dtype)
    calls = clock.calls["attention"]
    scores = best(lambda: q @ k.swapaxes(-1, -2), 3)
    return {"scores": calls * scores, "values": calls * best(lambda: p @ v, 3)}


def _parts(network: Network, run: _Run, counted: Clock, clocks: list[Clock], rates: Rates, backend: str) -> list[Part]:
    train = run.phase == "train"
    flops, exps, nbytes = counts(network, run.batch, run.seq, run.phase, backend)
    found = []
    for name in COMPONENTS:
        spent = [_spent(clock, name) for clock in clocks]
        if not any(spent):
            continue
        calls = counted.calls[name] * (2 if train else 1)
        moved = counted.bytes[name] * (3 if train else 1) + nbytes.get(name, 0)
        asked = {"flops": flops.get(name, 0), "exps": exps.get(name, 0), "nbytes": moved}
        roof, least = rates.roof(**asked, calls=calls, component=name)
        low, middle, high = (float(x) for x in np.quantile(spent, [0.25, 0.5, 0.75]))
        back = float(np.median([clock.backward[name] for clock in clocks]))
        found.append(Part(name, middle, low, high, 0.0, flops.get(name, 0), roof, least, calls, back))
    shares = [float(np.median(_shares(network, clocks, part.component))) for part in found]
    return [dataclasses.replace(part, share=share / sum(shares)) for part, share in zip(found, shares, strict=True)]


def scale_of(network: Network) -> float | None:
    """Return the model's layers / those that are here; None where some are missing, and they differ in mechanism."""
    missing = network.whole > len(network.layers)
    return None if missing and len(set(network.sizes.mechanism)) > 1 else network.whole / len(network.layers)


def _times(component: str, scale: float) -> float:
    return 1.0 if component in ("embedding", "head") else scale


def _spent(clock: Clock, *components: str) -> float:
    """Return the seconds, forward and backward, of some components, or of all."""
    return sum(clock.seconds[name] + clock.backward[name] for name in components or COMPONENTS)


def _shares(network: Network, clocks: list[Clock], *components: str) -> list[float]:
    """Return the components' share of the whole model's time, of each round."""
    scale = scale_of(network) or 1.0
    found = []
    for clock in clocks:
        spent = {name: _times(name, scale) * _spent(clock, name) for name in COMPONENTS}
        found.append(sum(spent[name] for name in components) / sum(spent.values()))
    return found
