"""A report as one page: no script, nothing to fetch, readable in light and dark and without colors."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from refattn.testing.reports.common import (
    FIGURES,
    NOTHING_RAN,
    WAIVED,
    about,
    clean,
    counts,
    explained,
    failed,
    figures,
    not_run,
    nothing_ran,
    repeat_one,
    reproduction,
    seconds,
    verdict,
    waived,
    write,
)
from refattn.testing.reports.style import STYLE
from refattn.testing.reports.svg import DEFINITIONS, figure
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, UNDECLARED, Report, Result

SIGNS = {PASS: "✓", FAIL: "✗", SUSPECT: "?", UNDECLARED: "≠", NOT_RUN: "–", WAIVED: "~"}
MEANINGS = {
    FAIL: "provable: beyond what rounding explains, a broken exact relation, a leak",
    SUSPECT: "statistical: three fresh seeds agree",
    UNDECLARED: "right, in a precision that the contract does not declare",
}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
$definitions
<header class="$verdict">
<div class="top">$badge<h1>$subject</h1></div>
<ul class="chips">$chips</ul>
<dl class="tiles">$tiles</dl>
</header>
<main>
$sections
</main>
</body>
</html>
""")


def page(report: Report) -> str:
    """Return the page as text.

    Parameters
    ----------
    report : Report
        What to show.

    Returns
    -------
    str
        The whole HTML file.

    Examples
    --------
    >>> from refattn.testing.verdicts import Report, Result
    >>> "<h1>mine</h1>" in page(Report("mine", None, "quick", 0, [Result("rope/plain", "PASS")]))
    True
    """
    total = verdict(report)
    sections = [
        ("", f'<p class="card"><strong>{NOTHING_RAN}</strong></p>' if nothing_ran(report) else ""),
        ("Complaints", _list(report.complaints)),
        ("Most likely", _diagnoses(report)),
        ("What failed", "".join(_card(report, result, opened=True) for result in failed(report))),
        ("Waived", "".join(_card(report, result, opened=True) for result in waived(report))),
        ("Not run", _not_run(report)),
        (
            "Pictures of what passed",
            "".join(_card(report, x) for x in report.results if x.verdict == PASS and x.pictures),
        ),
        ("All checks", _table(report)),
        ("What the kernel claims", _contract(report)),
        ("To repeat", f"<pre>import refattn.testing as rt\n\n{_text(reproduction(report))}</pre>"),
    ]
    return PAGE.substitute(
        title=f"{total}: {_text(report.subject)}",
        style=STYLE,
        definitions=DEFINITIONS,
        verdict=total,
        badge=_badge(total, big=True),
        subject=_text(report.subject),
        chips="".join(f"<li><span>{name}</span> {_text(x)}</li>" for name, x in about(report).items()),
        tiles=_tiles(report),
        sections="\n".join((f"<h2>{name}</h2>\n" if name else "") + body for name, body in sections if body),
    )


def dump(report: Report, path: str | Path) -> None:
    """Write the page; an interruption leaves the old file.

    Parameters
    ----------
    report : Report
        What to show.
    path : str or Path
        The file.
    """
    write(path, page(report))


def _text(x: object) -> str:
    return html.escape(clean(x))


def _badge(kind: str, big: bool = False) -> str:
    classes = f"badge {kind.replace(' ', '-')}" + " big" * big
    return f'<span class="{classes}"><span aria-hidden="true">{SIGNS[kind]}</span> {kind}</span>'


def _tiles(report: Report) -> str:
    tiles = [(kind.replace(" ", "-"), kind.lower(), str(number)) for kind, number in counts(report).items()]
    if report.complaints:
        tiles.append((FAIL, "complaints", str(len(report.complaints))))
    tiles.append(("plain", "seconds", f"{seconds(report):.2f}"))
    return "".join(f'<div class="{kind}"><dt>{label}</dt><dd>{number}</dd></div>' for kind, label, number in tiles)


def _list(words: Iterable[str]) -> str:
    entries = "".join(f"<li>{_text(line)}</li>" for line in words)
    return f'<ul class="card" style="padding-left:2.2rem">{entries}</ul>' if entries else ""


def _facts(pairs: Mapping[str, Any], kind: str) -> str:
    entries = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(x)}</dd></div>" for name, x in pairs.items())
    return f'<dl class="{kind}">{entries}</dl>' if entries else ""


def _diagnoses(report: Report) -> str:
    entries = []
    for cause in sorted(report.diagnoses, key=lambda diagnosis: -diagnosis.explained):
        share = min(max(cause.explained, 0.0), 1.0)
        entries.append(
            f"<li><strong>{_text(cause.sentence or cause.name)}</strong>"
            f'<div class="share"><i aria-hidden="true"><b style="width:{share:.0%}"></b></i>'
            f"{_text(explained(report, cause.explained))}</div></li>"
        )
    return f'<ol class="causes card">{"".join(entries)}</ol>' if entries else ""


def _kind(result: Result) -> str:
    return WAIVED if result.waiver is not None and result.verdict not in (PASS, NOT_RUN) else result.verdict


def _link(link: str) -> str:
    """Return the link as one that can be followed if it is a URL of the web, and as text if not."""
    if re.match(r"https?://", link):
        return f'<a rel="noreferrer" href="{_text(link)}">{_text(link)}</a>'
    return _text(link)


def _card(report: Report, result: Result, opened: bool = False) -> str:
    """Return everything about one result."""
    excuse = ""
    if result.waiver is not None and _kind(result) == WAIVED:
        until = f" until {result.waiver.expires}" if result.waiver.expires else ""
        excuse = f"<p>Waived{until}: {_text(result.waiver.reason)} ({_link(clean(result.waiver.link))})</p>"
    meaning = f'<p class="note">{result.verdict}: {MEANINGS[result.verdict]}.</p>' if result.verdict in MEANINGS else ""
    again = f"<code>{_text(repeat_one(report, result.check))}</code>"
    drawn = "".join(figure(picture) for picture in result.pictures)
    return (
        f'<details class="card"{" open" * opened} id="{_anchor(result)}"><summary>{_badge(_kind(result))}'
        f'<span class="id">{_text(result.check)}</span></summary>'
        f'<p class="message">{_text(result.message)}</p>{excuse}{_facts(dict(figures(result)), "figures")}'
        f'<div class="pictures">{drawn}</div>{meaning}<p class="again">To repeat: {again}</p></details>'
    )


def _anchor(result: Result) -> str:
    return "check-" + re.sub(r"[^\w-]", lambda sign: f"_{ord(sign[0]):x}_", clean(result.check), flags=re.ASCII)


def _not_run(report: Report) -> str:
    entries = [
        f'<details class="card"><summary>{_badge(NOT_RUN)} {len(checks)}: {_text(reason)}</summary>'
        f'<p class="id">{", ".join(_text(check) for check in checks)}</p></details>'
        for reason, checks in not_run(report).items()
    ]
    return "".join(entries)


def _table(report: Report) -> str:
    """Return a row for each check that ran: the failed ones first, then the waived, then the rest in order."""
    first = [*failed(report), *waived(report)]
    rest = [result for result in report.results if result.verdict == PASS]
    heads = ["verdict", "check", *FIGURES.values(), "seconds", "what"]
    numbers = range(2, 3 + len(FIGURES))
    head = "".join(f'<th scope="col"{_number(i in numbers)}>{name}</th>' for i, name in enumerate(heads))
    rows = []
    for result in (*first, *rest):
        has_card = result.verdict != PASS or result.pictures
        name = _text(result.check)
        name = f'<a href="#{_anchor(result)}">{name}</a>' if has_card else name
        cells = [f"{float(result.figures[figure]):.3g}" if figure in result.figures else "" for figure in FIGURES]
        cells.append(f"{result.seconds:.3f}")
        rows.append(
            f'<tr><td>{_badge(_kind(result))}</td><th scope="row" class="id">{name}</th>'
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + f'<td class="why">{_text(result.message)}</td></tr>'
        )
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        if rows
        else ""
    )


def _number(yes: bool) -> str:
    return ' class="number"' if yes else ""


def _contract(report: Report) -> str:
    if report.contract is None:
        return ""
    changed = _plain_facts(report.contract.described())
    numerics = _plain_facts(report.contract.numerics)
    return (
        f'<div class="card"><p class="note">What differs from the defaults of <code>rt.Contract</code>:</p>{changed}'
        f"<details><summary>The precision of each step</summary>{numerics}</details></div>"
    )


def _plain_facts(pairs: Mapping[str, Any]) -> str:
    entries = "".join(f"<dt>{_text(name)}</dt><dd><code>{_text(x)}</code></dd>" for name, x in pairs.items())
    return f'<dl class="facts">{entries}</dl>'
