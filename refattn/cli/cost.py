"""``refattn cost``: what a model costs, counted: FLOPs, pairs, bytes, memory, and what bounds it on a device."""

import argparse
from pathlib import Path

from refattn.cli import (
    console,
    cost_model,
    cost_numbers,
    cost_page,
    cost_plots,
    cost_sections,
    cost_sweep,
    cost_table,
    cost_text,
    files,
)
from refattn.costs import machine
from refattn.models.files import write_whole

NAME = "cost"
HELP = "count what a model costs: FLOPs, pairs, bytes, memory, and what bounds it on a device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    cost_model.add_arguments(parser)
    group = parser.add_argument_group("many calls")
    group.add_argument("--sweep", metavar="S", help="seq=512..131072 doubles; seq=512,1000 lists; batch=... too")
    group = parser.add_argument_group("where the results go, beside the table (- is standard output)")
    group.add_argument("--json", metavar="PATH", help="every number with its unit and kind")
    group.add_argument("--csv", metavar="PATH", help="a line per number, or per point of a sweep")
    group.add_argument("--html", metavar="PATH", help="one page with the tables and curves over lengths")
    group.add_argument("--plot", metavar="FILE", help="the curves alone, as .png or .svg")
    parser.add_argument("--list", action="store_true", help="show models, hardware and mechanisms, with their sources")


def run(args: argparse.Namespace) -> int:
    """Count, print and write.

    Everything that can be refused is refused before the first file is written.
    """
    outputs = {"--json": args.json, "--csv": args.csv, "--html": args.html, "--plot": args.plot}
    table, _ = console.consoles(table_to_stderr=files.STDOUT in outputs.values())
    if args.list:
        from refattn.cli import cost_list

        return cost_list.show(table)
    asked, name, values = _asked(args)
    drawing = args.html is not None or args.plot is not None
    if drawing:
        machine.need("matplotlib", "viz", "--html" if args.plot is None else "--plot")
    if args.plot is not None:
        cost_plots.check(args.plot)
        if args.mask is not None and values is None:
            raise ValueError("cost: --plot of a --mask needs --sweep: a mask may describe one length only")
    files.check_writable(outputs)

    points = None if values is None else cost_sweep.points(asked, name, values)
    found = [] if points is not None else cost_sections.sections(asked)
    curves = points
    if drawing and points is None and args.mask is None:
        curves = cost_sweep.points(asked, "seq", cost_sweep.around(asked))
    texts = _texts(args, asked, found, points, curves, name)
    picture = b""
    if args.plot is not None:
        figure = cost_plots.curves(asked, name, curves or [], mark=points is None)
        picture = cost_plots.render(figure, Path(args.plot).suffix)
    if points is None:
        cost_table.show(asked, found, table)
    else:
        cost_table.show_sweep(asked, name, points, table)
    for path, text in texts.items():
        files.write(path, text)
    if args.plot is not None:
        write_whole(args.plot, picture)
    return 0


def _asked(args: argparse.Namespace) -> tuple[cost_model.Asked, str, list[int] | None]:
    """Return the call, and what is swept over which values, if anything."""
    batch = 1 if args.batch is None else args.batch
    if args.sweep is None:
        return cost_model.read(args, args.seq, batch), "seq", None
    name, values = cost_sweep.read(args.sweep)
    if getattr(args, name) is not None:
        raise ValueError(f"cost: --sweep and --{name} both say {name}; wanted one of the two")
    seq = values[-1] if name == "seq" else args.seq
    return cost_model.read(args, seq, values[0] if name == "batch" else batch), name, values


def _texts(
    args: argparse.Namespace,
    asked: cost_model.Asked,
    found: list[cost_numbers.Section],
    points: list[cost_sweep.Point] | None,
    curves: list[cost_sweep.Point] | None,
    name: str,
) -> dict[str, str]:
    """Return what goes into which file, all of it made before any is written."""
    texts = {}
    if args.json is not None:
        texts[args.json] = cost_text.to_json(asked, found, points)
    if args.csv is not None:
        texts[args.csv] = cost_text.to_csv(found, points)
    if args.html is not None:
        texts[args.html] = cost_page.html(asked, found, name, points, curves)
    return texts
