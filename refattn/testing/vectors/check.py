"""`check_vectors`: judge what another program computed from golden vectors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.formats import decode
from refattn.testing.thresholds import Thresholds, thresholds
from refattn.testing.vectors.errors import EXACT
from refattn.testing.vectors.manifest import OUTPUTS, Entry, Vectors
from refattn.testing.vectors.outputs import Outputs, Unreadable
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS, SUSPECT, Report, Result

ENOUGH = 32
"""Numbers from which on their root mean square means something."""


def check_vectors(dir: str | Path, outputs: str | Path | Mapping[str, Any] | None = None) -> Report:
    """Judge the outputs that a program computed from golden vectors.

    For the entry ``attention/causal/float32`` it leaves one of these in the folder of outputs:

    - ``attention__causal__float32.npz`` or ``.safetensors``, the results under their names (o, lse, dq ...);
    - ``attention__causal__float32.o.bin``, a file per result: its numbers in C order, little-endian, nothing else.

    The dtype is that of the result in the manifest (bfloat16 as uint16 in npz), or a wider one: float32 or float64.

    An entry fails if a result is missing, has another shape, NaN or inf in other places, or a number beyond its bound.
    Where all inputs are normal it is suspect if the errors are larger than sigma says; the limits are those of
    `refattn.testing.thresholds`. An entry without outputs is not run, and a report without any is not ok.

    Parameters
    ----------
    dir : str or Path
        A folder that `export_vectors` wrote.
    outputs : str, Path or mapping, optional
        Another folder of outputs than ``outputs`` in `dir`; or the outputs themselves, as a mapping from an entry's id
        to its result: an array, a tuple, or a mapping from names to arrays.

    Returns
    -------
    Report
        One result per entry.

    Raises
    ------
    FileNotFoundError, ValueError
        If the vectors themselves are missing, damaged, or of an unknown version.

    Examples
    --------
    >>> import tempfile
    >>> from refattn.testing.vectors import export_vectors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = export_vectors(folder, ops=["rope"], dtypes=["float32"])
    ...     report = check_vectors(found, {"rope/one_head_2d/float32": np.zeros((9, 8), np.float32)})
    >>> report.ok, report.count("FAIL")
    (False, 1)
    """
    vectors = Vectors(dir)
    vectors.data  # noqa: B018  a damaged file is an error, whether it is needed or not
    given = Outputs(vectors.folder / OUTPUTS if outputs is None else outputs, vectors.entries)
    report = Report(given.name, None, vectors.level, vectors.seed, call=f"rt.check_vectors({str(dir)!r})")
    for entry in vectors.entries:
        start = time.perf_counter()
        verdict, message, figures = _judge(vectors, entry, given)
        report.results.append(Result(entry.id, verdict, message, figures, time.perf_counter() - start))
    report.results += [Result(name, NOT_RUN, f"not exported: {why}") for name, why in vectors.not_exported.items()]
    report.complaints += given.complaints()
    if vectors.entries and report.count(NOT_RUN) == len(report.results):
        report.complaints.append(f"there is no output for any entry in {given.name}")
    return report


@dataclass(frozen=True)
class _Found:
    """What came of comparing one result."""

    share: float
    """The largest error as a share of its bound."""
    wrong: str = ""
    suspect: str = ""
    z: tuple[float, float] | None = None
    """Root mean square and largest of error / sigma."""


def _judge(vectors: Vectors, entry: Entry, given: Outputs) -> tuple[str, str, dict[str, float]]:
    try:
        got = given.of(entry)
    except Unreadable as error:
        return FAIL, str(error), {}
    if got is None:
        return NOT_RUN, f"no output for {entry.id}: {given.wanted(entry)}", {}
    stored = vectors.load(entry)
    backward = entry.operation.endswith("_vjp")
    wrong, suspect, figures = [], [], {}
    for name, dtype in entry.outputs.items():
        if name not in got:
            wrong.append(f"{name} is missing among the outputs: {', '.join(got) or 'there are none'}")
            continue
        want, bound, sigma = stored[name], stored[f"bound_{name}"], stored[f"sigma_{name}"]
        try:
            x, want = widened(got[name], dtype, want.shape), want.astype(np.float64)
        except ValueError as error:
            wrong.append(f"{name} {error}")
            continue
        limits = thresholds(Contract(dtype=dtype), backward) if entry.normal and dtype not in EXACT else None
        found = _compare(name, x, want, bound.astype(np.float64), sigma.astype(np.float64), limits)
        wrong += [found.wrong] * bool(found.wrong)
        suspect += [found.suspect] * bool(found.suspect)
        prefix = "" if name == "o" else f"{name}_"
        figures["bound" if name == "o" else f"{name}_bound"] = found.share
        if found.z is not None:
            figures |= {f"{prefix}z_rms": found.z[0], f"{prefix}z_max": found.z[1]}
    extra = [name for name in got if name not in entry.outputs]
    if extra:
        wrong.append(f"there is no result {', '.join(extra)}; wanted {', '.join(entry.outputs)}")
    if wrong or suspect:
        return (FAIL if wrong else SUSPECT), "; ".join([*wrong, *suspect]), figures
    return PASS, "", figures


def widened(x: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return a result as float64; ValueError says what is wrong with its dtype or shape."""
    x = np.asarray(x)
    if x.shape != shape:
        raise ValueError(f"has shape {x.shape}; wanted {shape}")
    if dtype == "bfloat16" and x.dtype in (np.dtype(np.uint16), np.dtype("V2")):  # V2 is what npz makes of ml_dtypes
        return decode(np.ascontiguousarray(x).view(np.uint16).reshape(shape), "bfloat16")
    if dtype in EXACT:
        if x.dtype.kind not in "iub":
            raise ValueError(f"is {x.dtype}; wanted {dtype}")
        return x.astype(np.float64)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise ValueError(f"is {x.dtype}; wanted {dtype}, or float32 or float64")
    return x.astype(np.float64)


def _compare(name: str, got: Array, want: Array, bound: Array, sigma: Array, limits: Thresholds | None) -> _Found:
    special = ~np.isfinite(want)
    free = np.isinf(bound)  # where the result may overflow
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    lost = (special & ~same) | (~np.isfinite(got) & ~special & ~(free & ~np.isnan(got)))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(special | free | ~np.isfinite(got), 0, np.abs(got - want))
        share = np.where(error == 0, 0, error / bound)  # beside a bound of 0 any error is infinitely large
    share[lost] = np.inf
    if share.size == 0:
        return _Found(0.0)
    worst = np.unravel_index(int(np.argmax(share)), share.shape)
    wrong = ""
    if share[worst] > 1:
        place, many = [int(n) for n in worst], int((share > 1).sum())
        times = "" if np.isinf(share[worst]) else f", the worst {share[worst]:.3g} times"
        wrong = (
            f"{name}{place} is {got[worst]:.7g}; wanted {want[worst]:.7g} to {bound[worst]:.2g}: "
            f"{many} of {share.size} beyond the bound{times}"
        )
    live = (sigma > 0) & ~lost
    if limits is None or not live.any():
        return _Found(float(share[worst]), wrong)
    z = error[live] / sigma[live]
    rms, largest = float(np.sqrt((z**2).mean())), float(z.max())
    suspect = ""
    if rms > limits.z_rms * (1 + 2 / np.sqrt(z.size)) and z.size >= ENOUGH:  # of few numbers it varies by itself
        suspect = f"the error of {name} is {rms:.3g} times what its rounding explains"
    elif largest > limits.z_max:
        suspect = f"{name} is {largest:.3g} standard deviations off somewhere"
    return _Found(float(share[worst]), wrong, suspect, (rms, largest))
