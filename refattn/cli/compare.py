"""``refattn compare``: one attention problem, every variant on every backend; error, time and memory in one table."""

import argparse
import math

from refattn import dispatch
from refattn.cli import compare_report, console, files, measure, problem
from refattn.costs import machine
from refattn.dispatch import AUTO, REFERENCE

NAME = "compare"
HELP = "run an attention problem through every variant and backend: error, time, memory"

SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    problem.add_arguments(parser)
    group = parser.add_argument_group("what runs")
    group.add_argument("--variants", metavar="A,B", help=f"of {', '.join(measure.VARIANTS)} (default: all)")
    group.add_argument("--backends", metavar="A,B", help="those that `refattn backends` lists (default: all)")
    group.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help=f"of timing, in all (default: {SECONDS:g})"
    )
    group = parser.add_argument_group("where the results go, beside the table (- is standard output)")
    group.add_argument("--json", metavar="PATH", help="every number")
    group.add_argument("--csv", metavar="PATH", help="a line per row of the table")
    group.add_argument("--html", metavar="PATH", help="one page with pictures of the mask and of the errors")


def run(args: argparse.Namespace) -> int:
    """Compare, print and write; return 1 if a result is wrong.

    Everything that can be refused is refused before the first computation.
    """
    outputs = {"--json": args.json, "--csv": args.csv, "--html": args.html}
    table, bar = console.consoles(table_to_stderr=files.STDOUT in outputs.values())
    if args.html is not None:
        machine.need("matplotlib", "viz", "--html")
    variants = _names("variant", args.variants, list(measure.VARIANTS))
    backends = _names("backend", args.backends, dispatch.backends())
    if not (math.isfinite(args.seconds) and args.seconds >= 0):
        raise ValueError(f"compare: --seconds is {args.seconds}; wanted 0 or more")
    files.check_writable(outputs)

    here = machine.facts(sorted({REFERENCE, *backends}))  # before our own work counts as load
    with console.progress(bar) as tick:
        tick("the input", 0)
        given = problem.read(args)
        rows = measure.candidates(variants, backends)
        comparison = measure.compare(given, rows, args.seconds, args.seed, tick)
    facts = given.facts() | {"seed": str(args.seed)} | here
    compare_report.show(comparison, facts, table)
    if args.json is not None:
        files.write(args.json, compare_report.to_json(comparison, facts))
    if args.csv is not None:
        files.write(args.csv, compare_report.to_csv(comparison))
    if args.html is not None:
        from refattn.cli import compare_page  # needs matplotlib

        files.write(args.html, compare_page.html(comparison, facts))
    return int(any(comparison.wrong(row) for row in rows))


def _names(kind: str, text: str | None, known: list[str]) -> list[str]:
    """Return the names in a list such as "numpy,numba", each once; LookupError for one that is not known."""
    if text is None:
        return known
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            auto = f" ({AUTO} is a choice among them)" if name == AUTO else ""
            raise LookupError(f"compare: no {kind} {name!r}{auto}; there are: {', '.join(known)}")
    if not names:
        raise ValueError(f"compare: --{kind}s names none; there are: {', '.join(known)}")
    return list(dict.fromkeys(names))
