"""Time what `refattn.watch.monitor` adds to a call, against a call of 1 ms and the bundled GPT's own steps.

    python tests/benchmarks/monitor_overhead.py --seconds 2 --out docs/results/monitor_overhead

The overhead of an empty call is the difference of two medians over rounds in which both run, in random order: with and
without the monitor, a few thousand calls a round. A scrape with what it adds up is timed by itself. The GPT generates
texts in turns, plain and watched, with equal caches; the mean over a text is compared. The process exits with 1 if a
wrapped call of 1 ms costs more than 1 % of it.
"""

import argparse
import json
import random
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from refattn.costs.machine import facts
from refattn.costs.transformer import Transformer
from refattn.models.gpt import GPT
from refattn.watch.monitor import Monitor
from refattn.watch.watched import WatchedGPT, gpt_costs

MILLISECOND = 1e-3
ALLOWED = 0.01
CALLS = 2000


def nothing():
    return None


def candidates(monitor):
    """Return {what: (without, with, calls of `nothing` in it)}."""
    part = monitor.wrap(nothing, component="attention")
    alone = monitor.wrap(nothing, component="attention", phase="decode")
    whole = monitor.wrap(nothing, component="other", phase="decode", seq=lambda: 100)

    def call(parts):
        def run():
            with monitor.call("decode", seq=100):
                for _ in range(parts):
                    part()

        def bare():
            for _ in range(parts):
                nothing()

        return bare, run

    return {
        "a wrapped function outside of calls, not measured": (nothing, part),
        "a wrapped function, a call of its own": (nothing, alone),
        "a wrapped pass of the model: lengths, FLOPs, drift": (nothing, whole),
        "a call with 1 part": call(1),
        "a call with 10 parts": call(10),
        "a call with 50 parts": call(50),
    }


def per_call(f, calls):
    start = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - start) / calls


def overheads(found, seconds):
    """Return {what: seconds added to a call, one for each round}."""
    added = {what: [] for what in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(added[next(iter(found))]) < 7:
        for what in random.sample(sorted(found), len(found)):
            bare, measured = found[what]
            calls = CALLS if "50" not in what else CALLS // 10
            order = random.sample([0, 1], 2)
            times = {n: per_call((bare, measured)[n], calls) for n in order}
            added[what].append(times[1] - times[0])
    return added


def with_threads(monitor, threads, seconds):
    """Return the seconds of CPU that a call with a part costs beside others in as many threads."""
    part = monitor.wrap(nothing, component="attention")
    stop, done = time.perf_counter() + seconds, [0] * threads

    def work(n):
        while time.perf_counter() < stop:
            for _ in range(100):
                with monitor.call("prefill", seq=100):
                    part()
            done[n] += 100

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    start = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - start) / sum(done)


def scrapes(registry, monitor, rounds=20):
    """Return the seconds of a scrape after 1000 calls, of new lengths and of known ones."""
    times = {"new": [], "known": []}
    for n in range(rounds):
        for what, first in (("new", 1 + 1000 * n), ("known", 1 + 1000 * n)):
            for seq in range(first, first + 1000):
                with monitor.call("decode", seq=seq):
                    pass
            start = time.perf_counter()
            generate_latest(registry)
            times[what].append(time.perf_counter() - start)
    return times


class Timed(GPT):
    """A GPT whose passes are timed by one histogram of prometheus_client: a yardstick."""

    histogram = Histogram("yardstick_seconds", "Of a pass.", registry=CollectorRegistry())

    def logits(self, tokens, *, cache=None, backend=None):
        with self.histogram.time():
            return super().logits(tokens, cache=cache, backend=backend)


def steps(seconds):
    """Return {what: [mean seconds of a step of decoding, one for each text of 64 steps]}; all take turns."""
    gpt = GPT.bundled()
    monitor = Monitor(gpt_costs(gpt), registry=CollectorRegistry())
    networks = {
        "plain": gpt,
        "one histogram of prometheus_client": Timed(gpt.config, gpt.parameters, gpt.record),
        "monitor: attention, embedding, head": WatchedGPT(gpt, monitor, all_parts=False),
        "monitor: all 55 parts": WatchedGPT(gpt, monitor, all_parts=True),
    }
    tokens, one = gpt.encode("def attention(q, k, v):\n    "), gpt.encode("x")
    found, end = {what: [] for what in networks}, time.perf_counter() + seconds
    while time.perf_counter() < end or len(found["plain"]) < 5:
        for what in random.sample(sorted(networks), len(networks)):
            cache = networks[what].new_cache(len(tokens) + 64)
            networks[what].logits(tokens, cache=cache)
            start = time.perf_counter()
            for _ in range(64):
                networks[what].logits(one, cache=cache)
            found[what].append((time.perf_counter() - start) / 64)
    return found


def quartiles(values):
    return [float(x) for x in np.quantile(values, [0.25, 0.5, 0.75])]


def report(results, machine):
    lines = ["# What the monitor adds", "", "Measured: medians, with quartiles over the rounds.", ""]
    lines += ["| what | added to a call | of 1 ms |", "|---|---|---|"]
    for what, (low, middle, high) in results["added"].items():
        spread = f"{middle * 1e6:.2f} µs ({low * 1e6:.2f}-{high * 1e6:.2f})"
        lines.append(f"| {what} | {spread} | {middle / MILLISECOND:.2%} |")
    for threads, seconds in results["threads"].items():
        lines.append(f"| a call with 1 part, CPU time, {threads} threads | {seconds * 1e6:.2f} µs | ")
        lines[-1] += f"{seconds / MILLISECOND:.2%} |"
    lines += ["", "| the bundled GPT's step of decoding, numpy | takes | added to it |", "|---|---|---|"]
    plain = results["steps"]["plain"]["takes"][1]
    for what, row in results["steps"].items():
        low, middle, high = row["added"]
        added = f"{middle * 1e6:.1f} µs ({low * 1e6:.1f}-{high * 1e6:.1f}), {middle / plain:.1%}"
        lines.append(f"| {what} | {row['takes'][1] * 1e6:.0f} µs | {'' if what == 'plain' else added} |")
    lines += [
        "",
        "Between two calls the network's own work empties the processor's caches, which is why a call adds more",
    ]
    lines += ["here than above."]
    lines += ["", "| a scrape after 1000 calls | |", "|---|---|"]
    for what, seconds in results["scrapes"].items():
        lines.append(f"| of {what} lengths | {seconds * 1e3:.1f} ms |")
    return "\n".join([*lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each part of the measurement")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    machine = "; ".join(facts(["numpy"]).values())
    registry = CollectorRegistry()
    model = Transformer(layers=12, d_model=768, heads=12, vocab=30522)
    monitor = Monitor(model, registry=registry, predicted=lambda phase, batch, seq: 1e-3)
    raw = overheads(candidates(monitor), options.seconds)
    paired = steps(4 * options.seconds)
    results = {
        "added": {what: quartiles(rounds) for what, rounds in raw.items()},
        "threads": {n: with_threads(monitor, n, options.seconds / 4) for n in (1, 4, 16)},
        "steps": {
            what: {
                "takes": quartiles(times),
                "added": quartiles([x - bare for x, bare in zip(times, paired["plain"], strict=True)]),
            }
            for what, times in paired.items()
        },
        "scrapes": {what: statistics.median(times) for what, times in scrapes(registry, monitor).items()},
    }
    if options.out:
        content = {"machine": machine, **results}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(report(results, machine))
    print(report(results, machine))
    singles = [what for what in results["added"] if what.startswith("a wrapped") or what == "a call with 1 part"]
    return int(any(results["added"][what][1] > ALLOWED * MILLISECOND for what in singles))


if __name__ == "__main__":
    sys.exit(main())
