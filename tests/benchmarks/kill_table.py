"""Count the wrong kernels that nine published rules notice, and those that the kit notices.

    python tests/benchmarks/kill_table.py --out docs/results

Every mutant of `refattn.testing.mutants` goes through the rules of `published_rules.py`, in each precision, and through
`refattn.testing.check` at its quick level. A mutant that is argued equivalent in a precision is not counted there; its
argument is listed. The correct kernel goes first, and must pass everything.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

KIT = "the kit"
TOGETHER = "all nine together"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def judged(task):
    """Return {judge: whether it passes} for one mutant (None: the correct kernel) in one precision."""
    name, dtype, with_kit = task
    from published_rules import RULES, runs

    from refattn.testing.mutants.patch import correct

    make = correct if name is None else catalogue()[name].kernel
    passed = {rule.name: runs(rule, make(), dtype) for rule in RULES.values()}
    if with_kit:
        from refattn.testing import Contract, check

        passed[KIT] = check(make(), Contract(dtype=dtype), level="quick", fail_fast=True).ok
    return name, dtype, passed


def catalogue():
    """Return the forward mutants of attention by name."""
    from refattn.testing.mutants import mutants

    return {mutant.name: mutant for mutant in mutants(op="attention")}


def run(names, dtypes, with_kit, processes):
    """Return {name: {dtype: {judge: killed}}}, or stop if a judge refuses the correct kernel."""
    for name in ONE_THREAD:  # read when the workers import NumPy
        os.environ[name] = "1"
    tasks = [(name, dtype, with_kit) for name in (None, *names) for dtype in dtypes]
    killed = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for done, (name, dtype, passed) in enumerate(pool.map(judged, tasks), 1):
            if name is None and not all(passed.values()):
                refused = ", ".join(judge for judge, fine in passed.items() if not fine)
                pool.shutdown(wait=False, cancel_futures=True)
                raise SystemExit(f"the correct kernel does not pass in {dtype}: {refused}")
            if name is not None:
                killed.setdefault(name, {})[dtype] = {judge: not fine for judge, fine in passed.items()}
            print(f"\r{done} of {len(tasks)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return killed


def by(judge, entry):
    """Return whether a judge, or any of the rules, killed a mutant in one precision."""
    return any(dead for name, dead in entry.items() if name != KIT) if judge == TOGETHER else entry[judge]


def counts(record, judge, dtype):
    """Return how many of the counted mutants the judge killed, and how many there are."""
    counted = [m for m in record["mutants"] if dtype not in m["equivalent"]]
    return sum(by(judge, m["killed"][dtype]) for m in counted), len(counted)


def page(record):
    """Return the page for people."""
    dtypes, with_kit = record["dtypes"], record["with_kit"]
    lines = ["# Wrong kernels that tests notice", ""]
    lines += [f"| judge | {' | '.join(dtypes)} |", "|---|" + "---|" * len(dtypes)]
    rules = {rule["name"]: rule for rule in record["rules"]}
    for judge in (*rules, TOGETHER, *([KIT] if with_kit else [])):
        cells = []
        for dtype in dtypes:
            dead, of = counts(record, judge, dtype)
            cells.append(f"{dead} of {of}{'' if judge not in rules or dtype in rules[judge]['dtypes'] else ' *'}")
        bold = "**" if judge in (TOGETHER, KIT) else ""
        lines.append(f"| {bold}{judge}{bold} | {' | '.join(f'{bold}{cell}{bold}' for cell in cells)} |")
    lines += ["", "\\* The suite does not run this precision; judged by:", ""]
    lines += [f"- {rule['name']}: {rule['carried']}" for rule in rules.values() if rule["carried"]]
    lines += ["", "The correct kernel, which the mutants are patches of, passes everything in every precision.", ""]
    if with_kit:
        lines += listed(record, "Killed by the kit alone", lambda k: k[KIT] and not by(TOGETHER, k))
        lines += listed(record, "Killed by a rule and not by the kit", lambda k: by(TOGETHER, k) and not k[KIT])
    survivors = "Killed by nobody" if with_kit else "Killed by no rule"
    lines += listed(record, survivors, lambda k: not by(TOGETHER, k) and not k.get(KIT))
    lines += ["## Not counted, because equivalent", ""]
    for m in record["mutants"]:
        lines += [f"- {m['name']}, in {dtype}: {why}" for dtype, why in m["equivalent"].items() if dtype in dtypes]
    lines += ["", "## Where the rules stand", ""]
    lines += [f"- {name}: {rule['source']}" for name, rule in rules.items()]
    return "\n".join([*lines, "", record["machine"], "", f"`{record['command']}`", ""])


def listed(record, title, wanted):
    """Return a heading, and the mutants for which `wanted` holds in some precision."""
    lines = []
    for m in record["mutants"]:
        where = [dtype for dtype in record["dtypes"] if dtype not in m["equivalent"] and wanted(m["killed"][dtype])]
        if where:
            lines.append(f"- {m['name']} ({m['group']}): {', '.join(where)}")
    return [f"## {title}", "", *(lines or ["None."]), ""]


def main():
    from published_rules import DTYPES, RULES

    from refattn.costs.machine import facts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float16", "float32"])
    parser.add_argument("--out", type=Path, help="the folder to write kill_table.md and kill_table.json to")
    parser.add_argument("--without-kit", action="store_true", help="the nine rules only")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    found = catalogue()
    killed = run(list(found), options.dtypes, not options.without_kit, options.processes)
    record = {
        "machine": "; ".join(facts([]).values()) + ".",
        "command": f"python tests/benchmarks/kill_table.py {shlex.join(sys.argv[1:])}".strip(),
        "dtypes": options.dtypes,
        "with_kit": not options.without_kit,
        "rules": [
            {"name": r.name, "source": r.source, "dtypes": r.dtypes, "carried": r.carried} for r in RULES.values()
        ],
        "mutants": [
            {"name": name, "group": m.group, "equivalent": dict(m.equivalent), "killed": killed[name]}
            for name, m in found.items()
        ],
    }
    if options.out:
        (options.out / "kill_table.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (options.out / "kill_table.md").write_text(page(record), encoding="utf-8")
    print(page(record))


if __name__ == "__main__":
    main()
