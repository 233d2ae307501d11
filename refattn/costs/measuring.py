"""Measure a machine: how long this project's operations take by size. `calibrate` makes a `Calibration` of it.

The tables come first (`timings`); whole blocks of `refattn.models` last (`blocks`): what they take beside the sum of
their steps is the error that `predict` states.
"""

import platform
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from refattn import dispatch
from refattn.costs.calibration import Calibration, matmul_seconds
from refattn.costs.machine import cores, free_memory, installed, processor
from refattn.costs.names import unknown
from refattn.costs.timings import (
    HEADS,
    LENGTHS,
    NUMBERS,
    attention_curves,
    copies,
    elementwise,
    exponentials,
    matmul_table,
    median_seconds,
    mixing_curves,
)
from refattn.dense.attention import attention
from refattn.models.layers import rms_norm
from refattn.models.mixers import MIXERS

Tick = Callable[[str, float], None]

MIXED = ("linear_attention", "retention", "gated_linear_attention", "gated_delta_rule", "mamba2")
"""The mechanisms of the linear-time family that are measured unless others are named."""


def identity() -> dict[str, str]:
    """Return what two machines must share for a calibration of one to hold on the other."""
    found = {
        "processor": processor(),
        "cores": str(cores()),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
    }
    return found | {name.capitalize(): installed(name) or "missing" for name in ("numba",)}


def calibrate(
    path: "str | Path | None" = None,
    *,
    backends: Iterable[str] | None = None,
    mechanisms: Iterable[str] = MIXED,
    tick: Tick = lambda text, share: None,
) -> Calibration:
    """Measure this machine, for half a minute or so; the first time, compiled backends need longer.

    Parameters
    ----------
    path : str or Path, optional
        Where to keep it.
    backends : iterable of str, optional
        Those to measure; all that are installed unless given.
    mechanisms : iterable of str
        Of the linear-time family, by the names of `refattn.models.mixers.MIXERS`.
    tick : function
        Called with what is measured, and the share that is done.

    Returns
    -------
    Calibration

    Raises
    ------
    LookupError
        For a backend or a mechanism that is not known; the nearest names are offered.
    OSError
        If `path` cannot be written; found out before anything is measured.
    """
    chosen = list(dispatch.backends() if backends is None else backends)
    mixed = list(mechanisms)
    for kind, names, known in (("backend", chosen, dispatch.backends()), ("mechanism", mixed, list(MIXERS))):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(2, "calibrate: no such folder", str(Path(path).resolve().parent))
    rng = np.random.default_rng(0)
    tick("matrix products", 0.0)
    matmul, peak = matmul_table(rng)
    tick("exponentials, copies, norms", 0.25)
    levels = copies(rng)
    curves = elementwise(rng)
    tiny = rng.standard_normal(4, np.float32)
    found = Calibration(
        machine=identity(),
        date=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        peak={"float32": peak, "float64": peak / 2},
        bandwidth=levels[-1][1],
        exp_rate=exponentials(rng),
        memory=free_memory() or 1 << 30,
        overhead=median_seconds(partial(np.add, tiny, tiny), 200, 400),
        matmul=matmul,
        curves=curves,
        bandwidths=levels,
        longest=LENGTHS[-1],
    )
    for n, backend in enumerate(chosen):
        share = 0.35 + 0.65 * n / len(chosen)
        each = 0.65 / len(chosen)
        tick(f"attention on {backend}", share)
        found.curves |= attention_curves(rng, backend)
        for k, mechanism in enumerate(mixed):
            tick(f"{mechanism} on {backend}", share + each * (0.4 + 0.4 * k / max(1, len(mixed))))
            found.mixing |= mixing_curves(rng, backend, mechanism)
        tick(f"whole blocks on {backend}", share + each * 0.8)
        from refattn.costs.blocks import block_ratios, layer_seconds  # which predict with what was measured so far

        found.layers |= layer_seconds(found, backend)
        found.ratios |= block_ratios(found, backend, mixed)
    tick("done", 1.0)
    if path is not None:
        found.save(path)
    return found


def canary(calibration: Calibration) -> dict[str, float]:
    """Return, for a few quick entries, how many times as long they take now: a fraction of a second."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((256, 512), np.float32), rng.standard_normal((512, 512), np.float32)
    ratios = {
        "a matrix product": median_seconds(partial(np.matmul, x, w), 9)
        / matmul_seconds(calibration.matmul, 256, 512, 512)
    }
    size = NUMBERS[2]
    numbers = rng.standard_normal((size // 256, 256), np.float32)
    gain = np.ones(256, np.float32)
    points = dict(calibration.curves.get("rms_norm", []))
    if size in points:
        ratios["a norm"] = median_seconds(partial(rms_norm, numbers, gain), 9) / points[size]
    for backend in (name for name in calibration.ratios if ":" not in name):
        curve = dict(calibration.curves.get(f"{backend}:full:64", []))
        pairs = float(HEADS * 256 * 256)
        if pairs in curve and backend in dispatch.backends():
            q = rng.standard_normal((HEADS, 256, 64), np.float32)
            call = partial(attention, q, q, q, backend=backend)
            ratios[f"attention on {backend}"] = median_seconds(call, 9) / curve[pairs]
    return ratios
