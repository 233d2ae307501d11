"""The page that `refattn report` writes, section by section, the verdict first."""

from html import escape
from typing import TYPE_CHECKING

from refattn.cli import cost_page, cost_sections, pages, report_masks, report_parts, report_plots
from refattn.cli.cost_model import describe
from refattn.cli.cost_numbers import Number, cache_name
from refattn.cli.cost_text import scaled, text
from refattn.cli.report_found import Found, commands
from refattn.cli.report_style import STYLE
from refattn.costs.units import count, duration, size, three

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT, BOUND, PREDICTED, MEASURED = "exact", "bound", "predicted", "measured"


def html(found: Found) -> str:
    """Return the whole page."""
    name, told = found.wanted.asked.model.name, commands(found.wanted)
    sections = [
        ("verdict", "Verdict", _verdict(found), told["advise"]),
        ("model", "The model and the call", _model(found), told["cost"]),
        ("curves", "How costs grow", _curves(found), told["curves"]),
        ("roofline", "What bounds each component", _roofline(found), told["cost"]),
        ("time", "Where the time goes", report_parts.section(found), told.get("profile", told["cost"])),
        ("options", "What would help", _options(found), told["advise"]),
        ("masks", "Who looks at whom", _masks(found), _shown_by(found)),
        ("counts", "Every count", _counts(found), told["cost"]),
        ("about", "About this page", _about(found), told["report"]),
    ]
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _, _ in sections)
    body = [f"<header><h1>What {escape(name)} costs, and why</h1><nav>{links}</nav></header>"]
    for key, title, inside, command in sections:
        again = f'<p class="again">again: <code>{escape(command)}</code></p>'
        body.append(f'<section id="{key}"><h2>{escape(title)}</h2>\n{inside}\n{again}</section>')
    return pages.whole(f"refattn report: {name}", "\n".join(body), STYLE + report_masks.STYLE)


def chip(kind: str) -> str:
    """Return a kind of number as a mark."""
    return f' <span class="kind {kind}">{kind}</span>'


def _time_kind(found: Found) -> str:
    return PREDICTED if found.wanted.calibrated else BOUND


def _verdict(found: Found) -> str:
    advice, a, kind = found.advice, found.wanted.asked, _time_kind(found)
    lengths = found.wanted.lengths
    p50, p95 = lengths.quantile(0.5), lengths.quantile(0.95)
    limit = f"{three(advice.limit)}×" if advice.limit < 1000 else "no limit"
    crossover = a.model.crossover_length(a.causal)
    early = (f"{advice.share_p50:.0%}", f"of the time is attention at p50, {p50:,} tokens", kind)
    where = f"of the time is attention at {p95:,} tokens" if p50 == p95 else f"at p95, {p95:,} tokens"
    cards = [
        *([] if p50 == p95 else [early]),
        (f"{advice.share_p95:.0%}", where, kind),
        (limit, "faster at most, whatever is done about attention", kind),
        (
            "never" if crossover is None else f"{crossover:,} tokens",
            "of a prefill until attention has as many FLOPs as the rest of the layers",
            EXACT,
        ),
    ]
    doubts = [f'<p class="doubt">{escape(doubt)}</p>' for doubt in found.wanted.doubts]
    words = f'<p class="said">{escape(advice.verdict)}</p><p>{escape(advice.reason)}</p>'
    return "\n".join([*doubts, f'<div class="verdict">{words}</div>', _cards(cards)])


def _cards(cards: list[tuple[str, str, str]]) -> str:
    inside = "".join(f"<div><b>{escape(n)}</b>{escape(what)}{chip(kind)}</div>" for n, what, kind in cards)
    return f'<div class="cards">{inside}</div>'


def _model(found: Found) -> str:
    a, p, lengths = found.wanted.asked, found.prediction, found.wanted.lengths
    m = a.model
    facts = a.facts()
    sizes = f"{m.params():,} parameters (exact), {size(int(m.params() * a.size))} of weights in {a.dtype} (exact)"
    if m.active_params() != m.params():
        sizes += f"; a token visits {m.active_params():,}"
    took = f"{duration(p.seconds)} (bound)" if p.kind == BOUND else (
        f"{duration(p.seconds)} (predicted; 4 of 5 cases from {duration(p.low)} to {duration(p.high)})"
    )  # fmt: skip
    lines = [("model", describe(m)), ("sizes", sizes), ("call", facts["call"]), ("time", f"{took}, {_who(found)}")]
    lines += [("lengths", str(lengths)), ("device", facts["device"])]
    return pages.definitions(lines)


def _who(found: Found) -> str:
    return f"attention by {found.wanted.backend}" if found.wanted.calibrated else f"on {found.wanted.asked.hw.name}"


def _curves(found: Found) -> str:
    a = found.wanted.asked
    crossover = a.model.crossover_length(a.causal)
    crossing = "Attention never has as many FLOPs as the rest." if crossover is None else (
        f"From {crossover:,} tokens on, a prefill's attention has as many FLOPs as the rest of the layers."
    )  # fmt: skip
    head, layer, every = report_plots.matrices(found, a.seq)
    grown = (
        f"At {a.seq:,} tokens: {size(head)} a head, {size(layer)} a layer, {size(every)} if all layers' are kept."
        if head
        else "No layer has a matrix of scores: nothing here grows with the square."
    )
    kept = a.model.kv_cache_bytes(1, a.seq + 1, a.dtype) - a.model.kv_cache_bytes(1, a.seq, a.dtype)
    keeps = (
        f"{cache_name(a.model)}: each token after {a.seq:,} adds {size(kept)}." if a.keeps else "What lies in memory."
    )
    drawn = [
        _figure(report_plots.flops(found), "flops", f"{crossing} Dashed: the call.", EXACT),
        _figure(report_plots.shares(found), "shares", "Where the FLOPs go, as sequences get longer.", EXACT),
        _figure(report_plots.scores(found), "scores", grown, EXACT) if head else f"<p>{escape(grown)}</p>",
        _figure(report_plots.cache(found), "cache", keeps, EXACT),
    ]
    return f'<div class="figures">{"".join(drawn)}</div>{_growth(found)}'


def _growth(found: Found) -> str:
    """Return the numbers of the curves."""
    a, rows = found.wanted.asked, []
    for point in found.points:
        memory = [Number(n, "B") for n in report_plots.matrices(found, point.seq)]
        memory += [Number(a.model.kv_cache_bytes(a.batch, point.seq, a.dtype), "B")] if a.keeps else []
        numbers = [point.numbers["FLOPs"], point.numbers["attention"], *memory]
        rows.append(pages.row(f"{point.seq:,}", map(text, numbers), "sum" if point.seq == a.seq else ""))
    names = ["tokens", "FLOPs", "attention", "scores, a head", "a layer", "all layers"]
    names += [cache_name(a.model)] if a.keeps else []
    return pages.table(names, rows) + '<p class="note">All of it counted: exact. Bold: the call.</p>'


def _figure(drawn: "Figure", key: str, caption: str, kind: str) -> str:
    picture = pages.svg(drawn, caption, key)
    return f"<figure>{picture}<figcaption>{escape(caption)}{chip(kind)}</figcaption></figure>"


def _roofline(found: Found) -> str:
    a, p = found.wanted.asked, found.prediction
    rows = []
    for name, w in found.works.items():
        cells = [scaled(w.flops, "FLOP") if w.flops else "", count(w.exps) if w.exps else "", size(w.moved)]
        cells += [f"{three(w.flops / w.moved)}" if w.flops else "", duration(w.seconds), p.bound_by.get(name, "")]
        rows.append(pages.row(name, cells))
    kind = "measured" if found.wanted.calibrated else "data sheet"
    rates = [
        ("products", f"{scaled(a.hw.rate(a.dtype), 'FLOP/s')} in {a.dtype}"),
        ("bandwidth", f"{size(a.hw.bandwidth)}/s"),
    ]
    if a.hw.exp_rate < float("inf"):
        rates.insert(1, ("exponentials", scaled(a.hw.exp_rate, "exp/s")))
    lines = [(name, f"{rate} ({kind})") for name, rate in rates]
    caption = "Each dot a component: no dot lies above the roofs. Mixing tokens has a third one, its exponentials."
    caption += " Crosses: measured here." if found.profile is not None and found.wanted.calibrated else ""
    names = ["component", "FLOPs", "exponentials", "bytes moved", "FLOP/B", f"time, {p.kind}", "bound by"]
    caption += " Hollow: where the matrix of scores moves through memory." if found.materialised is not None else ""
    pictures = [
        _figure(report_plots.roofline(found), "roofline", caption, _time_kind(found)),
        _figure(
            report_plots.roofs(found), "roofs", "All work of a pass against each roof alone. Dashed: the call.", BOUND
        ),
    ]
    note = f"FLOPs and exponentials: exact. Bytes: each array of a step once (bound). Times: {p.kind}, step after step."
    return (
        f'{pages.definitions(lines)}<div class="figures">{"".join(pictures)}</div>'
        f'{pages.table(names, rows)}<p class="note">{escape(note)}</p>'
    )


def _options(found: Found) -> str:
    return report_parts.options(found, _figure(
        report_plots.options(found), "ways", "The way it is, and the best of each class. Dotted: p50 and p95.",
        _time_kind(found),
    ))  # fmt: skip


def _masks(found: Found) -> str:
    """Return pictures of masks, and their counts."""
    shown = report_masks.seen(found.wanted.asked)
    drawn, rows = [], []
    for one in shown:
        picture = report_masks.picture(one)
        mine = ' class="own"' if one.own else ""
        if picture:
            share = f"{100 * one.share:.3g} %"
            caption = f"{escape(one.title)}: {one.pairs:,} pairs, {share} of all{chip(EXACT)}"
            drawn.append(f"<figure{mine}>{picture}<figcaption>{caption}</figcaption></figure>")
        cells = [f"{one.pairs:,}", f"{100 * one.share:.3g} %", f"{one.tiled:,}", f"{one.tiled / one.pairs - 1:.1%}"]
        rows.append(pages.row(one.title, [*cells, f"{one.growth:.2f}×"], "sum" if one.own else ""))
    n, side = shown[0].tokens, report_masks.SIDE
    names = [f"{n:,} tokens, one head", "pairs", "of all", f"in tiles of {side}", "waste", "with twice the tokens"]
    note = "Twice the tokens make 4 times the pairs where all are seen, and twice where a window bounds them (exact)."
    return f'<div class="masks">{"".join(drawn)}</div>{pages.table(names, rows)}<p class="note">{note}</p>'


def _shown_by(found: Found) -> str:
    own = next((one for one in report_masks.seen(found.wanted.asked) if one.mask is not None), None)
    if own is None:
        return "refattn show-mask 'causal()'"
    return f"refattn show-mask '{own.mask!r}' --t {own.tokens} --block {report_masks.SIDE}"


def _counts(found: Found) -> str:
    parts = [cost_page.section(one) for one in cost_sections.sections(found.wanted.asked)]
    return "\n".join(part.replace("<h2>", "<h3>").replace("</h2>", "</h3>") for part in parts)


def _about(found: Found) -> str:
    kinds = [
        (EXACT, "counted from the sizes and the mask: there is nothing to be wrong about but the sizes"),
        (BOUND, "not less, by the rates of a data sheet; what is above it is the program's doing"),
        (PREDICTED, "from a calibration of this machine; the interval holds 4 of 5 cases"),
        (MEASURED, "by a clock, here"),
    ]
    rests = f"{found.wanted.asked.hw.name} of {found.wanted.asked.hw.date}"
    return pages.definitions(kinds) + pages.definitions([*found.wanted.facts.items(), ("times rest on", rests)])
