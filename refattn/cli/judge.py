"""How wrong a result is: `attention` on numpy in float64, of the very inputs that the candidates get, is the judge.

The error of a query is

    max_d |o_id - ô_id| / max_d Σ_j p_ij |v_jd|

with ô and p the judge's: what is lost, as a share of what was added up. A result is wrong when the error of any query
exceeds the larger of 100 eps of the dtype of computation and 10 times the error of `attention` on numpy in the same
dtype, which is how much the input itself costs (large scores lose digits in any order of summation).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.cli.problem import Problem
from refattn.dense.attention import attention
from refattn.dispatch import REFERENCE


class Verdict(NamedTuple):
    """What `judge` returns, in float64."""

    o: Array
    """ô (..., H, Tq, Dv)."""
    size: Array
    """max_d Σ_j p_ij |v_jd| (..., H, Tq)."""


def judge(problem: Problem, tick: Callable[[float], None] = lambda share: None) -> Verdict:
    """Compute the verdict, some queries at a time; `tick` hears before each step which share is done."""
    q, k, v = (x.astype(np.float64) for x in (problem.q, problem.k, problem.v))
    both = np.concatenate([v, np.abs(v)], axis=-1)
    *lead, Tq, Tk = problem.scores
    o = np.empty((*lead, Tq, both.shape[-1]))
    step = max(1, 2**22 // max(1, math.prod(lead) * Tk))  # so that a step's scores take 32 MiB
    for start in range(0, Tq, step):
        tick(start / Tq)
        i = slice(start, start + step)
        j, options = problem.rows(i)
        o[..., i, :] = attention(q[..., i, :], k[..., j, :], both[..., j, :], **options, backend=REFERENCE)
    o, sums = np.split(o, 2, axis=-1)
    return Verdict(o, np.where(np.isfinite(sums), sums, 0).max(axis=-1, initial=0))


def errors(o: Array, verdict: Verdict) -> Array:
    """Return the error of each query, (..., H, Tq): NaN where `o` made a NaN, inf where it lost one of the judge's.

    Examples
    --------
    >>> errors(np.array([[1.5], [0.0]]), Verdict(np.array([[1.0], [0.0]]), np.array([2.0, 0.0])))
    array([0.25, 0.  ])
    """
    o = o.astype(np.float64)
    same = (o == verdict.o) | (np.isnan(o) & np.isnan(verdict.o))
    lost = np.isnan(verdict.o) & ~np.isnan(o)
    with np.errstate(all="ignore"):
        gap = np.where(same, 0, np.where(lost, np.inf, np.abs(o - verdict.o))).max(axis=-1, initial=0)
        return np.where(gap == 0, 0, gap / verdict.size)


def limit(dtype: Any, baseline: float | None) -> float:
    """Return the largest error that is not wrong; `baseline` is that of `attention` on numpy, None if it did not run.

    Examples
    --------
    >>> limit(np.float64, None) == 100 * 2.0**-52, limit(np.float16, 1e-3)
    (True, 0.01)
    """
    rounding = 100 * float(np.finfo(compute_dtype(dtype)).eps)
    return max(rounding, 10 * baseline) if baseline is not None and math.isfinite(baseline) else rounding
