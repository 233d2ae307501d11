"""The curves of `refattn cost`: FLOPs, their shares, memory and, on a device, time over lengths or batches."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refattn.cli.cost_model import Asked
from refattn.cli.cost_sweep import Point
from refattn.cli.cost_table import PARTS
from refattn.cli.cost_text import scaled
from refattn.costs.units import duration, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
COLOURS = {"projections": "#4c9f9a", "attention": "#d1495b", "scan": "#8d5a97", "ffn": "#5b7db1", "head": "#b8b8b8"}
GREYS = {"weights": "#7a7a7a", "device": "#1b1f24"}
LINES = ("#d1495b", "#e9a23b", "#2d6a8e", "#4c9f9a", "#8d5a97")


def check(path: str) -> None:
    """Raise ValueError unless the picture's format is known."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"cost: --plot is {path!r}; wanted a file that ends in {' or '.join(FORMATS)}")


def curves(asked: Asked, name: str, points: list[Point], mark: bool) -> "Figure":
    """Return the picture; `mark` shows where the call itself stands."""
    from matplotlib.figure import Figure

    drawn = [flops, shares, memory] + ([times] if asked.hw is not None else [])
    wide = 2 if len(drawn) == 4 else 3
    figure = Figure(figsize=(5 * wide, 4.2 * (len(drawn) // wide) + 0.4), layout="constrained")
    for axes, draw in zip(figure.subplots(len(drawn) // wide, wide).flat, drawn, strict=True):
        draw(axes, asked, [getattr(point, name) for point in points], points)
        frame(axes, name, [getattr(point, name) for point in points])
        if mark:
            axes.axvline(getattr(asked, name), color="#1b1f24", linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    call = "decode, one new token" if asked.phase == "decode" else asked.phase
    about = f"{asked.model.name or 'model'}: {call}, {'causal' if asked.causal else 'bidirectional'}, {asked.dtype}"
    other = f", batch {asked.batch:,}" if name == "seq" else f", {asked.seq:,} tokens"
    figure.suptitle(
        about + other + (f", {asked.hw.name}" if asked.hw is not None else ""), fontsize=12, x=0.01, ha="left"
    )
    return figure


def render(figure: "Figure", form: str) -> bytes:
    """Return the picture's file; `form` is of `FORMATS`."""
    data = io.BytesIO()
    figure.savefig(data, format=form[1:], dpi=130, metadata=_UNDATED[form])
    return data.getvalue()


_UNDATED: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def frame(axes: "Axes", name: str, xs: list[int]) -> None:
    """Give a panel its axis of tokens or sequences, and a grid."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log", base=2)
    if len(xs) > 1:
        axes.set_xlim(xs[0], xs[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tokens(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens" if name == "seq" else "sequences")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _tokens(x: float) -> str:
    return f"{x / 1024:g}k" if x >= 1024 and x % 1024 == 0 else f"{x:g}"


def log_scale(axes: "Axes", title: str, write: Any, base: int = 10) -> None:
    """Give a panel a logarithmic axis whose numbers `write` writes, a title, and the names of its lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", base=base)
    low, high = axes.get_ylim()
    few = base == 10 and high < 100 * low  # powers alone would leave two numbers or fewer
    axes.yaxis.set_major_locator(LogLocator(base, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: re.sub(r"[.]0+ ", " ", write(y))))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)


def line(axes: "Axes", xs: list[int], ys: list[float], label: str, colour: str, style: Any = "-") -> None:
    """Draw a line through what is not 0."""
    if any(ys):
        axes.plot(
            xs,
            [y or float("nan") for y in ys],
            style,
            color=colour,
            label=label,
            linewidth=1.8,
            marker=".",
            clip_on=False,
        )


def flops(axes: "Axes", asked: Asked, xs: list[int], points: list[Point]) -> None:
    """Draw the FLOPs of each part."""
    for part, keys in PARTS.items():
        line(axes, xs, [sum(point.flops[key] for key in keys) for point in points], part, COLOURS[part])
    line(axes, xs, [point.flops["total"] for point in points], "total", "#1b1f24", ":")
    log_scale(axes, "FLOPs (exact)", lambda y: scaled(y, "FLOP"))


def shares(axes: "Axes", asked: Asked, xs: list[int], points: list[Point]) -> None:
    """Draw which share of the FLOPs each part is."""
    rows = {
        part: [100 * sum(p.flops[k] for k in keys) / p.flops["total"] for p in points] for part, keys in PARTS.items()
    }
    used = {part: shares for part, shares in rows.items() if any(shares)}
    axes.stackplot(xs, list(used.values()), labels=list(used), colors=[COLOURS[part] for part in used], alpha=0.9)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0f} %")
    axes.set_title("Share of the FLOPs (exact)", loc="left", fontsize=11)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, loc="lower left", reverse=True)


def memory(axes: "Axes", asked: Asked, xs: list[int], points: list[Point]) -> None:
    """Draw what lies in memory, beside the weights and what the device has."""
    names = [name for name, number in points[0].numbers.items() if number.unit == "B" and not name.startswith("moved")]
    for name, colour in zip(names, LINES, strict=False):
        line(axes, xs, [point.numbers[name].value for point in points], name, colour)
    weights = int(asked.model.params() * asked.size)
    axes.axhline(weights, color=GREYS["weights"], linestyle="--", linewidth=1, label="weights")
    if asked.hw is not None:
        axes.axhline(asked.hw.memory, color=GREYS["device"], linewidth=1, label=f"memory of {asked.hw.name}")
    log_scale(axes, f"Memory, {asked.dtype} (exact)", size, base=2)


def times(axes: "Axes", asked: Asked, xs: list[int], points: list[Point]) -> None:
    """Draw what each roof would take."""
    for roof, colour in zip(points[0].roofs or {}, LINES, strict=False):
        style = "--" if roof.endswith("materialised") else "-"
        line(axes, xs, [(point.roofs or {})[roof].value for point in points], roof, colour, style)
    log_scale(axes, "Time of each roof (bounds)", duration)
