"""Three ways to store the same arrays: a file of npz or safetensors per entry, or one vectors.bin for all.

Every array has a name within its entry: inputs and options have those of the signature, results their own, and beside
a result o are ``bound_o`` and ``sigma_o``. The bytes depend on the arrays alone: no dates, a fixed order. bfloat16 is
BF16 in safetensors; elsewhere it is uint16, the bits, and the manifest says what they mean.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.arrays import Array

if TYPE_CHECKING:
    from refattn.testing.vectors.manifest import Entry

VERSION = 1
"""Of the manifest and of vectors.bin; a reader refuses others."""
STORAGES = ("npz", "safetensors", "bin")
CODES = {"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4, "int64": 6, "bool": 8}
"""Dtypes of stored arrays, as vectors.bin numbers them."""
ROLES = ("input", "output", "bound", "sigma")


@dataclass(frozen=True)
class Stored:
    """One array of an entry."""

    name: str
    role: str
    dtype: str
    """float32, float64, float16, bfloat16, int64 or bool."""
    array: Array
    """In C order; bfloat16 as uint16."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype in which an array of that name is stored, little-endian."""
    return np.dtype("<u2" if name == "bfloat16" else name).newbyteorder("<")


def stored(name: str, role: str, x: Any) -> Stored:
    """Return an array ready to be written; integers become int64."""
    x = np.asarray(x)
    dtype = "int64" if x.dtype.kind in "iu" else x.dtype.name
    if dtype not in CODES:
        raise TypeError(f"export_vectors: {name} is {x.dtype}; wanted one of {', '.join(CODES)}")
    bits = np.ascontiguousarray(x).view(np.uint16) if dtype == "bfloat16" else x
    return Stored(name, role, dtype, np.array(bits, numpy_dtype(dtype), order="C").reshape(x.shape))


def npz(arrays: list[Stored]) -> bytes:
    """Return a compressed npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for x in arrays:
            member = io.BytesIO()
            np.lib.format.write_array(member, x.array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{x.name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            file.writestr(info, member.getvalue())
    return buffer.getvalue()


def safetensors(arrays: list[Stored]) -> bytes:
    """Return a safetensors file; ImportError says what to install."""
    save = _safetensors().numpy.save
    tensors = {}
    for x in arrays:
        tensors[x.name] = x.array
        if x.dtype == "bfloat16":
            import ml_dtypes

            tensors[x.name] = x.array.view(ml_dtypes.bfloat16)
    return bytes(save(tensors))


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'vectors in the format "safetensors" need the package safetensors: python -m pip install "refattn[models]"'
        ) from error
    return safetensors


def binary(entries: "list[tuple[Entry, list[Stored]]]") -> tuple[bytes, list[dict[str, int]]]:
    """Return vectors.bin, as refattn_vectors.h describes it, and the offsets of each entry's arrays."""
    size = len(_index(entries, [dict.fromkeys((x.name for x in arrays), 0) for _, arrays in entries]))
    offsets: list[dict[str, int]] = []
    for _, arrays in entries:
        found = {}
        for x in arrays:
            size += -size % 16
            found[x.name] = size
            size += x.array.nbytes
        offsets.append(found)
    whole = bytearray(size)
    index = _index(entries, offsets, size)
    whole[: len(index)] = index
    for (_, arrays), found in zip(entries, offsets, strict=True):
        for x in arrays:
            whole[found[x.name] : found[x.name] + x.array.nbytes] = x.array.tobytes()
    return bytes(whole), offsets


def _index(entries: "list[tuple[Entry, list[Stored]]]", offsets: list[dict[str, int]], size: int = 0) -> bytes:
    def text(x: str) -> bytes:
        raw = x.encode() + b"\0"
        return struct.pack("<I", len(raw)) + raw

    out = bytearray(b"RFVC" + struct.pack("<IQI", VERSION, size, len(entries)))
    for (entry, arrays), places in zip(entries, offsets, strict=True):
        out += text(entry.id) + text(entry.operation) + text(entry.dtype) + struct.pack("<I", entry.normal)
        numbers = {name: float(x) for name, x in entry.options.items() if isinstance(x, bool | int | float)}
        out += struct.pack("<I", len(numbers))
        for name, number in numbers.items():
            out += text(name) + struct.pack("<d", number)
        out += struct.pack("<I", len(arrays))
        for x in arrays:
            result = CODES[entry.outputs.get(x.name, x.dtype)]
            out += text(x.name) + struct.pack("<IIII", ROLES.index(x.role) + 1, CODES[x.dtype], result, x.array.ndim)
            out += struct.pack(f"<{x.array.ndim}q", *x.array.shape)
            out += struct.pack("<QQ", places[x.name], x.array.nbytes)
    return bytes(out)


def read(storage: str, data: bytes, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Array]:
    """Return the arrays of one entry from the bytes of its file; ValueError for what is not as the manifest says."""
    if storage == "bin":
        return {name: _slice(data, name, about) for name, about in arrays.items()}
    found = read_npz(data) if storage == "npz" else read_safetensors(data)
    for name, about in arrays.items():
        x = found.get(name)
        want = f"{about['dtype']} {tuple(about['shape'])}"
        if x is None:
            raise ValueError(f"it has no array {name}, {want}")
        if x.dtype != numpy_dtype(about["dtype"]) or x.shape != tuple(about["shape"]):
            raise ValueError(f"its array {name} is {x.dtype} {x.shape}; the manifest has {want}")
    return {name: found[name] for name in arrays}


def _slice(data: bytes, name: str, about: Mapping[str, Any]) -> Array:
    dtype, shape, offset = numpy_dtype(about["dtype"]), tuple(about["shape"]), about["offset"]
    count = math.prod(shape)
    if not 0 <= offset <= offset + count * dtype.itemsize <= len(data):
        raise ValueError(f"its array {name} lies beyond the end")
    return np.frombuffer(data, dtype, count, offset).reshape(shape)


def read_npz(data: bytes) -> dict[str, Array]:
    """Return the arrays of an npz file; raise ValueError if it is none."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is no npz file")
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"it is no npz file, or a damaged one: {error}") from error


def read_safetensors(data: bytes) -> dict[str, Array]:
    """Return the arrays of a safetensors file, bfloat16 as uint16; raise ValueError if it is none."""
    package = _safetensors()
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}
    names |= {"I32": "int32", "U8": "uint8", "U16": "uint16"}
    try:
        tensors = package.deserialize(data)
    except package.SafetensorError as error:
        raise ValueError(f"it is no safetensors file, or a damaged one: {error}") from error
    found = {}
    for name, x in tensors:
        if x["dtype"] not in names:
            raise ValueError(f"its array {name} is {x['dtype']}, which is not read here")
        found[name] = np.frombuffer(bytes(x["data"]), numpy_dtype(names[x["dtype"]])).reshape(x["shape"])
    return found
