"""How long the operations take: ``python -m pytest tests/benchmarks --benchmark-enable``.

Without that option each is run once, and what is always done is the check: nothing is timed that is wrong.
"""

import numpy as np
import pytest

import refattn
from refattn import masks

T, D = 1024, 64
MASKS = {"dense": None, "causal": masks.causal(), "window": masks.causal() & masks.window(127, 0)}


@pytest.fixture(params=["float32", "float64"])
def inputs(request):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((h, T, D)).astype(request.param) for h in (4, 2, 2, 4))


def agrees(got, want, dtype):
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True)]
    return max(errors) < 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("mask", MASKS)
def test_forward(benchmark, anywhere, inputs, mask):
    q, k, v, _ = inputs
    want = refattn.attention(*(x.astype(float) for x in (q, k, v)), mask=MASKS[mask])
    assert agrees([refattn.attention(q, k, v, mask=MASKS[mask], backend=anywhere)], [want], q.dtype)
    benchmark(refattn.attention, q, k, v, mask=MASKS[mask], backend=anywhere)


@pytest.mark.parametrize("mask", MASKS)
def test_backward(benchmark, anywhere, inputs, mask):
    q, k, v, do = inputs
    want = refattn.attention_vjp(*(x.astype(float) for x in (do, q, k, v)), mask=MASKS[mask])[:3]
    got = refattn.attention_vjp(do, q, k, v, mask=MASKS[mask], backend=anywhere)[:3]
    assert agrees(got, want, q.dtype)
    benchmark(refattn.attention_vjp, do, q, k, v, mask=MASKS[mask], backend=anywhere)


def test_decoding(benchmark, anywhere):
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((h, t, D)).astype(np.float32) for h, t in ((8, 1), (2, 4096), (2, 4096)))
    want = refattn.attention(*(x.astype(float) for x in (q, k, v)))
    assert agrees([refattn.attention_split_kv(q, k, v, backend=anywhere)], [want], np.float32)
    benchmark(refattn.attention_split_kv, q, k, v, backend=anywhere)
