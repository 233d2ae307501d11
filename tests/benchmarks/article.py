"""Measure what the page on where costs come from says about time and memory.

    python tests/benchmarks/article.py --seconds 4 --out docs/results/article

Six tables: what an expression allocates beside its matrix of scores; five times the tokens; training beside inference;
flash attention beside the plain expression; a window beside all pairs; and attention's share of a MiniLM, with Amdahl's
limit. What is compared runs in turns, in a fresh random order every round, after a check against float64.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from pathlib import Path

import numpy as np

import refattn
from refattn import costs, masks
from refattn.costs.machine import facts
from refattn.costs.units import duration, size
from refattn.watch.clock import peak_bytes
from refattn.watch.network import Network
from refattn.watch.profile import profile
from refattn.watch.verdict import limit

H, D, WINDOW = 12, 64, 256
REST = 0.04  # seconds before each timed call: the threads of BLAS and OpenMP keep a core busy after their work


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain(q, k, v):
    """Return attention as a blog would write it."""
    return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v


def arrays(T, heads=H):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((heads, T, D), np.float32) for _ in range(3))


def check(name, run, given, mask=None):
    """Raise unless the last queries agree with float64."""
    q, k, v = (x.astype(np.float64) for x in given)
    want = refattn.attention(q[:, -64:], k, v, mask=mask)
    error = np.abs(run()[:, -64:] - want).max() / np.abs(want).max()
    if not error < 2e-5:
        raise AssertionError(f"{name} is wrong by {error:.2g} of the largest value; not timed")


def rounds(calls, seconds, least=3):
    """Return {name: seconds of each round}."""
    times = {name: [] for name in calls}
    for run in calls.values():
        run()  # which may compile
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name in random.sample(sorted(calls), len(calls)):
            time.sleep(REST)
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times, above, below):
    """Return the quartiles of the ratio within each round: low, median, high."""
    found = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return [float(x) for x in np.quantile(found, [0.25, 0.5, 0.75])]


def span(three):
    low, middle, high = three
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def median(values):
    return duration(float(np.median(values)))


def allocation(options):
    """Yield what is allocated at most, beside one matrix of scores of all heads."""
    T = options.tokens
    for heads in (1, H):
        given = arrays(T, heads)
        m = costs.Transformer(layers=1, d_model=heads * D, heads=heads)
        matrix = m.attention_matrix_bytes(seq=T)
        calls = {"plain expression": lambda given=given: plain(*given)}
        for backend in ("numpy", "numba"):
            calls[f"refattn.attention, {backend}"] = lambda g=given, b=backend: refattn.attention(*g, backend=b)
        for name, run in calls.items():
            check(name, run, given)
            says = None
            if name != "plain expression":
                says = m.peak_attention_bytes(seq=T, backend=name.split()[-1], causal=False)
            yield {"T": T, "heads": heads, "name": name, "peak": peak_bytes(run), "matrix": matrix, "exact": says}


def growth(options):
    """Yield the time of few and of many tokens."""
    few, many = options.pair
    block = costs.Transformer(layers=1, d_model=H * D, heads=H)
    network = Network.random(block, causal=False)

    def scores(T):
        q, k, _ = arrays(T, 1)
        return lambda: q @ k.swapaxes(-1, -2)

    def attention(T, heads, backend):
        given = arrays(T, heads)
        run = lambda: refattn.attention(*given, backend=backend)  # noqa: E731
        check(f"attention on {backend}", run, given)
        return run

    def whole(T):
        x = np.random.default_rng(0).standard_normal((1, T, H * D), np.float32)

        def run():
            with refattn.use_backend("numba"):
                return network(x)

        return run

    made = {
        "scores of one head, NumPy": (scores, "scores"),
        "attention of one head, numpy": (lambda T: attention(T, 1, "numpy"), "scores"),
        f"attention of {H} heads, numba": (lambda T: attention(T, H, "numba"), "scores"),
        "a block of BERT-base, numba": (whole, "total"),
    }
    for name, (make, part) in made.items():
        times = rounds({"few": make(few), "many": make(many)}, options.seconds)
        flops = [block.forward_flops(seq=T, causal=False)[part] for T in (few, many)]
        yield {"few": few, "many": many, "name": name, "seconds": times, "ratio": ratio(times, "many", "few"),
               "flops": flops[1] / flops[0]}  # fmt: skip


def training(options):
    """Yield a step of training beside a pass of inference."""
    for name in ("minilm-l6", "refattn-gpt"):
        m = costs.preset(name)
        for T in options.short:
            network = Network.random(m)
            found = {
                phase: profile(network, seq=T, phase=phase, backend="numba", seconds=options.seconds)
                for phase in ("prefill", "train")
            }
            one, step = found["prefill"], found["train"]
            counts = (m.train_flops(1, T, network.causal, "attention"), m.forward_flops(1, T, 0, network.causal))
            yield {
                "model": name, "T": T, "forward": one.seconds, "train": step.seconds,
                "ratio": step.seconds / one.seconds, "flops": counts[0]["total"] / counts[1]["total"],
                "peak": [one.peak_bytes, step.peak_bytes], "weights": network.nbytes,
            }  # fmt: skip


def flash(options):
    """Yield the plain expression beside what keeps no matrix."""
    for T in options.lengths:
        given = arrays(T)
        calls = {
            "plain": lambda g=given: plain(*g),
            "numpy": lambda g=given: refattn.attention(*g),
            "tiles": lambda g=given: refattn.flash_attention(*g)[0],
            "numba": lambda g=given: refattn.attention(*g, backend="numba"),
        }
        for name, run in calls.items():
            check(name, run, given)
        times = rounds(calls, options.seconds)
        ratios = {name: ratio(times, "plain", name) for name in ("numpy", "tiles", "numba")}
        yield {"T": T, "seconds": times, "ratio": ratios}


def windows(options):
    """Yield all pairs beside a window, where both are causal."""
    mask = masks.causal() & masks.window(WINDOW - 1, 0)
    for T in options.long:
        given = arrays(T)
        calls = {
            "all": lambda g=given: refattn.attention(*g, mask=masks.causal(), backend="numba"),
            "window": lambda g=given: refattn.local_attention(*g, left=WINDOW - 1, right=0, backend="numba"),
        }
        check("all pairs", calls["all"], given, masks.causal())
        check("the window", calls["window"], given, mask)
        times = rounds(calls, options.seconds)
        pairs = [costs.pairs(masks.causal(), T, T), costs.pairs(mask, T, T)]
        yield {"T": T, "seconds": times, "pairs": pairs, "ratio": ratio(times, "all", "window")}


def shares(options):
    """Yield attention's share of a MiniLM; its table of positions is made longer."""
    m = dataclasses.replace(costs.preset("minilm-l6"), positions=max(options.profiled))
    network = Network.random(m)
    for T in options.profiled:
        flops = m.forward_flops(seq=T, causal=False)
        for backend in ("numpy", "numba"):
            found = profile(network, seq=T, backend=backend, seconds=options.seconds, memory=False)
            others = [part for part in found.parts if part.component not in ("attention", "scan")]
            largest = max(others, key=lambda part: part.share)
            yield {
                "T": T, "backend": backend, "flops": (flops["scores"] + flops["values"]) / flops["total"],
                "share": found.attention_share, "limit": limit(found.attention_share[0]), "seconds": found.seconds,
                "next": largest.component, "next_share": largest.share,
            }  # fmt: skip


SECTIONS = {
    "allocation": (
        allocation,
        "Memory beside the matrix",
        ("tokens", "heads", "what", "matrix", "peak", "of the matrix", "as counted"),
        lambda r: (f"{r['T']:,}", r["heads"], r["name"], size(r["matrix"]), size(r["peak"]),
                   f"{r['peak'] / r['matrix']:.2f}", "" if r["exact"] is None else size(r["exact"])),
    ),
    "growth": (
        growth,
        "Five times the tokens",
        ("what", "few tokens", "time", "many tokens", "time", "ratio", "ratio of FLOPs"),
        lambda r: (r["name"], f"{r['few']:,}", median(r["seconds"]["few"]), f"{r['many']:,}",
                   median(r["seconds"]["many"]), span(r["ratio"]), f"{r['flops']:.2f}"),
    ),
    "training": (
        training,
        "Training beside inference",
        ("model", "tokens", "forward", "and backward", "ratio", "of FLOPs", "peak forward", "peak in training",
         "of it gradients of weights", "ratio of the rest"),
        lambda r: (r["model"], f"{r['T']:,}", duration(r["forward"]), duration(r["train"]), f"{r['ratio']:.2f}",
                   f"{r['flops']:.2f}", size(r["peak"][0]), size(r["peak"][1]), size(r["weights"]),
                   f"{(r['peak'][1] - r['weights']) / r['peak'][0]:.1f}"),
    ),
    "flash": (
        flash,
        "Flash attention",
        ("tokens", "plain expression", "plain / refattn.attention, numpy", "plain / flash_attention, numpy",
         "plain / attention, numba"),
        lambda r: (f"{r['T']:,}", median(r["seconds"]["plain"]), *(span(x) for x in r["ratio"].values())),
    ),
    "windows": (
        windows,
        f"A window of {WINDOW}",
        ("tokens", "all pairs", "time", "pairs of the window", "time", "all / window"),
        lambda r: (f"{r['T']:,}", f"{r['pairs'][0]:,}", median(r["seconds"]["all"]), f"{r['pairs'][1]:,}",
                   median(r["seconds"]["window"]), span(r["ratio"])),
    ),
    "shares": (
        shares,
        "Attention's share of a MiniLM",
        ("tokens", "backend", "pass", "of the FLOPs", "of the time", "at most faster", "largest other", "its share"),
        lambda r: (f"{r['T']:,}", r["backend"], duration(r["seconds"]), f"{r['flops']:.1%}",
                   "{:.1%} ({:.1%}-{:.1%})".format(*r["share"]), f"{r['limit']:.2f}", r["next"],
                   f"{r['next_share']:.1%}"),
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per problem")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tokens", type=int, default=1000, help="of the table of memory")
    parser.add_argument("--pair", type=int, nargs=2, default=[2000, 10000], help="few and many tokens")
    parser.add_argument("--short", type=int, nargs="+", default=[64, 256], help="tokens in training")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="of flash attention")
    parser.add_argument("--long", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help="of the window")
    parser.add_argument("--profiled", type=int, nargs="+", default=[128, 512, 2048], help="of the shares")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    random.seed(0)
    machine = "; ".join(facts(["numba"]).values())  # before our own work counts as load
    content, page = {"machine": machine}, ["# Where the costs come from, measured"]
    page.append(
        f"{H} heads of {D}, float32, unless a row says otherwise. Ratios: median over the rounds (quartiles). The page "
        "on [where costs come from](../where_costs_come_from.md) says what it means."
    )
    for name in options.only:
        measured, title, header, cells = SECTIONS[name]
        content[name], lines = [], []
        for row in measured(options):
            content[name].append(row)
            lines.append("| " + " | ".join(map(str, cells(row))) + " |")
            print(name, lines[-1], flush=True)
        page.append("\n".join([f"## {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines]))
    page.append(f"{machine}; {options.seconds:g} s a problem.")
    page.append(f"`python tests/benchmarks/article.py --seconds {options.seconds:g} --out docs/results/article`")
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
