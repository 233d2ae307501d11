"""The derivatives of the delta rules: central differences in float64, in each input by itself and in all at once."""

import numpy as np
import pytest

from tests.linear.test_delta import NAMES, call, draw

STEP = 1e-6
SHAPES = {
    "plain": {"batch": (2,)},
    "grouped queries": {"heads": (4, 2, 2)},
    "grouped values": {"heads": (2, 1, 4)},
    "one token": {"T": 1},
    "no tokens": {"T": 0},
    "forgotten": {"forget": 0.3, "T": 7},
    "long keys": {"longest": 1.4, "D": 1},
    "packed": {"T": 8},
    "no state": {},
    "one head 2-D": {"heads": (1, 1, 1)},
}


def problem(name, case):
    """Return the inputs that are varied, and the other options."""
    x = draw(SHAPES[case].get("T", 5), **({"T": 5} | SHAPES[case]))
    unused = {"delta_rule": {"log_decay", "log_decays"}, "gated_delta_rule": {"log_decays"}, "kda": {"log_decay"}}
    x = {n: y for n, y in x.items() if n not in unused[name]}
    options = {"scale": 0.7}
    if case == "packed":
        x["initial_state"] = np.random.default_rng(1).normal(size=(3, *x["initial_state"].shape))
        options["cu_seqlens"] = np.array([0, 3, 3, 8])
    if case == "no state":
        del x["initial_state"]
    if case == "one head 2-D":
        x = {n: y[0] for n, y in x.items()}
    return x, options


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_against_central_differences(name, case):
    x, options = problem(name, case)
    o, state = call(name, x, **options)
    rng = np.random.default_rng(2)
    do, dstate = rng.normal(size=o.shape), rng.normal(size=state.shape)

    def moved(direction):
        ahead, behind = (call(name, {n: y + h * direction[n] for n, y in x.items()}, **options) for h in (STEP, -STEP))
        return ((ahead.o - behind.o) * do).sum() + ((ahead.state - behind.state) * dstate).sum()

    g = call(name, {"do": do, "dstate": dstate, **x}, "_vjp", **options)
    found = {n: getattr(g, "dlog_decay" if n == "log_decays" else f"d{n}") for n in x}
    assert all(found[n].shape == y.shape for n, y in x.items())
    assert (g.dlog_decay is None) == (name == "delta_rule") and (g.dinitial_state is None) == (case == "no state")
    every = {n: np.where(np.isfinite(y), rng.normal(size=y.shape), 0) for n, y in x.items()}
    for only in (None, *x):  # all inputs together, then each by itself
        direction = {n: d if only in (None, n) else 0 * d for n, d in every.items()}
        terms = np.concatenate([(found[n] * d).ravel() for n, d in direction.items()])
        assert abs(moved(direction) / (2 * STEP) - terms.sum()) < 1e-7 * (1 + abs(terms).sum()), only


@pytest.mark.parametrize("name", NAMES)
def test_it_is_linear_in_the_cotangents(name):
    """o and the state are linear in (v, initial_state): the dot products with their gradients are the same number."""
    x, options = problem(name, "grouped values")
    o, state = call(name, x, **options)
    do, dstate = np.cos(o), np.sin(state)
    g = call(name, {"do": do, "dstate": dstate, **x}, "_vjp", **options)
    left = (do * o).sum() + (dstate * state).sum()
    np.testing.assert_allclose((g.dv * x["v"]).sum() + (g.dinitial_state * x["initial_state"]).sum(), left, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_have_the_dtypes_of_their_inputs(name):
    x, options = problem(name, "plain")
    x = {n: y.astype(np.float32 if n == "beta" else np.float16) for n, y in x.items()}
    g = call(name, {"do": x["v"], **x}, "_vjp", **options)
    assert g.dbeta.dtype == np.float32
    assert {y.dtype for n, y in g._asdict().items() if y is not None and n != "dbeta"} == {np.dtype(np.float16)}
