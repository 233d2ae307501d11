"""The dialect of JAX against the installed jax, on random options and at the edges."""

import inspect
import os

import numpy as np
import pytest

from refattn.dialects.jax import dot_product_attention

pytestmark = pytest.mark.peers

BACKENDS = ("numpy", "numba")
TOLERANCE = {"float64": 3e-6, "float32": 3e-6, "float16": 5e-3}  # JAX's softmax is float32 at best

SHAPES = [(2, 1, 3, 5, 7, 12), (1, 2, 2, 8, 20, 9), (3, 2, 1, 4, 1, 6)]  # B, K, N / K, H, T, S; JAX compiles for each


@pytest.fixture(scope="module")
def jax():
    """JAX on the CPU, told to keep float64."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = pytest.importorskip("jax", reason="jax is not installed: python -m pip install jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


def draw(seed, dtype):
    """Random arrays and options; each option is there in about half of the draws."""
    rng = np.random.default_rng(seed)
    B, K, G, H, T, S = SHAPES[seed % len(SHAPES)]
    q, k, v = (rng.standard_normal((B, t, n, H)).astype(dtype) for t, n in ((T, K * G), (S, K), (S, K)))
    some = rng.random(8) < 0.5
    options = {"scale": float(rng.normal()) if some[0] else None, "is_causal": bool(some[1])}
    if some[2]:
        options["bias"] = rng.standard_normal((B, 1, T, S)).astype(dtype)
    if some[3]:
        options["mask"] = rng.random((1, K * G, T, S)) < 0.4
    if some[4]:
        options["query_seq_lengths"] = rng.integers(0, T + 1, B).astype(np.int32)
    if some[5]:
        options["key_value_seq_lengths"] = rng.integers(-1, S + 3, B).astype(np.int32)
    if some[6]:
        options["local_window_size"] = (int(rng.integers(-1, 9)), int(rng.integers(-1, 9)))
    return q, k, v, options


def same(jax, arrays, options, tolerance=3e-6):
    """Hold both results and their residuals against each other."""
    theirs = [np.asarray(x) for x in jax.nn.dot_product_attention(*arrays, **options, return_residual=True)]
    ours = {b: dot_product_attention(*arrays, **options, return_residual=True, backend=b) for b in BACKENDS}
    for got, want in ((got, want) for both in ours.values() for got, want in zip(both, theirs, strict=True)):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(12))
def test_random_options(jax, seed, dtype):
    *arrays, options = draw(seed, dtype)
    same(jax, arrays, options, TOLERANCE[dtype])


def test_one_sequence_without_a_batch(jax):
    q, k, v, _ = draw(0, "float64")
    same(jax, (q[0], k[0], v[0]), {"local_window_size": 3})
    same(jax, (q[0, 0], k[0, 0], v[0, 0]), {})  # one token, many heads


EDGES = {
    "a hidden value is NaN": lambda q, k, v: ((q, k, put(v, np.nan)), {"mask": np.array([True, True, False])}),
    "a hidden value is inf": lambda q, k, v: ((q, k, put(v, np.inf)), {"mask": np.array([True, True, False])}),
    "a hidden key is NaN": lambda q, k, v: ((q, put(k, np.nan), v), {"mask": np.array([True, True, False])}),
    "nothing seen, a key is NaN": lambda q, k, v: ((q, put(k, np.nan), v), {"mask": np.zeros(3, bool)}),
    "every bias is -inf": lambda q, k, v: ((q, k, v), {"bias": np.full((1, 1, 2, 3), -np.inf)}),
    "seen ones have -inf": lambda q, k, v: (
        (q, k, v),
        {"bias": np.full((1, 1, 2, 3), -np.inf), "mask": np.array([True, True, False])},
    ),
    "seen ones lie lower": lambda q, k, v: (
        (q, k, v),
        {"bias": np.full((1, 1, 2, 3), -3e38), "mask": np.array([True, True, False])},
    ),
    "padded queries, NaN in a value": lambda q, k, v: (
        (q, k, put(v, np.nan)),
        {"query_seq_lengths": np.array([1], np.int32), "key_value_seq_lengths": np.array([2], np.int32)},
    ),
    "an integer bias": lambda q, k, v: ((q, k, v), {"bias": np.array([[[[1, 0, 2]]]])}),
    "no keys": lambda q, k, v: ((q, k[:, :0], v[:, :0]), {}),
    "no queries": lambda q, k, v: ((q[:, :0], k, v), {}),
}


def put(x, value):
    x = x.copy()
    x[0, 2, :, 0] = value
    return x


@pytest.mark.parametrize("edge", EDGES)
def test_edges(jax, edge):
    rng = np.random.default_rng(3)
    arrays, options = EDGES[edge](*(rng.standard_normal((1, t, 2, 4)) for t in (2, 3, 3)))
    same(jax, arrays, options)


def refused():
    q, k = np.zeros((1, 2, 3, 4)), np.zeros((1, 5, 1, 4))
    yield "value narrower", (q, k, k[..., :2]), {}
    yield "dtypes differ", (q, k, k.astype(np.float32)), {}
    yield "float mask", (q, k, k), {"mask": np.zeros((1, 1, 2, 5))}
    yield "heads", (q, k.repeat(2, axis=2), k.repeat(2, axis=2)), {}
    yield "implementation", (q, k, k), {"implementation": "pallas"}
    yield "cudnn", (q, k, k), {"implementation": "cudnn"}
    yield "lengths", (q, k, k), {"key_value_seq_lengths": np.array([1, 1], np.int32)}
    yield "float lengths", (q, k, k), {"query_seq_lengths": np.array([1.0])}
    yield "bias too long", (q, k, k), {"bias": np.zeros((1, 1, 2, 6))}
    yield "five axes", (q, k, k), {"bias": np.zeros((1, 1, 1, 2, 5))}
    yield "five axes of a mask", (q, k, k), {"mask": np.ones((1, 1, 1, 2, 5), bool)}
    yield "five axes of keys", (q, k[None], k[None]), {}
    yield "mask of two heads", (q, k, k), {"mask": np.ones((1, 2, 2, 5), bool)}
    yield "batch", (q, k.repeat(2, axis=0), k.repeat(2, axis=0)), {}
    yield "integers", tuple(x.astype(int) for x in (q, k, k)), {}


@pytest.mark.parametrize(("arrays", "options"), [case[1:] for case in refused()], ids=[case[0] for case in refused()])
def test_both_refuse(jax, arrays, options):
    with pytest.raises((ValueError, TypeError, AssertionError, RuntimeError)):
        jax.nn.dot_product_attention(*arrays, **options)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"^dot_product_attention: "):
        dot_product_attention(*arrays, **options)


def test_signature(jax):
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters
    ours = dict(inspect.signature(dot_product_attention).parameters)
    assert ours.pop("backend").default == "numpy"
    assert {name: (p.kind, p.default) for name, p in ours.items()} == {
        name: (p.kind, p.default) for name, p in theirs.items()
    }
