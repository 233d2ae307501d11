"""The derivatives of linear attention with decays: central differences in float64, and the dot-product identity."""

import numpy as np
import pytest

import refattn

STEP = 1e-6
GATES = {
    "simple_gla": "HT",
    "gated_linear_attention": "HTD",
    "retention": "H",
    "lightning_attention": "H",
    "hgrn2": "HTD",
}
PROBLEMS = {  # batch, heads, T, options
    "plain": ((2,), (2, 2, 2), 5, {}),
    "2-D": ((), (), 4, {}),
    "more query heads": ((), (4, 1, 2), 3, {"scale": 0.6}),
    "more value heads": ((2, 1), (2, 2, 4), 3, {}),
    "packed": ((), (2, 1, 2), 6, {"cu_seqlens": np.array([0, 2, 2, 6])}),
    "no tokens": ((), (1, 1, 2), 0, {}),
    "one token": ((2,), (2, 2, 2), 1, {}),
}


def problem(name, batch, heads, T, options, D=3, Dv=2):
    rng = np.random.default_rng(1)
    H, Hk, Hv = [(h,) for h in heads] or [()] * 3
    lead = (3,) if "cu_seqlens" in options else batch
    x = {n: rng.normal(size=(*batch, *h, T, d)) for n, h, d in (("q", H, D), ("k", Hk, D), ("v", Hv, Dv))}
    if name == "hgrn2":
        del x["k"]
    shape = {"HT": x["v"].shape[:-1], "HTD": (*x["v"].shape[:-1], D), "H": Hv or (1,)}[GATES[name]]
    x["log_decay"] = -0.1 - rng.exponential(size=shape)
    x["log_decay"][rng.random(shape) < 0.2] = -np.inf
    x["initial_state"] = rng.normal(size=(*lead, *Hv, D, Dv))
    return x, rng


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", GATES)
def test_vjp(name, case):
    batch, heads, T, options = PROBLEMS[case]
    x, rng = problem(name, batch, heads, T, options)
    result = getattr(refattn, name)(**x, **options)
    do, dstate = rng.normal(size=result.o.shape), rng.normal(size=result.state.shape)
    g = getattr(refattn, f"{name}_vjp")(do, **x, **options, dstate=dstate)
    every = {n: np.where(np.isfinite(y), rng.normal(size=y.shape), 0) for n, y in x.items()}
    assert all(getattr(g, f"d{n}").shape == y.shape for n, y in x.items())
    for only in (None, *x):  # all inputs together, then each by itself
        dx = {n: d if only in (None, n) else 0 * d for n, d in every.items()}
        ahead, behind = (
            getattr(refattn, name)(**{n: y + sign * STEP * dx[n] for n, y in x.items()}, **options) for sign in (1, -1)
        )
        left = ((do * (ahead.o - behind.o)).sum() + (dstate * (ahead.state - behind.state)).sum()) / (2 * STEP)
        right = sum((getattr(g, f"d{n}") * d).sum() for n, d in dx.items())
        size = 1 + sum(abs(getattr(g, f"d{n}") * d).sum() for n, d in dx.items())
        assert abs(left - right) < 2e-7 * size, only


@pytest.mark.parametrize("name", GATES)
def test_linear_in_v_and_the_first_state(name):
    x, rng = problem(name, (2,), (2, 2, 2), 9, {})
    result = getattr(refattn, f"{name}_chunked")(**x, chunk=4)
    do, dstate = rng.normal(size=result.o.shape), rng.normal(size=result.state.shape)
    g = getattr(refattn, f"{name}_vjp")(do, **x, dstate=dstate)
    left = (do * result.o).sum() + (dstate * result.state).sum()
    np.testing.assert_allclose(left, (g.dv * x["v"]).sum() + (g.dinitial_state * x["initial_state"]).sum())


@pytest.mark.parametrize("name", GATES)
def test_what_was_not_given_has_no_gradient(name):
    x, rng = problem(name, (2,), (2, 2, 2), 4, {})
    del x["initial_state"]
    g = getattr(refattn, f"{name}_vjp")(rng.normal(size=(2, 2, 4, 2)), **x)
    assert g.dinitial_state is None
    assert getattr(g, "dbeta", None) is None
    assert (g.dlog_decay[np.isneginf(x["log_decay"])] == 0).all()


def test_a_nan_to_come_does_not_reach_back_over_a_reset():
    x, rng = problem("gated_linear_attention", (), (), 5, {})
    x["log_decay"][3] = -np.inf
    do = rng.normal(size=(5, 2))
    want = refattn.gated_linear_attention_vjp(do, **x)
    do[4] = np.nan
    g = refattn.gated_linear_attention_vjp(do, **x)
    for found, right in ((g.dk, want.dk), (g.dv, want.dv), (g.dlog_decay, want.dlog_decay)):
        np.testing.assert_array_equal(found[:3], right[:3])
    assert (g.dlog_decay[3] == 0).all()
