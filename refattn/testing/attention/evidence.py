"""What a kernel returned for one problem, beside what is right: does a hypothesis explain it?"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.backward import backward_errors
from refattn.testing.attention.forward import Sizes, Units, bound, lse_error, rounded, weight_error
from refattn.testing.attention.hypotheses import Given, Mistake, Results, fitted
from refattn.testing.session import Output

SLACK = 4.0
"""How many times the largest bound a result may be off from what explains it: a mistake may make errors larger, too."""
REMOVED = 0.3
"""What a hypothesis may leave of the error, as a root mean square."""


class Evidence:
    """The results of one case."""

    def __init__(self, name: str, make: Callable[[], Given], output: Output) -> None:
        self.name, self._make, self.output = name, make, output

    @cached_property
    def given(self) -> Given:
        """The problem."""
        return self._make()

    @property
    def size(self) -> int:
        """How many numbers the kernel returned."""
        return sum(x.size for x in self.output.parts.values())

    @cached_property
    def got(self) -> Results:
        """What the kernel returned; lse as a natural logarithm."""
        contract = self.given.contract
        names = [n for n in self.output.parts if not (n == "lse" and contract.lse is None)]
        got = {n: self.output[n] for n in names}
        if "lse" in got and contract.lse == "base2":
            with np.errstate(invalid="ignore"):
                got["lse"] = got["lse"] * np.log(2)
        return got

    @cached_property
    def tolerance(self) -> dict[str, float]:
        """How far each part may be from what a hypothesis says."""
        given, contract = self.given, self.given.contract
        with np.errstate(all="ignore"):
            if given.p.do is not None:
                bounds = {n: e["bound"] for n, e in backward_errors(given.p, contract, given.s).items()}
            else:
                u = Units.of(contract)
                sizes = Sizes.of(given.t, u)
                eps = weight_error(given.t, u, sizes)
                o = np.nan_to_num(given.t.o)
                bounds = {"o": rounded(bound(given.t, u, sizes, eps), o, u.out, u.tiny_out)}
                bounds["lse"] = lse_error(given.t, u, sizes, eps)
        return {n: SLACK * _largest(x) for n, x in bounds.items()}

    @cached_property
    def misfit(self) -> float:
        """How far what was got is from what is right."""
        return self._compared(self.given.right)[1]

    def predicted(self, mistake: Mistake) -> Results | None:
        """Return what a kernel with the mistake would have returned; None where it makes no difference."""
        with np.errstate(all="ignore"):
            try:
                results = mistake(self.given)
            except (IndexError, ValueError):  # it does not fit these shapes
                return None
            return None if results is None else fitted(results, self.given.right)

    def explained(self, results: Results) -> bool:
        """Whether the kernel returned these results, and not the right ones."""
        within, left = self._compared(results)
        return within and (left <= REMOVED**2 * self.misfit or np.isinf(self.misfit))

    def differs(self, results: Results) -> bool:
        """Whether a kernel that returns these results is wrong here."""
        for name in self.got:
            x, right = results[name], self.given.right[name]
            with np.errstate(invalid="ignore"):
                off = np.where((x == right) | (np.isnan(x) & np.isnan(right)), 0, np.abs(x - right))
            if not (off[self._binding(name)] <= self.tolerance[name]).all():
                return True
        return False

    def deviations(self, results: Results) -> Array:
        """Return how far what was got is from these results, in units of the tolerance, where both are numbers."""
        parts = []
        for name, got in self.got.items():
            with np.errstate(all="ignore"):
                share = np.clip((results[name] - got) / self.tolerance[name], -1e100, 1e100)
            parts.append(np.where(np.isfinite(results[name]) & np.isfinite(got), share, 0).ravel().astype(np.float64))
        return np.concatenate(parts)

    def _binding(self, name: str) -> Any:
        """Return where the contract says what a result is."""
        contract, blind = self.given.contract, self.given.t.blind
        if name == "o" and contract.blind_rows == "any":
            return ~blind
        return ~blind if name == "lse" and contract.lse_blind == "any" else ...

    def _compared(self, results: Results) -> tuple[bool, float]:
        """Return whether what was got lies within the tolerance of these results, and how far it is from them."""
        within, total = True, 0.0
        for name in self.got:
            binding, tolerance = self._binding(name), self.tolerance[name]
            x, got, right = results[name][binding], self.got[name][binding], self.given.right[name][binding]
            if not got.size:
                continue
            tolerance *= max(1.0, _largest(np.abs(x)) / _largest(np.abs(right)))
            with np.errstate(invalid="ignore", over="ignore"):
                error = np.where(x == got, 0, x - got)
                unknown = np.isnan(x)  # a NaN may spread, or may not
                if unknown.any():
                    error = np.where(unknown & (np.isnan(got) | (np.abs(right - got) <= tolerance)), 0, error)
            if not np.isfinite(error).all():
                return False, np.inf
            share = np.minimum(np.abs(error), 1e100 * tolerance) / tolerance
            if name == "lse":  # minus infinity may be a large number
                share = np.where((x < -1e3) & (np.abs(error) <= 1e-3 * np.abs(x)), 0, share)
            within = within and float(share.max()) <= 1
            total += float((share**2).sum())
        return within, total


def _largest(x: Any) -> float:
    x = np.asarray(x)
    finite: Array = x[np.isfinite(x)]
    return float(finite.max(initial=0)) + 1e-300
