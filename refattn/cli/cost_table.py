"""What `refattn cost` prints: tables of a call, or of a sweep with a chart of where the FLOPs go."""

from typing import TYPE_CHECKING, Any

from refattn.cli.console import columns, emit, plain_table
from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Number, Section
from refattn.cli.cost_sweep import Point
from refattn.cli.cost_text import exact, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR = 24
CHART = 64
PARTS = {
    "projections": ("qkvo",),
    "attention": ("scores", "values"),
    "scan": ("scan",),
    "ffn": ("ffn",),
    "head": ("head",),
}
"""The parts of a chart, each of those of `forward_flops`."""

MARKS = {"projections": ("▒", "cyan"), "attention": ("█", "red"), "scan": ("▚", "magenta"), "ffn": ("░", "blue")}
MARKS["head"] = ("·", "white")


def show(asked: Asked, found: list[Section], console: "Console") -> None:
    """Print the tables of one call."""
    parts: list[Any] = ["", columns(list(asked.facts().items()))]
    for section in found:
        parts += [
            "",
            _title(section),
            *([_table(section)] if section.rows else []),
            *(_line((note, "dim")) for note in section.notes),
        ]
    emit(console, *parts, "")


def _title(section: Section) -> "Table":
    kinds = section.kinds()
    return _line((section.title, "bold"), f" · {kinds[0]}" if len(kinds) == 1 else "")


def _line(*pieces: str | tuple[str, str]) -> "Table":
    """Return one line of texts with their styles."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid()
    grid.add_row(Text.assemble(*pieces))
    return grid


def shown(section: Section) -> dict[str, tuple[Any, ...]]:
    """Return its rows; of parts of a sum those that are something: a model without a head has no FLOPs of one."""
    if section.key not in ("flops", "moved"):
        return section.rows
    return {
        name: cells
        for name, cells in section.rows.items()
        if any(isinstance(cell, Number) and cell.value for cell in cells)
    }


def headers(section: Section) -> list[str]:
    """Return the columns' names; a single number a row stands rounded and in full, kinds apart if they differ."""
    single = len(section.columns) == 1
    found = [*section.columns, ""] if single else list(section.columns)
    return found + (["kind"] if len(section.kinds()) > 1 else [])


def texts(section: Section, cells: tuple[Any, ...]) -> list[str]:
    """Return a row under `headers`."""
    found = [text(cell) for cell in cells]
    found += [exact(cells[0])] if len(section.columns) == 1 else []
    if len(section.kinds()) > 1:
        found.append([cell.kind for cell in cells if isinstance(cell, Number)][-1])
    return found


def _table(section: Section) -> "Table":
    from rich import box
    from rich.table import Table

    bars = section.key == "flops" and section.columns[1:] == ("share",)
    names = headers(section)
    headed = any(names)
    table = Table(
        box=box.SIMPLE_HEAD if headed else None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_header=headed,
    )
    table.add_column("", no_wrap=True)
    for name in names:
        words = name in ("kind", "", "bound by") and len(section.columns) > 1
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    if bars:
        table.add_column("exactly", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for name, cells in shown(section).items():
        extra = [exact(cells[0]), _bar(cells[1])] if bars else []
        style = "bold" if name in ("total", "at least") else None
        table.add_row(name, *texts(section, cells), *extra, style=style)
    return table


def _bar(share: Any) -> str:
    if not isinstance(share, Number) or share.value >= 100:
        return ""
    eighths = round(share.value / 100 * BAR * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def show_sweep(asked: Asked, name: str, points: list[Point], console: "Console") -> None:
    """Print a row for each call, and where its FLOPs go."""
    facts = asked.facts()
    facts["call"] = _call(asked, name, points)
    table = plain_table(gap=2)
    first = points[0]
    wide = ("moved, materialised",) if asked.phase != "train" else ("scores, one layer", "moved, flash")
    names = [header for header in first.numbers if first.bound_by is None or header not in wide]
    for header in [name, *map(_two_lines, names), *(["by"] if first.bound_by else [])]:
        table.add_column(header, justify="left" if header == "by" else "right", no_wrap=True, vertical="bottom")
    for point in points:
        cells = [text(point.numbers[header]) for header in names]
        table.add_row(f"{getattr(point, name):,}", *cells, *([point.bound_by] if point.bound_by else []))
    kinds = "exact" if first.bound_by is None else "exact, but for the times: bounds"
    used = {part: MARKS[part] for part in PARTS if any(_share(point, part) for point in points)}
    legend = _line(*(x for part, (mark, style) in used.items() for x in ((mark, style), f" {part}   ")))
    emit(
        console,
        "",
        columns(list(facts.items())),
        "",
        _line((f"By {name}", "bold"), f" · {kinds}"),
        table,
        "",
        _line(("Where the FLOPs go", "bold"), " · exact"),
        _chart(name, points),
        legend,
        "",
    )


def _call(asked: Asked, name: str, points: list[Point]) -> str:
    low, high = getattr(points[0], name), getattr(points[-1], name)
    sees = "causal" if asked.causal else "bidirectional"
    fixed = f"batch {asked.batch:,}" if name == "seq" else f"{asked.seq:,} tokens"
    what = {"prefill": "prefill", "decode": "decode, one new token", "train": "training step"}[asked.phase]
    return f"{what}: {name} {low:,} to {high:,}, {fixed}, {sees}, {asked.dtype}"


def _two_lines(header: str) -> str:
    return header.replace(", ", "\n").replace(" and ", "\nand ").replace("activations", "kept")


def _share(point: Point, part: str) -> float:
    return sum(point.flops[key] for key in PARTS[part]) / point.flops["total"]


def _chart(name: str, points: list[Point]) -> "Table":
    """Return a bar of shares for each call; it is the ends of its parts that are rounded, so that all are as long."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    for point in points:
        bar, done, total = Text(), 0, 0.0
        for part, (mark, style) in MARKS.items():
            total += _share(point, part)
            end = round(total * CHART)
            bar.append(mark * (end - done), style)
            done = end
        grid.add_row(f"{getattr(point, name):,}", bar, f"{_share(point, 'attention'):.1%} attention".replace("%", " %"))
    return grid
