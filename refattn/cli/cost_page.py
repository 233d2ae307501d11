"""The page that `refattn cost --html` writes: tables and curves in one file, no script, nothing to fetch."""

from html import escape

from refattn.cli import cost_plots, pages
from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Section
from refattn.cli.cost_sweep import Point
from refattn.cli.cost_table import headers, shown, texts
from refattn.cli.cost_text import text


def html(asked: Asked, found: list[Section], name: str, points: list[Point] | None, curves: list[Point] | None) -> str:
    """Return the whole page: the tables of one call, or of a sweep, and the curves if there are any."""
    title = asked.model.name or "a model"
    parts = [f"<h1>What {escape(title)} costs</h1>", pages.definitions(asked.facts().items())]
    if curves is not None:
        drawn = cost_plots.curves(asked, name, curves, points is None)
        alt = f"FLOPs, their shares and memory over {'tokens' if name == 'seq' else 'sequences'}"
        where = " The dashed line is the call that the tables count." if points is None else ""
        parts.append(pages.figure(pages.png(drawn, alt, dpi=130), f"{alt}.{where}"))
    parts += [section(one) for one in found] if points is None else [_sweep(name, points)]
    return pages.whole(f"refattn cost: {title}", "\n".join(parts))


def section(found: Section) -> str:
    """Return a table under its title, with its kind and its notes."""
    kinds = found.kinds()
    kind = f" <span>· {escape(kinds[0])}</span>" if len(kinds) == 1 else ""
    rows = [
        pages.row(name, texts(found, cells), "sum" if name in ("total", "at least") else "")
        for name, cells in shown(found).items()
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    return f"<h2>{escape(found.title)}{kind}</h2>\n{pages.table(['', *headers(found)], rows) if rows else ''}{notes}"


def _sweep(name: str, points: list[Point]) -> str:
    first = points[0]
    names = [*(f"{header} ({number.kind})" for header, number in first.numbers.items()), *_by(first, "bound by")]
    rows = [
        pages.row(f"{getattr(point, name):,}", [*map(text, point.numbers.values()), *_by(point, point.bound_by)])
        for point in points
    ]
    return f"<h2>By {escape(name)}</h2>\n{pages.table(['', *names], rows)}"


def _by(point: Point, what: str | None) -> list[str]:
    return [] if point.bound_by is None or what is None else [what]
