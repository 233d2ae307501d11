"""Hold one output against the float64 oracle: the sound bound, the statistics, the score tests, and where it is wrong.

`Analysis` is what the oracle says of a problem, reduced to what the comparison needs, so that many kernels can be held
against the same one; `judge` compares an output with it.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention import scores
from refattn.testing.attention.backward import backward_errors, slopes
from refattn.testing.attention.forward import Units, forward_errors
from refattn.testing.attention.oracle import declared_lse, declared_output, truth
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract
from refattn.testing.formats import LARGEST, UNIT
from refattn.testing.session import Output
from refattn.testing.thresholds import Thresholds, regime, thresholds
from refattn.testing.verdicts import Picture


@dataclass(frozen=True)
class Part:
    """What is right for one array, and how far from it a correct kernel may be."""

    want: Array
    """Its numbers; NaN and inf where they belong."""
    bound: Array
    sigma: Array | None = None
    free: Array | None = None
    """bool: where anything goes."""
    exact: Array | None = None
    """bool: where the bits must be those of `want`."""
    largest: float = math.inf
    """What lies beyond this overflows to inf."""


@dataclass(frozen=True)
class Analysis:
    """What the oracle says of one problem under one contract."""

    parts: dict[str, Part]
    directions: dict[str, list[scores.Direction]]
    """The score tests of each part."""
    rows: tuple[Array, Array] | None
    """For the test of each row's factor: o / sigma², and the deviation of the error along it."""
    normal: bool
    limits: Thresholds


@dataclass
class Findings:
    """What the comparison found."""

    wrong: list[str] = field(default_factory=list)
    """Provable: sentences."""
    suspect: dict[str, str] = field(default_factory=dict)
    """Statistical: the name of the test, and a sentence."""
    figures: dict[str, float] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)


def analyse(p: Problem, contract: Contract) -> Analysis:
    """Return what is right for a problem, with bounds, deviations and the directions of the score tests."""
    limits = thresholds(contract, backward=p.do is not None)
    with np.errstate(all="ignore"):
        if p.do is not None:
            return _backward(p, contract, limits)
        t = truth(p, contract)
        errors = forward_errors(t, contract)
        want = declared_output(p, contract, t)
        largest = LARGEST[contract.numerics["out"]]
        blind = np.broadcast_to(t.blind[..., None], want.shape)
        free = blind if contract.blind_rows == "any" else None
        exact = blind if contract.blind_rows == "zero" else None
        parts = {"o": Part(want, errors["bound"], errors["sigma"], free, exact, largest)}
        lse = declared_lse(contract, p, t)
        parts["lse"] = Part(lse, errors["lse_bound"], free=t.blind if contract.lse_blind == "any" else None)
        if not p.normal:
            return Analysis(parts, {}, None, False, limits)
        sigma, u = errors["sigma"], Units.of(contract)
        model = scores.Model(t, u, sigma, errors["e2"])
        found = [scores.direction(name, d, sigma, model) for name, d in scores.directions(p, contract, t)]
        rows = None
        if regime(contract) == "half" and want.shape[-1] >= 16 and want[..., 0].size >= 64:
            weighed = np.nan_to_num(t.o) / sigma**2
            rows = weighed, np.sqrt(model.along(weighed))
        return Analysis(parts, {"o": [d for d in found if d is not None]}, rows, True, limits)


def _backward(p: Problem, contract: Contract, limits: Thresholds) -> Analysis:
    s = slopes(p, contract)
    parts, found = {}, {}
    for name, e in backward_errors(p, contract, s).items():
        blind = np.broadcast_to(s.t.blind[..., None], e["o"].shape) if name == "dq" else None
        largest = LARGEST[contract.numerics["out"]] if name in ("dq", "dk", "dv") else math.inf
        parts[name] = Part(e["o"], e["bound"], e["sigma"], exact=blind, largest=largest)
        if p.normal and name in ("dq", "dk", "dv"):
            d = scores.direction("amplitude", e["o"], e["sigma"])
            found[name] = [] if d is None else [d]
    return Analysis(parts, found, None, p.normal, limits)


def judge(analysis: Analysis, output: Output, contract: Contract) -> Findings:
    """Compare an output with the analysis of its problem."""
    findings = Findings()
    for name, part in analysis.parts.items():
        if name in output.parts and not (name == "lse" and contract.lse is None):
            with np.errstate(all="ignore"):
                _judge_part(name, part, output[name], analysis, contract, findings)
    return findings


def _judge_part(name: str, part: Part, got: Array, analysis: Analysis, contract: Contract, findings: Findings) -> None:
    if got.size == 0:
        return
    bound = part.bound
    if name == "lse" and contract.lse == "base2":
        finite = np.isfinite(got)
        got = np.where(finite, got * np.log(got.dtype.type(2)), got)
        bound = bound + 2 * UNIT[contract.numerics["acc"]] * np.abs(np.where(np.isfinite(part.want), part.want, 0))
    free = np.zeros(got.shape, bool) if part.free is None else part.free
    special = ~np.isfinite(part.want) & ~free
    same = (got == part.want) | (np.isnan(got) & np.isnan(part.want))
    overflows = np.abs(part.want) + bound >= part.largest
    stray = ~np.isfinite(got) & ~special & ~free & ~overflows
    if stray.any() or (special & ~same).any():
        lost = stray | (special & ~same)
        findings.wrong.append(
            f"{name}{_place(lost)} is {got[_index(lost)]}; wanted {_number(part.want, lost)}{_many(lost)}"
        )
        findings.figures[f"{name}_nonfinite"] = float(lost.sum())
    if part.exact is not None:
        moved = part.exact & (got != 0) & ~special & ~stray
        if moved.any():
            what = "sees nothing, and is not 0"
            findings.wrong.append(f"{name}{_place(moved)} {what} but {got[_index(moved)]:.4g}{_many(moved)}")
    live = ~free & ~special & ~stray & np.isfinite(got)
    error = np.where(live, got - np.where(live, part.want, 0), 0)
    share = np.where(error == 0, 0, np.abs(error) / np.maximum(bound, 1e-300))
    worst = _index(share == share.max())
    findings.figures["bound" if name == "o" else f"{name}_bound"] = float(share.max())
    if share.max() > 1:
        over = share > 1
        findings.wrong.append(
            f"{name}{list(worst)} is {got[worst]:.7g}; wanted {part.want[worst]:.7g} to {bound[worst]:.2g}: "
            f"{over.sum()} of {over.size} beyond the bound, the worst {share[worst]:.3g} times; {where(over)}"
        )
        if over.ndim >= 3:
            map_ = np.log10(np.maximum(share, 1e-3)).astype(np.float64)
            map_ = (
                map_.reshape(-1, *map_.shape[2:]).max(axis=-1) if over.ndim == 4 else map_.reshape(-1, map_.shape[-1])
            )
            findings.pictures.append(Picture(f"log10(error / bound) of {name}", map_, rows="head", columns="token"))
    if analysis.normal and part.sigma is not None:
        _statistics(name, part.sigma, error, live, analysis, findings)


def _statistics(name: str, sigma: Array, error: Array, live: Array, analysis: Analysis, findings: Findings) -> None:
    limits = analysis.limits
    z = np.abs(error / sigma)[live].astype(np.float64)
    if z.size == 0:
        return
    prefix = "" if name == "o" else f"{name}_"
    rms, largest = float(np.sqrt((z**2).mean())), float(z.max())
    findings.figures |= {f"{prefix}z_rms": rms, f"{prefix}z_max": largest}
    if rms > limits.z_rms and z.size >= 32:
        findings.suspect[f"{prefix}z_rms"] = f"the error of {name} is {rms:.3g} times what its rounding explains"
    if largest > limits.z_max:
        place = list(_index(np.where(live, np.abs(error) / sigma, 0) >= largest))
        findings.suspect[f"{prefix}z_max"] = f"{name}{place} is {largest:.3g} standard deviations off"
    if not live.all():
        error = np.where(live, error, 0)
    if name == "o" and analysis.rows is not None:
        rows = scores.row_scales(error, *analysis.rows)
        findings.figures["row_scale"] = rows
        if rows > limits.row_scale:
            findings.suspect["row_scale"] = f"each row of o is off by a factor of its own (mean T² = {rows:.3g})"
    for direction in analysis.directions.get(name, []):
        what = direction.name
        theta, t = direction.estimate(error)
        if abs(t) > limits.score and abs(theta) > limits.theta:
            findings.suspect[f"{prefix}{what}"] = (
                f"{what.replace('_', ' ')} of {name} is off by {theta:+.2e} (T = {t:+.0f})"
            )
            findings.figures[f"{prefix}{what}"] = theta


def where(over: Array) -> str:
    """Say in which head, queries and channels the errors are, if they are not everywhere.

    Examples
    --------
    >>> over = np.zeros((2, 4, 130, 16), bool)
    >>> over[:, 3, 128:] = True
    >>> where(over)
    'all in head 3, tokens 128-129'
    """
    if over.ndim < 3:
        return "everywhere"
    axes = {"sequence": 0, "head": 1, "token": 2} | ({"channel": 3} if over.ndim == 4 else {})
    words = []
    for name, axis in axes.items():
        hit = np.flatnonzero(over.any(axis=tuple(a for a in range(over.ndim) if a != axis)))
        n = over.shape[axis]
        if len(hit) == n or n == 1:
            continue
        if len(hit) == 1:
            words.append(f"{name} {hit[0]}")
        elif len(hit) == hit[-1] - hit[0] + 1:
            words.append(f"{name}s {hit[0]}-{hit[-1]}")
        elif name in ("token", "channel") and len(hit) > 2:
            steps = np.unique(np.diff(hit))
            words.append(
                f"every {steps[0]}th {name} from {hit[0]}" if len(steps) == 1 else f"{len(hit)} of {n} {name}s"
            )
        else:
            words.append(f"{name}s {', '.join(str(x) for x in hit[:6])}")
    return "all in " + ", ".join(words) if words else "everywhere"


def _index(where_: Array) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(int(np.argmax(where_)), where_.shape))


def _place(where_: Array) -> list[int]:
    return list(_index(where_))


def _number(x: Array, where_: Array) -> str:
    return f"{float(x[_index(where_)]):.7g}"


def _many(where_: Array) -> str:
    return f" ({where_.sum()} such places, {where(where_)})" if where_.sum() > 1 else ""
