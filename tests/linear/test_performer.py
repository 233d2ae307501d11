"""Performer: an estimate of softmax attention whose stabiliser neither shows in the output nor sees the future."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import PerformerState, draw_projection
from tests.linear.feature_draws import HEADS, assert_same, assert_vjp, draw, form, part, softmax_attention

quickly = settings(max_examples=30, deadline=None, derandomize=True)
SUFFIXES = ("", "_recurrent")
heads_of_some = st.sampled_from([*HEADS.values(), (1, 1, 3)])


def features(x, W, scale):
    """φ of one row, without a stabiliser."""
    x = x * scale**0.5
    return np.exp(W @ x - x @ x / 2) / np.sqrt(len(W))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("causal", [True, False])
def test_the_formula(causal, scale):
    x, _ = draw("performer", T=6)
    S, z, m = x["initial_state"]
    size = 3**-0.5 if scale is None else scale
    q, k = (np.array([features(row, x["projection"], size) for row in x[name]]) for name in "qk")
    S, z, o = S * np.exp(m), z * np.exp(m), []
    for i in range(6):
        seen = range(i + 1 if causal else 6)
        num = sum(q[i] @ k[j] * x["v"][j] for j in seen) + q[i] @ S
        o.append(num / (sum(q[i] @ k[j] for j in seen) + q[i] @ z))
    found = refattn.performer_attention(**x, causal=causal, scale=scale)
    assert_same(found.o, np.array(o))
    top = max(m, np.log(k * np.sqrt(5)).max())
    assert_same(found.state, PerformerState((S + k.T @ x["v"]) / np.exp(top), (z + k.sum(axis=0)) / np.exp(top), top))


@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), rise=st.sampled_from([0.0, 2.0, -2.0]))
def test_both_forms(data, seed, T, rise):
    heads = data.draw(heads_of_some)
    batch = data.draw(st.sampled_from([(), (2,), (2, 1)])) if heads else ()
    x, _ = draw("performer", seed, batch, heads, T, state=seed % 2 == 1)
    x["k"] += rise * np.arange(T)[:, None]
    parallel = refattn.performer_attention(**x)
    assert_same(refattn.performer_attention_recurrent(**x), parallel, rtol=1e-8)
    assert np.isfinite(parallel.o).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9))
def test_split_and_resumed(suffix, data, seed, T):
    x, _ = draw("performer", seed, (2,), (4, 1, 2), T)
    x["k"] *= 2
    at = data.draw(st.integers(0, T))
    whole = form("performer", suffix)(**x)
    first = form("performer", suffix)(**part(x, slice(0, at)), initial_state=x["initial_state"])
    rest = form("performer", suffix)(**part(x, slice(at, T)), initial_state=first.state)
    assert_same(np.concatenate([first.o, rest.o], axis=-2), whole.o)
    assert_same(rest.state, whole.state)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("T", [9, 65, 130])
@pytest.mark.parametrize("last", ["highest", np.nan, np.inf], ids=str)
def test_a_later_key_changes_no_bit_before_it(suffix, T, last):
    x, _ = draw("performer", heads=(2, 2, 2), T=T, state=False)
    want = form("performer", suffix)(**x)
    W = x["projection"]
    longest = W[(W * W).sum(axis=-1).argmax()]
    x["k"][:, -1] = longest / 3**-0.25 if last == "highest" else last  # w·k - |k|²/2 is largest at k = w
    found = form("performer", suffix)(**x)
    np.testing.assert_array_equal(found.o[:, :-1], want.o[:, :-1])
    assert last != "highest" or (found.state.m > want.state.m + 0.1).all()


def test_if_not_causal_the_stabiliser_is_that_of_all_keys():
    x, _ = draw("performer", heads=(2, 2, 2), state=False)
    causal, whole = (refattn.performer_attention(**x, causal=causal) for causal in (True, False))
    assert_same(whole.state, causal.state)
    assert_same(whole.o[:, -1], causal.o[:, -1])
    k = x["k"] * 3**-0.25
    logs = k @ x["projection"].T - (k * k).sum(axis=-1, keepdims=True) / 2
    assert_same(whole.state.m, logs.max(axis=(-2, -1)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_stabiliser_of_a_state_cancels(suffix):
    x, _ = draw("performer", heads=(2, 2, 2))
    S, z, m = x["initial_state"]
    want = form("performer", suffix)(**x)
    x["initial_state"] = PerformerState(S * np.exp(-3), z * np.exp(-3), m + 3)
    found = form("performer", suffix)(**x)
    assert_same(found.o, want.o)
    assert_same(
        found.state.S * np.exp(found.state.m)[..., None, None], want.state.S * np.exp(want.state.m)[..., None, None]
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("large", ["q", "k"])
def test_large_keys_or_queries_weigh_something(suffix, large):
    x, _ = draw("performer", heads=(2, 2, 2), T=20, state=False)
    x = {name: (1000 * y if name == large else y).astype(np.float32) for name, y in x.items()}
    o, state = form("performer", suffix)(**x)
    assert all(np.isfinite(y).all() for y in (o, *state))
    assert (abs(o).max(axis=-2) <= abs(x["v"]).max(axis=-2) * 1.001).all()  # means of values
    assert_same(o[:, 0], x["v"][:, 0], rtol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_where_all_products_underflow_o_is_0(suffix):
    """The features that are largest for q are not those that are largest for k: e^-100 each of what would be theirs."""
    q, k, v = np.array([[30.0]]), np.array([[-30.0]]), np.array([[2.0]])
    W = np.array([[1.0], [-1.0]], np.float32) * 5
    x = {"q": q, "k": k, "v": v, "projection": W}
    narrow, wide = (form("performer", suffix)(**{n: y.astype(t) for n, y in x.items()}).o for t in ("f4", "f8"))
    assert narrow == 0
    assert_same(wide, v)


def test_no_keys_have_no_maximum():
    x, _ = draw("performer", heads=(2, 2, 2), T=0, state=False)
    for suffix in SUFFIXES:
        _, (S, z, m) = form("performer", suffix)(**x)
        assert (S == 0).all() and (z == 0).all() and np.isneginf(m).all()
        more, _ = draw("performer", 1, heads=(2, 2, 2), T=3, state=False)
        assert_same(
            form("performer", suffix)(**more, initial_state=PerformerState(S, z, m)), form("performer", suffix)(**more)
        )


@pytest.mark.parametrize("causal", [True, False])
def test_the_estimate_converges_to_softmax_attention(causal):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 12, 4))
    q, k = q / 2, k / 2  # short enough for the law of large numbers to show early
    exact = softmax_attention(q, k, v, causal)

    def error(features):
        projections = (draw_projection(features, 4, seed) for seed in range(12))
        off = [refattn.performer_attention(q, k, v, W, causal=causal).o - exact for W in projections]
        return np.sqrt(np.mean(np.square(off)))

    errors = [error(features) for features in (16, 256, 4096)]
    assert all(2 < a / b < 6 for a, b in itertools.pairwise(errors))  # 1/√M: a factor of 4
    assert errors[-1] < 0.01


def test_weights_are_unbiased():
    x, y = np.array([0.5, -0.2, 0.1]), np.array([0.3, 0.4, -0.6])
    for orthogonal in (True, False):
        W = draw_projection(300_000, 3, orthogonal=orthogonal)
        each = np.exp(W @ (x + y) - (x @ x + y @ y) / 2)
        assert abs(each.mean() - np.exp(x @ y)) < 5 * each.std() / np.sqrt(len(W))


def test_blocks_of_a_projection_are_orthogonal():
    W = draw_projection(10, 4, seed=3)
    assert W.shape == (10, 4) and W.dtype == np.float64
    for block in (W[:4], W[4:8], W[8:]):
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diagonal(products)), 0, atol=1e-12)
    assert abs(W[:4] @ W[4:8].T).max() > 0.1
    assert abs(draw_projection(4, 4, orthogonal=False) @ draw_projection(4, 4, orthogonal=False).T).min() > 1e-3


@pytest.mark.parametrize("orthogonal", [True, False])
def test_rows_of_a_projection_are_normal(orthogonal):
    W = draw_projection(40_000, 4, orthogonal=orthogonal)
    np.testing.assert_allclose(W.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(W.T @ W / len(W), np.eye(4), atol=0.03)
    np.testing.assert_allclose((W**4).mean(axis=0), 3, atol=0.15)  # as of normal numbers
    lengths = (W * W).sum(axis=-1)
    np.testing.assert_allclose([lengths.mean(), lengths.var()], [4, 8], rtol=0.05)  # as of χ² with 4


def test_a_projection_depends_on_its_seed_alone():
    assert_same(draw_projection(6, 4, seed=5), draw_projection(6, 4, seed=5), rtol=0, atol=0)
    assert not np.allclose(draw_projection(6, 4, seed=5), draw_projection(6, 4, seed=6))
    for bad, error in (({"features": 0}, ValueError), ({"D": 1.5}, TypeError), ({"seed": -1}, ValueError)):
        with pytest.raises(error, match=f"draw_projection: {next(iter(bad))}"):
            draw_projection(**({"features": 3, "D": 2} | bad))


def test_orthogonal_rows_estimate_better():
    rng = np.random.default_rng(1)
    q, k, v = 0.7 * rng.normal(size=(3, 16, 8))
    exact = softmax_attention(q, k, v, True)
    squares = {
        orthogonal: np.mean(
            [
                (refattn.performer_attention(q, k, v, draw_projection(8, 8, seed, orthogonal)).o - exact) ** 2
                for seed in range(60)
            ]
        )
        for orthogonal in (True, False)
    }
    assert squares[True] < 0.95 * squares[False]


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"scale": 0.4}], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_vjp(heads, options):
    x, _ = draw("performer", 2, (2,) if HEADS[heads] else (), HEADS[heads], T=5)
    assert_vjp("performer", x, options)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("m", [-9.0, 9.0], ids=["keys have the maximum", "the state has it"])
@pytest.mark.parametrize("T", [0, 1, 4])
def test_vjp_of_the_stabiliser(T, m, causal):
    x, _ = draw("performer", 3, (), (2, 1, 2), T)
    x["initial_state"] = x["initial_state"]._replace(m=np.full(2, m))
    assert_vjp("performer", x, {"causal": causal})


def test_a_state_that_was_never_filled_has_no_gradient_of_m():
    x, _ = draw("performer", heads=(2, 2, 2))
    empty = PerformerState(np.zeros((2, 5, 2)), np.zeros((2, 5)), np.full(2, -np.inf))
    do = np.random.default_rng(0).normal(size=(2, 7, 2))
    g = refattn.performer_attention_vjp(do, **x | {"initial_state": empty}, dstate=x["initial_state"])
    del x["initial_state"]
    want = refattn.performer_attention_vjp(do, **x)
    assert want.dinitial_state is None and (g.dinitial_state.m == 0).all()
    assert_same(g.dq, want.dq)  # dq has nothing of dstate
    assert all(np.isfinite(y).all() for y in (*g[:4], *g.dinitial_state))
