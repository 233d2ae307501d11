"""Read a model's folder. Whatever is wrong with a file, one error says so and names it."""

import json
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
