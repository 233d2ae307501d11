"""The ``refattn`` command: one file per subcommand, and here the parser and what becomes of errors.

A subcommand is a module with ``NAME``, ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``. What needs an
optional package imports it when it runs, so that ``refattn --help`` needs none.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from refattn.dispatch import Unsupported

USER_ERRORS = (ValueError, TypeError, LookupError, ImportError, OSError, Unsupported)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``refattn``; those of this process unless given.

    Returns
    -------
    int
        The exit status: 0 done; 1 done, and a result is wrong; 2 refused, with one line on standard error; 130
        interrupted; 141 the reader of standard output went away.

    Examples
    --------
    >>> main(["show-mask", "causal()", "--t", "2"])
    █·
    ██
    <BLANKLINE>
    causal()
    pairs    3 of 4 visible: density 75.0 %
    tiles    of 64 × 64: 0 empty, 1 partial, 0 full
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without █ shows ?
    try:
        args = _parser().parse_args(argv)
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("refattn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141
    except USER_ERRORS as error:
        print(f"refattn: error: {one_line(error)}", file=sys.stderr)
        return 2


def one_line(error: BaseException) -> str:
    """Return what `error` says, on one line.

    Examples
    --------
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.npz"))
    'a.npz: No such file or directory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str(KeyError) is a repr
    return " ".join(text.split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    from refattn import __version__
    from refattn.cli import (
        advise,
        audit,
        backends,
        calibrate,
        check,
        compare,
        cost,
        embed,
        export_metrics,
        generate,
        infer,
        profile,
        report,
        serve_plan,
        show_mask,
        vectors,
    )

    about_kernels = (check, infer, audit, vectors, compare, backends, show_mask)
    about_costs = (cost, profile, calibrate, advise, serve_plan, export_metrics, report)
    parser = argparse.ArgumentParser(
        prog="refattn",
        description="Attention mechanisms, defined in readable NumPy, and the fast backends that are held against it.",
    )
    parser.add_argument("--version", action="version", version=f"refattn {__version__}")
    parser.set_defaults(run=lambda _: print(parser.format_help(), end=""))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (*about_kernels, *about_costs, embed, generate):
        about = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        subparser = commands.add_parser(command.NAME, help=command.HELP, description=about)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
