"""Torch's scaled_dot_product_attention and the layers of transformers on random options, on every backend.

In float64, values and gradients; what is compared stands in tests/sparse/test_peers_sparse.py, and flex_attention is
compared in the same way, on every backend, in tests/dialects/test_flex_attention.py.
"""

import numpy as np
import pytest

import refattn
from tests.sparse import test_peers_sparse as fixed
from tests.sparse.test_peers_sparse import torch, transformers  # noqa: F401 - fixtures

pytestmark = pytest.mark.peers


@pytest.fixture
def compare(monkeypatch, anywhere):
    """A function that makes a comparison on the backend."""
    close, compared = fixed.close, []

    def noted(ours, theirs):
        close(ours, theirs)
        compared.append(ours)

    def run(comparison, *args):
        with refattn.use_backend(anywhere):
            comparison(*args)
        return compared

    monkeypatch.setattr(fixed, "close", noted)
    return run


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_sdpa(torch, compare, seed):  # noqa: F811 - the fixtures
    assert compare(fixed.test_sparse_attention_is_torch_sdpa, torch, seed)
    assert len(compare(fixed.test_local_attention_is_torch_sdpa, torch, seed)) > 4


@pytest.mark.parametrize("seed", range(12))
def test_longformer(torch, transformers, monkeypatch, compare, seed):  # noqa: F811
    rng = np.random.default_rng(seed)
    H, D, chunks = (int(rng.integers(1, stop)) for stop in (5, 17, 5))
    window = int(rng.integers(2, 21))  # theirs fails at 1
    T = 2 * window * (1 + chunks)
    indices = tuple(int(n) for n in np.sort(rng.permutation(T)[: rng.integers(0, 8)]))
    assert compare(fixed.test_longformer, torch, transformers, monkeypatch, seed, H, D, T, window, indices)


@pytest.mark.parametrize("seed", range(12))
def test_bigbird(torch, transformers, monkeypatch, compare, seed):  # noqa: F811
    rng = np.random.default_rng(seed)
    H, D, block_size, n_random = (int(rng.integers(1, stop)) for stop in (5, 17, 10, 4))
    blocks = int(rng.integers(6 + 2 * n_random, 20))
    assert compare(fixed.test_bigbird, torch, transformers, monkeypatch, seed, H, D, blocks, block_size, n_random)
