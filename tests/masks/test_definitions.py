"""Every pattern against its definition, written out pair by pair in plain Python."""

import itertools

import numpy as np
import pytest

from refattn import masks

SIZES = [(1, 1), (5, 5), (3, 8), (8, 3), (1, 9), (9, 1), (0, 4), (4, 0), (0, 0)]


def brute(see, Tq, Tk):
    return np.array([[see(i, j) for j in range(Tk)] for i in range(Tq)], bool).reshape(Tq, Tk)


def agrees(mask, see, Tq, Tk):
    want = brute(see, Tq, Tk)
    np.testing.assert_array_equal(mask.dense(Tq, Tk), want)
    assert mask.pairs(Tq, Tk) == want.sum()


@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_causal_is_bottom_right(Tq, Tk):
    want = brute(lambda i, j: j <= i + Tk - Tq, Tq, Tk)
    np.testing.assert_array_equal(masks.causal().dense(Tq, Tk), want)


@pytest.mark.parametrize("offset", [-20, -2, 0, 3, 20])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_causal_with_an_offset(Tq, Tk, offset):
    want = brute(lambda i, j: j <= i + offset, Tq, Tk)
    np.testing.assert_array_equal(masks.causal(offset).dense(Tq, Tk), want)


def test_causal_with_an_offset_per_sequence():
    mask = masks.causal([0, 4, -9])
    assert mask.lead == (3, 1)
    want = [[brute(lambda i, j, n=n: j <= i + n, 4, 6)] for n in (0, 4, -9)]
    np.testing.assert_array_equal(mask.dense(4, 6), want)


@pytest.mark.parametrize("left", [None, 0, 1, 4, 100])
@pytest.mark.parametrize("right", [None, 0, 2, 100])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_window(Tq, Tk, left, right):
    def see(i, j):
        at = i + Tk - Tq
        return (left is None or at - left <= j) and (right is None or j <= at + right)

    np.testing.assert_array_equal(masks.window(left, right).dense(Tq, Tk), brute(see, Tq, Tk))


def test_a_window_always_holds_the_query_itself():
    assert masks.window(0, 0).dense(6, 6).tolist() == np.eye(6, dtype=bool).tolist()
    assert masks.window(255, 0).dense(1, 300).sum() == 256


@pytest.mark.parametrize("lengths", [0, 3, [0, 2, 5], [[1, 2], [3, 4]]])
def test_padding(lengths):
    mask = masks.padding(lengths)
    each = np.ravel(lengths)
    want = np.array([brute(lambda i, j, n=n: j < n, 4, 5) for n in each])
    assert mask.lead == (() if np.ndim(lengths) == 0 else (*np.shape(lengths), 1))
    np.testing.assert_array_equal(mask.dense(4, 5).reshape(want.shape), want)


def test_document_queries_are_the_last_tokens():
    ids = [4, 4, 1, 1, 1, 4]
    want = brute(lambda i, j: ids[i + 3] == ids[j], 3, 6)
    np.testing.assert_array_equal(masks.document(ids).dense(3, 6), want)


def test_document_with_its_own_query_ids():
    queries, ids = [1, 9, 4, 4], [4, 4, 1]
    want = brute(lambda i, j: queries[i] == ids[j], 4, 3)
    np.testing.assert_array_equal(masks.document(ids, queries).dense(4, 3), want)


def test_document_per_sequence():
    ids = [[0, 0, 1], [2, 3, 3]]
    mask = masks.document(ids)
    want = [[brute(lambda i, j, row=row: row[i] == row[j], 3, 3)] for row in ids]
    assert mask.lead == (2, 1)
    np.testing.assert_array_equal(mask.dense(3, 3), want)


@pytest.mark.parametrize(("Tq", "Tk"), [(5, 5), (2, 7), (7, 2)])
@pytest.mark.parametrize("indices", [[], [0], [1, 4], [4, 100]])
def test_global_tokens(indices, Tq, Tk):
    want = brute(lambda i, j: j in indices or i + Tk - Tq in indices, Tq, Tk)
    np.testing.assert_array_equal(masks.global_tokens(indices).dense(Tq, Tk), want)


@pytest.mark.parametrize(("window", "step"), [(0, 1), (2, 1), (1, 3), (3, 2), (100, 4), (10**30, 5), (1, 10**30)])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_dilated(Tq, Tk, window, step):
    def see(i, j):
        d = abs(i + Tk - Tq - j)
        return d <= window * step and d % step == 0

    agrees(masks.dilated(window, step), see, Tq, Tk)


@pytest.mark.parametrize(
    ("local", "stride"), [(1, 1), (1, 4), (2, 3), (4, 4), (5, 3), (3, 100), (10**30, 2), (2, 10**30)]
)
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_strided(Tq, Tk, local, stride):
    def see(i, j):
        d = i + Tk - Tq - j
        return d >= 0 and (d < local or d % stride == 0)

    agrees(masks.strided(local, stride), see, Tq, Tk)


@pytest.mark.parametrize(
    ("block", "summary"), [(1, 1), (3, 1), (4, 3), (4, 4), (100, 7), (10**30, 1), (10**30, 10**30 - 2)]
)
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_fixed(Tq, Tk, block, summary):
    def see(i, j):
        at = i + Tk - Tq
        return j <= at and (j // block == at // block or j % block >= block - summary)

    agrees(masks.fixed(block, summary), see, Tq, Tk)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 10**30])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_chunked(Tq, Tk, size):
    agrees(masks.chunked(size), lambda i, j: (i + Tk - Tq) // size == j // size, Tq, Tk)


@pytest.mark.parametrize("n", [0, 2, 100])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_prefix_lm(Tq, Tk, n):
    agrees(masks.prefix_lm(n), lambda i, j: j < n or j <= i + Tk - Tq, Tq, Tk)


def test_a_prefix_per_sequence():
    mask = masks.prefix_lm([0, 3])
    assert mask.lead == (2, 1)
    want = [[brute(lambda i, j, n=n: j < n or j <= i + 1, 4, 5)] for n in (0, 3)]
    np.testing.assert_array_equal(mask.dense(4, 5), want)


@pytest.mark.parametrize("indices", [[], [0], [2, 6]])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_longformer(Tq, Tk, indices):
    def see(i, j):
        at = i + Tk - Tq
        return abs(at - j) <= 2 or j in indices or at in indices

    agrees(masks.longformer(2, indices), see, Tq, Tk)


@pytest.mark.parametrize(("n_window", "global_blocks"), [(1, ()), (3, (0, -1)), (5, (1, -2)), (1, (-9, 9))])
@pytest.mark.parametrize("size", [1, 2, 3, 100, 10**30])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_bigbird_without_its_random_part(Tq, Tk, size, n_window, global_blocks):
    nk = -(-Tk // size)
    chosen = [b if b >= 0 else nk + b for b in global_blocks]

    def see(i, j):
        a, b = (i + Tk - Tq) // size, j // size
        return abs(a - b) <= n_window // 2 or b in chosen or (a in chosen and a >= 0)

    agrees(masks.bigbird(size, n_window, global_blocks, 0), see, Tq, Tk)


def test_bigbird_is_its_three_parts():
    parts = masks.random_blocks(2, 4, 7) | masks.bigbird(4, 3, (0, -1), 0)
    np.testing.assert_array_equal(masks.bigbird(4, 3, (0, -1), 2, 7).dense(37, 50), parts.dense(37, 50))


def test_random_blocks_are_random_keys_of_blocks():
    blocks = masks.random(2, 5, heads=3).dense(6, 6)
    tokens = masks.random_blocks(2, 4, 5, heads=3).dense(22, 22)
    np.testing.assert_array_equal(tokens, blocks.repeat(4, 1).repeat(4, 2)[:, :22, :22])


@pytest.mark.parametrize("lead", [(), (3,), (2, 1)])
def test_block(lead):
    layout = np.random.default_rng(0).random((*lead, 3, 2)) < 0.5
    mask = masks.block(layout, 4)
    assert mask.lead == lead
    np.testing.assert_array_equal(mask.dense(11, 6), layout.repeat(4, -2).repeat(4, -1)[..., :11, :6])


@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (4, 1), (1, 1), (3, 4, 6), (2, 3, 1, 6), (2, 1, 4, 6)])
def test_from_array_broadcasts(shape):
    visible = np.random.default_rng(0).random(shape) < 0.5
    mask = masks.from_array(visible)
    assert mask.lead == shape[:-2]
    np.testing.assert_array_equal(mask.dense(4, 6), np.broadcast_to(visible, (*shape[:-2], 4, 6)))


def test_a_mask_keeps_its_own_copy_of_an_array():
    visible = np.ones((3, 3), bool)
    mask = masks.from_array(visible)
    visible[0] = False
    assert mask.dense(3, 3).all()


def test_from_function():
    mask = masks.from_function(lambda i, j: (i * j) % 3 == 1)
    np.testing.assert_array_equal(mask.dense(7, 5), brute(lambda i, j: (i * j) % 3 == 1, 7, 5))
    np.testing.assert_array_equal(
        masks.from_function(lambda i, j: i >= 2).dense(4, 3), brute(lambda i, j: i >= 2, 4, 3)
    )


def test_a_function_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="from_function: its result has shape"):
        masks.from_function(lambda i, j: np.ones((9, 9), bool)).dense(2, 3)


def test_combinations_are_those_of_logic():
    patterns = [masks.causal(), masks.window(1, 2), masks.global_tokens([3]), masks.from_array(np.eye(6, dtype=bool))]
    for a, b in itertools.product(patterns, repeat=2):
        left, right = a.dense(6, 6), b.dense(6, 6)
        np.testing.assert_array_equal((a & b).dense(6, 6), left & right)
        np.testing.assert_array_equal((a | b).dense(6, 6), left | right)
        np.testing.assert_array_equal((~(a & ~b)).dense(6, 6), ~(left & ~right))


def test_leading_axes_combine_by_broadcasting():
    per_head = np.random.default_rng(1).random((4, 5, 5)) < 0.5
    mask = masks.padding([2, 5]) & masks.from_array(per_head) & masks.causal()
    assert mask.lead == (2, 4)
    want = masks.padding([2, 5]).dense(5, 5) & per_head & masks.causal().dense(5, 5)
    np.testing.assert_array_equal(mask.dense(5, 5), want)


def test_leading_axes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"leading axes of two masks differ: \(2, 1\) of padding\(\[2, 5\]\)"):
        masks.padding([2, 5]) & masks.padding([1, 2, 3])


def test_equal_patterns_are_equal_values():
    assert masks.causal() == masks.causal() != masks.causal(0)
    assert masks.window(3, 0) == masks.window(3, 0) != masks.window(0, 3)
    assert masks.padding([1, 2]) == masks.padding([1, 2]) != masks.padding([2, 1])
    assert len({masks.document([0, 1]), masks.document([0, 1]), masks.document([0, 2])}) == 2
    assert masks.random(2, 0) == masks.random(2) != masks.random(2, 1) != masks.random(2, 1, 1)
    assert masks.bigbird(4) == masks.bigbird(4, global_blocks=[0, -1]) != masks.bigbird(4, n_random=2)
    assert masks.fixed(4, 1) != masks.fixed(4, 2) != masks.strided(4, 2) != masks.dilated(4, 2)
    assert len({masks.block([[True]], 2), masks.block([[True]], 2), masks.block([[True]], 3)}) == 2
    assert masks.from_array(np.eye(2, dtype=bool)) != masks.from_array(np.ones((2, 2), bool))


def test_what_is_large_is_not_kept():
    large = np.ones((300, 300), bool)
    assert not masks.block(large, 2).cacheable and not masks.from_array(large).cacheable
    assert not (masks.causal() & masks.block(large, 2)).cacheable
    for small in (masks.block([[True]], 2), masks.random(3), masks.bigbird(4), masks.strided(2, 3) | ~masks.chunked(4)):
        assert small.cacheable


def test_as_mask_takes_arrays_masks_and_none():
    causal = masks.causal()
    assert masks.as_mask(None) is None
    assert masks.as_mask(causal) is causal
    np.testing.assert_array_equal(masks.as_mask(np.eye(3, dtype=bool)).dense(3, 3), np.eye(3, dtype=bool))


@pytest.mark.parametrize("far", [2**63 - 1, 10**12])
def test_far_offsets_hide_or_show_everything(far):
    for mask, seen in ((masks.causal(far), True), (masks.causal(-far), False)):
        assert (mask.dense(5, 7) == seen).all()
        assert mask.pairs(5, 7) == 35 * seen
    with pytest.raises(ValueError, match="causal: offset holds 18446744073709551615"):
        masks.causal(np.uint64(2**64 - 1))


def test_negative_sizes_are_refused():
    for ask in (masks.causal().dense, masks.causal().pairs, lambda Tq, Tk: masks.causal().blocks(Tq, Tk, 8, 8)):
        with pytest.raises(ValueError, match="mask: Tq is -1"):
            ask(-1, 5)
