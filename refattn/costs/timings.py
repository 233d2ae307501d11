"""Tables of seconds by size: products, numbers, attention, mixers. `measuring` makes a `Calibration` of them.

Every number is the median of a few calls after one that is not counted, which may compile.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from refattn import dispatch, masks
from refattn.arrays import Array
from refattn.costs.calibration import Curve
from refattn.costs.pairs import tile_pairs
from refattn.costs.steps import TILE
from refattn.dense.attention import attention
from refattn.dense.rope import rope
from refattn.models.checkpoint import Config
from refattn.models.elementwise import add
from refattn.models.layers import linear, merge_heads, rms_norm, split_heads, swiglu
from refattn.models.minilm import gelu
from refattn.models.mixers import MIXERS
from refattn.models.norms import layer_norm

ROWS, INNER, COLUMNS = (1, 8, 64, 256, 1024), (32, 128, 512, 1024), (32, 128, 512, 1024)
NUMBERS = (1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22)
LENGTHS = (16, 64, 128, 256, 512, 1024, 2048)
WIDTHS = (32, 64, 128)
HEADS = 4
POOL = 1 << 23  # numbers
WINDOW = 128


def median_seconds(
    call: Callable[[], Any],
    least: int = 3,
    most: int = 25,
    seconds: float = 0.03,
    before: Callable[[], Any] = lambda: None,
) -> float:
    """Return the median time of a call, after one that is not counted; at least `least` calls, for so many seconds.

    `before` runs before each, and is not counted.
    """
    call()
    found: list[float] = []
    while len(found) < least or (sum(found) < seconds and len(found) < most):
        before()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def company(rng: np.random.Generator) -> Callable[[], Any]:
    """Return a product to run before a call: in a network, the threads of a BLAS are awake, and take their share."""
    x, w = rng.standard_normal((128, 256), np.float32), rng.standard_normal((256, 256), np.float32)
    return partial(np.matmul, x, w)


def matmul_table(rng: np.random.Generator) -> tuple[dict[str, Any], float]:
    """Return the grid of products, see `Calibration.matmul`, and the best FLOP/s on it.

    Each call takes another matrix out of a pool that is larger than a core's caches, as layer after layer does.
    """
    seconds, peak = np.zeros((len(ROWS), len(INNER), len(COLUMNS))), 0.0
    pool = rng.standard_normal(POOL, np.float32)
    for (b, inner), (c, columns) in ((b, c) for b in enumerate(INNER) for c in enumerate(COLUMNS)):
        matrices = itertools.cycle(pool[: POOL - POOL % (inner * columns)].reshape(-1, inner, columns))
        for a, rows in enumerate(ROWS):
            x = rng.standard_normal((rows, inner), np.float32)
            seconds[a, b, c] = median_seconds(partial(_product, x, matrices))
            peak = max(peak, 2 * rows * inner * columns / seconds[a, b, c])
    axes = {"rows": list(ROWS), "inner": list(INNER), "columns": list(COLUMNS)}
    return axes | {"seconds": seconds.tolist()}, peak


def _product(x: Array, matrices: Iterator[Array]) -> Array:
    y: Array = x @ next(matrices)
    return y


def exponentials(rng: np.random.Generator) -> float:
    """Return exponentials a second, of numbers that lie in a cache."""
    x = rng.standard_normal(1 << 14, np.float32)
    return len(x) / median_seconds(lambda: np.exp(x))


def copies(rng: np.random.Generator) -> Curve:
    """Return bytes a second of a copy by its size, read and written: the levels of the memory."""
    found = []
    for size in (1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 24):
        x = rng.standard_normal(size, np.float32)
        y = np.empty_like(x)
        found.append((float(2 * x.nbytes), 2 * x.nbytes / median_seconds(partial(np.copyto, y, x))))
    return found


def elementwise(rng: np.random.Generator) -> dict[str, Curve]:
    """Return seconds by how many numbers, of norms, activations, sums, rotation and reordering."""
    found: dict[str, Curve] = {}
    gain, awake = np.ones(256, np.float32), company(rng)
    for size in NUMBERS:
        x = rng.standard_normal((size // 256, 256), np.float32)
        split = split_heads(x[None], 4)
        calls: dict[str, Callable[[], Any]] = {
            "rms_norm": partial(rms_norm, x, gain),
            "layer_norm": partial(layer_norm, x, gain, gain),
            "swiglu": partial(swiglu, x, x),
            "gelu": partial(gelu, x),
            "add": partial(add, x, x),
            "rope": partial(rope, split, np.arange(split.shape[-2])),
            "heads": partial(merge_heads, split),
        }
        for name, call in calls.items():
            found.setdefault(name, []).append((float(size), median_seconds(call, before=awake)))
    return found


def attention_curves(rng: np.random.Generator, backend: str) -> dict[str, Curve]:
    """Return seconds by computed pairs, by "backend:form:width", of full, causal, windowed attention and decoding."""
    found: dict[str, Curve] = {}
    awake = company(rng)
    forms = {"full": None, "causal": masks.causal(), "window": masks.causal() & masks.window(WINDOW - 1, 0)}
    for width in WIDTHS:
        for T in LENGTHS if width == 64 else LENGTHS[::2]:
            q, k, v = (rng.standard_normal((HEADS, T, width), np.float32) for _ in range(3))
            for form, mask in forms.items():
                pairs = computed_pairs(backend, mask, T, T, HEADS)
                seconds = median_seconds(partial(attention, q, k, v, mask=mask, backend=backend), before=awake)
                found.setdefault(f"{backend}:{form}:{width}", []).append((float(pairs), seconds))
            seconds = median_seconds(partial(attention, q[:, :1], k, v, backend=backend), before=awake)
            found.setdefault(f"{backend}:decode:{width}", []).append((float(HEADS * T), seconds))
    return {name: _rising(curve) for name, curve in found.items()}


def computed_pairs(backend: str, mask: "masks.Mask | None", Tq: int, Tk: int, heads: int) -> int:
    """Return how many pairs a backend computes: all of them on numpy, those of its tiles elsewhere."""
    return heads * (Tq * Tk if backend == dispatch.REFERENCE else tile_pairs(mask, Tq, Tk, *TILE))


def _rising(curve: Curve) -> Curve:
    """Return the points by size, of equal sizes the quickest."""
    best: dict[float, float] = {}
    for size, seconds in curve:
        best[size] = min(seconds, best.get(size, seconds))
    return sorted(best.items())


def mixing_curves(rng: np.random.Generator, backend: str, mechanism: str) -> dict[str, Curve]:
    """Return the seconds of a token and head without matrices, by length, by "backend:mechanism:width"."""
    found: dict[str, Curve] = {}
    for heads, width in ((8, 32), (4, 64)):
        config = Config("ab", layers=1, width=256, heads=heads, kv_heads=heads, head_dim=width, mixer=mechanism)
        w = {name: x.astype(np.float32) for name, x in config.draw_mixer(0).items()}
        for T in (1, 64, 256, 1024):
            h = rng.standard_normal((1, T, 256), np.float32)
            rest = _without_matrices(h, w, config, backend)
            found.setdefault(f"{backend}:{mechanism}:{width}", []).append((float(T), rest / (T * heads)))
    return found


def _without_matrices(h: Array, w: dict[str, Array], config: Config, backend: str) -> float:
    """Return the median time of a mixer, less that of its products with matrices."""
    found = []
    with dispatch.use_backend(backend):
        for n in range(6):
            spent = 0.0

            def call(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                nonlocal spent
                start = time.perf_counter()
                result = f(*args, **kwargs)
                spent += time.perf_counter() - start if f is linear else 0.0
                return result

            start = time.perf_counter()
            MIXERS[config.mixer].mix(h, w, config, None, call)
            whole = time.perf_counter() - start
            if n:
                found.append(max(whole - spent, 1e-9))
    return float(np.median(found))
