"""How long a pass takes: step by step from a machine's measured tables, or not less than by the roofs of a data sheet.

FLOPs do not predict time. On a `Calibration` each step is looked up by its sizes; what whole blocks took beside the sum
of their steps, when the machine was measured, gives the correction and the interval. On a `Hardware` nothing was
measured: the result is a bound, and the upper end is where kernels that are far from it stand.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.arrays import check_count
from refattn.costs.calibration import Calibration, between, matmul_seconds
from refattn.costs.hardware import Hardware
from refattn.costs.mechanisms import Softmax
from refattn.costs.memory import itemsize
from refattn.costs.names import check_phase, unknown
from refattn.costs.roofs import CALLS, roofs
from refattn.costs.steps import Step, steps
from refattn.costs.traffic import ALGORITHMS
from refattn.dispatch import REFERENCE

if TYPE_CHECKING:
    from refattn.costs.mechanisms import Call
    from refattn.costs.transformer import Transformer

COVERED = 0.8
"""The share of cases that an interval means to hold."""
SLOWEST = 0.35
"""Of a device's peak: what FlashAttention-2 reaches on an H100 (Shah et al., 2024, arXiv:2407.08608, abstract)."""
WIDER = 0.1
"""By how much an interval grows with each doubling beyond the lengths that were measured."""
BACKWARD = {"matmul": 2.0, "attention": 2.5, "mixing": 3.0}
"""Times of forward, where backward was not measured; 2 for what is not named."""


class Prediction(NamedTuple):
    """Seconds of a pass."""

    seconds: float
    low: float
    high: float
    parts: dict[str, float]
    """Seconds by component; they add up to `seconds`."""
    bound_by: dict[str, str]
    """The roof that each component is nearest to."""
    kind: str
    """"predicted", with an interval that holds 80 % of cases; or "bound", below which it cannot be."""


def predict(
    m: "Transformer",
    *,
    on: Hardware | Calibration,
    batch: int = 1,
    seq: int,
    phase: str = "prefill",
    backend: str = "numpy",
    dtype: str | None = None,
    causal: bool = True,
    algorithm: str = "flash",
    cache_dtype: str | None = None,
) -> Prediction:
    """Predict the time of one pass.

    Parameters
    ----------
    m : Transformer
    on : Hardware or Calibration
        From `hardware` or `calibrate`.
    batch, seq : int
        So many sequences of so many tokens; in decoding the last one of them is new.
    phase : {"prefill", "decode", "train"}
        A training step is forward and backward, without the optimizer.
    backend : str
        Who computes the mixing, on a calibration.
    dtype : str, optional
        Of the arrays; float32 on a calibration, bfloat16 on hardware unless given.
    causal : bool
        As for `Transformer.forward_flops`.
    algorithm : {"flash", "materialised"}
        On hardware: whether the matrix of scores moves, four times, through memory.
    cache_dtype : str, optional
        On hardware: of keys and values in decoding, where not `dtype`.

    Returns
    -------
    Prediction

    Raises
    ------
    TypeError, ValueError
        For lengths that are none, and an unknown phase.
    LookupError
        For a dtype that the machine has no rate of; a backend or mechanism that the calibration has no times of.
    """
    check_count("predict", "batch", batch)
    check_count("predict", "seq", seq)
    check_phase("predict", "phase", phase)
    call = m.call(batch, 1, seq - 1, causal) if phase == "decode" else m.call(batch, seq, 0, causal)
    if isinstance(on, Hardware):
        if algorithm not in ALGORITHMS:
            raise ValueError(f"predict: algorithm is {algorithm!r}; wanted one of {', '.join(ALGORITHMS)}")
        return _bound(m, call, on, phase, dtype or "bfloat16", algorithm, cache_dtype)
    if isinstance(on, Calibration):
        return _measured(m, call, on, phase, backend, dtype or "float32")
    raise TypeError(f"predict: on is {type(on).__name__}; wanted a Hardware or a Calibration")


def _bound(
    m: "Transformer", call: "Call", on: Hardware, phase: str, dtype: str, algorithm: str, cache_dtype: str | None
) -> Prediction:
    size, times = itemsize(dtype), 3.0 if phase == "train" else 1.0
    cached = itemsize(cache_dtype or dtype) / size if phase == "decode" else 1.0
    parts: dict[str, float] = {}
    limits: dict[str, dict[str, float]] = {}
    for step in steps(m, call):
        numbers = step.numbers * (cached if step.component == "attention" else 1.0)
        if algorithm == "materialised" and step.kind == "attention":
            numbers += 4 * step.columns * step.rows * step.keys
        found = roofs(on, dtype, step.flops, step.exps, numbers * size)
        parts[step.component] = parts.get(step.component, 0.0) + times * step.times * max(found.values())
        _add(limits, step, found)
    seconds = sum(parts.values())
    return Prediction(seconds, seconds, seconds / SLOWEST, parts, _largest(limits), "bound")


def _measured(m: "Transformer", call: "Call", on: Calibration, phase: str, backend: str, dtype: str) -> Prediction:
    if backend not in on.ratios:
        raise unknown("backend in this calibration", backend, on.ratios)
    if dtype != "float32":
        raise unknown("dtype in this calibration", dtype, ["float32"])
    raw, limits = raw_parts(m, call, on, phase, backend)
    kind = "prefill" if all(isinstance(x, Softmax) for x in m.mechanism) else "mixing"
    ratios = np.array(on.ratios.get(f"{backend}:{phase if phase != 'prefill' else kind}", on.ratios[backend]))
    low, middle, high = np.quantile(ratios, [(1 - COVERED) / 2, 0.5, (1 + COVERED) / 2], method="weibull")
    farther = max(0.0, math.log2(call.keys / on.longest))
    parts = {name: float(middle) * seconds for name, seconds in raw.items()}
    total = sum(raw.values())
    widened = (1 + WIDER) ** farther
    return Prediction(
        float(total * middle), float(total * low / widened), float(total * high * widened), parts, limits, "predicted"
    )


def raw_parts(
    m: "Transformer", call: "Call", on: Calibration, phase: str, backend: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds of each component as the tables add up, and the roof that each is nearest to."""
    parts = {"other": m.layers * on.layers.get(f"{backend}:{phase}", 0.0)}
    limits: dict[str, dict[str, float]] = {"other": {CALLS: parts["other"]}}
    for step in steps(m, call):
        one = step_seconds(step, on, backend)
        back = one * BACKWARD.get(step.kind, 2.0) if phase == "train" else 0.0
        parts[step.component] = parts.get(step.component, 0.0) + step.times * (one + back)
        _add(limits, step, roofs(on, "float32", step.flops, step.exps, 4 * step.numbers, on.overhead))
    return parts, _largest(limits)


def step_seconds(step: Step, on: Calibration, backend: str) -> float:
    """Return how long a step takes, once."""
    if step.kind == "matmul":
        batch = step.keys
        return batch * matmul_seconds(on.matmul, step.rows // batch, step.inner, step.columns)
    if step.kind == "attention":
        pairs = step.columns * step.rows * step.keys if backend == REFERENCE else step.pairs
        return _by_width(on, f"{backend}:{step.name}", (step.inner + step.value) / 2, pairs)
    if step.kind == "mixing":
        return step.rows * step.columns * _mixed(on, backend, step)
    return between(on.curves[step.name or step.kind], step.rows)


def _mixed(on: Calibration, backend: str, step: Step) -> float:
    """Return the seconds of a token and head."""
    widths = {
        int(name.rpartition(":")[2]): curve
        for name, curve in on.mixing.items()
        if name.startswith(f"{backend}:{step.name}:")
    }
    if not widths:
        raise LookupError(
            f"predict: this calibration has no times of {step.name} on {backend}; "
            f"refattn calibrate --mechanisms {step.name} measures them"
        )
    flat = {width: [(T, seconds) for T, seconds in curve] for width, curve in widths.items()}
    at = {width: between([*curve, (1e9, curve[-1][1])], step.rows) for width, curve in flat.items()}
    return _log_line(at, step.inner)


def _by_width(on: Calibration, name: str, width: float, size: float) -> float:
    found = {
        int(key.rpartition(":")[2]): between(curve, size)
        for key, curve in on.curves.items()
        if key.startswith(f"{name}:")
    }
    if not found:
        raise LookupError(f"predict: this calibration has no times of attention {name}")
    return _log_line(found, width)


def _log_line(points: dict[int, float], x: float) -> float:
    """Return y at x: between points in logarithms, beyond them proportional to x."""
    widths = sorted(points)
    if x > widths[-1]:
        return points[widths[-1]] * x / widths[-1]
    logs = [math.log(points[width]) for width in widths]
    return float(math.exp(np.interp(math.log(x), [math.log(width) for width in widths], logs)))


def _add(limits: dict[str, dict[str, float]], step: Step, found: dict[str, float]) -> None:
    of = limits.setdefault(step.component, {})
    for roof, seconds in found.items():
        of[roof] = of.get(roof, 0.0) + step.times * seconds


def _largest(limits: dict[str, dict[str, float]]) -> dict[str, str]:
    return {component: max(found, key=lambda roof: found[roof]) for component, found in limits.items()}
