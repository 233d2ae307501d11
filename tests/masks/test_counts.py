"""Counts that need no matrix: exact for every length, and the same as those of the matrix."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refattn import masks
from refattn.masks.counts import pairs_of_band
from tests.masks.expressions import EXPRESSIONS

T = 10**9


def test_a_band_is_counted_by_a_formula():
    for Tq, Tk in itertools.product(range(5), repeat=2):
        for low, high in itertools.product(range(-6, 7), repeat=2):
            want = sum(low <= j - i <= high for i in range(Tq) for j in range(Tk))
            assert pairs_of_band(low, high, Tq, Tk) == want


def test_bands_of_any_length_are_counted_at_once():
    assert masks.causal().pairs(T, T) == T * (T + 1) // 2
    assert masks.causal(0).pairs(T, 3) == 3 * T - 3
    assert masks.window(10, 5).pairs(T, T) == 16 * T - 55 - 15
    assert (masks.causal() & masks.window(255, 0)).pairs(T, T) == 256 * T - 255 * 128
    assert (masks.causal(-T) & masks.window(3, 3)).pairs(T, T) == 0
    assert masks.window(None, None).pairs(10**12, 10**12) == 10**24  # beyond 64 bits
    assert masks.causal([0, T]).pairs(T, T) == T * (T + 1) // 2 + T * T


LONG = 300_000


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        (masks.strided(128, 512), None),
        (masks.fixed(128, 8), None),
        (masks.dilated(64, 3), 129 * LONG - 3 * 64 * 65),
        (masks.chunked(1000), 1000 * LONG),
        (masks.causal() & masks.chunked(1000), LONG * 1001 // 2),
        (masks.prefix_lm(5), LONG * (LONG + 1) // 2 + 4 + 3 + 2 + 1),
        (masks.random(3), 3 * LONG),
        (masks.random_blocks(2, 100), 200 * LONG),
        (masks.longformer(10, [0, 1000]), 21 * LONG - 110 + 4 * LONG - 4 - (11 - 1 + 21 - 1) * 2 - 2),
        (masks.bigbird(1000, 3, (0, -1), 0), None),
        (masks.document(np.arange(LONG) // 1000), 1000 * LONG),
        (masks.padding(7), 7 * LONG),
        (masks.global_tokens([0, 7, LONG - 1]), 6 * LONG - 9),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, masks.Mask) else "",
)
def test_long_sequences_are_counted_without_their_tiles(mask, want, monkeypatch):
    monkeypatch.delattr(masks.Mask, "blocks")
    found = mask.pairs(LONG, LONG)
    if want is None:
        want = BY_HAND[repr(mask)]
    assert found == want


def strided_by_hand(local, stride):
    return sum(min(local, t + 1) + max(0, t // stride - (local - 1) // stride) for t in range(LONG))


def fixed_by_hand(block, summary):
    return sum(t % block + 1 + t // block * summary for t in range(LONG))


def bigbird_by_hand(size, n):
    rows = [
        n,
        *[4, *[5] * (n - 4), 4],
        n,
    ]  # 3 around it, the first, the last
    return size * size * sum(rows)


BY_HAND = {
    "strided(128, 512)": strided_by_hand(128, 512),
    "fixed(128, 8)": fixed_by_hand(128, 8),
    "bigbird(1000, 3, [0, -1], 0, 0)": bigbird_by_hand(1000, 300),
}


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(EXPRESSIONS, st.integers(0, 60), st.integers(5, 60), st.integers(1, 20), st.integers(1, 20))
def test_counts_of_any_expression(mask, Tq, Tk, block_q, block_k):
    dense = mask.dense(Tq, Tk)
    assert mask.pairs(Tq, Tk) == dense.sum()
    share = np.zeros((*mask.lead, -(-Tq // block_q), -(-Tk // block_k)))
    for place in np.ndindex(share.shape):
        *lead, a, b = place
        tile = (slice(a * block_q, (a + 1) * block_q), slice(b * block_k, (b + 1) * block_k))
        share[place] = dense[(*lead, *tile)].mean()
    np.testing.assert_allclose(mask.density(Tq, Tk, block_q, block_k), share, rtol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(EXPRESSIONS, st.integers(0, 40), st.integers(5, 40))
def test_spans_of_any_expression(mask, Tq, Tk):
    spans = mask.spans(Tq, Tk)
    j = np.arange(Tk)
    if spans is not None:
        assert spans[0].shape == spans[1].shape == (*mask.lead, Tq)
        seen = (j >= spans[0][..., None]) & (j < spans[1][..., None])
        np.testing.assert_array_equal(seen, mask.dense(Tq, Tk))
    part = mask.see(np.arange(Tq)[::-2, None], j[::-3], Tq, Tk)  # any indices, in any order
    want = mask.dense(Tq, Tk)[..., ::-2, ::-3]
    np.testing.assert_array_equal(np.broadcast_to(part, want.shape), want)


def test_documents_that_stand_in_one_run_have_spans():
    assert masks.document([5, 5, 2, 9, 9, 9]).spans(6, 6)[0].tolist() == [0, 0, 2, 3, 3, 3]
    assert masks.document([5, 2, 5]).spans(3, 3) is None
    start, stop = masks.document([[1, 1, 0], [4, 7, 7]], [[1, 3], [7, 0]]).spans(2, 3)
    assert (stop - start).tolist() == [[[2, 0]], [[2, 0]]]


def test_a_function_and_drawn_keys_are_counted_together():
    mask = masks.random(5, 2) & masks.from_function(lambda i, j: (i + j) % 2 == 0)
    assert mask.pairs(30, 40) == mask.dense(30, 40).sum()
    assert (mask | masks.causal()).pairs(30, 40) == (mask | masks.causal()).dense(30, 40).sum()
