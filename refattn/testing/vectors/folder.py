"""Put a folder of vectors in its place: whole or not at all, and never over what is not ours."""

import os
import secrets
import shutil
from pathlib import Path

from refattn.testing.vectors.manifest import MANIFEST, OUTPUTS, Vectors


def refuse(target: Path) -> None:
    """Raise unless the folder is free, or holds vectors and nothing else but outputs."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"export_vectors: {target} is a file; wanted a folder")
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if not there:
        return
    if MANIFEST not in there:
        raise FileExistsError(f"export_vectors: {target} is not empty, and holds no {MANIFEST} of vectors")
    try:
        own = {MANIFEST, *Vectors(target).files}
    except ValueError as error:
        raise FileExistsError(
            f"export_vectors: {target} is not empty, and its manifest is not ours: {error}"
        ) from error
    foreign = sorted(name for name in there - own if not name.startswith(f"{OUTPUTS}/"))
    if foreign:
        raise FileExistsError(f"export_vectors: {target} holds more than vectors: {', '.join(foreign[:3])}")


def write(target: Path, files: dict[str, bytes]) -> None:
    """Write the files into a new folder, and put it in the place of the old one at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    new, old = (target.with_name(f".{target.name}.{mark}.{what}") for what in ("new", "old"))
    try:
        for name, data in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if target.exists():
            os.rename(target, old)
        try:
            if (old / OUTPUTS).exists():
                os.rename(old / OUTPUTS, new / OUTPUTS)
            os.rename(new, target)
        except BaseException:  # whatever stops it here, the old folder comes back
            if (new / OUTPUTS).exists():
                os.rename(new / OUTPUTS, old / OUTPUTS)
            if old.exists():
                os.rename(old, target)
            raise
    finally:
        if new.exists():
            shutil.rmtree(new)
    if old.exists():
        shutil.rmtree(old)
