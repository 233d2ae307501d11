"""Read a model's folder: whatever is wrong with a file, one error names it. Write a file whole, or not at all."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array


def find(folder: "str | Path", name: str) -> Path:
    """Return the path of a file that must be there.

    Parameters
    ----------
    folder : str or Path
        The model's folder.
    name : str
        The file's name in it.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        Where the folder, or that file in it, is not there.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is {folder} a model's folder?")
    return path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; ValueError where its bytes are something else."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError where it is cut short or holds anything else."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or cut short: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}; wanted an object")
    return content


def read_optional_json(folder: "str | Path", name: str) -> dict[str, Any]:
    """Return the object in a JSON file of `folder`, an empty one where there is no such file."""
    path = Path(folder) / name
    return read_json(path) if path.is_file() else {}


def count(path: Path, config: dict[str, Any], key: str) -> int:
    """Return ``config[key]``, which `path` holds; ValueError unless it is an integer of at least 1."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{path}: {key} is {value!r}; wanted an integer of at least 1")
    return value


def write_whole(path: "str | Path", content: str | bytes) -> None:
    """Write a file beside `path` and move it there: an interruption leaves the old file as it was.

    Parameters
    ----------
    path : str or Path
        A link stays a link, to the new file; something like /dev/null is written to, not replaced.
    content : str or bytes
        Text is written as UTF-8.
    """
    data, target = content.encode() if isinstance(content, str) else content, target_of(path)
    if special(target):
        target.write_bytes(data)
        return
    temporary = temporary_beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def target_of(path: "str | Path") -> Path:
    """Return what a path points to in the end."""
    return Path(path).resolve()


def temporary_beside(target: Path) -> Path:
    """Return a name in the same folder that nobody else takes."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def special(target: Path) -> bool:
    """Say whether the path is something like /dev/null, which must not be replaced by a file."""
    return target.exists() and not target.is_file()


class Tensors:
    """The tensors of a safetensors file.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ImportError
        Where the package safetensors is missing; the message says how to install it.
    ValueError
        Where the file is corrupt or cut short.
    """

    def __init__(self, path: Path) -> None:
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError(
                f"{path}: reading it needs the package safetensors ({error}). "
                'Install it: python -m pip install "refattn[models]"'
            ) from error
        self.path = path
        try:
            self._tensors: dict[str, Array] = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or cut short: {error}") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: holds a tensor of a type that NumPy lacks: {error}") from None

    def take(self, name: str, *shape: int) -> Array:
        """Return the tensor `name` as float32; ValueError unless it is there, of that shape, float and finite."""
        if name not in self._tensors:
            raise ValueError(f"{self.path}: no tensor {name!r}; wanted one of shape {shape}")
        x = self._tensors[name]
        if x.shape != shape:
            raise ValueError(f"{self.path}: {name} has shape {x.shape}; wanted {shape}")
        if x.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(f"{self.path}: {name} has dtype {x.dtype}; wanted floats")
        x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            raise ValueError(f"{self.path}: {name} holds NaN or infinity")
        return x
