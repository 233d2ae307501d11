import numpy as np
import pytest

import refattn
from refattn.cli import judge, problem
from refattn.masks import causal, padding, parse


@pytest.mark.parametrize(
    "mask", [None, causal(), parse("window(1, 0)"), parse("~window(2, 2)"), padding([3, 11]), padding([0, 0])]
)
def test_the_judge_is_attention(mask):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in [(2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 5)])
    options = {"bias": rng.standard_normal((9, 11)), "sinks": rng.standard_normal(4), "softcap": 2.0}
    options |= {} if mask is None else {"mask": mask}
    o, size = judge.judge(problem.Problem(q, k, v, "", options))
    np.testing.assert_allclose(o, refattn.attention(q, k, v, **options), rtol=1e-12, atol=1e-14)
    sums = refattn.attention(q, k, np.abs(v), **options).max(axis=-1)
    np.testing.assert_allclose(size, sums, rtol=1e-12, atol=1e-14)


def test_the_judge_takes_some_rows_at_a_time():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 3000, 2)) for _ in range(3))
    options = {"mask": causal(), "bias": rng.standard_normal((3000, 1))}
    given, shares = problem.Problem(q, k, v, "", options), []
    o, _ = judge.judge(given, shares.append)
    assert len(shares) == 3 and shares == sorted(shares)
    np.testing.assert_allclose(o[0, 2990:], refattn.attention(q, k, v, **options)[0, 2990:], rtol=1e-12)


def test_errors_by_hand():
    nan, inf = np.nan, np.inf
    reference = np.array([[1.0, 2.0], [nan, 1.0], [nan, 1.0], [1.0, 1.0], [inf, 1.0], [inf, 1.0], [0.0, 0.0]])
    got = np.array([[1.0, 2.5], [nan, 1.0], [0.0, 1.0], [nan, 1.0], [inf, 1.0], [-inf, 1.0], [0.0, 1e-9]])
    size = np.array([2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(judge.errors(got, judge.Verdict(reference, size)), [0.25, 0, inf, nan, 0, inf, inf])
