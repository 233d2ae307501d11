"""What the pages of all commands share: one file, pictures inside, no script, nothing to fetch; light, dark, print.

Pictures of matplotlib come as SVG, whose colours are then those of `COLOURS` and follow the reader's screen, or as PNG.
"""

import base64
import io
import re
from collections.abc import Iterable
from html import escape
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "ink": ("#1b1f24", "#e6e9ed"),
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f7f9", "#1d2228"),
    "soft": ("#57606a", "#a3adb8"),
    "line": ("#d5d9de", "#363d46"),
    "grid": ("#e4e7eb", "#2a3038"),
    "wrong": ("#b00020", "#ff8091"),
    "red": ("#d1495b", "#f07f8e"),
    "amber": ("#e9a23b", "#f0b45a"),
    "navy": ("#2d6a8e", "#6fb3dd"),
    "teal": ("#4c9f9a", "#63bdb7"),
    "violet": ("#8d5a97", "#c08fcb"),
    "blue": ("#5b7db1", "#86a8dd"),
    "pale": ("#b8b8b8", "#8b9199"),
    "grey": ("#7a7a7a", "#a0a6ad"),
}
"""Name -> colour in light and in dark; a picture drawn in the first gets the second on a dark screen."""

STYLE = """
:root { color-scheme: light dark; $light }
@media screen and (prefers-color-scheme: dark) { :root { $dark } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
h2 span { font-weight: normal; color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem; text-align: right; white-space: nowrap }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom }
tbody th { text-align: left; font-weight: normal } tbody tr { border-bottom: 1px solid var(--line) }
tr.sum th, tr.sum td { font-weight: bold }
p.note { color: var(--soft); margin: .3rem 0 0; font-size: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dt { font-weight: bold } dd { margin: 0 }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 }
figure > svg { display: block; width: 100%; height: auto } figure > svg * { stroke-linejoin: round }
figure > svg text { fill: var(--ink) }
@media print { body { margin: 0; max-width: none; font-size: 10pt } .scroll { overflow: visible }
  h2, figcaption { break-after: avoid } figure, tr { break-inside: avoid } }
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")


def whole(title: str, body: str, style: str = "") -> str:
    """Return a whole page; `title` is a text, `body` HTML, `style` CSS beside that of all pages."""
    light, dark = (" ".join(f"--{name}: {pair[n]};" for name, pair in COLOURS.items()) for n in (0, 1))
    shared = Template(STYLE).substitute(light=light, dark=dark)
    return PAGE.substitute(title=escape(title), style=shared + style, body=body)


def definitions(lines: Iterable[tuple[str, str]]) -> str:
    """Return labels and texts in two columns.

    Examples
    --------
    >>> definitions([("date", "2026 <UTC>")])
    '<dl><dt>date</dt><dd>2026 &lt;UTC&gt;</dd></dl>'
    """
    return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(text)}</dd>' for label, text in lines)}</dl>"


def table(names: list[str], rows: list[str]) -> str:
    """Return a table with `names` over its columns, and rows made by `row`."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def row(name: str, cells: Iterable[str], kind: str = "") -> str:
    """Return a row: its name, its texts, and the class that it is of.

    Examples
    --------
    >>> row("a & b", ["1 B"], "sum")
    '<tr class="sum"><th>a &amp; b</th><td>1 B</td></tr>'
    """
    of = f' class="{escape(kind)}"' if kind else ""
    return f"<tr{of}><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def figure(picture: str, caption: str) -> str:
    """Return a picture, made by `png` or `svg`, under its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def png(drawn: "Figure", alt: str, dpi: int = 110) -> str:
    """Return a figure as pixels."""
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'


def svg(drawn: "Figure", alt: str, key: str) -> str:
    """Return a figure as lines and letters in the colours of the page.

    Parameters
    ----------
    drawn : Figure
    alt : str
        What it shows, in words.
    key : str
        A name that no other picture of the page has: what the picture refers to in itself begins with it.

    Returns
    -------
    str
    """
    import matplotlib

    data = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        drawn.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    box = re.search(r'viewBox="[^"]+"', text)
    if box is None:
        raise ValueError(f"svg: the picture {key} has no size")
    inside = text[text.index(">", box.end()) + 1 :]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', inside))
    inside = re.sub(r' id="([^"]+)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", inside)
    inside = re.sub(r'(url\(|href=")#', rf"\1#{key}-", inside.replace("xlink:href", "href"))
    inside = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", inside)
    inside = inside.replace("#000000", "var(--ink)")
    for name, (light, _) in COLOURS.items():
        inside = inside.replace(light, f"var(--{name})")
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{inside.strip()}'
