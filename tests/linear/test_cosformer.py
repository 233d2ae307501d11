"""CosFormer: relu weights that fall with the cosine of the distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from tests.linear.feature_draws import HEADS, assert_same, assert_vjp, draw, form, part

quickly = settings(max_examples=30, deadline=None, derandomize=True)
SUFFIXES = ("", "_recurrent")
heads_of_some = st.sampled_from([*HEADS.values(), (1, 1, 3)])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [6, 7, 100])
def test_weights_are_cosines_of_distances(length, causal):
    x, _ = draw("cosformer", 1, T=6, state=False)
    q, k, o = np.maximum(x["q"], 0), np.maximum(x["k"], 0), []
    for i in range(6):
        seen = range(i + 1 if causal else 6)
        w = np.array([q[i] @ k[j] * np.cos(np.pi * (i - j) / (2 * length)) for j in seen])
        assert (w >= 0).all()
        o.append(w @ x["v"][: len(w)] / w.sum() if w.sum() > 0 else 0 * x["v"][0])
    for suffix in SUFFIXES if causal else ("",):
        options = {} if causal else {"causal": False}
        assert_same(form("cosformer", suffix)(**x, length=length, **options).o, np.array(o))


@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), start=st.integers(0, 31))
def test_both_forms(data, seed, T, start):
    heads = data.draw(heads_of_some)
    batch = data.draw(st.sampled_from([(), (2,), (2, 1)])) if heads else ()
    x, options = draw("cosformer", seed, batch, heads, T, state=seed % 2 == 1)
    parallel = refattn.cosformer_attention(**x, **options, start=start)
    assert_same(refattn.cosformer_attention_recurrent(**x, **options, start=start), parallel, rtol=1e-8)


@pytest.mark.parametrize("suffix", SUFFIXES)
@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), start=st.integers(0, 31))
def test_split_and_resumed_at_its_position(suffix, data, seed, T, start):
    x, options = draw("cosformer", seed, (2,), (4, 1, 2), T)
    at = data.draw(st.integers(0, T))
    whole = form("cosformer", suffix)(**x, **options, start=start)
    state = x["initial_state"]
    first = form("cosformer", suffix)(**part(x, slice(0, at)), **options, start=start, initial_state=state)
    rest = form("cosformer", suffix)(**part(x, slice(at, T)), **options, start=start + at, initial_state=first.state)
    assert_same(np.concatenate([first.o, rest.o], axis=-2), whole.o)
    assert_same(rest.state, whole.state)


def test_without_a_state_only_distances_count():
    x, options = draw("cosformer", heads=(2, 2, 2), state=False)
    first, later = (refattn.cosformer_attention(**x, **options, start=start) for start in (0, 20))
    assert_same(first.o, later.o)
    assert not np.allclose(first.state.S, later.state.S)


def test_a_long_length_is_linear_attention_with_relu():
    x, _ = draw("cosformer", heads=(2, 2, 2), state=False)
    want = refattn.linear_attention(**x, feature_map=refattn.relu).o
    assert_same(refattn.cosformer_attention(**x, length=10**9).o, want)
    assert not np.allclose(refattn.cosformer_attention(**x, length=7).o, want)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_where_all_weights_are_0_o_is_0(suffix):
    x, options = draw("cosformer", heads=(2, 2, 2), state=False)
    x["q"][:, 3] = -1
    o = form("cosformer", suffix)(**x, **options).o
    assert (o[:, 3] == 0).all() and np.isfinite(o).all() and (o[:, 4:] != 0).any()
    g = refattn.cosformer_attention_vjp(np.ones_like(o), **x, **options)
    assert (g.dq[:, 3] == 0).all() and all(np.isfinite(y).all() for y in g[:3])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_later_tokens_leave_no_trace(suffix, lost):
    x, options = draw("cosformer", batch=(2,), heads=(2, 2, 2))
    want = form("cosformer", suffix)(**x, **options).o
    x["v"][..., 5, 0], x["k"][..., 5, 0] = lost, lost
    o = form("cosformer", suffix)(**x, **options).o
    np.testing.assert_array_equal(o[..., :5, :], want[..., :5, :])
    assert not np.isfinite(o[..., 5:, :]).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_angles_are_precise_at_far_positions(suffix):
    x, _ = draw("cosformer", heads=(2, 2, 2), state=False)
    x = {name: y.astype(np.float32) for name, y in x.items()}
    near, far = (form("cosformer", suffix)(**x, length=2_000_000, start=start).o for start in (0, 1_900_000))
    np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"start": 9}], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_vjp(heads, options):
    x, length = draw("cosformer", 2, (2,) if HEADS[heads] else (), HEADS[heads], T=5)
    assert_vjp("cosformer", x, length | options)


@pytest.mark.parametrize("T", [0, 1])
def test_vjp_of_few_tokens(T):
    x, options = draw("cosformer", 3, (), (2, 2, 2), T)
    assert_vjp("cosformer", x, options)
    del x["initial_state"]
    g = refattn.cosformer_attention_vjp(np.ones((2, T, 2)), **x, **options)
    assert g.dinitial_state is None and g.dlog_decay is None and g.dbeta is None
