"""Masks drawn as SVG: a square per tile, darker the more of its pairs are visible."""

import html
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count

if TYPE_CHECKING:
    from refattn.masks.algebra import Mask

MOST = 64  # squares along the longer side
ACROSS = 4  # patterns side by side
LETTER = 7.3  # pixels: how wide one is at most, in the size below

STYLE = """
.mask rect{shape-rendering:crispEdges}
.mask text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328}
.mask .paper{fill:#fff} .mask .none{fill:#f0f1f3} .mask .seen{fill:#0550ae} .mask .edge{fill:none;stroke:#8c959f}
@media(prefers-color-scheme:dark){
.mask text{fill:#e6edf3}
.mask .paper{fill:#0d1117} .mask .none{fill:#1c2128} .mask .seen{fill:#79c0ff} .mask .edge{stroke:#6e7681}
}
"""


def draw(mask: "Mask", Tq: int, Tk: int, size: int = 480) -> str:
    """Draw a mask as an SVG document that needs no other file, in light or dark as the reader's screen.

    Parameters
    ----------
    mask : Mask
        With leading axes, the patterns stand side by side, four in a row, each with its index.
    Tq, Tk : int
        Queries (downwards) and keys (to the right); beyond 64, a square stands for several pairs and its shade for
        the visible share of them.
    size : int
        Width in pixels.
    """
    check_count("svg", "size", size, least=120)
    step = max(1, -(-max(Tq, Tk) // MOST))
    shares = mask.density(Tq, Tk, step, step)
    nq, nk = shares.shape[-2:]
    patterns = list(np.ndindex(mask.lead)) if nq * nk > 0 else []
    across = min(ACROSS, max(1, len(patterns)))
    left, top, gap = 34.0, 62.0, 30.0
    side = (size - left - 10 - (across - 1) * gap) / across / max(nq, nk, 1)  # of a square
    high = nq * side + gap
    rows = -(-len(patterns) // across)
    note = f"a square is {step} × {step} pairs" if step > 1 else ""
    body = [_text(left, 16, _short(repr(mask), size - left)), _text(left, 32, note)]
    body += [_text(left, 50, "keys →"), _text(14, top, "queries →", f' transform="rotate(90 14 {top:.0f})"')]
    for number, place in enumerate(patterns):
        x, y = left + number % across * (nk * side + gap), top + number // across * high
        body += [_panel(shares[place], x, y, side)]
        body += [_text(x, y + nq * side + 16, f"{list(place)}" if mask.lead else f"{Tq:,} × {Tk:,}")]
    height = math.ceil(max(top + rows * high, top + 80))  # room for the word beside it
    about = html.escape(f"{mask!r}, {Tq} queries, {Tk} keys"[:500])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {height}" width="{size}" height="{height}" '
        f'class="mask" role="img">\n<title>{about}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="100%" height="100%"/>\n' + "\n".join(line for line in body if line) + "\n</svg>\n"
    )


def _panel(share: NDArray[Any], x: float, y: float, side: float) -> str:
    """Draw one pattern: neighbours of one shade in a row become one rectangle."""
    nq, nk = share.shape
    frame = f'x="{x:.2f}" y="{y:.2f}" width="{nk * side:.2f}" height="{nq * side:.2f}"'
    lines = [f'<rect class="none" {frame}/>']
    shade = np.where(share > 0, np.clip(0.2 + 0.8 * share, 0.2, 0.95), 0).round(2)  # any visible pair shows
    shade[share == 1] = 1
    for a in range(nq):
        changes = np.flatnonzero(np.diff(shade[a])) + 1
        for first, last in zip([0, *changes], [*changes, nk], strict=True):
            if shade[a, first] > 0:
                faint = "" if shade[a, first] == 1 else f' opacity="{shade[a, first]:g}"'
                lines.append(
                    f'<rect class="seen" x="{x + first * side:.2f}" y="{y + a * side:.2f}" '
                    f'width="{(last - first) * side:.2f}" height="{side:.2f}"{faint}/>'
                )
    return "\n".join([*lines, f'<rect class="edge" {frame}/>'])


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{html.escape(words)}</text>' if words else ""


def _short(words: str, width: float) -> str:
    most = max(8, int(width / LETTER))
    return words if len(words) <= most else words[: most - 1] + "…"
