"""The page that `refattn compare --html` writes: one file with its pictures inside, no script, nothing to fetch."""

import math
from html import escape
from string import Template
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.cli import pages
from refattn.cli.compare_report import HEADERS, cells, legend
from refattn.cli.measure import Comparison, Row
from refattn.cli.problem import Problem

MASK_CELLS, MOST_QUERIES, MOST_HEADS, MOST_MASKS = 256, 1024, 64, 4

STYLE = """
body { max-width: 62rem } th, td { padding: .3rem .8rem; white-space: normal }
thead th { white-space: nowrap }
th.name, td.name { text-align: left; font-family: ui-monospace, monospace; white-space: nowrap }
td.why { text-align: left; color: var(--soft) } tr.wrong td { color: var(--wrong); font-weight: bold }
"""

BODY = Template("""<h1>One attention problem, every variant and backend</h1>
<p>$source</p>
<div class="scroll"><table>
<thead><tr><th class="name">variant</th><th class="name">backend</th>$headers</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
$legend
<h2>Input and machine</h2>
$facts
<h2>Mask</h2>
$mask
<h2>Errors</h2>
<p>Of each query (across) in each head (down), on one logarithmic scale; white is exact, red is NaN or infinite.</p>
$errors""")


def html(comparison: Comparison, facts: dict[str, str]) -> str:
    """Return the whole page."""
    maps = [(row, row.errors) for row in comparison.rows if row.errors is not None and row.reason is None]
    low, high = _decades([errors for _, errors in maps])
    body = BODY.substitute(
        source=escape(comparison.problem.source),
        headers="".join(f"<th>{escape(header).replace(chr(10), '<br>')}</th>" for header in HEADERS),
        rows="\n".join(_row(comparison, row) for row in comparison.rows),
        legend=pages.definitions(legend(comparison)),
        facts=pages.definitions(facts.items()),
        mask=_mask(comparison.problem),
        errors="\n".join(_errors(row, errors, low, high) for row, errors in maps) or "<p>Nothing ran.</p>",
    )
    return pages.whole("refattn compare", body, STYLE)


def _row(comparison: Comparison, row: Row) -> str:
    names = "".join(f'<td class="name">{escape(name)}</td>' for name in (row.variant, row.backend))
    kind = ' class="wrong"' if comparison.wrong(row) else ""
    if row.reason is not None:
        why = row.reason if row.failed else f"not run: {row.reason}"
        return f'<tr{kind}>{names}<td class="why" colspan="{len(HEADERS)}">{escape(why)}</td></tr>'
    texts = cells(comparison, row)
    texts[0] += " wrong" if comparison.wrong(row) else ""
    return f"<tr{kind}>{names}{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"


def _mask(problem: Problem) -> str:
    """Draw which pairs are visible, at most MOST_MASKS of the mask's patterns."""
    if problem.mask is None:
        return "<p>None: every query sees every key.</p>"
    from matplotlib.figure import Figure

    Tq, Tk = problem.scores[-2:]
    step = max(1, -(-max(Tq, Tk) // MASK_CELLS))
    kinds = problem.mask.blocks(Tq, Tk, step, step).kinds().reshape(-1, -(-Tq // step), -(-Tk // step))
    shown = kinds[:MOST_MASKS]
    figure = Figure(figsize=(4.2 * len(shown), 4.2), layout="constrained")
    for axes, pattern in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        axes.imshow(pattern, cmap="Blues", vmin=0, vmax=2, extent=(0, Tk, Tq, 0), interpolation="nearest")
        axes.set(xlabel="key", ylabel="query")
    notes = ["Dark pairs are visible, white ones hidden"]
    notes += [f"pale squares of {step} × {step} hold both"] if step > 1 else []
    notes += [f"the first {len(shown)} of {len(kinds)} patterns"] if len(kinds) > len(shown) else []
    return pages.figure(pages.png(figure, f"{problem.mask!r}"), "; ".join(notes) + ".")


def _errors(row: Row, errors: Array, low: float, high: float) -> str:
    """Draw log10 of the error of each (head, query), the worst where several share a pixel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heads = errors[:MOST_HEADS]
    step = max(1, -(-heads.shape[1] // MOST_QUERIES))
    worst = np.maximum.reduceat(heads, np.arange(0, heads.shape[1], step), axis=1) if heads.size else heads
    with np.errstate(divide="ignore", invalid="ignore"):
        shades = np.where(np.isposinf(worst), np.nan, np.log10(worst))
    figure = Figure(figsize=(9.5, 0.9 + 0.16 * max(4, len(heads))), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#d62728")  # shows through where the shade is NaN
    picture = axes.imshow(
        shades, aspect="auto", vmin=low, vmax=high, extent=(0, errors.shape[1], len(heads) - 0.5, -0.5), **_COLOURS
    )
    axes.set(xlabel="query", ylabel="head")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.colorbar(picture, label="log10(error)", aspect=12)
    note = "" if len(heads) == len(errors) else f", the first {len(heads)} of {len(errors)} heads"
    return pages.figure(pages.png(figure, f"errors of {row.name}"), f"{row.name}: at most {row.error:.1e}{note}.")


_COLOURS: dict[str, Any] = {"cmap": "Blues", "interpolation": "nearest"}


def _decades(maps: list[Array]) -> tuple[float, float]:
    """Return whole powers of ten around all errors that are neither 0 nor infinite."""
    positive = [errors[np.isfinite(errors) & (errors > 0)] for errors in maps]
    values = np.concatenate([*positive, np.zeros(0)])
    if values.size == 0:
        return -16.0, 0.0
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    return float(max(low, high - 6)), float(max(high, low + 1))
