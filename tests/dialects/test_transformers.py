"""Where Transformers' eager attention differs from `refattn.attention`, a test for each difference that is listed."""

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects.transformers import (
    Module,
    causal_mask_function,
    eager_attention_forward,
    eager_mask,
    gemma2_eager_attention_forward,
    gpt_oss_eager_attention_forward,
    repeat_kv,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

RNG = np.random.default_rng(0)
GROUPS = Module(num_key_value_groups=2)
LOWEST = float(np.finfo(np.float32).min)


def arrays(dtype=np.float64, H=4, Hk=2, Tq=3, Tk=5):
    shapes = ((2, H, Tq, 4), (2, Hk, Tk, 4), (2, Hk, Tk, 6))
    return tuple(RNG.standard_normal(shape).astype(dtype) for shape in shapes)


def close(got, want, atol=1e-13):
    np.testing.assert_allclose(got, want, atol=atol, rtol=1e-12)


def test_output_has_tokens_first_and_the_weights_come_along(anywhere):
    q, k, v = arrays()
    o, p = eager_attention_forward(GROUPS, q, k, v, None, 0.3, backend=anywhere)
    close(o, refattn.attention(q, k, v, scale=0.3).swapaxes(1, 2))
    close((p @ repeat_kv(v, 2)).swapaxes(1, 2), o)
    close(p.sum(axis=-1), np.ones((2, 4, 3)))


def test_without_a_mask_nothing_is_causal():
    q, k, v = arrays(Tk=3)
    o, _ = eager_attention_forward(GROUPS, q, k, v, None, 0.5)
    close(o.swapaxes(1, 2), refattn.attention(q, k, v))
    o, _ = eager_attention_forward(GROUPS, q, k, v, eager_mask(2, 3, 3), 0.5)
    close(o.swapaxes(1, 2), refattn.attention(q, k, v, mask=masks.causal()))


def test_true_adds_one_and_hides_nothing():
    q, k, v = arrays()
    mask = np.array([True, False, True, True, False])
    o, _ = eager_attention_forward(GROUPS, q, k, v, mask[None, None, None], 0.5)
    close(o.swapaxes(1, 2), refattn.attention(q, k, v, bias=np.broadcast_to(mask, (3, 5)).astype(np.float64)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_query_that_sees_nothing_gets_the_mean(anywhere, dtype):
    q, k, v = arrays(dtype)
    mask = eager_mask(2, 3, 5, attention_mask=np.zeros((2, 5), bool), dtype=dtype)
    o, p = eager_attention_forward(GROUPS, q, k, v, mask, 0.5, backend=anywhere)
    tolerance = float(ml_dtypes.finfo(dtype).eps)
    want = np.broadcast_to(np.repeat(v.astype(np.float64).mean(axis=2), 2, axis=1)[:, None], o.shape)
    np.testing.assert_allclose(o.astype(np.float64), want, atol=2 * tolerance)
    np.testing.assert_allclose(p.astype(np.float64), 0.2, atol=tolerance)


@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float64).min])
def test_what_is_minus_infinity_in_float32_gives_nan_where_nothing_else_is(anywhere, lowest):
    q, k, v = arrays()
    mask = np.zeros((1, 1, 3, 5))
    mask[..., 1, :], mask[..., 2, 3:] = lowest, lowest
    o, p = eager_attention_forward(GROUPS, q, k, v, mask, 0.5, backend=anywhere)
    assert np.isnan(o[:, 1]).all() and np.isnan(p[:, :, 1]).all()
    close(o.swapaxes(1, 2)[:, :, 2], refattn.attention(q, k[:, :, :3], v[:, :, :3])[:, :, 2])


@pytest.mark.parametrize("place", ["key", "value"])
def test_nan_in_a_hidden_token_reaches_everybody(anywhere, place):
    given = dict(zip(("query", "key", "value"), arrays(np.float32), strict=True))
    given[place][:, :, 4] = np.nan
    mask = np.array([0, 0, 0, 0, LOWEST], np.float32)[None, None, None]
    o, _ = eager_attention_forward(GROUPS, **given, attention_mask=mask, scaling=0.5, backend=anywhere)
    assert np.isnan(o).all()


def test_weights_have_the_dtype_of_the_query():
    o, p = eager_attention_forward(GROUPS, *arrays(np.float16), None, 0.5)
    assert o.dtype == p.dtype == np.float16


def test_dropout_needs_training_and_a_mask_of_what_to_keep(anywhere):
    q, k, v = arrays()
    plain, _ = eager_attention_forward(GROUPS, q, k, v, None, 0.5)
    close(eager_attention_forward(GROUPS, q, k, v, None, 0.5, dropout=0.4)[0], plain)
    training, keep = Module(num_key_value_groups=2, training=True), RNG.random((2, 4, 3, 5)) < 0.6
    o, p = eager_attention_forward(training, q, k, v, None, 0.5, 0.4, dropout_mask=keep, backend=anywhere)
    close(o.swapaxes(1, 2), refattn.attention(q, k, v, dropout_mask=keep, dropout_p=0.4))
    assert (p[~keep] == 0).all()
    with pytest.raises(ValueError, match=r"^eager_attention_forward: dropout is 0\.4 in training, without"):
        eager_attention_forward(training, q, k, v, None, 0.5, dropout=0.4)


def test_gemma2_caps_the_scores_and_scales_by_the_module(anywhere):
    q, k, v = arrays()
    module = Module(num_key_value_groups=2, head_dim=16)
    mask = RNG.standard_normal((2, 1, 3, 5))
    o, p = gemma2_eager_attention_forward(module, q, k, v, mask, softcap=0.5, backend=anywhere)
    close(o.swapaxes(1, 2), refattn.attention(q, k, v, bias=mask, softcap=0.5, scale=0.25))
    close((p @ repeat_kv(v, 2)).swapaxes(1, 2), o)
    close(
        gemma2_eager_attention_forward(module, q, k, v, mask, 0.0, 0.7)[0],
        eager_attention_forward(GROUPS, q, k, v, mask, 0.7)[0],
    )


def test_gpt_oss_has_sinks(anywhere):
    q, k, v = arrays(np.float32)
    module = Module(num_key_value_groups=2, sinks=RNG.standard_normal(4).astype(np.float32))
    mask = np.zeros((1, 1, 3, 5), np.float32)
    mask[..., 1, :], mask[..., 2, :] = LOWEST, -np.inf
    o, p = gpt_oss_eager_attention_forward(module, q, k, v, mask, 0.5, backend=anywhere)
    np.testing.assert_allclose(o[:, 0], refattn.attention(q, k, v, sinks=module.sinks)[:, :, 0], atol=1e-6)
    assert (o[:, 1:] == 0).all() and (p[:, :, 1:] == 0).all()  # the sink takes it all
    assert (p[:, :, 0].sum(axis=-1) < 1).all()


def test_masks_start_at_position_0():
    seen = eager_mask(1, 3, 5)[0, 0] == 0
    np.testing.assert_array_equal(seen, masks.causal(0).dense(3, 5))
    with_cache = eager_mask(1, 3, 5, q_offset=2, mask_function=causal_mask_function)[0, 0] == 0
    np.testing.assert_array_equal(with_cache, masks.causal().dense(3, 5))


def test_keys_may_start_in_the_middle():
    seen = eager_mask(1, 2, 4, q_offset=4, kv_offset=3)[0, 0] == 0
    np.testing.assert_array_equal(seen, masks.causal(1).dense(2, 4))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_sliding_window_counts_the_query_itself_unless_it_has_two_sides(size):
    seen = eager_mask(1, 9, 9, mask_function=sliding_window_causal_mask_function(size))[0, 0] == 0
    np.testing.assert_array_equal(seen, (masks.causal() & masks.window(size - 1, 0)).dense(9, 9))
    assert seen[-1].sum() == size
    seen = eager_mask(1, 9, 9, mask_function=sliding_window_bidirectional_mask_function(size))[0, 0] == 0
    np.testing.assert_array_equal(seen, masks.window(size, size).dense(9, 9))


def test_padding_goes_by_position_and_a_short_one_is_padding():
    tokens = np.array([[False, True, True], [True, True, True]])
    seen = eager_mask(2, 1, 3, q_offset=3, kv_offset=1, attention_mask=tokens)[:, 0, 0] == 0
    np.testing.assert_array_equal(seen, [[True, True, False], [True, True, False]])
    seen = eager_mask(2, 1, 3, q_offset=3, attention_mask=tokens)[:, 0, 0] == 0
    np.testing.assert_array_equal(seen, tokens)


def test_hidden_is_the_lowest_number_of_the_dtype():
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        mask = eager_mask(1, 1, 2, dtype=dtype)
        assert mask.dtype == dtype and mask[0, 0, 0, 1] == ml_dtypes.finfo(dtype).min


def refused():
    q, k, v = arrays()
    yield "2 key heads times num_key_value_groups = 1", (Module(), q, k, v, None)
    yield "query has 5 axes", (GROUPS, q[None], k[None], v[None], None)
    yield "key has shape", (GROUPS, q, k[0], v[0], None)
    yield "the last axis of q and k", (GROUPS, q, k[..., :3], v, None)
    yield "k has 5 keys and v has 4 values", (GROUPS, q, k, v[:, :, :4], None)
    yield "bias has shape", (GROUPS, q, k, v, np.zeros((1, 1, 3, 6)))
    yield "the dtypes differ", (GROUPS, q, k.astype(np.float32), v, None)


@pytest.mark.parametrize(("reason", "arguments"), list(refused()), ids=[reason for reason, _ in refused()])
def test_what_is_refused(reason, arguments):
    with pytest.raises((TypeError, ValueError), match=rf"^eager_attention_forward: .*{reason}"):
        eager_attention_forward(*arguments, 0.5)


def test_repeat_kv_refuses_fewer_axes():
    with pytest.raises(ValueError, match=r"^repeat_kv: hidden_states has 3 axes"):
        repeat_kv(np.zeros((2, 3, 4)), 2)
