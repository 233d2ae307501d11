"""Waivers on a run that was not whole: one level, some of the checks, a check at a time.

`refattn.testing.waivers` complains about an entry of the ledger that is not needed any more. Whether that is so shows
only when every check has run that the entry is about.
"""

import datetime
from collections.abc import Iterable

from refattn.testing.kit import operation
from refattn.testing.verdicts import BAD, NOT_RUN, Report, Result
from refattn.testing.waivers import WaiverRule, apply_waivers


def apply_ledger(report: Report, rules: Iterable[WaiverRule], today: datetime.date | None = None) -> None:
    """Mark what a ledger accepts; complain only where the results suffice to say that an entry must go.

    Parameters
    ----------
    report : Report
        Changed in place, as `refattn.testing.waivers.apply_waivers` does it.
    rules : iterable of WaiverRule
        As `load_waivers` returns them.
    today : datetime.date, optional
        The day for which `expires` is judged; the present one unless given.

    Examples
    --------
    >>> from refattn.testing.contract import Contract
    >>> report = Report("mine", Contract(), "quick", 0, [Result("attention/normal_plain", "PASS")])
    >>> apply_ledger(report, [WaiverRule("attention/normal_*", "known", "#12")])  # the others have not run
    >>> report.complaints
    []
    """
    today = datetime.date.today() if today is None else today
    ran = {result.check for result in report.results}
    every = set(ran)
    if report.contract is not None:
        every |= {check.id for check in operation(report.contract.op).checks(report.contract)}
    kept = []
    for rule in rules:
        covered = {check for check in every if rule.covers(report, Result(check, NOT_RUN))}
        needed = any(result.verdict in BAD and rule.covers(report, result) for result in report.results)
        expired = rule.expires is not None and rule.expires < today
        if covered <= ran or needed or expired:
            kept.append(rule)
    apply_waivers(report, kept, today)
