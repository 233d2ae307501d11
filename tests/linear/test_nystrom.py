"""Nyström attention: landmarks, an iterated pseudo-inverse of each matrix by itself, and their derivative."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn.linear.nystrom import _means, _pseudo_inverses
from tests.linear.feature_draws import assert_same, assert_vjp

quickly = settings(max_examples=30, deadline=None, derandomize=True)


def problem(seed=0, batch=(2,), heads=(4, 2), T=9, D=3, Dv=2):
    rng = np.random.default_rng(seed)
    H, Hk = [(h,) for h in heads] or [()] * 2
    return {n: rng.normal(size=(*batch, *h, T, d)) for n, h, d in (("q", H, D), ("k", Hk, D), ("v", Hk, Dv))}


def softmax(s):
    p = np.exp(s)
    return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_the_formula(iterations):
    x = problem(batch=(), heads=(), T=6)
    q, k, size = x["q"], x["k"], 3**-0.5
    q_marks, k_marks = (np.array([y[:2].mean(axis=0), y[2:4].mean(axis=0), y[4:].mean(axis=0)]) for y in (q, k))
    F, A, B = (softmax(size * a @ b.T) for a, b in ((q, k_marks), (q_marks, k_marks), (q_marks, k)))
    Z, one = A.T / (abs(A).sum(axis=0).max() * abs(A).sum(axis=1).max()), np.eye(3)
    for _ in range(iterations):
        Z = Z @ (13 * one - A @ Z @ (15 * one - A @ Z @ (7 * one - A @ Z))) / 4
    assert_same(refattn.nystrom_attention(**x, landmarks=3, iterations=iterations), F @ Z @ (B @ x["v"]))


@quickly
@given(T=st.integers(1, 40), landmarks=st.integers(1, 12))
def test_segments_differ_by_one_token_at_most(T, landmarks):
    means = _means(np.zeros((T, 1)), landmarks)
    members = means > 0
    sizes = members.sum(axis=1)
    assert len(means) == min(landmarks, T) and sizes.sum() == T and sizes.max() - sizes.min() <= 1
    assert (members.sum(axis=0) == 1).all() and (np.diff(members.argmax(axis=0)) >= 0).all()  # in order, none twice
    np.testing.assert_allclose(means.sum(axis=1), 1)


@pytest.mark.parametrize("landmarks", [4, 5, 99])
def test_as_many_landmarks_as_tokens_are_exact(landmarks):
    """F, A and B are the same matrix then, and A A⁺ A = A; the iteration gets there if it is given the steps."""
    x = problem(T=4)
    exact = refattn.attention(**x)
    o = refattn.nystrom_attention(**x, landmarks=landmarks, iterations=40)
    np.testing.assert_allclose(o, exact, atol=1e-6)
    six, four = (refattn.nystrom_attention(**x, landmarks=m) for m in (landmarks, 4))
    np.testing.assert_array_equal(six, four)
    assert abs(six - exact).max() > 1e-4  # six steps are not enough here: no other formula is taken


def test_exact_where_tokens_repeat():
    rng = np.random.default_rng(0)
    q, k = np.repeat(rng.normal(size=(2, 3, 2)), 4, axis=1)
    v = rng.normal(size=(12, 5))
    o = refattn.nystrom_attention(q, k, v, landmarks=3, iterations=25)
    np.testing.assert_allclose(o, refattn.attention(q, k, v), atol=1e-6)


def test_no_sequence_sees_its_neighbours():
    x = problem()
    o = refattn.nystrom_attention(**x, landmarks=3)
    g = refattn.nystrom_attention_vjp(np.ones_like(o), **x, landmarks=3)
    for name in "qk":
        x[name][1] *= 30  # other norms
    x["v"][1] = np.nan
    np.testing.assert_array_equal(refattn.nystrom_attention(**x, landmarks=3)[0], o[0])
    for found, want in zip(refattn.nystrom_attention_vjp(np.ones_like(o), **x, landmarks=3), g, strict=True):
        np.testing.assert_array_equal(found[0], want[0])


def test_heads_share_keys_in_groups():
    x = problem()
    each = {"q": x["q"]} | {name: np.repeat(x[name], 2, axis=1) for name in "kv"}
    assert_same(refattn.nystrom_attention(**x, landmarks=3), refattn.nystrom_attention(**each, landmarks=3))
    for h in range(4):
        alone = (x["q"][1, h], x["k"][1, h // 2], x["v"][1, h // 2])
        assert_same(refattn.nystrom_attention(**x, landmarks=3)[1, h], refattn.nystrom_attention(*alone, landmarks=3))


@quickly
@given(seed=st.integers(0, 99), size=st.integers(1, 6))
def test_the_iteration_converges_to_the_inverse(seed, size):
    A = softmax(2 * np.random.default_rng(seed).normal(size=(size, size)) + 3 * np.eye(size))
    steps = _pseudo_inverses(A, 60)
    errors = [np.linalg.norm(A @ Z - np.eye(size), 2) for Z in steps]
    assert errors[0] < 1 + 1e-12 and errors[-1] < 1e-6
    np.testing.assert_allclose(steps[-1], np.linalg.inv(A), rtol=1e-4, atol=1e-4 * abs(np.linalg.inv(A)).max())


def test_equal_landmarks_have_a_singular_matrix():
    """The pseudo-inverse of a matrix of rank 1 is found as well: the mean of all values."""
    x = {name: np.zeros((8, 2)) for name in "qk"}
    v = np.arange(8.0)[:, None]
    assert_same(refattn.nystrom_attention(**x, v=v, landmarks=4), np.full((8, 1), 3.5))


def test_no_tokens_and_one():
    assert refattn.nystrom_attention(**problem(T=0), landmarks=3).shape == (2, 4, 0, 2)
    x = problem(T=1)
    assert_same(refattn.nystrom_attention(**x, landmarks=3), np.repeat(x["v"], 2, axis=1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_large_scores_stay_finite(dtype):
    x = {name: (100 * y if name in "qk" else y).astype(dtype) for name, y in problem(T=20).items()}
    o = refattn.nystrom_attention(**x, landmarks=4)
    assert o.dtype == dtype and np.isfinite(o).all()
    g = refattn.nystrom_attention_vjp(o, **x, landmarks=4)
    assert all(y.dtype == dtype and np.isfinite(y).all() for y in g)


@pytest.mark.parametrize("options", [{}, {"iterations": 0}, {"iterations": 1}, {"scale": 0.7}], ids=str)
@pytest.mark.parametrize(("batch", "heads"), [((), (2, 2)), ((2,), (4, 2)), ((2, 1), (2, 1)), ((), ())])
def test_vjp(batch, heads, options):
    assert_vjp("nystrom", problem(1, batch, heads, T=7), {"landmarks": 3} | options)


@pytest.mark.parametrize(("T", "landmarks"), [(0, 2), (1, 2), (3, 5), (4, 4), (13, 5), (5, 1)])
def test_vjp_of_other_segments(T, landmarks):
    assert_vjp("nystrom", problem(2, (), (2, 1), T), {"landmarks": landmarks})


def test_linear_in_v():
    x = problem()
    o = refattn.nystrom_attention(**x, landmarks=3)
    do = np.random.default_rng(1).normal(size=o.shape)
    g = refattn.nystrom_attention_vjp(do, **x, landmarks=3)
    np.testing.assert_allclose((do * o).sum(), (g.dv * x["v"]).sum())
