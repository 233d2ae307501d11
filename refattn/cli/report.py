"""``refattn report``: one page about a model: the verdict, curves, roofline, masks, times, and what would help."""

import argparse
from dataclasses import replace
from pathlib import Path

from refattn.arrays import check_count, check_number
from refattn.cli import console, cost_model, files, report_found, report_page
from refattn.cli.advise import bytes_of
from refattn.cli.calibrate import load
from refattn.costs import machine
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware, hardware
from refattn.costs.lengths import Lengths
from refattn.costs.memory import itemsize
from refattn.costs.names import PHASES
from refattn.costs.options import CLASSES
from refattn.dispatch import REFERENCE

NAME = "report"
HELP = "write one page about a model: verdict, cost curves, roofline, masks, times, advice"

DEFAULT = "report.html"
TOKENS = 512
"""Of a sequence, where neither --seq nor --lengths says."""
SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="a name of `refattn cost --list`, or a config.json or its folder"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--calibration", metavar="FILE", help="this machine, as refattn calibrate measured it")
    where.add_argument("--hw", metavar="NAME", help="a processor of `refattn cost --list`: bounds only")
    parser.add_argument("--out", default=DEFAULT, metavar="FILE", help=f"where it goes (default: {DEFAULT})")
    group = parser.add_argument_group("the call")
    group.add_argument("--seq", type=int, metavar="N", help="tokens of a sequence (default: p95 of --lengths, or 512)")
    group.add_argument("--lengths", metavar="L", help="as refattn advise reads them (default: --seq)")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="sequences of a pass (default: 1)")
    group.add_argument("--phase", default="prefill", choices=PHASES, help="(default: prefill)")
    group.add_argument("--backend", default=REFERENCE, metavar="NAME", help=f"who computes now (default: {REFERENCE})")
    group.add_argument("--dtype", metavar="NAME", help="of the arrays (default: float32 here, bfloat16 on hardware)")
    group.add_argument(
        "--causal",
        action=argparse.BooleanOptionalAction,
        help="a token sees itself and those before it (default, but for encoders)",
    )
    group = parser.add_argument_group("what is demanded")
    group.add_argument("--latency-p95", type=float, metavar="S", help="seconds that a pass at p95 may take")
    group.add_argument("--throughput", type=float, metavar="N", help="tokens a second at p50")
    group.add_argument("--memory", metavar="SIZE", help="such as 16GiB (default: what there is)")
    group.add_argument("--exactness", default="exact", choices=CLASSES, help="how far a choice may go (default: exact)")
    group = parser.add_argument_group("measuring")
    group.add_argument("--profile", action="store_true", help="run the model here, with random weights")
    group.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help=f"of its rounds (default: {SECONDS:g})"
    )


def run(args: argparse.Namespace) -> int:
    """Count, predict, measure if that is asked for, and write the page.

    Everything that can be refused is refused before the file is written, which is then whole.
    """
    table, bar = console.consoles(table_to_stderr=args.out == files.STDOUT)
    machine.need("matplotlib", "viz", "refattn report")
    files.check_writable({"--out": args.out})
    facts = machine.facts(sorted({REFERENCE, args.backend}))  # before our own work counts as load
    wanted = _read(args, facts)
    with console.progress(bar) as tick:
        found = report_found.gather(wanted, tick)
        tick("the page", 0.95)
        text = report_page.html(found)
    files.write(args.out, text)
    console.emit(table, "", found.advice.verdict, "", found.advice.reason)
    if args.out != files.STDOUT:
        console.emit(table, "", f"written to {args.out}")
    return 0


def _read(args: argparse.Namespace, facts: dict[str, str]) -> report_found.Wanted:
    """Return what is asked, checked."""
    m = cost_model.named(args.model)
    if not m.name or Path(args.model).exists():
        m = replace(m, name=args.model)  # which names one model, and not a family
    causal = m.logits if args.causal is None else args.causal
    if args.profile and causal != m.logits:
        sees = "causal" if m.logits else "bidirectional"
        raise ValueError(f"report: --profile runs {m.name} as it is, {sees}; wanted no --causal or --no-causal")
    if args.lengths is None:
        lengths = Lengths.of(str(TOKENS if args.seq is None else args.seq))
    else:
        lengths = Lengths.of(args.lengths)
    seq = lengths.quantile(0.95) if args.seq is None else args.seq
    check_count("report", "--seq", seq)
    check_count("report", "--batch", args.batch)
    check_number("report", "--seconds", args.seconds, above=0)
    demands = {"latency_p95": args.latency_p95, "throughput": args.throughput, "memory": None}
    demands["memory"] = None if args.memory is None else bytes_of(args.memory)
    on, doubts = _machine(args)
    dtype = args.dtype or ("float32" if isinstance(on, Calibration) else "bfloat16")
    itemsize(dtype), on.rate(dtype)  # LookupError for one that is not known
    return report_found.Wanted(
        model=args.model,
        where=("--hw", args.hw) if args.hw else ("--calibration", args.calibration),
        asked=cost_model.Asked(m, args.batch, seq, 0, args.phase, causal, dtype, on),
        lengths=lengths,
        backend=args.backend,
        demands=demands,
        exactness=args.exactness,
        seconds=args.seconds if args.profile else None,
        facts=facts,
        doubts=doubts,
    )


def _machine(args: argparse.Namespace) -> tuple[Hardware | Calibration, list[str]]:
    """Return the device, and why what is said of it should be doubted."""
    if args.hw is not None:
        return hardware(args.hw), []
    return load(args.calibration)
