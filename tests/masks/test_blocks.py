"""The tiles that backends consume say exactly what the dense pattern says."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refattn import masks
from refattn.masks import EMPTY, FULL, PARTIAL, blocks, counts, free
from tests.masks.expressions import EXPRESSIONS

RNG = np.random.default_rng(0)
PATTERNS = {  # all for 33 queries and 50 keys, or for any
    "causal": masks.causal(),
    "causal from the top": masks.causal(0),
    "nothing": masks.causal(-100),
    "everything": masks.causal(100),
    "window": masks.window(7, 3),
    "band": masks.causal() & masks.window(16, 0),
    "padding": masks.padding([0, 17, 50]),
    "documents": masks.document(np.sort(RNG.integers(0, 5, (2, 50))), np.sort(RNG.integers(0, 5, (2, 33)))),
    "globals": masks.global_tokens([0, 30]) | masks.window(2, 2),
    "array": masks.from_array(RNG.random((33, 50)) < 0.1),
    "array of heads": masks.from_array(RNG.random((2, 3, 33, 50)) < 0.02),
    "array of keys": masks.from_array(RNG.random((1, 50)) < 0.5),
    "array of queries": masks.from_array(RNG.random((33, 1)) < 0.5),
    "function": masks.from_function(lambda i, j: (i // 4 + j // 4) % 2 == 0),
    "dilated": masks.dilated(3, 4),
    "dilated without gaps": masks.dilated(3, 1),
    "strided": masks.strided(3, 7),
    "fixed": masks.fixed(8, 2),
    "chunked": masks.chunked(9),
    "prefix": masks.prefix_lm(12),
    "prefix of each": masks.prefix_lm([0, 20, 60]),
    "drawn": masks.random(3, seed=1),
    "drawn, most": masks.random(40, heads=2),
    "drawn blocks": masks.random_blocks(2, 8, seed=2, heads=3),
    "bigbird": masks.bigbird(4, n_random=1),
    "bigbird of odd blocks": masks.bigbird(7, 1, (0, -2, 3), 2, 5, 2),
    "longformer": masks.longformer(4, [0, 20]),
    "blocks": masks.block(RNG.random((2, 4, 5)) < 0.4, 10),
    "documents mixed": masks.document(RNG.integers(0, 5, (2, 50))) & masks.causal(),
    "documents elsewhere": masks.document([3, 3, 1, 1, 1, 8] + 44 * [2], 11 * [1, 9, 5]),
    "drawn behind": masks.causal() & masks.random(9) & masks.strided(4, 3),
    "not": ~(masks.causal() & masks.window(9, 0)) | masks.padding([3, 50, 0]),
}
SIZES = [(33, 50), (50, 33), (1, 50), (50, 1), (64, 64), (0, 7), (7, 0)]
BLOCKS = [(1, 1), (1, 8), (3, 5), (7, 16), (8, 8), (16, 16), (16, 24), (64, 64), (100, 3), (128, 128)]
REACHING = ["dilated", "strided", "fixed", "chunked", "prefix", "drawn", "drawn blocks", "bigbird", "longformer"]
ANY_SIZE = [
    "causal",
    "causal from the top",
    "window",
    "band",
    "globals",
    "function",
    *REACHING,
    "bigbird of odd blocks",
]


def from_blocks(cut):
    """Rebuild the dense pattern from the documented fields alone."""
    nq, nk = -(-cut.Tq // cut.block_q), -(-cut.Tk // cut.block_k)
    lead = int(np.prod(cut.lead))
    room = np.zeros((lead, nq * cut.block_q, nk * cut.block_k), bool)
    for row in range(len(cut.rows) - 1):
        n, a = divmod(row, nq)
        for t in range(cut.rows[row], cut.rows[row + 1]):
            tile = np.ones((cut.block_q, cut.block_k), bool)
            if cut.partial[t] >= 0:
                bits = cut.bits[cut.partial[t]]  # (block_k, ceil(block_q / 8))
                i, j = np.arange(cut.block_q)[:, None], np.arange(cut.block_k)
                tile = bits[j, i // 8] >> (i % 8) & 1
            i, j = a * cut.block_q, cut.columns[t] * cut.block_k
            room[n, i : i + cut.block_q, j : j + cut.block_k] = tile
    return room[:, : cut.Tq, : cut.Tk].reshape(*cut.lead, cut.Tq, cut.Tk)


def check(mask, Tq, Tk, block_q, block_k):
    """The blocks of a mask reconstruct it, are sorted, and hold no tile that is empty or full without saying so."""
    dense = mask.dense(Tq, Tk)
    tiles = mask.blocks(Tq, Tk, block_q, block_k)
    np.testing.assert_array_equal(from_blocks(tiles), dense)
    assert tiles.pairs == dense.sum()
    assert (tiles.rows[0], tiles.rows[-1]) == (0, len(tiles.columns))
    assert len(tiles.rows) == int(np.prod(tiles.lead)) * tiles.shape[0] + 1
    for row in range(len(tiles.rows) - 1):
        columns = tiles.columns[tiles.rows[row] : tiles.rows[row + 1]]
        assert (np.diff(columns) > 0).all()
    kinds = tiles.kinds()
    assert kinds.shape == (*tiles.lead, *tiles.shape)
    for place in np.ndindex(kinds.shape):
        *lead, a, b = place
        tile = dense[(*lead, slice(a * block_q, (a + 1) * block_q), slice(b * block_k, (b + 1) * block_k))]
        assert kinds[place] == (FULL if tile.all() else PARTIAL if tile.any() else EMPTY)
    assert (tiles.partial >= 0).sum() == len(tiles.bits)
    assert int(np.bitwise_count(tiles.bits).sum()) <= dense.sum()  # no bit beyond Tq or Tk


@pytest.mark.parametrize(("block_q", "block_k"), BLOCKS)
@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_reconstruct_the_pattern(name, block_q, block_k):
    check(PATTERNS[name], 33, 50, block_q, block_k)


@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
@pytest.mark.parametrize("name", ANY_SIZE)
def test_blocks_of_every_size(name, Tq, Tk):
    check(PATTERNS[name], Tq, Tk, 8, 16)


@pytest.mark.parametrize("name", PATTERNS)
def test_pairs_are_counted_exactly(name):
    assert PATTERNS[name].pairs(33, 50) == PATTERNS[name].dense(33, 50).sum()


def test_pairs_of_a_long_sequence_need_no_matrix():
    T = 1_000_000  # a dense pattern would take a terabyte
    assert masks.causal().pairs(T, T) == T * (T + 1) // 2
    assert (masks.causal() & masks.window(255, 0)).pairs(T, T) == 256 * T - 255 * 256 // 2
    assert masks.padding([10, T]).pairs(T, T) == 10 * T + T * T


def test_blocks_with_leading_axes_that_one_side_lacks():
    check(masks.causal(0) & masks.bigbird(3, 1, [], 0, heads=3), 3, 5, 1, 2)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_size_of_a_batch_changes_nothing(name, monkeypatch):
    whole = PATTERNS[name].blocks(33, 50, 4, 8)
    pairs, density = PATTERNS[name].pairs(33, 50), PATTERNS[name].density(33, 50, 4, 8)
    for module, size, value in (
        (blocks, "TILES", 20),
        (blocks, "PAIRS", 70),
        (counts, "ROWS", 9),
        (free, "COUNTED", 60),
    ):
        monkeypatch.setattr(module, size, value)
    parts = PATTERNS[name].blocks(33, 50, 4, 8)
    for field in ("rows", "columns", "partial", "bits"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))
    assert PATTERNS[name].pairs(33, 50) == pairs
    np.testing.assert_array_equal(PATTERNS[name].density(33, 50, 4, 8), density)


def test_a_function_is_asked_for_pairs_that_exist():
    table = RNG.random((33, 50)) < 0.5
    check(masks.from_function(lambda i, j: table[i, j]), 33, 50, 8, 16)


def test_blocks_of_a_long_sequence_look_into_few_tiles():
    looked = []

    def see(i, j):
        looked.append(i.size * j.size)
        return i >= j

    band = masks.causal() & masks.window(63, 0) & masks.from_function(see)
    assert band.blocks(8192, 8192, 64, 64).pairs == 64 * 8192 - 64 * 63 // 2
    assert sum(looked) < 8192 * 8192 / 16


@pytest.mark.parametrize("name", [name for name in PATTERNS if PATTERNS[name].lead == ()])
def test_to_scipy(name):
    matrix = PATTERNS[name].to_scipy(33, 50)
    assert isinstance(matrix, scipy.sparse.csr_array)
    assert matrix.shape == (33, 50)
    assert matrix.dtype == bool
    np.testing.assert_array_equal(matrix.toarray(), PATTERNS[name].dense(33, 50))


def test_to_scipy_of_many_tiles():
    mask = masks.window(100, 3) | masks.global_tokens([200])
    np.testing.assert_array_equal(mask.to_scipy(300, 257).toarray(), mask.dense(300, 257))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EXPRESSIONS, st.integers(0, 40), st.integers(5, 40), st.integers(1, 20), st.integers(1, 20))
def test_any_expression(mask, Tq, Tk, block_q, block_k):
    check(mask, Tq, Tk, block_q, block_k)
    assert mask.pairs(Tq, Tk) == mask.dense(Tq, Tk).sum()
    text = repr(mask)
    assert repr(masks.parse(text)) == text
    np.testing.assert_array_equal(masks.parse(text).dense(Tq, Tk), mask.dense(Tq, Tk))
