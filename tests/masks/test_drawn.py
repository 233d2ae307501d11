"""Keys drawn at random: the same everywhere, distinct, and each as likely as any other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks


def test_a_draw_is_the_same_on_every_machine():
    assert masks.random(3, seed=7).keys(3, 100).tolist() == [[8, 26, 55], [12, 21, 60], [8, 41, 70]]
    assert masks.random(4, seed=7).keys(3, 5).tolist() == [[1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**70), st.integers(0, 9), st.integers(0, 40), st.sampled_from([None, 1, 3]))
def test_keys_are_distinct_and_ascending(n_keys, seed, Tq, Tk, heads):
    mask = masks.random(n_keys, seed, heads)
    keys = mask.keys(Tq, Tk)
    assert keys.shape == (*mask.lead, Tq, min(n_keys, Tk))
    assert keys.dtype == np.int64
    assert (np.diff(keys, axis=-1) > 0).all()
    assert ((keys >= 0) & (keys < Tk)).all()
    want = np.zeros((*mask.lead, Tq, Tk), bool)
    np.put_along_axis(want, keys, True, axis=-1)
    np.testing.assert_array_equal(mask.dense(Tq, Tk), want)


@pytest.mark.parametrize("n_keys", [1, 3, 5, 8, 9])
def test_every_key_is_as_likely(n_keys):
    rows, Tk = 20_000, 10
    counts = masks.random(n_keys, seed=1).dense(rows, Tk).sum(axis=0)
    share = n_keys / Tk
    np.testing.assert_allclose(counts / rows, share, atol=5 * np.sqrt(share * (1 - share) / rows))


def test_every_pair_of_keys_is_as_likely():
    keys = masks.random(2, seed=3).keys(30_000, 5)
    counts = np.bincount(keys[:, 0] * 5 + keys[:, 1], minlength=25)
    assert np.count_nonzero(counts) == 10
    np.testing.assert_allclose(counts[counts > 0] / 30_000, 0.1, atol=5 * np.sqrt(0.09 / 30_000))


def test_rows_and_heads_and_seeds_and_lengths_draw_anew():
    keys = masks.random(8, heads=4).keys(64, 1000)
    assert len({row.tobytes() for head in keys for row in head}) == 4 * 64
    assert (masks.random(8, seed=1).keys(64, 1000) != keys[0]).any()
    assert (masks.random(8).keys(64, 1001) != keys[0]).any()
    assert (masks.random(8).keys(65, 1000)[:64] != keys[0]).any()


def test_head_0_is_the_mask_without_heads():
    for one, many in (
        (masks.random(3, 5), masks.random(3, 5, heads=2)),
        (masks.random_blocks(2, 3, 5), masks.random_blocks(2, 3, 5, heads=2)),
        (masks.bigbird(3), masks.bigbird(3, heads=2)),
    ):
        assert (one.lead, many.lead) == ((), (2,))
        dense = many.dense(40, 40)
        np.testing.assert_array_equal(one.dense(40, 40), dense[0])
        assert (dense[0] != dense[1]).any()


def test_what_was_asked_before_changes_nothing():
    mask = masks.random(4, 9, heads=2)
    first = mask.keys(20, 30).copy()
    for Tq, Tk in ((1, 30), (20, 29), (50, 60)):
        mask.keys(Tq, Tk)
    np.testing.assert_array_equal(mask.keys(20, 30), first)
    np.testing.assert_array_equal(masks.random(4, 9, heads=2).keys(20, 30), first)


def test_a_table_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        masks.random(2).keys(3, 5)[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        masks.random_blocks(2, 2).keys(8, 8)[0] = 0


def test_blocks_drawn():
    mask = masks.random_blocks(2, 4, seed=1, heads=3)
    keys = mask.keys(16, 30)  # 5 blocks of positions, 14 // 4 ... 29 // 4, and 8 blocks of keys
    assert keys.shape == (3, 5, 2)
    dense = mask.dense(16, 30)
    for head, i in np.ndindex(3, 16):
        seen = np.unique(np.flatnonzero(dense[head, i]) // 4)
        np.testing.assert_array_equal(seen, keys[head, (i + 14) // 4 - 14 // 4])


def test_a_long_table_needs_no_matrix():
    keys = masks.random(4).keys(100_000, 100_000)
    assert keys.shape == (100_000, 4)
    assert masks.random(4).pairs(100_000, 100_000) == 400_000


def test_too_many_keys_for_the_draw():
    with pytest.raises(ValueError, match="random: there are 4294967297 keys; wanted at most 2"):
        masks.random(1).keys(1, 2**32 + 1)
    with pytest.raises(ValueError, match="random: there are 4294967297 keys; wanted at most 2"):
        masks.random_blocks(1, 1).keys(1, 2**32 + 1)
