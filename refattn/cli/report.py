"""What `refattn compare` says: the table for people, JSON and CSV for programs. See `page` for HTML."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refattn.arrays import compute_dtype
from refattn.cli.machine import need
from refattn.cli.measure import Comparison, Row, Tick

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100  # of what is not a terminal


def consoles(table_to_stderr: bool) -> tuple["Console", "Console"]:
    """Return where the table goes and where the progress bar goes; ImportError if rich is missing."""
    need("rich", "cli", "this command")
    from rich.console import Console

    width = None if "COLUMNS" in os.environ else WIDTH
    streams = [sys.stderr if table_to_stderr else sys.stdout, sys.stderr]
    table, bar = (Console(file=s, width=None if s.isatty() else width, highlight=False) for s in streams)
    return table, bar


@contextmanager
def progress(console: "Console") -> Iterator[Tick]:
    """Show a progress bar, if somebody looks; the function inside takes what is being done and the share done."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share, refresh=True)


HEADERS = ("error", "time", "spread", "times\nfaster", "extra\nmemory", "pairs")


def cells(comparison: Comparison, row: Row) -> list[str]:
    """Return the row's texts under `HEADERS`, empty where nothing was measured; `legend` says what they mean."""
    low, high = row.quartiles or (math.nan, math.nan)
    faster = comparison.faster(row)
    return [
        "" if row.error is None else f"{row.error:.1e}" if row.error else "0",
        "" if row.median is None else duration(row.median),
        "" if row.median is None else f"{(high - low) / row.median:.0%}",
        "" if faster is None else f"{_three(faster)}×",
        "" if row.extra_bytes is None else size(row.extra_bytes),
        "" if row.pairs is None else ("≥" if row.pairs_are_least else "") + count(row.pairs),
    ]


def show(comparison: Comparison, facts: dict[str, str], console: "Console") -> None:
    """Print the table, the reasons of rows without numbers, what the columns mean, and the facts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("variant", vertical="bottom", no_wrap=True)
    table.add_column("backend", vertical="bottom", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    notes: list[tuple[str, str]] = []
    best = max((comparison.faster(row) or 0.0 for row in comparison.rows), default=0.0)
    for row in comparison.rows:
        texts = [Text(text) for text in cells(comparison, row)]
        if row.reason is not None:
            mark = f"({len(notes) + 1})"
            notes.append((mark, f"{row.name}: {row.reason}"))
            texts = [Text(f"{'failed' if row.failed else 'not run'} {mark}"), *texts[1:]]
        elif comparison.wrong(row):
            texts[0] = Text(f"{texts[0]} WRONG")
        if best > 0 and comparison.faster(row) == best:
            texts[3].stylize("bold green")
        style = "bold red" if comparison.wrong(row) else "dim" if row.reason else None
        table.add_row(row.variant, row.backend, *texts, style=style)
    parts = [columns(notes)] if notes else []
    emit(console, "", table, "", *parts, columns(legend(comparison)), "", columns(list(facts.items())))


def columns(lines: list[tuple[str, str]]) -> "Table":
    """Return labels and texts in two columns."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(Text(label, "bold"), Text(text))
    return grid


def emit(console: "Console", *parts: "str | Table") -> None:
    """Print the parts below each other, without blanks at the ends of lines; a table is never cut off."""
    width, anything = console.width, console.options.update(width=1000)
    with console.capture() as captured:
        for part in parts:
            natural = (
                0 if isinstance(part, str) or part.box is None else console.measure(part, options=anything).maximum
            )
            console.width = max(width, natural)
            console.print(part, markup=False)
    console.width = width
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what the columns mean, (column, meaning)."""
    limit = f"100 eps of {compute_dtype(comparison.problem.q.dtype).name}"
    if comparison.rows[0].error is not None:
        limit = f"the larger of {limit} and 10 × that of attention on numpy"
    return [
        ("error", "max_d |o - ô| / max_d Σ_j p_j |v_jd| of the worst query; ô and p by attention in float64;"),
        ("", f"WRONG above {comparison.limit:.1e}, {limit}"),
        ("time", f"median of {comparison.rounds} rounds in shuffled order; spread: interquartile range / median"),
        ("faster", "than attention on numpy in the same dtype"),
        ("memory", "the most that one call allocates beyond what it returns (tracemalloc)"),
        ("pairs", _pairs_meaning(comparison)),
    ]


def _pairs_meaning(comparison: Comparison) -> str:
    meaning = "of query and key, in all heads, hidden ones of the tiles at work included"
    return meaning + ("; ≥: at least" if any(row.pairs_are_least for row in comparison.rows) else "")


def to_json(comparison: Comparison, facts: dict[str, str]) -> str:
    """Return everything as JSON; numbers that are not finite are the strings "nan" and "inf"."""
    content = {
        "facts": facts,
        "limit": _plain(comparison.limit),
        "rounds": comparison.rounds,
        "seed": comparison.seed,
        "rows": [record(comparison, row) | {"seconds": row.seconds} for row in comparison.rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return a line per row, with the columns of `record`."""
    text = io.StringIO()
    records = [record(comparison, row) for row in comparison.rows]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return a row as plain values: seconds, bytes and counts, None where there is none."""
    low, high = row.quartiles or (None, None)
    return {
        "variant": row.variant,
        "backend": row.backend,
        "error": _plain(row.error),
        "wrong": comparison.wrong(row),
        "median_seconds": row.median,
        "lower_quartile_seconds": low,
        "upper_quartile_seconds": high,
        "extra_bytes": row.extra_bytes,
        "times_faster": comparison.faster(row),
        "pairs": row.pairs,
        "pairs_are_least": row.pairs_are_least,
        "reason": row.reason,
    }


def _plain(x: float | None) -> float | str | None:
    return x if x is None or math.isfinite(x) else str(x)


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Examples
    --------
    >>> duration(0.01234), duration(1.5), duration(6.2e-05), duration(0.9996)
    ('12.3 ms', '1.50 s', '62.0 µs', '1.00 s')
    """
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds)} s"


def size(n: float) -> str:
    """Return a number of bytes with three digits and its unit.

    Examples
    --------
    >>> size(0), size(1536), size(50 * 2**20)
    ('0 B', '1.50 KiB', '50.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 999.5:
            return f"{_three(n)} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1024
    return f"{_three(n)} TiB"


def count(n: float) -> str:
    """Return a count with three digits, in thousands, millions and so on where it is large.

    Examples
    --------
    >>> count(512), count(8_392_704)
    ('512', '8.39 M')
    """
    for unit in ("", " k", " M", " G"):
        if n < 999.5:
            return f"{_three(n)}{unit}" if unit else f"{n:.0f}"
        n /= 1000
    return f"{_three(n)} T"


def _three(x: float) -> str:
    return f"{x:.{2 if x < 9.995 else 1 if x < 99.95 else 0}f}"
