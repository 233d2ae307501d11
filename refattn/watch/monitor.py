"""Measure a running service: wrap its callables, and read the metrics through prometheus_client.

A call is one pass of a model: a prefill, one step of decoding, one of training. Parts are what it spends its time in.
Time is counted once: a part inside another, or a call inside another, is taken out of the one around it, and what is in
no part is the call's rest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from refattn.arrays import check_count
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware
from refattn.costs.machine import need
from refattn.costs.memory import itemsize
from refattn.costs.names import PHASES, unknown
from refattn.costs.transformer import Transformer
from refattn.dispatch import REFERENCE
from refattn.watch.counts import Counts, Predicted, predictor
from refattn.watch.labels import COMPONENTS, backend_label, mechanism_label, one_of
from refattn.watch.metrics import metrics_of
from refattn.watch.spans import Call, Part, running

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

P = ParamSpec("P")
R = TypeVar("R")

_NUMBER = {name: n for n, name in enumerate(COMPONENTS)}


class Monitor:
    """What measures one model of a service.

    Monitors may share a registry, and add up there where their labels agree. Every method may be called from any thread
    or task.

    Parameters
    ----------
    model : Transformer, optional
        From which FLOPs, bytes, caches and peaks are counted; without one they are not exported.
    backend : str
        Who computes, one of `refattn.backends`: a label, it chooses nothing.
    mechanism : str, optional
        As `Transformer` takes it; by default the model's, "mixed" if its layers differ, "softmax" without a model.
    registry : prometheus_client.CollectorRegistry, optional
        That of prometheus_client unless given.
    predicted : function, Calibration or Hardware, optional
        What measured times are compared with: (phase, batch, seq) -> seconds of a call, or where `costs.predict` shall
        predict them for the model.
    dtype : str
        Of the model's numbers, for bytes.
    causal : bool
        Whether the tokens of a prefill or a training step see only those before them.

    Raises
    ------
    LookupError
        For a backend, a mechanism or a dtype that is not known, here or in the calibration.
    TypeError, ValueError
        For a model or a prediction that is none, or a registry in which others have these names.
    ImportError
        Without prometheus_client.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> registry = CollectorRegistry()
    >>> monitor = Monitor(Transformer(layers=1, d_model=2, heads=1, ffn=8), registry=registry)
    >>> attention = monitor.wrap(sum, component="attention")
    >>> with monitor.call("prefill", seq=3):
    ...     attention([1, 2])
    3
    >>> labels = {"phase": "prefill", "backend": "numpy", "mechanism": "softmax"}
    >>> registry.get_sample_value("refattn_flops_total", labels)
    336
    """

    def __init__(
        self,
        model: Transformer | None = None,
        *,
        backend: str = REFERENCE,
        mechanism: Any = None,
        registry: "CollectorRegistry | None" = None,
        predicted: Predicted | Calibration | Hardware | None = None,
        dtype: str = "float32",
        causal: bool = True,
    ) -> None:
        need("prometheus_client", "monitor", "refattn.watch.monitor")
        from prometheus_client import REGISTRY

        if model is not None and not isinstance(model, Transformer):
            raise TypeError(f"monitor: model is {type(model).__name__}; wanted a refattn.costs.Transformer")
        itemsize(dtype)
        labels = backend_label(backend), mechanism_label(mechanism, model)
        self._labels, self._dtype = labels, dtype
        self.counts = Counts(model, backend, dtype, causal, predictor(predicted, model, backend, dtype, causal))
        self.registry = REGISTRY if registry is None else registry
        self.metrics = metrics_of(self.registry)
        self._series = {phase: self.metrics.series(phase, *labels) for phase in PHASES}

    def call(self, phase: str, *, seq: int | None = None, batch: int = 1, rest: str = "other") -> Call:
        """Return a context manager that measures one pass of the model.

        Parameters
        ----------
        phase : {"prefill", "decode", "train"}
        seq : int, optional
            Tokens of a sequence; in decoding those cached and the new one. Without it only times are measured.
        batch : int
            Sequences.
        rest : str
            The component that has the time outside all parts.

        Returns
        -------
        Call

        Raises
        ------
        LookupError
            For a phase or a component that is not known.
        TypeError, ValueError
            For a length or a batch below 1.
        """
        series, number = self._series.get(phase), _NUMBER.get(rest)
        if series is None or number is None:
            if series is None:
                raise unknown("phase", phase, PHASES)
            raise unknown("component", rest, COMPONENTS)
        if seq is not None and (type(seq) is not int or seq < 1):
            check_count("monitor", "seq", seq)
        if type(batch) is not int or batch < 1:
            check_count("monitor", "batch", batch)
        return Call(self, series, self.counts, number, int(seq or 0), int(batch))

    def part(self, component: str) -> Part:
        """Return a context manager that measures a part of the running call; outside of calls, nothing.

        Raises
        ------
        LookupError
            For a component that is not known.
        """
        number = _NUMBER.get(component)
        if number is None:
            raise unknown("component", component, COMPONENTS)
        return Part(self, number)

    def wrap(
        self,
        f: Callable[P, R],
        *,
        component: str,
        phase: str | None = None,
        seq: Callable[P, int] | None = None,
        batch: Callable[P, int] | None = None,
    ) -> Callable[P, R]:
        """Return `f`, measured: inside a call a part of it; outside, a call of its own if it has a phase.

        Parameters
        ----------
        f : function
            Or a coroutine function. What it raises is counted and passed on.
        component : str
            What `f` is.
        phase : str, optional
            In which `f` is a call where none is running; without one it is then not measured.
        seq, batch : function, optional
            From the arguments of `f` to what `Monitor.call` takes. Only for an `f` that is a whole pass of the model,
            whose FLOPs are then counted.

        Returns
        -------
        function

        Raises
        ------
        LookupError
            For a component or a phase that is not known.
        TypeError, ValueError
            For an `f` that is no function, or a generator function, whose time is not that of its call; for `seq`
            without a phase, and `batch` without `seq`.
        """
        if not callable(f) or isgeneratorfunction(f) or isasyncgenfunction(f):
            raise TypeError(f"monitor: f is {f!r}; wanted a function, and no generator: use part() inside it")
        number = _NUMBER[one_of("component", component, COMPONENTS)]
        if phase is not None:
            one_of("phase", phase, PHASES)
        if (seq is not None and phase is None) or (batch is not None and seq is None):
            raise ValueError("monitor: wrap got batch without seq, or seq without phase; wanted those before it too")

        def begin(*args: P.args, **kwargs: P.kwargs) -> Call | Part:
            call = running.get()
            if phase is None or (call is not None and call.monitor is self):
                return Part(self, number)
            length = None if seq is None else seq(*args, **kwargs)
            return self.call(phase, seq=length, batch=1 if batch is None else batch(*args, **kwargs), rest=component)

        if iscoroutinefunction(f):

            @wraps(f)
            async def later(*args: P.args, **kwargs: P.kwargs) -> Any:
                with begin(*args, **kwargs):
                    return await f(*args, **kwargs)

            return later  # type: ignore[return-value]

        @wraps(f)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            call = running.get()
            if call is None or call.monitor is not self:
                if phase is None:
                    return f(*args, **kwargs)
                with begin(*args, **kwargs):
                    return f(*args, **kwargs)
            before, start = call.booked, perf_counter_ns()
            try:
                return f(*args, **kwargs)
            finally:
                own = perf_counter_ns() - start - (call.booked - before)  # what is inside is booked already
                if own > 0:
                    call.times[number] += own
                    call.booked += own

        return measured

    @contextmanager
    def cache(self, seq: int, batch: int = 1) -> Iterator[None]:
        """Count what the model keeps of so many tokens, for as long as the block runs.

        Raises
        ------
        TypeError, ValueError
            For a length or a batch below 1, and without a model.
        """
        if self.counts.model is None:
            raise ValueError("monitor: cache needs a model to count its bytes; give Monitor one")
        size = self.counts.model.kv_cache_bytes(batch, seq, self._dtype)
        self.metrics.hold(self._labels, size)
        try:
            yield
        finally:
            self.metrics.hold(self._labels, -size)


def monitor(model: Transformer | None = None, **options: Any) -> Monitor:
    """Return a `Monitor`: its parameters, by name.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> monitor(registry=CollectorRegistry()).call("prefil")
    Traceback (most recent call last):
    LookupError: no phase 'prefil'; did you mean prefill?
    """
    return Monitor(model, **options)
