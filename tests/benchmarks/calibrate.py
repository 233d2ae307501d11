"""Calibrate the thresholds of refattn.testing: python tests/benchmarks/calibrate.py [--runs 40] [--out docs/results].

Correct kernels, over tiles, splits, orders of rounding and seeds, show how large each statistic becomes when nothing is
wrong; the mutants show what a threshold catches. Prints both beside the thresholds in force, and the rate of false
alarms: of single statistics before fresh seeds confirm them, and of whole runs of `check`. Writes calibration.md.
"""

import argparse
import collections
from pathlib import Path

import numpy as np

import refattn
from refattn.costs.machine import facts
from refattn.testing.attention.cases import CASES
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.contract import Contract
from refattn.testing.kit import check
from refattn.testing.mutants import correct, mutants
from refattn.testing.mutants.survey import survivors
from refattn.testing.session import Session
from refattn.testing.thresholds import thresholds

DTYPES = ("float32", "float16", "bfloat16")


def eager(q, k, v, *, causal=False, scale=None, softcap=None):
    """The weights are normalised first and rounded to the dtype of q then, as in an unfused implementation."""
    mask = refattn.masks.causal() if causal else None
    wide = [x.astype(np.float32) for x in (q, k)]
    eye = np.broadcast_to(np.eye(k.shape[2], dtype=np.float32), (*k.shape[:2], k.shape[2], k.shape[2]))
    p, lse = refattn.attention(*wide, eye, mask=mask, scale=scale, softcap=softcap, return_lse=True)
    values = np.repeat(v.astype(np.float32), q.shape[1] // v.shape[1], axis=1)
    return (p.astype(q.dtype).astype(np.float32) @ values).astype(q.dtype), lse


def unrounded(q, k, v, *, causal=False, scale=None, softcap=None):
    """The reference: 16-bit inputs are computed in float32, and rounded once."""
    mask = refattn.masks.causal() if causal else None
    return refattn.attention(q, k, v, mask=mask, scale=scale, softcap=softcap, return_lse=True)


def unrounded_vjp(do, q, k, v, *, causal=False, scale=None, softcap=None):
    """The same, backward."""
    mask = refattn.masks.causal() if causal else None
    return refattn.attention_vjp(do, q, k, v, mask=mask, scale=scale, softcap=softcap)


def kernels(op):
    """Yield correct kernels of different make."""
    for tile in (16, 32, 64, 128):
        yield f"tiles of {tile}", correct(op, tile_q=tile, tile_k=tile)
    yield "reference", unrounded if op == "attention" else unrounded_vjp
    if op == "attention":
        yield "weights normalised before they are rounded", eager


def statistics(analysis, output, contract):
    """Yield every statistic of one output."""
    findings = judge(analysis, output, contract)
    for name, x in findings.figures.items():
        if name.endswith(("z_rms", "z_max", "row_scale")):
            yield name[name.find("z_") :] if "z_" in name else name, x
        if name.endswith("bound"):
            yield "share of the sound bound", x
    for part, directions in analysis.directions.items():
        error = output[part] - analysis.parts[part].want
        for direction in directions:
            theta, t = direction.estimate(np.nan_to_num(error))
            if abs(theta) > analysis.limits.theta:
                yield "score T", abs(t)


def calibrate(op, dtype, runs):
    """Yield the distribution of each statistic over correct kernels."""
    seen, contract = collections.defaultdict(list), Contract(op=op, dtype=dtype)
    for _, kernel in kernels(op):
        own = contract.with_options_of(kernel)
        session = Session(kernel, own)
        for case in CASES.values():
            usable = case.normal and case.level == "quick" and all(map(session.takes, case.needs))
            if not usable or not (case.backward if op.endswith("vjp") else case.forward):
                continue
            for seed in range(max(1, runs // 4)):
                p = case.problem(own, 1000 + seed)
                analysis = analyse(p, own)
                for name, x in statistics(analysis, session.call(p), own):
                    seen[name].append(float(x))
    limits = thresholds(contract, backward=op.endswith("vjp"))
    known = {"z_rms": limits.z_rms, "z_max": limits.z_max, "score T": limits.score, "row_scale": limits.row_scale}
    known["share of the sound bound"] = 1.0
    for name, values in sorted(seen.items()):
        x, limit = np.array(values), known[name]
        figures = (np.median(x), np.quantile(x, 0.99), x.max(), limit)
        yield (op, dtype, name, *(f"{n:.3g}" for n in figures), f"{(x > limit).sum()} of {x.size}")


def false_alarms(op, dtype, runs):
    """Return the runs of `check` on correct kernels that flag anything, as a sentence."""
    flagged, made = [], list(kernels(op))
    for seed in range(runs):
        name, kernel = made[seed % len(made)]
        report = check(kernel, Contract(op=op, dtype=dtype), "quick", seed=2000 + seed)
        flagged += [f"{name}, seed {2000 + seed}: {r.check}" for r in report.failures]
    return f"{len(flagged)} in {runs} runs" + "".join(f"; {text}" for text in flagged)


def detection(op, dtype):
    """Return how many mutants are killed, as a sentence."""
    counted = [mutant for mutant in mutants(op) if dtype not in mutant.equivalent]
    left = survivors(op, dtype)
    return f"{len(counted) - len(left)} of {len(counted)}" + "".join(f"; {text}" for text in left)


def table(header, rows):
    """Return a table of Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="runs of check per operation and dtype")
    parser.add_argument("--out", metavar="FOLDER", help="write calibration.md there")
    options = parser.parse_args()
    statistics_, rates = [], []
    for op in ("attention", "attention_vjp"):
        for dtype in DTYPES:
            statistics_ += list(calibrate(op, dtype, options.runs))
            rates.append((op, dtype, false_alarms(op, dtype, options.runs), detection(op, dtype)))
            print(*rates[-1], sep="  ", flush=True)
    header = ("operation", "dtype", "statistic", "median", "99 %", "largest", "threshold", "beyond it")
    page = [
        "# Calibration of the kit",
        "What the statistics of refattn.testing are on correct kernels: tiles of 16 to 128, weights rounded before or "
        "after they are normalised, or not at all, all standard normal cases of the quick level. Score tests count "
        "where the estimate is large enough to matter. The [error model](../error_model.md) says what they mean.",
        table(header, statistics_),
        "False alarms are results of `check` at quick level that flag a correct kernel; detected are the mutants that "
        "fail, those left out that are argued to be equivalent in that dtype.",
        table(("operation", "dtype", "false alarms", "detected"), rates),
        "; ".join(facts([]).values()) + ".",
        f"`python tests/benchmarks/calibrate.py --runs {options.runs} --out docs/results`",
    ]
    text = "\n\n".join(page) + "\n"
    print(text)
    if options.out is not None:
        (Path(options.out) / "calibration.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
