"""Relations that hold bit for bit, or nearly, on every backend and on the reference."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import refattn
from refattn import masks

CAUSAL = masks.causal()


def draw(batch=3, H=4, Hk=2, Tq=100, Tk=100, D=24, Dv=20, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (batch, H, Tq, D), (batch, Hk, Tk, D), (batch, Hk, Tk, Dv)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def attend(backend, q, k, v, mask=CAUSAL, **options):
    return refattn.attention(q, k, v, mask=mask, **options, return_lse=True, backend=backend)


def same_bits(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_sequence_does_not_depend_on_its_batch(anywhere):
    q, k, v = draw()
    do = np.ones((3, 4, 100, 20), np.float32)
    o, lse = attend(anywhere, q, k, v)
    g = refattn.attention_vjp(do, q, k, v, mask=CAUSAL, backend=anywhere)
    for b in range(3):
        one = slice(b, b + 1)
        same_bits(attend(anywhere, q[one], k[one], v[one]), (o[one], lse[one]))
        alone = refattn.attention_vjp(do[one], q[one], k[one], v[one], mask=CAUSAL, backend=anywhere)
        same_bits(alone[:3], (g.dq[one], g.dk[one], g.dv[one]))


def test_a_head_does_not_depend_on_the_others(anywhere):
    q, k, v = draw(Hk=4)
    o, lse = attend(anywhere, q, k, v)
    order = [2, 0, 3, 1]
    same_bits(attend(anywhere, q[:, order], k[:, order], v[:, order]), (o[:, order], lse[:, order]))


def test_grouped_heads_equal_expanded_heads(anywhere):
    q, k, v = draw()
    expanded = attend(anywhere, q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1))
    same_bits(attend(anywhere, q, k, v), expanded)


def test_powers_of_two_pass_through(anywhere):
    q, k, v = draw()
    o, lse = attend(anywhere, q, k, v)
    same_bits(attend(anywhere, q, k, 2 * v), (2 * o, lse))
    same_bits(attend(anywhere, q, k, -v), (-o, lse))
    same_bits(attend(anywhere, 2 * q, k / 2, v), (o, lse))


@pytest.mark.parametrize("poison", [1e4, np.nan, np.inf, -np.inf])
def test_what_is_hidden_changes_no_bit(anywhere, poison):
    q, k, v = draw()
    mask = masks.padding([60, 100, 1]) & CAUSAL
    want = attend(anywhere, q, k, v, mask)
    k[0, :, 60:], v[0, :, 60:], k[2, :, 1:], v[2, :, 1:] = poison, poison, poison, poison
    same_bits(attend(anywhere, q, k, v, mask), want)


@pytest.mark.parametrize("poison", [1e4, np.nan])
def test_the_future_changes_no_earlier_row(anywhere, poison):
    q, k, v = draw()
    want = attend(anywhere, q, k, v)
    k[:, :, 70], v[:, :, 71] = poison, poison
    o, lse = attend(anywhere, q, k, v)
    same_bits((o[:, :, :70], lse[:, :, :70]), (want[0][:, :, :70], want[1][:, :, :70]))
    assert (o[:, :, 71:] != want[0][:, :, 71:]).all()


def test_nan_in_a_query_poisons_its_row_alone(anywhere):
    q, k, v = draw()
    want = attend(anywhere, q, k, v)
    q[1, 2, 33, 5] = np.nan
    o, lse = attend(anywhere, q, k, v)
    assert np.isnan(o[1, 2, 33]).all() and np.isnan(lse[1, 2, 33])
    o[1, 2, 33], lse[1, 2, 33] = want[0][1, 2, 33], want[1][1, 2, 33]
    same_bits((o, lse), want)


def test_the_same_call_gives_the_same_bits(anywhere):
    q, k, v = draw(Tq=500, Tk=500)
    do = np.random.default_rng(1).normal(size=(3, 4, 500, 20)).astype(np.float32)
    bias = np.random.default_rng(2).normal(size=(4, 1, 500)).astype(np.float32)
    first = refattn.attention_vjp(do, q, k, v, mask=CAUSAL, bias=bias, backend=anywhere)
    for _ in range(3):
        again = refattn.attention_vjp(do, q, k, v, mask=CAUSAL, bias=bias, backend=anywhere)
        same_bits(again[:4], first[:4])


def test_calls_from_many_threads(anywhere):
    problems = [draw(Tq=130 + n, Tk=130 + n, seed=n) for n in range(8)]
    want = [attend(anywhere, *problem) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(lambda p: attend(anywhere, *p), problems), want, strict=True):
                same_bits(got, expected)


def test_an_array_mask_may_change_between_calls(anywhere):
    q, k, v = draw(Tq=20, Tk=20)
    visible = np.tri(20, dtype=bool)
    before = attend(anywhere, q, k, v, visible)
    visible[:, 3:] = False
    after = attend(anywhere, q, k, v, visible)
    same_bits(after, attend(anywhere, q, k, v, masks.from_array(visible.copy())))
    assert (after[0][:, :, 10:] != before[0][:, :, 10:]).any()


def test_the_order_of_keys_is_nearly_nothing(anywhere):
    q, k, v = draw(dtype=np.float64)
    order = np.random.default_rng(3).permutation(100)
    got = attend(anywhere, q, k[:, :, order], v[:, :, order], None)
    for x, y in zip(got, attend(anywhere, q, k, v, None), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


def test_results_stay_between_the_values(anywhere):
    q, k, v = draw()
    o, _ = attend(anywhere, q, k, v)
    low, high = (np.repeat(f.accumulate(v, axis=2), 2, axis=1) for f in (np.minimum, np.maximum))
    assert (o >= low - 1e-5).all() and (o <= high + 1e-5).all()


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_prefill_in_chunks_is_one_pass(anywhere, tokens):
    q, k, v = draw(dtype=np.float64)
    want, _ = attend(anywhere, q, k, v)
    for start in range(0, 100, tokens):
        stop = min(start + tokens, 100)
        o, _ = attend(anywhere, q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop])
        np.testing.assert_allclose(o, want[:, :, start:stop], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("operation", ["flash_attention", "flash_attention_vjp"])
@pytest.mark.parametrize("T", [2048])
def test_tiled_memory_does_not_grow_with_the_square(anywhere, operation, T):
    q, k, v = draw(batch=1, H=1, Hk=1, Tq=T, Tk=T, D=16, Dv=16)
    o, lse = refattn.flash_attention(q, k, v, mask=CAUSAL, backend=anywhere)
    arguments = (q, k, v) if operation == "flash_attention" else (o, q, k, v, o, lse)
    call = getattr(refattn, operation)
    call(*arguments, mask=CAUSAL, backend=anywhere)  # what is compiled or kept once
    tracemalloc.start()
    try:
        call(*arguments, mask=CAUSAL, backend=anywhere)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < T * T * 4 / 4


def test_use_backend_reaches_the_parts_of_a_composite(anywhere):
    x, w = (np.random.default_rng(n).normal(size=(24, 24)) for n in range(2))
    named = refattn.multi_head_attention(x, w, w, w, w, heads=3, mask=CAUSAL, backend=anywhere)
    with refattn.use_backend(anywhere):
        np.testing.assert_array_equal(refattn.multi_head_attention(x, w, w, w, w, heads=3, mask=CAUSAL), named)
