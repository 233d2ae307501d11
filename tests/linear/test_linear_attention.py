"""Linear attention: every form says the same, whatever the lengths, heads, cuts and feature maps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import FeatureMap, LinearState
from refattn.testing.contract import Contract
from refattn.testing.recurrence import CASES
from refattn.testing.recurrence.oracle import truth
from tests.linear.feature_draws import HEADS, assert_same, assert_vjp, draw, form, part

ORACLE = (
    *("normal", "normal_grouped", "normal_values", "normal_initial", "normal_sums", "heads_1", "odd", "length_0"),
    *("queries_0", "keys_0", "keys_large", "weights_0", "queries_weigh_0"),
)
quickly = settings(max_examples=30, deadline=None, derandomize=True)
SUFFIXES = ("", "_recurrent", "_chunked")
heads_of_some = st.sampled_from([*HEADS.values(), (1, 1, 3)])
maps = st.sampled_from([refattn.elu_plus_one, refattn.relu, refattn.identity])
WIDER = FeatureMap(  # two features for each number
    "signs",
    lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=-1),
    lambda dphi, x: np.where(x > 0, dphi[..., : x.shape[-1]], -dphi[..., x.shape[-1] :]),
)


def elu_plus_one(x):
    return x + 1 if x > 0 else np.exp(x)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_formula(causal, normalize):
    x, _ = draw("linear", T=6)
    q, k = (np.array([[elu_plus_one(c) for c in row] for row in x[name]]) for name in "qk")
    S, z = x["initial_state"]
    o = []
    for i in range(6):
        seen = range(i + 1 if causal else 6)
        num = sum(q[i] @ k[j] * x["v"][j] for j in seen) + q[i] @ S
        o.append(num / (sum(q[i] @ k[j] for j in seen) + q[i] @ z) if normalize else num)
    found = refattn.linear_attention(**x, causal=causal, normalize=normalize)
    assert_same(found.o, np.array(o))
    assert_same(found.state, LinearState(S + k.T @ x["v"], z + k.sum(axis=0)))


@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), chunk=st.integers(1, 10), phi=maps)
def test_three_forms(data, seed, T, chunk, phi):
    heads = data.draw(heads_of_some)
    batch = data.draw(st.sampled_from([(), (2,), (2, 1)])) if heads else ()
    x, _ = draw("linear", seed, batch, heads, T, state=seed % 2 == 1)
    options = {"feature_map": phi, "normalize": phi is not refattn.identity}
    parallel = refattn.linear_attention(**x, **options)
    assert_same(refattn.linear_attention_recurrent(**x, **options), parallel)
    assert_same(refattn.linear_attention_chunked(**x, **options, chunk=chunk), parallel)
    assert np.isfinite(parallel.o).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9))
def test_split_and_resumed(suffix, data, seed, T):
    x, _ = draw("linear", seed, (2,), (4, 1, 2), T)
    at = data.draw(st.integers(0, T))
    whole = form("linear", suffix)(**x)
    first = form("linear", suffix)(**part(x, slice(0, at)), initial_state=x["initial_state"])
    rest = form("linear", suffix)(**part(x, slice(at, T)), initial_state=first.state)
    assert_same(np.concatenate([first.o, rest.o], axis=-2), whole.o)
    assert_same(rest.state, whole.state)


@quickly
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), chunk=st.integers(1, 5))
def test_packed_sequences_are_a_loop(seed, lengths, chunk):
    borders = np.cumsum([0, *lengths])
    x, _ = draw("linear", seed, (), (4, 2, 2), borders[-1], sequences=len(lengths))
    dstate, _ = draw("linear", seed + 1, (), (4, 2, 2), 0, sequences=len(lengths))
    dstate, do = dstate["initial_state"], np.random.default_rng(seed).normal(size=(4, borders[-1], 2))
    states = x["initial_state"]
    calls = [("", {}), ("", {"causal": False}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})]
    for suffix, options in calls:
        packed = form("linear", suffix)(**x, cu_seqlens=borders, **options)
        for n, (a, b) in enumerate(itertools.pairwise(borders)):
            own = LinearState(*(y[n] for y in states))
            alone = form("linear", suffix)(**part(x, slice(a, b)), initial_state=own, **options)
            assert_same(packed.o[:, a:b], alone.o)
            assert_same(LinearState(*(y[n] for y in packed.state)), alone.state)
    g = refattn.linear_attention_vjp(do, **x, cu_seqlens=borders, dstate=dstate)
    for n, (a, b) in enumerate(itertools.pairwise(borders)):
        own, down = (LinearState(*(y[n] for y in state)) for state in (states, dstate))
        rest = part(x | {"do": do}, slice(a, b))
        alone = refattn.linear_attention_vjp(**rest, initial_state=own, dstate=down)
        assert_same((g.dq[:, a:b], g.dk[:, a:b], g.dv[:, a:b]), (alone.dq, alone.dk, alone.dv))
        assert_same(LinearState(*(y[n] for y in g.dinitial_state)), alone.dinitial_state)


@pytest.mark.parametrize("case", ORACLE)
def test_the_oracle_says_the_same(case):
    contract = Contract(op="linear_attention", dtype="float64")
    p = CASES[case].problem(contract, 0)
    options = dict(p.options)
    o, states = truth(p, contract)
    if "initial_state" in options:
        options["initial_state"] = LinearState(*options["initial_state"])
    for suffix in SUFFIXES:
        found = form("linear", suffix)(*p.arrays.values(), **options)
        assert_same(found.o, o.astype(np.float64))
        assert_same(tuple(found.state), tuple(s.astype(np.float64) for s in states))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_where_all_weights_are_0_o_is_0(suffix):
    x, _ = draw("linear", heads=(2, 2, 2), T=5, state=False)
    x["q"][:, 2], x["k"][:, :2] = -1, -1  # a query without features, and two keys
    o = form("linear", suffix)(**x, feature_map=refattn.relu).o
    assert (o[:, :3] == 0).all() and np.isfinite(o).all() and (o[:, 3:] != 0).any()
    g = refattn.linear_attention_vjp(np.ones_like(o), **x, feature_map=refattn.relu)
    assert all(np.isfinite(y).all() for y in g[:3])
    assert (g.dq[:, :3] == 0).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_added_to_the_denominator(suffix):
    v = np.array([[1.0], [3.0]])
    x = np.full((2, 1), -100.0)  # features of e^-100
    assert_same(form("linear", suffix)(x, x, v).o[:, 0], np.array([1.0, 2.0]))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_later_tokens_leave_no_trace(suffix, lost):
    x, _ = draw("linear", batch=(2,), heads=(2, 2, 2))
    options = {"chunk": 4} if suffix == "_chunked" else {}
    want = form("linear", suffix)(**x, **options).o
    for name in ("q", "k", "v"):
        x[name][..., 5, 0] = lost
    o = form("linear", suffix)(**x, **options).o
    np.testing.assert_array_equal(o[..., :5, :], want[..., :5, :])
    assert not np.isfinite(o[..., 5:, :]).all()


def test_a_lost_gradient_reaches_no_later_key():
    x, _ = draw("linear", heads=(2, 2, 2))
    do = np.random.default_rng(3).normal(size=(2, 7, 2))
    want = refattn.linear_attention_vjp(do, **x)
    do[:, 2] = np.nan
    g = refattn.linear_attention_vjp(do, **x)
    for found, right in ((g.dk, want.dk), (g.dv, want.dv)):
        np.testing.assert_array_equal(found[:, 3:], right[:, 3:])
    assert np.isnan(g.dv[:, :3]).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_keys_of_norm_1000(suffix):
    x, _ = draw("linear", heads=(2, 2, 2), T=70, state=False)
    k = x["k"] / np.linalg.norm(x["k"], axis=-1, keepdims=True) * 1e3
    x = {name: y.astype(np.float32) for name, y in (x | {"k": k}).items()}
    o = form("linear", suffix)(**x).o
    want = refattn.linear_attention(**{name: y.astype(np.float64) for name, y in x.items()}).o
    np.testing.assert_allclose(o, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"normalize": False}, {"feature_map": WIDER}], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_vjp(heads, options):
    x, _ = draw("linear", 2, (2,) if HEADS[heads] else (), HEADS[heads], T=5)
    if "feature_map" in options:
        S, z = x["initial_state"]
        x["initial_state"] = LinearState(np.concatenate([S, S + 1], axis=-2), np.concatenate([z, z + 1], axis=-1))
    assert_vjp("linear", x, options)


@pytest.mark.parametrize("T", [0, 1])
@pytest.mark.parametrize("phi", [refattn.relu, refattn.identity], ids=["relu", "identity"])
def test_vjp_of_few_tokens(T, phi):
    x, _ = draw("linear", 3, (), (2, 2, 2), T)
    assert_vjp("linear", x, {"feature_map": phi, "normalize": phi is refattn.relu})


def test_vjp_of_packed_sequences():
    x, _ = draw("linear", 4, (), (4, 1, 2), 6, sequences=3)
    assert_vjp("linear", x, {"cu_seqlens": np.array([0, 2, 2, 6])})


def test_linear_in_v_and_s():
    x, _ = draw("linear", 5, (2,), (2, 2, 2), 9)
    o, state = refattn.linear_attention_chunked(**x, chunk=4)
    rng = np.random.default_rng(6)
    do, dS = rng.normal(size=o.shape), rng.normal(size=state.S.shape)
    g = refattn.linear_attention_vjp(do, **x, dstate=LinearState(dS, np.zeros_like(state.z)))
    left = (do * o).sum() + (dS * state.S).sum()
    np.testing.assert_allclose(left, (g.dv * x["v"]).sum() + (g.dinitial_state.S * x["initial_state"].S).sum())
    assert g.dlog_decay is None and g.dbeta is None
    del x["initial_state"]
    assert refattn.linear_attention_vjp(do, **x).dinitial_state is None
