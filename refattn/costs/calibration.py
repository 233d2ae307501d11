"""What was measured of a machine, and how far predictions made of it were off: a file that `predict` reads.

A `Calibration` holds tables of seconds by size; `calibrate` in `measuring` fills them. It knows on which machine and
with which versions it was made, and `canary` measures a few of its entries once more.
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refattn.costs.names import unknown
from refattn.models.files import write_whole

VERSION = 1
TOLERATED = 1.5
"""How many times as long, or as short, a canary may take before it is said."""

Curve = list[tuple[float, float]]  # (size, seconds), by size


class CalibrationWarning(UserWarning):
    """A calibration was made elsewhere, or no longer fits this machine."""


@dataclass
class Calibration:
    """Measured times of this project's operations on one machine.

    Raises
    ------
    ValueError
        For tables that are empty or hold what is no time.
    """

    machine: dict[str, str]
    """Processor, cores, versions: what must be the same."""
    date: str
    peak: dict[str, float]
    """FLOP/s of the best matrix product found, by dtype."""
    bandwidth: float
    """Bytes per second of a large copy, read and written."""
    exp_rate: float
    """Exponentials per second."""
    memory: int
    """Bytes that were free."""
    overhead: float
    """Seconds of a call of NumPy on almost nothing."""
    matmul: dict[str, Any] = field(default_factory=dict)
    """rows, inner, columns: the grid; seconds: of each product on it, nested in that order."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Seconds by size, of norms, activations and the like, and "backend:form:width" of attention, by pairs."""
    mixing: dict[str, Curve] = field(default_factory=dict)
    """ "backend:mechanism:width": seconds of a token and head, without matrices, by the length."""
    bandwidths: Curve = field(default_factory=list)
    """Bytes a second of a copy, by its size: the levels of the memory."""
    layers: dict[str, float] = field(default_factory=dict)
    """ "backend:phase": seconds that a layer takes beside its steps, however small: the calls between them."""
    ratios: dict[str, list[float]] = field(default_factory=dict)
    """ "backend", "backend:mixing", "backend:decode", "backend:train": measured / predicted of whole blocks."""
    longest: int = 1
    """The most tokens that attention was measured with."""
    version: int = VERSION

    name = "calibration"

    def __post_init__(self) -> None:
        numbers = [self.bandwidth, self.exp_rate, self.overhead, *self.peak.values(), *self.layers.values()]
        for curve in (*self.curves.values(), *self.mixing.values()):
            numbers += [x for point in curve for x in point]
        numbers += [x for ratios in self.ratios.values() for x in ratios]
        if not numbers or not all(isinstance(x, int | float) and 0 < x < math.inf for x in numbers):
            raise ValueError("Calibration: a table holds what is no time or rate; wanted finite numbers above 0")
        if not all(self.curves.values()) or not all(self.mixing.values()):
            raise ValueError("Calibration: a curve has no points")

    def rate(self, dtype: str) -> float:
        """Return the FLOP/s of the best matrix product; LookupError for a dtype that was not measured."""
        if dtype not in self.peak:
            raise unknown("dtype of this calibration", dtype, self.peak)
        return self.peak[dtype]

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def save(self, path: "str | Path") -> None:
        """Write the calibration; the file is the old one or the whole new one at every moment."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: "str | Path", *, check: bool = True) -> "Calibration":
        """Read a calibration; warn where it was made on another machine or no longer fits this one.

        Parameters
        ----------
        path : str or Path
        check : bool
            Measure the canary, a fraction of a second, and compare the machine.

        Returns
        -------
        Calibration

        Raises
        ------
        OSError
            If there is no such file.
        ValueError
            If it is no calibration, a damaged one, or of another version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no calibration, or cut short: {error}") from None
        if not isinstance(content, dict) or "matmul" not in content:
            raise ValueError(f"{path}: no calibration: it lacks the table matmul")
        if content.get("version") != VERSION:
            raise ValueError(
                f"{path}: a calibration of version {content.get('version')}; wanted {VERSION}: refattn calibrate"
            )
        try:
            found = cls(**content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: a damaged calibration: {error}") from None
        if check:
            for line in found.doubts():
                warnings.warn(f"{path}: {line}", CalibrationWarning, stacklevel=2)
        return found

    def doubts(self) -> list[str]:
        """Return why this calibration should not be believed here: another machine, other versions, canaries that died.

        Measures for a fraction of a second.
        """
        from refattn.costs.measuring import canary, identity

        here = identity()
        differ = [
            f"{key} was {value}, is {here.get(key)}" for key, value in self.machine.items() if here.get(key) != value
        ]
        lines = [f"measured elsewhere: {'; '.join(differ)}"] if differ else []
        for what, ratio in canary(self).items():
            if not 1 / TOLERATED <= ratio <= TOLERATED:
                lines.append(f"{what} takes {ratio:.2g} times as long as it says: measure again with refattn calibrate")
        return lines


def between(curve: Curve, size: float) -> float:
    """Return the seconds at a size: log-linear between two points, proportional to the size beyond the last.

    Before the first point, the time of the first: what is smaller costs the same calls.

    Examples
    --------
    >>> round(between([(10.0, 1.0), (1000.0, 100.0)], 100.0), 9), between([(10.0, 1.0)], 20.0)
    (10.0, 2.0)
    >>> between([(10.0, 1.0)], 5.0)
    1.0
    """
    sizes, seconds = np.array(curve, dtype=float).T
    if size >= sizes[-1]:
        return float(seconds[-1] * size / sizes[-1])
    found = np.exp(np.interp(math.log(max(size, sizes[0])), np.log(sizes), np.log(seconds)))
    return float(found)


def matmul_seconds(table: dict[str, Any], rows: int, inner: int, columns: int) -> float:
    """Return the seconds of a product, by the rate between its neighbours on the grid in logarithms.

    Examples
    --------
    >>> grid = {"rows": [1, 4], "inner": [2, 4], "columns": [2, 4]}
    >>> grid["seconds"] = [[[4.0, 8.0], [8.0, 16.0]], [[16.0, 32.0], [32.0, 64.0]]]
    >>> round(matmul_seconds(grid, 2, 4, 8), 6)  # a unit of time each multiply-add
    64.0
    """
    from scipy.interpolate import RegularGridInterpolator

    axes = [np.log(np.array(table[name], dtype=float)) for name in ("rows", "inner", "columns")]
    work = np.exp(axes[0][:, None, None] + axes[1][:, None] + axes[2])
    per_flop = np.log(np.array(table["seconds"]) / work)
    point = [min(max(math.log(n), axis[0]), axis[-1]) for n, axis in zip((rows, inner, columns), axes, strict=True)]
    rate = math.exp(float(RegularGridInterpolator(axes, per_flop)(point)[0]))
    return rows * inner * columns * rate
