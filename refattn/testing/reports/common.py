"""What the forms of a report share: which results come first, how a figure reads, how a file is written."""

import errno
import math
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

from refattn.models.files import write_whole
from refattn.testing.contract import Contract
from refattn.testing.verdicts import BAD, NOT_RUN, PASS, VERDICTS, Report, Result

WAIVED = "WAIVED"
"""What a bad result counts as that somebody has accepted."""
NOTHING_RAN = "Nothing was checked: no check ran."

FIGURES = {"bound": "error/bound", "z_rms": "z rms", "z_max": "z max"}
"""The figures that come first, and what they are called; others keep their names."""

# What XML 1.0 leaves out (section 2.2, "Char"): control characters, halves of surrogate pairs, two non-characters.
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: object) -> str:
    """Return the text without the characters that XML forbids and terminals obey."""
    return ILLEGAL.sub("", str(text))


def verdict(report: Report) -> str:
    """Return PASS or FAIL for the whole report."""
    return PASS if report.ok else "FAIL"


def failed(report: Report) -> list[Result]:
    """Return what counts against the kernel: what is provable first."""
    return sorted(report.failures, key=lambda result: BAD.index(result.verdict))


def waived(report: Report) -> list[Result]:
    """Return the bad results that are accepted, in the order of the checks."""
    return [result for result in report.results if result.verdict in BAD and result.waiver is not None]


def not_run(report: Report) -> dict[str, list[str]]:
    """Return the ids of what was not run, by reason."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        if result.verdict == NOT_RUN:
            reasons.setdefault(clean(result.message) or "no reason given", []).append(result.check)
    return reasons


def counts(report: Report) -> dict[str, int]:
    """Return how many results have each verdict; the waived ones are counted apart."""
    found = Counter(WAIVED if r.waiver is not None and r.verdict in BAD else r.verdict for r in report.results)
    return {name: found[name] for name in (*VERDICTS, WAIVED) if found[name]}


def nothing_ran(report: Report) -> bool:
    """Say whether the report rests on no check at all."""
    return all(result.verdict == NOT_RUN for result in report.results)


def seconds(report: Report) -> float:
    """Return how long the checks took together."""
    return math.fsum(result.seconds for result in report.results if math.isfinite(result.seconds))


def worst(report: Report, name: str) -> tuple[float, str] | None:
    """Return the largest figure of this name, NaN above all, and the check that it belongs to."""
    found = [(r.figures[name], r.check) for r in report.results if name in r.figures and r.verdict != NOT_RUN]
    return max(found, key=lambda pair: (math.isnan(pair[0]), pair[0]), default=None)


def figures(result: Result, most: int | None = None) -> list[tuple[str, str]]:
    """Return names and values to read, the best known figures first."""
    order = [name for name in FIGURES if name in result.figures]
    order += [name for name in result.figures if name not in FIGURES]
    return [(FIGURES.get(name, clean(name)), f"{float(result.figures[name]):.3g}") for name in order[:most]]


def explained(report: Report, share: float) -> str:
    """Return "explains 6 of 7" for a share of the failed checks."""
    total = sum(result.verdict in BAD for result in report.results)
    return f"explains {round(share * total)} of {total}" if total else f"explains {share:.0%}"


def about(report: Report) -> dict[str, str]:
    """Return what was judged: the operation, the dtype, the level and the seed, as far as they are known."""
    contract = report.contract
    known = {} if contract is None else {"op": contract.op, "dtype": contract.dtype}
    return {name: clean(x) for name, x in {**known, "level": report.level, "seed": str(report.seed)}.items()}


def repeat_one(report: Report, check: str) -> str:
    """Return the call that runs one check again, for readers who have the kernel and the contract at hand."""
    if report.contract is None:
        return f"{reproduction(report)}  # {clean(check)}"
    only = f"lambda id: id == {check!r}"
    return clean(f"rt.check(kernel, contract, level={report.level!r}, seed={report.seed}, only={only})")


def reproduction(report: Report) -> str:
    """Return the call that gives the whole report again, with the contract written out."""
    if report.call or report.contract is None:
        return clean(report.call or f"rt.check_backend({report.subject!r}, level={report.level!r})")
    default = Contract()
    given = {f.name: getattr(report.contract, f.name) for f in fields(Contract)}
    changed = [f"{x}={y!r}" for x, y in given.items() if x == "dtype" or repr(y) != repr(getattr(default, x))]
    return clean(f"rt.check(kernel, rt.Contract({', '.join(changed)}), level={report.level!r}, seed={report.seed})")


def write(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: an interruption leaves the old one as it was."""
    target = Path(path).resolve()  # a link stays a link, to the new file
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the report wants a file, this is a folder", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder for the report", str(target.parent))
    write_whole(path, text)
