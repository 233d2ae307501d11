"""A report as strict JSON, and back; schema.json beside this file says what the file contains.

Pictures are left out. NaN and infinities are the strings "nan", "inf" and "-inf", which JSON has no numbers for.
"""

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refattn.testing.contract import Contract
from refattn.testing.reports.common import counts, seconds, write
from refattn.testing.verdicts import VERDICTS, Diagnosis, Report, Result, Waiver

SCHEMA = 1
"""The version of the layout; a reader refuses others."""


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as dicts, lists, strings, numbers, bools and None.

    Parameters
    ----------
    report : Report
        What to write.

    Returns
    -------
    dict
        As schema.json describes it.

    Examples
    --------
    >>> from refattn.testing.verdicts import Report, Result
    >>> results = [Result("attention/huge", "FAIL", "o is not finite", {"bound": float("inf")})]
    >>> as_dict(Report("mine", None, "quick", 0, results))["results"][0]["figures"]
    {'bound': 'inf'}
    """
    return {
        "schema": SCHEMA,
        "subject": report.subject,
        "contract": None if report.contract is None else _plain(report.contract.described()),
        "level": report.level,
        "seed": int(report.seed),
        "ok": report.ok,
        "counts": counts(report),
        "seconds": seconds(report),
        "results": [_result(result) for result in report.results],
        "diagnoses": [
            {"name": x.name, "sentence": x.sentence, "explained": _number(x.explained)} for x in report.diagnoses
        ],
        "complaints": list(report.complaints),
    }


def dump(report: Report, path: str | Path) -> None:
    """Write the report as JSON; an interruption leaves the old file.

    Parameters
    ----------
    report : Report
        What to write.
    path : str or Path
        The file.
    """
    write(path, json.dumps(as_dict(report), indent=2, allow_nan=False) + "\n")


def load(path: str | Path) -> Report:
    """Read a report that `dump` wrote.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Report
        Without pictures and context.

    Raises
    ------
    ValueError
        If the file is not such a report, with its name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dump(Report("mine", None, "quick", 0, [Result("rope/plain", "PASS")]), f"{folder}/report.json")
    ...     load(f"{folder}/report.json").count("PASS")
    1
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path} is not a report that this version reads: schema is {found!r}, wanted {SCHEMA}")
    try:
        return _report(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a report: {type(error).__name__}: {error}") from error


def _report(data: dict[str, Any]) -> Report:
    results = []
    for entry in data["results"]:
        if entry["verdict"] not in VERDICTS:
            raise ValueError(f"the verdict of {entry['check']} is {entry['verdict']!r}")
        figures = {name: float(x) for name, x in entry["figures"].items()}
        waiver = None if entry["waiver"] is None else _waiver(entry["waiver"])
        results.append(
            Result(entry["check"], entry["verdict"], entry["message"], figures, float(entry["seconds"]), (), waiver)
        )
    return Report(
        subject=data["subject"],
        contract=None if data["contract"] is None else _contract(data["contract"]),
        level=data["level"],
        seed=data["seed"],
        results=results,
        diagnoses=[Diagnosis(x["name"], x["sentence"], float(x["explained"])) for x in data["diagnoses"]],
        complaints=list(data["complaints"]),
    )


def _contract(data: dict[str, Any]) -> Contract:
    given = {name: _tuples(x) for name, x in data.items()}
    if "exp_ulp" in given:
        given["exp_ulp"] = float(given["exp_ulp"])
    return Contract(**given)


def _waiver(data: dict[str, Any]) -> Waiver:
    expires = None if data["expires"] is None else datetime.date.fromisoformat(data["expires"])
    return Waiver(data["check"], data["reason"], data["link"], expires)


def _result(result: Result) -> dict[str, Any]:
    waiver = result.waiver
    return {
        "check": result.check,
        "verdict": result.verdict,
        "message": result.message,
        "figures": {str(name): _number(x) for name, x in result.figures.items()},
        "seconds": _number(result.seconds),
        "waiver": waiver
        and {
            "check": waiver.check,
            "reason": waiver.reason,
            "link": waiver.link,
            "expires": waiver.expires and waiver.expires.isoformat(),
        },
    }


def _number(x: Any) -> float | str:
    x = float(x)
    return x if math.isfinite(x) else str(x)


def _plain(x: Any) -> Any:
    """Return what JSON can hold; arrays as lists, everything unknown as its repr."""
    if isinstance(x, Mapping):
        return {str(name): _plain(y) for name, y in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        return _plain(x.tolist())
    if isinstance(x, tuple | list):
        return [_plain(y) for y in x]
    if isinstance(x, float):
        return _number(x)
    return x if x is None or isinstance(x, str | bool | int) else repr(x)


def _tuples(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _tuples(y) for name, y in x.items()}
    return tuple(_tuples(y) for y in x) if isinstance(x, list) else x
