"""How long sequences are: a list, a CSV file, or a text such as "lognormal:median=300,p95=2000,max=8192".

All of them become the same thing, whole numbers of tokens with probabilities, so that quantiles and means are exact.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from refattn.arrays import check_number

LONGEST = 10_000_000
"""Tokens; more are refused as a slip."""
CUT = 1e-6
"""A log-normal distribution without max ends at its quantile 1 - CUT."""
COLUMNS = ("length", "lengths", "tokens", "prompt", "prompt_tokens", "n")
"""Which of several columns of a CSV file is read, if none is named."""
FORMS = 'wanted "512", "uniform:64..2048", "lognormal:median=300,p95=2000,max=8192", or a .csv file'


@dataclass(frozen=True, eq=False)
class Lengths:
    """Lengths in tokens with their probabilities.

    Examples
    --------
    >>> lengths = Lengths.of("uniform:1..100")
    >>> lengths.mean, lengths.quantile(0.5), lengths.quantile(0.95), lengths.largest
    (50.5, 50, 95, 100)
    >>> print(Lengths.of([10, 30, 10, 10]))
    4 lengths: p50 10, p95 30, mean 15, at most 30
    """

    text: str
    """What they were made from."""
    values: NDArray[np.int64]
    """Lengths that occur, ascending."""
    shares: NDArray[np.float64]
    """Their probabilities, of which none is 0."""

    @classmethod
    def of(cls, given: Any) -> "Lengths":
        """Return lengths from what a caller has.

        Parameters
        ----------
        given : Lengths, int, str, Path, or 1-D array of int
            A text is a number, ``uniform:LOW..HIGH`` (both ends included), ``lognormal:median=M,p95=P,max=X`` (rounded
            to whole tokens, at least 1; what is above max counts as max), or a file: ``x.csv`` or ``x.csv:COLUMN``.

        Returns
        -------
        Lengths

        Raises
        ------
        TypeError, ValueError
            For what is none of these, for no lengths at all, and for lengths below 1.
        OSError
            For a file that cannot be read.

        Examples
        --------
        >>> lengths = Lengths.of("lognormal:median=300,p95=2000,max=8192")
        >>> lengths.quantile(0.5), lengths.quantile(0.95), lengths.largest
        (300, 2000, 8192)
        """
        if isinstance(given, Lengths):
            return given
        if isinstance(given, Path):
            return cls.read(given)
        if isinstance(given, str):
            return _parsed(given.strip())
        try:
            array = np.asarray(given)
        except ValueError as error:  # rows of several lengths
            raise TypeError(f"lengths: got a nested {type(given).__name__}; wanted whole numbers") from error
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"lengths: got {_kind(given, array)}; wanted whole numbers, a text, or Lengths")
        if array.ndim > 1:
            raise ValueError(f"lengths: an array of shape {array.shape}; wanted one dimension")
        array = np.atleast_1d(array)
        if not array.size:
            raise ValueError("lengths: there are none; wanted at least one")
        for i in (int(array.argmin()), int(array.argmax())):
            _check(int(array[i]), f"number {i + 1} of {array.size:,}")
        return _counted(f"{array.size:,} lengths" if array.size > 1 else str(array[0]), array)

    @classmethod
    def read(cls, path: "str | Path", column: str | None = None) -> "Lengths":
        """Read a CSV file: a number a line, or a header and a column of numbers.

        Parameters
        ----------
        path : path
        column : str, optional
            Which of several; unless given the only one, or one called length, lengths, tokens, prompt, or n.

        Returns
        -------
        Lengths

        Raises
        ------
        ValueError
            With the file and the line, for what is not a whole number of at least 1, for a line with fewer or more
            fields than the first, for a column that is not there, and for a file without numbers.
        OSError
            For a file that cannot be read.
        """
        rows = _rows(Path(path))
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path}: the file is empty; wanted lengths, one a line")
        top, names = first
        headed = all(re.match(r"[^\W\d]", name) and name.lower() not in ("nan", "inf", "infinity") for name in names)
        if not headed and column is not None:
            raise ValueError(f"{path}, line {top}: there is no header to find column {column!r} in")
        at = _column(path, top, names, column) if headed else 0
        if not headed and len(names) > 1:
            raise ValueError(f"{path}, line {top}: {len(names)} fields and no header; wanted one, or a header")
        found = [] if headed else [_whole(path, top, names[0])]
        for number, fields in rows:
            if len(fields) != len(names):
                raise ValueError(f"{path}, line {number}: {len(fields)} fields; wanted {len(names)}, as in line {top}")
            found.append(_whole(path, number, fields[at]))
        if not found:
            raise ValueError(f"{path}: there is a header and no lengths; wanted at least one")
        return _counted(f"{len(found):,} lengths of {Path(path).name}", np.array(found))

    @property
    def mean(self) -> float:
        """The expected length."""
        return self.expect(lambda n: n)

    @property
    def largest(self) -> int:
        """The longest."""
        return int(self.values[-1])

    def expect(self, f: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        """Return the expectation of f, which takes all `values` at once.

        Examples
        --------
        >>> Lengths.of([1, 3]).expect(lambda n: n**2)
        5.0
        """
        return float(self.shares @ f(self.values.astype(np.float64)))

    def quantile(self, p: float) -> int:
        """Return the smallest length that is at least as long as a share p of all.

        Raises
        ------
        ValueError
            For a p outside of 0 to 1.

        Examples
        --------
        >>> [Lengths.of([10, 20, 30, 40]).quantile(p) for p in (0, 0.5, 0.51, 1)]
        [10, 20, 30, 40]
        """
        if not 0 <= p <= 1:
            raise ValueError(f"lengths: quantile {p}; wanted 0 to 1")
        return int(self._at(np.array([p]))[0])

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `count` lengths that rng draws independently."""
        return self._at(rng.random(count))

    def _at(self, p: NDArray[np.float64]) -> NDArray[np.int64]:
        below = np.cumsum(self.shares)
        i = np.searchsorted(below, p - 1e-12 * below[-1])  # a share of 1/2 is reached in spite of rounding
        return self.values[np.minimum(i, len(self.values) - 1)]

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"all {self.largest:,}"
        p50, p95 = self.quantile(0.5), self.quantile(0.95)
        return f"{self.text}: p50 {p50:,}, p95 {p95:,}, mean {self.mean:,.0f}, at most {self.largest:,}"


def _counted(text: str, array: NDArray[Any]) -> Lengths:
    values, counts = np.unique(array.astype(np.int64), return_counts=True)
    return Lengths(text, values, counts / counts.sum())


def _parsed(text: str) -> Lengths:
    """Return the lengths that a text describes."""
    if match := re.fullmatch(r"[-+]?\d+", text):
        return _counted(text, np.array([_check(int(match[0]), repr(text))]))
    if match := re.fullmatch(r"(.+\.csv):([^/\\]+)", text):
        return Lengths.read(match[1], match[2])
    if text.lower().endswith(".csv"):
        return Lengths.read(text)
    kind, _, rest = text.partition(":")
    if kind == "uniform" and (match := re.fullmatch(r"(\d+)\.\.(\d+)", rest)):
        low, high = (_check(int(end), repr(text)) for end in match.groups())
        if low > high:
            raise ValueError(f"lengths: {text!r} has {low} above {high}; wanted uniform:LOW..HIGH")
        return Lengths(text, np.arange(low, high + 1), np.full(high + 1 - low, 1 / (high + 1 - low)))
    if kind == "lognormal":
        return _lognormal(text, rest)
    raise ValueError(f"lengths: {text!r} is no description of lengths; {FORMS}")


def _lognormal(text: str, rest: str) -> Lengths:
    given: dict[str, float] = {}
    for part in rest.split(","):
        name, _, number = part.partition("=")
        if name not in ("median", "p95", "max") or name in given or not re.fullmatch(r"\d+(\.\d*)?", number):
            raise ValueError(f"lengths: {part!r} in {text!r}; {FORMS}")
        given[name] = float(number)
        check_number("lengths", f"{name} of {text!r}", given[name], above=0)
    if not {"median", "p95"} <= set(given):
        raise ValueError(f"lengths: {text!r} has no {'p95' if 'median' in given else 'median'}; {FORMS}")
    median, p95 = given["median"], given["p95"]
    if not median < p95:
        raise ValueError(f"lengths: {text!r} has median {median:g} and p95 {p95:g}; wanted p95 above the median")
    sigma = math.log(p95 / median) / float(ndtri(0.95))
    last = given.get("max", math.ceil(median * math.exp(min(50.0, sigma * float(ndtri(1 - CUT))))))
    if last < p95:
        raise ValueError(f"lengths: {text!r} has max {last:g} below p95 {p95:g}")
    if last > LONGEST:
        raise ValueError(f"lengths: {text!r} goes up to {last:,.0f} tokens; wanted a max of at most {LONGEST:,}")
    values = np.arange(1, int(last) + 1)
    below = ndtr(np.log((values + 0.5) / median) / sigma)
    below[-1] = 1.0
    shares = np.diff(below, prepend=0.0)
    return Lengths(text, values[shares > 0], shares[shares > 0])


def _check(n: int, where: str) -> int:
    if not 1 <= n <= LONGEST:
        raise ValueError(f"lengths: {where} is {n}; wanted 1 to {LONGEST:,} tokens")
    return n


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line that is not blank, with its number."""
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()

    def texts() -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8") + "\n"
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not text in UTF-8 (byte {error.start + 1})") from error

    reader = csv.reader(texts(), strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _column(path: "str | Path", line: int, names: list[str], column: str | None) -> int:
    """Return where the column is."""
    if column is not None:
        wanted: list[str] = [name for name in names if name == column]
    elif len(names) == 1:
        wanted = names
    else:
        wanted = [name for known in COLUMNS for name in names if name.lower() == known][:1]
    if len(wanted) != 1:
        what = f"no column {column!r}" if column is not None else "no column called length, and none is named"
        what = f"{len(wanted)} columns {column!r}" if len(wanted) > 1 else what
        raise ValueError(f"{path}, line {line}: {what}; there are: {', '.join(names)}")
    return names.index(wanted[0])


def _whole(path: "str | Path", line: int, text: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,18}", text):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(f"{path}, line {line}: {shown!r} is not a whole number of tokens up to {LONGEST:,}")
    if not 1 <= int(text) <= LONGEST:
        raise ValueError(f"{path}, line {line}: a length of {int(text)}; wanted 1 to {LONGEST:,} tokens")
    return int(text)


def _kind(given: Any, array: NDArray[Any]) -> str:
    return type(given).__name__ if array.ndim == 0 or array.dtype.kind == "O" else f"an array of {array.dtype}"
