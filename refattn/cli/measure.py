"""What `refattn compare` measures of each candidate, a variant on a backend: error (see `judge`), memory, time."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.cli import judge
from refattn.cli.problem import Problem
from refattn.costs.machine import free_memory
from refattn.dense.attention import attention
from refattn.dense.decode import attention_split_kv
from refattn.dense.flash import flash_attention
from refattn.dispatch import REFERENCE, Unsupported, load, why_not
from refattn.watch.clock import traced

VARIANTS: dict[str, Callable[..., Any]] = {
    "attention": attention,
    "flash_attention": flash_attention,
    "attention_split_kv": attention_split_kv,
}
BASELINE = ("attention", REFERENCE)
ALL = "all"  # the variants of a backend that cannot be loaded

TILES = {"flash_attention": (64, 64)}  # of the reference; a backend may have a dict TILES of its own
MATRICES = {"attention": 4, "attention_split_kv": 1}  # score matrices that the reference holds at once

LEAST_ROUNDS, MOST_ROUNDS, LONG_ROUND = 5, 500, 10.0

Tick = Callable[[str, float], None]  # what is being done, and which share of the whole is behind us


@dataclass
class Row:
    """What was measured of one candidate, or why nothing was."""

    variant: str
    backend: str
    reason: str | None = None
    failed: bool = False
    """It ran, or tried to, and broke."""
    errors: Array | None = None
    """(heads of all sequences, Tq): see `judge`."""
    error: float | None = None
    """The largest of them; NaN where it made a NaN that the judge has not."""
    extra_bytes: int | None = None
    """Peak of one call, beyond its inputs and what it returns."""
    seconds: list[float] = field(default_factory=list)
    pairs: int | None = None
    """Query-key pairs that it computes, over all heads."""
    pairs_are_least: bool = False
    """They are those that are visible, as the backend does not say how it cuts its tiles."""

    @property
    def name(self) -> str:
        """Variant and backend."""
        return self.backend if self.variant == ALL else f"{self.variant} on {self.backend}"

    @property
    def median(self) -> float | None:
        """Seconds of the middle round."""
        return float(np.median(self.seconds)) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Seconds that a quarter and three quarters of the rounds stay below."""
        if not self.seconds:
            return None
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """All rows, and what they are judged by."""

    problem: Problem
    rows: list[Row]
    limit: float
    """The largest error that is not wrong."""
    rounds: int
    seed: int

    def wrong(self, row: Row) -> bool:
        """Say whether a row is a failure: it broke, or its error is beyond the limit."""
        return row.failed or (row.error is not None and not row.error <= self.limit)

    def faster(self, row: Row) -> float | None:
        """Return how often the row's median fits into the baseline's, or None where one is missing."""
        base = self.rows[0].median
        return None if base is None or row.median is None else base / row.median


def candidates(variants: list[str], backends: list[str]) -> list[Row]:
    """Return a row for each variant on each backend, the baseline first, then what is not there."""
    rows = [Row(*BASELINE)]
    for backend in backends:
        reason = absence(backend)
        if reason is not None:
            rows.append(Row(ALL, backend, reason))
    absent = {row.backend for row in rows if row.reason}
    for variant in variants:
        rows += [Row(variant, b) for b in backends if b not in absent and (variant, b) != BASELINE]
    return rows


def absence(backend: str) -> str | None:
    """Return why a backend cannot be used here at all, or None."""
    if backend == REFERENCE:
        return None
    try:
        unavailable = getattr(load(backend), "unavailable", None)
        return None if unavailable is None else unavailable()
    except ImportError as error:
        return str(error)


def compare(problem: Problem, rows: list[Row], seconds: float, seed: int, tick: Tick) -> Comparison:
    """Fill in the rows: the error of a first call, the memory of a second, the time of many rounds over all.

    Parameters
    ----------
    problem : Problem
    rows : list of Row
        From `candidates`.
    seconds : float
        How long the rounds may last; there are at least 5 unless one takes more than 10 s.
    seed : int
        Of the order within each round.
    tick : function
        Called with what happens now and the share that is done.
    """
    for row in rows:
        row.reason = row.reason or _obstacle(problem, row)
        if row.reason is None:
            row.pairs, row.pairs_are_least = _pairs(problem, row)
    running = [row for row in rows if row.reason is None]
    with np.errstate(all="ignore"):  # NaN and infinities shall show in the table
        verdict = judge.judge(problem, lambda share: tick("the judge: attention in float64", 0.1 * share))
        for n, row in enumerate(running):
            first = "" if row.backend == REFERENCE else ": first call, which may compile"
            tick(f"{row.name}{first}", 0.1 + 0.4 * n / len(running))
            with _failing(row):
                _first_call(problem, row, verdict)
        running = [row for row in running if row.reason is None]
        for n, row in enumerate(running):
            tick(f"{row.name}: memory", 0.5 + 0.1 * n / len(running))
            with _failing(row):
                row.extra_bytes = extra_bytes(_call(problem, row))
        running = [row for row in running if row.reason is None]
        rounds = time_rounds(problem, running, seconds, seed, lambda text, share: tick(text, 0.6 + 0.4 * share))
    limit = judge.limit(problem.q.dtype, rows[0].error)
    return Comparison(problem, rows, limit, rounds, seed)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds beyond those it returns, as tracemalloc counts them."""
    result, peak = traced(call)
    return max(0, peak - sum(x.nbytes for x in (result if isinstance(result, tuple) else (result,))))


REST = 0.04  # seconds before each timed call: the threads of a BLAS keep a core busy for a while after their work


def time_rounds(problem: Problem, rows: list[Row], seconds: float, seed: int, tick: Tick) -> int:
    """Time one call of each row per round, in an order drawn anew each time; return the number of rounds."""
    rng = random.Random(seed)
    begin, rounds, running = time.perf_counter(), 0, list(rows)
    while running:
        round_begin = time.perf_counter()
        tick(f"round {rounds + 1}", min(1.0, (round_begin - begin) / max(seconds, 1e-9)))
        for row in rng.sample(running, len(running)):
            call = _call(problem, row)
            with _failing(row):
                time.sleep(REST)
                start = time.perf_counter()
                call()
                row.seconds.append(time.perf_counter() - start)
        running = [row for row in running if row.reason is None]
        rounds += 1
        now = time.perf_counter()
        least = LEAST_ROUNDS if now - round_begin <= LONG_ROUND else 1
        if (now - begin >= seconds and rounds >= least) or rounds >= MOST_ROUNDS:
            break
    return rounds


def _call(problem: Problem, row: Row) -> Callable[[], Any]:
    operation = VARIANTS[row.variant]
    return lambda: operation(problem.q, problem.k, problem.v, **problem.options, backend=row.backend)


def _first_call(problem: Problem, row: Row, verdict: judge.Verdict) -> None:
    result = _call(problem, row)()
    o = result[0] if isinstance(result, tuple) else result
    if o.shape != verdict.o.shape or o.dtype != problem.q.dtype:
        raise ValueError(f"it returned {o.dtype} {o.shape}; wanted {problem.q.dtype} {verdict.o.shape}")
    row.errors = judge.errors(o, verdict).reshape(-1, verdict.o.shape[-2])
    row.error = float(row.errors.max(initial=0))


@contextmanager
def _failing(row: Row) -> Iterator[None]:
    """Turn what goes wrong inside into the row's reason, so that the others still run."""
    try:
        yield
    except Unsupported as error:
        row.reason = str(error)
    except Exception as error:  # whatever a backend raises, the table shall name it
        row.reason, row.failed = f"failed: {type(error).__name__}: {error}", True
        row.seconds, row.pairs = [], None


def _obstacle(problem: Problem, row: Row) -> str | None:
    """Return why a candidate cannot run, before trying."""
    if row.backend != REFERENCE:
        return why_not(row.backend, row.variant, {"q": problem.q, "k": problem.k, "v": problem.v, **problem.options})
    wanted = MATRICES.get(row.variant, 0) * math.prod(problem.scores) * compute_dtype(problem.q.dtype).itemsize
    free = free_memory()
    if free is not None and wanted > free:
        return f"it holds {wanted / 2**30:.1f} GiB of scores; {free / 2**30:.1f} GiB are free"
    return None


def _pairs(problem: Problem, row: Row) -> tuple[int, bool]:
    """Return how many pairs a candidate computes, and whether that is only the least it can be."""
    tiles = TILES if row.backend == REFERENCE else getattr(load(row.backend), "TILES", {})
    if row.variant in tiles:
        return problem.tile_pairs(*tiles[row.variant], together=row.backend == REFERENCE), False
    if row.backend == REFERENCE:
        return math.prod(problem.scores), False
    return problem.visible_pairs, True
