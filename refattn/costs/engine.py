"""What serving a model takes on a device: bytes of weights and caches, seconds of a prefill and of a decode step.

Times are those of the roofs: a step reads all caches, and reads the weights or multiplies by them, whichever takes
longer: KV bytes / BW + max(2·B·P / C, W / BW). Of n devices, rates and memory count n times; what they tell each other
is not counted.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from refattn.arrays import check_count, check_number
from refattn.costs.memory import itemsize
from refattn.costs.simulation import Engine, Floats, Ints
from refattn.costs.transformer import Transformer

KV, WEIGHTS, COMPUTE = "KV cache", "weights", "compute"
POINTS = 192
"""Lengths at which FLOPs are counted; between them FLOPs a token lie on a line, which full attention is exactly."""


class Device(Protocol):
    """What a `Hardware` or a `Calibration` says of itself."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""

    @property
    def memory(self) -> int:
        """Bytes."""

    def rate(self, dtype: str) -> float:
        """Return FLOP/s; LookupError for a dtype without one."""


@dataclass(frozen=True, eq=False)
class Serving:
    """A model on one device or several.

    Raises
    ------
    TypeError, ValueError
        For numbers that are none, and shares that are not above 0 and at most 1.
    LookupError
        For dtypes that are not known, or that the device has no rate of.

    Examples
    --------
    >>> from refattn.costs.hardware import hardware
    >>> from refattn.costs.presets import preset
    >>> serving = Serving(preset("llama-3-8b"), hardware("h100-sxm"), longest=8192)
    >>> serving.weights, int(serving.kept[1]) // 1024, serving.concurrency(8192)
    (16060522496, 128, 51)
    """

    m: Transformer
    on: Device
    longest: int
    """Tokens of a sequence, at most."""
    devices: int = 1
    dtype: str = "bfloat16"
    """Of products and activations."""
    weight_dtype: str | None = None
    """dtype unless given."""
    kv_dtype: str | None = None
    """dtype unless given."""
    utilisation: float = 0.9
    """The share of memory that may be used."""
    efficiency: float = 1.0
    """The share of the device's rates that is reached."""
    max_batch: int = 256
    """Sequences that may run at once."""
    pass_tokens: int = 8192
    """Tokens of one prefill pass."""
    given_activations: int | None = None
    """Bytes, if they are known better."""

    def __post_init__(self) -> None:
        if not isinstance(self.m, Transformer):
            raise TypeError(f"serve_plan: m is {type(self.m).__name__}; wanted a Transformer")
        for name in ("rate", "bandwidth", "memory"):
            if not hasattr(self.on, name):
                raise TypeError(f"serve_plan: on is {type(self.on).__name__}, without {name}; wanted a Hardware")
        for name in ("longest", "devices", "max_batch", "pass_tokens"):
            check_count("serve_plan", name, getattr(self, name))
        for name in ("utilisation", "efficiency"):
            check_number("serve_plan", name, getattr(self, name), above=0)
            if getattr(self, name) > 1:
                raise ValueError(f"serve_plan: {name} is {getattr(self, name)}; wanted a share of at most 1")
        if self.given_activations is not None:
            check_count("serve_plan", "activations", self.given_activations, least=0)
        for dtype in (self.dtype, self.weight_dtype, self.kv_dtype):
            itemsize(self.dtype if dtype is None else dtype)
        self.on.rate(self.dtype)

    @cached_property
    def flops(self) -> float:
        """FLOP/s of all devices."""
        return self.efficiency * self.devices * self.on.rate(self.dtype)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second of all devices."""
        return self.efficiency * self.devices * self.on.bandwidth

    @cached_property
    def weights(self) -> int:
        """Bytes of all parameters."""
        return int(self.params * self.weight_size)

    @cached_property
    def params(self) -> int:
        """Parameters, of all experts too."""
        return self.m.params()

    @cached_property
    def active(self) -> int:
        """Parameters that one token visits."""
        return self.m.active_params()

    @cached_property
    def weight_size(self) -> float:
        """Bytes of a parameter."""
        return itemsize(self.dtype if self.weight_dtype is None else self.weight_dtype)

    @cached_property
    def activations(self) -> int:
        """Bytes of one pass: the stream, its norm, and the widest of what a layer makes; 32-bit logits of a batch."""
        if self.given_activations is not None:
            return self.given_activations
        m, layers = self.m, range(self.m.layers)
        mixing = max(sum(x.columns for x in mechanism.matrices(m)) for mechanism in m.mechanism)
        feeding = max(sum(x.columns for x in m.feed(layer)) for layer in layers)
        logits = 4 * self.max_batch * m.vocab if m.logits else 0
        return int(self.pass_tokens * (2 * m.d_model + max(mixing, feeding)) * itemsize(self.dtype)) + logits

    @cached_property
    def room(self) -> float:
        """Bytes that caches may fill, u·M - W - activations; below 0 where not even the weights fit."""
        return self.utilisation * self.devices * self.on.memory - self.weights - self.activations

    def needed(self, cache: float) -> int:
        """Return how many devices hold the weights and a cache of so many bytes."""
        return max(1, math.ceil((self.weights + self.activations + cache) / (self.utilisation * self.on.memory)))

    def concurrency(self, tokens: int) -> int:
        """Return how many sequences of so many tokens fit at once: floor(room / bytes)."""
        return self.fitting(float(self.kept[tokens]))

    def fitting(self, each: float) -> int:
        """Return how many sequences of so many bytes fit at once; all there are in a batch where they keep nothing."""
        return max(0, math.floor(self.room / each)) if each else self.max_batch * (self.room >= 0)

    @cached_property
    def kept(self) -> Ints:
        """Bytes of a sequence after 0, 1, ... `longest` tokens."""
        dtype = self.dtype if self.kv_dtype is None else self.kv_dtype
        windows = {getattr(x, "window", None) or 1 for x in self.m.mechanism}
        at = {n for w in windows for n in range(w - 1, w + 2)} | set(range(1, 65)) | {self.longest}
        at |= {round(n) for n in np.geomspace(1, self.longest, 64)}
        points = sorted(n for n in at if 1 <= n <= self.longest)
        counted = [self.m.kv_cache_bytes(1, n, dtype) for n in points]
        table = np.interp(np.arange(self.longest + 1), points, counted)  # between two of them, a line
        table[0] = 0
        return np.rint(table).astype(np.int64)

    @cached_property
    def _flops_a_token(self) -> tuple[Ints, Floats]:
        points = np.unique(np.rint(np.geomspace(1, self.longest, POINTS)).astype(np.int64))
        return points, np.array([self._prefill_flops(int(n)) / int(n) for n in points])

    def _prefill_flops(self, n: int) -> int:
        """Return the FLOPs of one prompt, whose last token alone goes through the head."""
        found = self.m.forward_flops(1, n)
        return found["total"] - found["head"] * (n - 1) // n

    def read(self, tokens: "float | Floats") -> Floats:
        """Return the bytes of weights that passes of so many tokens read: of experts, those that any of them visits.

        Tokens choose evenly and independently: a share 1 - (1 - active / count)^tokens of the experts.
        """
        e, tokens = self.m.experts, np.asarray(tokens, dtype=np.float64)
        if e is None or e.active == e.count:
            return np.full(tokens.shape, float(self.weights))
        idle = self.params - self.active
        visited = e.count * (1 - (1 - e.active / e.count) ** np.maximum(tokens, 1.0))
        return np.asarray((self.active + idle * (visited - e.active) / (e.count - e.active)) * self.weight_size)

    def prefill(self, prompts: Ints) -> float:
        """Return the seconds of one pass over some prompts, the larger of products and reading the weights."""
        points, flops = self._flops_a_token
        work = float((np.interp(prompts, points, flops) * prompts).sum())
        return max(work / self.flops, float(self.read(float(prompts.sum()))) / self.bandwidth)

    def prefill_each(self, prompts: Floats) -> Floats:
        """Return the seconds of each prompt alone."""
        points, flops = self._flops_a_token
        work = np.interp(prompts, points, flops) * prompts
        return np.asarray(np.maximum(work / self.flops, self.read(prompts) / self.bandwidth))

    def step_parts(self, batch: float, kept: float) -> dict[str, float]:
        """Return the seconds of a decode step's three roofs, for `batch` sequences that keep so many bytes in all."""
        return {
            KV: kept / self.bandwidth,
            WEIGHTS: float(self.read(batch)) / self.bandwidth,
            COMPUTE: 2 * batch * self.active / self.flops,
        }

    def step(self, batch: float, kept: Floats) -> Floats:
        """Return the seconds of steps: KV bytes / BW + max(2·B·P / C, W / BW)."""
        parts = self.step_parts(batch, 0.0)
        return kept / self.bandwidth + max(parts[WEIGHTS], parts[COMPUTE])

    def bound_by(self, batch: float, kept: float) -> str:
        """Return the largest part of a step."""
        parts = self.step_parts(batch, kept)
        return max(parts, key=lambda part: parts[part])

    def engine(self) -> Engine:
        """Return the engine that `simulate` runs."""
        return Engine(self.prefill, self.step, self.kept, self.room, self.max_batch, self.pass_tokens)
