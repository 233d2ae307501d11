"""Where JAX's attention differs from `refattn.attention`, a test for each difference that the docstring lists."""

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects.jax import dot_product_attention

RNG = np.random.default_rng(0)
HIDDEN = -0.7 * float(np.finfo(np.float32).max)


def arrays(B=2, N=4, K=2, T=3, S=5, H=4, dtype=np.float64):
    return tuple(RNG.standard_normal((B, t, n, H)).astype(dtype) for t, n in ((T, N), (S, K), (S, K)))


def ours(q, k, v, **options):
    """`refattn.attention` of (B, T, N, H), as (B, T, N, H)."""
    return refattn.attention(*(x.swapaxes(1, 2) for x in (q, k, v)), **options).swapaxes(1, 2)


def close(got, want, atol=1e-13):
    np.testing.assert_allclose(got, want, atol=atol, rtol=1e-12)


def test_tokens_stand_before_heads(anywhere):
    q, k, v = arrays()
    bias, mask = RNG.standard_normal((2, 1, 3, 5)), RNG.random((1, 4, 3, 5)) < 0.7
    mask[..., 0] = True
    got = dot_product_attention(q, k, v, bias, mask, scale=0.3, backend=anywhere)
    close(got, ours(q, k, v, bias=bias, mask=mask, scale=0.3))


def test_three_axes_are_one_sequence_and_two_are_one_token():
    q, k, v = arrays()
    close(dot_product_attention(q[0], k[0], v[0]), dot_product_attention(q, k, v)[0])
    close(dot_product_attention(q[0, 0], k[0, 0], v[0, 0]), np.repeat(v[0, 0], 2, axis=0))  # sees itself alone


def test_causal_and_window_are_top_left():
    q, k, v = arrays()
    close(dot_product_attention(q, k, v, is_causal=True), ours(q, k, v, mask=masks.causal(0)))
    i, j = np.arange(3)[:, None], np.arange(5)
    window = (i - 1 <= j) & (j <= i + 2)
    close(dot_product_attention(q, k, v, local_window_size=(1, 2)), ours(q, k, v, mask=window))
    close(dot_product_attention(q, k, v, local_window_size=1), ours(q, k, v, mask=abs(i - j) <= 1))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_query_that_sees_nothing_gets_the_mean(anywhere, dtype):
    q, k, v = arrays(dtype=dtype)
    mask = np.array([True, False, True])[:, None]
    o, lse = dot_product_attention(q, k, v, mask=mask, return_residual=True, backend=anywhere)
    close(o[:, 1], np.repeat(v.astype(np.float64).mean(axis=1), 2, axis=1), atol=2 * np.finfo(dtype).eps)
    assert lse.dtype == dtype
    if dtype == np.float16:
        assert np.isneginf(lse[:, 1]).all()
    else:
        np.testing.assert_allclose(lse[:, 1], HIDDEN, rtol=1e-6)


def test_hidden_values_win_over_a_bias_below_their_score():
    q, k, v = arrays()
    mask = np.array([True, True, True, False, False])
    o = dot_product_attention(q, k, v, np.full((1, 5), -3e38), mask)
    close(o, np.broadcast_to(np.repeat(v[:, None, 3:].mean(axis=2), 2, axis=2), o.shape))


def test_nothing_but_minus_infinity_is_nan():
    q, k, v = arrays()
    o, lse = dot_product_attention(q, k, v, np.full((1, 1), -np.inf), return_residual=True)
    assert np.isnan(o).all() and np.isneginf(lse).all()


def test_queries_beyond_their_length_get_zero_and_the_lse_of_a_blind_one(anywhere):
    q, k, v = arrays()
    lengths = np.array([1, 3], np.int32)
    o, lse = dot_product_attention(q, k, v, query_seq_lengths=lengths, return_residual=True, backend=anywhere)
    assert (o[0, 1:] == 0).all() and (o[1] != 0).all()
    np.testing.assert_allclose(lse[0, 1:], HIDDEN)
    close(o[1], ours(q, k, v)[1])


def test_lengths_are_clipped():
    q, k, v = arrays()
    o = dot_product_attention(q, k, v, key_value_seq_lengths=np.array([9, -2]))
    close(o[0], ours(q, k, v)[0])
    close(o[1], np.broadcast_to(np.repeat(v[1].mean(axis=0), 2, axis=0), o[1].shape))


def test_nan_in_a_hidden_value_spreads_and_in_a_hidden_key_does_not(anywhere):
    q, k, v = arrays()
    lengths = {"key_value_seq_lengths": np.array([4, 4]), "backend": anywhere}
    spoiled_k, spoiled_v = k.copy(), v.copy()
    spoiled_k[:, 4], spoiled_v[:, 4, :, 0] = np.nan, np.inf
    want = dot_product_attention(q, k, v, **lengths)
    close(dot_product_attention(q, spoiled_k, v, **lengths), want)
    got = dot_product_attention(q, k, spoiled_v, **lengths)
    assert np.isnan(got[..., 0]).all()
    close(got[..., 1:], want[..., 1:])


def test_lse_has_the_dtype_of_key():
    q, k, v = arrays(dtype=np.float16)
    o, lse = dot_product_attention(q, k, v, return_residual=True)
    assert o.dtype == lse.dtype == np.float16 and lse.shape == (2, 3, 4)


def test_no_keys_and_no_queries():
    q, k, v = arrays()
    assert (dot_product_attention(q, k[:, :0], v[:, :0]) == 0).all()
    assert dot_product_attention(q[:, :0], k, v, is_causal=True).shape == (2, 0, 4, 4)


Q, K = np.zeros((1, 2, 4, 3)), np.zeros((1, 5, 2, 3))
REFUSED = {
    "value has shape": ((Q, K, K[..., :2]), {}),
    "query has shape": ((Q[..., :2], K, K), {}),
    "query has 5 axes": ((Q[None], K, K), {}),
    "the number of query heads must be a multiple": ((Q[:, :, :3], K, K), {}),
    "the dtypes differ": ((Q, K, K.astype(np.float32)), {}),
    "query has dtype int64": ((Q.astype(int), K, K), {}),
    "mask has dtype float64; wanted bool": ((Q, K, K), {"mask": np.zeros((2, 5))}),
    "mask has 5 axes": ((Q, K, K), {"mask": np.zeros((1, 1, 1, 2, 5), bool)}),
    "mask: array has shape": ((Q, K, K), {"mask": np.zeros((2, 6), bool)}),
    "bias has shape": ((Q, K, K), {"bias": np.zeros((1, 2, 2, 5))}),
    "query_seq_lengths has dtype float64": ((Q, K, K), {"query_seq_lengths": np.zeros(1)}),
    "key_value_seq_lengths has shape": ((Q, K, K), {"key_value_seq_lengths": np.zeros(2, int)}),
    "cuDNN is not detected": ((Q, K, K), {"implementation": "cudnn"}),
    "unsupported implementation option: 'pallas'": ((Q, K, K), {"implementation": "pallas"}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason):
    arguments, options = REFUSED[reason]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"^dot_product_attention: .*{reason}"):
        dot_product_attention(*arguments, **options)
