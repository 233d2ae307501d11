r"""Numbers that know how far rounding may have carried them: running error analysis.

A `Rough` holds a value x, a bound e of its absolute error, and the variance s2 that one expects of it. Errors travel by
the first-order rules

.. math:: e_{ab} = |a| e_b + |b| e_a + e_a e_b, \qquad s^2_{ab} = a^2 s^2_b + b^2 s^2_a

and each rounding adds u|x| to the bound and `SHARE` (u x)² to the variance (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., 2002, section 3.3).
"""

from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import SHARE


@dataclass(frozen=True)
class Rough:
    """An array, with the errors of its elements."""

    x: Array
    e: Array
    s2: Array

    @classmethod
    def exact(cls, x: Array) -> "Rough":
        """Return numbers without error."""
        x = np.asarray(x, np.float64)
        return cls(x, np.zeros(1), np.zeros(1))

    def rounded(self, u: float, times: float = 1.0) -> "Rough":
        """Round `times` times, each to a relative error of u."""
        size = np.abs(self.x)
        return Rough(self.x, self.e + times * u * (size + self.e), self.s2 + times * SHARE * (u * size) ** 2)

    def off(self, by: Array) -> "Rough":
        """Add an error of at most `by`."""
        return Rough(self.x, self.e + by, self.s2 + SHARE * by**2)

    def __add__(self, other: "Rough") -> "Rough":
        return Rough(self.x + other.x, self.e + other.e, self.s2 + other.s2)

    def __mul__(self, other: "Rough") -> "Rough":
        a, b = np.abs(self.x), np.abs(other.x)
        return Rough(
            self.x * other.x,
            a * other.e + b * self.e + self.e * other.e,
            self.x**2 * other.s2 + other.x**2 * self.s2,
        )

    def times(self, factor: Array | float) -> "Rough":
        """Multiply by exact numbers."""
        factor = np.asarray(factor)
        return Rough(self.x * factor, self.e * np.abs(factor), self.s2 * factor**2)

    def through(self, value: Array, slope: Array, steepest: Array | float | None = None) -> "Rough":
        """Return f of this: its value, its slope here, and the steepest slope within reach of the error."""
        most = np.abs(slope) if steepest is None else steepest
        return Rough(value, self.e * most, self.s2 * slope**2)

    def __getitem__(self, at: object) -> "Rough":
        full = (np.broadcast_to(x, self.x.shape)[at] for x in (self.x, self.e, self.s2))  # type: ignore[call-overload]
        return Rough(*full)


def joined(parts: list[Rough], axis: int) -> Rough:
    """Put arrays one after the other."""
    whole = [
        np.concatenate([np.broadcast_to(part, p.x.shape) for p, part in ((p, getattr(p, name)) for p in parts)], axis)
        for name in ("x", "e", "s2")
    ]
    return Rough(*whole)
