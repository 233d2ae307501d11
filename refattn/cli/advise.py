"""``refattn advise``: is attention the bottleneck of a deployment, and what would help? The verdict comes first."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from refattn.cli import files
from refattn.cli.calibrate import load
from refattn.cli.console import columns, consoles, emit, plain_table
from refattn.cli.cost_model import named
from refattn.costs.advice import Advice, Option, advise
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware, hardware
from refattn.costs.names import PHASES
from refattn.costs.options import CLASSES
from refattn.costs.units import duration, size

if TYPE_CHECKING:
    from rich.table import Table

NAME = "advise"
HELP = "say whether attention is the bottleneck, and what would help: the verdict first"

UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="a preset (refattn cost --list), or a config.json"
    )
    parser.add_argument(
        "--lengths", required=True, metavar="L",
        help='tokens: "512", "uniform:64..2048", "lognormal:median=300,p95=2000,max=8192", or a .csv file',
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--calibration", metavar="FILE", help="this machine, as refattn calibrate measured it")
    where.add_argument("--hw", metavar="NAME", help="a processor by name (refattn cost --list): bounds only")
    parser.add_argument("--phase", default="prefill", choices=PHASES, help="(default: prefill)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences of a pass (default: 1)")
    parser.add_argument("--backend", default="numpy", metavar="NAME", help="who computes now (default: numpy)")
    parser.add_argument("--no-causal", action="store_true", help="every token sees all, as in an encoder")
    parser.add_argument("--dtype", metavar="NAME", help="of the arrays (default: float32 here, bfloat16 on hardware)")
    group = parser.add_argument_group("what is demanded")
    group.add_argument("--latency-p95", type=float, metavar="S", help="seconds that a pass at p95 may take")
    group.add_argument("--throughput", type=float, metavar="N", help="tokens a second at p50")
    group.add_argument("--memory", metavar="SIZE", help="such as 16GiB (default: what there is)")
    group.add_argument("--exactness", default="exact", choices=CLASSES, help="how far it may go (default: exact)")
    parser.add_argument("--json", metavar="PATH", help="every number; - is standard output")


def run(args: argparse.Namespace) -> int:
    """Advise and print."""
    table, _ = consoles(table_to_stderr=args.json == files.STDOUT)
    files.check_writable({"--json": args.json})
    m = named(args.model)
    on: Hardware | Calibration = hardware(args.hw) if args.hw else load(args.calibration)[0]
    found = advise(
        m, lengths=args.lengths, on=on, latency_p95=args.latency_p95, throughput=args.throughput,
        memory=None if args.memory is None else bytes_of(args.memory), phase=args.phase, exactness=args.exactness,
        backend=args.backend, batch=args.batch, causal=not args.no_causal, dtype=args.dtype,
    )  # fmt: skip
    emit(table, "", found.verdict, "", found.reason, "", options_table(found), "", columns(notes(found, on)))
    if args.json is not None:
        files.write(args.json, json.dumps(record(found), indent=1) + "\n")
    return 0


def bytes_of(text: str) -> float:
    """Return a number of bytes from a text such as 16GiB; ValueError for another.

    Examples
    --------
    >>> bytes_of("16GiB"), bytes_of("1.5 KiB"), bytes_of("300")
    (17179869184.0, 1536.0, 300.0)
    """
    number = text.strip().rstrip("BKMGTi")
    unit = text.strip()[len(number) :]
    try:
        return float(number) * UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError(f"advise: --memory is {text!r}; wanted a size such as 16GiB") from None


def options_table(found: Advice) -> "Table":
    """Return a line for each option."""
    table = plain_table()
    table.add_column("option", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for header in ("p50", "p95", "p95 from", "to", "times\nfaster", "memory", "fit"):
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    table.add_column("misses")
    for option in found.options:
        chosen = found.choice is not None and option.name == found.choice.name
        table.add_row(
            option.name, option.exactness, duration(option.p50.seconds), duration(option.p95.seconds),
            duration(option.p95.low), duration(option.p95.high), f"{option.faster:.2f}", size(option.peak_bytes),
            f"{option.concurrency:,}", "; ".join(option.misses),
            style="bold green" if chosen else "dim" if option.misses else None,
        )  # fmt: skip
    return table


def notes(found: Advice, on: Hardware | Calibration) -> list[tuple[str, str]]:
    """Return what the columns mean, where the ranking flips, and on what it rests."""
    measured = isinstance(on, Calibration)
    lines = [
        (
            "times",
            "predicted; from ... to holds 4 of 5 cases" if measured else "bound: not less; rarely above `to`",
        ),
        ("class", "exact: the same numbers; approximate: changed results; retrain: another network, to be trained"),
        (
            "memory",
            "weights, caches at p95, what attention allocates (exact); fit: sequences of p95 tokens (bound)",
        ),
    ]
    lines += [("flips", f"from {tokens:,} tokens on {new} is ahead of {old}") for tokens, old, new in found.flips]
    lines += [("depends", line) for line in found.sensitive]
    if found.choice is not None:
        lines.append(("check", found.choice.check))
    return [*lines, ("rests on", f"{on.name} of {on.date}")]


def record(found: Advice) -> dict[str, Any]:
    """Return everything as plain values, times in seconds."""
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "choice": None if found.choice is None else found.choice.name,
        "attention_share": {"p50": found.share_p50, "p95": found.share_p95},
        "amdahl_limit": found.limit if found.limit != float("inf") else None,
        "bottleneck": found.bottleneck,
        "options": [_option(option) for option in found.options],
        "flips": [{"tokens": tokens, "below": old, "from": new} for tokens, old, new in found.flips],
        "depends": found.sensitive,
    }


def _option(option: Option) -> dict[str, Any]:
    plain = option._asdict()
    for name in ("p50", "p95"):
        plain[name] = getattr(option, name)._asdict()
    return plain
