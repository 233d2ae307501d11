"""A machine without surprises: every step takes a time proportional to its size. Tests predict by hand on it."""

import itertools

from refattn.costs.calibration import Calibration
from refattn.costs.measuring import identity

FLOP = 2e-11  # seconds of a multiply-add in products
PAIR = {"numpy": 4e-9, "numba": 1e-9}  # of a pair at width 64
TOKEN = 1e-6  # of a token and head in a mixer
NUMBER = 1e-9

SIZES = (16.0, 1e3, 1e6, 1e9)


def ideal(
    ratios=(0.8, 0.9, 0.95, 1.0, 1.0, 1.0, 1.05, 1.1, 1.25), mechanisms=("retention", "mamba2"), slow=1.0, **more
):
    axes = {"rows": [1, 32, 1024], "inner": [32, 1024], "columns": [32, 1024]}
    shape = [[[FLOP * slow * r * k * c for c in axes["columns"]] for k in axes["inner"]] for r in axes["rows"]]
    forms = itertools.product(("numpy", "numba"), ("full", "causal", "window", "decode"), (32, 64, 128))
    curves = {
        f"{backend}:{form}:{width}": [(n, n * PAIR[backend] * slow * width / 64) for n in SIZES]
        for backend, form, width in forms
    }
    kinds = ("rms_norm", "layer_norm", "swiglu", "gelu", "add", "rope", "heads")
    curves |= {kind: [(n, n * NUMBER * slow) for n in SIZES] for kind in kinds}
    mixing = {
        f"{backend}:{name}:{width}": [(T, TOKEN * slow * width / 64) for T in (1.0, 1024.0)]
        for backend in ("numpy", "numba")
        for name in mechanisms
        for width in (32, 64)
    }
    given = {
        "machine": identity(), "date": "2026-01-01", "peak": {"float32": 2 / FLOP}, "bandwidth": 1e10, "exp_rate": 1e9,
        "memory": 1 << 34, "overhead": 1e-6, "matmul": axes | {"seconds": shape}, "curves": curves, "mixing": mixing,
        "ratios": {"numpy": list(ratios), "numba": list(ratios)}, "longest": 2048,
    }  # fmt: skip
    return Calibration(**(given | more))
