"""What the short convolution means: a filter per channel that sees the past, and a state that is the last inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from tests.ssm.draws import draw


@settings(deadline=None, derandomize=True, max_examples=20)
@given(T=st.integers(0, 12), K=st.integers(1, 6))
def test_it_is_a_convolution_with_the_taps_turned_round(T, K):
    rng = np.random.default_rng(T + 20 * K)
    x, weight, bias = rng.normal(size=(T, 2)), rng.normal(size=(2, K)), rng.normal(size=2)
    o, state = refattn.causal_conv1d(x, weight, bias)
    for e in range(2 if T else 0):
        np.testing.assert_allclose(o[:, e], np.convolve(x[:, e], weight[e, ::-1])[:T] + bias[e], atol=1e-14)
    assert o.shape == (T, 2) and state.shape == (K - 1, 2)
    np.testing.assert_array_equal(state, np.concatenate([np.zeros((K - 1, 2)), x])[T:])


def test_the_state_are_inputs_in_their_dtype_and_no_view():
    x = np.ones((2, 3), np.float16)
    state = refattn.causal_conv1d(x, np.ones((3, 3), np.float16)).state
    assert state.dtype == np.float16 and state.tolist() == x.tolist() and not np.shares_memory(state, x)


def test_few_tokens_push_old_inputs_out_one_by_one():
    old = np.array([[1.0], [2.0], [3.0]])
    o, state = refattn.causal_conv1d(np.array([[4.0]]), np.array([[1000.0, 100.0, 10.0, 1.0]]), initial_state=old)
    assert o.tolist() == [[1234.0]] and state.tolist() == [[2.0], [3.0], [4.0]]


def test_one_tap_has_an_empty_state():
    o, state = refattn.causal_conv1d(np.ones((2, 4, 3)), 5 * np.ones((3, 1)))
    assert (o == 5).all() and state.shape == (2, 0, 3)
    assert (refattn.causal_conv1d(np.ones((2, 4, 3)), 5 * np.ones((3, 1)), initial_state=state).o == 5).all()


def test_silu_stands_after_the_bias():
    x, _ = draw("causal_conv1d", np.random.default_rng(0))
    y = refattn.causal_conv1d(**x).o
    np.testing.assert_allclose(refattn.causal_conv1d(**x, activation="silu").o, y / (1 + np.exp(-y)), rtol=1e-13)


def test_a_nan_is_seen_as_long_as_the_filter():
    x, weight = np.ones((9, 1)), np.ones((1, 3))
    x[4] = np.nan
    assert np.flatnonzero(np.isnan(refattn.causal_conv1d(x, weight).o)).tolist() == [4, 5, 6]


@pytest.mark.peers
def test_it_is_the_grouped_convolution_of_torch():
    import torch

    x, _ = draw("causal_conv1d", np.random.default_rng(0), 11)
    inputs = {name: torch.tensor(y, requires_grad=True) for name, y in x.items()}
    whole = torch.cat([inputs["initial_state"], inputs["x"]], dim=1).transpose(1, 2)
    y = torch.nn.functional.conv1d(whole, inputs["weight"][:, None], inputs["bias"], groups=3).transpose(1, 2)
    o = torch.nn.functional.silu(y)
    do = np.random.default_rng(1).normal(size=x["x"].shape)
    o.backward(torch.tensor(do))
    np.testing.assert_allclose(refattn.causal_conv1d(**x, activation="silu").o, o.detach().numpy(), atol=1e-13)
    got = refattn.causal_conv1d_vjp(do, **x, activation="silu")
    for name, tensor in inputs.items():
        np.testing.assert_allclose(getattr(got, f"d{name}"), tensor.grad.numpy(), atol=1e-12, err_msg=name)
