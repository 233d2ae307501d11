"""Files that a command writes: refused before the work if they cannot be, and whole or not there at all."""

import os
import sys
from pathlib import Path

STDOUT = "-"


def check_writable(paths: dict[str, str | None]) -> None:
    """Raise unless each of the paths (by the option that names it; None = not asked for) can be written."""
    taken: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        place = STDOUT if path == STDOUT else str(_target(path))
        if place in taken:
            raise ValueError(f"{taken[place]} and {option} both write to {path}")
        taken[place] = option
        if path == STDOUT:
            continue
        target = _target(path)
        if target.is_dir():
            raise IsADirectoryError(21, f"{option} wants a file, this is a folder", path)
        if not target.parent.is_dir():
            raise FileNotFoundError(2, f"{option} cannot be written, there is no such folder", str(target.parent))
        if not _special(target):
            trial = _temporary(target)
            trial.touch(exist_ok=False)
            trial.unlink()


def write(path: str, text: str) -> None:
    """Write `text` to a file, or to standard output for "-"; an interruption leaves the old file as it was."""
    if path == STDOUT:
        sys.stdout.write(text)
        return
    target = _target(path)
    if _special(target):
        target.write_text(text, encoding="utf-8")
        return
    temporary = _temporary(target)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: str) -> Path:
    return Path(path).resolve()  # a link stays a link to the new file


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _special(target: Path) -> bool:
    """Say whether the path is something like /dev/null, which must not be replaced by a file."""
    return target.exists() and not target.is_file()
