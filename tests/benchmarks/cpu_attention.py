"""Time attention on the CPU: the numba backend beside the NumPy reference and, where it is installed, torch's SDPA.

    python tests/benchmarks/cpu_attention.py --seconds 4 --out docs/results/cpu_attention

Each problem is first checked against the reference in float64 and not timed if that fails. Then every round runs every
candidate once, after a short rest, in a fresh random order; the table gives medians, and ratios are medians over the
rounds of (time of the other) / (time of ours), with their quartiles.
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np

import refattn
from refattn import masks
from refattn.costs.machine import facts

FORWARD = [
    # H, Hk, T, D, causal
    (8, 8, 512, 64, False),
    (8, 8, 512, 64, True),
    (8, 8, 1024, 64, False),
    (8, 8, 1024, 64, True),
    (8, 8, 4096, 64, False),
    (8, 8, 4096, 64, True),
    (8, 2, 4096, 64, True),
    (8, 8, 4096, 128, False),
    (8, 8, 4096, 128, True),
    (1, 1, 16384, 64, False),
    (1, 1, 16384, 64, True),
]
BACKWARD = [(8, 8, 512, 64, True), (8, 8, 2048, 64, False), (8, 8, 2048, 64, True), (8, 2, 2048, 128, True)]
WINDOWS = [(4, 4, 16384, 64, 256)]
REST = 0.04  # seconds before each timed call: the threads of BLAS and OpenMP keep a core busy after their work
REFERENCE_LIMIT = 4096  # the reference keeps whole score matrices


def arrays(H, Hk, T, D, seed):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((1, h, T, D)).astype(np.float32) for h in (H, Hk, Hk, H))


def candidates(H, Hk, T, D, mask, causal, backward, seed):
    """Return {name: function of nothing} for one problem, and the arrays it is about."""
    q, k, v, do = arrays(H, Hk, T, D, seed)
    if backward:
        found = {"numba": lambda: refattn.attention_vjp(do, q, k, v, mask=mask, backend="numba")[:3]}
        found["numpy"] = lambda: refattn.attention_vjp(do, q, k, v, mask=mask)[:3]
    else:
        found = {"numba": lambda: (refattn.attention(q, k, v, mask=mask, backend="numba"),)}
        found["numpy"] = lambda: (refattn.attention(q, k, v, mask=mask),)
    if T > REFERENCE_LIMIT:
        del found["numpy"]
    torch = optional("torch")
    if torch is not None and (causal or mask is None):
        torch.set_num_threads(os.cpu_count() or 1)
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        sdpa = torch.nn.functional.scaled_dot_product_attention
        if backward:

            def run():
                leaves = [t.detach().requires_grad_() for t in tensors]
                sdpa(*leaves, is_causal=causal, enable_gqa=Hk != H).backward(torch.from_numpy(do))
                return tuple(t.grad.numpy() for t in leaves)
        else:

            def run():
                with torch.no_grad():
                    return (sdpa(*tensors, is_causal=causal, enable_gqa=Hk != H).numpy(),)

        found["torch"] = run
    return found, (q, k, v, do)


def optional(name):
    try:
        return __import__(name)
    except ImportError:
        return None


def check(found, given, mask, backward):
    """Raise unless every candidate agrees with float64 on the last queries (all of them, where that is small)."""
    q, k, v, do = (x.astype(np.float64) for x in given)
    T = q.shape[-2]
    if backward and T <= 1024:
        want = refattn.attention_vjp(do, q, k, v, mask=mask)[:3]
    elif backward:
        want = found["torch"]() if "torch" in found else found["numpy"]()
    else:
        rows = slice(max(0, T - 256), T)
        want = (refattn.attention(q[..., rows, :], k, v, mask=mask),)
    for name, run in found.items():
        for got, right in zip(run(), want, strict=True):
            error = np.abs(got[..., -right.shape[-2] :, :] - right).max() / np.abs(right).max()
            if not error < 2e-5:
                raise AssertionError(f"{name} is wrong: {error:.2g} of the largest value; not timed")


def measure(found, seconds):
    """Return {name: seconds per round}."""
    times = {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["numba"]) < 5:
        for name in random.sample(sorted(found), len(found)):
            time.sleep(REST)
            start = time.perf_counter()
            found[name]()
            times[name].append(time.perf_counter() - start)
    return times


def row(label, flops, times):
    entry = {"problem": label, "flops": flops, "seconds": times}
    entry["median"] = {name: statistics.median(t) for name, t in times.items()}
    entry["ratio"] = {}
    for name in set(times) - {"numba"}:
        ratios = [other / ours for other, ours in zip(times[name], times["numba"], strict=True)]
        entry["ratio"][name] = [float(x) for x in np.quantile(ratios, [0.25, 0.5, 0.75])]
    return entry


def table(rows, machine):
    lines = ["| problem | numba | GFLOP/s | NumPy / numba | torch SDPA / numba |", "|---|---|---|---|---|"]
    for entry in rows:
        cells = []
        for name in ("numpy", "torch"):
            low, middle, high = entry["ratio"].get(name, (None,) * 3)
            cells.append("" if middle is None else f"{middle:.2f} ({low:.2f}-{high:.2f})")
        ours = entry["median"]["numba"]
        lines.append(
            f"| {entry['problem']} | {ours * 1e3:.2f} ms | {entry['flops'] / ours / 1e9:.0f} | {' | '.join(cells)} |"
        )
    return "\n".join(["# Attention on the CPU", "", *lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per problem")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    problems = [(*p, None, False) for p in FORWARD] + [(H, K, T, D, False, w, False) for H, K, T, D, w in WINDOWS]
    problems += [(*p, None, True) for p in BACKWARD]
    rows = []
    for H, Hk, T, D, causal, window, backward in problems:
        mask = masks.causal() if causal else None
        if window is not None:
            mask = masks.causal() & masks.window(window - 1, 0)
        found, given = candidates(H, Hk, T, D, mask, causal, backward, options.seed)
        check(found, given, mask, backward)
        pairs = T * T if mask is None else mask.pairs(T, T)
        flops = H * pairs * D * (4 + 10 * backward)
        what = "causal" if causal else f"window {window}" if window else "dense"
        label = f"{'forward + backward' if backward else 'forward'}, {what}, H {H}, Hk {Hk}, T {T}, D {D}"
        rows.append(row(label, flops, measure(found, options.seconds)))
        print(table(rows[-1:], "").splitlines()[4], flush=True)
    machine = "; ".join(facts(["numba", "torch"]).values()) + f"; float32, {options.seconds:g} s a problem."
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows, machine))
    print("\n" + table(rows, machine))


if __name__ == "__main__":
    main()
