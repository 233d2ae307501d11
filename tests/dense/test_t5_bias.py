"""What T5's relative bias means: buckets that widen with the distance, one learnt number for each bucket and head."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import t5_bias, t5_bias_vjp, t5_buckets


def test_the_decoder_counts_back_and_the_future_shares_bucket_0():
    d = np.array([5, 1, 0, -1, -2, -15, -16, -17, -127, -128, -129, -100_000])
    got = t5_buckets(d, bidirectional=False)
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 2, 15, 16, 16, 31, 31, 31, 31])


def test_the_encoder_has_half_the_buckets_for_each_side():
    d = np.array([0, -1, -7, -8, -16, -32, -64, -127, -128, -9999])
    past = np.array([0, 1, 7, 8, 10, 12, 14, 15, 15, 15])
    np.testing.assert_array_equal(t5_buckets(d, bidirectional=True), past)
    np.testing.assert_array_equal(t5_buckets(-d[1:], bidirectional=True), 16 + past[1:])


sizes = st.tuples(st.integers(1, 20), st.booleans(), st.integers(1, 300))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(sizes)
def test_buckets_are_the_formula_in_exact_arithmetic(sizes):
    quarter, bidirectional, more = sizes
    n_buckets = 4 * quarter
    n = n_buckets // 2 if bidirectional else n_buckets
    m = n // 2
    M = m + more
    d = np.arange(2 * M)
    got = t5_buckets(-d, n_buckets=n_buckets, bidirectional=bidirectional, max_distance=M)
    np.testing.assert_array_equal(got[:m], d[:m])
    for one, bucket in zip(d[m:].tolist(), got[m:].tolist(), strict=True):  # floor(log(d / m) / log(M / m) · (n - m))
        k = bucket - m
        assert one ** (n - m) * m**k >= M**k * m ** (n - m), one
        assert bucket == n - 1 or one ** (n - m) * m ** (k + 1) < M ** (k + 1) * m ** (n - m), one
    assert (got[M:] == n - 1).all()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.sampled_from([4, 8, 32]), st.booleans(), st.integers(20, 200), st.integers(0, 400))
def test_further_is_never_a_lower_bucket(n_buckets, bidirectional, M, d):
    options = {"n_buckets": n_buckets, "bidirectional": bidirectional, "max_distance": M}
    past = t5_buckets(-np.array([d, d + 1]), **options)
    future = t5_buckets(np.array([d + 1, d + 2]), **options)
    assert 0 <= past[0] <= past[1] < n_buckets
    assert (future >= n_buckets // 2).all() if bidirectional else (future == 0).all()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_reads_the_table_at_each_distance(bidirectional):
    table = np.random.default_rng(0).normal(size=(8, 3))
    bias = t5_bias(table, 4, 6, bidirectional=bidirectional, max_distance=5)
    assert bias.shape == (3, 4, 6)
    for h, i, j in np.ndindex(bias.shape):
        at = t5_buckets(np.array(j - (i + 2)), n_buckets=8, bidirectional=bidirectional, max_distance=5)
        assert bias[h, i, j] == table[at, h]


def test_a_decoding_step_has_the_last_row_of_the_whole():
    table = np.random.default_rng(1).normal(size=(32, 2))
    whole = t5_bias(table, 40, 40, bidirectional=False)
    np.testing.assert_array_equal(t5_bias(table, 1, 40, bidirectional=False), whole[:, -1:])
    np.testing.assert_array_equal(t5_bias(table, 7, 40, bidirectional=False, offset=5), whole[:, 5:12])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nothing_is_rounded_on_the_way(dtype):
    table = np.random.default_rng(2).normal(size=(32, 2)).astype(dtype)
    bias = t5_bias(table, 9, 9, bidirectional=True)
    assert bias.dtype == dtype and np.isin(bias[1], table[:, 1]).all()
    dtable = t5_bias_vjp(np.ones((2, 40, 40), dtype), 32, bidirectional=True)
    assert dtable.dtype == dtype and dtable.sum(dtype=np.float64) == 2 * 40 * 40


def test_half_precision_adds_up_in_float32():
    dtable = t5_bias_vjp(np.ones((1, 150, 150), np.float16), 4, bidirectional=False, max_distance=4)
    pairs = 150 * 151 // 2  # the last bucket has all that look three back or more: ones that float16 stops counting
    assert dtable.dtype == np.float16 and dtable[3, 0] == np.float16(pairs - 150 - 149 - 148)


@pytest.mark.parametrize(("Tq", "Tk", "offset"), [(5, 7, None), (7, 5, None), (3, 9, 4), (0, 4, None), (4, 0, None)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_vjp_is_the_transpose(Tq, Tk, offset, bidirectional):
    rng = np.random.default_rng(3)
    table, dbias = rng.normal(size=(8, 3)), rng.normal(size=(3, Tq, Tk))
    options = {"bidirectional": bidirectional, "max_distance": 6, "offset": offset}
    dtable = t5_bias_vjp(dbias, 8, **options)
    assert dtable.shape == table.shape
    left, right = (dbias * t5_bias(table, Tq, Tk, **options)).sum(), (dtable * table).sum()
    assert math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-12)  # linear: <dbias, bias(table)> = <dtable, table>


def test_the_table_learns_through_attention():
    rng = np.random.default_rng(4)
    q, k, v, do = rng.normal(size=(4, 2, 6, 3))
    table, direction, step = rng.normal(size=(8, 2)), rng.normal(size=(8, 2)), 1e-6

    def loss(table):
        bias = t5_bias(table, 6, 6, bidirectional=False, max_distance=5)
        return (do * refattn.attention(q, k, v, bias=bias, scale=1.0)).sum()

    bias = t5_bias(table, 6, 6, bidirectional=False, max_distance=5)
    g = refattn.attention_vjp(do, q, k, v, bias=bias, scale=1.0)
    dtable = t5_bias_vjp(g.dbias, 8, bidirectional=False, max_distance=5)
    moved = (loss(table + step * direction) - loss(table - step * direction)) / (2 * step)
    assert math.isclose(moved, (dtable * direction).sum(), rel_tol=1e-6)


TABLE = np.zeros((32, 2))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: t5_buckets(np.zeros(3), bidirectional=True), TypeError, "t5_buckets: distance is float64; wanted"),
        (lambda: t5_buckets([1, 2], bidirectional=True), TypeError, "t5_buckets: distance is list"),
        (lambda: t5_buckets(np.arange(3), bidirectional=1), TypeError, "bidirectional must be a bool, got int"),
        (lambda: t5_buckets(np.arange(3), bidirectional=True, n_buckets=3), ValueError, "n_buckets is 3; .*at least 4"),
        (lambda: t5_buckets(np.arange(3), bidirectional=True, n_buckets=7), ValueError, "n_buckets is 7; .*even"),
        (lambda: t5_buckets(np.arange(3), bidirectional=False, n_buckets=1), ValueError, "n_buckets is 1"),
        (
            lambda: t5_buckets(np.arange(3), bidirectional=False, max_distance=16),
            ValueError,
            "max_distance is 16; wanted at least 17",
        ),
        (lambda: t5_bias(TABLE.astype(int), 3, 3, bidirectional=True), TypeError, "t5_bias: table has dtype int64"),
        (lambda: t5_bias(TABLE[0], 3, 3, bidirectional=True), ValueError, r"t5_bias: table has shape \(2,\)"),
        (lambda: t5_bias(TABLE[None], 3, 3, bidirectional=True), ValueError, r"t5_bias: table has shape \(1, 32, 2\)"),
        (lambda: t5_bias(TABLE, -1, 3, bidirectional=True), ValueError, "t5_bias: Tq is -1"),
        (lambda: t5_bias(TABLE, 3, 3.0, bidirectional=True), TypeError, "t5_bias: Tk must be an integer"),
        (lambda: t5_bias(TABLE, 3, 3, bidirectional=True, offset=0.5), TypeError, "t5_bias: offset must be an integer"),
        (lambda: t5_bias_vjp(TABLE, 32, bidirectional=True), ValueError, "t5_bias_vjp: dbias has shape"),
        (lambda: t5_bias_vjp(TABLE[None], 0, bidirectional=False), ValueError, "t5_bias_vjp: n_buckets is 0"),
    ],
)
def test_what_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def t5_attention():
    pytest.importorskip("torch", reason="torch is not installed")
    return pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed").T5Attention


@pytest.mark.peers
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (64, 128), (32, 256), (40, 1000), (12, 20)])
def test_transformers_buckets(n_buckets, max_distance, bidirectional):
    theirs = t5_attention()._relative_position_bucket
    import torch

    d = np.arange(-3000, 3001)
    want = theirs(torch.from_numpy(d), bidirectional, n_buckets, max_distance).numpy()
    got = t5_buckets(d, n_buckets=n_buckets, bidirectional=bidirectional, max_distance=max_distance)
    np.testing.assert_array_equal(got, want)


@pytest.mark.peers
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 1), (9, 9), (200, 200), (1, 150), (5, 40)])
@pytest.mark.parametrize("decoder", [True, False])
def test_transformers_bias(Tq, Tk, decoder):
    kind = t5_attention()
    import torch
    from transformers import T5Config

    config = T5Config(d_model=12, d_kv=4, num_heads=3, is_decoder=decoder)
    torch.manual_seed(0)
    layer = kind(config, has_relative_attention_bias=True, layer_idx=0)
    with torch.no_grad():
        want = layer.compute_bias(Tq, Tk, past_seen_tokens=Tk - Tq)[0].numpy()
    table = layer.relative_attention_bias.weight.detach().numpy()
    np.testing.assert_array_equal(t5_bias(table, Tq, Tk, bidirectional=not decoder), want)
