"""Whole blocks of `refattn.models`, measured beside what their steps add up to: how far predictions are off."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refattn import dispatch
from refattn.arrays import Array
from refattn.costs.calibration import Calibration
from refattn.costs.prediction import raw_parts
from refattn.costs.timings import median_seconds
from refattn.costs.transformer import Transformer
from refattn.dense.decode import KVCache
from refattn.models import mixers
from refattn.models.block import block, block_vjp
from refattn.models.checkpoint import Config

SIZES = (
    *((128, 4, 96), (128, 2, 700), (192, 3, 300), (256, 4, 64), (256, 8, 400), (320, 5, 200), (384, 6, 160)),
    *((256, 4, 32), (448, 7, 40), (256, 4, 1100)),
)
"""Width, heads, tokens: between the sizes that the steps were measured at."""
ROOM = 64  # calls of decoding
TINY = (64, 2, 16)
MIXED_SIZES = ((192, 3, 200), (256, 8, 500), (384, 6, 40))
SETS = 6  # of weights, one after the other: in a model they come from memory


Measure = Callable[[Calibration, str, str, int, int, int], tuple[float, float]]


def layer_seconds(calibration: Calibration, backend: str) -> dict[str, float]:
    """Return what a layer takes beside its steps, by "backend:phase": measured less summed, of a block of `TINY`."""
    found = {}
    for phase, measure in (("prefill", _forward), ("decode", _decode), ("train", _train)):
        seconds, summed = measure(calibration, backend, "attention", *TINY)
        found[f"{backend}:{phase}"] = max(seconds - summed, 1e-9)
    return found


def block_ratios(calibration: Calibration, backend: str, mechanisms: list[str]) -> dict[str, list[float]]:
    """Return measured / predicted of blocks: "backend" with attention, "backend:mixing" with others, and by phase."""

    def ratios(measure: Measure, mixer: str, sizes: Sequence[tuple[int, int, int]]) -> list[float]:
        pairs = [measure(calibration, backend, mixer, *size) for size in sizes]
        return [seconds / summed for seconds, summed in pairs]

    short = [(width, heads, tokens) for width, heads, tokens in SIZES if tokens <= 400]
    found = {
        backend: ratios(_forward, "attention", SIZES),
        f"{backend}:decode": ratios(_decode, "attention", short),
        f"{backend}:train": ratios(_train, "attention", short),
    }
    mixed = [ratio for name in mechanisms for ratio in ratios(_forward, name, MIXED_SIZES)]
    return found | ({f"{backend}:mixing": mixed} if mixed else {})


def sizes_of(width: int, heads: int, mixer: str) -> tuple[Config, Transformer]:
    """Return a block as the network and as costs see it."""
    d = width // heads
    config = Config(
        "ab", layers=1, width=width, heads=heads, kv_heads=heads, head_dim=d, hidden=5 * width // 2, context=1 << 20,
        mixer=mixer,
    )  # fmt: skip
    m = Transformer(
        layers=1, d_model=width, heads=heads, ffn=config.hidden, gated=True, more_norms=0,
        mechanism=None if mixer == "attention" else mixer,
    )  # fmt: skip
    return config, m


def _weights(config: Config, rng: np.random.Generator) -> dict[str, Array]:
    shapes = {name.removeprefix("layers.0."): shape for name, shape in config.shapes().items()}
    w = {
        name: (rng.normal(0, 0.05, shape) if len(shape) > 1 else np.ones(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    if config.mixer != "attention":
        w |= {name: x.astype(np.float32) for name, x in config.draw_mixer(0).items()}
    return w


def _seconds(call: Callable[[], Any], backend: str) -> float:
    with dispatch.use_backend(backend):
        return median_seconds(call, least=4, seconds=0.06)


def _turning(config: Config, rng: np.random.Generator) -> Callable[[], dict[str, Array]]:
    """Return a function that gives weights, each time others."""
    sets = itertools.cycle([_weights(config, rng) for _ in range(SETS)])
    return lambda: next(sets)


def _forward(
    calibration: Calibration, backend: str, mixer: str, width: int, heads: int, tokens: int
) -> tuple[float, float]:
    """Return the seconds of a block, and what the tables add up to."""
    rng = np.random.default_rng(0)
    config, m = sizes_of(width, heads, mixer)
    w, x = _turning(config, rng), rng.standard_normal((1, tokens, width), np.float32)
    positions = np.arange(tokens)
    run = (lambda: block(x, w(), config, positions)) if mixer == "attention" else lambda: mixers.block(x, w(), config)
    parts, _ = raw_parts(m, m.call(1, tokens), calibration, "prefill", backend)
    return _seconds(run, backend), sum(parts.values())


def _decode(
    calibration: Calibration, backend: str, mixer: str, width: int, heads: int, tokens: int
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    config, m = sizes_of(width, heads, mixer)
    w = _turning(config, rng)
    keys = rng.standard_normal((1, heads, tokens - 1, width // heads), np.float32)
    x, positions = rng.standard_normal((1, 1, width), np.float32), np.array([tokens - 1])
    cache = KVCache((1,), heads, tokens + ROOM, width // heads, dtype=np.float32)
    cache.append(keys, keys)  # the calls then lengthen it by a few
    parts, _ = raw_parts(m, m.call(1, 1, tokens - 1), calibration, "decode", backend)
    return _seconds(lambda: block(x, w(), config, positions, cache), backend), sum(parts.values())


def _train(
    calibration: Calibration, backend: str, mixer: str, width: int, heads: int, tokens: int
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    config, m = sizes_of(width, heads, mixer)
    turn, x = _turning(config, rng), rng.standard_normal((1, tokens, width), np.float32)
    positions = np.arange(tokens)

    def run() -> None:
        w = turn()
        y, saved = block(x, w, config, positions)
        block_vjp(np.ones_like(y), saved, w, config, positions)

    parts, _ = raw_parts(m, m.call(1, tokens), calibration, "train", backend)
    return _seconds(run, backend), sum(parts.values())
