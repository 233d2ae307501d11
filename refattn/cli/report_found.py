"""What the page of `refattn report` is made of: all that is counted, predicted and measured."""

import math
import shlex
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn.cli import cost_sweep
from refattn.cli.cost_model import Asked
from refattn.cli.measure import Tick
from refattn.costs import machine
from refattn.costs.advice import Advice, advise
from refattn.costs.calibration import Calibration
from refattn.costs.lengths import Lengths
from refattn.costs.options import CLASSES, Candidate, Case, candidates
from refattn.costs.prediction import Prediction, predict
from refattn.costs.steps import steps
from refattn.costs.units import size
from refattn.dispatch import REFERENCE
from refattn.watch import needs
from refattn.watch.network import Network
from refattn.watch.profile import Profile, profile
from refattn.watch.roofs import measure_rates

LONGEST = 1 << 20
"""Tokens up to which curves are drawn to show where attention overtakes the rest."""


@dataclass(frozen=True)
class Wanted:
    """What the report is about."""

    model: str
    """As it was given."""
    where: tuple[str, str]
    """The option that names the device, and its value."""
    asked: Asked
    lengths: Lengths
    backend: str
    demands: dict[str, float | None]
    """Keywords of `advise`."""
    exactness: str
    seconds: float | None
    """Of a profile; None for none."""
    facts: dict[str, str]
    """Of the machine that makes the report."""
    doubts: list[str]
    """Why the calibration should not be believed."""

    @property
    def calibrated(self) -> bool:
        """Whether times are of this machine."""
        return isinstance(self.asked.hw, Calibration)

    @property
    def case(self) -> Case:
        """What times of options depend on."""
        a = self.asked
        return Case(a.hw, a.batch, a.phase, a.causal, a.dtype)


class Work(NamedTuple):
    """What a component does in a pass, and how long that takes."""

    flops: float
    exps: float
    moved: float
    """Bytes."""
    seconds: float


@dataclass(frozen=True)
class Found:
    """Everything on the page."""

    wanted: Wanted
    advice: Advice
    """Up to the class of exactness that was asked for."""
    everything: Advice
    """Of all classes."""
    points: list[cost_sweep.Point]
    """The call at other lengths."""
    prediction: Prediction
    works: dict[str, Work]
    """By component, as predicted."""
    materialised: Work | None
    """Of attention whose matrix moves through memory, on hardware."""
    curves: dict[str, list[Prediction]]
    """Option -> its time at the lengths of `lengths`."""
    lengths: list[int]
    profile: Profile | None


def gather(wanted: Wanted, tick: Tick) -> Found:
    """Count, predict, advise, and measure where that is wanted."""
    a = wanted.asked
    if wanted.seconds is not None:
        needs.check(needs.first_layers(a.model, 1), a.causal, a.batch, a.seq, a.phase, wanted.backend)
    tick("advice", 0.05)
    advice, everything = (_advise(wanted, exactness) for exactness in (wanted.exactness, CLASSES[-1]))
    prediction = predict(a.model, on=a.hw, batch=a.batch, seq=a.seq, phase=a.phase, backend=wanted.backend,
                         dtype=a.dtype, causal=a.causal)  # fmt: skip
    tick("curves", 0.2)
    points = cost_sweep.points(a, "seq", _lengths(wanted))
    lengths = [point.seq for point in points if point.seq <= 4 * max(a.seq, wanted.lengths.largest)]
    curves = {way.name: [wanted.case.time(way, n) for n in lengths] for way in _drawn(wanted, everything)}
    measured = None if wanted.seconds is None else _profile(wanted, lambda text, share: tick(text, 0.3 + 0.6 * share))
    works = _works(a, prediction)
    return Found(
        wanted, advice, everything, points, prediction, works, _materialised(a, works), curves, lengths, measured
    )


def _advise(wanted: Wanted, exactness: str) -> Advice:
    a, demands = wanted.asked, dict[str, Any](wanted.demands)
    return advise(
        a.model, lengths=wanted.lengths, on=a.hw, phase=a.phase, exactness=exactness, backend=wanted.backend,
        batch=a.batch, causal=a.causal, dtype=a.dtype, **demands,
    )  # fmt: skip


def _lengths(wanted: Wanted) -> list[int]:
    """Return the lengths of the curves: up to 4 times the call's, or as far as attention overtakes the rest."""
    a, (low, times) = wanted.asked, cost_sweep.AROUND
    shortest = min(low, a.seq, wanted.lengths.quantile(0.5))
    crossover = a.model.crossover_length(a.causal) or 0
    last = max(low, times * a.seq, min(2 * crossover, LONGEST))
    return sorted({*cost_sweep.doubled(2 ** int(math.log2(shortest)), last), a.seq})


def _drawn(wanted: Wanted, everything: Advice) -> list[Candidate]:
    """Return the present way, and the best of each class beside it."""
    a, p95 = wanted.asked, wanted.lengths.quantile(0.95)
    ways = candidates(a.model, a.hw, wanted.backend, p95, CLASSES[-1])
    by_name = {way.name: way for way in ways}
    present = ways[0]
    best = {option.exactness: option.name for option in reversed(everything.options) if option.name != present.name}
    return [present, *(by_name[best[exactness]] for exactness in CLASSES if exactness in best)]


def _works(a: Asked, prediction: Prediction) -> dict[str, Work]:
    """Return the work of each component; a training step is three passes, as `Transformer.train_flops` has it."""
    call, times = a.call, 3 if a.phase == "train" else 1
    sums: dict[str, Any] = {}
    for step in steps(a.model, call):
        done = times * step.times * np.array([step.flops, step.exps, step.numbers * a.size])
        sums[step.component] = sums.get(step.component, 0) + done
    return {
        name: Work(float(flops), float(exps), float(moved), prediction.parts[name])
        for name, (flops, exps, moved) in sums.items()
    }


def _materialised(a: Asked, works: dict[str, Work]) -> Work | None:
    """Return the work of attention that writes its scores and weights, and reads them."""
    own = works.get("attention")
    if isinstance(a.hw, Calibration) or own is None or a.phase == "decode":
        return None
    found = predict(a.model, on=a.hw, batch=a.batch, seq=a.seq, phase=a.phase, dtype=a.dtype, causal=a.causal,
                    algorithm="materialised")  # fmt: skip
    more = sum(
        4 * step.times * step.columns * step.rows * step.keys * a.size
        for step in steps(a.model, a.call)
        if step.kind == "attention"
    )
    times = 3 if a.phase == "train" else 1
    seconds = found.parts["attention"]
    return Work(own.flops, own.exps, own.moved + times * more, seconds) if more else None


def _profile(wanted: Wanted, tick: Tick) -> Profile:
    """Run as many layers as time and memory allow."""
    a, seconds = wanted.asked, wanted.seconds or 0.0
    layers = needs.fitting(a.model, a.batch, a.seq, a.phase, wanted.backend, seconds / 8)
    part = needs.first_layers(a.model, layers)
    needs.check(part, a.causal, a.batch, a.seq, a.phase, wanted.backend)
    needed = needs.weight_bytes(part, a.phase)
    free = machine.free_memory()
    if free is not None and needed > free:
        raise ValueError(f"report: {layers} layers need {size(needed)} of weights; {size(free)} are free")
    network = Network.random(a.model, layers=layers, causal=a.causal, tick=lambda text, share: tick(text, 0.2 * share))
    return profile(
        network, batch=a.batch, seq=a.seq, phase=a.phase, backend=wanted.backend, seconds=seconds,
        rates=measure_rates(wanted.backend, a.hw) if wanted.calibrated else None,
        tick=lambda text, share: tick(text, 0.2 + 0.8 * share),
    )  # fmt: skip


def commands(wanted: Wanted) -> dict[str, str]:
    """Return the command line of each section."""
    a = wanted.asked
    option, device = wanted.where
    plain = ["--batch", str(a.batch)] if a.batch > 1 else []
    plain += ["--phase", a.phase] if a.phase != "prefill" else []
    sees = [] if a.causal == a.model.logits else ["--causal" if a.causal else "--no-causal"]
    cost = ["--model", wanted.model, *plain, *sees, "--dtype", a.dtype, "--hw", device]
    lengths = _lengths(wanted)
    backend = ["--backend", wanted.backend] if wanted.backend != REFERENCE else []
    given = {f"--{name.replace('_', '-')}": n for name, n in wanted.demands.items() if n is not None}
    demands = [word for name, n in given.items() for word in (name, f"{n:.15g}")]
    demands += ["--exactness", wanted.exactness] if wanted.exactness != CLASSES[0] else []
    asked = ["--model", wanted.model, option, device, "--lengths", wanted.lengths.text]
    asked += [*plain, *backend, "--dtype", a.dtype, *demands]
    measured = [] if wanted.seconds is None else ["--profile", "--seconds", f"{wanted.seconds:g}"]
    found = {
        "advise": ["advise", *asked, *([] if a.causal else ["--no-causal"])],
        "curves": ["cost", *cost, "--sweep", f"seq={lengths[0]}..{lengths[-1]}", "--plot", "costs.svg"],
        "cost": ["cost", *cost, "--seq", str(a.seq)],
        "report": ["report", *asked, *sees, "--seq", str(a.seq), *measured],
    }
    if wanted.seconds is not None:
        fixed = ["--calibration", device] if wanted.calibrated else []
        found["profile"] = ["profile", wanted.model, "--seq", str(a.seq), *plain, *backend, *fixed]
        found["profile"] += ["--seconds", f"{wanted.seconds:g}"]
    return {name: "refattn " + shlex.join(words) for name, words in found.items()}
