"""Who spends the time of a pass: a `call` for networks that are written with one, which keeps the seconds apart.

A network says to which component its calls belong with `inside`; within "mixing" the function itself says it.
"""

import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn import dispatch
from refattn.arrays import Array
from refattn.models.tape import Call, Step, Tape

COMPONENTS = ("embedding", "norm", "projection", "rope", "attention", "scan", "ffn", "head", "other")
"""attention mixes tokens by a softmax, scan by a state or a convolution; other is what joins the rest."""

MIXING = "mixing"
NORMS = ("rms_norm", "layer_norm", "group_norm")
VIEWS = ("swap", "part", "split_heads")
SOFTMAX = ("attention", "linformer_attention", "nystrom_attention")


def component_of(f: Callable[..., Any]) -> str:
    """Return the component of a function inside a mixer.

    Examples
    --------
    >>> from refattn import retention
    >>> from refattn.models.layers import linear
    >>> component_of(linear), component_of(retention)
    ('projection', 'scan')
    """
    name = f.__name__
    if name in ("linear", "head_linear"):
        return "projection"
    if name in NORMS:
        return "norm"
    if name in SOFTMAX:
        return "attention"
    return "scan" if name in dispatch.OPERATIONS else "other"


def inside(call: Call, component: str) -> Call:
    """Return the `call` for a component: `call` itself unless it is one that keeps them apart.

    Examples
    --------
    >>> from refattn.models.layers import linear
    >>> from refattn.models.tape import direct
    >>> clock = Clock()
    >>> inside(clock, "ffn")(linear, np.ones((1, 2)), np.ones((2, 1)))
    array([[2.]])
    >>> clock.calls["ffn"], inside(direct, "ffn") is direct
    (1, True)
    """
    within = getattr(call, "within", None)
    return call if within is None else partial(within, component)


class Clock:
    """Call functions and note of each component the seconds, the calls, and the bytes that they were given and gave.

    Attributes
    ----------
    seconds, backward : dict of float
        By component: of the calls; of their derivatives, where a `ClockedTape` made them.
    calls, bytes : dict of int
    kept : dict of tuple
        By name of the function, (args, kwargs) of the last call of an operation that has a softmax.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.backward: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.kept: dict[str, tuple[Any, Any]] = {}

    def __call__(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``f(*args, **kwargs)``, timed as "other"."""
        return self.within("other", f, *args, **kwargs)

    def within(self, component: str, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``f(*args, **kwargs)``, timed as part of a component."""
        component = component_of(f) if component == MIXING else component
        start = time.perf_counter()
        result = f(*args, **kwargs)
        self.seconds[component] += time.perf_counter() - start
        self.calls[component] += 1
        self.bytes[component] += moved(f, args, kwargs, result)
        if f.__name__ in SOFTMAX:
            self.kept[f.__name__] = (args, kwargs)
        return result


class ClockedTape(Tape):
    """A `Tape` that times what it calls, and then each derivative, with a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.components: dict[int, str] = {}

    def __call__(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``f(*args, **kwargs)``, timed as "other"."""
        return self.within("other", f, *args, **kwargs)

    def within(self, component: str, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``f(*args, **kwargs)``, timed as part of a component, as its derivative will be."""
        component = component_of(f) if component == MIXING else component
        start = time.perf_counter()
        result = super().__call__(f, *args, **kwargs)
        self.clock.seconds[component] += time.perf_counter() - start
        self.clock.calls[component] += 1
        self.clock.bytes[component] += moved(f, args, kwargs, result)
        self.components[id(self.steps[-1])] = component
        return result

    def pull(self, step: Step, cotangents: list[Array]) -> list[tuple[Array, Array]]:
        """Do as `Tape.pull` does, timed."""
        start = time.perf_counter()
        result = super().pull(step, cotangents)
        self.clock.backward[self.components[id(step)]] += time.perf_counter() - start
        return result


def moved(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return the bytes that a call must read and write: none for a view, of a table the rows that are looked up.

    Examples
    --------
    >>> from refattn.models.layers import embedding, split_heads
    >>> moved(embedding, (np.array([1]), np.ones((1000, 2))), {}, np.ones((1, 2)))
    32
    >>> moved(split_heads, (np.ones((1, 2)), 2), {}, np.ones((2, 1, 1)))
    0
    """
    if f.__name__ in VIEWS:
        return 0
    if f.__name__ == "embedding":
        return 2 * size_of(result)
    if f.__name__ == "append":  # returns views of all that the cache holds
        return 2 * size_of(args)
    return size_of((args, tuple(kwargs.values()))) + size_of(result)


def size_of(given: Any) -> int:
    """Return the bytes of the arrays in nested tuples.

    Examples
    --------
    >>> size_of((np.zeros(3), (np.zeros(1), None)))
    32
    """
    if isinstance(given, np.ndarray):
        return given.nbytes
    return sum(size_of(x) for x in given) if isinstance(given, tuple) else 0


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds at once beyond those before it, as tracemalloc counts them.

    Examples
    --------
    >>> 8_000_000 <= peak_bytes(lambda: np.zeros(1_000_000)) < 8_100_000
    True
    """
    return traced(run)[1]


def traced(run: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and the most bytes that it holds at once beyond those before it."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = run()
        return result, max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        if not tracing:
            tracemalloc.stop()
