"""What state space duality means: linear attention with a decay per head, steps, limits, a skip and a gate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn.ssm.common import segments
from tests.ssm.draws import draw

FORMS = [refattn.ssd, refattn.ssd_recurrent, refattn.ssd_chunked]
ONE = np.ones((1, 1))


def bare(T=9, seed=0):
    """Without bias, softplus, limits, skip and gate; steps above 0."""
    x, _ = draw("ssd", np.random.default_rng(seed), T)
    x["dt"] = np.exp(x["dt"])
    return {name: x[name] for name in ("x", "dt", "A", "B", "C", "initial_state")}


def as_attention(x):
    v, g = x["dt"][..., None] * x["x"], x["dt"] * x["A"][:, None]
    return {"q": x["C"], "k": x["B"], "v": v, "log_decay": g, "scale": 1.0, "initial_state": x["initial_state"]}


@settings(deadline=None, derandomize=True, max_examples=20)
@given(T=st.integers(0, 40), seed=st.integers(0, 99))
def test_it_is_linear_attention_with_one_decay_per_head(T, seed):
    x = bare(T, seed)
    got, want = refattn.ssd(**x), refattn.simple_gla_recurrent(**as_attention(x))
    np.testing.assert_allclose(got.o, want.o, atol=1e-11)
    np.testing.assert_allclose(got.state, want.state, atol=1e-11)


def test_its_gradients_are_those_of_linear_attention():
    x, rng = bare(), np.random.default_rng(1)
    do = rng.normal(size=x["x"].shape)
    got, want = refattn.ssd_vjp(do, **x), refattn.simple_gla_vjp(do, **as_attention(x))
    np.testing.assert_allclose(got.dC, want.dq, atol=1e-12)
    np.testing.assert_allclose(got.dB, want.dk, atol=1e-12)
    np.testing.assert_allclose(got.dx, x["dt"][..., None] * want.dv, atol=1e-12)
    np.testing.assert_allclose(got.dA, (x["dt"] * want.dlog_decay).sum(axis=(0, 2)), atol=1e-12)
    through = x["A"][:, None] * want.dlog_decay + (want.dv * x["x"]).sum(axis=-1)
    np.testing.assert_allclose(got.ddt, through, atol=1e-12)
    np.testing.assert_allclose(got.dinitial_state, want.dinitial_state, atol=1e-12)


def test_it_is_the_matrix_of_the_paper():
    x = {name: y[0, :1] if y.ndim > 1 else y[:1] for name, y in bare(5).items()}
    M = np.zeros((5, 5))
    for i in range(5):
        for j in range(i + 1):
            decays = np.exp(x["dt"][0, j + 1 : i + 1] * x["A"][0])
            M[i, j] = x["C"][0, i] @ x["B"][0, j] * decays.prod() * x["dt"][0, j]
    o = refattn.ssd(**{name: y for name, y in x.items() if name != "initial_state"}).o
    np.testing.assert_allclose(o[0], M @ x["x"][0], atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_heads_share_groups_in_runs(form):
    x = bare()
    each = x | {name: np.repeat(x[name], 2, axis=-3) for name in "BC"}  # heads 0, 1 use group 0, heads 2, 3 group 1
    np.testing.assert_allclose(form(**each).o, form(**x).o, atol=1e-13)
    turned = x | {name: x[name][:, ::-1] for name in "BC"}
    assert abs(form(**turned).o - form(**x).o).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dt", "bias", "soft", "limit", "step"),
    [
        (-1.0, 0.0, False, (0.0, np.inf), 0.0),
        (-1.0, 3.0, False, (0.0, np.inf), 2.0),
        (5.0, 0.0, False, (0.1, 2.0), 2.0),
        (0.05, 0.0, False, (0.1, 2.0), 0.1),
        (0.0, 0.0, True, (0.0, np.inf), np.log(2)),
        (0.0, 0.0, True, (0.0, 0.5), 0.5),
        (-9.0, 0.0, True, (0.5, 0.6), 0.5),
        (-1.0, 1.0, True, (0.0, np.inf), np.log(2)),
    ],
)
def test_steps_have_their_bias_then_softplus_then_limits(form, dt, bias, soft, limit, step):
    given = {"dt_bias": np.array([bias]), "dt_softplus": soft, "dt_limit": limit}
    got = form(ONE, np.array([dt]), np.array([-1.0]), ONE, ONE, **given, initial_state=ONE)
    np.testing.assert_allclose(got.state, np.exp(-step) + step, rtol=1e-15)


def test_outside_its_limits_a_step_has_no_gradient():
    x = bare(4)
    x["dt"][...] = [0.05, 0.5, 1.0, 1.5]
    got = refattn.ssd_vjp(np.ones_like(x["x"]), **x, dt_bias=np.zeros(4), dt_limit=(0.5, 1.0))
    assert (got.ddt[..., [0, 3]] == 0).all() and (got.ddt[..., [1, 2]] != 0).all()
    np.testing.assert_allclose(got.ddt_bias, got.ddt.sum(axis=(0, 2)), rtol=1e-12)


def test_sums_between_tokens_are_no_differences():
    g = np.array([-1e9, -0.25, -0.5], np.float32)
    assert segments(g)[3].tolist() == [-1e9, -0.75, -0.5, 0.0]
    g[0] = -np.inf
    assert segments(g)[3].tolist() == [-np.inf, -0.75, -0.5, 0.0]


def test_a_forgotten_nan_among_the_decays_is_forgotten():
    G = segments(np.array([np.nan, -np.inf, -1.0]))
    assert G[3].tolist() == [-np.inf, -np.inf, -1.0, 0.0]
    assert np.isnan(G[1, 0])
