"""The page that `refattn profile --html` writes: one file, no script, nothing to fetch."""

from html import escape
from string import Template

from refattn.cli.profile_report import cells, headers, legend, summary
from refattn.costs.units import duration
from refattn.watch.profile import Part, Profile

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>refattn profile</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.scroll { overflow-x: auto } .verdict { font-size: 1.1rem; font-weight: bold }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap }
thead th { border-bottom: 2px solid #1b1f24 } tbody tr { border-bottom: 1px solid #d5d9de }
th.name, td.name { text-align: left } tr.inside td { color: #57606a }
td.bar { min-width: 12rem } td.bar div { background: #2f6fab; height: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dt { font-weight: bold } dd { margin: 0 }
</style>
</head>
<body>
<h1>Where the time goes</h1>
<p class="verdict">$verdict</p>
<div class="scroll"><table>
<thead><tr><th class="name">component</th>$headers<th class="name">share</th></tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<h2>The whole pass</h2>
<dl>$summary</dl>
<h2>What the columns mean</h2>
<dl>$legend</dl>
<h2>Machine</h2>
<dl>$facts</dl>
</body>
</html>
""")


def html(found: Profile, facts: dict[str, str]) -> str:
    """Return the whole page."""
    return PAGE.substitute(
        verdict=escape(found.verdict),
        headers="".join(f"<th>{escape(header)}</th>" for header in headers(found)),
        rows="\n".join(_row(found, part) for part in found.parts),
        summary=_definitions(summary(found)),
        legend=_definitions(legend(found)),
        facts=_definitions(list(facts.items())),
    )


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


def _definitions(lines: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in lines)
