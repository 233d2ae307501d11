"""The metrics themselves: what calls leave behind is added up here, and handed to prometheus_client when it asks.

A call that is over joins a queue; when it is long enough, the call adds up what it holds, unless another is at it, so
that no call waits for another.
FLOPs, bytes and predictions follow from the lengths, so calls only tally lengths; they are counted when somebody reads.
"""

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from refattn.watch.counts import KEPT, Counts
from refattn.watch.labels import COMPONENTS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from refattn.watch.spans import Call

SECONDS = tuple(digit * 10.0**power for power in range(-5, 2) for digit in (1, 2.5, 5))[:-1]
LENGTHS = tuple(2**n for n in range(18))
NANOSECONDS = tuple(round(x * 1e9) for x in SECONDS)

DECAY = 1 - 1 / 64
"""Weight of a call in the two ratios, for each call after it that an earlier reading did not show."""

TOGETHER = 32
"""Calls that are added up at a time: the code that does so is then in the processor's caches but for the first."""

ATTENTION = COMPONENTS.index("attention")
LABELS = ("phase", "backend", "mechanism")

FAMILIES = {  # name -> kind, labels, help
    "refattn_component_seconds": ("histogram", ("component", *LABELS), "Measured seconds of a call in a component."),
    "refattn_attention_time_ratio": ("gauge", LABELS, "Measured share of attention in the time of the latest calls."),
    "refattn_sequence_length": ("histogram", LABELS, "Tokens of a sequence in a call, those cached included."),
    "refattn_flops": ("counter", LABELS, "Exact FLOPs of the calls that succeeded, 2 a multiply-add; no softmax."),
    "refattn_bytes": ("counter", LABELS, "Counted bytes that these calls move between memory and processor."),
    "refattn_kv_cache_bytes": ("gauge", LABELS[1:], "Counted bytes of the caches that are held now."),
    "refattn_peak_bytes": ("gauge", LABELS[1:], "Counted bytes that attention allocated at most in one call so far."),
    "refattn_predicted_seconds_ratio": ("gauge", LABELS, "Measured over predicted seconds of the latest calls."),
    "refattn": ("info", (), "Who computes what."),
}


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0

    def observe(self, value: int) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self, bounds: tuple[float, ...]) -> list[tuple[str, int]]:
        """Return (bound, how many up to it), the bounds in the unit that is shown."""
        rows, total = [], 0
        for bound, n in zip((*(f"{x:g}" for x in bounds), "+Inf"), self.counts, strict=True):
            total += n
            rows.append((bound, total))
        return rows


class Ratio:
    """A quotient of two sums over calls: those not shown yet count fully, the older ones less and less."""

    def __init__(self) -> None:
        self.shown = (0.0, 0.0)
        self.above = self.below = 0.0
        self.calls = 0

    def add(self, above: float, below: float, calls: int = 1) -> None:
        """Count so many calls."""
        self.above, self.below, self.calls = self.above + above, self.below + below, self.calls + calls

    def read(self) -> float | None:
        """Return the quotient, None before the first call."""
        weight = DECAY**self.calls
        self.shown = (self.shown[0] * weight + self.above, self.shown[1] * weight + self.below)
        self.above = self.below = 0.0
        self.calls = 0
        return self.shown[0] / self.shown[1] if self.shown[1] > 0 else None


class Series:
    """Everything with the same phase, backend and mechanism."""

    def __init__(self, labels: tuple[str, str, str]) -> None:
        self.labels = labels
        self.seconds: dict[int, Histogram] = {}
        self.lengths = Histogram(LENGTHS)
        self.attention, self.drift = Ratio(), Ratio()
        self.flops: int | None = None
        self.bytes: int | None = None
        self.peak: int | None = None
        self.tally: dict[tuple[Counts, int, int], list[int]] = {}
        """(counts, batch, seq) -> calls and nanoseconds that are not counted yet."""

    def add(self, record: "Call") -> None:
        """Add up a call."""
        whole = 0
        for component, time in enumerate(record.times):
            if time or component == record.rest:
                whole += time
                histogram = self.seconds.get(component)
                if histogram is None:
                    histogram = self.seconds[component] = Histogram(NANOSECONDS)
                histogram.observe(time)
        self.attention.add(record.times[ATTENTION], whole)
        if not record.seq:
            return
        self.lengths.observe(record.seq)
        if record.failed:
            return
        entry = self.tally.setdefault((record.counts, record.batch, record.seq), [0, 0])
        entry[0] += 1
        entry[1] += whole
        if len(self.tally) > KEPT:  # nobody reads: one by one, so that no call takes long
            oldest = next(iter(self.tally))
            self.count({oldest: self.tally.pop(oldest)})

    def count(self, tally: dict[tuple[Counts, int, int], list[int]]) -> None:
        """Turn lengths into FLOPs, bytes and predictions."""
        for (counts, batch, seq), (calls, nanoseconds) in tally.items():
            flops, moved, peak, seconds = counts.of(self.labels[0], batch, seq)
            if flops is not None:
                self.flops = (self.flops or 0) + calls * flops
            if moved is not None:
                self.bytes = (self.bytes or 0) + calls * moved
            if peak is not None:
                self.peak = max(peak, self.peak or 0)
            if seconds is not None:
                self.drift.add(nanoseconds / 1e9, calls * seconds, calls)


class Metrics:
    """The collector of a registry, shared by all monitors on it."""

    def __init__(self) -> None:
        self._pending: deque[Call] = deque()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._series: dict[tuple[str, str, str], Series] = {}
        self._caches: dict[tuple[str, str], int] = {}

    def series(self, phase: str, backend: str, mechanism: str) -> Series:
        """Return the series of these labels, the same each time."""
        labels = (phase, backend, mechanism)
        with self._lock:
            return self._series.setdefault(labels, Series(labels))

    def hold(self, labels: tuple[str, str], size: int) -> None:
        """Count so many bytes more (or less) of caches that are held."""
        with self._lock:
            self._caches[labels] = self._caches.get(labels, 0) + size

    def record(self, record: "Call") -> None:
        """Take a call that is over."""
        self._pending.append(record)
        if len(self._pending) >= TOGETHER and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def _add_up(self) -> None:
        while self._pending:
            record = self._pending.popleft()
            record.series.add(record)

    def describe(self) -> "Iterator[Metric]":
        """Yield the families, empty: what the registry holds against names that are taken."""
        return iter(self._families().values())

    def collect(self) -> "Iterator[Metric]":
        """Yield the families with what they hold now."""
        with self._reading:
            with self._lock:
                self._add_up()
                tallies = [(one, one.tally) for one in self._series.values()]
                for one, _ in tallies:
                    one.tally = {}
            for one, tally in tallies:  # without the lock, for lengths that are new take their time
                for (counts, batch, seq), _ in tally.items():
                    counts.of(one.labels[0], batch, seq)
            with self._lock:
                for one, tally in tallies:
                    one.count(tally)
                families = self._filled()
        return iter(families.values())

    def _families(self) -> "dict[str, Any]":
        from prometheus_client import core

        kinds = {
            "histogram": core.HistogramMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "counter": core.CounterMetricFamily,
            "info": core.InfoMetricFamily,
        }
        return {name: kinds[kind](name, text, labels=labels) for name, (kind, labels, text) in FAMILIES.items()}

    def _filled(self) -> "dict[str, Any]":
        from refattn import __version__

        found = self._families()
        peaks: dict[tuple[str, str], int] = {}
        for labels, one in self._series.items():
            for component, histogram in one.seconds.items():
                rows = histogram.cumulative(SECONDS)
                found["refattn_component_seconds"].add_metric(
                    (COMPONENTS[component], *labels), rows, histogram.sum / 1e9
                )
            if any(one.lengths.counts):
                rows = one.lengths.cumulative(LENGTHS)
                found["refattn_sequence_length"].add_metric(labels, rows, one.lengths.sum)
            values = {
                "flops": one.flops,
                "bytes": one.bytes,
                "attention_time_ratio": one.attention.read(),
                "predicted_seconds_ratio": one.drift.read(),
            }
            for name, value in values.items():
                if value is not None:
                    found[f"refattn_{name}"].add_metric(labels, value)
            if one.peak is not None:
                peaks[labels[1:]] = max(one.peak, peaks.get(labels[1:], 0))
        for pair, size in peaks.items():
            found["refattn_peak_bytes"].add_metric(pair, size)
        for pair, size in self._caches.items():
            found["refattn_kv_cache_bytes"].add_metric(pair, size)
        for backend, mechanism in sorted({labels[1:] for labels in self._series}):
            about = {"version": __version__, "backend": backend, "mechanism": mechanism}
            found["refattn"].add_metric((), about)
        return found


_of: "WeakKeyDictionary[CollectorRegistry, Metrics]" = WeakKeyDictionary()
_making = threading.Lock()


def metrics_of(registry: "CollectorRegistry") -> Metrics:
    """Return the metrics of a registry, made and registered on first use; ValueError if their names are taken."""
    with _making:
        if registry not in _of:
            made = Metrics()
            registry.register(made)
            _of[registry] = made
        return _of[registry]
