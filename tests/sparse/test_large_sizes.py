"""Patterns that reach further than the sequence cost no more than it does, and NumPy's integers are integers."""

import numpy as np
import pytest

import refattn
from refattn import masks

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


def test_a_window_may_have_unsigned_sizes():
    mask = masks.window(np.uint64(2), np.uint8(1))
    assert mask == masks.window(2, 1) and mask.pairs(5, 7) == masks.window(2, 1).dense(5, 7).sum()


def test_t5_buckets_may_reach_as_far_as_they_like():
    buckets = refattn.t5_buckets(-np.array([15, 16, 10**8, 10**9]), bidirectional=False, max_distance=10**9)
    assert buckets.tolist() == [15, 16, 29, 31]
    table = RNG.normal(size=(32, 2))
    sizes = {"bidirectional": False, "max_distance": 10**9}
    np.testing.assert_array_equal(
        refattn.t5_bias(table, np.uint64(3), np.uint64(4), **sizes), refattn.t5_bias(table, 3, 4, **sizes)
    )


def test_a_block_of_a_selection_may_be_longer_than_the_sequence():
    blocks = np.array([[0], [-1]])
    assert refattn.selected_keys(blocks, np.uint64(3), size=10**12).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: refattn.selected_keys(np.array(0), 3), ValueError, r"selected_keys: indices has shape \(\)"),
        (lambda: refattn.selected_keys(np.array([[0]]), -1), ValueError, "selected_keys: Tk is -1; wanted at least 0"),
        (lambda: refattn.selected_keys(np.array([[0]]), 3.0), TypeError, "selected_keys: Tk must be an integer"),
        (lambda: refattn.draw_rotations(1, 4, 4, seed=-1), ValueError, "draw_rotations: seed is -1"),
        (
            lambda: refattn.draw_rotations(1, 4, 4, dtype=int),
            TypeError,
            "draw_rotations: dtype is int64; wanted one of",
        ),
    ],
)
def test_what_helps_a_selection_refuses_by_name(make, error, says):
    with pytest.raises(error, match=says):
        make()
