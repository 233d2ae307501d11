"""What a dropout mask means: bits that depend on the seed and the place, and on nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import dropout_mask, masks
from refattn.dense.dropout import philox4x32

ONES = 0xFFFFFFFF
KNOWN = [  # counter, key, words: the known answers for philox4x32-10 that the authors publish in Random123, kat_vectors
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_known_answers_of_philox(counter, key, words):
    got = philox4x32(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in got) == words


def test_an_element_is_a_word_of_its_counter():
    b, h, i, j, seed = 1, 2, 5, 11, 0x0123456789ABCDEF
    words = philox4x32(tuple(np.array(c, np.uint64) for c in (j // 4, i, h, b)), (0x89ABCDEF, 0x01234567))
    u = int(words[j % 4]) / 2**32
    for p, keep in ((u, True), (np.nextafter(u, 1), False), (0.99 * u, True)):
        assert dropout_mask((2, 3, 6, 12), p, seed)[b, h, i, j] == keep
        assert dropout_mask((1, 1, 1, 1), p, seed, start=(b, h, i, j)).item() == keep


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=4),
    st.integers(0, 2**64 - 1),
    st.floats(0, 0.999),
)
def test_a_tile_is_a_slice_of_the_whole(cuts, seed, p):
    whole = dropout_mask((9, 9, 9, 9), p, seed)
    slices = tuple(slice(min(cut), max(cut)) for cut in cuts)
    start = tuple(s.start for s in slices)
    tile = dropout_mask(tuple(s.stop - s.start for s in slices), p, seed, start=start)
    np.testing.assert_array_equal(tile, whole[slices])


def test_fewer_axes_are_the_first_head_of_the_first_sequence():
    whole = dropout_mask((2, 3, 5, 7), 0.5, 3)
    np.testing.assert_array_equal(dropout_mask((3, 5, 7), 0.5, 3), whole[0])
    np.testing.assert_array_equal(dropout_mask((5, 7), 0.5, 3), whole[0, 0])
    np.testing.assert_array_equal(dropout_mask((7,), 0.5, 3), whole[0, 0, 0])
    assert dropout_mask((), 0.5, 3).shape == () and dropout_mask((0, 4), 0.5, 3).shape == (0, 4)


def test_far_places_are_places():
    far = dropout_mask((2, 8), 0.5, 0, start=(2**32 - 2, 2**32 - 8))
    assert far.shape == (2, 8) and 0 < far.sum() < 16


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5])
def test_the_rate_is_binomial(p, seed):
    n = 4 * 8 * 64 * 64
    kept = int(dropout_mask((4, 8, 64, 64), p, seed).sum())
    assert abs(kept - n * (1 - p)) < 4 * np.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("axis", range(4))
def test_neighbours_know_nothing_of_each_other(axis):
    mask = dropout_mask((8, 8, 32, 32), 0.5, 11)
    pairs = np.diff(mask.astype(int), axis=axis) == 0
    assert abs(pairs.mean() - 0.5) < 4 * 0.5 / np.sqrt(pairs.size)


def test_seeds_know_nothing_of_each_other():
    each = [dropout_mask((64, 64), 0.5, seed) for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**63)]
    for a, b in itertools.combinations(each, 2):
        assert abs((a == b).mean() - 0.5) < 4 * 0.5 / 64


def test_the_same_again_and_more_for_a_smaller_p():
    a = dropout_mask((3, 50, 50), 0.3, 5)
    np.testing.assert_array_equal(a, dropout_mask((3, 50, 50), 0.3, 5))
    assert (dropout_mask((3, 50, 50), 0.2, 5) >= a).all()  # what 0.3 keeps, 0.2 keeps too
    assert dropout_mask((3, 50, 50), 0.0, 5).all() and dropout_mask((3, 50, 50), 0, 5).dtype == bool


def test_these_bits_stay():
    got = dropout_mask((2, 16), 0.5, seed=2024).astype(int)
    assert ["".join(map(str, row)) for row in got.tolist()] == ["1010001010101000", "0011010100111111"]


def test_dropped_attention_is_attention_on_average(anywhere):
    rng, n, p = np.random.default_rng(0), 2000, 0.3
    q, k, v = rng.normal(size=(3, 2, 5, 4))
    many = [np.ascontiguousarray(np.broadcast_to(x, (n, *x.shape))) for x in (q, k, v)]
    keep = dropout_mask((n, 2, 5, 5), p, seed=7)
    o = refattn.attention(*many, mask=masks.causal(), dropout_mask=keep, dropout_p=p, backend=anywhere)
    want = refattn.attention(q, k, v, mask=masks.causal())
    assert (abs(o.mean(axis=0) - want) < 5 * o.std(axis=0) / np.sqrt(n)).all()
    assert (o.std(axis=0) > 0.01).all()


def test_runs_of_queries_may_draw_their_own():
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 2, 12, 4))
    keep = dropout_mask((2, 12, 12), 0.4, seed=9)
    want = refattn.attention(q, k, v, dropout_mask=keep, dropout_p=0.4)
    parts = []
    for i in range(0, 12, 5):
        tile = dropout_mask((2, min(5, 12 - i), 12), 0.4, 9, start=(0, i, 0))
        parts.append(refattn.attention(q[:, i : i + 5], k, v, dropout_mask=tile, dropout_p=0.4))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (((2, 3), 1.0, 0), ValueError, "p is 1.0; wanted 0 <= p < 1"),
        (((2, 3), -0.1, 0), ValueError, "p is -0.1"),
        (((2, 3), float("nan"), 0), ValueError, "p is nan"),
        (((2, 3), None, 0), TypeError, "p must be a number"),
        (((2, 3), True, 0), TypeError, "p must be a number, got bool"),
        (((2, 3), 0.5, -1), ValueError, "seed is -1"),
        (((2, 3), 0.5, 2**64), ValueError, "seed is 18446744073709551616; wanted one below"),
        (((2, 3), 0.5, 1.0), TypeError, "seed must be an integer"),
        (((2, -3), 0.5, 0), ValueError, "an entry of shape is -3"),
        (((2, 3.0), 0.5, 0), TypeError, "an entry of shape must be an integer"),
        ((3, 0.5, 0), TypeError, "shape is 3; wanted a sequence"),
        (((1, 1, 1, 1, 1), 0.5, 0), ValueError, r"at most the 4 axes \(B, H, Tq, Tk\)"),
    ],
)
def test_what_is_refused(call, error, says):
    with pytest.raises(error, match=f"dropout_mask: .*{says}"):
        dropout_mask(*call)


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        ((0,), ValueError, r"start is \(0,\); wanted an index for each axis"),
        ((0, -1), ValueError, "an entry of start is -1"),
        ((0, 2**32 - 2), ValueError, "reaches beyond 2\\^32"),
    ],
)
def test_which_starts_are_refused(start, error, says):
    with pytest.raises(error, match=says):
        dropout_mask((2, 3), 0.5, 0, start=start)
