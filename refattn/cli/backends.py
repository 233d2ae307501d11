"""``refattn backends``: who can compute, whether it runs here, and what each one covers."""

import argparse
from dataclasses import dataclass, field

from refattn import dispatch
from refattn.cli.console import columns, consoles, emit, plain_table
from refattn.cli.measure import absence
from refattn.costs.machine import installed

NAME = "backends"
HELP = "list the backends: which run here, and what each covers"


@dataclass(frozen=True)
class Coverage:
    """What one backend says about itself."""

    name: str
    module: str
    version: str
    absent: str | None
    """Why it cannot run here, or None."""
    rank: int | None
    covered: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    """What it does not cover, an operation or "operation(argument)", and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(args: argparse.Namespace) -> int:
    """Print the table, and what each backend does not cover."""
    console, _ = consoles(table_to_stderr=False)

    table = plain_table()
    for header in ("backend", "module", "version", "runs here", "rank", "covers"):
        table.add_column(header, justify="right" if header in ("rank", "covers") else "left", no_wrap=True)
    coverages = [coverage(name) for name in dispatch.backends()]
    total = len(dispatch.OPERATIONS)
    for c in coverages:
        known = "" if c.rank is None else f"{len(c.covered)} of {total}"
        here, rank = "yes" if c.absent is None else "no", "" if c.rank is None else str(c.rank)
        table.add_row(c.name, c.module, c.version, here, rank, known, style="dim" if c.absent else None)
    parts = [columns(missing(c)) for c in coverages if missing(c)]
    about = [
        ("covers", f"of {', '.join(sorted(dispatch.OPERATIONS))}"),
        ("rank", 'backend="auto" takes the highest that runs here and covers the call'),
    ]
    emit(console, "", table, "", *parts, columns(about))
    return 0


def missing(c: Coverage) -> list[tuple[str, str]]:
    """Return lines (backend, what it cannot do and why)."""
    lines = [] if c.absent is None else [f"cannot run here: {c.absent}"]
    lines += [f"does not cover {what}: {why}" for what, why in c.reasons.items()]
    return [(c.name if n == 0 else "", line) for n, line in enumerate(lines)]


def coverage(name: str) -> Coverage:
    """Return what backend `name` covers, and why it does not cover the rest."""
    operations = sorted(dispatch.OPERATIONS)
    version = installed(name) or ""
    if name == dispatch.REFERENCE:
        return Coverage(name, "refattn", version, None, 0, operations)
    absent = absence(name)
    try:
        backend = dispatch.load(name)
    except Exception:  # `absent` says it
        return Coverage(name, "", version, absent, None)
    reasons = {op: str(dispatch.why_not(name, op, {})) for op in operations if not hasattr(backend, op)}
    reasons |= {what: why for what, why in getattr(backend, "LIMITS", {}).items() if "(" in what}
    return Coverage(
        name,
        getattr(backend, "__name__", type(backend).__name__),
        version,
        absent,
        getattr(backend, "RANK", 0),
        [op for op in operations if hasattr(backend, op)],
        reasons,
    )
