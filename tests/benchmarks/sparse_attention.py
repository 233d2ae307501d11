"""Time sparse attention on the CPU, per pair, beside the backend's own dense kernel and, where it is there, torch's.

    python tests/benchmarks/sparse_attention.py --seconds 4 --out docs/results/sparse_attention

Every problem is checked first, against the reference in float64 on its last queries. Then each round runs dense causal
attention and the sparse form one after the other, A B A B; a ratio is the median over rounds, with its quartiles.
"Rate" is the share of the dense kernel's pairs per second that the form reaches: 1 would mean that time is
proportional to the pairs. Compiled flex_attention, where torch is installed, joins the rounds with --flex.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

import refattn
from refattn import masks
from refattn.costs.machine import facts

H, D = 4, 64
REST = 0.04  # seconds before each timed call: the threads of BLAS and OpenMP keep a core busy after their work


def forms(T):
    """Return {name: (the form on the backend, its mask)}; windows see 256 keys, as many as the others about see."""
    block = 64
    return {
        "window 256": ("local", {"left": 255, "right": 0}, masks.window(255, 0)),
        "window 1024": ("local", {"left": 1023, "right": 0}, masks.window(1023, 0)),
        "longformer 128 + 4 global": (
            "longformer",
            {"window": 128, "global_indices": [0, 1, 2, T // 2]},
            masks.longformer(128, [0, 1, 2, T // 2]),
        ),
        "dilated 128, step 4": ("dilated", {"window": 128, "step": 4}, masks.dilated(128, 4)),
        "strided 128": ("strided", {"local": 128, "stride": 128}, masks.strided(128, 128)),
        "fixed 128, 8": ("fixed", {"block": 128, "summary": 8}, masks.fixed(128, 8)),
        "bigbird 64": ("bigbird", {"block_size": block}, masks.bigbird(block)),
        "bigbird 128": ("bigbird", {"block_size": 128}, masks.bigbird(128)),
        "random 64": ("random", {"n_keys": 64}, masks.random(64)),
    }


def flex(q, k, v, mask_mod, T):
    """Return a call of torch's compiled flex_attention on the CPU."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tensors = [torch.from_numpy(x)[None] for x in (q, k, v)]
    block_mask = create_block_mask(mask_mod, None, None, T, T, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)

    def run():
        with torch.no_grad():
            return compiled(*tensors, block_mask=block_mask).numpy()[0]

    return run


MASK_MODS = {
    "window 256": lambda b, h, i, j: (j <= i) & (i - j <= 255),
    "window 1024": lambda b, h, i, j: (j <= i) & (i - j <= 1023),
    "strided 128": lambda b, h, i, j: (j <= i) & ((i - j < 128) | ((i - j) % 128 == 0)),
}


def check(run, mask, q, k, v, rows=64):
    """Raise unless the last rows are right."""
    T = q.shape[-2]
    if isinstance(mask, masks.Mask):
        i = np.arange(T - rows, T)[:, None]
        visible = np.broadcast_to(mask.see(i, np.arange(T), T, T), (rows, T))
    wide = [x.astype(np.float64) for x in (q[..., -rows:, :], k, v)]
    want = refattn.attention(*wide, mask=visible)
    error = np.abs(run()[..., -rows:, :] - want).max() / np.abs(want).max()
    if not error < 2e-5:
        raise AssertionError(f"wrong: {error:.2g} of the largest value; not timed")


def measure(found, seconds):
    """Return {name: seconds per round}."""
    times = {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["dense"]) < 5:
        for name, run in found.items():
            time.sleep(REST)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def quartiles(times, name, factor=1.0):
    ratios = [factor * a / b for a, b in zip(times["dense"], times[name], strict=True)]
    return [float(x) for x in np.quantile(ratios, [0.25, 0.5, 0.75])]


def table(rows, machine, T):
    lines = ["| form | pairs of all | time | times faster than dense causal | rate per pair | flex / ours |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        faster, rate = ("{1:.1f} ({0:.1f}-{2:.1f})".format(*row[what]) for what in ("faster", "rate"))
        rate = "{1:.2f} ({0:.2f}-{2:.2f})".format(*row["rate"])
        other = "" if row["flex"] is None else f"{row['flex']:.2f}"
        share = f"{100 * row['pairs'] / T / T:.2f} %"
        lines.append(f"| {row['form']} | {share} | {row['median'] * 1e3:.1f} ms | {faster} | {rate} | {other} |")
    head = [f"# Sparse attention on the CPU, T = {T:,}", "", f"{H} heads, D = {D}, float32, numba backend.", ""]
    return "\n".join([*head, *lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per form")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--flex", action="store_true", help="compile and time torch's flex_attention too")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    T, rows = options.tokens, []
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((H, T, D)).astype(np.float32) for _ in range(3))
    dense_pairs = masks.causal().pairs(T, T)
    for name, (form, arguments, mask) in forms(T).items():
        function = getattr(refattn, f"{form}_attention")
        found = {
            "dense": lambda: refattn.attention(q, k, v, mask=masks.causal(), backend="numba"),
            "sparse": lambda f=function, a=arguments: f(q, k, v, **a, backend="numba"),
        }
        check(found["sparse"], mask, q, k, v)
        if options.flex and name in MASK_MODS:
            found["flex"] = flex(q, k, v, MASK_MODS[name], T)
            check(found["flex"], mask, q, k, v)
        times = measure(found, options.seconds)
        pairs = mask.pairs(T, T)
        others = [a / b for a, b in zip(times.get("flex", []), times["sparse"], strict=False)]
        row = {
            "form": name,
            "pairs": pairs,
            "median": statistics.median(times["sparse"]),
            "faster": quartiles(times, "sparse"),
            "rate": quartiles(times, "sparse", pairs / dense_pairs),
            "flex": statistics.median(others) if others else None,
            "seconds": times,
        }
        rows.append(row)
        print(table(rows[-1:], "", T).splitlines()[6], flush=True)
    machine = "; ".join(facts(["numba", "torch"]).values()) + f"; {options.seconds:g} s a form."
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows, machine, T))
    print("\n" + table(rows, machine, T))


if __name__ == "__main__":
    main()
