"""What the commands that judge share: where the report goes, which waivers hold, the exit status, the progress."""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from refattn.cli import files

if TYPE_CHECKING:
    from refattn.testing.verdicts import Report
    from refattn.testing.waivers import WaiverRule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("where the report goes, beside the text (- is standard output)")
    group.add_argument("--html", metavar="FILE", help="a page to look at, with pictures")
    group.add_argument("--json", metavar="FILE", help="everything, for programs")
    group.add_argument("--junit", metavar="FILE", help="JUnit XML, for test services")
    group.add_argument("--waivers", metavar="FILE", help="a ledger of checks that are known to fail (TOML)")


def prepare(args: argparse.Namespace) -> "list[WaiverRule]":
    """Refuse what cannot be written, and read the ledger, before anything is computed."""
    files.check_writable(outputs(args))
    if args.waivers is None:
        return []
    from refattn.testing.waivers import load_waivers

    return load_waivers(args.waivers)


def outputs(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the files asked for, by option."""
    return {f"--{name}": getattr(args, name) for name in ("html", "json", "junit")}


def finish(report: "Report", args: argparse.Namespace, rules: "list[WaiverRule]") -> int:
    """Explain what failed, print the report, write the files; return 1 if anything counts against the kernel.

    It also returns 1 if nothing was checked: that is no kernel that passed.
    """
    from refattn.testing.diagnose import diagnose
    from refattn.testing.ledger import apply_ledger
    from refattn.testing.reports import html, json_, junit, terminal
    from refattn.testing.reports.common import nothing_ran

    if rules:
        apply_ledger(report, rules)
    if report.failures and report.context is not None:
        with progress(1) as tell:
            tell("what explains it?")
            diagnose(report)
    if files.STDOUT in outputs(args).values():
        print(report, file=sys.stderr)
    else:
        terminal.show(report)
    forms: dict[str, Callable[[Report], str]] = {
        "--html": html.page,
        "--json": lambda r: json.dumps(json_.as_dict(r), indent=2, allow_nan=False) + "\n",
        "--junit": junit.as_xml,
    }
    for option, path in outputs(args).items():
        if path is not None:
            files.write(path, forms[option](report))
    return int(not report.ok or nothing_ran(report))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show on standard error what was done last, if somebody looks; yields a function to be told it."""
    done, shown = 0, sys.stderr.isatty()

    def tell(text: str) -> None:
        nonlocal done
        done += 1
        if shown:
            line = f"{done} of {total}  {text}"[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def chosen(ids: list[str], patterns: list[str]) -> list[str]:
    """Return the ids that one of the patterns names: the id, a part of it, or with * and ? all of it.

    Examples
    --------
    >>> chosen(["attention/needle_64", "attention/needle_200", "attention/ties"], ["needle_64", "*/t*"])
    ['attention/needle_64', 'attention/ties']
    """
    from fnmatch import fnmatchcase

    from refattn.testing.loading import nearest

    found: set[str] = set()
    for pattern in patterns:
        wild = any(sign in pattern for sign in "*?")
        wholes = (pattern, f"*/{pattern}")
        named = [id for id in ids if (any(fnmatchcase(id, w) for w in wholes) if wild else pattern in id)]
        if not named:
            short = [id.partition("/")[2] or id for id in ids]
            raise LookupError(f"--only {pattern}: no check of this level is called so{nearest(pattern, short)}")
        found |= set(named)
    return [id for id in ids if id in found]


def close(kernel: Any) -> None:
    """End the process or the program behind a kernel, if there is one."""
    end = getattr(kernel, "close", None)
    if callable(end):
        end()
