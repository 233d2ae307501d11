"""The manifest of a folder of vectors, and the reader of such a folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from refattn.arrays import Array
from refattn.testing.vectors import storage

VERSION = storage.VERSION
KIND = "refattn vectors"
MANIFEST = "manifest.json"
OUTPUTS = "outputs"
"""The folder in which other programs leave what they computed."""


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one call."""

    id: str
    operation: str
    dtype: str
    file: str
    normal: bool
    """All inputs look standard normal, so that statistics of the error mean something."""
    cut: str
    """What was cut off the case; see `refattn.testing.vectors.choose.Vector`."""
    options: Mapping[str, Any]
    """Numbers and texts; arrays are among the inputs."""
    mask: str | None
    """What the mask was before it became an array."""
    outputs: Mapping[str, str]
    """Each result with the dtype in which a kernel returns it; the file has it in float64."""
    arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name: role (input, output, bound, sigma), dtype, shape; in vectors.bin also the offset."""

    @property
    def stem(self) -> str:
        """What files of this entry are called, without the suffix."""
        return self.id.replace("/", "__")


def digest(data: bytes) -> str:
    """Return the sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def dump(entries: list[Entry], about: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Return a manifest as JSON."""
    from refattn import __version__

    manifest = {"kind": KIND, "version": VERSION, "refattn": __version__, **about}
    manifest["files"] = {name: {"bytes": len(data), "sha256": digest(data)} for name, data in files.items()}
    manifest["entries"] = [asdict(entry) for entry in entries]
    return (json.dumps(manifest, separators=(",", ":"), allow_nan=False) + "\n").encode()


class Vectors:
    """A folder of vectors, opened: its manifest is read, its files are there and are what was written.

    Parameters
    ----------
    folder : str or Path
        What `export_vectors` wrote.

    Raises
    ------
    FileNotFoundError
        If the manifest or a file that it names is missing.
    ValueError
        If a file is damaged, or of a version that is not known here.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} holds no vectors: there is no {MANIFEST} in it")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON or of UTF-8
            raise ValueError(f"{path} is damaged, or no JSON: {error}") from error
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise ValueError(f'{path} is no manifest of vectors: its "kind" is not {KIND!r}')
        if about.get("version") != VERSION:
            raise ValueError(f"{path} has version {about.get('version')!r}; this refattn reads version {VERSION}")
        try:
            self.storage: str = about["storage"]
            self.level: str = about["level"]
            self.seed: int = about["seed"]
            self.not_exported: dict[str, str] = about["not_exported"]
            self.files: dict[str, Any] = {name: (x["bytes"], x["sha256"]) for name, x in about["files"].items()}
            self.entries = [Entry(**{f.name: x[f.name] for f in fields(Entry)}) for x in about["entries"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        outside = [name for name in self.files if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            raise ValueError(f"{path} names a file outside of its folder: {outside[0]}")
        if self.storage not in storage.STORAGES:
            raise ValueError(f"{path} names the format {self.storage!r}; there are {', '.join(storage.STORAGES)}")

    @cached_property
    def data(self) -> dict[str, bytes]:
        """The bytes of every file."""
        found = {}
        for name, (size, sha256) in self.files.items():
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, which the manifest names")
            found[name] = path.read_bytes()
            if len(found[name]) != size:
                raise ValueError(f"{path} has {len(found[name])} bytes; wanted {size}: it is cut off, or was changed")
            if digest(found[name]) != sha256:
                raise ValueError(f"{path} is not what was written: its sha256 differs from the manifest's")
        return found

    def load(self, entry: Entry) -> dict[str, Array]:
        """Return the arrays of one entry by name, as they are stored: bfloat16 as uint16."""
        try:
            return storage.read(self.storage, self.data[entry.file], entry.arrays)
        except KeyError:
            raise ValueError(f"{self.folder / MANIFEST} lists no file {entry.file!r}, which {entry.id} needs") from None
        except ValueError as error:
            raise ValueError(f"{self.folder / entry.file}: {error}") from error
