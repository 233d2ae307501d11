"""The calls that state spaces and the short convolution are tried on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.testing.calls.family import Call, Family
from refattn.testing.values import Inputs, Rng

Edit = Callable[[Inputs], None]
NAN = np.nan
ALL = "D z bias softplus state"
CU = (0, 3, 3, 10, 12)


def put(**values: Any) -> Edit:
    """Return what puts numbers into arrays: a number for all of it, or (place, number)."""

    def edit(x: Inputs) -> None:
        for name, value in values.items():
            place, number = value if isinstance(value, tuple) else (..., value)
            if name in x:
                x[name][place] = number

    return edit


def _strided(x: Array) -> Array:
    """Return the same numbers, every other one of a larger array, and the axis before the last backwards."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), NAN, x.dtype)
    view = wide[..., ::2] if x.ndim < 2 else wide[..., ::-1, ::2]
    view[...] = x
    return view


def _call(x: Inputs, spec: dict[str, Any], dtype: Any, parameters: str, order: str, vjp: bool) -> Call:
    """Cast, edit and sort the arrays: `parameters` may be wide, those in `order` go by position."""
    spec.get("edit", put())(x)
    wide = compute_dtype(dtype)
    narrow = [] if spec.get("wide") else parameters.split()
    states = ("initial_state", "dstate") if "weight" not in x else ()
    for name, y in x.items():
        kept = name in states or (name in parameters.split() and name not in narrow)
        x[name] = y.astype(wide if kept else dtype)
        if spec.get("strided"):
            x[name] = _strided(x[name])
    if not vjp or "initial_state" not in x:
        x.pop("dstate")
    positional = ("do " * vjp + order).split()
    args = tuple(x.pop(name) for name in positional)
    x.pop("do", None)
    if "cu" in spec:
        x["cu_seqlens"] = np.array(spec["cu"], np.int32)
    return args, x | spec.get("options", {})


def _spec(table: dict[str, dict[str, Any]], name: str, **base: Any) -> tuple[dict[str, Any], tuple[int, ...], str]:
    """Return a problem, the leading axes of its states, and what it is given; "+chunk=4" becomes an option."""
    problem, _, variant = name.partition("+")
    spec = {"batch": (2,), "T": 9, "given": "", **base, **table[problem]}
    if "cu" in spec:
        spec |= {"batch": (), "T": spec["cu"][-1]}
    if variant:
        spec["options"] = {**spec.get("options", {}), "chunk": int(variant.removeprefix("chunk="))}
    return spec, (len(spec["cu"]) - 1,) if "cu" in spec else spec["batch"], spec["given"]


FORGOTTEN = put(A=-np.inf, u=((..., 3, slice(None)), NAN), x=((..., 3, slice(None)), NAN), initial_state=NAN)
SHARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"given": ALL, "wide": True},
    "no_batch": {"batch": (), "given": "D z", "strided": True},
    "two_batch_axes": {"batch": (2, 1), "T": 5, "given": "bias state"},
    "no_tokens": {"T": 0, "given": "z state"},
    "one_token": {"T": 1, "given": ALL},
    "t65": {"T": 65, "batch": (), "given": "softplus state"},
    "fast_t130": {"T": 130, "batch": (), "given": "state", "edit": put(A=-20.0, delta=1.0, dt=1.0)},
    "packed": {"cu": CU, "given": ALL},
    "forgets_nan": {"T": 8, "batch": (), "given": "state", "edit": FORGOTTEN},
    "all_or_nothing": {"given": "D state", "edit": put(A=((..., 0), -np.inf))},
    "nan_seen": {"batch": (), "edit": put(u=((4, 1), NAN), x=((..., 4, 1), NAN))},
}
SCANS = {**SHARED, "still_tokens": {"given": "state", "edit": put(delta=((..., slice(2, 5), slice(None)), 0.0))}}


def _selective(name: str, rng: Rng, dtype: Any, vjp: bool = False) -> Call:
    spec, lead, given = _spec(SCANS, name, E=3, N=2)
    E, N, tokens = spec["E"], spec["N"], (*spec["batch"], spec["T"])
    x: Inputs = {"u": rng.normal(size=(*tokens, E)), "delta": 0.3 * np.exp(0.5 * rng.normal(size=(*tokens, E)))}
    x |= {"A": -np.exp(0.5 * rng.normal(size=(E, N)))}
    x |= {n: rng.normal(size=(*tokens, N)) for n in "BC"}
    x |= {"D": rng.normal(size=E), "z": rng.normal(size=(*tokens, E)), "delta_bias": 0.1 * rng.random(E)}
    x |= {n: rng.normal(size=(*lead, E, N)) for n in ("initial_state", "dstate")} | {
        "do": rng.normal(size=(*tokens, E))
    }
    if "softplus" in given:
        spec["options"] = {"delta_softplus": True, **spec.get("options", {})}
        x["delta"] = rng.normal(size=(*tokens, E))
    for word, argument in (("D", "D"), ("z", "z"), ("bias", "delta_bias"), ("state", "initial_state")):
        if word not in given.split():
            x.pop(argument)
    return _call(x, spec, dtype, "delta A D delta_bias", "u delta A B C", vjp)


SSDS = {
    **SHARED,
    "everything": {**SHARED["everything"], "H": 4, "G": 2},
    "every_head_its_own": {"H": 2, "G": 2, "given": "softplus"},
    "limits": {"given": "bias state", "raw": True, "options": {"dt_limit": (0.0, 0.5)}},
    "limits_softplus": {"given": "softplus bias", "options": {"dt_limit": (0.5, 0.9)}},
    "steps_below_0": {"batch": (), "T": 17, "given": "state", "raw": True},
}


def _ssd(name: str, rng: Rng, dtype: Any, vjp: bool = False) -> Call:
    spec, lead, given = _spec(SSDS, name, H=2, G=1, N=3, P=4)
    H, G, N, P, T, batch = (spec[n] for n in ("H", "G", "N", "P", "T", "batch"))
    heads, groups = ((), ()) if name.startswith("no_batch") else ((H,), (G,))
    H = H if heads else 1
    x: Inputs = {"x": rng.normal(size=(*batch, *heads, T, P)), "A": -np.exp(0.5 * rng.normal(size=H))}
    x |= {"dt": 0.3 * np.exp(0.5 * rng.normal(size=(*batch, *heads, T)))}
    x |= {n: rng.normal(size=(*batch, *groups, T, N)) for n in "BC"}
    x |= {"D": rng.normal(size=H), "dt_bias": 0.1 * rng.normal(size=H)}
    x |= {n: rng.normal(size=(*batch, *heads, T, P)) for n in ("z", "do")}
    x |= {n: rng.normal(size=(*lead, *heads, N, P)) for n in ("initial_state", "dstate")}
    if "softplus" in given or spec.get("raw"):
        x["dt"] = rng.normal(size=x["dt"].shape)
    if "softplus" in given:
        spec["options"] = {"dt_softplus": True, **spec.get("options", {})}
    for word, argument in (("D", "D"), ("z", "z"), ("bias", "dt_bias"), ("state", "initial_state")):
        if word not in given.split():
            x.pop(argument)
    return _call(x, spec, dtype, "dt A D dt_bias", "x dt A B C", vjp)


S4DS: dict[str, dict[str, Any]] = {
    **{n: SHARED[n] for n in ("plain", "everything", "no_batch", "two_batch_axes", "no_tokens", "one_token", "t65")},
    "fast_t130": {"T": 130, "batch": (), "given": "state", "edit": put(A_real=-20.0, delta=1.0)},
    "slow_t40": {"T": 40, "batch": (), "given": "D", "edit": put(delta=1e-3)},
    "no_decay": {"given": "state", "edit": put(A_real=0.0)},
    "a_of_0": {"given": "state", "edit": put(A_real=((..., 0), 0.0), A_imag=((..., 0), 0.0))},
    "steps_of_0": {"given": "state", "edit": put(delta=0.0)},
    "nan_seen": SHARED["nan_seen"],
}


def _s4d(name: str, rng: Rng, dtype: Any, vjp: bool = False) -> Call:
    spec, lead, given = _spec(S4DS, name, E=3, N=2)
    E, N, tokens = spec["E"], spec["N"], (*spec["batch"], spec["T"])
    x: Inputs = {"u": rng.normal(size=(*tokens, E)), "delta": np.exp(rng.uniform(-3, 0, size=E))}
    x |= {"A_real": -np.exp(0.5 * rng.normal(size=(E, N))), "A_imag": np.pi * (np.arange(N) + rng.random((E, 1)))}
    x |= {n: rng.normal(size=(E, N)) for n in ("C_real", "C_imag")} | {"D": rng.normal(size=E)}
    x |= {n: rng.normal(size=(*lead, E, N, 2)) for n in ("initial_state", "dstate")}
    x |= {"do": rng.normal(size=(*tokens, E))}
    for word, argument in (("D", "D"), ("state", "initial_state")):
        if word not in given.split():
            x.pop(argument)
    parameters = "delta A_real A_imag C_real C_imag"
    return _call(x, spec, dtype, f"{parameters} D", f"u {parameters}", vjp)


SILU = {"activation": "silu"}
CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"given": "bias state", "options": SILU, "wide": True},
    "no_batch": {"batch": (), "given": "bias state", "strided": True},
    "two_batch_axes": {"batch": (2, 1), "options": SILU},
    "no_tokens": {"T": 0, "given": "bias state"},
    "one_token": {"T": 1, "given": "state", "options": SILU},
    "one_tap": {"K": 1, "given": "bias state"},
    "two_taps": {"K": 2, "T": 70, "given": "state"},
    "six_taps_t130": {"K": 6, "T": 130, "batch": (), "given": "bias", "options": SILU},
    "packed": {"cu": (0, 2, 2, 9, 10), "given": "bias state", "options": SILU},
    "nan_seen": {"edit": put(x=((0, 4, 1), NAN), initial_state=((1, 2, 0), NAN)), "given": "state"},
    "large": {"given": "bias", "options": SILU, "edit": put(bias=((..., 0), -200.0))},
}


def _conv(name: str, rng: Rng, dtype: Any, vjp: bool = False) -> Call:
    spec, lead, given = _spec(CONVS, name, E=3, K=4)
    E, K, tokens = spec["E"], spec["K"], (*spec["batch"], spec["T"])
    x: Inputs = {"x": rng.normal(size=(*tokens, E)), "weight": rng.normal(size=(E, K)), "bias": rng.normal(size=E)}
    x |= {n: rng.normal(size=(*lead, K - 1, E)) for n in ("initial_state", "dstate")}
    x |= {"do": rng.normal(size=(*tokens, E))}
    for word, argument in (("bias", "bias"), ("state", "initial_state")):
        if word not in given.split():
            x.pop(argument)
    return _call(x, spec, dtype, "weight bias", "x weight", vjp)


TINY = ("everything", "no_batch", "no_tokens", "one_token", "packed", "forgets_nan")


def _family(names: tuple[str, ...], build: Callable[..., Call], quick: tuple[str, ...] = TINY) -> Family:
    return Family(names, build, sixteen=names, quick=quick)


def _forms(operation: str, table: dict[str, Any], build: Callable[..., Call], *extra: str) -> dict[str, Family]:
    """Return the families of a scan, of its recurrent and chunked forms, and of its derivative."""
    some = ("everything", "no_batch", "no_tokens", "one_token", "fast_t130", "packed", "forgets_nan")
    chunked = (
        *("everything+chunk=1", "no_batch+chunk=4", "no_tokens+chunk=3", "one_token+chunk=2"),
        *("t65+chunk=16", "packed+chunk=4", "forgets_nan+chunk=3", "fast_t130+chunk=64"),
    )
    quick = tuple(name for name in chunked if "t65" not in name and "t130" not in name)
    return {
        operation: _family(tuple(table), build),
        f"{operation}_recurrent": _family((*some, *extra), build),
        f"{operation}_chunked": _family((*chunked, *(f"{name}+chunk=4" for name in extra)), build, quick),
        f"{operation}_vjp": _family(tuple(table), partial(build, vjp=True)),
    }


_S4D_TINY = ("plain", "everything", "no_batch", "no_tokens", "one_token", "a_of_0", "steps_of_0")
_CONV_TINY = ("everything", "no_batch", "no_tokens", "one_token", "one_tap", "packed")
FAMILIES: dict[str, Family] = {
    "s4d": _family(tuple(S4DS), _s4d, _S4D_TINY),
    "s4d_recurrent": _family((*_S4D_TINY, "fast_t130"), _s4d, _S4D_TINY),
    "s4d_vjp": _family(tuple(S4DS), partial(_s4d, vjp=True), _S4D_TINY),
    **_forms("selective_scan", SCANS, _selective),
    **_forms("ssd", SSDS, _ssd, "limits", "limits_softplus"),
    "causal_conv1d": _family(tuple(CONVS), _conv, _CONV_TINY),
    "causal_conv1d_vjp": _family(tuple(CONVS), partial(_conv, vjp=True), _CONV_TINY),
}
