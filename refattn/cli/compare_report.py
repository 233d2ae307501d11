"""What `refattn compare` says: the table for people, JSON and CSV for programs. See `compare_page` for HTML."""

import json
import math
from typing import TYPE_CHECKING, Any

from refattn.arrays import compute_dtype
from refattn.cli.console import columns, emit, plain_table
from refattn.cli.files import csv_of
from refattn.cli.measure import Comparison, Row
from refattn.costs.units import count, duration, size, three

if TYPE_CHECKING:
    from rich.console import Console

HEADERS = ("error", "time", "spread", "times\nfaster", "extra\nmemory", "pairs")


def cells(comparison: Comparison, row: Row) -> list[str]:
    """Return the row's texts under `HEADERS`, empty where nothing was measured; `legend` says what they mean."""
    low, high = row.quartiles or (math.nan, math.nan)
    faster = comparison.faster(row)
    return [
        "" if row.error is None else f"{row.error:.1e}" if row.error else "0",
        "" if row.median is None else duration(row.median),
        "" if row.median is None else f"{(high - low) / row.median:.0%}",
        "" if faster is None else f"{three(faster)}×",
        "" if row.extra_bytes is None else size(row.extra_bytes),
        "" if row.pairs is None else ("≥" if row.pairs_are_least else "") + count(row.pairs),
    ]


def show(comparison: Comparison, facts: dict[str, str], console: "Console") -> None:
    """Print the table, the reasons of rows without numbers, what the columns mean, and the facts."""
    from rich.text import Text

    table = plain_table()
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
    return csv_of([record(comparison, row) for row in comparison.rows])


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
