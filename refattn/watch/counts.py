"""What a pass of a model costs, by phase, batch and length: counted once each, when somebody reads the metrics."""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware
from refattn.costs.prediction import predict
from refattn.costs.transformer import Transformer
from refattn.dispatch import REFERENCE

KEPT = 4096
"""Lengths whose counts are kept."""

Predicted = Callable[[str, int, int], float]
"""Seconds of a pass from (phase, batch, seq)."""

_log = logging.getLogger("refattn")


class Counted(NamedTuple):
    """Of one pass; None for what cannot be said."""

    flops: int | None
    bytes: int | None
    peak: int | None
    """Bytes that one call of attention allocates at most; of a prefill."""
    seconds: float | None
    """Predicted."""


def predictor(given: Any, model: Transformer | None, backend: str, dtype: str, causal: bool) -> Predicted | None:
    """Return the function that predicts, from what `Monitor` takes.

    Raises
    ------
    TypeError, ValueError
        For what predicts nothing; for a machine without a model.
    LookupError
        For what the machine has no rate or time of.
    """
    if isinstance(given, Calibration | Hardware):
        if model is None:
            raise ValueError("monitor: a prediction from a machine needs a model; give Monitor one, or a function")

        def predicted(phase: str, batch: int, seq: int) -> float:
            call: dict[str, Any] = {"batch": batch, "seq": seq, "phase": phase, "causal": causal}
            return predict(model, on=given, backend=backend, dtype=dtype, **call).seconds

        predicted("prefill", 1, 1)
        return predicted
    if given is not None and not callable(given):
        raise TypeError(f"monitor: predicted is {type(given).__name__}; wanted a function, Calibration or Hardware")
    return given


class Counts:
    """The costs of one model on one backend.

    Parameters
    ----------
    model : Transformer, optional
        Without one, nothing is counted.
    backend : str
        numpy materialises the scores; the others are taken not to.
    dtype : str
        Of all numbers.
    causal : bool
        Whether a token of a prefill or a training step sees only those before it.
    predicted : function, optional
        (phase, batch, seq) -> seconds.
    """

    def __init__(
        self, model: Transformer | None, backend: str, dtype: str, causal: bool, predicted: Predicted | None
    ) -> None:
        self.model, self.backend, self.dtype, self.causal, self.predicted = model, backend, dtype, causal, predicted
        self.of = lru_cache(maxsize=KEPT)(self._count)

    def _count(self, phase: str, batch: int, seq: int) -> Counted:
        """Return what a pass costs; what cannot be counted is logged and left out, for a scrape must not fail."""
        seconds = None if self.predicted is None else _or_none(self._seconds, phase, batch, seq)
        if self.model is None:
            return Counted(None, None, None, seconds)
        peak = _or_none(self._peak, batch, seq) if phase == "prefill" else None
        return Counted(
            _or_none(self._flops, phase, batch, seq), _or_none(self._bytes, phase, batch, seq), peak, seconds
        )

    def _flops(self, phase: str, batch: int, seq: int) -> int:
        assert self.model is not None
        if phase == "train":
            return self.model.train_flops(batch, seq, self.causal)["total"]
        if phase == "decode":
            return self.model.forward_flops(batch, 1, seq - 1)["total"]
        return self.model.forward_flops(batch, seq, 0, self.causal)["total"]

    def _bytes(self, phase: str, batch: int, seq: int) -> int:
        assert self.model is not None
        algorithm = "materialised" if self.backend == REFERENCE else "flash"
        return self.model.bytes_moved(batch, seq, phase, algorithm, self.dtype, self.causal)["total"]

    def _peak(self, batch: int, seq: int) -> int | None:
        assert self.model is not None
        if not any(layer.softmax for layer in self.model.mechanism):
            return None
        return self.model.peak_attention_bytes(batch, seq, self.dtype, self.backend, self.causal)

    def _seconds(self, phase: str, batch: int, seq: int) -> float:
        assert self.predicted is not None
        seconds = float(self.predicted(phase, batch, seq))
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"monitor: predicted({phase!r}, {batch}, {seq}) is {seconds}; wanted seconds above 0")
        return seconds


def _or_none(count: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return count(*arguments)
    except (ValueError, TypeError, LookupError, ArithmeticError, ImportError) as error:
        _log.warning("monitor: %s%s is left out of the metrics: %s", count.__name__.strip("_"), arguments, error)
        return None
