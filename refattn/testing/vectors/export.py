"""`export_vectors`: write calls of every operation, with what they should return, for programs in any language."""

import math
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dispatch import OPERATIONS, REFERENCE, use_backend
from refattn.testing.bounds import BOUNDS
from refattn.testing.cases import DTYPES, cases, dtypes_here
from refattn.testing.vectors import folder, manifest, storage
from refattn.testing.vectors.choose import LEVELS, Given, Vector, choose
from refattn.testing.vectors.errors import EXACT, expected
from refattn.testing.vectors.manifest import MANIFEST, Entry
from refattn.testing.vectors.storage import STORAGES, Stored, stored

SUFFIX = {"npz": ".npz", "safetensors": ".safetensors"}


def export_vectors(
    dir: str | Path,
    ops: Iterable[str] | None = None,
    level: str = "quick",
    format: str = "npz",
    dtypes: Iterable[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write golden vectors: inputs, results in float64, and how far each number may be off and is expected to be.

    The folder gets a manifest.json, which lists the entries with their arrays and options, and the arrays in the format
    asked for. `check_vectors` judges what another program computed from them. ``bound`` is what no correct kernel
    exceeds, ``sigma`` the standard deviation that one expects; `refattn.testing.vectors.errors` says of what each is
    made. The same arguments give the same bytes. The folder appears whole, or not at all.

    Parameters
    ----------
    dir : str or Path
        A folder to create, or one that holds older vectors and is replaced; an ``outputs`` folder in it stays.
    ops : names, optional
        Operations; all of them unless given.
    level : str
        "quick": a choice of small calls that covers every option. "standard": every case, hundreds of megabytes.
    format : str
        "npz" or "safetensors": a file per entry; "bin": one vectors.bin, which refattn_vectors.h reads in C.
    dtypes : names, optional
        float32, bfloat16, float16, float64; the first two unless given, all at the standard level.
    seed : int
        Another seed gives other numbers in the same shapes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError, LookupError
        For a level, format, dtype, seed or operation that there is not.
    FileExistsError
        If the folder holds something else.
    ImportError
        If bfloat16 or safetensors is asked for and its package is missing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = export_vectors(f"{folder}/vectors", ops=["rope"])
    ...     (found / "manifest.json").is_file(), (found / "vectors" / "rope__theta__float32.npz").is_file()
    (True, True)
    """
    chosen_ops, chosen_dtypes = _asked(ops, level, format, dtypes)
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(f"export_vectors: seed is {seed}; wanted 0 or more")
    target = Path(dir).resolve()
    folder.refuse(target)
    if format == "safetensors":
        storage.safetensors([])  # says what to install before anything is computed
    why = {op: reason for op in chosen_ops if (reason := _lacks(op)) is not None}
    if ops is not None and why:
        raise LookupError("; ".join(f"export_vectors: {reason}" for reason in why.values()))
    with use_backend(REFERENCE):
        calls = [vector for op in chosen_ops if op not in why for vector in choose(op, level, chosen_dtypes)]
        written = [_entry(vector, seed, format) for vector in calls]
    files, entries = _files(written, format)
    about = {"storage": format, "level": level, "seed": seed, "not_exported": why}
    folder.write(target, {**files, MANIFEST: manifest.dump(entries, about, files)})
    return target


def _asked(
    ops: Iterable[str] | None, level: str, format: str, dtypes: Iterable[str] | None
) -> tuple[list[str], tuple[str, ...] | None]:
    for what, given, allowed in (("level", level, LEVELS), ("format", format, STORAGES)):
        if given not in allowed:
            raise ValueError(f"export_vectors: {what} is {given!r}; wanted one of {', '.join(allowed)}")
    for what, names in (("ops", ops), ("dtypes", dtypes)):
        if isinstance(names, str):
            raise TypeError(f"export_vectors: {what} is one text, {names!r}; wanted a list of names")
    chosen = sorted(OPERATIONS) if ops is None else list(dict.fromkeys(ops))
    for op in chosen:
        if op not in OPERATIONS:
            raise LookupError(f"export_vectors: no operation {op!r}; there are: {', '.join(sorted(OPERATIONS))}")
    if dtypes is None:
        return chosen, None
    named = tuple(dict.fromkeys(dtypes))
    for dtype in named:
        if dtype not in DTYPES:
            raise ValueError(f"export_vectors: no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        if dtype not in dtypes_here():
            raise ImportError(
                f"vectors in {dtype} need the package ml_dtypes: python -m pip install ml_dtypes", name="ml_dtypes"
            )
    return chosen, named


def _lacks(operation: str) -> str | None:
    """Return why an operation is not exported, or None."""
    for form in ("_recurrent", "_chunked"):
        meaning = operation.removesuffix(form)
        if meaning != operation and meaning in OPERATIONS:
            return f"{operation} means the same as {meaning}, whose vectors serve it"
    if not cases(operation, "quick"):
        return f"{operation} has no cases in refattn.testing"
    return None if operation in BOUNDS else f"{operation} has no bound in refattn.testing.bounds"


def _entry(vector: Vector, seed: int, format: str) -> tuple[Entry, list[Stored]]:
    """Return one entry, its arrays not yet placed in a file."""
    case, given = vector.case, vector.given(seed)
    results = expected(vector, given)
    put_in = inputs(given, case.operation)
    put_in = {f"given_{name}" if name in results else name: x for name, x in put_in.items()}  # indices in and out
    found = [stored(name, "input", x) for name, x in put_in.items()]
    outputs = {}
    for name, e in results.items():
        outputs[name] = e.dtype
        found.append(stored(name, "output", e.want.astype(e.dtype if e.dtype in EXACT else np.float64)))
        found += [stored(f"{what}_{name}", what, _up(getattr(e, what))) for what in ("bound", "sigma")]
    names = [x.name for x in found]
    if len(set(names)) < len(names):
        raise ValueError(f"export_vectors: {case.id} has an input and a result of the same name: {', '.join(names)}")
    options = {name: plain for name, x in given.kwargs.items() if (plain := _plain(x)) is not None}
    stem = case.id.replace("/", "__")
    file = "vectors.bin" if format == "bin" else f"vectors/{stem}{SUFFIX[format]}"
    normal = all(
        _looks_normal(x) for name, x in put_in.items() if name not in ("o", "lse")
    )  # results of a forward pass
    return Entry(case.id, case.operation, case.dtype, file, normal, vector.cut, options, given.mask, outputs), found


def inputs(given: Given, operation: str) -> dict[str, Array]:
    """Return the arrays among the arguments by name: parts[0] = (o, lse) is parts_0_o and parts_0_lse."""

    def flat(name: str, x: Any) -> dict[str, Array]:
        if isinstance(x, np.ndarray):
            return {name: x}
        if not isinstance(x, tuple | list):
            return {}
        pair = len(x) == 2 and all(isinstance(y, np.ndarray) for y in x)
        names = getattr(x, "_fields", ("o", "lse") if pair else range(len(x)))
        return {key: z for n, y in zip(names, x, strict=True) for key, z in flat(f"{name}_{n}", y).items()}

    return {key: y for name, x in given.named(operation).items() for key, y in flat(name, x).items()}


def _plain(x: Any) -> Any:
    """Return an option that is no array as JSON can hold it."""
    if x is None or isinstance(x, np.ndarray):
        return None
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, tuple | list):
        return [_plain(y) for y in x]
    return x if isinstance(x, str | bool | int | float) else getattr(x, "__name__", repr(x))


def _up(x: Array) -> Array:
    """Return float32 numbers that are not smaller."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = x.astype(np.float32)
    return np.where(narrow < x, np.nextafter(narrow, np.float32(np.inf)), narrow)


def _looks_normal(x: Array) -> bool:
    """Return whether numbers could be a sample of the standard normal distribution, or of one a little narrower."""
    if x.dtype == bool or x.dtype.kind in "iu" or x.size == 0:
        return True
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all() or np.abs(wide).max() > 6.5:
        return False
    many = len(np.unique(wide)) >= min(wide.size // 4, 64)
    return many and (wide.size < 32 or 0.05 < math.sqrt(float((wide**2).mean())) < 1.5)


def _files(written: list[tuple[Entry, list[Stored]]], format: str) -> tuple[dict[str, bytes], list[Entry]]:
    """Return the bytes of each file, and the entries with the places of their arrays."""
    files: dict[str, bytes] = {}
    places: list[dict[str, int]] = [{} for _ in written]
    if format == "bin":
        files["vectors.bin"], places = storage.binary(written)
    else:
        write = {"npz": storage.npz, "safetensors": storage.safetensors}[format]
        files = {entry.file: write(found) for entry, found in written}
    entries = []
    for (entry, found), where in zip(written, places, strict=True):
        about = {
            x.name: {"role": x.role, "dtype": x.dtype, "shape": list(x.array.shape)}
            | ({"offset": where[x.name]} if where else {})
            for x in found
        }
        entries.append(Entry(**{**entry.__dict__, "arrays": about}))
    return files, entries
