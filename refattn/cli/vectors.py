"""``refattn vectors``: inputs and right answers in files, for kernels that Python cannot call."""

import argparse

from refattn.cli import verdict

NAME = "vectors"
HELP = "write inputs with their right answers to files, or judge the answers that another program wrote"

EXAMPLES = """\
examples:
  refattn vectors export cases --ops attention,attention_vjp --format bin
  ./my_program cases cases/outputs
  refattn vectors check cases --html report.html
"""
EXPORT = (
    "Write inputs, the right answers in float64, and how far a result may lie from them; manifest.json lists it all."
)
CHECK = """\
Judge the answers that a program wrote. For the entry attention/causal/float32 it writes one of

  DIR/outputs/attention__causal__float32.npz, or .safetensors   the results by name: o, lse, dq, ...
  DIR/outputs/attention__causal__float32.o.bin                  a file per result, its numbers in C order, little-endian

The exit status is 0 if every answer is right, 1 if one is not or there are none, 2 if the request makes no sense.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two commands."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(title="commands", metavar="export | check", required=True)
    export = actions.add_parser("export", help="write inputs, right answers and bounds", description=EXPORT)
    export.add_argument("folder", metavar="DIR", help="is made, or holds older vectors and is replaced")
    export.add_argument("--ops", metavar="A,B", help="the operations (default: all)")
    export.add_argument("--dtypes", metavar="A,B", help="of float32, bfloat16, float16, float64")
    export.add_argument("--level", choices=("quick", "standard"), default="quick", help="how many (default: quick)")
    export.add_argument("--format", choices=("npz", "safetensors", "bin"), default="npz", help="(default: npz)")
    export.add_argument("--seed", type=int, default=0, metavar="N", help="of the numbers that are drawn (default: 0)")
    export.set_defaults(action=_export)
    check = actions.add_parser(
        "check",
        help="judge the answers that a program wrote",
        description=CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("folder", metavar="DIR", help="that `refattn vectors export` wrote")
    check.add_argument("--outputs", metavar="DIR", help="where the answers are (default: DIR/outputs)")
    verdict.add_arguments(check)
    check.set_defaults(action=_check)


def run(args: argparse.Namespace) -> int:
    """Export or check."""
    return int(args.action(args))


def _export(args: argparse.Namespace) -> int:
    from refattn.testing.vectors import export_vectors

    folder = export_vectors(
        args.folder, _names(args.ops), args.level, args.format, dtypes=_names(args.dtypes), seed=args.seed
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote {args.folder}, {size / 1e6:.1f} MB; its manifest.json lists every entry with its arrays and options")
    print(f"next: let a program write {args.folder}/outputs, see refattn vectors check --help")
    return 0


def _check(args: argparse.Namespace) -> int:
    from refattn.testing.vectors import check_vectors

    rules = verdict.prepare(args)
    return verdict.finish(check_vectors(args.folder, args.outputs), args, rules)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
