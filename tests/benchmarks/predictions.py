"""Predictions held against measurements of what they were not made from: errors, intervals, and whom they would choose.

    python tests/benchmarks/predictions.py --out docs/results/predictions

A calibration of this machine is made; then networks with random weights, of sizes between those that it measured, are
predicted and timed: 2 layers, several widths and lengths, every mechanism of the calibration on every backend, forward,
decoding and training. An error is predicted / measured - 1. An interval means to hold 80 % of the cells. Where several
ways compete at one size, the regret is the time of the one predicted quickest over that of the quickest. Beside it
stands what FLOPs over peak would have said. At the end a calibration that is wrong by a factor is handed to the canary.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refattn import costs, dispatch
from refattn.costs.calibration import Calibration
from refattn.costs.machine import facts
from refattn.costs.measuring import MIXED
from refattn.models.tape import Tape, direct
from refattn.watch.network import Network

WIDTHS = ((192, 3), (384, 6), (512, 8))
LENGTHS = (48, 160, 384, 800, 1500)
WINDOW = 100
LAYERS = 2


class Cell(NamedTuple):
    """Something that is predicted and measured."""

    phase: str
    width: int
    heads: int
    tokens: int
    mechanism: str
    backend: str


def cells(widths, lengths, mechanisms, backends):
    found = []
    for width, heads in widths:
        for tokens in lengths:
            names = ["softmax", "window", *mechanisms]
            found += [Cell("prefill", width, heads, tokens, name, b) for name in names for b in backends]
            found += [Cell("decode", width, heads, tokens, "softmax", b) for b in backends]
            if tokens <= 800:
                found += [Cell("train", width, heads, tokens, "softmax", b) for b in backends]
    return found


def model(cell):
    mechanism = {"softmax": None, "window": costs.Softmax(window=WINDOW), "mamba2": costs.Mamba2(state=16)}
    return costs.Transformer(
        layers=LAYERS, d_model=cell.width, heads=cell.heads, ffn=5 * cell.width // 2, gated=True,
        mechanism=mechanism.get(cell.mechanism, cell.mechanism),
    )  # fmt: skip


def prepared(cell):
    """Return a function that runs the cell once."""
    network = Network.random(model(cell), causal=True)
    rng = np.random.default_rng(1)
    new, past = (1, cell.tokens - 1) if cell.phase == "decode" else (cell.tokens, 0)
    x = rng.standard_normal((1, new, cell.width), np.float32)
    state = network.new_state(1, past, room=400) if cell.phase == "decode" else None

    def run():
        with dispatch.use_backend(cell.backend):
            if cell.phase != "train":
                return network(x, direct, state, past)
            tape = Tape()
            y = network(x, tape)
            return tape.gradients(y, np.ones_like(y))

    return run


def measure(chosen, seconds, seed=0):
    """Return the median seconds of each cell: rounds over those of a size, in shuffled order."""
    rng, found = random.Random(seed), {}
    groups = {}
    for cell in chosen:
        groups.setdefault((cell.phase, cell.width, cell.tokens), []).append(cell)
    for number, (group, members) in enumerate(groups.items(), 1):
        runs = {cell: prepared(cell) for cell in members}
        for run in runs.values():
            run()
        times = {cell: [] for cell in members}
        end = time.perf_counter() + seconds * len(members)
        while len(times[members[0]]) < 5 or (time.perf_counter() < end and len(times[members[0]]) < 60):
            for cell in rng.sample(members, len(members)):
                start = time.perf_counter()
                runs[cell]()
                times[cell].append(time.perf_counter() - start)
        found |= {cell: float(np.median(each)) for cell, each in times.items()}
        print(f"{number} of {len(groups)}: {group}", flush=True)
    return found


def flops_alone(cell, calibration):
    """Return FLOPs over the peak of products."""
    m = model(cell)
    if cell.phase == "train":
        total = m.train_flops(1, cell.tokens)["total"]
    else:
        new, past = (1, cell.tokens - 1) if cell.phase == "decode" else (cell.tokens, 0)
        total = m.forward_flops(1, new, past)["total"]
    return total / calibration.rate("float32")


def held_out(calibration, chosen, measured):
    """Return a record of each cell."""
    found = []
    for cell in chosen:
        p = costs.predict(model(cell), on=calibration, seq=cell.tokens, phase=cell.phase, backend=cell.backend)
        seconds = measured[cell]
        found.append(
            cell._asdict()
            | {
                "measured": seconds,
                "predicted": p.seconds,
                "low": p.low,
                "high": p.high,
                "error": p.seconds / seconds - 1,
                "covered": p.low <= seconds <= p.high,
                "flops_error": flops_alone(cell, calibration) / seconds - 1,
            }
        )
    return found


def regrets(records, only=None):
    """Return, of each prefill size, the time of the way predicted quickest over that of the quickest."""
    groups = {}
    for r in records:
        if r["phase"] == "prefill" and (only is None or r["mechanism"] == only):
            groups.setdefault((r["width"], r["tokens"]), []).append(r)
    found = []
    for ways in groups.values():
        taken = min(ways, key=lambda r: r["predicted"])
        found.append(taken["measured"] / min(r["measured"] for r in ways))
    return found


def planted(calibration):
    """Return what the canary says of calibrations that are wrong: name -> doubts."""
    slow = lambda curves: {n: [(size, 3 * s) for size, s in curve] for n, curve in curves.items()}  # noqa: E731
    table = calibration.matmul | {"seconds": (3 * np.array(calibration.matmul["seconds"])).tolist()}
    wrong = {
        "as measured": {},
        "products 3 times as slow": {"matmul": table},
        "all curves 3 times as slow": {"curves": slow(calibration.curves)},
        "of another processor": {"machine": calibration.machine | {"processor": "another"}},
    }
    return {name: Calibration(**(vars(calibration) | change)).doubts() for name, change in wrong.items()}


def summary(records):
    """Return lines (what, cells, median and 90 % of |error|, bias, coverage, the same of FLOPs)."""
    groups = {"all": records}
    for r in records:
        groups.setdefault(f"{r['phase']}, {r['backend']}", []).append(r)
    for r in records:
        if r["phase"] == "prefill":
            groups.setdefault(f"prefill, {r['mechanism']}", []).append(r)
    rows = []
    for name, members in groups.items():
        errors = np.array([r["error"] for r in members])
        flops = np.array([r["flops_error"] for r in members])
        covered = float(np.mean([r["covered"] for r in members]))
        size = np.abs(errors)
        rows.append(
            (name, len(members), np.median(size), np.quantile(size, 0.9), np.median(errors), covered, np.median(flops))
        )
    return rows


def page(records, doubts, calibration, machine):
    lines = [
        "# Predictions and what came of them",
        "",
        f"Networks of {LAYERS} layers with random weights, float32, of sizes that the calibration did not measure.",
        "An error is predicted / measured - 1; the interval means to hold 80 % of the cells. FLOPs alone: over the",
        "peak of matrix products.",
        "",
        "| cells | number | median abs. error | 90 % below | bias | in the interval | FLOPs alone, bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, n, middle, high, bias, covered, flops in summary(records):
        lines.append(f"| {name} | {n} | {middle:.0%} | {high:.0%} | {bias:+.0%} | {covered:.0%} | {flops:+.0%} |")
    lines += [
        "",
        "## Whom the prediction chooses",
        "",
        "| among | sizes | right | mean regret | worst |",
        "|---|---|---|---|---|",
    ]
    for name, only in (("every mechanism on every backend", None), ("backends, softmax attention", "softmax")):
        found = np.array(regrets(records, only))
        lines.append(f"| {name} | {len(found)} | {np.mean(found == 1):.0%} | {found.mean():.3f} | {found.max():.3f} |")
    lines += ["", "Regret: the time of the way predicted quickest over that of the quickest.", ""]
    lines += ["## Wrong calibrations", "", "| calibration | what the canary says |", "|---|---|"]
    lines += [f"| {name} | {'; '.join(said) or 'nothing'} |" for name, said in doubts.items()]
    worst = sorted(records, key=lambda r: -abs(np.log1p(r["error"])))[:12]
    lines += ["", "## The worst cells", "", "| cell | measured | predicted | interval |", "|---|---|---|---|"]
    for r in worst:
        span = f"{1e3 * r['low']:.3g} to {1e3 * r['high']:.3g} ms"
        what = f"{r['phase']}, {r['mechanism']} on {r['backend']}, width {r['width']}, {r['tokens']} tokens"
        lines.append(f"| {what} | {1e3 * r['measured']:.3g} ms | {1e3 * r['predicted']:.3g} ms | {span} |")
    return "\n".join([*lines, "", "Every cell stands in the JSON file beside this page.", "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.4, help="of timing, per cell")
    parser.add_argument("--calibration", type=Path, help="use this one instead of measuring")
    parser.add_argument("--small", action="store_true", help="few cells")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    machine = "; ".join(facts(["numba"]).values()) + "."
    tick = lambda text, share: print(f"calibration: {text}", flush=True)  # noqa: E731
    calibration = Calibration.load(options.calibration) if options.calibration else costs.calibrate(tick=tick)
    widths, lengths = (WIDTHS[:1], LENGTHS[:2]) if options.small else (WIDTHS, LENGTHS)
    backends = [name for name in calibration.ratios if ":" not in name]
    chosen = cells(widths, lengths, MIXED[:1] if options.small else MIXED, backends)
    doubts = planted(calibration)
    records = held_out(calibration, chosen, measure(chosen, options.seconds))
    text = page(records, doubts, calibration, machine)
    if options.out:
        content = {"machine": machine, "cells": records, "ratios": calibration.ratios, "canary": doubts}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
