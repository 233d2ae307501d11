"""What to do about attention's cost in a deployment, the verdict first: is attention what the time goes into at all?

Amdahl, 1967: where attention is a share Y of the time, no change to it can make the whole faster than 1/(1 - Y) times.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from refattn.arrays import check_count, check_number
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware
from refattn.costs.lengths import Lengths
from refattn.costs.memory import itemsize
from refattn.costs.names import check_phase
from refattn.costs.options import CLASSES, Candidate, Case, candidates, mixing
from refattn.costs.prediction import Prediction
from refattn.costs.ranking import flips, sensitive
from refattn.costs.transformer import Transformer
from refattn.costs.units import duration, size

WORTH = 1.1
"""Times faster, below which attention is not the bottleneck."""
USED = 0.9
"""The share of memory that weights and caches may fill."""


class Option(NamedTuple):
    """One way to run the model, and what it would give."""

    name: str
    exactness: str
    """exact: the same numbers; approximate: changed results; retrain: another network."""
    p50: Prediction
    p95: Prediction
    """At the median and the 95th percentile of the lengths."""
    faster: float
    """Times, than the present way, at p95."""
    peak_bytes: int
    """Weights, caches of a batch at p95, and what attention allocates."""
    concurrency: int
    """Sequences of p95 tokens whose caches fit beside the weights."""
    misses: list[str]
    """Which of the demands it does not meet."""
    check: str
    """The command that tries it here."""


@dataclass(frozen=True)
class Advice:
    """What `advise` found; print it, or read its fields."""

    verdict: str
    """In one sentence."""
    share_p50: float
    share_p95: float
    """Attention's share of the time now."""
    limit: float
    """1 / (1 - share_p95)."""
    bottleneck: str
    """The component with the largest share at p95."""
    options: list[Option]
    """Those that meet all demands first, then by time at p95; the present way among them."""
    choice: Option | None
    """The best, or None where nothing is better than what is there, or the difference is within the noise."""
    reason: str
    """Why this choice, or why none."""
    flips: list[tuple[int, str, str]]
    """(tokens, the best below, the best from there on)."""
    sensitive: list[str] = field(default_factory=list)
    """Which other inputs would change the choice."""

    def __str__(self) -> str:
        lines = [self.verdict, "", self.reason, ""]
        for option in self.options:
            span = f"{duration(option.p95.low)} to {duration(option.p95.high)}"
            missed = f"; misses {', '.join(option.misses)}" if option.misses else ""
            lines.append(
                f"{option.name} ({option.exactness}): p95 {duration(option.p95.seconds)} ({option.p95.kind}, {span}), "
                f"{option.faster:.2f} times as fast, {size(option.peak_bytes)}{missed}"
            )
        lines += [f"from {tokens:,} tokens on {new} is ahead of {old}" for tokens, old, new in self.flips]
        return "\n".join([*lines, *self.sensitive])


def advise(
    m: Transformer,
    *,
    lengths: "Lengths | str | list[int]",
    on: Hardware | Calibration,
    latency_p95: float | None = None,
    throughput: float | None = None,
    memory: float | None = None,
    phase: str = "prefill",
    exactness: str = "exact",
    backend: str = "numpy",
    batch: int = 1,
    causal: bool = True,
    dtype: str | None = None,
) -> Advice:
    """Say whether attention is the bottleneck, and what would help.

    Parameters
    ----------
    m : Transformer
    lengths : Lengths, text, or list of int
        Tokens of the sequences; see `refattn.costs.lengths`.
    on : Hardware or Calibration
    latency_p95 : float, optional
        Seconds that a pass at the 95th percentile may take.
    throughput : float, optional
        Tokens a second that are demanded, at the median length.
    memory : float, optional
        Bytes there are; those of `on` unless given.
    phase : {"prefill", "decode", "train"}
    exactness : {"exact", "approximate", "retrain"}
        How far an option may go.
    backend : str
        Who computes now, on a calibration.
    batch : int
        Sequences of a pass.
    causal : bool
        As for `Transformer.forward_flops`.
    dtype : str, optional
        As for `predict`.

    Returns
    -------
    Advice

    Raises
    ------
    TypeError, ValueError, LookupError
        For demands that are none, an unknown phase, class, backend or dtype, and for lengths that cannot be read.
    """
    _check(latency_p95, throughput, memory, phase, exactness, batch)
    drawn = Lengths.of(lengths)
    p50, p95 = drawn.quantile(0.5), drawn.quantile(0.95)
    case = Case(on, batch, phase, causal, dtype or ("float32" if isinstance(on, Calibration) else "bfloat16"))
    ways = candidates(m, on, backend, p95, exactness)
    now95 = case.time(ways[0], p95)
    demands = _Demands(latency_p95, throughput, float(on.memory if memory is None else memory))
    options = [_option(way, case, p50, p95, now95, demands) for way in ways]
    present = options[0]
    ranked = sorted(options, key=lambda option: (len(option.misses), option.p95.seconds))
    share50, share95 = (now.parts.get("attention", 0.0) / now.seconds for now in (present.p50, now95))
    limit = math.inf if share95 >= 1 else 1 / (1 - share95)
    largest = max(now95.parts, key=lambda part: now95.parts[part])
    choice, reason = _choose(ranked, present, latency_p95 is not None or throughput is not None)
    return Advice(
        verdict=_verdict(mixing(m), share50, share95, limit, largest, now95, p50, p95),
        share_p50=share50,
        share_p95=share95,
        limit=limit,
        bottleneck=largest,
        options=ranked,
        choice=choice,
        reason=reason,
        flips=flips(ways, case, p95),
        sensitive=sensitive(ways, case, p95, ranked[0].name),
    )


def _check(
    latency: float | None, throughput: float | None, memory: float | None, phase: str, exactness: str, batch: int
) -> None:
    for name, x in (("latency_p95", latency), ("throughput", throughput), ("memory", memory)):
        if x is not None:
            check_number("advise", name, x, above=0)
    check_phase("advise", "phase", phase)
    if exactness not in CLASSES:
        raise ValueError(f"advise: exactness is {exactness!r}; wanted one of {', '.join(CLASSES)}")
    check_count("advise", "batch", batch)


class _Demands(NamedTuple):
    """What must be met."""

    latency_p95: float | None
    throughput: float | None
    room: float

    def missed(self, p50: Prediction, p95: Prediction, peak: int, tokens: int) -> list[str]:
        """Return which demands an option misses that brings `tokens` new ones a pass at p50."""
        found = []
        if self.latency_p95 is not None and p95.seconds > self.latency_p95:
            found.append(f"p95 of {duration(self.latency_p95)}")
        if self.throughput is not None and tokens / p50.seconds < self.throughput:
            found.append(f"{self.throughput:g} tokens/s")
        if peak > self.room:
            found.append(f"memory of {size(self.room)}")
        return found


def _option(way: Candidate, case: Case, p50: int, p95: int, now: Prediction, demands: _Demands) -> Option:
    early, late = case.time(way, p50), case.time(way, p95)
    m, number = way.model, itemsize(case.dtype)
    weights = m.training_state_bytes() if case.phase == "train" else m.params() * number
    kept = m.kv_cache_bytes(1, p95, way.cache_dtype or case.dtype)
    peak = int(weights + case.batch * kept + _workspace(way, case, p95))
    new = 1 if case.phase == "decode" else p50
    fits = max(0, int((USED * demands.room - weights) // kept)) if kept else 0
    return Option(
        way.name,
        way.exactness,
        early,
        late,
        faster=now.seconds / late.seconds,
        peak_bytes=peak,
        concurrency=fits,
        misses=demands.missed(early, late, peak, case.batch * new),
        check=_command(way, case, p95),
    )


def _workspace(way: Candidate, case: Case, seq: int) -> int:
    """Return what attention allocates in one layer."""
    if not any(mechanism.softmax for mechanism in way.model.mechanism) or case.phase == "decode":
        return 0
    if isinstance(case.on, Calibration):
        return way.model.peak_attention_bytes(case.batch, seq, case.dtype, way.backend, case.causal)
    materialised = way.algorithm == "materialised"
    return way.model.attention_matrix_bytes(case.batch, seq, case.dtype) if materialised else 0


def _command(way: Candidate, case: Case, seq: int) -> str:
    name = way.model.name or "MODEL"
    if isinstance(case.on, Calibration):
        mechanism = next((x.name for x in way.model.mechanism if not x.softmax), None)
        window = next((w for x in way.model.mechanism if (w := getattr(x, "window", None)) is not None), None)
        if mechanism is None and window is not None:
            mechanism = f"'window({window - 1}, {0 if case.causal else window - 1})'"
        how = "" if mechanism is None else f" --mechanism {mechanism}"
        return f"refattn profile {name} --seq {seq} --phase {case.phase} --backend {way.backend}{how}"
    return f"refattn cost --model {name} --seq {seq} --phase {case.phase} --hw {case.on.name}"


def noise(p: Prediction) -> float:
    """Return the ratio of times below which two options are level: half the interval, in logarithms, 1.1 at least."""
    return max(WORTH, math.sqrt(p.high / p.low)) if p.kind == "predicted" else WORTH


def _choose(ranked: list[Option], present: Option, demanded: bool) -> tuple[Option | None, str]:
    """Return the option that changes least: of those that meet all demands, or are not told apart from the quickest."""
    quickest = ranked[0]
    if demanded and not quickest.misses:
        level = [option for option in ranked if not option.misses]
    else:
        level = [
            option
            for option in ranked
            if len(option.misses) == len(quickest.misses)
            and option.p95.seconds / quickest.p95.seconds < max(noise(option.p95), noise(quickest.p95))
        ]
    best = min(level, key=lambda option: (CLASSES.index(option.exactness), option.p95.seconds))
    needed = noise(best.p95)
    if quickest is present:
        return None, f"Nothing that was asked for is ahead of what there is: {present.name}."
    if present in level and (demanded and not present.misses) and best.faster < needed:
        return None, f"Nothing need change: {present.name} meets all that is demanded."
    if present in level and best.faster < needed:
        return None, (
            f"No choice: {quickest.name} would be {quickest.faster:.2f} times as fast, within the noise of the "
            f"prediction ({needed:.2f} times). Measure: {quickest.check}"
        )
    met = ", ".join(x for x in present.misses if x not in best.misses)
    gained = f"it meets what {present.name} misses ({met})" if met else f"{best.faster:.2f} times as fast at p95"
    return best, f"Take {best.name}: {gained}.{_beside(best, level)} Check it: {best.check}"


def _beside(best: Option, level: list[Option]) -> str:
    """Return what else could be taken: the quickest, if it is ahead of the best by more than the noise."""
    quickest = min(level, key=lambda option: option.p95.seconds)
    ahead = best.p95.seconds / quickest.p95.seconds
    if ahead >= max(noise(best.p95), noise(quickest.p95)):
        return f" {quickest.name} ({quickest.exactness}) would be {ahead:.2f} times as fast again."
    others = [option.name for option in level if option is not best]
    return f" The prediction does not tell it apart from {', '.join(others[:3])}." if others else ""


def _verdict(
    what: str, share50: float, share95: float, limit: float, largest: str, now: Prediction, p50: int, p95: int
) -> str:
    shares = f"{what} is {share50:.0%} of the time at p50 ({p50:,} tokens) and {share95:.0%} at p95 ({p95:,} tokens)"
    bounds = f"no change to it can make the whole more than {limit:.2f} times as fast"
    if limit >= WORTH:
        return f"{shares[0].upper()}{shares[1:]} ({now.kind}): {bounds}."
    share = now.parts[largest] / now.seconds
    return (
        f"{what[0].upper()}{what[1:]} is not the bottleneck: {shares} ({now.kind}), and {bounds}. "
        f"{largest} is {share:.0%}, bound by {now.bound_by[largest]}."
    )
