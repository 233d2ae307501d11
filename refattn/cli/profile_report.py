"""What `refattn profile` says: the table for people, JSON and CSV for programs. See `profile_page` for HTML."""

import json
from typing import TYPE_CHECKING, Any

from refattn.cli.console import columns, emit, plain_table
from refattn.cli.files import csv_of
from refattn.costs.units import count, duration, size, three
from refattn.dispatch import REFERENCE
from refattn.watch.profile import Part, Profile
from refattn.watch.verdict import limit

if TYPE_CHECKING:
    from rich.console import Console

HEADERS = ("time", "spread", "share", "FLOPs", "GFLOP/s", "nearest roof", "of it")
TRAINING = ("forward", "backward")


def headers(found: Profile) -> list[str]:
    """Return the columns after the component's name."""
    return [HEADERS[0], *(TRAINING if found.phase == "train" else ()), *HEADERS[1:]]


def cells(found: Profile, part: Part) -> list[str]:
    """Return a component's texts under `headers`, empty where there is nothing to count."""
    both = [duration(part.seconds - part.backward), duration(part.backward)] if found.phase == "train" else []
    return [
        duration(part.seconds),
        *both,
        f"{(part.high - part.low) / part.seconds:.0%}" if part.seconds else "",
        f"{part.share:.1%}",
        count(part.flops) if part.flops else "",
        three(part.rate / 1e9) if part.flops else "",
        part.roof,
        f"{part.roof_seconds / part.seconds:.0%}" if part.seconds else "",
    ]


def show(found: Profile, facts: dict[str, str], console: "Console") -> None:
    """Print the verdict, the table, what its columns mean, the whole, and the facts."""
    table = plain_table()
    table.add_column("component", no_wrap=True)
    for header in headers(found):
        table.add_column(header, justify="left" if header == "nearest roof" else "right", no_wrap=True)
    for part in found.parts:
        table.add_row(part.component, *cells(found, part))
        if part.component == "attention":
            blank = [""] * (len(headers(found)) - 1)
            for name, seconds in found.inside.items():
                table.add_row(f"  {name}", duration(seconds), *blank, style="dim")
    emit(console, "", columns([("verdict", found.verdict)]), "", table, "")
    emit(console, columns(summary(found)), "", columns(legend(found)), "", columns(list(facts.items())))


def summary(found: Profile) -> list[tuple[str, str]]:
    """Return what holds of the whole pass, (label, text)."""
    net = found.network
    ran = f"{len(net.layers)} of {net.whole} layers" if len(net.layers) < net.whole else f"all {net.whole} layers"
    new = f"1 token after {found.seq - 1:,}" if found.phase == "decode" else f"{found.seq:,} tokens"
    kinds = ", ".join(dict.fromkeys(x.name for x in net.sizes.mechanism))
    lines = [
        ("model", f"{net.source}: {ran} of width {net.sizes.d_model}, {kinds}, float32"),
        ("pass", f"{found.phase}: {found.batch} × {new}, {found.backend}"),
        ("whole", f"{duration(found.seconds)} (measured; half of {found.rounds} rounds within "
                  f"{duration(found.low)} to {duration(found.high)}); {duration(found.clocked)} with the clock"),
        ("memory", f"{size(found.peak_bytes)} at the peak of a pass, beside {size(net.nbytes)} of weights (measured)"),
    ]  # fmt: skip
    if found.whole is not None and len(net.layers) < net.whole:
        text = f"{duration(found.whole)} (predicted: the layers that ran × {net.whole}/{len(net.layers)})"
        lines.append((f"{net.whole} layers", text))
    elif len(net.layers) < net.whole:
        lines.append((f"{net.whole} layers", "not predicted: the layers differ in mechanism"))
    return lines


def legend(found: Profile) -> list[tuple[str, str]]:
    """Return what the columns mean, (column, meaning)."""
    r = found.rates
    lines = [
        ("time", "measured: median of the rounds; spread: interquartile range / median"),
        ("FLOPs", "exact: of visible pairs, 2 per multiply-add" + (", forward and backward" if _train(found) else "")),
        ("roof", f"{r.source}: {three(r.matmul / 1e9)} GFLOP/s, {three(r.exps / 1e9)} G exponentials/s, "
                 f"{three(r.memory / 1e9)} GB/s ({three(r.cache / 1e9)} in cache), {duration(r.call)} a call"),
        ("of it", "bound: least time under that roof / time; little where no roof explains it, above 100 % "
                  "where the roof was measured too low (others at work)"),
    ]  # fmt: skip
    net = found.network
    if found.whole is not None and len(net.layers) < net.whole:
        lines.insert(1, ("share", f"of the time of all {net.whole} layers (predicted)"))
    if found.inside:
        lines.append(
            ("scores", "q @ k.T, and values: p @ v, each measured alone on the same arrays; softmax: the rest")
        )
    elif found.backend != REFERENCE and any(part.component == "attention" for part in found.parts):
        lines.append(("attention", f"scores, softmax and values are fused by {found.backend}"))
    if any(part.component == "scan" for part in found.parts):
        lines.append(("scan", "FLOPs of the recurrence, token by token; what runs in chunks computes others"))
    return lines


def _train(found: Profile) -> bool:
    return found.phase == "train"


def record(found: Profile, part: Part) -> dict[str, Any]:
    """Return a component as plain values, in seconds and FLOPs."""
    return {
        "component": part.component,
        "seconds": part.seconds,
        "lower_quartile_seconds": part.low,
        "upper_quartile_seconds": part.high,
        "backward_seconds": part.backward if _train(found) else None,
        "share": part.share,
        "flops": part.flops,
        "flops_per_second": part.rate,
        "roof": part.roof,
        "roof_seconds": part.roof_seconds,
        "calls": part.calls,
    }


KINDS = {
    "seconds": "measured", "lower_quartile_seconds": "measured", "upper_quartile_seconds": "measured",
    "backward_seconds": "measured", "share": "measured", "flops": "exact", "flops_per_second": "measured",
    "roof_seconds": "bound", "calls": "exact", "peak_bytes": "measured", "whole_model_seconds": "predicted",
    "inside_attention": "measured",
}  # fmt: skip


def to_json(found: Profile, facts: dict[str, str]) -> str:
    """Return everything as JSON."""
    net, (share, low, high) = found.network, found.attention_share
    content = {
        "facts": facts,
        "model": net.source,
        "layers": len(net.layers),
        "model_layers": net.whole,
        "mechanisms": [x.name for x in net.sizes.mechanism],
        "phase": found.phase,
        "backend": found.backend,
        "batch": found.batch,
        "seq": found.seq,
        "rounds": found.rounds,
        "seconds": found.seconds,
        "lower_quartile_seconds": found.low,
        "upper_quartile_seconds": found.high,
        "clocked_seconds": found.clocked,
        "whole_model_seconds": found.whole,
        "peak_bytes": found.peak_bytes,
        "weight_bytes": net.nbytes,
        "attention_share": share,
        "attention_share_quartiles": [low, high],
        "most_speedup": limit(share),
        "verdict": found.verdict,
        "inside_attention": found.inside,
        "parts": [record(found, part) for part in found.parts],
        "rates": found.rates.__dict__,
        "kinds": KINDS,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(found: Profile) -> str:
    """Return a line per component, with the columns of `record`."""
    return csv_of([record(found, part) for part in found.parts])
