"""Waivers: a ledger of checks that are known to fail, each with its reason and a link, for as long as they fail.

A ledger is a TOML file::

    [[waiver]]
    check = "attention/softcap_*"       # an id, or a pattern of fnmatch
    reason = "tanh.approx is two ulps off"
    link = "https://example.org/issues/12"    # or "#12", "owner/repo#12"
    kernel = "flash_*"                  # optional: whose reports it is for, a pattern
    dtype = "bfloat16"                  # optional: of the contract
    expires = 2030-06-30                # optional: the last day on which it counts

A waiver that is not needed any more is itself a complaint, and so is one that has expired or that is about no check:
a ledger says what is wrong today.
"""

import datetime
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from refattn.testing.formats import STORED
from refattn.testing.verdicts import BAD, NOT_RUN, PASS, Report, Result, Waiver

NEEDED = ("check", "reason", "link")
OPTIONAL = ("kernel", "dtype", "expires")
LINK = re.compile(r"https?://[^\s/]+\S*|([\w.-]+/[\w.-]+)?#\d+")


@dataclass(frozen=True)
class WaiverRule:
    """One entry of a ledger."""

    check: str
    """The id of a check, or a pattern of fnmatch for many."""
    reason: str
    link: str
    kernel: str | None = None
    """A pattern of the report's subject."""
    dtype: str | None = None
    expires: datetime.date | None = None
    """The last day on which it counts."""
    source: str = ""
    """Where it stands: "waiver 2 of waivers.toml"."""

    def concerns(self, report: Report) -> bool:
        """Say whether the entry is for the report's kernel and dtype."""
        subject_fits = self.kernel is None or _matches(self.kernel, report.subject)
        return subject_fits and (self.dtype is None or report.contract is None or report.contract.dtype == self.dtype)

    def covers(self, report: Report, result: Result) -> bool:
        """Say whether the entry is for this check; without a contract, the dtype is a part of the check's id."""
        named = report.contract is not None or self.dtype is None or self.dtype in result.check.split("/")
        return named and self.concerns(report) and _matches(self.check, result.check)


def load_waivers(path: str | Path) -> list[WaiverRule]:
    r"""Read a ledger of waivers.

    Parameters
    ----------
    path : str or Path
        A TOML file, a table ``[[waiver]]`` per entry: check, reason and link; optionally kernel, dtype, expires.

    Returns
    -------
    list of WaiverRule
        In the order of the file; those that have expired are in it, `apply_waivers` complains about them.

    Raises
    ------
    ValueError
        If the file is not TOML, or an entry lacks something or has something unknown; with the file and the entry.
    TypeError
        If a value is of the wrong type.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "waivers.toml"
    ...     _ = path.write_text('[[waiver]]\ncheck = "attention/ties"\nreason = "known"\nlink = "#12"')
    ...     [rule.check for rule in load_waivers(path)]
    ['attention/ties']
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:  # of TOML, with the line, or of UTF-8
        raise ValueError(f"{path} is not TOML: {error}") from error
    unknown = [name for name in data if name != "waiver"]
    if unknown:
        raise ValueError(f"{path}: unknown {', '.join(map(repr, unknown))}; wanted tables [[waiver]] only")
    entries = data.get("waiver", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError(f"{path}: waiver must be tables, each under a line [[waiver]]")
    return [_rule(entry, f"waiver {number} of {path}") for number, entry in enumerate(entries, 1)]


def apply_waivers(report: Report, waivers: Iterable[WaiverRule], today: datetime.date | None = None) -> None:
    """Mark the bad results that a ledger accepts, and complain about what should leave the ledger.

    Parameters
    ----------
    report : Report
        Changed in place: its bad results get their waivers; `complaints` gets a line for an entry that has expired,
        that matches no check, or whose checks all pass. An entry for another kernel or dtype is left alone, and so is
        one that matches a check that was not run: nothing is known about it.
    waivers : iterable of WaiverRule
        As `load_waivers` returns them.
    today : datetime.date, optional
        The day for which `expires` is judged; the present one unless given.

    Examples
    --------
    >>> report = Report("mine", None, "quick", 0, [Result("rope/ties", "FAIL"), Result("rope/plain", "PASS")])
    >>> apply_waivers(report, [WaiverRule("rope/ties", "known", "#12"), WaiverRule("rope/p*", "old", "#3")])
    >>> report.results[0].waiver.link, report.failures
    ('#12', [])
    >>> report.complaints
    ['the waiver for rope/p* is not needed any more: the check passes; the reason was: old (#3)']
    """
    today = datetime.date.today() if today is None else today
    for rule in waivers:
        if not rule.concerns(report):
            continue
        matched = [i for i, result in enumerate(report.results) if rule.covers(report, result)]
        complaint = _complaint(rule, [report.results[i] for i in matched], today)
        if complaint is not None:
            if complaint not in report.complaints:
                report.complaints.append(complaint)
            continue
        waiver = Waiver(rule.check, rule.reason, rule.link, rule.expires)
        for i in matched:
            result = report.results[i]
            if result.verdict in BAD and result.waiver is None:
                report.results[i] = replace(result, waiver=waiver)


def _complaint(rule: WaiverRule, matched: list[Result], today: datetime.date) -> str | None:
    """Return why the entry should leave the ledger; None if it should stay."""
    was = f"the reason was: {rule.reason} ({rule.link})"
    name = f"the waiver for {rule.check}" + f" ({rule.source})" * bool(rule.source)
    if rule.expires is not None and rule.expires < today:
        return f"{name} expired on {rule.expires}; {was}"
    if not matched:
        return f"{name} matches no check; {was}"
    ran = [result for result in matched if result.verdict != NOT_RUN]
    if ran and all(result.verdict == PASS for result in ran):
        passes = "the check passes" if len(ran) == 1 else f"all {len(ran)} checks pass"
        return f"{name} is not needed any more: {passes}; {was}"
    return None


def _matches(pattern: str, name: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # an id may have brackets, which a pattern reads as a choice


def _rule(entry: dict[str, Any], source: str) -> WaiverRule:
    unknown = [name for name in entry if name not in NEEDED + OPTIONAL]
    if unknown:
        raise ValueError(f"{source}: unknown {', '.join(map(repr, unknown))}; wanted {', '.join(NEEDED + OPTIONAL)}")
    for name in NEEDED:
        if name not in entry:
            raise ValueError(f"{source}: no {name}; every waiver has {', '.join(NEEDED)}")
    for name, x in entry.items():
        if name == "expires":
            if type(x) is not datetime.date:  # a date with a time is a date too
                raise TypeError(f"{source}: expires is {x!r}; wanted a date such as 2030-06-30, without quotes")
        elif not isinstance(x, str):
            raise TypeError(f"{source}: {name} is {x!r}; wanted a string")
        elif not x.strip():
            raise ValueError(f"{source}: {name} is empty")
    if not LINK.fullmatch(entry["link"]):
        raise ValueError(f"{source}: link is {entry['link']!r}; wanted a URL, #12 or owner/repo#12")
    if entry.get("dtype", STORED[0]) not in STORED:
        raise ValueError(f"{source}: dtype is {entry['dtype']!r}; wanted one of {', '.join(STORED)}")
    return WaiverRule(**entry, source=source)
