"""What `refattn.testing.audit` found, as text for people, for programs, and as a page."""

import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from refattn.testing.mutants import MUTANTS, Mutant

HINTS = {
    "semantics": "every option by itself, with a value that is not the default, on more than one head",
    "masks": "fewer queries than keys and more, windows of 0 and of more than all keys, rows that see nothing",
    "layout": "batches, head counts, and widths of q and v that all differ; arrays that are not contiguous",
    "tiles": "lengths of 1, one less and one more than a tile, and of several tiles; keys at their edges",
    "online_softmax": "a running maximum that rises late, scores of 1e4, scores that are all very negative",
    "precision": "an error bound per element, and statistics of the error; one tolerance for all hides these",
    "sinks_splits_lse": "lse compared too, sinks that dominate, several numbers of splits, splits that see nothing",
    "state": "a second call after one with other values, and of another shape; the same call twice, bit for bit",
    "nan": "NaN and infinity in an input, and beyond the length of a sequence, and which rows they may reach",
    "dropout": "a given keep mask, its scale 1 / (1 - p), and lse, which does not know of it",
    "backward": "each gradient under each option, rows that see nothing, grouped heads, broadcast biases",
}
"""For each group, the inputs and comparisons that tell its mutants from a correct kernel."""


@dataclass
class AuditReport:
    """Which mutants a suite of tests noticed."""

    subject: str
    op: str
    dtype: str
    killed: list[Mutant] = field(default_factory=list)
    survived: list[Mutant] = field(default_factory=list)
    equivalent: list[Mutant] = field(default_factory=list)
    """Those that nobody could notice in this dtype; they do not count."""
    noticed: dict[str, str] = field(default_factory=dict)
    """For each mutant that was killed, by name, which test failed and how."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every mutant was noticed."""
        return not self.survived

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """For each group, how many of its mutants were killed, and how many there are."""
        both = [*self.killed, *self.survived]
        order = [m.group for m in MUTANTS if m in both]
        killed, every = [m.group for m in self.killed], [m.group for m in both]
        return {group: (killed.count(group), every.count(group)) for group in dict.fromkeys(order)}

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        total = len(self.killed) + len(self.survived)
        text = f"your suite ({self.subject}) kills {len(self.killed)} of {total} mutants of {self.op} in {self.dtype}"
        return text if self.ok else f"{text}; it misses {len(self.survived)}"

    def __str__(self) -> str:
        """Return what was missed, with hints, then the sums."""
        blocks = []
        for group in self.groups:
            missed = [m for m in self.survived if m.group == group]
            if missed:
                hint = f"; to notice them: {HINTS[group]}" if group in HINTS else ""
                blocks.append(textwrap.fill(f"{group}: {len(missed)} missed{hint}", 100, subsequent_indent="    "))
                blocks += [f"  {m.name}\n" + "\n".join(f"    {line}" for line in m.diff.splitlines()) for m in missed]
        width = max((len(group) for group in self.groups), default=0)
        table = [f"{group:<{width}}  {a:>3} of {b:>3}" for group, (a, b) in self.groups.items()]
        if self.equivalent:
            table.append(f"{len(self.equivalent)} more are as good as correct in {self.dtype} and do not count")
        hung = [name for name, how in self.noticed.items() if "did not return" in how]
        if hung:
            table.append(f"{len(hung)} were noticed because the test did not end: {', '.join(hung)}")
        return "\n\n".join([*blocks, "\n".join(table), f"{self.headline}; {self.seconds:.1f} s"])

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs: strings, numbers, lists and dicts."""
        return {
            "subject": self.subject,
            "op": self.op,
            "dtype": self.dtype,
            "ok": self.ok,
            "seconds": self.seconds,
            "groups": {group: {"killed": a, "of": b} for group, (a, b) in self.groups.items()},
            "killed": [{"name": m.name, "group": m.group, "noticed": self.noticed[m.name]} for m in self.killed],
            "survived": [{"name": m.name, "group": m.group, "diff": m.diff} for m in self.survived],
            "equivalent": [{"name": m.name, "why": m.equivalent[self.dtype]} for m in self.equivalent],
        }

    def to_html(self, path: str | Path) -> None:
        """Write a page to look at."""
        from refattn.testing.reports.common import write

        write(path, page(self))


def page(report: AuditReport) -> str:
    """Return the report as one HTML page, without script and with nothing to fetch."""
    from refattn.testing.reports.style import STYLE

    total = "PASS" if report.ok else "FAIL"
    rows = "".join(f"<tr><td>{g}</td><td>{a} of {b}</td></tr>" for g, (a, b) in report.groups.items())
    parts = [f'<header class="{total}"><h1>{escape(report.headline)}</h1></header>', f"<table>{rows}</table>"]
    for group in report.groups:
        missed = [m for m in report.survived if m.group == group]
        if missed:
            parts.append(
                f"<h2>{group}: {len(missed)} missed</h2><p>To notice them: {escape(HINTS.get(group, ''))}.</p>"
            )
        parts += [f'<div class="card"><b>{escape(m.name)}</b><pre>{escape(m.diff)}</pre></div>' for m in missed]
    noticed = "".join(f"<li>{escape(m.name)}: {escape(report.noticed[m.name])}</li>" for m in report.killed)
    parts.append(f'<details class="card"><summary>What was noticed</summary><ul>{noticed}</ul></details>')
    head = f'<meta charset="utf-8"><title>{escape(report.headline)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
