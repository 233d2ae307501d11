"""The pictures of `refattn report` that matplotlib draws: a panel each, in the colours of the page."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refattn.cli import cost_plots, pages
from refattn.cli.cost_numbers import cache_name
from refattn.cli.cost_text import scaled
from refattn.cli.report_found import Found
from refattn.costs.mechanisms import Softmax
from refattn.costs.units import duration, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RED, NAVY = (pages.COLOURS[name][0] for name in ("ink", "soft", "red", "navy"))
LINES = ("red", "amber", "navy", "teal", "violet", "blue", "pale")
PARTS = {
    "projection": "teal", "attention": "red", "scan": "violet", "ffn": "blue", "norm": "amber", "head": "pale",
    "rope": "navy", "embedding": "soft", "other": "grey",
}  # fmt: skip
"""Component -> colour."""


def _panel(draw: Callable[["Axes"], None], wide: float = 5.2, high: float = 3.7) -> "Figure":
    """Return a picture of one panel, whose letters are as large as those around it on a phone."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "axes.titlesize": 11}):
        drawn = Figure(figsize=(wide, high), layout="constrained")
        axes = drawn.subplots()
        draw(axes)
    return drawn


def _mark(axes: "Axes", found: Found) -> None:
    axes.axvline(found.wanted.asked.seq, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)


def _note(axes: "Axes", words: str, at: tuple[float, float], by: tuple[int, int], **how: Any) -> None:
    """Write at a place of the x axis, and at a share of the height."""
    axes.annotate(words, at, by, xycoords=axes.get_xaxis_transform(), textcoords="offset points", **how)


def flops(found: Found) -> "Figure":
    """Draw the FLOPs of attention and of the rest of the layers, and where they cross."""
    a, points = found.wanted.asked, found.points
    xs = [point.seq for point in points]

    def draw(axes: "Axes") -> None:
        of = [point.flops for point in points]
        mixed = [float(x["scores"] + x["values"]) for x in of]
        rest = [x["total"] - x["head"] - n for x, n in zip(of, mixed, strict=True)]
        cost_plots.line(axes, xs, mixed, "attention", RED)
        cost_plots.line(axes, xs, rest, "the rest of the layers", NAVY)
        for key, colour in (("scan", "violet"), ("head", "pale")):
            of_it = "the scan in it" if key == "scan" else "the head"
            cost_plots.line(axes, xs, [float(x[key]) for x in of], of_it, pages.COLOURS[colour][0])
        cost_plots.frame(axes, "seq", xs)
        crossover = a.model.crossover_length(a.causal)
        if a.phase != "decode" and crossover is not None and crossover <= xs[-1]:
            axes.axvline(crossover, color=RED, linewidth=0.8, zorder=2)
            _note(axes, f"{crossover:,}", (crossover, 0.0), (-4, 6), color=RED, ha="right")
        _mark(axes, found)
        cost_plots.log_scale(axes, "FLOPs of a pass", lambda y: scaled(y, "FLOP"))

    return _panel(draw)


def shares(found: Found) -> "Figure":
    """Draw which share of the FLOPs each part is."""
    xs = [point.seq for point in found.points]

    def draw(axes: "Axes") -> None:
        cost_plots.shares(axes, found.wanted.asked, xs, found.points)
        cost_plots.frame(axes, "seq", xs)
        _mark(axes, found)
        axes.set_title("Shares of the FLOPs", loc="left")

    return _panel(draw)


def matrices(found: Found, seq: int) -> tuple[int, int, int]:
    """Return the bytes of the scores of one head, of a layer's heads and sequences, and of all layers."""
    a = replace(found.wanted.asked, seq=seq)
    seen = [x for x in a.model.mechanism if x.softmax]
    if a.phase == "decode":  # of the new token
        entries = [x.cached(seq) if isinstance(x, Softmax) else seq for x in seen] or [0]
    else:
        entries = [x.matrix_entries(a.model, seq) for x in seen] or [0]
    head, every, many = max(entries), sum(entries), a.batch * a.model.heads
    return int(head * a.size), int(many * head * a.size), int(many * every * a.size)


def scores(found: Found) -> "Figure":
    """Draw how the matrix of scores grows with tokens, heads and layers."""
    a, xs = found.wanted.asked, [point.seq for point in found.points]
    layers = sum(x.softmax for x in a.model.mechanism)
    names = ("one head", f"{a.batch * a.model.heads} heads: a layer", f"{layers} layers, if all are kept")

    def draw(axes: "Axes") -> None:
        for n, name in enumerate(names):
            ys = [float(matrices(found, x)[n]) for x in xs]
            cost_plots.line(axes, xs, ys, name, pages.COLOURS[("amber", "red", "violet")[n]][0])
        _memory(axes, found, xs, f"{'Scores of a token' if a.phase == 'decode' else 'Matrix of scores'}, {a.dtype}")

    return _panel(draw)


def cache(found: Found) -> "Figure":
    """Draw what is kept for the next token; in training and for encoders, what else lies in memory."""
    a, xs = found.wanted.asked, [point.seq for point in found.points]
    m = a.model

    def draw(axes: "Axes") -> None:
        if not a.keeps:
            cost_plots.memory(axes, a, xs, found.points)
            cost_plots.frame(axes, "seq", xs)
            _mark(axes, found)
            axes.set_title(f"Memory, {a.dtype}", loc="left")
            return
        ways = {cache_name(m): m}
        if m.kv < m.heads and any(type(x) is Softmax for x in m.mechanism):
            ways["with keys for each query head"] = replace(m, kv_heads=None)
        for n, (name, way) in enumerate(ways.items()):
            ys = [float(way.kv_cache_bytes(a.batch, x, a.dtype)) for x in xs]
            cost_plots.line(axes, xs, ys, name, (RED, pages.COLOURS["pale"][0])[n])
        many = "1 sequence" if a.batch == 1 else f"{a.batch:,} sequences"
        kept = cache_name(m)
        _memory(axes, found, xs, f"{kept[0].upper()}{kept[1:]} of {many}, {a.dtype}")

    return _panel(draw)


def _memory(axes: "Axes", found: Found, xs: list[int], title: str) -> None:
    a = found.wanted.asked
    cost_plots.frame(axes, "seq", xs)
    _mark(axes, found)
    axes.axhline(int(a.model.params() * a.size), color=SOFT, linestyle="--", linewidth=1, label="weights")
    axes.axhline(a.hw.memory, color=INK, linewidth=1, label="memory here" if a.calibrated else f"memory of {a.hw.name}")
    cost_plots.log_scale(axes, title, size, base=2)


def roofline(found: Found) -> "Figure":
    """Draw the three roofs, and each component where its FLOPs per byte and per second put it."""
    a = found.wanted.asked
    peak, bandwidth = a.hw.rate(a.dtype), a.hw.bandwidth
    dots = {name: (w.flops / w.moved, w.flops / w.seconds) for name, w in found.works.items() if w.flops and w.seconds}
    low, high = _decades([*(x for x, _ in dots.values()), peak / bandwidth])
    exps = _exp_roof(found)

    def draw(axes: "Axes") -> None:
        xs = [10**low, peak / bandwidth, 10**high]
        axes.plot(xs, [min(peak, bandwidth * x) for x in xs], color=INK, linewidth=1.8)
        axes.annotate("matrix products", (xs[-1], peak), (-3, -14), textcoords="offset points", ha="right", color=SOFT)
        axes.annotate("bandwidth", (xs[0], bandwidth * xs[0]), (6, 10), textcoords="offset points", color=SOFT)
        if exps is not None:
            axes.axhline(exps, color=RED, linewidth=1.2, linestyle="--")
            at = (xs[-1], exps)
            words = f"exponentials of {'attention' if any(x.softmax for x in a.model.mechanism) else 'the scan'}"
            axes.annotate(words, at, (-3, 4), textcoords="offset points", ha="right", color=RED)
        for name, (x, y) in dots.items():
            colour = pages.COLOURS[PARTS.get(name, "grey")][0]
            axes.plot([x], [y], "o", color=colour, label=name, markersize=7, clip_on=False)
        if found.materialised is not None:
            w = found.materialised
            at = (w.flops / w.moved, w.flops / w.seconds)
            axes.plot(*([x] for x in at), "o", color=RED, fillstyle="none", label="attention, matrix", markersize=7)
        for name, x, y in _measured(found, dots):
            axes.plot([x], [y], "X", color=pages.COLOURS[PARTS.get(name, "grey")][0], markersize=8, clip_on=False)
        axes.set_xscale("log")
        axes.set_xlim(xs[0], xs[-1])
        bottom = min([*(y for _, y in dots.values()), peak / 100]) / 3
        axes.set_ylim(bottom, 4 * max(peak, exps or 0.0))
        axes.set_xlabel("FLOPs a byte")
        axes.grid(color=pages.COLOURS["grid"][0], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        cost_plots.log_scale(axes, f"FLOP/s in {a.dtype}", lambda y: scaled(y, "FLOP/s"))
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right")

    return _panel(draw, high=4.0)


def roofs(found: Found) -> "Figure":
    """Draw what each roof would take at other lengths."""
    xs = [point.seq for point in found.points]

    def draw(axes: "Axes") -> None:
        cost_plots.times(axes, found.wanted.asked, xs, found.points)
        cost_plots.frame(axes, "seq", xs)
        _mark(axes, found)
        axes.set_title("Least time under each roof", loc="left")

    return _panel(draw, high=4.0)


def _exp_roof(found: Found) -> float | None:
    """Return the FLOP/s of attention at which its exponentials run at their rate; None without any."""
    work, rate = found.works.get("attention"), found.wanted.asked.hw.exp_rate
    return rate * work.flops / work.exps if work and work.exps and math.isfinite(rate) else None


def _measured(found: Found, dots: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return measured components at the intensity of the predicted ones, where both are of this machine."""
    if found.profile is None or not found.wanted.calibrated:
        return []
    names = {"scan": "attention"}
    rows = [(part.component, names.get(part.component, part.component), part.rate) for part in found.profile.parts]
    return [(name, dots[place][0], rate) for name, place, rate in rows if place in dots and rate]


def _decades(values: list[float]) -> tuple[int, int]:
    logs = [math.log10(x) for x in values]
    return math.floor(min(logs) - 0.3), math.ceil(max(logs) + 0.3)


def options(found: Found) -> "Figure":
    """Draw the time of the present way and of the best of each class over the lengths."""
    kind = "predicted" if found.wanted.calibrated else "bound"

    def draw(axes: "Axes") -> None:
        for n, (name, times) in enumerate(found.curves.items()):
            colour = pages.COLOURS[("navy", "teal", "amber", "red")[n]][0]
            cost_plots.line(axes, found.lengths, [x.seconds for x in times], name, colour)
            if found.wanted.calibrated and n == 0:
                low, high = [x.low for x in times], [x.high for x in times]
                axes.fill_between(found.lengths, low, high, color=colour, alpha=0.15, linewidth=0)
        cost_plots.frame(axes, "seq", found.lengths)
        p50, p95 = (found.wanted.lengths.quantile(q) for q in (0.5, 0.95))
        marks = {"p50": p50, "p95": p95} if p50 != p95 else {"p50, p95": p50}
        for name, at in marks.items():
            axes.axvline(at, color=SOFT, linewidth=0.8, linestyle=":", zorder=1)
            _note(axes, name, (at, 1.0), (3, -10), color=SOFT)
        cost_plots.log_scale(axes, f"Time of a pass ({kind})", duration)

    return _panel(draw)
