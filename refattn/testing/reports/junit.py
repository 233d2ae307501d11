"""A report as JUnit XML, which test services read: one testcase for each check.

There is no standard; the elements are those of the Ant task's schema that services agree on: testsuites, testsuite,
testcase, failure, skipped.
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from refattn.testing.reports.common import WAIVED, about, clean, counts, figures, repeat_one, seconds, write
from refattn.testing.verdicts import BAD, FAIL, NOT_RUN, SUSPECT, UNDECLARED, Report, Result

COMPLAINT = "COMPLAINT"


def as_xml(report: Report) -> str:
    """Return the report as the text of an XML file.

    Parameters
    ----------
    report : Report
        What to write. Its complaints, if there are any, become failures of their own, so that the file is red when
        the report is.

    Returns
    -------
    str
        The whole file.

    Examples
    --------
    >>> from refattn.testing.verdicts import Report, Result
    >>> print(as_xml(Report("mine", None, "quick", 0, [Result("rope/plain", "PASS")])))
    <?xml version="1.0" encoding="utf-8"?>
    <testsuites name="refattn.testing" tests="1" failures="0" skipped="0" errors="0" time="0.000000">
      <testsuite name="mine" tests="1" failures="0" skipped="0" errors="0" time="0.000000">
        <properties>
          <property name="level" value="quick" />
          <property name="seed" value="0" />
        </properties>
        <testcase classname="mine" name="rope/plain" time="0.000000" />
      </testsuite>
    </testsuites>
    <BLANKLINE>
    """
    number = counts(report)
    attributes = {
        "tests": str(len(report.results) + len(report.complaints)),
        "failures": str(sum(number.get(name, 0) for name in (FAIL, SUSPECT, UNDECLARED)) + len(report.complaints)),
        "skipped": str(number.get(NOT_RUN, 0) + number.get(WAIVED, 0)),
        "errors": "0",
        "time": f"{seconds(report):.6f}",
    }
    root = ElementTree.Element("testsuites", {"name": "refattn.testing", **attributes})
    suite = ElementTree.SubElement(root, "testsuite", {"name": clean(report.subject), **attributes})
    properties = ElementTree.SubElement(suite, "properties")
    for name, x in about(report).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": x})
    for result in report.results:
        _testcase(suite, report, result)
    for rank, complaint in enumerate(report.complaints, 1):
        case = _case(suite, report, f"complaint {rank}", 0.0)
        ElementTree.SubElement(case, "failure", {"type": COMPLAINT, "message": clean(complaint)})
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def dump(report: Report, path: str | Path) -> None:
    """Write the report as JUnit XML; an interruption leaves the old file.

    Parameters
    ----------
    report : Report
        What to write.
    path : str or Path
        The file.
    """
    write(path, as_xml(report))


def _case(suite: ElementTree.Element, report: Report, name: str, time: float) -> ElementTree.Element:
    attributes = {"classname": clean(report.subject), "name": clean(name), "time": f"{time:.6f}"}
    return ElementTree.SubElement(suite, "testcase", attributes)


def _testcase(suite: ElementTree.Element, report: Report, result: Result) -> None:
    case = _case(suite, report, result.check, result.seconds if math.isfinite(result.seconds) else 0.0)
    message = clean(result.message)
    if result.verdict == NOT_RUN:
        ElementTree.SubElement(case, "skipped", {"message": message})
    elif result.bad:
        failure = ElementTree.SubElement(case, "failure", {"type": result.verdict, "message": message})
        measured = [f"{name} = {x}" for name, x in figures(result)]
        failure.text = "\n".join([message, *measured, repeat_one(report, result.check)])
    elif result.verdict in BAD and result.waiver is not None:
        why = f"{result.verdict}, waived: {result.waiver.reason} ({result.waiver.link})"
        ElementTree.SubElement(case, "skipped", {"message": clean(why)})
