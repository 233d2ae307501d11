"""The bytes in which a kernel that is a program of its own gets its arguments and gives its results.

The program reads requests from standard input and writes one answer for each to standard output, until its input ends.
Request and answer have the same form, a message. All numbers are little-endian; nothing is aligned but by the padding
that is named here::

    message    magic    4 bytes   "RFAT"
               version  u32       1
               count    u32       how many entries follow
               zero     u32
    entry      name     16 bytes  ASCII, filled up with zeros, at least one
               dtype    u32       see below
               ndim     u32       0 to 6; 0 is a number
               dims     6 x i64   the first ndim count, the others are 0
               nbytes   u64       product of the dims x size of the dtype
               data     nbytes    in C order
               padding            zeros up to the next multiple of 8

The header of a message has 16 bytes, that of an entry 80.

==== ========= ====  ==== ========= ====
code dtype     size  code dtype     size
==== ========= ====  ==== ========= ====
1    float32   4     6    int64     8
2    float64   8     7    uint8     1
3    float16   2     8    bool      1
4    bfloat16  2     9    uint32    4
5    int32     4
==== ========= ====  ==== ========= ====

A request has the entries q (B, H, Tq, D), k (B, Hk, Tk, D), v (B, Hk, Tk, Dv), before them do if gradients are wanted,
and the options of the case. Options that are numbers have ndim 0: int64 (causal is 0 or 1) or float64. The option
window is two numbers, window_left and window_right, -1 for unbounded; q_offset and seqlens_k are int64 arrays (B,).
Other options (bias, mask, dropout_mask, sinks, alibi_slopes, dlse) are arrays in the dtype and the shape of the case.
An option that the case does not use is absent.

An answer has the entries o (B, H, Tq, Dv) and, if the kernel has it, lse (B, H, Tq); or dq, dk, dv, and dbias and
dsinks for a request with bias and sinks. Or it has one entry "error", uint8, which is a sentence.

A reader in C stands in ``refattn_runner.h`` beside this file. A program in Python is `serve` and a kernel.
"""

import os
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np

from refattn.arrays import Array
from refattn.testing.adapters.common import BACKWARD
from refattn.testing.adapters.dlpack import to_numpy
from refattn.testing.formats import storage

MAGIC = b"RFAT"
VERSION = 1
HEADER = struct.Struct("<4sIII")
ENTRY = struct.Struct("<16sII6qQ")
CODES = {
    **{"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4, "int32": 5, "int64": 6, "uint8": 7, "bool": 8},
    "uint32": 9,
}
NAMES = {code: name for name, code in CODES.items()}
RESULTS = ("o", "lse", "dq", "dk", "dv", "dbias", "dsinks")
PIECE = 1 << 20


class NotAMessage(ValueError):
    """Bytes that do not follow the protocol: `start` has what is none, `cut` says that a message has no end."""

    def __init__(self, sentence: str, start: bytes = b"", cut: bool = False):
        super().__init__(sentence)
        self.start, self.cut = start, cut


class Source(Protocol):
    """Where a message is read from."""

    def read(self, n: int, /) -> bytes:
        """Return up to n bytes, none at the end."""


def write(stream: BinaryIO, entries: Mapping[str, Any]) -> None:
    """Write a message; values are arrays or numbers, and uint16 arrays count as bfloat16."""
    stream.write(encoded(entries))
    stream.flush()


def encoded(entries: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message."""
    parts = [HEADER.pack(MAGIC, VERSION, len(entries), 0)]
    for name, value in entries.items():
        x = np.asarray(value)
        kind = "bfloat16" if x.dtype == np.uint16 else x.dtype.name
        label = name.encode("ascii")
        if len(label) > 15 or kind not in CODES or x.ndim > 6:
            raise ValueError(f"protocol: cannot send {name}: {kind} {x.shape}; wanted {', '.join(CODES)}, up to 6 axes")
        data = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
        dims = (*x.shape, *[0] * (6 - x.ndim))
        parts += [ENTRY.pack(label, CODES[kind], x.ndim, *dims, len(data)), data, bytes(-len(data) % 8)]
    return b"".join(parts)


def read(stream: Source) -> dict[str, Array] | None:
    """Read a message; None at the end of the stream, NotAMessage for anything else."""
    head = _exactly(stream, len(MAGIC), "header", may_end=True)
    if not head:
        return None
    if head != MAGIC:
        raise NotAMessage(f"a message begins with {MAGIC!r}, got {head!r}", head)
    head += _exactly(stream, HEADER.size - len(MAGIC), "header")
    _, version, count, _ = HEADER.unpack(head)
    if version != VERSION:
        raise NotAMessage(f"the version of the message is {version}; wanted {VERSION}")
    entries = {}
    for _ in range(count):
        raw = _exactly(stream, ENTRY.size, "header of an entry")
        label, code, ndim, *dims, nbytes = ENTRY.unpack(raw)
        shape = dims[:ndim]
        if code not in NAMES or ndim > 6 or min(shape, default=0) < 0:
            raise NotAMessage(f"an entry has dtype {code}, ndim {ndim} and dims {dims}")
        dtype = storage("bfloat16") if NAMES[code] == "bfloat16" else np.dtype(NAMES[code])
        if nbytes != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise NotAMessage(f"an entry of {dtype} {tuple(shape)} says that it has {nbytes} bytes")
        data = _exactly(stream, nbytes + -nbytes % 8, "data of an entry")[:nbytes]
        name = label.rstrip(b"\0").decode("ascii", "backslashreplace")
        entries[name] = np.frombuffer(bytearray(data), dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    return entries


def _exactly(stream: Source, n: int, what: str, may_end: bool = False) -> bytes:
    """Read n bytes, however few come at a time; none is allowed where a message may end."""
    got = bytearray()
    while len(got) < n:
        piece = stream.read(min(n - len(got), PIECE))  # a length that is nonsense must not ask for all memory
        if not piece:
            if may_end and not got:
                return b""
            start = bytes(got) if may_end and not MAGIC.startswith(got) else b""
            raise NotAMessage(f"the stream ended within the {what}: {len(got)} of {n} bytes", start, cut=True)
        got += piece
    return bytes(got)


def packed(inputs: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a request."""
    entries: dict[str, Any] = dict(inputs)
    B = next(iter(inputs.values())).shape[0]
    for name, value in options.items():
        if value is None:
            continue
        if name == "window":
            sides = [-1 if side is None else side for side in value]
            entries |= {f"window_{side}": np.int64(n) for side, n in zip(("left", "right"), sides, strict=True)}
        elif name in ("q_offset", "seqlens_k") and np.ndim(value) < 2:
            entries[name] = np.broadcast_to(np.asarray(value, np.int64), B)
        elif isinstance(value, np.ndarray):
            entries[name] = value
        elif isinstance(value, int | np.integer | np.bool_):  # a bool is an int
            entries[name] = np.int64(value)
        elif isinstance(value, float | np.floating):
            entries[name] = np.float64(value)
        else:
            entries[name] = np.asarray(value)
    return entries


def unpacked(entries: Mapping[str, Array]) -> tuple[list[Array], dict[str, Any]]:
    """Return the arrays of a request in their order, and its options."""
    arrays = [entries[name] for name in BACKWARD if name in entries]
    options: dict[str, Any] = {
        name: x.item() if x.ndim == 0 else x for name, x in entries.items() if name not in BACKWARD
    }
    if "causal" in options:
        options["causal"] = bool(options["causal"])
    if "window_left" in options:
        sides = (options.pop("window_left"), options.pop("window_right"))
        options["window"] = tuple(None if side < 0 else side for side in sides)
    return arrays, options


def serve(kernel: Callable[..., Any], stdin: BinaryIO | None = None, stdout: BinaryIO | None = None) -> None:
    """Answer requests with a Python kernel until the input ends.

    What the kernel prints goes to standard error, because standard output belongs to the answers. An exception of the
    kernel is answered as an error.

    Parameters
    ----------
    kernel : callable
        ``kernel(q, k, v, **options)`` that returns o or (o, lse), or ``kernel(do, q, k, v, **options)`` that returns
        (dq, dk, dv[, dbias][, dsinks]).
    stdin, stdout : binary streams, optional
        Those of the process unless given.

    Examples
    --------
    >>> import io
    >>> answer, x = io.BytesIO(), np.ones((1, 1, 1, 1))
    >>> serve(lambda q, k, v: v, io.BytesIO(encoded({"q": x, "k": x, "v": x})), answer)
    >>> list(read(io.BytesIO(answer.getvalue())))
    ['o']
    """
    source = stdin or sys.stdin.buffer
    if stdout is not None:
        _serve(kernel, source, stdout)
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _serve(kernel, source, answers)


def _serve(kernel: Callable[..., Any], source: BinaryIO, answers: BinaryIO) -> None:
    while (entries := read(source)) is not None:
        arrays, options = unpacked(entries)
        try:
            result = to_numpy(kernel(*arrays, **options))
            results = result if isinstance(result, tuple | list) else (result,)
            names = ["o", "lse"]
            if "do" in entries:
                names = ["dq", "dk", "dv", *(f"d{name}" for name in ("bias", "sinks") if name in options)]
            message = encoded(dict(zip(names, results, strict=False)))
        except Exception as error:  # whatever it is, the one who asked is told
            message = encoded({"error": np.frombuffer(f"{type(error).__name__}: {error}".encode(), np.uint8)})
        answers.write(message)
        answers.flush()
