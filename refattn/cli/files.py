"""Files that a command writes: refused before the work if they cannot be, and whole or not there at all."""

import csv
import io
import sys
from typing import Any

from refattn.models.files import special, target_of, temporary_beside, write_whole

STDOUT = "-"


def check_writable(paths: dict[str, str | None]) -> None:
    """Raise unless each of the paths (by the option that names it; None = not asked for) can be written."""
    taken: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        place = STDOUT if path == STDOUT else str(target_of(path))
        if place in taken:
            raise ValueError(f"{taken[place]} and {option} both write to {path}")
        taken[place] = option
        if path == STDOUT:
            continue
        target = target_of(path)
        if target.is_dir():
            raise IsADirectoryError(21, f"{option} wants a file, this is a folder", path)
        if not target.parent.is_dir():
            raise FileNotFoundError(2, f"{option} cannot be written, there is no such folder", str(target.parent))
        if not special(target):
            trial = temporary_beside(target)
            trial.touch(exist_ok=False)
            trial.unlink()


def csv_of(records: list[dict[str, Any]]) -> str:
    r"""Return a line per record, under the names of the first one's fields.

    Examples
    --------
    >>> csv_of([{"a": 1, "b": "x,y"}])
    'a,b\n1,"x,y"\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write(path: str, text: str) -> None:
    """Write `text` to a file, or to standard output for "-"; an interruption leaves the old file as it was."""
    if path == STDOUT:
        sys.stdout.write(text)
        return
    write_whole(path, text)
