"""Time decoding on the CPU: GB/s of keys and values that are read, beside a copy of memory and torch's SDPA.

    python tests/benchmarks/decode.py --seconds 3 --out docs/results/decode

A call reads every key and value once, so the bytes of the cache divided by its time is what is compared with the copy
(bytes read and written, by as many threads). Calls go round the caches of several layers, together at least `--cold`
MiB, as a model's would: none finds its keys in a cache of the processor. Each problem is first checked in float64 on
the heads that share the first key head. Every round runs each candidate once, after a rest, in a fresh random order;
figures are medians, the share of the copy with its quartiles over the rounds.
"""

import argparse
import json
import math
import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import refattn_numba

import refattn
from refattn import masks
from refattn.costs.machine import facts

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LENGTHS = (4096, 16384, 65536, 131072)
PROBLEMS = [
    *(("decode", "float32", 32, 8, 1, Tk, D) for D in (128, 64) for Tk in LENGTHS),
    *(("decode", dtype, 32, 8, 1, Tk, 128) for dtype in ("bfloat16", "float16") for Tk in LENGTHS),
    ("decode", "float32", 8, 8, 1, 16384, 128),
    ("decode", "float32", 64, 8, 1, 16384, 128),
    ("decode, causal", "float32", 32, 8, 4, 16384, 128),
    *(("pages of 16", "float32", 32, 8, 1, Tk, 128) for Tk in LENGTHS[:3]),
    ("pages of 16", "bfloat16", 32, 8, 1, 65536, 128),
]
PAGE = 16
REST = 0.04  # seconds before each timed call: the threads of BLAS and OpenMP keep a core busy after their work
ALLOWED = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def copier(cold):
    """Return a function that copies `cold` bytes by as many threads as the kernels use, and the bytes that it moves."""
    threads = refattn_numba.get_num_threads()
    source, target = np.ones(cold // 8, np.float32), np.empty(cold // 8, np.float32)
    pieces = [slice(n * len(source) // threads, (n + 1) * len(source) // threads) for n in range(threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda piece: np.copyto(target[piece], source[piece]), pieces)), 2 * source.nbytes


def caches(dtype, Hk, Tk, D, cold, seed):
    """Return the keys and values of enough layers, [(k, v), ...], each (1, Hk, Tk, D)."""
    rng = np.random.default_rng(seed)
    layers = max(1, math.ceil(cold / (2 * Hk * Tk * D * np.dtype(dtype).itemsize)))
    made = (rng.standard_normal((1, Hk, Tk, D), dtype=np.float32).astype(dtype) for _ in range(2 * layers))
    return [(k, next(made)) for k in made]


def in_pages(x, table):
    """Return (1, Hk, Tk, D) as pages (n, PAGE, Hk, D), those of the sequence in the order of `table`."""
    pages = np.empty((len(table), PAGE, x.shape[1], x.shape[3]), x.dtype)
    pages[table] = x[0].swapaxes(0, 1).reshape(len(table), PAGE, x.shape[1], x.shape[3])
    return pages


def candidates(what, q, layers, seed):
    """Return {name: function of a layer's number} for one problem."""
    mask = masks.causal() if "causal" in what else None
    if "pages" in what:
        Tk = layers[0][0].shape[2]
        table = np.random.default_rng(seed).permutation(Tk // PAGE)
        pools = [tuple(in_pages(x, table) for x in layer) for layer in layers]
        lengths = np.array([Tk])
        return {"numba": lambda n: refattn.paged_attention(q, *pools[n], table[None], lengths, backend="numba")}
    found = {"numba": lambda n: refattn.attention(q, *layers[n], mask=mask, backend="numba")}
    torch = optional("torch")
    if torch is not None and mask is None:
        torch.set_num_threads(refattn_numba.get_num_threads())
        query, tensors = tensor(torch, q), [[tensor(torch, x) for x in layer] for layer in layers]
        grouped = q.shape[1] != layers[0][0].shape[1]

        def sdpa(n):
            with torch.no_grad():
                o = torch.nn.functional.scaled_dot_product_attention(query, *tensors[n], enable_gqa=grouped)
                return o.float().numpy()

        found["torch"] = sdpa
    return found


def tensor(torch, x):
    return (
        torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)
    )


def optional(name):
    try:
        return __import__(name)
    except ImportError:
        return None


def check(found, what, dtype, q, layers):
    """Raise unless every candidate agrees with float64 on the heads of the first key head."""
    k, v = (x[:, :1].astype(np.float64) for x in layers[0])
    group = q.shape[1] // layers[0][0].shape[1]
    mask = masks.causal() if "causal" in what else None
    want = refattn.attention(q[:, :group].astype(np.float64), k, v, mask=mask)
    for name, run in found.items():
        error = np.abs(run(0)[:, :group].astype(np.float64) - want).max() / np.abs(want).max()
        if not error < ALLOWED[dtype]:
            raise AssertionError(f"{name} is wrong: {error:.2g} of the largest value; not timed")


def measure(found, copy, layers, seconds):
    """Return {name: seconds per round}; the copy is a candidate among the others."""
    times = {name: [] for name in (*found, "copy")}
    end, round_number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or round_number < 5:
        for name in random.sample(sorted(times), len(times)):
            time.sleep(REST)
            start = time.perf_counter()
            if name == "copy":
                copy()
            else:
                found[name](round_number % layers)
            times[name].append(time.perf_counter() - start)
        round_number += 1
    return times


def row(label, nbytes, copied, times):
    rates = {name: [(copied if name == "copy" else nbytes) / t / 1e9 for t in found] for name, found in times.items()}
    shares = [ours / copy for ours, copy in zip(rates["numba"], rates["copy"], strict=True)]
    faster = [theirs / ours for theirs, ours in zip(times.get("torch", []), times["numba"], strict=False)]
    return {
        "problem": label,
        "bytes": nbytes,
        "seconds": times,
        "GB/s": {name: statistics.median(rate) for name, rate in rates.items()},
        "share of copy": [float(x) for x in np.quantile(shares, [0.25, 0.5, 0.75])],
        "torch / numba": [float(x) for x in np.quantile(faster, [0.25, 0.5, 0.75])] if faster else None,
    }


def table(rows, machine):
    lines = [
        "| problem | MB read | numba | GB/s | copy, GB/s | share of the copy | torch SDPA / numba |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        low, middle, high = entry["share of copy"]
        torch = "" if entry["torch / numba"] is None else "{1:.2f} ({0:.2f}-{2:.2f})".format(*entry["torch / numba"])
        ours = statistics.median(entry["seconds"]["numba"])
        lines.append(
            f"| {entry['problem']} | {entry['bytes'] / 1e6:.0f} | {ours * 1e3:.2f} ms | {entry['GB/s']['numba']:.1f} | "
            f"{entry['GB/s']['copy']:.1f} | {middle:.0%} ({low:.0%}-{high:.0%}) | {torch} |"
        )
    return "\n".join(["# Decoding on the CPU", "", *lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per problem")
    parser.add_argument("--cold", type=int, default=1024, help="MiB of caches that calls go round, and of the copy")
    parser.add_argument("--longest", type=int, default=max(LENGTHS), help="leave out problems of more keys")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    cold = options.cold << 20
    copy, copied = copier(cold)
    rows = []
    for what, dtype, H, Hk, Tq, Tk, D in PROBLEMS:
        if Tk > options.longest:
            continue
        layers = caches(DTYPES[dtype], Hk, Tk, D, cold, options.seed)
        q = np.random.default_rng(options.seed).standard_normal((1, H, Tq, D)).astype(DTYPES[dtype])
        found = candidates(what, q, layers, options.seed)
        check(found, what, dtype, q, layers)
        nbytes = sum(x.nbytes for x in layers[0])
        label = f"{what}, {dtype}, H {H}, Hk {Hk}, Tq {Tq}, Tk {Tk}, D {D}"
        rows.append(row(label, nbytes, copied, measure(found, copy, len(layers), options.seconds)))
        print(table(rows[-1:], "").splitlines()[4], flush=True)
    machine = "; ".join(facts(["numba", "torch"]).values())
    machine += f"; {refattn_numba.get_num_threads()} threads of {os.cpu_count()}, {options.seconds:g} s a problem, "
    machine += f"caches of {options.cold} MiB."
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows, machine))
    print("\n" + table(rows, machine))


if __name__ == "__main__":
    main()
