"""The page that `refattn profile --html` writes: one file, no script, nothing to fetch."""

from html import escape

from refattn.cli.pages import definitions, whole
from refattn.cli.profile_report import cells, headers, legend, summary
from refattn.costs.units import duration
from refattn.watch.profile import Part, Profile

STYLE = """
.verdict { font-size: 1.1rem; font-weight: bold } th.name, td.name { text-align: left }
tr.inside td { color: var(--soft) } td.bar { min-width: 12rem } td.bar div { background: var(--navy); height: .9rem }
"""


def html(found: Profile, facts: dict[str, str]) -> str:
    """Return the whole page."""
    names = "".join(f"<th>{escape(header)}</th>" for header in headers(found))
    rows = "\n".join(_row(found, part) for part in found.parts)
    head = f'<thead><tr><th class="name">component</th>{names}<th class="name">share</th></tr></thead>'
    parts = [
        "<h1>Where the time goes</h1>",
        f'<p class="verdict">{escape(found.verdict)}</p>',
        f'<div class="scroll"><table>\n{head}\n<tbody>\n{rows}\n</tbody>\n</table></div>',
        f"<h2>The whole pass</h2>{definitions(summary(found))}",
        f"<h2>What the columns mean</h2>{definitions(legend(found))}",
        f"<h2>Machine</h2>{definitions(facts.items())}",
    ]
    return whole("refattn profile", "\n".join(parts), STYLE)


def _row(found: Profile, part: Part) -> str:
    texts = "".join(f"<td>{escape(text)}</td>" for text in cells(found, part))
    bar = f'<td class="bar"><div style="width: {100 * part.share:.1f}%"></div></td>'
    rows = [f'<tr><td class="name">{part.component}</td>{texts}{bar}</tr>']
    if part.component == "attention":
        rest = len(headers(found))
        for name, seconds in found.inside.items():
            text = f'<td class="name">&emsp;{escape(name)}</td><td>{duration(seconds)}</td><td colspan="{rest}"></td>'
            rows.append(f'<tr class="inside">{text}</tr>')
    return "\n".join(rows)
