"""Numbers of `refattn cost` as people and programs read them: three digits and a unit, JSON, CSV."""

import csv
import io
import json
from typing import Any

from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Cell, Number, Section
from refattn.cli.cost_sweep import SWEPT, Point
from refattn.costs.units import duration, size, three

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def text(cell: Cell) -> str:
    """Return a cell as a person reads it.

    Examples
    --------
    >>> text(Number(4_000_000, "B")), text(Number(989e12, "FLOP/s", "bound")), text(Number(49151, "tokens"))
    ('3.81 MiB', '989 TFLOP/s', '49,151 tokens')
    """
    if not isinstance(cell, Number):
        return cell or ""
    value, unit = cell.value, cell.unit
    if unit == "B":
        return size(value)
    if unit == "s":
        return duration(value)
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "×":
        return f"{three(value)}×"
    if unit in ("FLOP/B", "B/parameter"):
        return f"{three(value) if value < 999.5 else format(value, ',.0f')} {unit}"
    if unit == "pairs":  # which the table's title says
        return f"{value:,}" if value < 1e8 else scaled(value, "").rstrip()
    if unit in ("tokens", "parameters") and value < 1e6:
        return f"{value:,} {unit}"
    return scaled(value, unit)


def scaled(value: float, unit: str) -> str:
    """Return three digits with a decimal prefix; a unit that is a word stands apart from it.

    Examples
    --------
    >>> scaled(14_155_776, "FLOP"), scaled(8_030_261_248, "parameters"), scaled(512, "tokens")
    ('14.2 MFLOP', '8.03 G parameters', '512 tokens')
    """
    power = 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    prefix = PREFIXES[power]
    shown = three(value) if prefix or value != int(value) else f"{value:.0f}"
    return f"{shown} {prefix}{' ' if prefix and unit.islower() else ''}{unit}"


def exact(cell: Cell) -> str:
    """Return an integer in full, and nothing for what is none.

    Examples
    --------
    >>> exact(Number(4_000_000, "B")), exact(Number(0.5, "%"))
    ('4,000,000', '')
    """
    return f"{cell.value:,}" if isinstance(cell, Number) and isinstance(cell.value, int) else ""


def to_json(asked: Asked, found: list[Section], points: list[Point] | None) -> str:
    """Return everything as JSON: each number as {"value", "unit", "kind"}."""
    content: dict[str, Any] = dict(asked.facts())
    names = ("batch", "seq", "past", "phase", "causal", "dtype")
    content["arguments"] = {name: getattr(asked, name) for name in names if points is None or name not in SWEPT}
    if points is None:
        content["numbers"] = {section.key: _tree(section) for section in found}
    else:
        content["sweep"] = [
            {"batch": point.batch, "seq": point.seq}
            | {name: number._asdict() for name, number in point.numbers.items()}
            | ({} if point.bound_by is None else {"bound by": point.bound_by})
            for point in points
        ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _tree(section: Section) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for row, column, number in section.numbers():
        if len(section.columns) == 1:
            tree[row] = number._asdict()
        else:
            tree.setdefault(row, {})[column] = number._asdict()
    return tree


def to_csv(found: list[Section], points: list[Point] | None) -> str:
    """Return a line per number, or one per point of a sweep with the units and kinds in the first."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    if points is None:
        writer.writerow(["section", "row", "column", "value", "unit", "kind"])
        for section in found:
            for row, column, number in section.numbers():
                writer.writerow([section.key, row, column, *number])
        return content.getvalue()
    timed = points[0].bound_by is not None
    names = [f"{name} ({number.unit}, {number.kind})" for name, number in points[0].numbers.items()]
    writer.writerow(["batch", "seq", *names, *(["bound by"] if timed else [])])
    for point in points:
        values = [number.value for number in point.numbers.values()]
        writer.writerow([point.batch, point.seq, *values, *([point.bound_by] if timed else [])])
    return content.getvalue()
