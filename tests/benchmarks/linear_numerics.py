"""Measure the error of the linear-time family where numbers are extreme, against its written bound.

    python tests/benchmarks/linear_numerics.py --out docs/results/linear_numerics

Each cell is the largest error of o and the state in float32, against the recurrence in float64 on the same numbers, as
a share of the bound in `refattn.testing.bounds` (which the conformance cases enforce): above 1 would be wrong. The
forms are NumPy's parallel, recurrent and chunked one, and the Numba backend. What is not finite counts as infinite.
"""

import argparse
import inspect
import json
from pathlib import Path

import numpy as np

import refattn
from refattn.costs.machine import facts
from refattn.testing.bounds import BOUNDS, SLACK

H, D, P, N = 2, 16, 8, 8
OPERATIONS = (
    *("linear_attention", "retention", "simple_gla", "gated_linear_attention", "hgrn2", "delta_rule"),
    *("gated_delta_rule", "kda", "ssd", "selective_scan", "rwkv5", "rwkv6", "rwkv7", "rwkv4"),
)
EXTREMES = {
    "usual, T = 300": {"T": 300},
    "T = 1": {"T": 1},
    "T = 63": {"T": 63},
    "decays of -20, T = 4,096": {"T": 4096, "decay": -20.0},
    "decays of -1e-4, T = 4,096": {"T": 4096, "decay": -1e-4},
    "gates of -inf": {"T": 300, "forget": 0.05},
    "beta, a: 0 and 1": {"T": 300, "corners": True},
    "keys of norm 1e3": {"T": 300, "norm": 1e3},
    "border mid-chunk": {"T": 300, "cu_seqlens": np.array([0, 100, 100, 201, 300])},
}
TAKES = {
    "decay": ("log_decay", "dt"),
    "corners": ("beta", "a"),
    "forget": ("log_decay",),
    "norm": ("k", "B"),
    "cu_seqlens": ("cu_seqlens",),
}


def names_of(operation):
    return list(inspect.signature(getattr(refattn, operation)).parameters)


def draw(operation, extreme, rng):
    """Return (positional arguments, keywords) in float32, or None where the operation has no such argument."""
    said, names = EXTREMES[extreme], names_of(operation)
    if any(key in said and not set(TAKES[key]) & set(names) for key in TAKES):
        return None
    T, arguments = said["T"], []
    batch = () if "cu_seqlens" in said else (1,)
    shapes = {"q": (H, T, D), "k": (H, T, D), "v": (H, T, P), "r": (H, T, D), "kappa_hat": (H, T, D), "a": (H, T, D)}
    shapes |= {"beta": (H, T), "x": (H, T, P), "dt": (H, T), "A": (H,), "B": (1, T, N), "C": (1, T, N), "u": (H, D)}
    shapes["log_decay"] = {
        "retention": (H,), "rwkv5": (H, D), "simple_gla": (H, T), "gated_delta_rule": (H, T)
    }.get(operation, (H, T, D))  # fmt: skip
    if operation == "selective_scan":
        shapes |= {"u": (T, D), "delta": (T, D), "A": (D, N), "B": (T, N), "C": (T, N)}
    if operation == "rwkv4":
        shapes |= {"w": (D,), "u": (D,), "k": (T, D), "v": (T, D)}
    whole = ("A", "w", "u") if operation != "selective_scan" else ("A",)
    positional = [name for name in names if name in shapes or name in ("delta", "w")]
    for name in positional:
        per_head = name in whole or (name == "log_decay" and operation in ("retention", "rwkv5"))
        x = rng.standard_normal(shapes[name] if per_head else (*batch, *shapes[name]))
        if name in ("log_decay", "A"):
            x = -0.15 * np.exp(x)
        if name in ("dt", "delta", "w"):
            x = 0.2 * np.exp(0.5 * x)
        if name in ("beta", "a"):
            x = 1 / (1 + np.exp(-x))
        if name == "kappa_hat" or (name == "k" and "beta" in names):
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
        if name == "log_decay" and "decay" in said:
            x[...] = said["decay"]
        if name == "dt" and "decay" in said:
            x[...] = -said["decay"]
        if name == "A" and "decay" in said:
            x[...] = -1
        if name == "log_decay" and "forget" in said:
            x[rng.random(x.shape) < said["forget"]] = -np.inf
        if name in ("beta", "a") and "corners" in said:
            x = np.round(x)
        if name in ("k", "B") and "norm" in said:
            x *= said["norm"] / np.linalg.norm(x, axis=-1, keepdims=True)
        if name == "beta" and "norm" in said:
            x /= said["norm"] ** 2  # a step of beta |k|² <= 1: beyond 2 the recurrence itself grows without bound
        arguments.append(x.astype(np.float32))
    return arguments, {"cu_seqlens": said["cu_seqlens"]} if "cu_seqlens" in said else {}


def parts(result):
    state = result.state
    return [result.o, *(state if isinstance(state, tuple) else (state,))]


def share(got, want, bound):
    """Return the largest error as a share of what is allowed."""
    worst = 0.0
    for x, y, b in zip(parts(got), parts(want), parts(bound), strict=True):
        if (np.isfinite(x) != np.isfinite(y)).any():
            return float("inf")
        fine = np.isfinite(y)
        eps = np.finfo(np.float32).eps
        allowed = SLACK * eps * np.broadcast_to(b, x.shape) + eps / 2 * abs(y) + np.finfo(np.float32).smallest_subnormal
        with np.errstate(invalid="ignore"):
            worst = max(worst, float(np.where(fine, abs(x - y) / allowed, 0).max(initial=0)))
    return worst


def cells(operation, extreme, rng):
    drawn = draw(operation, extreme, rng)
    if drawn is None:
        return None
    arguments, keywords = drawn
    wide = [x.astype(np.float64) for x in arguments]
    want = getattr(refattn, f"{operation}_recurrent")(*wide, **keywords)
    found = {}
    with np.errstate(all="ignore"):
        bound = BOUNDS[operation](np.finfo(np.float32).eps, *wide, **keywords)
        for form in ("", "_recurrent", "_chunked"):
            if hasattr(refattn, operation + form) and (form or EXTREMES[extreme]["T"] < 1000):
                result = getattr(refattn, operation + form)(*arguments, **keywords)
                found[form.strip("_") or "parallel"] = share(result, want, bound)
        found["numba"] = share(getattr(refattn, operation)(*arguments, **keywords, backend="numba"), want, bound)
    return found


def table(found, machine):
    head = [
        "# Errors at the extremes",
        "",
        "Largest error in float32 as a share of the written bound: parallel / recurrent / chunked in NumPy, and Numba.",
        "A dash: no such form, or no such argument; the parallel form is left out at T = 4,096, where it is too large.",
        "",
        "| operation | " + " | ".join(EXTREMES) + " |",
        "|---|" + "---|" * len(EXTREMES),
    ]
    lines = []
    for operation in OPERATIONS:
        texts = []
        for extreme in EXTREMES:
            cell = found[operation][extreme]
            shares = [] if cell is None else [cell.get(form) for form in ("parallel", "recurrent", "chunked", "numba")]
            texts.append(" / ".join("-" if x is None else f"{x:.2f}" for x in shares) or "-")
        lines.append(f"| {operation} | {' | '.join(texts)} |")
    return "\n".join([*head, *lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    found = {}
    for operation in OPERATIONS:
        found[operation] = {extreme: cells(operation, extreme, np.random.default_rng(0)) for extreme in EXTREMES}
        print(operation, found[operation], flush=True)
    machine = "; ".join(facts(["numba"]).values()) + "."
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "shares": found}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(found, machine))
    print("\n" + table(found, machine))
    worst = [x for cells in found.values() for cell in cells.values() if cell for x in cell.values()]
    if max(worst) > 1:
        raise SystemExit(f"an error is {max(worst):.3g} times its bound")


if __name__ == "__main__":
    main()
