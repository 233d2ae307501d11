"""Time against the number of tokens, from a thousand to a million: what is linear stays linear.

    python tests/benchmarks/linear_growth.py --out docs/results/linear_growth

One head (selective_scan: 64 channels), D = Dv = 64, float32, on the numba backend. Softmax attention and a window stand
beside the linear-time family; softmax attention stops where a call would take longer than --limit seconds. Each point
is the fastest of a few calls; before the first, the output of the last 32 of 4,096 tokens is held against the float64
reference. The slope is that of log time over log T, from 16,384 tokens on. Needs matplotlib for the picture.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import refattn
from refattn import masks
from refattn.costs.machine import facts

D, E, N = 64, 64, 16
LENGTHS = (*(2**n for n in range(10, 20)), 1_000_000)
FROM = 16384


def calls(T):
    """Return {name: (operation, arguments, keywords)}."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    q, k, v = (normal(1, T, D) for _ in range(3))
    unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
    g, gk = -0.1 * np.exp(normal(1, T)), -0.1 * np.exp(normal(1, T, D))
    beta = 1 / (1 + np.exp(-normal(1, T)))
    dt, A1 = 0.2 * np.exp(0.5 * normal(1, T)), np.float32([-0.7])
    u, delta, A = normal(T, E), 0.2 * np.exp(0.5 * normal(T, E)), -np.exp(0.5 * normal(E, N))
    return {
        "attention, causal": ("attention", (q, k, v), {"mask": masks.causal()}),
        "local_attention, window 256": ("local_attention", (q, k, v), {"left": 255, "right": 0}),
        "linear_attention": ("linear_attention", (q, k, v), {}),
        "simple_gla": ("simple_gla", (q, k, v, g), {}),
        "gated_linear_attention": ("gated_linear_attention", (q, k, v, gk), {}),
        "delta_rule": ("delta_rule", (q, unit, v, beta), {}),
        "kda": ("kda", (q, unit, v, gk, beta), {}),
        "ssd": ("ssd", (v, dt, A1, k, q), {}),
        "selective_scan": ("selective_scan", (u, delta, A, normal(T, N), normal(T, N)), {}),
        "rwkv7": ("rwkv7", (q, k, v, gk, unit, 1 / (1 + np.exp(-normal(1, T, D)))), {}),
    }


def run(call):
    operation, arguments, keywords = call
    result = getattr(refattn, operation)(*arguments, **keywords, backend="numba")
    return getattr(result, "o", result)


def check(name, call):
    operation, arguments, keywords = call
    form = operation if "attention" in operation and "linear" not in operation else f"{operation}_recurrent"
    want = getattr(refattn, form)(*(x.astype(np.float64) for x in arguments), **keywords)
    want = getattr(want, "o", want)[..., -32:, :]
    error = np.abs(run(call)[..., -32:, :] - want).max() / np.abs(want).max()
    if not error < 1e-4:
        raise AssertionError(f"{name} is wrong by {error:.2g} of its largest value; not timed")


def fastest(call, seconds):
    best, end = np.inf, time.perf_counter() + seconds
    for n in range(50):
        start = time.perf_counter()
        run(call)
        best = min(best, time.perf_counter() - start)
        if n >= 1 and time.perf_counter() > end:
            break
    return best


def slope(points):
    far = [(np.log(T), np.log(t)) for T, t in points if T >= FROM]
    return float(np.polyfit(*zip(*far, strict=True), 1)[0]) if len(far) > 1 else float("nan")


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5))
    for name, points in found.items():
        style = "--" if "attention, " in name else "-"
        axes.loglog(*zip(*points, strict=True), style, marker="o", markersize=3, linewidth=1.3, label=name)
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds, one head")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def table(found, machine, picture):
    lengths = sorted({T for points in found.values() for T, _ in points})
    head = [
        "# Time against length",
        "",
        f"One head, D = Dv = {D} (selective_scan: {E} channels, N = {N}), float32, numba backend; milliseconds.",
        "",
        "| operation | " + " | ".join(f"{T:,}" for T in lengths) + f" | slope from {FROM:,} |",
        "|---|" + "---|" * (len(lengths) + 1),
    ]
    lines = []
    for name, points in found.items():
        by = dict(points)
        cells = [f"{1e3 * by[T]:.3g}" if T in by else "" for T in lengths]
        lines.append(f"| {name} | {' | '.join(cells)} | {slope(points):.2f} |")
    return "\n".join([*head, *lines, "", f"![time against length]({picture})", "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=12.0, help="seconds that a call may take")
    parser.add_argument("--seconds", type=float, default=0.5, help="per point")
    parser.add_argument("--longest", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    options = parser.parse_args()
    for name, call in calls(4096).items():
        check(name, call)
    found = {name: [] for name in calls(16)}
    for T in (T for T in LENGTHS if options.longest >= T):
        for name, call in calls(T).items():
            if found[name]:
                before, took = found[name][-1]
                if took * (T / before) ** (2 if name.startswith("attention") else 1) > options.limit:
                    continue
            found[name].append((T, fastest(call, options.seconds)))
        print(T, {name: f"{points[-1][1]:.4f}" for name, points in found.items()}, flush=True)
    machine = "; ".join(facts(["numba"]).values()) + "."
    text = table(found, machine, f"{options.out.name}.png" if options.out else "")
    if options.out:
        content = {"machine": machine, "seconds": found, "slopes": {name: slope(x) for name, x in found.items()}}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
        draw(found, options.out.with_suffix(".png"))
    print("\n" + text)


if __name__ == "__main__":
    main()
