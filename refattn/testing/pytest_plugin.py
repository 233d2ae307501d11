"""The pytest plugin: options that say how thoroughly kernels are judged, and the fixture `attention_check`.

pytest loads this file in every run of an environment that has refattn; the kit is imported when a test uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from refattn.testing.contract import Contract
    from refattn.testing.verdicts import Report


@dataclass(eq=False)
class Settings:
    """What the options of one run of pytest say."""

    level: str = "quick"
    seed: int = 0
    waivers: str | None = None
    html: str | None = None
    reports: list[Any] = field(default_factory=list)
    """The report of each kernel that was judged."""


_settings = [Settings()]  # one more for each run of pytest inside of another


def settings() -> Settings:
    """Return what the present run of pytest was asked for."""
    return _settings[-1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("attention", "attention kernels (refattn.testing)")
    group.addoption(
        "--attention-level",
        choices=("quick", "standard", "deep"),
        default="quick",
        help="how many checks a kernel gets (default: quick)",
    )
    group.addoption(
        "--attention-seed", type=int, default=0, metavar="N", help="of the numbers that are drawn (default: 0)"
    )
    group.addoption("--attention-waivers", metavar="FILE", help="a ledger of checks that are known to fail (TOML)")
    group.addoption("--attention-html", metavar="FILE", help="write a page about the kernels that were judged")


def pytest_configure(config: pytest.Config) -> None:
    """Take the options down, and refuse at once what cannot be read or written."""
    option = config.getoption
    own = Settings(
        option("--attention-level"),
        option("--attention-seed"),
        option("--attention-waivers"),
        option("--attention-html"),
    )
    if own.seed < 0:
        raise pytest.UsageError(f"--attention-seed is {own.seed}; wanted 0 or more")
    if own.waivers is not None:
        from refattn.testing.waivers import load_waivers

        try:
            load_waivers(own.waivers)
        except (OSError, ValueError, TypeError) as error:
            raise pytest.UsageError(f"--attention-waivers: {error}") from error
    if own.html is not None and not Path(own.html).resolve().parent.is_dir():
        raise pytest.UsageError(f"--attention-html: there is no folder {Path(own.html).parent}")
    _settings.append(own)
    config.add_cleanup(lambda: _settings.remove(own))


@pytest.fixture
def attention_check() -> Callable[..., "Report"]:
    """``check(kernel, contract)``, which fails the test, with the report, unless the kernel keeps its contract.

    Like `refattn.testing.check`, but for the level, the seed and the waivers: those of the options.
    """
    own = settings()

    def check(
        kernel: Callable[..., Any], contract: "Contract | None" = None, level: str | None = None, **options: Any
    ) -> "Report":
        __tracebackhide__ = True
        from refattn.testing import kit
        from refattn.testing.diagnose import diagnose
        from refattn.testing.ledger import apply_ledger
        from refattn.testing.reports.common import nothing_ran
        from refattn.testing.waivers import load_waivers

        options.setdefault("seed", own.seed)
        report = kit.check(kernel, contract, own.level if level is None else level, **options)
        if own.waivers is not None:
            apply_ledger(report, load_waivers(own.waivers))
        own.reports.append(report)
        if report.failures:
            diagnose(report)
        if not report.ok or nothing_ran(report):
            raise AssertionError(str(report))
        return report

    return check


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page."""
    own = settings()
    if own.html is None or not own.reports:
        return
    path = Path(own.html)
    worker = getattr(session.config, "workerinput", {}).get("workerid")  # of pytest-xdist: each has kernels of its own
    _write_pages(path.with_stem(f"{path.stem}-{worker}") if worker else path, own.reports)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say where the page is."""
    own = settings()
    if own.html is not None and own.reports:
        terminalreporter.write_line(f"attention kernels: {own.html}")


def _write_pages(path: Path, reports: "list[Report]") -> None:
    """Write one report as a page, or several as pages of their own and one that links to them."""
    import html

    from refattn.testing.reports.common import verdict, write
    from refattn.testing.reports.style import STYLE

    if len(reports) == 1:
        reports[0].to_html(path)
        return
    lines = []
    for number, report in enumerate(reports, 1):
        one = path.with_stem(f"{path.stem}-{number}")
        report.to_html(one)
        total = verdict(report)
        dtype = "" if report.contract is None else f" {report.contract.op}, {report.contract.dtype}"
        named = f'<a href="{html.escape(one.name)}">{html.escape(report.subject)}</a>{dtype}'
        lines.append(f'<p class="card {total}"><span class="badge {total}">{total}</span> {named}</p>')
    head = f'<meta charset="utf-8"><title>Attention kernels</title><style>{STYLE}</style>'
    body = "\n".join(["<h1>Attention kernels</h1>", *lines])
    write(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n')
