"""What the kit says of a kernel: one `Result` per check, and the `Report` that holds them."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refattn.arrays import Array
from refattn.testing.contract import Contract

PASS = "PASS"
FAIL = "FAIL"  # provable: beyond the sound bound, wrong bits in an exact relation, a leak, a kernel that raises
SUSPECT = "SUSPECT"  # statistical, and three fresh seeds agree
UNDECLARED = "UNDECLARED"  # right, in a precision that the contract does not declare
NOT_RUN = "NOT RUN"  # ruled out by the contract, with the reason
VERDICTS = (PASS, FAIL, SUSPECT, UNDECLARED, NOT_RUN)
BAD = (FAIL, SUSPECT, UNDECLARED)


@dataclass(frozen=True)
class Picture:
    """A matrix to look at: a map of errors, or an effective mask beside the declared one."""

    title: str
    values: Array
    """(rows, columns); a bool picture is a mask, one of floats a map in which the largest number stands out."""
    wanted: Array | None = None
    """What it should be, of the same shape, where that is known."""
    rows: str = "query"
    columns: str = "key"


@dataclass(frozen=True)
class Waiver:
    """Why a check that is not passed is accepted for now."""

    check: str
    """The id, or a pattern with * for many."""
    reason: str
    link: str
    expires: datetime.date | None = None
    """The last day on which it counts."""


@dataclass(frozen=True)
class Result:
    """What came of one check."""

    check: str
    """Its stable id, such as "attention/needle_200"; the case is reproducible from it and the report's seed."""
    verdict: str
    message: str = ""
    """What is wrong, and where; or why it was not run."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What was measured: "bound", the largest error as a share of the sound bound; "z_rms", "z_max", ..."""
    seconds: float = 0.0
    pictures: tuple[Picture, ...] = ()
    waiver: Waiver | None = None

    @property
    def bad(self) -> bool:
        """Whether it counts against the kernel."""
        return self.verdict in BAD and self.waiver is None


@dataclass(frozen=True)
class Diagnosis:
    """One explanation of what failed."""

    name: str
    """A short stable name, such as "window one too wide"."""
    sentence: str
    """The same for a person, with the estimate where there is one."""
    explained: float
    """The share of the failed checks that it explains, 0 to 1."""


@dataclass
class Report:
    """All results of one run, in the order of the checks."""

    subject: str
    """The kernel's or the backend's name."""
    contract: Contract | None
    level: str
    seed: int
    results: list[Result] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What is wrong apart from any check: a backend's LIMITS, a waiver that is not needed any more."""
    call: str = ""
    """The Python that gives the report again, where it does not come from `check`."""
    context: Any = None
    """What `refattn.testing.diagnose` needs: the kernel and the problems that failed."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed that is not waived."""
        return not self.complaints and not any(result.bad for result in self.results)

    @property
    def failures(self) -> list[Result]:
        """Every result that counts against the kernel."""
        return [result for result in self.results if result.bad]

    def count(self, verdict: str, prefix: str = "") -> int:
        """Return how many results have the verdict, among the checks whose id begins with `prefix`."""
        return sum(result.verdict == verdict and result.check.startswith(prefix) for result in self.results)

    def __str__(self) -> str:
        """Return the report as plain text; `refattn.testing.show` prints it in colors."""
        from refattn.testing.reports.terminal import text

        return text(self)

    def to_html(self, path: str | Path) -> None:
        """Write a page to look at: one file, no script, nothing to fetch; an interruption leaves the old file."""
        from refattn.testing.reports.html import dump

        dump(self, path)

    def to_json(self, path: str | Path) -> None:
        """Write strict JSON for programs, without pictures; an interruption leaves the old file."""
        from refattn.testing.reports.json_ import dump

        dump(self, path)

    def to_junit(self, path: str | Path) -> None:
        """Write JUnit XML for test services, a testcase per check; an interruption leaves the old file."""
        from refattn.testing.reports.junit import dump

        dump(self, path)
