"""A report as text: why it failed and where first, what was left out and the sums last."""

import importlib.util
import sys
import textwrap
from collections.abc import Iterator

from refattn.testing.reports.common import (
    NOTHING_RAN,
    WAIVED,
    about,
    clean,
    counts,
    explained,
    failed,
    figures,
    not_run,
    nothing_ran,
    reproduction,
    seconds,
    verdict,
    waived,
    worst,
)
from refattn.testing.reports.pictures import (
    HIDDEN,
    LEAKED,
    MISSING,
    PARTLY,
    VISIBLE,
    is_mask,
    mask_counts,
    mask_grid,
    matrix,
    peak,
)
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, UNDECLARED, Picture, Report, Result

ROWS, COLUMNS, PICTURES = 40, 80, 3
MARKS = {HIDDEN: ".", PARTLY: ":", VISIBLE: "#", MISSING: "-", LEAKED: "+"}
COLORS = {PASS: "1;32", FAIL: "1;31", SUSPECT: "1;33", UNDECLARED: "1;35", NOT_RUN: "2", WAIVED: "36"}
"""Of the terminal: the numbers of ECMA-48, "select graphic rendition"."""


def text(report: Report, width: int = 100, color: bool = False, most: int = 8) -> str:
    """Return the report as text for people.

    Parameters
    ----------
    report : Report
        What to show.
    width : int
        Lines are broken here; an id is not.
    color : bool
        Whether to add the escape codes that terminals take for colors.
    most : int
        How many failures are told in full; of the others only the ids.

    Returns
    -------
    str
        Lines of ASCII, but for what the report's own texts contain.

    Examples
    --------
    >>> from refattn.testing.contract import Contract
    >>> from refattn.testing.verdicts import Report, Result
    >>> results = [Result("attention/needle_200", "FAIL", "query 3 returns v[5], wanted v[4]", {"bound": 41.0})]
    >>> print(text(Report("mine", Contract(), "quick", 0, results)))
    mine: attention, float32, level quick, seed 0: FAIL
    <BLANKLINE>
    FAIL attention/needle_200 (error/bound 41)
        query 3 returns v[5], wanted v[4]
    <BLANKLINE>
    to repeat: rt.check(kernel, rt.Contract(dtype='float32'), level='quick', seed=0)
    1 check: 1 FAIL; 0.00 s
    """
    width = max(width, 40)
    blocks = [_head(report, color), *_explanations(report, width, color), *_failures(report, width, color, most)]
    blocks += [*_left_out(report, width, color), _foot(report, width, color)]
    return "\n\n".join(block for block in blocks if block)


def show(report: Report) -> None:
    """Print the report to standard output: in colors where rich is installed and somebody looks, else as plain text.

    Parameters
    ----------
    report : Report
        What to show.

    Examples
    --------
    >>> from refattn.testing.verdicts import Report, Result
    >>> show(Report("numba", None, "quick", 0, [Result("rope/plain", "PASS")]))
    numba: level quick, seed 0: PASS
    <BLANKLINE>
    1 check: 1 PASS; 0.00 s
    """
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.text import Text

        console = Console()  # knows the width, NO_COLOR, and terminals without escape codes
        console.print(Text.from_ansi(text(report, console.width, color=True)), soft_wrap=True)
        return
    encoding = sys.stdout.encoding or "utf-8"  # a message may have signs that a code page lacks
    print(text(report).encode(encoding, "replace").decode(encoding))


def _paint(word: str, kind: str, color: bool) -> str:
    return f"\x1b[{COLORS[kind]}m{word}\x1b[0m" if color else word


def _wrapped(words: str, width: int, indent: str = "    ") -> str:
    lines = [
        textwrap.fill(
            line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )
        for line in clean(words).splitlines()
    ]
    return "\n".join(line for line in lines if line)


def _head(report: Report, color: bool) -> str:
    facts = [f"{name} {x}" if name in ("level", "seed") else x for name, x in about(report).items()]
    total = NOT_RUN if report.ok and nothing_ran(report) else verdict(report)
    return f"{clean(report.subject)}: {', '.join(facts)}: {_paint(total, total, color)}"


def _result(result: Result, width: int, color: bool) -> str:
    measured = ", ".join(f"{name} {x}" for name, x in figures(result, most=6))
    head = f"{_paint(result.verdict, result.verdict, color)} {clean(result.check)}"
    return "\n".join(
        line for line in (head + f" ({measured})" * bool(measured), _wrapped(result.message, width)) if line
    )


def _failures(report: Report, width: int, color: bool, most: int) -> Iterator[str]:
    drawn = left = 0
    found = failed(report)
    for result in found[:most]:
        parts = [_result(result, width, color)]
        for picture in result.pictures:
            if is_mask(picture) and drawn == PICTURES:
                left += 1
            else:
                drawn += is_mask(picture)
                parts.append(textwrap.indent(picture_text(picture, width - 4), "    "))
        yield "\n".join(parts)
    if left:
        yield f"{left} more picture{'s' * (left > 1)}: see to_html"
    if found[most:]:
        names = ", ".join(clean(result.check) for result in found[most:])
        yield f"{len(found) - most} more that failed, told in full by to_html:\n{_wrapped(names, width)}"


def picture_text(picture: Picture, width: int = COLUMNS) -> str:
    """Return a mask in characters, its differences marked; of a map of numbers, a line about the largest."""
    rows, columns = matrix(picture.values).shape
    title = f"{clean(picture.title)} ({rows} x {columns}, {clean(picture.rows)} x {clean(picture.columns)})"
    if not is_mask(picture):
        top = peak(picture.values)
        place = top and f"{clean(picture.rows)} {top[1]}, {clean(picture.columns)} {top[2]}"
        return f"{title}: the largest is {top[0]:.3g} at {place}" if top else f"{title}: empty"
    grid = mask_grid(picture, ROWS, max(1, min(width, COLUMNS)))
    legend = [f"# visible {mask_counts(picture)[VISIBLE]}", ". hidden"]
    if picture.wanted is not None:
        number = mask_counts(picture)
        legend += [f"+ leaked {number[LEAKED]}", f"- missing {number[MISSING]}"]
    if grid.step != (1, 1):
        legend += [": partly visible", f"a character for {grid.step[0]} x {grid.step[1]}"]
    return "\n".join([title, *("".join(MARKS[code] for code in row) for row in grid.codes), ", ".join(legend)])


def _explanations(report: Report, width: int, color: bool) -> Iterator[str]:
    ranked = sorted(report.diagnoses, key=lambda diagnosis: -diagnosis.explained)
    yield "\n".join(
        _wrapped(
            f"{'or' if rank else 'most likely'}: {x.sentence or x.name} ({explained(report, x.explained)})", width, ""
        )
        for rank, x in enumerate(ranked)
    )
    yield "\n".join(_wrapped(f"complaint: {complaint}", width, "") for complaint in report.complaints)
    yield "\n".join(
        f"{_paint('waived', WAIVED, color)} {result.verdict} {clean(result.check)}\n"
        + _wrapped(f"{result.waiver.reason} ({result.waiver.link})", width)
        for result in waived(report)
        if result.waiver is not None
    )


def _left_out(report: Report, width: int, color: bool) -> Iterator[str]:
    yield "\n".join(
        f"{_paint(NOT_RUN, NOT_RUN, color)} {len(checks)}: {reason}\n" + _wrapped(", ".join(checks), width)
        for reason, checks in not_run(report).items()
    )


def _foot(report: Report, width: int, color: bool) -> str:
    lines = []
    if report.ok:
        largest = [(label, worst(report, name)) for name, label in (("bound", "error/bound"), ("z_max", "z"))]
        if worst(report, "z_max") is None:
            largest[1] = ("z", worst(report, "z_rms"))
        found = [f"worst {label} {top[0]:.3g} ({clean(top[1])})" for label, top in largest if top]
        lines += [", ".join(found)] if found else []
    else:
        lines.append(_wrapped(f"to repeat: {reproduction(report)}", width, ""))
    if nothing_ran(report):
        lines.append(NOTHING_RAN)
    total = len(report.results)
    parts = [f"{number} {_paint(name, name, color)}" for name, number in counts(report).items()]
    wrong = len(report.complaints)
    if wrong:
        parts.append(f"{wrong} complaint{'s' * (wrong != 1)}")
    lines.append(f"{total} check{'s' * (total != 1)}: {', '.join(parts) or 'none'}; {seconds(report):.2f} s")
    return "\n".join(lines)
