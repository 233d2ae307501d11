"""Arguments that no mask can be made from are refused where they are made, by name."""

import numpy as np
import pytest

from refattn import masks

REFUSED = [
    (lambda: masks.dilated(-1, 2), ValueError, "dilated: window is -1; wanted at least 0"),
    (lambda: masks.dilated(1, 0), ValueError, "dilated: step is 0; wanted at least 1"),
    (lambda: masks.dilated(1.0, 2), TypeError, "dilated: window must be an integer, got float"),
    (lambda: masks.strided(0, 2), ValueError, "strided: local is 0; wanted at least 1"),
    (lambda: masks.strided(2, 0), ValueError, "strided: stride is 0; wanted at least 1"),
    (lambda: masks.strided(2, True), TypeError, "strided: stride must be an integer, got bool"),
    (lambda: masks.fixed(0, 1), ValueError, "fixed: block is 0; wanted at least 1"),
    (lambda: masks.fixed(4, 0), ValueError, "fixed: summary is 0; wanted at least 1"),
    (lambda: masks.fixed(4, 5), ValueError, "fixed: summary is 5; wanted at most the 4 keys of a block"),
    (lambda: masks.chunked(0), ValueError, "chunked: size is 0; wanted at least 1"),
    (lambda: masks.chunked(None), TypeError, "chunked: size must be an integer, got NoneType"),
    (lambda: masks.prefix_lm(-2), ValueError, "prefix_lm: n holds -2; wanted 0 or more"),
    (lambda: masks.prefix_lm(None), TypeError, "prefix_lm: n must be an integer or integers, got NoneType"),
    (lambda: masks.prefix_lm(0.5), TypeError, "prefix_lm: n has dtype float64; wanted integers"),
    (lambda: masks.random(0), ValueError, "random: n_keys is 0; wanted at least 1"),
    (lambda: masks.random(1, -1), ValueError, "random: seed is -1; wanted at least 0"),
    (lambda: masks.random(1, None), TypeError, "random: seed must be an integer, got NoneType"),
    (lambda: masks.random(1, 0, 0), ValueError, "random: heads is 0; wanted at least 1"),
    (lambda: masks.random_blocks(0, 4), ValueError, "random_blocks: n_blocks is 0; wanted at least 1"),
    (lambda: masks.random_blocks(2, 0), ValueError, "random_blocks: block_size is 0; wanted at least 1"),
    (lambda: masks.random_blocks(2, 4, 1.5), TypeError, "random_blocks: seed must be an integer, got float"),
    (lambda: masks.bigbird(0), ValueError, "bigbird: block_size is 0; wanted at least 1"),
    (lambda: masks.bigbird(4, 2), ValueError, "bigbird: n_window is 2; wanted an odd number"),
    (lambda: masks.bigbird(4, 3, 0), ValueError, r"bigbird: global_blocks has shape \(\); wanted at least 1 axes"),
    (lambda: masks.bigbird(4, 3, [[0]]), ValueError, r"bigbird: global_blocks has shape \(1, 1\); wanted a list"),
    (lambda: masks.bigbird(4, 3, [0.5]), TypeError, "bigbird: global_blocks has dtype float64; wanted integers"),
    (lambda: masks.bigbird(4, n_random=-1), ValueError, "bigbird: n_random is -1; wanted at least 0"),
    (lambda: masks.bigbird(4, heads=-1), ValueError, "bigbird: heads is -1; wanted at least 1"),
    (lambda: masks.longformer(-1), ValueError, "longformer: window is -1; wanted at least 0"),
    (lambda: masks.longformer(2, [-1]), ValueError, r"longformer: global_indices is \[-1\]; wanted a list"),
    (lambda: masks.longformer(2, ["a"]), TypeError, "longformer: global_indices has dtype <U1; wanted integers"),
    (lambda: masks.global_tokens(None), TypeError, "global_tokens: indices has dtype object; wanted integers"),
    (lambda: masks.document(None), TypeError, "document: ids has dtype object; wanted integers"),
    (lambda: masks.padding(None), TypeError, "padding: lengths has dtype object; wanted integers"),
    (lambda: masks.block([[1, 0]], 2), TypeError, "block: layout has dtype int64; wanted bool"),
    (lambda: masks.block([True], 2), ValueError, r"block: layout has shape \(1,\); wanted \(..., blocks of queries"),
    (lambda: masks.block([[True]], 0), ValueError, "block: block_size is 0; wanted at least 1"),
    (
        lambda: masks.block(np.ones((2, 3), bool), 4).dense(8, 8),
        ValueError,
        "block: layout has 2 x 3 blocks; 8 queries and 8 keys in blocks of 4 are 2 x 2",
    ),
    (lambda: masks.random(1).keys(-1, 3), ValueError, "mask: Tq is -1; wanted at least 0"),
    (lambda: masks.causal().density(4, 4, 0, 2), ValueError, "density: block_q is 0; wanted at least 1"),
    (lambda: masks.causal().density(4, 4, 2, 0.5), TypeError, "density: block_k must be an integer, got float"),
    (lambda: masks.causal().svg(4, 4, 8), ValueError, "svg: size is 8; wanted at least 120"),
    (lambda: masks.causal().svg(-1, 4), ValueError, "mask: Tq is -1; wanted at least 0"),
    (lambda: masks.causal().picture(4, 4, 0), ValueError, "picture: width is 0; wanted at least 1"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
