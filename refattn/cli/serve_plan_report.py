"""What `refattn serve-plan` says: tables for people, JSON and CSV for programs; each number with its unit and kind."""

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from refattn.cli.console import columns, emit, plain_table
from refattn.costs.promises import label
from refattn.costs.rehearsal import SIMULATED, Figure
from refattn.costs.serving import Plan
from refattn.costs.steady import Row
from refattn.costs.units import duration, size, three

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADERS = ("running", "token\nafter", "tokens/s", "requests/s", "first token\nafter", "caches", "bound by")


def show(plan: Plan, console: "Console") -> None:
    """Print the verdict, what fits, the table over concurrency, the state at the rate, and the assumptions."""
    parts: list[Any] = ["", plan.verdict, "", columns(facts(plan))]
    if plan.rows:
        parts += ["", _title(plan), "", _table(plan)]
    if state := at_rate(plan):
        parts += ["", f"At {plan.rate:g} requests/s", "", columns(state)]
    assumed = [("assumed" if n == 0 else "", text) for n, text in enumerate(plan.assumptions)]
    emit(console, *parts, "", columns(assumed), "")


def facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the model, the device, the requests, and what fits where."""
    s = plan.serving
    parts = [("weights", s.weights, "exact"), ("activations", s.activations, "predicted"), ("caches", s.room, "")]
    memory = ", ".join(f"{name} {size(x)}{f' ({kind})' if kind else ''}" for name, x, kind in parts if x >= 0)
    usable = s.utilisation * s.devices * s.on.memory
    source = f": {text}" if (text := getattr(s.on, "source", "")) else ""
    per_token = int(s.kept[-1] - s.kept[-2])
    each = f"{size(per_token)} a token at the end" if per_token else f"{size(float(s.kept[-1]))} whatever its length"
    p95 = plan.prompts.quantile(0.95) + plan.output.quantile(0.95)
    found = [
        ("model", str(s.m)),
        ("device", f"{s.devices} × {s.on.name}{source}"),
        ("prompts", str(plan.prompts)),
        ("outputs", str(plan.output)),
        ("memory", f"{size(usable)} of {size(s.devices * s.on.memory)} to be used: {memory}"),
        ("a request", f"keeps {each} (exact)"),
    ]
    if not plan.fits:
        return [*found, ("needed", f"{plan.needed} × {s.on.name}, at least (bound)")]
    fitting = f"{plan.concurrency:,} requests of mean length, {plan.concurrency_p95:,} of p95 in both ({p95:,} tokens)"
    return [*found, ("at once", f"{fitting} fit (bound)")]


def _title(plan: Plan) -> str:
    title = "By the number of requests that run"
    if plan.kind == "bound":
        return f"{title} · bounds: times are at least, rates at most"
    low, high = plan.span
    return f"{title} · predicted: times may be {low:.2f} to {high:.2f} times these"


def _table(plan: Plan) -> "Table":
    table = plain_table(gap=2)
    for header in HEADERS:
        justify: Any = "left" if header == "bound by" else "right"
        table.add_column(header, justify=justify, vertical="bottom", no_wrap=True)
    for row in plan.rows:
        table.add_row(*cells(row))
    return table


def cells(row: Row) -> list[str]:
    """Return a row under `HEADERS`."""
    return [
        f"{row.batch:,}",
        duration(row.tpot),
        f"{row.tokens_per_second:,.0f}",
        three(row.requests_per_second),
        "no end" if row.ttft is None else duration(row.ttft),
        size(row.kv_bytes),
        row.bound_by,
    ]


def at_rate(plan: Plan) -> list[tuple[str, str]]:
    """Return the state at the rate that is asked."""
    if plan.capacity is None:
        return []
    formula = f"{three(plan.capacity_formula)} by formula ({plan.kind})"
    found = [("capacity", f"{_text(plan.capacity)}; {formula}")]
    if plan.load is not None:
        share = f"{plan.load:.0%} of" if plan.load < 10 else f"{plan.load:,.0f} times"
        found.append(("utilisation", f"{share} the capacity (simulated)"))
    simulated, steady = plan.simulated, plan.steady
    if simulated is not None:
        for name in ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95"):
            if (figure := getattr(simulated, name)) is not None:
                promise = getattr(plan.slo, name)
                kept = "" if promise is None else f"; promised {duration(promise)}"
                found.append((label(name), f"{_text(figure)}{kept}"))
        by_formula = "" if steady is None else f"; {duration(steady.ttft)} by formula ({plan.kind})"
        found.append(("TTFT mean", f"{_text(simulated.ttft_mean)}{by_formula}"))
        by_formula = "" if steady is None else f"; {three(steady.running)} of them decoding by formula ({plan.kind})"
        found.append(("running", f"{_text(simulated.running)}{by_formula}"))
        found.append(("tokens", _text(simulated.tokens_per_second)))
    if plan.highest is not None:
        found.append(("highest", f"{_text(plan.highest)} keep all that is promised"))
    return found


def _text(figure: Figure) -> str:
    if figure.unit == "s":
        value, low, high = duration(figure.value), duration(figure.low), duration(figure.high)
    else:
        value, low, high = (f"{x:,.0f}" if x >= 999.5 else three(x) for x in figure[:3])
        value += f" {figure.unit}" if figure.unit else ""
    return f"{value} (simulated, {low} to {high})"


def to_json(plan: Plan) -> str:
    """Return everything as JSON: numbers as {"value", "unit", "kind"}, those with an interval with "low" and "high"."""
    s = plan.serving
    content = {
        "verdict": plan.verdict,
        "fits": plan.fits,
        "meets": plan.meets,
        "model": s.m.name or str(s.m),
        "device": s.on.name,
        "devices": s.devices,
        "dtype": s.dtype,
        "prompts": str(plan.prompts),
        "outputs": str(plan.output),
        "requests_per_second": plan.rate,
        "slo": plan.slo.named(),
        "memory": {
            "usable": _number(s.utilisation * s.devices * s.on.memory, "B", "exact"),
            "weights": _number(s.weights, "B", "exact"),
            "activations": _number(s.activations, "B", "predicted"),
            "caches": _number(s.room, "B", "predicted"),
        },
        "needed_devices": _number(plan.needed, "devices", "bound"),
        "concurrency": _number(plan.concurrency, "requests", "bound"),
        "concurrency_p95": _number(plan.concurrency_p95, "requests", "bound"),
        "rows": [_record(plan, row) for row in plan.rows],
        "capacity": _figure(plan.capacity),
        "capacity_formula": _number(plan.capacity_formula, "requests/s", plan.kind),
        "utilisation": None if plan.load is None else _number(plan.load, "", SIMULATED),
        "formula": _steady(plan),
        "simulated": None
        if plan.simulated is None
        else {
            name: _number(x, "", SIMULATED) if isinstance(x, float) else _figure(x)
            for name, x in plan.simulated._asdict().items()
        },
        "highest": _figure(plan.highest),
        "assumptions": plan.assumptions,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(plan: Plan) -> str:
    """Return a line per row of the table."""
    text = io.StringIO()
    names = ["running", "seconds_a_token", "tokens_per_second", "requests_per_second", "seconds_to_first_token"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "cache_bytes", "bound_by", "kind"])
    writer.writerows([*row, plan.kind] for row in plan.rows)
    return text.getvalue()


def _number(value: float, unit: str, kind: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "kind": kind}


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else figure._asdict()


def _by_formula(plan: Plan, seconds: float | None) -> dict[str, Any] | None:
    if seconds is None:
        return None
    low, high = plan.span
    span = {} if plan.kind == "bound" else {"low": low * seconds, "high": high * seconds}
    return _number(seconds, "s", plan.kind) | span


def _record(plan: Plan, row: Row) -> dict[str, Any]:
    return {
        "running": row.batch,
        "tpot": _by_formula(plan, row.tpot),
        "tokens_per_second": _number(row.tokens_per_second, "tokens/s", plan.kind),
        "requests_per_second": _number(row.requests_per_second, "requests/s", plan.kind),
        "ttft": _by_formula(plan, row.ttft),
        "caches": _number(row.kv_bytes, "B", "exact"),
        "bound_by": row.bound_by,
    }


def _steady(plan: Plan) -> dict[str, Any] | None:
    if plan.steady is None:
        return None
    return {
        "running": _number(plan.steady.running, "requests", plan.kind),
        "tpot": _by_formula(plan, plan.steady.tpot),
        "ttft": _by_formula(plan, plan.steady.ttft),
        "prefilling": _number(plan.steady.prefilling, "", plan.kind),
    }
