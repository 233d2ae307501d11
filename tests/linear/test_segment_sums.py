"""Sums of log-decays between tokens: each added up by itself, so that nothing cancels and -inf stays where it is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn.linear.common import decayed, segment_sums, sums_after

gates = st.lists(st.sampled_from([0.0, -0.5, -3.0, -20.0, -np.inf]), max_size=8)
quickly = settings(max_examples=50, deadline=None, derandomize=True)


@quickly
@given(gates)
def test_each_is_its_own_sum(g):
    G, after = segment_sums(np.array(g, dtype=float)), sums_after(np.array(g, dtype=float))
    for i in range(len(g)):
        assert after[i] == sum(g[i + 1 :])
        for j in range(len(g)):
            assert G[i, j] == (sum(g[j + 1 : i + 1]) if j <= i else -np.inf)


def test_small_gates_after_large_ones_keep_their_digits():
    g = np.array([-1e6, *[-1e-3] * 8], dtype=np.float32)
    by_difference = np.cumsum(g)[-1] - np.cumsum(g)[1]
    assert abs(segment_sums(g)[-1, 1] + 7e-3) < 1e-8
    assert abs(by_difference + 7e-3) > 1e-3


def test_batches_and_heads():
    g = -np.random.default_rng(0).exponential(size=(2, 3, 5))
    assert segment_sums(g).shape == (2, 3, 5, 5)
    np.testing.assert_array_equal(segment_sums(g)[1, 2], segment_sums(g[1, 2]))
    np.testing.assert_allclose(segment_sums(g)[..., -1, :], sums_after(g))


def test_a_decay_of_zero_selects():
    np.testing.assert_array_equal(decayed(np.array([-np.inf, 0.0]), np.array([np.nan, 3.0])), [0.0, 3.0])
