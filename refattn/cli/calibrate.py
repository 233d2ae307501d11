"""``refattn calibrate``: measure this machine, so that `predict`, `advise` and `profile` can speak of it."""

import argparse
import sys
from typing import TYPE_CHECKING

from refattn.cli import files
from refattn.cli.console import columns, consoles, emit, progress
from refattn.costs.calibration import Calibration
from refattn.costs.measuring import MIXED, calibrate
from refattn.costs.units import count, duration, size

if TYPE_CHECKING:
    from rich.table import Table

NAME = "calibrate"
HELP = "measure this machine for predictions: products, softmax, bandwidth, every backend's attention"

DEFAULT = "calibration.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--out", default=DEFAULT, metavar="FILE", help=f"where it goes (default: {DEFAULT})")
    parser.add_argument("--backends", metavar="A,B", help="those to measure (default: all that are installed)")
    parser.add_argument(
        "--mechanisms", metavar="A,B", help=f"of the linear-time family (default: {','.join(MIXED)}; none for none)"
    )
    parser.add_argument("--check", metavar="FILE", help="only say whether FILE still fits this machine")


def run(args: argparse.Namespace) -> int:
    """Measure, write and print; with --check return 1 where the file does not fit."""
    table, bar = consoles(table_to_stderr=args.out == files.STDOUT)
    if args.check is not None:
        found = Calibration.load(args.check, check=False)
        doubts = found.doubts()
        emit(table, *[f"doubt: {line}" for line in doubts] or [f"{args.check} fits this machine (measured)"])
        return int(bool(doubts))
    files.check_writable({"--out": args.out})
    mechanisms = MIXED if args.mechanisms is None else _listed(args.mechanisms)
    with progress(bar) as tick:
        backends = None if args.backends is None else _listed(args.backends)
        found = calibrate(backends=backends, mechanisms=mechanisms, tick=tick)
    files.write(args.out, found.to_json())
    emit(table, "", summary(found), "", f"written to {args.out}; refattn advise --calibration {args.out} reads it")
    return 0


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else names


def load(path: str) -> tuple[Calibration, list[str]]:
    """Read a calibration, and say on standard error, a line each, why it should be doubted here."""
    found = Calibration.load(path, check=False)
    doubts = found.doubts()
    for doubt in doubts:
        print(f"refattn: warning: {path}: {doubt}", file=sys.stderr)
    return found, doubts


def about(c: Calibration) -> str:
    """Return the machine and the versions of a calibration on one line."""
    kept = dict(c.machine)
    what = [kept.pop("processor", "unknown processor"), f"{kept.pop('cores', '?')} cores"]
    return ", ".join([*what, *(f"{name} {version}" for name, version in kept.items())])


def summary(c: Calibration) -> "Table":
    """Return the few numbers that say what kind of machine it is."""
    lines = [
        ("machine", about(c)),
        ("date", c.date),
        ("products", f"{count(c.peak['float32'])}FLOP/s in float32 (measured, the best of the grid)"),
        ("exponentials", f"{count(c.exp_rate)}a second (measured)"),
        ("bandwidth", "; ".join(f"{size(rate)}/s at {size(n)}" for n, rate in c.bandwidths) + " (measured, copies)"),
        ("a call", f"{duration(c.overhead)} (measured)"),
    ]
    for backend, ratios in c.ratios.items():
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append((backend, f"whole blocks take {span} times what their steps add up to (measured)"))
    return columns(lines)
