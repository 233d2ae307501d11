"""How far each exported result may be off, and how far one expects it to be: `bound` and `sigma` per element.

- attention, flash_attention, attention_split_kv and their derivatives: the error model of the kit
  (`refattn.testing.attention.forward` and `.backward`), for a kernel that rounds P to the dtype of its inputs; where a
  soft cap is differentiated, sigma is at least what `noise` gives;
- every other operation: its entry in `refattn.testing.bounds.BOUNDS`, `SLACK` units of the dtype of computation wide,
  plus the rounding of the result; sigma of rope and merge_attention by counting roundings (`sigma`), and of the rest by
  running the reference with roundings put in by chance (`noise`).

A bound of 0 asks for the exact number; inf says that the result may overflow there. Sigma is 0 where there is no error
to expect: where the result is NaN, infinite, exact, or may overflow.
"""

import math
import zlib
from typing import Any

import numpy as np

import refattn
from refattn.arrays import Array
from refattn.dense.common import sum_to
from refattn.dispatch import OPERATIONS, REFERENCE
from refattn.testing.attention.backward import backward_errors, slopes
from refattn.testing.attention.forward import SHARE, Sizes, Units, forward_errors, score_variance, spread_of
from refattn.testing.attention.oracle import Truth, truth
from refattn.testing.attention.problem import Problem, problem
from refattn.testing.bounds import BOUNDS, SLACK
from refattn.testing.calls import as_float64
from refattn.testing.comparison import leaves, quietly
from refattn.testing.contract import Contract
from refattn.testing.formats import LARGEST, TINY, UNIT, ulp
from refattn.testing.noise import spread
from refattn.testing.vectors.choose import Given, Vector
from refattn.testing.vectors.sigma import merge_variance, rope_variance

FORWARD = ("attention", "flash_attention", "attention_split_kv")
BACKWARD = ("attention_vjp", "flash_attention_vjp")
SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


EXACT = ("int64", "bool")
"""Dtypes of results that are chosen, not computed: which keys, which buckets. They must be the same."""


class Expected:
    """One result: what it should be, in which dtype, and how far off it may be."""

    def __init__(self, want: Array, dtype: str, bound: Array, sigma: Array) -> None:
        self.want, self.dtype, self.bound, self.sigma = want, dtype, bound, sigma
        if dtype in EXACT:
            return
        special = ~np.isfinite(want)
        with np.errstate(all="ignore"):
            overflows = ~special & (np.abs(want) + bound >= LARGEST[dtype])
        self.bound = np.where(special, 0, np.where(overflows, np.inf, bound))
        self.sigma = np.where(special | overflows, 0, sigma)


def expected(vector: Vector, given: Given) -> dict[str, Expected]:
    """Return every result of a call by name; a single one is called o."""
    operation, dtype = vector.case.operation, vector.case.dtype
    args, kwargs = as_float64(given.args), {name: as_float64(x) for name, x in given.kwargs.items()}
    run = getattr(refattn, operation, OPERATIONS[operation])
    wants = results(quietly(run, args, {**kwargs, "backend": REFERENCE}))
    dtypes = {name: x.dtype.name for name, x in results(quietly(run, given.args, given.kwargs)).items()}
    if operation in (*FORWARD, *BACKWARD):
        with np.errstate(all="ignore"):
            found = _attention(given.named(operation), dtype, operation in BACKWARD, wants, dtypes)
        if operation in BACKWARD and "softcap" in kwargs:
            _widen(found, _measured(vector.case.id, operation, args, kwargs, wants, _unit(wants, dtypes)))
        return found
    return _others(vector.case.id, operation, args, kwargs, wants, dtypes)


def results(result: Any) -> dict[str, Array]:
    """Return the arrays of a result by name, without those that were not asked for."""
    found = {("o" if name == "result" else name): x for name, x in leaves(result) if x is not None}
    return {name: np.asarray(x) for name, x in found.items()}


def _unit(wants: dict[str, Array], dtypes: dict[str, str]) -> float:
    return UNIT["float64" if dtypes[next(iter(wants))] == "float64" else "float32"]


def _widen(found: dict[str, Expected], variances: dict[str, Array]) -> None:
    """Let sigma be what was measured where that is more: at a saturated cap 1 - tanh² has few digits left."""
    for name, e in found.items():
        e.sigma = np.where(e.sigma > 0, np.maximum(e.sigma, np.sqrt(variances[name])), 0)


def _attention(
    names: dict[str, Any], dtype: str, backward: bool, wants: dict[str, Array], dtypes: dict[str, str]
) -> dict[str, Expected]:
    p, contract = attention_problem(names, dtype)
    t = truth(p, contract)
    blind = np.broadcast_to(t.blind[..., None], (*p.q.shape[:-1], 1))
    if backward:
        errors = backward_errors(p, contract, slopes(p, contract))
        errors["dq"] |= {what: np.where(blind, 0, errors["dq"][what]) for what in ("bound", "sigma")}
    else:
        errors = {"o": forward_errors(t, contract) | {"o": t.o}}
        errors["lse"] = {"o": t.lse, "bound": errors["o"].pop("lse_bound"), "sigma": lse_sigma(t, contract)}
        errors["o"] |= {what: np.where(blind, 0, errors["o"][what]) for what in ("bound", "sigma")}
    found = {}
    for name, want in wants.items():
        e = errors[name] if errors[name]["o"].size == want.size else _summed(errors[name], names, want.shape, dtype)
        true, bound, sigma = (e[what].reshape(want.shape).astype(np.float64) for what in ("o", "bound", "sigma"))
        if dtype == "float64":  # the oracle has more digits than the reference
            want = np.where(np.isfinite(want), true, want)
        if name in ("dbias", "dsinks") and dtypes[name] not in ("float32", "float64"):
            bound = bound + UNIT[dtypes[name]] * (np.abs(want) + bound) + TINY[dtypes[name]]
            sigma = np.sqrt(sigma**2 + ulp(want, dtypes[name]) ** 2 / 12)
        found[name] = Expected(want, dtypes[name], bound, sigma)
    return found


def _summed(e: dict[str, Array], names: dict[str, Any], shape: tuple[int, ...], dtype: str) -> dict[str, Array]:
    """Add up the errors of a bias that was spread over more than one batch axis."""
    scores = (*names["q"].shape[:-1], names["k"].shape[-2])
    parts = {what: sum_to(np.abs(e[what]).reshape(scores), shape) for what in ("o", "bound")}
    terms = math.prod(scores) / max(1, math.prod(shape))
    return {
        "o": sum_to(e["o"].reshape(scores), shape),
        "bound": parts["bound"] + terms * UNIT["float64" if dtype == "float64" else "float32"] * parts["o"],
        "sigma": np.sqrt(sum_to(e["sigma"].reshape(scores) ** 2, shape)),
    }


def attention_problem(names: dict[str, Any], dtype: str) -> tuple[Problem, Contract]:
    """Return a call of the attention family as the kit's problem (B, H, T, D), and the contract that goes with it."""
    q, k = names["q"], names["k"]
    scores = (*q.shape[:-1], k.shape[-2])
    B = math.prod(q.shape[:-3])

    def heads(x: Array, tail: int) -> Array:
        x = np.where(np.isfinite(x), x, np.zeros((), x.dtype))  # who sees it has no bound, and nobody else may notice
        return x.reshape(B, x.shape[-tail - 1] if x.ndim > tail else 1, *x.shape[x.ndim - tail :])

    def pairs(x: Array) -> Array:
        x = x if x.dtype == bool else np.where(np.isnan(x), np.zeros((), x.dtype), x)
        return x if q.ndim <= 4 else np.broadcast_to(x, scores).reshape(B, *scores[-3:])

    options: dict[str, Any] = {
        name: names[name] for name in ("scale", "softcap", "sinks", "dropout_p") if name in names
    }
    options |= {name: pairs(names[name]) for name in ("mask", "bias", "dropout_mask") if name in names}
    if "dlse" in names:
        options["dlse"] = heads(names["dlse"], 1)
    tile = names.get("tile_k", 64)
    if "num_splits" in names:
        tile = -(-k.shape[-2] // names["num_splits"])
    op = "attention_vjp" if "do" in names else "attention"
    contract = Contract(op=op, dtype=dtype, tile=max(1, min(64, tile)))
    do = heads(names["do"], 2) if "do" in names else None
    return problem(contract, *(heads(names[name], 2) for name in ("q", "k", "v")), do=do, **options), contract


def lse_sigma(t: Truth, contract: Contract) -> Array:
    """Return sigma of the log-sum-exp: the errors of the scores, of the sum and of the logarithm as independent."""
    u = Units.of(contract)
    e2 = score_variance(t, u, Sizes.of(t, u))
    p2 = t.p**2
    lse, m = np.where(t.blind, 0, t.lse), t.m[..., 0]
    tilt = (t.p * np.where(t.visible, t.product * t.slope, 0)).sum(axis=-1)  # the scale, rounded once for all
    var = (p2 * e2).sum(axis=-1) + SHARE * u.acc**2 * (u.tile / 2 * p2.sum(axis=-1) + lse**2 + m**2 + 3 + 3 * tilt**2)
    var = var + SHARE * u.acc**2 * (t.p_sink[..., 0] ** 2 * (m**2 + 4))
    wide = "float64" if contract.dtype == "float64" else "float32"
    return np.where(t.blind, 0, spread_of(var, lse, Units(**{**u.__dict__, "out": UNIT[wide]}), wide))


def _others(
    id: str, operation: str, args: Any, kwargs: dict[str, Any], wants: dict[str, Array], dtypes: dict[str, str]
) -> dict[str, Expected]:
    unit = _unit(wants, dtypes)
    limits = results(quietly(BOUNDS[operation], (2 * unit, *args), kwargs))
    variances = _variances(id, operation, args, kwargs, wants, unit)
    found = {}
    for name, want in wants.items():
        dtype = dtypes[name]
        if dtype in EXACT:
            found[name] = Expected(want, dtype, np.zeros(want.shape), np.zeros(want.shape))
            continue
        bound = SLACK * 2 * unit * np.broadcast_to(limits[name], want.shape)
        bound = bound + UNIT[dtype] * np.abs(want) + SMALLEST[dtype] * (want != 0)
        last = ulp(np.where(np.isfinite(want), want, 0), dtype)  # the one rounding that is known exactly
        sigma = np.sqrt(variances[name] + last**2 / 12)
        found[name] = Expected(want, dtype, bound, np.where(bound == 0, 0, sigma))
    return found


def _variances(
    id: str, operation: str, args: Any, kwargs: dict[str, Any], wants: dict[str, Array], unit: float
) -> dict[str, Array]:
    if operation == "merge_attention":
        return merge_variance(args, kwargs.get("sinks"), wants, unit)
    if operation in ("rope", "rope_vjp"):
        return {"o": rope_variance(args[0], args[1], wants["o"], unit, **kwargs)}
    return _measured(id, operation, args, kwargs, wants, unit)


def _measured(
    id: str, operation: str, args: Any, kwargs: dict[str, Any], wants: dict[str, Array], unit: float
) -> dict[str, Array]:
    """Return the mean square of the errors of runs with roundings put in by chance; what is chosen stays chosen."""
    chosen = {name: want for name, want in wants.items() if want.dtype.name in EXACT}
    if chosen:
        kwargs = {name: x for name, x in kwargs.items() if name != "rotations"} | chosen
    runs = [results(run) for run in spread(OPERATIONS[operation], args, kwargs, unit, [zlib.crc32(id.encode())])]
    with np.errstate(all="ignore"):
        return {
            name: np.mean([(np.nan_to_num(np.asarray(run[name]) - want)) ** 2 for run in runs], axis=0)
            for name, want in wants.items()
            if name not in chosen
        }
