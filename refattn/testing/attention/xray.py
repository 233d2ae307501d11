"""The effective mask of a black box: equal weights over what is visible, and values that say which keys those are.

With q = 0 every visible key weighs the same. With v_j the unit vector of channel j, channel j of o_i is positive where
query i sees key j, and zero where it does not. A backward kernel shows it in dv, with unit vectors in do.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.draw import Draw
from refattn.testing.attention.judge import Findings
from refattn.testing.attention.oracle import visible_pairs
from refattn.testing.attention.problem import Problem, problem
from refattn.testing.checks import Check, Run
from refattn.testing.session import Session
from refattn.testing.verdicts import Picture


def seen_by(session: Session, p: Problem) -> Array:
    """Return which pairs a kernel lets through under a problem's options, bool (B, H, Tq, Tk)."""
    B, H, _, Tq, Tk, D, _ = p.sizes
    width = Draw(np.random.default_rng(0), session.contract).D(64)
    backward = p.do is not None
    n = Tq if backward else Tk
    found = np.zeros((B, H, Tq, Tk), bool)
    options = {name: x for name, x in p.options.items() if name not in session.contract.always}
    q, k = np.zeros((B, H, Tq, D)), np.ones((B, H, Tk, D))
    for first in range(0, n, width):
        count = min(width, n - first)
        marked = np.zeros((B, H, n, width))
        marked[:, :, first + np.arange(count), np.arange(count)] = 1
        if backward:
            call = problem(session.contract, q, k, np.ones((B, H, Tk, width)), do=marked, **options)
            got = session.call(call)["dv"][..., :count]  # (B, H, Tk, count): p_ij of query first + c
            found[:, :, first : first + count] = np.swapaxes(got != 0, -1, -2)
        else:
            call = problem(session.contract, q, k, marked, **options)
            found[..., first : first + count] = session.call(call)["o"][..., :count] != 0
    return found


def compared(run: Run, p: Problem) -> Findings:
    """Compare the mask that a kernel applies with the one that its contract declares."""
    found, wanted = seen_by(run.session, p), visible_pairs(p, run.contract)
    if run.contract.blind_rows != "zero" and p.do is None:  # what stands there says nothing of what was seen
        found = found & wanted.any(axis=-1, keepdims=True)
    leaked, missing = found & ~wanted, wanted & ~found
    if not leaked.any() and not missing.any():
        return Findings()
    b, h = (int(n) for n in np.unravel_index(int((leaked | missing).sum(axis=(2, 3)).argmax()), found.shape[:2]))
    text = f"lets through {leaked.sum()} pairs that are hidden, and hides {missing.sum()} that are visible"
    text += f" (sequence {b}, head {h}: {_first(leaked[b, h], 'sees')}{_first(missing[b, h], 'does not see')})"
    picture = Picture(f"what sequence {b}, head {h} sees", found[b, h], wanted[b, h])
    return Findings(
        wrong=[text], pictures=[picture], figures={"leaked": float(leaked.sum()), "missing": float(missing.sum())}
    )


def _first(pairs: Array, does: str) -> str:
    if not pairs.any():
        return ""
    i, j = (int(n) for n in np.argwhere(pairs)[0])
    return f"query {i} {does} key {j}; "


def masks() -> Iterator[tuple[str, tuple[int, int, int, int], dict[str, Any], str]]:
    """Yield the name, the sizes (B, H, Tq, Tk), the options, and the level of each X-ray."""
    yield "plain", (1, 1, 70, 130), {}, "quick"
    yield "causal", (1, 1, 70, 130), {"causal": True}, "quick"
    yield "causal_square", (1, 1, 130, 130), {"causal": True}, "standard"
    yield "causal_more_queries", (1, 1, 90, 50), {"causal": True}, "quick"
    yield "window", (1, 1, 130, 200), {"causal": True, "window": (33, 0)}, "quick"
    yield "window_sides", (1, 1, 70, 70), {"window": (9, 4)}, "quick"
    yield "window_left", (1, 1, 70, 90), {"window": (9, None)}, "standard"
    yield "window_right", (1, 1, 70, 90), {"window": (None, 4)}, "standard"
    yield "window_tile", (1, 1, 200, 200), {"causal": True, "window": (64, 0)}, "standard"
    yield "seqlens", (3, 1, 3, 130), {"seqlens_k": [1, 64, 77]}, "quick"
    yield "seqlens_causal", (3, 1, 40, 130), {"seqlens_k": [1, 64, 77], "causal": True}, "quick"
    yield "seqlens_window", (2, 1, 40, 130), {"seqlens_k": [50, 77], "window": (12, 5)}, "standard"
    yield "offset", (2, 1, 40, 130), {"causal": True, "q_offset": [3, 60]}, "quick"
    yield "offset_window", (2, 1, 40, 130), {"window": (12, 5), "q_offset": [3, 60]}, "standard"
    yield "splits", (1, 1, 9, 130), {"num_splits": 3}, "quick"
    yield "splits_causal", (1, 1, 90, 130), {"num_splits": 4, "causal": True}, "standard"


def xray_checks(op: str) -> list[Check]:
    """Return the X-rays of a kernel as checks."""
    return [_check(op, *mask) for mask in masks() if not (op.endswith("_vjp") and "num_splits" in mask[2])]


def _check(op: str, name: str, sizes: tuple[int, int, int, int], options: dict[str, Any], level: str) -> Check:
    def look(run: Run) -> Findings:
        B, H, Tq, Tk = sizes
        draw = Draw(np.random.default_rng(0), run.contract)
        q, k, v = draw.qkv(B, H, H, Tq, Tk)
        lengths = options.get("seqlens_k")
        own = options if lengths is None else options | {"seqlens_k": [min(n, k.shape[2]) for n in lengths]}
        do = np.zeros((*q.shape[:3], v.shape[3])) if op.endswith("_vjp") else None
        return compared(run, problem(run.contract, q, k, v, do=do, **own))

    return Check(f"{op}/xray_{name}", look, tuple(options), level=level)
