"""What is being measured in this thread or task: a call, and the parts of it.

Beside the work of a call its measurement is cold code, whose cost is the memory that it touches: hence few objects and
few functions here, and no adding up before several calls are over.
"""

from contextvars import ContextVar, Token
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING

from refattn.watch.labels import COMPONENTS

if TYPE_CHECKING:
    from refattn.watch.counts import Counts
    from refattn.watch.metrics import Series
    from refattn.watch.monitor import Monitor

running: ContextVar["Call | None"] = ContextVar("refattn_monitor", default=None)

NOTHING = [0] * len(COMPONENTS)


class Call:
    """One pass that is being measured, and afterwards the record of it; see `Monitor.call`."""

    __slots__ = (
        "_around", "_before", "_start", "_token",
        "batch", "booked", "counts", "failed", "monitor", "rest", "seq", "series", "times",
    )  # fmt: skip

    monitor: "Monitor | None"
    """None once it is over: what a task left behind measures then is no longer part of it."""
    rest: int
    """The component that has the time outside all parts, and is observed even if that is none."""
    seq: int
    """0: not known."""
    times: list[int]
    """Nanoseconds by component."""
    booked: int
    """Nanoseconds that are in parts already."""
    _around: "Call | None"
    _token: Token["Call | None"] | None

    def __init__(self, monitor: "Monitor", series: "Series", counts: "Counts", rest: int, seq: int, batch: int) -> None:
        self.monitor, self.series, self.counts, self.rest, self.seq, self.batch = (
            monitor,
            series,
            counts,
            rest,
            seq,
            batch,
        )
        self.booked = 0
        self.times = NOTHING.copy()

    def __enter__(self) -> "Call":
        self._around = around = running.get()
        self._before = 0 if around is None else around.booked
        self._token = running.set(self)
        self._start = perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = perf_counter_ns() - self._start
        assert self._token is not None and self.monitor is not None
        running.reset(self._token)
        around = self._around
        if around is not None:
            around.booked = max(around.booked, self._before + elapsed)
        if elapsed > self.booked:
            self.times[self.rest] += elapsed - self.booked
        self.failed = kind is not None
        metrics = self.monitor.metrics
        self.monitor = self._around = self._token = None
        metrics.record(self)


class Part:
    """A part that is being measured; see `Monitor.part`."""

    __slots__ = ("_before", "_call", "_component", "_monitor", "_start")

    def __init__(self, monitor: "Monitor", component: int) -> None:
        self._monitor, self._component = monitor, component

    def __enter__(self) -> None:
        call = running.get()
        self._call = call if call is not None and call.monitor is self._monitor else None
        self._before = 0 if self._call is None else self._call.booked
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call = self._call
        if call is not None:
            own = perf_counter_ns() - self._start - (call.booked - self._before)  # what is inside is booked already
            if own > 0:
                call.times[self._component] += own
                call.booked += own
