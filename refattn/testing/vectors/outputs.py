"""Find and read what a program left for each entry: files in a folder, or arrays in a mapping."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.vectors import storage
from refattn.testing.vectors.manifest import Entry

READERS = {".npz": storage.read_npz, ".safetensors": storage.read_safetensors}


class Unreadable(Exception):
    """An output that is there and cannot be read; the message is the verdict."""


class Outputs:
    """The outputs of one program."""

    def __init__(self, given: str | Path | Mapping[str, Any], entries: list[Entry]) -> None:
        self.mapping = given if isinstance(given, Mapping) else None
        self.folder = None if isinstance(given, Mapping) else Path(given)
        self.name = "the outputs" if self.folder is None else str(self.folder)
        self.known = {entry.id for entry in entries}
        names: list[str] = []
        if self.folder is not None and self.folder.is_dir():
            names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        self.files: dict[str, list[str]] = {entry.stem: [] for entry in entries}
        self.stray: list[str] = []
        for name in names:
            stem = name.rpartition(".")[0]
            if name.endswith(".bin"):
                stem = stem.rpartition(".")[0]
            self.files.get(stem, self.stray).append(name)

    def complaints(self) -> list[str]:
        """Return what belongs to no entry: a name spelt wrong would otherwise look like an entry left out."""
        stray = self.stray if self.mapping is None else [str(id) for id in self.mapping if id not in self.known]
        rest = f" and {len(stray) - 3} more" if len(stray) > 3 else ""
        return [f"{', '.join(stray[:3])}{rest} in {self.name}: no entry of that name"] if stray else []

    def wanted(self, entry: Entry) -> str:
        """Say what would be an output of an entry."""
        if self.folder is None:
            return "its id is not in the mapping"
        return f"{self.folder / entry.stem}.npz, .safetensors or .{next(iter(entry.outputs))}.bin is not there"

    def of(self, entry: Entry) -> dict[str, Array] | None:
        """Return the results of one entry by name, or None if there are none."""
        if self.mapping is not None:
            return _named(self.mapping[entry.id], entry) if entry.id in self.mapping else None
        found = self.files[entry.stem]
        if not found:
            return None
        assert self.folder is not None
        kinds = {Path(name).suffix for name in found}
        if len(kinds) > 1:
            raise Unreadable(f"there are several outputs: {', '.join(found)}")
        suffix = kinds.pop()
        if suffix == ".bin":
            return {name.split(".")[-2]: self._raw(name, entry) for name in found}
        if suffix not in READERS:
            raise Unreadable(f"{found[0]} is of no kind that is read here: .npz, .safetensors, .NAME.bin")
        try:
            return READERS[suffix]((self.folder / found[0]).read_bytes())
        except (ValueError, OSError) as error:
            raise Unreadable(f"{found[0]} cannot be read: {error}") from error

    def _raw(self, file: str, entry: Entry) -> Array:
        """Return the numbers of a file without a header; how wide they are shows in its length."""
        assert self.folder is not None
        data, name = (self.folder / file).read_bytes(), file.split(".")[-2]
        if name not in entry.outputs:
            return np.zeros(0)
        shape, own = tuple(entry.arrays[name]["shape"]), entry.outputs[name]
        count = math.prod(shape)
        for dtype in dict.fromkeys((own, "float32", "float64")):
            kind = storage.numpy_dtype(dtype)
            if count * kind.itemsize == len(data):
                return np.frombuffer(data, kind).reshape(shape)
        size = storage.numpy_dtype(own).itemsize
        raise Unreadable(f"{file} has {len(data)} bytes; wanted {count * size}, {shape} in {own}")


def _named(result: Any, entry: Entry) -> dict[str, Array]:
    if isinstance(result, Mapping):
        return {str(name): x for name, x in result.items() if x is not None}
    several = [x for x in _flat(result) if x is not None]
    if len(several) != len(entry.outputs):
        raise Unreadable(f"there are {len(several)} results; wanted {len(entry.outputs)}: {', '.join(entry.outputs)}")
    return dict(zip(entry.outputs, several, strict=True))


def _flat(result: Any) -> list[Any]:
    """Return the results of a tuple, also of those inside it."""
    return [x for part in result for x in _flat(part)] if isinstance(result, tuple | list) else [result]
