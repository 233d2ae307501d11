"""Hold one output against the recurrence in float64: the bound, the statistics, the score tests, and where it fails."""

import math
from dataclasses import dataclass

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.forward import Units, rounded, spread_of
from refattn.testing.attention.judge import Findings
from refattn.testing.contract import Contract
from refattn.testing.formats import LARGEST, TINY, UNIT
from refattn.testing.recurrence.models import rough_result
from refattn.testing.recurrence.oracle import truth
from refattn.testing.recurrence.problem import Problem
from refattn.testing.recurrence.rough import Rough
from refattn.testing.recurrence.scores import directions
from refattn.testing.session import Output
from refattn.testing.verdicts import Picture

Z_RMS = {"half": 1.3, "single": 4.0}
Z_MAX = {"half": 7.0, "single": 25.0}
SCORE = 9.0
THETA = {"bfloat16": 2e-4, "float16": 2e-5, "tf32": 2e-5, "float32": 2e-6, "float64": 4e-15}
"""From where on a statistic speaks against a kernel; |T| and |θ| of a score test both must. Correct kernels, token by
token and by chunks, stay below."""

NAMES = {"B": "sequence", "T": "token", "D": "key", "W": "channel", "P": "channel", "E": "channel", "N": "state"}
NAMES |= dict.fromkeys("HGVO", "head") | {"J": "tap"}


@dataclass(frozen=True)
class Part:
    """What is right for one array, and how far from it a correct kernel may be."""

    axes: str
    want: Array
    bound: Array
    sigma: Array
    largest: float
    """What lies beyond this overflows to inf."""


@dataclass(frozen=True)
class Analysis:
    """What the oracle says of one problem under one contract."""

    parts: dict[str, Part]
    directions: list[tuple[str, Array]]
    """The score tests of o."""
    normal: bool


def analyse(p: Problem, contract: Contract) -> Analysis:
    """Return what is right for a problem, with bounds, deviations and the directions of the score tests."""
    with np.errstate(all="ignore"):
        o, states = truth(p, contract)
        rough = rough_result(p, contract)
        u, out = Units.of(contract), contract.numerics["out"]
        near = np.asarray(o, np.float64)
        sigma = spread_of(rough[0].s2 + u.tiny_out**2, near, u, out)
        bound = _unless_nan(rounded(rough[0].e, near, u.out, u.tiny_out))
        parts = {"o": Part(p.family.o, o, bound, sigma, LARGEST[out])}
        kept = "float64" if contract.dtype == "float64" else "float32"
        for f, want, r in zip(p.family.states, states, rough[1:], strict=True):
            parts[f.name] = _state(f.axes, want, r, kept)
        found = []
        if p.scored and o.size:
            found = [(name, np.nan_to_num(np.asarray(d, np.float64))) for name, d in directions(p, contract, o)]
            found = [(name, d) for name, d in found if np.isfinite(_size(d, sigma)) and _size(d, sigma) > 0]
    return Analysis(parts, found, p.normal)


def _size(d: Array, sigma: Array) -> float:
    return float((d * d / sigma**2).sum())


def _unless_nan(e: Array) -> Array:
    return np.where(np.isnan(e), np.inf, e)


def _state(axes: str, want: Array, r: Rough, kept: str) -> Part:
    e = _unless_nan(r.e)
    e = e + np.where(e > 0, UNIT[kept] * np.abs(r.x) + TINY[kept], 0)  # a copied number has no error
    sigma = np.sqrt(r.s2 + (UNIT[kept] * r.x) ** 2 / 3 + TINY[kept])
    return Part(axes, want, np.broadcast_to(e, want.shape), np.broadcast_to(sigma, want.shape), LARGEST[kept])


def judge(analysis: Analysis, output: Output, contract: Contract) -> Findings:
    """Compare an output with the analysis of its problem."""
    findings = Findings()
    with np.errstate(all="ignore"):
        for name, part in analysis.parts.items():
            if output.parts[name].size:
                live, error = _bounded(name, part, output[name], findings)
                if analysis.normal:
                    _statistics(name, part, error, live, contract, findings)
                    if name == "o":
                        _scores(analysis, part.sigma, np.where(live, error, 0), contract, findings)
    return findings


def _bounded(name: str, part: Part, got: Array, findings: Findings) -> tuple[Array, Array]:
    """Hold every element against its bound; return which are numbers, and their errors."""
    special = ~np.isfinite(part.want)
    same = (got == part.want) | (np.isnan(got) & np.isnan(part.want))
    overflows = np.abs(part.want) + part.bound >= part.largest
    stray = ~np.isfinite(got) & ~special & ~overflows
    lost = stray | (special & ~same)
    if lost.any():
        at = first(lost)
        many = f" ({lost.sum()} such places, {where(lost, part.axes)})" if lost.sum() > 1 else ""
        findings.wrong.append(f"{name}{list(at)} is {got[at]}; wanted {part.want[at]:.7g}{many}")
    live = ~special & np.isfinite(got)
    error = np.where(live, got - np.where(live, part.want, 0), 0)
    share = np.where(error == 0, 0, np.abs(error) / np.maximum(part.bound, 1e-300))
    findings.figures["bound" if name == "o" else f"{name}_bound"] = float(share.max())
    over = share > 1
    if over.any():
        at = first(share == share.max())
        findings.wrong.append(
            f"{name}{list(at)} is {got[at]:.7g}; wanted {part.want[at]:.7g} to {part.bound[at]:.2g}: "
            f"{over.sum()} of {over.size} beyond the bound, the worst {share[at]:.3g} times; {where(over, part.axes)}"
        )
        if name == "o":
            map_ = np.log10(np.maximum(share, 1e-3)).astype(np.float64)
            rows = map_.max(axis=-1).reshape(-1, map_.shape[part.axes.index("T")])
            findings.pictures.append(Picture("log10(error / bound) of o", rows, rows="head", columns="token"))
    return live, error


def _statistics(name: str, part: Part, error: Array, live: Array, contract: Contract, findings: Findings) -> None:
    z = np.abs(error / part.sigma)[live].astype(np.float64)
    if z.size == 0:
        return
    kind, prefix = _regime(contract, name), "" if name == "o" else f"{name}_"
    rms, largest = float(np.sqrt((z**2).mean())), float(z.max())
    findings.figures |= {f"{prefix}z_rms": rms, f"{prefix}z_max": largest}
    if rms > Z_RMS[kind] and z.size >= 64:
        findings.suspect[f"{prefix}z_rms"] = f"the error of {name} is {rms:.3g} times what its rounding explains"
    if largest > Z_MAX[kind]:
        place = list(first(np.where(live, np.abs(error) / part.sigma, 0) >= largest))
        findings.suspect[f"{prefix}z_max"] = f"{name}{place} is {largest:.3g} standard deviations off"


def _regime(contract: Contract, name: str) -> str:
    """Return "half" where the rounding of the result, or of operands, is most of its error, else "single"."""
    n = contract.numerics
    narrow = ("float16", "bfloat16", "tf32")
    return "half" if n["products"] in narrow or n["p"] in narrow or (name == "o" and n["out"] in narrow) else "single"


def _scores(analysis: Analysis, sigma: Array, error: Array, contract: Contract, findings: Findings) -> None:
    n = contract.numerics
    least = THETA["bfloat16" if n["p"] == "bfloat16" else n["products"] or n["out"]]
    for what, d in analysis.directions:
        weighed = d / sigma**2
        size, along = float((weighed * d).sum()), float((weighed * error).sum())
        theta, t = along / size, along / math.sqrt(size)
        if abs(t) > SCORE and abs(theta) > least:
            findings.suspect[what] = f"{what.replace('_', ' ')} of o is off by {theta:+.2e} (T = {t:+.0f})"
            findings.figures[what] = theta


def first(found: Array) -> tuple[int, ...]:
    """Return the place of the first True."""
    return tuple(int(n) for n in np.unravel_index(int(np.argmax(found)), found.shape))


def where(over: Array, axes: str) -> str:
    """Say in which heads, tokens and channels the errors are, if they are not everywhere.

    Examples
    --------
    >>> over = np.zeros((2, 4, 130, 16), bool)
    >>> over[:, 3, 128:] = True
    >>> where(over, "BHTW")
    'all in head 3, tokens 128-129'
    """
    words = []
    for axis, letter in enumerate(axes):
        hit = np.flatnonzero(over.any(axis=tuple(a for a in range(over.ndim) if a != axis)))
        n, name = over.shape[axis], NAMES[letter]
        if len(hit) == n or n == 1:
            continue
        if len(hit) == 1:
            words.append(f"{name} {hit[0]}")
        elif len(hit) == hit[-1] - hit[0] + 1:
            words.append(f"{name}s {hit[0]}-{hit[-1]}")
        elif len(hit) > 2 and len(np.unique(np.diff(hit))) == 1:
            words.append(f"every {hit[1] - hit[0]}th {name} from {hit[0]}")
        else:
            words.append(f"{len(hit)} of {n} {name}s" if len(hit) > 6 else f"{name}s {', '.join(map(str, hit))}")
    return "all in " + ", ".join(words) if words else "everywhere"
