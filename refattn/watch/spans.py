"""What is being measured in this thread or task: a call, and the parts of it."""

from contextvars import ContextVar, Token
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING

from refattn.watch.labels import COMPONENTS
from refattn.watch.metrics import Record, Series

if TYPE_CHECKING:
    from refattn.watch.monitor import Monitor

running: ContextVar["Call | None"] = ContextVar("refattn_monitor", default=None)


class Call:
    """One pass that is being measured; see `Monitor.call`."""

    __slots__ = (
        "_around",
        "_batch",
        "_before",
        "_rest",
        "_seq",
        "_series",
        "_start",
        "_token",
        "booked",
        "monitor",
        "times",
    )

    monitor: "Monitor | None"
    """None once it is over: what a task left behind measures then is no longer part of it."""
    booked: int
    """Nanoseconds that are in parts already."""
    _token: Token["Call | None"]

    def __init__(self, monitor: "Monitor", series: Series, rest: int, seq: int, batch: int) -> None:
        self.monitor, self._series, self._rest, self._seq, self._batch = monitor, series, rest, seq, batch
        self.booked = 0
        self.times = [0] * len(COMPONENTS)

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
        running.reset(self._token)
        if self._around is not None:
            self._around.booked = max(self._around.booked, self._before + elapsed)
        monitor, self.monitor = self.monitor, None
        assert monitor is not None
        self.times[self._rest] += max(0, elapsed - self.booked)
        failed = kind is not None
        monitor.metrics.record(
            Record(self._series, self.times, self._rest, monitor.counts, self._batch, self._seq, failed)
        )

    def book(self, component: int, before: int, elapsed: int) -> None:
        """Give a component the time of a part, less what was booked since it began."""
        own = elapsed - (self.booked - before)
        if own > 0:
            self.times[component] += own
            self.booked += own


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
        if self._call is not None:
            self._call.book(self._component, self._before, perf_counter_ns() - self._start)
