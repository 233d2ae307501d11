"""Time how long masks take to be counted and to be cut into tiles, for sequences whose matrix nobody could hold.

    python tests/benchmarks/masks.py --out docs/results/masks

Each answer is checked before its time counts: the pairs of the tiles must be the pairs of the count. Times are the best
of a few runs, each with a fresh mask, so that nothing is remembered from the run before.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from refattn.costs.machine import facts
from refattn.masks import (
    bigbird,
    causal,
    chunked,
    dilated,
    document,
    fixed,
    global_tokens,
    longformer,
    padding,
    prefix_lm,
    random,
    random_blocks,
    strided,
    window,
)
from refattn.masks.drawn import draw

TILES = (64, 128)  # queries and keys of a tile: what the numba backend asks for
PATTERNS = {
    "causal()": lambda T: causal(),
    "window(255, 255)": lambda T: window(255, 255),
    "causal() & window(1023, 0)": lambda T: causal() & window(1023, 0),
    "causal() & (window(1023, 0) | global_tokens([0, 1, 2, 3]))": lambda T: (
        causal() & (window(1023, 0) | global_tokens([0, 1, 2, 3]))
    ),
    "longformer(256, [0, T / 2])": lambda T: longformer(256, [0, T // 2]),
    "bigbird(64)": lambda T: bigbird(64),
    "random_blocks(3, 64)": lambda T: random_blocks(3, 64),
    "random(64)": lambda T: random(64),
    "causal() & chunked(8192)": lambda T: causal() & chunked(8192),
    "prefix_lm(1000)": lambda T: prefix_lm(1000),
    "dilated(8, 64)": lambda T: dilated(8, 64),
    "strided(128, 4096)": lambda T: strided(128, 4096),
    "fixed(4096, 64)": lambda T: fixed(4096, 64),
    "causal() & document of 64": lambda T: causal() & document(np.arange(T) * 64 // T),
    "padding([T / 2, T])": lambda T: padding([T // 2, T]),
}
MANY = {"causal()", "prefix_lm(1000)", "padding([T / 2, T])", "strided(128, 4096)", "fixed(4096, 64)"}
"""A constant share of all tiles is not empty: a million at 131,072, and too many for memory at a million tokens."""
SCATTERED = {"random(64)"}
"""Every tile is partial: the bits alone would take gigabytes."""


def best(make, ask, repeats):
    """Return the answer and the least time, in seconds, that it took."""
    times = []
    for _ in range(repeats):
        mask = make()
        draw.cache_clear()
        start = time.perf_counter()
        answer = ask(mask)
        times.append(time.perf_counter() - start)
    return answer, min(times)


def rows(T, repeats):
    for name, pattern in PATTERNS.items():
        row = {"pattern": name, "T": T}
        row["visible"], row["pairs_s"] = best(lambda p=pattern: p(T), lambda mask: mask.pairs(T, T), repeats)
        if name not in SCATTERED and (name not in MANY or T <= 1 << 17):
            blocks, row["blocks_s"] = best(lambda p=pattern: p(T), lambda mask: mask.blocks(T, T, *TILES), repeats)
            if blocks.pairs != row["visible"]:
                raise AssertionError(f"{name}: the tiles show {blocks.pairs} pairs, the count is {row['visible']}")
            row |= {"tiles": len(blocks.columns), "partial": len(blocks.bits)}
        print(line(row), flush=True)
        yield row


def line(row):
    name = row["pattern"].replace("|", "\\|")  # a bar would end the cell
    cells = [f"`{name}`", f"{row['T']:,}", f"{row['visible']:,}", f"{row['pairs_s'] * 1e3:.2f} ms"]
    if "tiles" in row:
        cells += [f"{row['blocks_s'] * 1e3:.0f} ms", f"{row['tiles']:,}", f"{row['partial']:,}"]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[131_072, 1_000_000])
    options = parser.parse_args()
    found = [row for T in options.lengths for row in rows(T, options.repeats)]
    head = ["| mask | T | visible pairs | `pairs` | `blocks` | tiles | partial |", "|---|---|---|---|---|---|---|"]
    machine = "; ".join(facts([]).values())
    note = f"{machine}; best of {options.repeats}; tiles of {TILES[0]} queries by {TILES[1]} keys."
    text = "\n".join(["# Masks", "", *head, *map(line, found), "", note, ""])
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
