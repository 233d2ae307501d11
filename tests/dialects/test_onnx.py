"""Where ONNX's operators differ from `refattn.attention`, a test for each difference that the docstrings list."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from refattn.dialects.onnx import Attention, RotaryEmbedding

RNG = np.random.default_rng(0)


def arrays(B=2, H=4, Hk=2, Tq=3, Tk=5, D=4, Dv=6):
    return tuple(RNG.standard_normal((B, h, t, d)) for h, t, d in ((H, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv)))


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-13, rtol=1e-13)


def test_plain_attention_is_ours(anywhere):
    Q, K, V = arrays()
    close(Attention(Q, K, V, backend=anywhere)[0], refattn.attention(Q, K, V))


def test_causal_is_top_left_without_a_past():
    Q, K, V = arrays()
    close(Attention(Q, K, V, is_causal=1)[0], refattn.attention(Q, K, V, mask=masks.causal(0)))
    assert np.abs(Attention(Q, K, V, is_causal=1)[0] - refattn.attention(Q, K, V, mask=masks.causal())).max() > 0.1


def test_causal_stands_behind_the_past():
    Q, K, V = arrays(Tk=3)
    _, past_key, past_value = arrays(Tk=4)
    Y, present_key, present_value, _ = Attention(Q, K, V, None, past_key, past_value, is_causal=1)
    close(present_key, np.concatenate([past_key, K], axis=2))
    close(present_value, np.concatenate([past_value, V], axis=2))
    close(Y, refattn.attention(Q, present_key, present_value, mask=masks.causal()))


def test_causal_stands_at_each_sequence_s_length_with_an_outer_cache(anywhere):
    Q, K, V = arrays()
    lengths = np.array([4, 2])
    Y = Attention(Q, K, V, nonpad_kv_seqlen=lengths, is_causal=1, backend=anywhere)[0]
    for b, n in enumerate(lengths):
        close(Y[b], refattn.attention(Q[b], K[b, :, :n], V[b, :, :n], mask=masks.causal()))
    assert (Y[1, :, 0] == 0).all()  # two keys, three queries: the first sees nothing


def test_lengths_may_exceed_the_cache():
    Q, K, V = arrays()
    close(Attention(Q, K, V, nonpad_kv_seqlen=np.array([9, 5]))[0], Attention(Q, K, V)[0])


def test_what_lies_beyond_the_lengths_influences_nothing(anywhere):
    Q, K, V = arrays()
    spoiled = [x.copy() for x in (K, V)]
    for x in spoiled:
        x[:, :, 4:] = np.nan
    lengths = np.array([4, 3])
    got = Attention(Q, *spoiled, nonpad_kv_seqlen=lengths, backend=anywhere)[0]
    close(got, Attention(Q, K, V, nonpad_kv_seqlen=lengths)[0])


@given(st.integers(-1, 6), st.integers(-1, 6), st.integers(0, 4), st.booleans())
@settings(deadline=None, max_examples=30, derandomize=True)
def test_windows_stand_where_the_causal_limit_stands(left, right, past, is_causal):
    Q, K, V = arrays(Tk=4)
    _, past_key, past_value = arrays(Tk=past)
    Y = Attention(
        Q,
        K,
        V,
        None,
        past_key,
        past_value,
        is_causal=int(is_causal),
        left_window_size=left,
        right_window_size=right,
    )
    i, j = past + np.arange(3)[:, None], np.arange(past + 4)
    seen = (left < 0) | (j >= i - left)
    seen &= (right < 0) | (j <= i + right)
    seen &= (not is_causal) | (j <= i)
    close(Y[0], refattn.attention(Q, Y[1], Y[2], mask=seen))


def test_one_mask_takes_bools_or_numbers():
    Q, K, V = arrays()
    seen = RNG.random((3, 5)) < 0.5
    numbers = RNG.standard_normal((4, 3, 5))
    close(Attention(Q, K, V, seen)[0], refattn.attention(Q, K, V, mask=seen))
    close(Attention(Q, K, V, numbers)[0], refattn.attention(Q, K, V, bias=numbers))


def test_integers_are_numbers_to_add():
    Q, K, V = arrays()
    mask = np.array([1, 0, 1, 0, 0])
    close(Attention(Q, K, V, mask)[0], refattn.attention(Q, K, V, bias=np.broadcast_to(mask, (3, 5)).astype(float)))


@pytest.mark.parametrize("dtype", [bool, np.float64])
def test_a_short_mask_hides_the_rest(dtype):
    Q, K, V = arrays()
    mask = np.ones((3, 1), dtype)
    close(Attention(Q, K, V, mask)[0], np.broadcast_to(V[:, [0, 0, 1, 1], :1], (2, 4, 3, 6)))  # not broadcast


def test_minus_infinity_hides(anywhere):
    Q, K, V = arrays()
    mask = np.zeros((3, 5))
    mask[0], mask[1, 2:] = -np.inf, -np.inf
    V = V.copy()
    V[:, :, 4] = np.nan  # seen by the last query only
    Y, _, _, p = Attention(Q, K, V, mask, qk_matmul_output_mode=3, backend=anywhere)
    assert (Y[:, :, 0] == 0).all() and (p[:, :, 0] == 0).all()
    close(Y[:, :, 1], refattn.attention(Q, K[:, :, :2], V[:, :, :2])[:, :, 1])
    assert np.isnan(Y[:, :, 2]).all()


def test_the_lowest_finite_number_does_not_hide():
    Q, K, V = arrays()
    Y = Attention(Q, K, V, np.full((1, 5), np.finfo(np.float64).min))[0]
    close(Y, np.broadcast_to(np.repeat(V.mean(axis=2, keepdims=True), 2, axis=1), Y.shape))


def test_a_negative_scale_has_no_root():
    Q, K, V = arrays()
    close(Attention(Q, K, V, scale=0.3)[0], refattn.attention(Q, K, V, scale=0.3))
    Y = Attention(Q, K, V, np.array([[False] * 5, [True] * 5, [True] * 5]), scale=-0.3)[0]
    assert np.isnan(Y[:, :, 1:]).all() and (Y[:, :, 0] == 0).all()


def test_softcap_zero_is_none_and_its_sign_does_not_matter():
    Q, K, V = arrays()
    close(Attention(Q, K, V, softcap=0.0)[0], refattn.attention(Q, K, V))
    close(Attention(Q, K, V, softcap=0.5)[0], refattn.attention(Q, K, V, softcap=0.5))
    close(Attention(Q, K, V, softcap=-0.5)[0], refattn.attention(Q, K, V, softcap=0.5))


def test_the_fourth_result():
    Q, K, V = arrays(Hk=4)
    mask = RNG.standard_normal((3, 4))
    s = Q @ K.swapaxes(-1, -2) / 2
    capped = 3 * np.tanh(s / 3)
    with_mask = capped + np.pad(mask, ((0, 0), (0, 1)), constant_values=-np.inf)
    weights = np.exp(with_mask) / np.exp(with_mask).sum(axis=-1, keepdims=True)
    for mode, want in enumerate((s, capped, with_mask, weights)):
        close(Attention(Q, K, V, mask, softcap=3.0, qk_matmul_output_mode=mode)[3], want)


def test_heads_folded_into_the_last_axis(anywhere):
    Q, K, V = arrays()
    folded = [x.swapaxes(1, 2).reshape(2, x.shape[2], -1) for x in (Q, K, V)]
    got = Attention(*folded, q_num_heads=4, kv_num_heads=2, is_causal=1, backend=anywhere)
    want = Attention(Q, K, V, is_causal=1)
    close(got[0], want[0].swapaxes(1, 2).reshape(2, 3, -1))
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bits_are_rounded_once(dtype):
    Q, K, V = (x.astype(dtype) for x in arrays())
    Y, present_key, _, s = Attention(Q, K, V)
    assert Y.dtype == present_key.dtype == s.dtype == dtype
    want = refattn.attention(*(x.astype(np.float32) for x in (Q, K, V)))
    np.testing.assert_allclose(Y.astype(np.float32), want, atol=2 * float(ml_dtypes.finfo(dtype).eps))


def test_softmax_precision_double_computes_in_float64():
    Q, K, V = (x.astype(np.float32) for x in arrays())
    want = refattn.attention(*(x.astype(np.float64) for x in (Q, K, V))).astype(np.float32)
    np.testing.assert_array_equal(Attention(Q, K, V, softmax_precision=11)[0], want, strict=True)


def test_values_may_have_another_dtype():
    Q, K, V = arrays()
    Y, _, present_value, _ = Attention(Q.astype(np.float32), K.astype(np.float32), V)
    assert Y.dtype == np.float32 and present_value.dtype == np.float64
    np.testing.assert_allclose(Y, refattn.attention(Q, K, V), atol=1e-5)


def test_results_are_no_views_of_the_inputs():
    Q, K, V = arrays()
    present_key, present_value = Attention(Q, K, V)[1:3]
    assert not np.shares_memory(present_key, K) and not np.shares_memory(present_value, V)


N = np.zeros((1, 2, 3, 4))
F = np.zeros((1, 3, 8))
REFUSED = {
    "opset 23 has no input nonpad_kv_seqlen": ((N, N, N), {"nonpad_kv_seqlen": np.array([3]), "opset": 23}),
    "opset 24 has no attribute left_window_size": ((N, N, N), {"left_window_size": 1, "opset": 24}),
    "opset 24 has no attribute right_window_size": ((N, N, N), {"right_window_size": 1, "opset": 24}),
    "left_window_size is -2": ((N, N, N), {"left_window_size": -2}),
    "opset is 22": ((N, N, N), {"opset": 22}),
    "past_key and past_value must be given together": ((N, N, N, None, N), {}),
    "nonpad_kv_seqlen cannot be combined with past_key": ((N, N, N, None, N, N, np.array([3])), {}),
    "must not be given with 4-D inputs": ((N, N, N), {"q_num_heads": 2}),
    "3-D inputs need q_num_heads and kv_num_heads": ((F, F, F), {"q_num_heads": 2}),
    "which 3 heads do not divide": ((F, F, F), {"q_num_heads": 3, "kv_num_heads": 2}),
    "Q, K, V have 4, 3 and 3 axes": ((N, F, F), {}),
    "Q, K, V have 5, 5 and 5 axes": ((N[None], N[None], N[None]), {}),
    "past_key has 3 axes": ((N, N, N, None, N[0], N[0]), {}),
    "past_value has shape": ((N, N, N, None, N, N[:, :, :2]), {}),
    "nonpad_kv_seqlen must be an array of integers": ((N, N, N), {"nonpad_kv_seqlen": np.array([3.0])}),
    "nonpad_kv_seqlen has shape": ((N, N, N), {"nonpad_kv_seqlen": np.array([[3]])}),
    "attn_mask is 4 keys long": ((N, N, N, np.zeros(4)), {}),
    "attn_mask has 0 axes": ((N, N, N, np.zeros(())), {}),
    "attn_mask is complex128": ((N, N, N, np.zeros(3, complex)), {}),
    "mask has shape": ((N, N, N, np.zeros((3, 3, 3), bool)), {}),
    "bias has shape": ((N, N, N, np.zeros((3, 3, 3))), {}),
    "is_causal is 2": ((N, N, N), {"is_causal": 2}),
    "qk_matmul_output_mode is 4": ((N, N, N), {"qk_matmul_output_mode": 4}),
    "softmax_precision is 7": ((N, N, N), {"softmax_precision": 7}),
    "2 query heads cannot share 3 key heads": ((N, *[np.zeros((1, 3, 3, 4))] * 2), {}),
    "the dtypes differ": ((N, N.astype(np.float32), N), {}),
    "K has dtype int64": ((N, N.astype(int), N), {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_attention_refuses(reason):
    arguments, options = REFUSED[reason]
    with pytest.raises((TypeError, ValueError), match=rf"^Attention: .*{reason}"):
        Attention(*arguments, **options)


def test_older_opsets_take_head_counts_with_4_d_inputs():
    Q, K, V = arrays()
    close(Attention(Q, K, V, q_num_heads=4, kv_num_heads=2, opset=24)[0], Attention(Q, K, V)[0])


def caches(rows, n):
    angle = np.arange(rows)[:, None] * 100.0 ** (-np.arange(n) / n)
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("dim", [0, 4])
def test_rotary_embedding_is_our_rope_with_the_angles_as_caches(interleaved, dim):
    X, positions = RNG.standard_normal((2, 3, 5, 8)), RNG.integers(0, 20, (2, 5))
    cos, sin = caches(20, (dim or 8) // 2)
    got = RotaryEmbedding(X, cos, sin, positions, interleaved=interleaved, rotary_embedding_dim=dim)
    close(got, refattn.rope(X, positions, theta=100.0, rotary_dim=dim or 8, interleaved=bool(interleaved)))
    without = RotaryEmbedding(
        X, cos[positions], sin[positions], interleaved=interleaved, rotary_embedding_dim=dim
    )  # the rows chosen beforehand
    close(without, got)
    folded = X.swapaxes(1, 2).reshape(2, 5, 24)
    options = {"interleaved": interleaved, "rotary_embedding_dim": dim, "num_heads": 3}
    close(RotaryEmbedding(folded, cos, sin, positions, **options), got.swapaxes(1, 2).reshape(2, 5, 24))


def test_rotary_embedding_rounds_16_bits_once():
    X, positions = RNG.standard_normal((1, 1, 3, 8)).astype(np.float16), np.array([[0, 5, 9]])
    cos, sin = (x.astype(np.float16) for x in caches(10, 4))
    got = RotaryEmbedding(X, cos, sin, positions)
    assert got.dtype == np.float16
    want = RotaryEmbedding(*(x.astype(np.float32) for x in (X, cos, sin)), positions)
    np.testing.assert_array_equal(got, want.astype(np.float16))


C = np.zeros((9, 2))
IDS = np.zeros((1, 3), int)
ROTARY_REFUSED = {
    "a 3-D X needs num_heads": ((F, C, C, IDS), {}),
    "interleaved is 2": ((N, C, C, IDS), {"interleaved": 2}),
    "X has 5 axes": ((N[None], C, C, IDS), {}),
    "wanted an even number up to D = 4": ((N, C, C, IDS), {"rotary_embedding_dim": 6}),
    "the last axis of cos_cache is 2": ((N, C, C, IDS), {"rotary_embedding_dim": 2}),
    "sin_cache has shape": ((N, C, C[:3], IDS), {}),
    "for there are no position_ids": ((N, C, C), {}),
    "position_ids must be an array of integers": ((N, C, C, IDS * 1.0), {}),
    "position_ids has shape": ((N, C, C, IDS[0]), {}),
    "position_ids leave the caches": ((N, C, C, IDS + 9), {}),
}


@pytest.mark.parametrize("reason", ROTARY_REFUSED)
def test_what_rotary_embedding_refuses(reason):
    arguments, options = ROTARY_REFUSED[reason]
    with pytest.raises((TypeError, ValueError, IndexError), match=rf"^RotaryEmbedding: .*{reason}"):
        RotaryEmbedding(*arguments, **options)
