"""Patterns that reach further than the sequence cost no more than it does, and NumPy's integers are integers."""

import numpy as np
import pytest

import refattn

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(heads, T, 4)) for heads, T in ((2, 5), (1, 7), (1, 7)))
GATES = RNG.normal(size=(2, 5, 3))
NSA = {"block_size": 3, "stride": 1, "select_block": 2, "n_selected": 3, "window": 2}
SIZES = [  # operation, what it takes besides, and sizes that mean "all there is"
    ("local_attention", {}, ("left", "right")),
    ("dilated_attention", {"step": 2}, ("window",)),
    ("dilated_attention", {"window": 2}, ("step",)),
    ("strided_attention", {"stride": 3}, ("local",)),
    ("strided_attention", {"local": 2}, ("stride",)),
    ("fixed_attention", {"summary": 1}, ("block",)),
    ("longformer_attention", {"global_indices": (1,)}, ("window",)),
    ("random_attention", {}, ("n_keys",)),
    ("moba_attention", {"top_k": 2}, ("chunk",)),
    ("nsa_attention", NSA, ("block_size", "stride", "select_block")),
    ("nsa_attention", NSA, ("select_block",)),
    ("nsa_attention", NSA, ("block_size",)),
    ("nsa_attention", NSA, ("window",)),
]


def attend(operation, **arguments):
    """Call an operation; return its first result."""
    gates = (GATES,) if operation == "nsa_attention" else ()
    result = getattr(refattn, operation)(Q, K, V, *gates, **arguments)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("backend", refattn.backends())
@pytest.mark.parametrize(("operation", "others", "names"), SIZES)
def test_a_size_beyond_the_sequence_is_as_good_as_its_length(operation, others, names, backend):
    huge, enough = ({**others, **dict.fromkeys(names, size)} for size in (10**9, 50))
    expected = attend(operation, **enough)
    np.testing.assert_allclose(attend(operation, **huge, backend=backend), expected, atol=1e-12)


@pytest.mark.parametrize("backend", refattn.backends())
def test_chunks_of_a_hash_may_be_longer_than_the_sequence(backend):
    buckets = np.zeros((2, 1, 5), int)
    expected = refattn.lsh_attention(Q, Q, buckets=buckets, chunk=5).o
    found = refattn.lsh_attention(Q, Q, buckets=buckets, chunk=10**9, backend=backend).o
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("integer", [np.int8, np.uint64])
@pytest.mark.parametrize(
    ("operation", "sizes"),
    [(operation, (*others, *names)) for operation, others, names in SIZES if "global_indices" not in others],
)
def test_sizes_may_be_integers_of_numpy(operation, sizes, integer):
    plain = {name: 4 if name in ("block", "n_selected") else 2 for name in sizes}
    numpys = {name: integer(size) for name, size in plain.items()}
    np.testing.assert_array_equal(attend(operation, **numpys), attend(operation, **plain))
