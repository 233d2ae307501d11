"""What the operations on state spaces refuse, before any backend sees it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refattn.arrays import check_count, check_floats, check_shape
from refattn.linear.common import check_packing, check_wide

Check = Callable[..., None]
Want = tuple[Any, tuple[int, ...], str]
"""An argument, the shape that it must have, and that in letters."""


def check_selective_scan(operation: str) -> Check:
    """Return the check of `selective_scan` and its other forms."""

    def check(*arrays: Any, **given: Any) -> None:
        found = by_name(operation, ("u", "delta", "A", "B", "C"), arrays, given)
        u, A = found["u"], found["A"]
        check_floats(operation, 2, u=u)
        E, lead = u.shape[-1], check_borders(operation, found.get("cu_seqlens"), u)
        N = check_matrix(operation, "A", A, E, "(E, N)")
        tokens, row = (u.shape, "(..., T, E)"), ((*u.shape[:-1], N), "(..., T, N)")
        same = {"z": (found.get("z"), *tokens), "do": (found.get("do"), *tokens)}
        same |= {"B": (found["B"], *row), "C": (found["C"], *row)}
        wide = {"delta": (found["delta"], *tokens), "A": (A, A.shape, "(E, N)")}
        wide |= {name: (found.get(name), (E,), "(E,)") for name in ("D", "delta_bias")}
        wide |= {name: (found.get(name), (*lead, E, N), "that of the state") for name in STATES}
        check_like(operation, "u", u, same, wide, ("z", "D", "delta_bias", *STATES))
        check_decaying(operation, "A", A)
        check_flag(operation, "delta_softplus", found.get("delta_softplus", False))
        check_count(operation, "chunk", found.get("chunk", 1))

    return check


def check_ssd(operation: str) -> Check:
    """Return the check of `ssd` and its other forms."""

    def check(*arrays: Any, **given: Any) -> None:
        found = by_name(operation, ("x", "dt", "A", "B", "C"), arrays, given)
        x, B = found["x"], found["B"]
        check_floats(operation, 2, x=x, B=B)
        check_packing(operation, found.get("cu_seqlens"), x)
        H, G = (1, 1) if x.ndim == 2 else (x.shape[-3], B.shape[-3] if B.ndim > 2 else 0)
        if H == 0 or G == 0 or H % G or B.ndim != x.ndim or B.shape[-1] == 0:
            raise ValueError(
                f"{operation}: x has shape {x.shape} and B {B.shape}; wanted (..., H, T, P) and (..., G, T, N), "
                "H a multiple of G, and N >= 1"
            )
        lead = x.shape[:-2] if found.get("cu_seqlens") is None else (len(found["cu_seqlens"]) - 1, *x.shape[:-2])
        row = (*x.shape[:-3], *B.shape[-3:-2], x.shape[-2], B.shape[-1]), "(..., G, T, N)"
        same = {"B": (B, *row), "C": (found["C"], *row)}
        same |= {name: (found.get(name), x.shape, "(..., H, T, P)") for name in ("z", "do")}
        wide = {"dt": (found["dt"], x.shape[:-1], "(..., H, T)")}
        wide |= {name: (found.get(name), (H,), "(H,)") for name in ("A", "D", "dt_bias")}
        state = (*lead, B.shape[-1], x.shape[-1])
        wide |= {name: (found.get(name), state, "that of the state") for name in STATES}
        check_like(operation, "x", x, same, wide, ("z", "D", "dt_bias", *STATES))
        check_decaying(operation, "A", found["A"])
        check_flag(operation, "dt_softplus", found.get("dt_softplus", False))
        check_limit(operation, found.get("dt_limit", (0.0, math.inf)))
        check_count(operation, "chunk", found.get("chunk", 1))

    return check


def check_s4d(operation: str) -> Check:
    """Return the check of `s4d` and its other forms."""
    parameters = ("A_real", "A_imag", "C_real", "C_imag")

    def check(*arrays: Any, **given: Any) -> None:
        found = by_name(operation, ("u", "delta", *parameters), arrays, given)
        u = found["u"]
        check_floats(operation, 2, u=u)
        E = u.shape[-1]
        N = check_matrix(operation, "A_real", found["A_real"], E, "(E, N)")
        same = {"do": (found.get("do"), u.shape, "(..., T, E)")}
        wide: dict[str, Want] = {name: (found.get(name), (E,), "(E,)") for name in ("delta", "D")}
        wide |= {name: (found[name], (E, N), "(E, N)") for name in parameters}
        state = (*u.shape[:-2], E, N, 2)
        wide |= {name: (found.get(name), state, "(..., E, N, 2)") for name in STATES}
        check_like(operation, "u", u, same, wide, ("D", *STATES))
        check_decaying(operation, "A_real", found["A_real"])
        for name in ("delta", *parameters):
            if np.isinf(found[name]).any():
                raise ValueError(f"{operation}: {name} holds an infinity; wanted finite numbers")
        if (found["delta"] < 0).any():
            raise ValueError(f"{operation}: delta holds {found['delta'].min()}; wanted step sizes, at least 0")

    return check


def check_causal_conv1d(operation: str) -> Check:
    """Return the check of `causal_conv1d` and its derivative."""

    def check(*arrays: Any, **given: Any) -> None:
        vjp = operation.endswith("_vjp")
        if len(arrays) == 3 + vjp:
            arrays, given = arrays[:-1], {"bias": arrays[-1], **given}
        found = by_name(operation, ("x", "weight"), arrays, given)
        x, weight, activation = found["x"], found["weight"], found.get("activation")
        check_floats(operation, 2, x=x)
        E, lead = x.shape[-1], check_borders(operation, found.get("cu_seqlens"), x)
        K = check_matrix(operation, "weight", weight, E, "(E, K)")
        same = {name: (found.get(name), (*lead, K - 1, E), "(..., K - 1, E)") for name in STATES}
        same["do"] = (found.get("do"), x.shape, "(..., T, E)")
        wide = {"weight": (weight, weight.shape, "(E, K)"), "bias": (found.get("bias"), (E,), "(E,)")}
        check_like(operation, "x", x, same, wide, ("bias", *STATES))
        if activation is not None and not (isinstance(activation, str) and activation == "silu"):
            raise ValueError(f"{operation}: activation is {activation!r}; wanted 'silu' or None")

    return check


STATES = ("initial_state", "dstate")


def by_name(operation: str, names: Sequence[str], arrays: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; for a derivative (``..._vjp``) `do` comes first."""
    names = ["do"] * operation.endswith("_vjp") + list(names)
    found = dict(zip(names, arrays, strict=False)) | given
    if len(arrays) > len(names) or not found.keys() >= set(names):
        raise TypeError(f"{operation}: wanted {', '.join(names)}")
    return found


def check_like(
    operation: str, name: str, x: Any, same: dict[str, Want], wide: dict[str, Want], optional: Sequence[str]
) -> None:
    """Refuse other shapes; `same` must have the dtype of x, `wide` may have the one that it is computed in."""
    optional = optional if operation.endswith("_vjp") else [*optional, "do"]
    same, wide = (
        {n: want for n, want in wants.items() if n not in optional or want[0] is not None} for wants in (same, wide)
    )
    check_floats(operation, 0, **{name: x}, **{n: want[0] for n, want in same.items()})
    for n, (y, shape, letters) in (same | wide).items():
        if n in wide:
            check_wide(operation, n, y, x)
        check_shape(operation, n, y, shape, letters)


def check_matrix(operation: str, name: str, x: Any, rows: int, letters: str) -> int:
    """Refuse a parameter that is no matrix of `rows` rows and at least one column; return its columns."""
    check_floats(operation, 0, **{name: x})
    if x.ndim != 2 or x.shape[0] != rows or x.shape[1] == 0:
        raise ValueError(f"{operation}: {name} has shape {tuple(x.shape)}; wanted {letters}, {rows} rows")
    return int(x.shape[1])


def check_decaying(operation: str, name: str, x: Any) -> None:
    """Refuse positive A: trained as -e^(log A), it is never, and the state would grow."""
    if (x > 0).any():
        raise ValueError(f"{operation}: {name} holds {x.max()}; wanted -exp(A_log), at most 0")


def check_flag(operation: str, name: str, x: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{operation}: {name} is {x!r}; wanted True or False")


def check_limit(operation: str, limit: Any) -> None:
    """Refuse limits of step sizes that are not 0 <= low <= high."""
    numbers = isinstance(limit, tuple | list) and len(limit) == 2
    if not numbers or not all(isinstance(x, int | float | np.integer | np.floating) for x in limit):
        raise TypeError(f"{operation}: dt_limit is {limit!r}; wanted two numbers (low, high)")
    low, high = limit
    if not 0 <= low <= high or math.isinf(low):
        raise ValueError(f"{operation}: dt_limit is {limit}; wanted 0 <= low <= high, and a finite low")


def check_borders(operation: str, cu_seqlens: Any, x: Any) -> tuple[int, ...]:
    """Refuse bad borders of packed channels (T, E); return the leading axes of a state."""
    check_packing(operation, cu_seqlens, x)
    if cu_seqlens is None:
        return tuple(x.shape[:-2])
    if x.ndim > 2:
        raise ValueError(f"{operation}: packed sequences have no batch axes, got an array of shape {x.shape}")
    return (len(cu_seqlens) - 1,)
