"""Times on the page of `refattn report`: per component, with Amdahl's limit, and per option, with intervals."""

import math
from html import escape

from refattn.cli import pages, profile_report
from refattn.cli.report_found import Found
from refattn.cli.report_plots import PARTS
from refattn.costs.advice import Advice, Option
from refattn.costs.options import CLASSES
from refattn.costs.units import duration, size, three
from refattn.watch.verdict import MIXING, limit

CLASS_WORDS = {"exact": "same numbers", "approximate": "changed results", "retrain": "needs training"}


def section(found: Found) -> str:
    """Return the components' times: measured, if they were, and predicted."""
    return "\n".join([*([] if found.profile is None else [_measured(found)]), _predicted(found)])


def _predicted(found: Found) -> str:
    p, a = found.prediction, found.wanted.asked
    span = f", 4 of 5 cases from {duration(p.low)} to {duration(p.high)}" if p.kind == "predicted" else ""
    who = f"attention by {found.wanted.backend}" if found.wanted.calibrated else a.hw.name
    said = f"Predicted: {duration(p.seconds)}{span}" if span else f"Not less than {duration(p.seconds)} (bound)"
    title = f"{said}; {a.seq:,} tokens, {who}"
    rows = [
        _bar(name, [duration(n), f"{n / p.seconds:.1%}", p.bound_by.get(name, "")], n / p.seconds)
        for name, n in sorted(p.parts.items(), key=lambda part: -part[1])
    ]
    names = ["component", f"time, {p.kind}", "share", "bound by", ""]
    return f"<h3>{escape(title)}</h3>{_amdahl(p.parts, p.kind)}{pages.table(names, rows)}"


def _measured(found: Found) -> str:
    done = found.profile
    if done is None:
        return ""
    whole = done.whole or sum(part.seconds for part in done.parts)
    scaled = {part.component: part.share * whole for part in done.parts}
    kind = "measured" if len(done.network.layers) == done.network.whole else "predicted from the layers that ran"
    rows = [_bar(part.component, profile_report.cells(done, part), part.share) for part in done.parts]
    names = ["component", *profile_report.headers(done), ""]
    lines = profile_report.summary(done)
    p = found.prediction
    if found.wanted.calibrated and done.whole is not None:
        off, low, high = (three(n / p.seconds) for n in (done.whole, p.low, p.high))
        lines.append(("against", f"{off} times what was predicted (measured); the interval is {low} to {high} times"))
    elif not found.wanted.calibrated:
        lines.append(("where", "on the machine that made this page, not on the device that bounds are given for"))
    title = f"<h3>Measured here: {escape(done.verdict)}</h3>"
    inside = [(f"attention: {name}", f"{duration(n)} (measured)") for name, n in done.inside.items()]
    meaning = profile_report.legend(done)
    return (
        f"{title}{_amdahl(scaled, kind)}{pages.table(names, rows)}"
        f"{pages.definitions([*lines, *inside])}{pages.definitions(meaning)}"
    )


def _bar(name: str, cells: list[str], share: float) -> str:
    style = f"width: {100 * share:.2f}%; background: var(--{PARTS.get(name, 'grey')})"
    texts = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th>{escape(name)}</th>{texts}<td class="bar"><div style="{style}"></div></td></tr>'


def _amdahl(parts: dict[str, float], kind: str) -> str:
    """Return two strips: the time as it is, and with attention for nothing."""
    total = sum(parts.values())
    mixing = sum(seconds for name, seconds in parts.items() if name in MIXING)
    rest = {name: seconds for name, seconds in parts.items() if name not in MIXING}
    ordered = {name: parts[name] for name in parts if name in MIXING} | rest

    def strip(shown: dict[str, float]) -> str:
        inside = "".join(
            f'<div style="width: {100 * seconds / total:.3f}%; background: var(--{PARTS.get(name, "grey")})"></div>'
            for name, seconds in shown.items()
        )
        return f'<div class="strip">{inside}</div>'

    most = limit(mixing / total)
    free = f"if attention took no time: {duration(total - mixing)}, {three(most) if most < 1000 else 'no limit'} times "
    legend = "".join(
        f'<li><i style="background: var(--{PARTS.get(name, "grey")})"></i>{escape(name)} {seconds / total:.0%}</li>'
        for name, seconds in ordered.items()
    )
    return (
        f'<div class="strips"><p>as it is: {duration(total)} ({kind})</p>{strip(ordered)}'
        f"<p>{free}as fast: no change to it can give more ({kind})</p>{strip(rest)}</div>"
        f'<ul class="legend">{legend}</ul>'
    )


def options(found: Found, picture: str) -> str:
    """Return the table of options with their intervals, where the ranking flips, and what else would change it."""
    shown = found.everything
    allowed = {option.name for option in found.advice.options}
    low = min(option.p95.low for option in shown.options)
    high = max(option.p95.high for option in shown.options)
    chosen = found.advice.choice.name if found.advice.choice else ""
    rows = []
    for option in shown.options:
        kind = "chosen" if option.name == chosen else "" if option.name in allowed else "beyond"
        rows.append(_option(option, kind, low, high))
    kind = shown.options[0].p95.kind
    until = "p95: 4 of 5 cases" if kind == "predicted" else "p95: rarely above"
    names = ["option", "class", "p50", "p95", until, "", "times faster", "memory", "fit"]
    note = f"fit: sequences of p95 tokens whose caches fit beside the weights (bound). memory: exact. Times: {kind}."
    if found.wanted.exactness != CLASSES[-1]:
        note += f" Grey: beyond what a choice may be here (--exactness {found.wanted.exactness})."
    lists = [*_lines(found.advice, "")]
    if found.wanted.exactness != CLASSES[-1]:
        lists += _lines(shown, " (all classes)")
    if found.advice.choice is not None:
        lists.append(("try it", found.advice.choice.check))
    return (
        f'<div class="options">{pages.table(names, rows)}</div><p class="note">{escape(note)}</p>'
        f'<div class="figures">{picture}<div>{pages.definitions(lists)}</div></div>'
    )


def _option(option: Option, kind: str, low: float, high: float) -> str:
    p = option.p95
    cells = [CLASS_WORDS[option.exactness], duration(option.p50.seconds), duration(p.seconds)]
    cells += [f"{duration(p.low)} to {duration(p.high)}"]
    start, at, end = (100 * _place(x, low, high) for x in (p.low, p.seconds, p.high))
    span = f'<i style="left: {start:.2f}%; width: {end - start:.2f}%"></i><b style="left: {at:.2f}%"></b>'
    after = [f"{option.faster:.2f}", size(option.peak_bytes), f"{option.concurrency:,}"]
    texts, more = ("".join(f"<td>{escape(cell)}</td>" for cell in some) for some in (cells, after))
    misses = f"<small>misses {escape('; '.join(option.misses))}</small>" if option.misses else ""
    return (
        f'<tr class="{kind}"><th>{escape(option.name)}{misses}</th>{texts}<td class="span"><div>{span}</div></td>'
        f"{more}</tr>"
    )


def _place(x: float, low: float, high: float) -> float:
    """Return where x stands between low and high, in logarithms."""
    return math.log(x / low) / math.log(high / low) if high > low else 0.5


def _lines(advice: Advice, which: str) -> list[tuple[str, str]]:
    flips = [(f"flips{which}", f"from {n:,} tokens on {new} is ahead of {old}") for n, old, new in advice.flips]
    flips = flips or [(f"flips{which}", "nowhere up to 4 times p95 and 4,096 tokens")]
    return flips + [(f"depends{which}", line) for line in advice.sensitive]
