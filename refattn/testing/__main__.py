"""``python -m refattn.testing``: try the backends that are installed, print a table, exit 1 if anything failed."""

import argparse
import sys
from collections.abc import Sequence

from refattn.dispatch import OPERATIONS, REFERENCE, backends, load
from refattn.testing.cases import DTYPES, dtypes_here
from refattn.testing.conformance import check_backend
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, UNDECLARED, Report, Result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m refattn.testing", description=__doc__)
    parser.add_argument("--backend", action="append", metavar="NAME", help="which to try; all installed unless given")
    parser.add_argument("--operation", action="append", metavar="NAME", choices=sorted(OPERATIONS), help="which to try")
    parser.add_argument("--quick", action="store_true", help="a choice of cases, in float32 and bfloat16")
    parser.add_argument("--failures", type=int, default=20, metavar="N", help="how many failures to print per backend")
    options = parser.parse_args(arguments)
    left_out = [dtype for dtype in DTYPES if dtype not in dtypes_here()]
    if left_out:
        print(f"not tried: {', '.join(left_out)}, which needs the package ml_dtypes")
    reports, status = [], 0
    for name in options.backend or backends():
        try:
            unavailable = None if name == REFERENCE else getattr(load(name), "unavailable", lambda: None)()
            if unavailable is not None:
                raise ImportError(f"backend {name!r} cannot run here: {unavailable}")
            reports.append(check_backend(name, options.operation, "quick" if options.quick else "standard", _dot))
        except (ImportError, LookupError) as error:
            print(f"not tried: {error}")
            status |= options.backend is not None
    if not reports:
        return 1
    sys.stderr.write("\n")
    print(table(reports, options.operation or sorted(OPERATIONS)))
    for report in reports:
        lines = [f"{report.subject}: {r.check}: {r.message}" for r in report.failures]
        lines += [f"{report.subject}: {complaint}" for complaint in report.complaints]
        print("\n".join(lines[: options.failures]))
        if len(lines) > options.failures:
            print(f"{report.subject}: and {len(lines) - options.failures} more")
    return int(status or not all(report.ok for report in reports))


def table(reports: list[Report], operations: Sequence[str]) -> str:
    """Return a row per operation and a column per backend: how many cases passed, failed, were refused in order."""
    cells = [["operation", *(report.subject.removeprefix("backend ") for report in reports)]]
    cells += [[operation, *(_cell(report, operation) for report in reports)] for operation in operations]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(report: Report, operation: str) -> str:
    counted = {
        verdict: report.count(verdict, f"{operation}/") for verdict in (PASS, FAIL, SUSPECT, UNDECLARED, NOT_RUN)
    }
    failed = sum(counted[verdict] for verdict in (FAIL, SUSPECT, UNDECLARED))
    words = [f"{counted[PASS]} passed"] + [f"{failed} FAILED"] * (failed > 0)
    words += [f"{counted[NOT_RUN]} not run"] * (counted[NOT_RUN] > 0)
    wide = [
        r.figures["bound"]
        for r in report.results
        if r.check.startswith(f"{operation}/") and r.check.endswith(("float32", "float64")) and "bound" in r.figures
    ]
    return ", ".join(words) + (f" (error {max(wide):.2f} of the bound)" if wide else "")


def _dot(result: Result) -> None:
    if sys.stderr.isatty():
        sys.stderr.write({PASS: ".", NOT_RUN: "-"}.get(result.verdict, "F"))
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
