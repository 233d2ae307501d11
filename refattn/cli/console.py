"""Where a command's tables and its progress bar go: rich, without colour or width games where nobody looks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from refattn.cli.measure import Tick
from refattn.costs.machine import need

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100  # of what is not a terminal


def consoles(table_to_stderr: bool) -> tuple["Console", "Console"]:
    """Return where the table goes and where the progress bar goes; ImportError if rich is missing."""
    need("rich", "cli", "this command")
    from rich.console import Console

    width = None if "COLUMNS" in os.environ else WIDTH
    streams = [sys.stderr if table_to_stderr else sys.stdout, sys.stderr]
    table, bar = (Console(file=s, width=None if s.isatty() else width, highlight=False) for s in streams)
    return table, bar


@contextmanager
def progress(console: "Console") -> Iterator[Tick]:
    """Show a progress bar, if somebody looks; the function inside takes what is being done and the share done."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share, refresh=True)


def plain_table(gap: int = 1) -> "Table":
    """Return a table without columns yet: a line below its head, and `gap` blanks between columns."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)


def columns(lines: list[tuple[str, str]]) -> "Table":
    """Return labels and texts in two columns."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(Text(label, "bold"), Text(text))
    return grid


def emit(console: "Console", *parts: "str | Table") -> None:
    """Print the parts below each other, without blanks at the ends of lines; a table is never cut off."""
    width, anything = console.width, console.options.update(width=1000)
    with console.capture() as captured:
        for part in parts:
            natural = (
                0 if isinstance(part, str) or part.box is None else console.measure(part, options=anything).maximum
            )
            console.width = max(width, natural)
            console.print(part, markup=False)
    console.width = width
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")
