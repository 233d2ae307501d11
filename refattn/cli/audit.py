"""``refattn audit``: hold a test of attention kernels against kernels that are wrong in one place each."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from refattn.cli import files, verdict

NAME = "audit"
HELP = "test your tests: which wrong attention kernels do they notice?"

EXAMPLES = """\
examples:
  refattn audit tests/test_mine.py::test_fn
  refattn audit tests/test_mine.py --dtype bfloat16 --html audit.html

A test is a function of one argument, the kernel: kernel(q, k, v, *, causal=False, window=None, ...) -> (o, lse) on
NumPy arrays (B, H, T, D). It fails by raising something. A file stands for all its functions test_... with an
argument `kernel`. The exit status is 0 if every wrong kernel was noticed, 1 if not, 2 if a test fails on the correct
one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("tests", nargs="+", metavar="FILE.py::TEST", help="or module:function, or a file")
    parser.add_argument("--op", default="attention", metavar="NAME", help="or attention_vjp (default: attention)")
    parser.add_argument(
        "--dtype", default="float32", metavar="NAME", help="in which the tests call it (default: float32)"
    )
    parser.add_argument("--groups", metavar="A,B", help="of the mistakes: masks, tiles, precision, ... (default: all)")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds for a test (default: from the correct kernel)"
    )
    parser.add_argument("--html", metavar="FILE", help="a page to look at")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")


def run(args: argparse.Namespace) -> int:
    """Print and write what was missed; return 1 if anything was."""
    from refattn.testing.audit import audit
    from refattn.testing.audit_report import page
    from refattn.testing.mutants import mutants

    outputs = {"--html": args.html, "--json": args.json}
    files.check_writable(outputs)
    if args.timeout is not None and not args.timeout > 0:
        raise ValueError(f"audit: --timeout is {args.timeout:g}; wanted more than 0 seconds")
    groups = None if args.groups is None else [name.strip() for name in args.groups.split(",") if name.strip()]
    every = mutants(args.op)
    total = sum(args.dtype not in m.equivalent and (groups is None or m.group in groups) for m in every)
    tests = [test for text in args.tests for test in tests_of(text)]
    with verdict.progress(total) as tell:
        report = audit(tests, args.op, args.dtype, groups, args.timeout, lambda mutant, noticed: tell(mutant.name))
    print(report, file=sys.stderr if files.STDOUT in outputs.values() else sys.stdout)
    if args.html is not None:
        files.write(args.html, page(report))
    if args.json is not None:
        files.write(args.json, json.dumps(report.as_dict(), indent=2) + "\n")
    return int(not report.ok)


def tests_of(text: str) -> list[Callable[..., Any]]:
    """Return the tests that a text names; ValueError for one that is no function of a kernel."""
    from refattn.testing.loading import load_module, load_object

    if text.count("::") > 1:
        raise ValueError(f"audit: {text} is a method of a class; wanted a function that takes a kernel")
    if "[" in text:
        raise ValueError(f"audit: {text} is one case of a parametrised test; wanted a test of a kernel alone")
    if not text.endswith(".py"):
        return [load_object(text)]
    module = load_module(text)
    found: list[Callable[..., Any]] = [
        x
        for name, x in vars(module).items()
        if name.startswith("test") and inspect.isfunction(x) and "kernel" in inspect.signature(x).parameters
    ]
    if not found:
        raise LookupError(f"audit: {text} has no function test_... with an argument `kernel`")
    return found
