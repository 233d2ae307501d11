"""What this machine can do at most, measured in half a second, and which of these limits a component runs into.

Four roofs: matrix products, exponentials, bandwidth, and the time of a call that does nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.dense.attention import attention
from refattn.dense.rope import rope
from refattn.dispatch import use_backend

SIDE, EXPS = 768, 1 << 20
SMALL, LARGE = 1 << 18, 1 << 25
"""Bytes that are copied: inside the caches, and outside."""
CACHED = 1 << 21
"""Bytes of a call below which it is taken to find its arrays in a cache."""


@dataclass(frozen=True)
class Rates:
    """Upper limits, each of float32 numbers."""

    matmul: float
    """FLOP/s."""
    exps: float
    """Exponentials/s."""
    memory: float
    """B/s, read and written, of arrays that no cache holds."""
    cache: float
    """B/s, of those that one holds."""
    call: float
    """Seconds of a NumPy call on one number."""
    operation: dict[str, float]
    """Seconds of attention and of rope on one token."""
    source: str = "measured here, before the rounds"

    def bandwidth(self, nbytes: float) -> float:
        """Return B/s for calls that move so many bytes each.

        Examples
        --------
        >>> rates = Rates(1e11, 1e9, memory=1e10, cache=1e11, call=1e-6, operation={})
        >>> rates.bandwidth(1e3) > rates.bandwidth(1e9)
        True
        """
        return self.cache if nbytes < CACHED else self.memory

    def overhead(self, component: str) -> float:
        """Return the least seconds of a call of a component: those of one token, or of one number.

        Examples
        --------
        >>> Rates(1e11, 1e9, 1e10, 1e11, call=1e-6, operation={"attention": 4e-5, "rope": 2e-5}).overhead("scan")
        2e-05
        """
        if component == "scan" and self.operation:
            return min(self.operation.values())
        return self.operation.get(component, self.call)

    def roof(
        self, *, flops: float, exps: float, nbytes: float, calls: int, component: str = "other"
    ) -> tuple[str, float]:
        """Return which roof is the lowest for a component, and the least seconds under it.

        Examples
        --------
        >>> rates = Rates(1e11, 1e9, memory=1e10, cache=1e11, call=1e-6, operation={})
        >>> rates.roof(flops=1e9, exps=1e6, nbytes=1e6, calls=1)
        ('matrix products', 0.01)
        """
        times = {
            "matrix products": flops / self.matmul,
            "exponentials": exps / self.exps,
            "bandwidth": nbytes / self.bandwidth(nbytes / max(1, calls)),
            "call overhead": calls * self.overhead(component),
        }
        name = max(times, key=lambda roof: times[roof])
        return name, times[name]


def measure_rates(backend: str = "numpy", on: Any = None) -> Rates:
    """Measure the roofs, or take those that a calibration has.

    Parameters
    ----------
    backend : str
        Whose operations' overhead is measured.
    on : Calibration or Hardware, optional
        With rate(dtype), bandwidth and exp_rate.

    Returns
    -------
    Rates
    """
    one = np.ones((1, 1, 1, 1), np.float32)
    with use_backend(backend):
        pair, place = np.ones((1, 1, 1, 2), np.float32), np.zeros(1, np.int64)
        operation = {
            "attention": best(lambda: attention(one, one, one), 20),
            "rope": best(lambda: rope(pair, place), 20),
        }
    call = best(lambda: np.add(one, one), 1000, of=100)
    small, large = (np.ones(size // 4, np.float32) for size in (SMALL, LARGE))
    into_small, into_large = np.empty_like(small), np.empty_like(large)
    cache = 2 * SMALL / best(lambda: np.copyto(into_small, small), 100)
    if on is not None:
        return Rates(on.rate("float32"), on.exp_rate, on.bandwidth, cache, call, operation, f"calibration {on.name}")
    memory = 2 * LARGE / best(lambda: np.copyto(into_large, large), 4)
    a, x = np.ones((SIDE, SIDE), np.float32), np.linspace(-8, 0, EXPS, dtype=np.float32)
    matmul = 2 * SIDE**3 / best(lambda: a @ a, 8)
    out = np.empty_like(x)
    return Rates(matmul, EXPS / best(lambda: np.exp(x, out=out), 8), memory, cache, call, operation)


def best(run: Callable[[], Any], times: int, of: int = 1) -> float:
    """Return the lower quartile of a call's seconds, over `times` calls, timed `of` at a time, after one that warms up.

    The least is not taken: a clock that is set back by a moment would make it.
    """
    run()
    found = []
    for _ in range(max(1, times // of)):
        start = time.perf_counter()
        for _ in range(of):
            run()
        found.append((time.perf_counter() - start) / of)
    return sorted(found)[len(found) // 4]
