"""ONNX's LinearAttention and CausalConvWithState: what differs from refattn, and what is refused."""

import numpy as np
import pytest

import refattn
from refattn.dialects.onnx import CausalConvWithState, LinearAttention

B, T, H, HK, D, DV = 2, 5, 4, 2, 3, 6
rng = np.random.default_rng(0)
QUERY, KEY, VALUE = (rng.normal(size=(B, T, n)) for n in (H * D, HK * D, HK * DV))
PER_KEY, PER_HEAD = -rng.exponential(size=(B, T, HK * D)), -rng.exponential(size=(B, T, HK))
BETA, PAST = rng.random((B, T, HK)), rng.normal(size=(B, HK, D, DV))
HEADS = {"q_num_heads": H, "kv_num_heads": HK}


def apart(x, n):
    """(B, T, n·D) as (B, n, T, D)."""
    return x.reshape(B, T, n, -1).swapaxes(1, 2)


def together(o):
    return o.swapaxes(1, 2).reshape(B, T, -1)


Q, K, V = apart(QUERY, H), apart(KEY, HK), apart(VALUE, HK)
BY_RULE = {
    ("linear", False): lambda **o: refattn.simple_gla(Q, K, V, np.zeros((B, HK, T)), **o),
    ("gated", False): lambda **o: refattn.simple_gla(Q, K, V, PER_HEAD.swapaxes(1, 2), **o),
    ("gated", True): lambda **o: refattn.gated_linear_attention(Q, K, V, apart(PER_KEY, HK), **o),
    ("delta", False): lambda **o: refattn.delta_rule(Q, K, V, BETA.swapaxes(1, 2), **o),
    ("gated_delta", False): lambda **o: refattn.gated_delta_rule(
        Q, K, V, PER_HEAD.swapaxes(1, 2), BETA.swapaxes(1, 2), **o
    ),
    ("gated_delta", True): lambda **o: refattn.kda(Q, K, V, apart(PER_KEY, HK), BETA.swapaxes(1, 2), **o),
}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(("rule", "per_key"), BY_RULE)
def test_each_rule_is_an_operation_of_refattn(rule, per_key, backend):
    decay = {True: PER_KEY, False: PER_HEAD}[per_key] if "gated" in rule else None
    beta = BETA if "delta" in rule else None
    output, state = LinearAttention(QUERY, KEY, VALUE, PAST, decay, beta, update_rule=rule, **HEADS, backend=backend)
    want = BY_RULE[rule, per_key](initial_state=PAST)
    np.testing.assert_allclose(output, together(want.o), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, want.state, rtol=1e-10, atol=1e-12)


def test_one_beta_for_all_heads_and_a_scale():
    every = LinearAttention(QUERY, KEY, VALUE, None, None, BETA[..., :1], update_rule="delta", scale=0.25, **HEADS)
    each = LinearAttention(
        QUERY, KEY, VALUE, None, None, np.repeat(BETA[..., :1], HK, axis=2), update_rule="delta", **HEADS
    )
    np.testing.assert_allclose(every[0], each[0] * 0.25 * np.sqrt(D), rtol=1e-12)
    np.testing.assert_array_equal(every[1], each[1])


def test_the_state_has_the_dtype_of_the_past_one():
    low = [x.astype(np.float16) for x in (QUERY, KEY, VALUE)]
    assert LinearAttention(*low, update_rule="linear", **HEADS)[1].dtype == np.float16
    output, state = LinearAttention(*low, PAST.astype(np.float32), update_rule="linear", **HEADS)
    assert (output.dtype, state.dtype) == (np.float16, np.float32)


def test_the_convolution_reads_channels_first_and_carries_on():
    x, w, b = rng.normal(size=(2, 3, 7)), rng.normal(size=(3, 1, 4)), rng.normal(size=3)
    whole, last = CausalConvWithState(x, w, b, activation="swish")
    want = refattn.causal_conv1d(x.swapaxes(1, 2), w[:, 0], b, activation="silu")
    np.testing.assert_allclose(whole, want.o.swapaxes(1, 2), rtol=1e-14)
    first, state = CausalConvWithState(x[..., :2], w, b, activation="silu")
    rest, again = CausalConvWithState(x[..., 2:], w, b, state, activation="silu")
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=2), whole)
    np.testing.assert_array_equal(again, last)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"update_rule": "retention"}, ValueError, "update_rule is 'retention'; wanted one of linear, gated"),
        ({"q_num_heads": 3}, ValueError, "q_num_heads is 3; wanted a multiple of kv_num_heads, 2"),
        ({"kv_num_heads": 0}, ValueError, "kv_num_heads is 0"),
        ({"decay": None}, ValueError, "'gated_delta' requires the input decay"),
        ({"beta": None}, ValueError, "'gated_delta' requires the input beta"),
        ({"update_rule": "linear"}, ValueError, "'linear' forbids the input decay"),
        ({"query": QUERY[0]}, ValueError, r"query has shape \(5, 12\); wanted \(B, T, a multiple of 4 heads\)"),
        ({"key": KEY[:, :4]}, ValueError, r"key has shape \(2, 4, 6\); wanted \(2, 5, 6\)"),
        ({"value": VALUE.astype(np.float32)}, TypeError, "dtypes differ"),
        ({"decay": PER_KEY[..., :5]}, ValueError, r"decay has shape \(2, 5, 5\); wanted \(B, T, 2 or 6\)"),
        ({"decay": -PER_HEAD}, ValueError, "log_decay holds .*; wanted logs of decays, at most 0"),
        ({"beta": BETA[:, :1]}, ValueError, "beta has shape"),
        ({"past_state": PAST[:1]}, ValueError, r"past_state has shape \(1, 2, 3, 6\); wanted \(2, 2, 3, 6\)"),
        ({"scale": "1"}, TypeError, "scale must be a number, got str"),
        ({"chunk_size": 0}, ValueError, "chunk is 0"),
    ],
)
def test_linear_attention_refuses(change, error, says):
    good = {"query": QUERY, "key": KEY, "value": VALUE, "decay": PER_HEAD, "beta": BETA, **HEADS}
    with pytest.raises(error, match=says):
        LinearAttention(**good | change)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"activation": "relu"}, ValueError, "activation is 'relu'; wanted one of none, silu, swish"),
        ({"input": np.zeros((3, 7))}, ValueError, r"wanted input \(B, C, T\)"),
        ({"weight": np.zeros((3, 4))}, ValueError, r"weight \(C, 1, k\), got .*\(3, 4\)"),
        ({"weight": np.zeros((3, 1, 0))}, ValueError, r"weight \(C, 1, k\)"),
        ({"weight": np.zeros((4, 1, 2))}, ValueError, r"weight has shape \(4, 1, 2\); wanted \(3, 1, 2\)"),
        ({"bias": np.zeros(4)}, ValueError, r"bias has shape \(4,\); wanted \(3,\)"),
        ({"past_state": np.zeros((2, 3, 4))}, ValueError, r"past_state has shape \(2, 3, 4\); wanted \(2, 3, 3\)"),
        ({"input": np.zeros((2, 3, 7), int)}, TypeError, "input has dtype int64"),
    ],
)
def test_the_convolution_refuses(change, error, says):
    with pytest.raises(error, match=says):
        CausalConvWithState(**{"input": np.zeros((2, 3, 7)), "weight": np.zeros((3, 1, 4))} | change)
