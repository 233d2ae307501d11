"""Linformer: softmax attention to mixtures of keys and values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from tests.linear.feature_draws import assert_same, assert_vjp

quickly = settings(max_examples=30, deadline=None, derandomize=True)


def problem(seed=0, batch=(2,), heads=(4, 2), Tq=6, Tk=9, r=3, by_head=False, D=3, Dv=2):
    rng = np.random.default_rng(seed)
    H, Hk = [(h,) for h in heads] or [()] * 2
    x = {"q": rng.normal(size=(*batch, *H, Tq, D)), "k": rng.normal(size=(*batch, *Hk, Tk, D))}
    x["v"] = rng.normal(size=(*batch, *Hk, Tk, Dv))
    return x | {n: rng.normal(size=(*(Hk if by_head else ()), r, Tk)) for n in "ef"}


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_formula(scale):
    x = problem(batch=(), heads=())
    k, v = x["e"] @ x["k"], x["f"] @ x["v"]
    o = []
    for q in x["q"]:
        p = np.exp([(3**-0.5 if scale is None else scale) * q @ row for row in k])
        o.append(p / p.sum() @ v)
    assert_same(refattn.linformer_attention(**x, scale=scale), np.array(o))


@pytest.mark.parametrize("heads", [(), (4, 2), (2, 2)])
def test_identities_are_softmax_attention(heads):
    x = problem(batch=(2,) if heads else (), heads=heads) | {"e": np.eye(9), "f": np.eye(9)}
    assert_same(refattn.linformer_attention(**x), refattn.attention(x["q"], x["k"], x["v"]))


@quickly
@given(seed=st.integers(0, 99), Tq=st.integers(0, 5), Tk=st.integers(1, 9), r=st.integers(1, 9))
def test_each_head_by_itself(seed, Tq, Tk, r):
    x = problem(seed, (2,), (4, 2), Tq, Tk, r, by_head=True)
    o = refattn.linformer_attention(**x)
    assert o.shape == (2, 4, Tq, 2)
    for h in range(4):
        n = h // 2
        own = (x["q"][:, h], x["k"][:, n], x["v"][:, n], x["e"][n], x["f"][n])
        for b in range(2):
            alone = [y[b] if y.ndim == 3 else y for y in own]
            assert_same(o[b, h], refattn.linformer_attention(*alone))


def test_mixtures_for_all_heads_are_the_same_for_each():
    x = problem(by_head=False)
    each = {name: np.broadcast_to(x[name], (2, 3, 9)).copy() for name in "ef"}
    assert_same(refattn.linformer_attention(**x), refattn.linformer_attention(**x | each))


def test_exact_where_keys_repeat():
    """Tokens that come n times each, mixed by their mean: softmax attention, since all copies weigh the same."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(5, 3)), np.repeat(rng.normal(size=(3, 3)), 4, axis=0), rng.normal(size=(12, 2))
    means = np.repeat(np.eye(3), 4, axis=1) / 4
    assert_same(refattn.linformer_attention(q, k, v, means, means), refattn.attention(q, k, v))


def test_no_keys_are_mixtures_of_nothing():
    x = problem(Tk=0)
    assert (refattn.linformer_attention(**x) == 0).all()
    g = refattn.linformer_attention_vjp(np.ones((2, 4, 6, 2)), **x)
    assert g.dk.shape == (2, 2, 0, 3) and g.de.shape == (3, 0) and (g.dq == 0).all()


@pytest.mark.parametrize("wide", [False, True])
def test_dtypes(wide):
    x = problem()
    x = {name: y.astype(np.float32 if wide and name in "ef" else np.float16) for name, y in x.items()}
    assert refattn.linformer_attention(**x).dtype == np.float16
    g = refattn.linformer_attention_vjp(np.ones((2, 4, 6, 2), np.float16), **x)
    for name, y in x.items():
        assert getattr(g, f"d{name}").dtype == y.dtype


def test_rounded_once():
    x = {name: y.astype(np.float16) for name, y in problem(Tk=60).items()}
    wide = refattn.linformer_attention(**{name: y.astype(np.float32) for name, y in x.items()})
    np.testing.assert_array_equal(refattn.linformer_attention(**x), wide.astype(np.float16))


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize(("batch", "heads"), [((), (2, 2)), ((2,), (4, 2)), ((2, 1), (2, 1)), ((), ())])
def test_vjp(batch, heads, by_head):
    x = problem(1, batch, heads, Tq=3, Tk=5, r=2, by_head=by_head and heads != ())
    assert_vjp("linformer", x, {})
    assert_vjp("linformer", x, {"scale": 0.7})


@pytest.mark.parametrize("sizes", [{"Tq": 0}, {"Tk": 0}, {"r": 1}, {"Tq": 1, "Tk": 1}], ids=str)
def test_vjp_of_few(sizes):
    assert_vjp("linformer", problem(2, **sizes), {})


def test_linear_in_v_and_in_f():
    x = problem()
    o = refattn.linformer_attention(**x)
    do = np.random.default_rng(1).normal(size=o.shape)
    g = refattn.linformer_attention_vjp(do, **x)
    np.testing.assert_allclose((do * o).sum(), (g.dv * x["v"]).sum())
    np.testing.assert_allclose((do * o).sum(), (g.df * x["f"]).sum())
