"""The tiles that backends consume say exactly what the dense pattern says."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refattn import masks
from refattn.masks import EMPTY, FULL, PARTIAL
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
    "documents elsewhere": masks.document([3, 3, 1, 1, 1, 8] + 44 * [2], 11 * [1, 9, 3]),
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


def from_blocks(blocks):
    """Rebuild the dense pattern from the documented fields alone."""
    nq, nk = -(-blocks.Tq // blocks.block_q), -(-blocks.Tk // blocks.block_k)
    lead = int(np.prod(blocks.lead))
    room = np.zeros((lead, nq * blocks.block_q, nk * blocks.block_k), bool)
    for row in range(len(blocks.rows) - 1):
        n, a = divmod(row, nq)
        for t in range(blocks.rows[row], blocks.rows[row + 1]):
            tile = np.ones((blocks.block_q, blocks.block_k), bool)
            if blocks.partial[t] >= 0:
                bits = blocks.bits[blocks.partial[t]]  # (block_k, ceil(block_q / 8))
                i, j = np.arange(blocks.block_q)[:, None], np.arange(blocks.block_k)
                tile = bits[j, i // 8] >> (i % 8) & 1
            i, j = a * blocks.block_q, blocks.columns[t] * blocks.block_k
            room[n, i : i + blocks.block_q, j : j + blocks.block_k] = tile
    return room[:, : blocks.Tq, : blocks.Tk].reshape(*blocks.lead, blocks.Tq, blocks.Tk)


def check(mask, Tq, Tk, block_q, block_k):
    """The blocks of a mask reconstruct it, are sorted, and hold no tile that is empty or full without saying so."""
    dense = mask.dense(Tq, Tk)
    blocks = mask.blocks(Tq, Tk, block_q, block_k)
    np.testing.assert_array_equal(from_blocks(blocks), dense)
    assert blocks.pairs == dense.sum()
    assert (blocks.rows[0], blocks.rows[-1]) == (0, len(blocks.columns))
    assert len(blocks.rows) == int(np.prod(blocks.lead)) * blocks.shape[0] + 1
    for row in range(len(blocks.rows) - 1):
        columns = blocks.columns[blocks.rows[row] : blocks.rows[row + 1]]
        assert (np.diff(columns) > 0).all()
    kinds = blocks.kinds()
    assert kinds.shape == (*blocks.lead, *blocks.shape)
    for place in np.ndindex(kinds.shape):
        *lead, a, b = place
        tile = dense[(*lead, slice(a * block_q, (a + 1) * block_q), slice(b * block_k, (b + 1) * block_k))]
        assert kinds[place] == (FULL if tile.all() else PARTIAL if tile.any() else EMPTY)
    assert (blocks.partial >= 0).sum() == len(blocks.bits)
    assert int(np.bitwise_count(blocks.bits).sum()) <= dense.sum()  # no bit beyond Tq or Tk


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


def test_blocks_of_a_long_sequence_look_into_few_tiles():
    looked = []

    def see(i, j):
        looked.append(i.size * j.size)
        return i >= j

    band = masks.causal() & masks.window(63, 0) & masks.from_function(see)
    blocks = band.blocks(8192, 8192, 64, 64)
    assert blocks.pairs == 64 * 8192 - 64 * 63 // 2
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
