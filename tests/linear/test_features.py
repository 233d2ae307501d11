"""Feature maps, what their operations share, and what their wrong implementations are made from."""

from types import SimpleNamespace

import numpy as np
import pytest

import refattn
from refattn import FeatureMap, dispatch
from refattn.testing import cases
from refattn.testing.conformance import judge
from refattn.testing.verdicts import PASS
from tests.linear.feature_draws import draw, form, leaves
from tests.mistakes import features

MAPS = {"elu_plus_one": refattn.elu_plus_one, "relu": refattn.relu, "identity": refattn.identity}
KINDS = ("linear", "performer", "cosformer")


@pytest.mark.parametrize("name", MAPS)
def test_values_and_derivatives(name):
    x = np.array([-800.0, -2.0, -0.5, 0.5, 3.0])
    want = {
        "elu_plus_one": [0, np.exp(-2), np.exp(-0.5), 1.5, 4],
        "relu": [0, 0, 0, 0.5, 3],
        "identity": x,
    }
    phi = MAPS[name]
    assert phi.name == name
    np.testing.assert_allclose(phi(x), want[name])
    slope = (phi(x + 1e-6) - phi(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(phi.vjp(3 * np.ones(5), x), 3 * slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maps_keep_the_dtype_and_the_input(name, dtype):
    x = np.array([-1.0, 0.0, 1e4], dtype)
    before = x.copy()
    for y in (MAPS[name](x), MAPS[name].vjp(np.ones_like(x), x)):
        assert y.dtype == dtype and np.isfinite(y).all()
    np.testing.assert_array_equal(x, before)


def test_at_zero():
    zero, one = np.zeros(1), np.ones(1)
    assert refattn.elu_plus_one(zero) == 1 and refattn.elu_plus_one.vjp(one, zero) == 1  # the same from both sides
    assert refattn.relu(zero) == 0 and refattn.relu.vjp(one, zero) == 0


def test_a_backend_is_given_the_map_itself():
    seen = []

    def call(q, k, v, *, feature_map=refattn.elu_plus_one, **options):
        seen.append(feature_map)
        return refattn.linear_attention(q, k, v, feature_map=feature_map, **options, backend="numpy")

    x, _ = draw("linear")
    own = FeatureMap("cubes", lambda y: abs(y) ** 3, lambda dphi, y: 3 * y * abs(y) * dphi)
    dispatch.register("watching", SimpleNamespace(linear_attention=call))
    try:
        refattn.linear_attention(**x, backend="watching")
        refattn.linear_attention(**x, feature_map=own, backend="watching")
    finally:
        dispatch.unregister("watching")
    assert seen == [refattn.elu_plus_one, own]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype):
    x, options = draw(kind, heads=(2, 2, 2), state=False)
    x = {name: y.astype(dtype) for name, y in x.items()}
    wide = np.float64 if dtype == np.float64 else np.float32
    results = [form(kind, suffix)(**x, **options) for suffix in ("", "_recurrent")]
    for o, state in results:
        assert o.dtype == dtype and {y.dtype for y in state} == {np.dtype(wide)}
    g = form(kind, "_vjp")(results[0].o, **x, **options, initial_state=results[0].state)
    assert {y.dtype for y in leaves(g[:3])} == {np.dtype(dtype)}
    assert {y.dtype for y in g.dinitial_state} == {np.dtype(wide)}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_not_written_to(kind):
    x, options = draw(kind, heads=(4, 1, 2))
    before = [y.copy() for y in leaves(tuple(x.values()))]
    for suffix in ("", "_recurrent"):
        o = form(kind, suffix)(**x, **options).o
    form(kind, "_vjp")(np.ones_like(o), **x, **options)
    for y, was in zip(leaves(tuple(x.values())), before, strict=True):
        np.testing.assert_array_equal(y, was)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_leave_the_state_as_it_was(kind):
    x, options = draw(kind, heads=(2, 2, 2), T=0)
    for suffix in ("", "_recurrent"):
        o, state = form(kind, suffix)(**x, **options)
        assert o.shape == (2, 0, 2)
        for a, b in zip(state, x["initial_state"], strict=True):
            np.testing.assert_array_equal(a, b)
    empty, _ = draw(kind, heads=(2, 2, 2), T=0, state=False)
    state = form(kind)(**empty, **options).state
    assert all((y == 0).all() for y in state[:2])
    assert all(np.isneginf(y).all() for y in state[2:])


FORMS = {name: function for name, (function, _) in features.FORMS.items() if "recurrent" in name or "chunked" in name}
RIGHT = features.RIGHT | FORMS | {"linformer_attention_vjp": features.linformer_vjp}


@pytest.mark.parametrize("operation", RIGHT)
def test_what_the_mistakes_are_made_from_is_right(operation):
    dispatch.register("right", SimpleNamespace(**{operation: RIGHT[operation]}))
    try:
        results = [judge(case, "right", {}) for case in cases(operation)]
    finally:
        dispatch.unregister("right")
    assert len(results) > 20
    assert [f"{result.check}: {result.message}" for result in results if result.verdict != PASS] == []
