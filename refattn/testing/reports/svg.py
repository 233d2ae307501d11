"""Pictures as inline SVG, colored by the classes that the page's style sheet defines; nothing but text is needed.

Cells of one color that follow each other in a row are one piece of one path, so that a picture stays small.
"""

from html import escape
from typing import Any

import numpy as np

from refattn.testing.reports.common import clean
from refattn.testing.reports.pictures import (
    LEAKED,
    LEVELS,
    MISSING,
    PARTLY,
    VISIBLE,
    Grid,
    heat_grid,
    heat_scale,
    is_mask,
    mask_counts,
    mask_grid,
    matrix,
    peak,
)
from refattn.testing.verdicts import Picture

CELLS = 64  # rows and columns drawn, at most
LEFT, TOP, TEXT = 52, 34, 11  # room for labels, and their size, in the units of the drawing
TICKS = 6
CLASSES = {PARTLY: "partly", VISIBLE: "seen", MISSING: "missing", LEAKED: "leaked"}

DEFINITIONS = """<svg width="0" height="0" style="position:absolute" aria-hidden="true" focusable="false"><defs>
<pattern id="strokes" patternUnits="userSpaceOnUse" width="5" height="5" patternTransform="rotate(45)">
<rect class="ink" width="1.6" height="5"/></pattern>
<pattern id="dots" patternUnits="userSpaceOnUse" width="5" height="5">
<circle class="ink" cx="2.5" cy="2.5" r="1.2"/></pattern>
</defs></svg>"""
"""Stands in the page once: what tells leaked from missing where colors do not."""


def figure(picture: Picture) -> str:
    """Return the picture with its caption and legend, as an HTML figure."""
    if np.size(picture.values) == 0:
        return f"<figure><figcaption>{_text(picture.title)}</figcaption><p>(empty)</p></figure>"
    if is_mask(picture):
        grid = mask_grid(picture, CELLS, CELLS)
        body = _drawing(picture, grid, CLASSES, _mask_words(picture))
        return _framed(picture.title, body + _mask_legend(picture, grid))
    return _heat(picture)


def _mask_words(picture: Picture) -> str:
    number = mask_counts(picture)
    if picture.wanted is None:
        return f"{number[VISIBLE]} pairs are visible."
    return (
        f"{number[VISIBLE]} pairs are visible as declared, {number[LEAKED]} are seen and should be hidden, "
        f"{number[MISSING]} are hidden and should be seen."
    )


def _mask_legend(picture: Picture, grid: Grid) -> str:
    number = mask_counts(picture)
    entries = [("seen", "agreed visible" if picture.wanted is not None else "visible", f"{number[VISIBLE]:,}")]
    if picture.wanted is not None:
        entries += [("leaked", "leaked", f"{number[LEAKED]:,}"), ("missing", "missing", f"{number[MISSING]:,}")]
    if PARTLY in grid.codes:
        entries.append(("partly", "partly visible", ""))
    note = _step(grid, "pairs and shows any difference among them")
    return f'<ul class="legend">{"".join(_entry(*entry) for entry in entries)}</ul>{note}'


def _heat(picture: Picture) -> str:
    parts = []
    if picture.wanted is None:
        maps = [("", picture.values)]
    else:
        found, wanted = matrix(picture.values), matrix(picture.wanted, np.shape(picture.values))
        with np.errstate(invalid="ignore"):
            maps = [
                ("found", found),
                ("wanted", wanted),
                ("difference", abs(found.astype(float) - wanted.astype(float))),
            ]
    shared = heat_scale(*(x for _, x in maps[:2]))
    for name, values in maps:
        scale = heat_scale(values) if name == "difference" else shared
        grid = heat_grid(values, CELLS, scale)
        classes = {level: f"h{level}" for level in range(1, LEVELS + 1)} | {LEVELS + 1: "odd"}
        title = f"{picture.title}: {name}" if name else picture.title
        parts.append(
            _framed(title, _drawing(picture, grid, classes, _peak(picture, values)) + _heat_legend(values, scale, grid))
        )
    return "".join(parts)


def _peak(picture: Picture, values: Any) -> str:
    top = peak(values)
    return f"The largest is {top[0]:.3g}, at {picture.rows} {top[1]}, {picture.columns} {top[2]}." if top else ""


def _heat_legend(values: Any, scale: tuple[float, float, bool], grid: Grid) -> str:
    low, high, logarithmic = scale
    ramp = "".join(_swatch(f"h{level}") for level in range(1, LEVELS + 1))
    kind = ", logarithmic" if logarithmic else ""
    entries = f'<li><span class="ramp">{low:.2g} {ramp} {high:.2g}{kind}</span></li>'
    numbers = matrix(values)
    zero, odd = int((numbers == 0).sum()), int((~np.isfinite(numbers.astype(float))).sum())
    entries += _entry("zero", "exactly 0", f"{zero:,}") if zero and low >= 0 else ""
    entries += _entry("odd", "NaN or infinite", f"{odd:,}") if odd else ""
    return f'<ul class="legend">{entries}</ul>{_step(grid, "numbers and shows the largest")}'


def _framed(title: str, body: str) -> str:
    return f"<figure><figcaption>{_text(title)}</figcaption>{body}</figure>"


def _text(words: str) -> str:
    return escape(clean(words))


def _swatch(name: str) -> str:
    return f'<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">{_shape(name, "M0 0h12v12h-12z")}</svg>'


def _entry(name: str, label: str, number: str) -> str:
    return f"<li>{_swatch(name)} {label} <b>{number}</b></li>"


def _step(grid: Grid, which: str) -> str:
    down, across = grid.step
    return f'<p class="note">Each cell stands for {down} × {across} {which}.</p>' if (down, across) != (1, 1) else ""


def _shape(name: str, path: str) -> str:
    over = {"leaked": "strokes", "missing": "dots", "odd": "strokes"}.get(name)
    return f'<path class="{name}" d="{path}"/>' + (f'<path fill="url(#{over})" d="{path}"/>' if over else "")


def _drawing(picture: Picture, grid: Grid, classes: dict[int, str], words: str) -> str:
    """Return the cells, framed, with the numbers of rows and columns."""
    rows, columns = grid.codes.shape
    cell = max(5, min(18, 360 // max(rows, columns)))
    width, height = columns * cell, rows * cell
    whole = LEFT + width + 12
    shapes = "".join(
        _shape(name, _path(grid.codes == code, cell)) for code, name in classes.items() if code in grid.codes
    )
    lines = ""
    if cell > 7 and is_mask(picture):
        across = "".join(f"M{LEFT} {TOP + y * cell}h{width}" for y in range(1, rows))
        lines = across + "".join(f"M{LEFT + x * cell} {TOP}v{height}" for x in range(1, columns))
    return (
        f'<svg class="picture" role="img" viewBox="0 0 {whole} {TOP + height + 4}" width="{whole}">'
        f"<title>{_text(picture.title)}</title><desc>{_text(words)}</desc>"
        f'<rect class="zero" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>{shapes}'
        f'<path class="lines" d="{lines}"/><rect class="frame" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>'
        f"{_labels(picture, grid, cell)}</svg>"
    )


def _path(cells: Any, cell: int) -> str:
    """Return the outline of every run of true cells."""
    pieces = []
    for y, row in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            width = (last - first) * cell
            pieces.append(f"M{LEFT + first * cell} {TOP + y * cell}h{width}v{cell}h-{width}z")
    return "".join(pieces)


def _labels(picture: Picture, grid: Grid, cell: int) -> str:
    rows, columns = grid.codes.shape
    texts = [
        f'<text x="{LEFT + columns * cell / 2:g}" y="{TEXT}" text-anchor="middle">{_text(picture.columns)} →</text>',
        f'<text x="{TEXT}" y="{TOP + rows * cell / 2:g}" text-anchor="middle" '
        f'transform="rotate(-90 {TEXT} {TOP + rows * cell / 2:g})">← {_text(picture.rows)}</text>',
    ]
    for index in _ticks(grid.shape[1]):
        x = LEFT + (index // grid.step[1] + 0.5) * cell
        texts.append(f'<text x="{x:g}" y="{TOP - 5}" text-anchor="middle">{index}</text>')
    for index in _ticks(grid.shape[0]):
        y = TOP + (index // grid.step[0] + 0.5) * cell + TEXT / 3
        texts.append(f'<text x="{LEFT - 5}" y="{y:.1f}" text-anchor="end">{index}</text>')
    return "".join(texts)


def _ticks(size: int) -> range:
    """Return the indices that are written out: multiples of a power of two, as tiles are."""
    step = 1
    while size > TICKS * step:
        step *= 2
    return range(0, size, step)
