"""From where on a statistic speaks against a kernel; calibrated on correct kernels by tests/benchmarks/calibrate.py.

Two regimes: half, where the result is rounded to 16 bits (or the products to tf32) and that rounding is most of the
error, which the model knows exactly; and single, where the order of summation is, which it does not know.
"""

from dataclasses import dataclass

from refattn.testing.contract import Contract


@dataclass(frozen=True)
class Thresholds:
    """What a correct kernel stays below."""

    z_rms: float
    """Root mean square of error / sigma."""
    z_max: float
    score: float
    """|T| of a score test."""
    theta: float
    """The smallest estimate that matters, whatever its T."""
    row_scale: float
    """Mean T² of the factors by which each row is off."""


FORWARD = {"half": (1.1, 6.0), "single": (4.0, 25.0)}  # z_rms, z_max
BACKWARD = {"half": (1.15, 7.0), "single": (4.0, 30.0)}
SCORE = {"half": 6.0, "single": 9.0}
ROW_SCALE = {"half": 1.6, "single": 40.0}
THETA = {"bfloat16": 5e-5, "float16": 1e-5, "float32": 2e-6, "tf32": 2e-5, "float64": 4e-15}
LOOSER = 2.0
"""Where scores are rounded, or what they are made of: such errors belong together over a row, which no model here has;
and in the backward pass."""


def regime(contract: Contract) -> str:
    """Return "half" or "single"."""
    n = contract.numerics
    narrow = ("float16", "bfloat16", "tf32")
    return "half" if n["out"] in narrow or n["products"] in narrow or n["p"] in narrow else "single"


def thresholds(contract: Contract, backward: bool = False) -> Thresholds:
    """Return the thresholds for a contract."""
    kind, n = regime(contract), contract.numerics
    z_rms, z_max = (BACKWARD if backward else FORWARD)[kind]
    format = "bfloat16" if n["p"] == "bfloat16" else n["products"] or n["out"]
    rough = bool(n["products"] or n["s"] or n["q_prescaled"] or n["acc"] in ("float16", "bfloat16"))
    widened = 1 + (z_rms - 1) * (2.5 if rough else 1)
    loose = LOOSER if rough or backward else 1.0
    return Thresholds(widened, z_max, loose * SCORE[kind], loose * THETA[format], loose**2 * ROW_SCALE[kind])
