"""The page that `refattn cost --html` writes: tables and curves in one file, no script, nothing to fetch."""

import base64
from html import escape
from string import Template
from typing import TYPE_CHECKING

from refattn.cli import cost_plots
from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Section
from refattn.cli.cost_sweep import Point
from refattn.cli.cost_table import headers, shown, texts
from refattn.cli.cost_text import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>refattn cost: $title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
h2 span { font-weight: normal; color: #57606a }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem; text-align: right; white-space: nowrap }
thead th { border-bottom: 2px solid #1b1f24; vertical-align: bottom }
tbody th { text-align: left; font-weight: normal } tbody tr { border-bottom: 1px solid #d5d9de }
tr.sum th, tr.sum td { font-weight: bold }
p.note { color: #57606a; margin: .3rem 0 0; font-size: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dt { font-weight: bold } dd { margin: 0 }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 }
</style>
</head>
<body>
<h1>What $title costs</h1>
<dl>$facts</dl>
$curves
$tables
</body>
</html>
""")


def html(asked: Asked, found: list[Section], name: str, points: list[Point] | None, curves: list[Point] | None) -> str:
    """Return the whole page: the tables of one call, or of a sweep, and the curves if there are any."""
    tables = [_section(section) for section in found] if points is None else [_sweep(name, points)]
    picture = ""
    if curves is not None:
        drawn = cost_plots.curves(asked, name, curves, points is None)
        alt = f"FLOPs, their shares and memory over {'tokens' if name == 'seq' else 'sequences'}"
        where = " The dashed line is the call that the tables count." if points is None else ""
        picture = _figure(drawn, alt, f"{alt}.{where}")
    return PAGE.substitute(
        title=escape(asked.model.name or "a model"),
        facts="".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in asked.facts().items()),
        curves=picture,
        tables="\n".join(tables),
    )


def _section(section: Section) -> str:
    kinds = section.kinds()
    kind = f" <span>· {escape(kinds[0])}</span>" if len(kinds) == 1 else ""
    rows = [_row(name, texts(section, cells), name in ("total", "at least")) for name, cells in shown(section).items()]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f"<h2>{escape(section.title)}{kind}</h2>\n{_table(headers(section), rows) if rows else ''}{notes}"


def _sweep(name: str, points: list[Point]) -> str:
    first = points[0]
    names = [*(f"{header} ({number.kind})" for header, number in first.numbers.items()), *_by(first, "bound by")]
    rows = [
        _row(f"{getattr(point, name):,}", [*map(text, point.numbers.values()), *_by(point, point.bound_by)])
        for point in points
    ]
    return f"<h2>By {escape(name)}</h2>\n{_table(names, rows)}"


def _by(point: Point, what: str | None) -> list[str]:
    return [] if point.bound_by is None or what is None else [what]


def _table(names: list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _row(name: str, cells: list[str], bold: bool = False) -> str:
    kind = ' class="sum"' if bold else ""
    return f"<tr{kind}><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _figure(figure: "Figure", alt: str, caption: str) -> str:
    encoded = base64.b64encode(cost_plots.render(figure, ".png")).decode("ascii")
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{image}</figure>"
