"""What the selective scan of Mamba means: its formula, and the order of bias, softplus, skip and gate."""

import numpy as np
import pytest

import refattn
from tests.ssm.draws import draw

FORMS = [refattn.selective_scan, refattn.selective_scan_recurrent, refattn.selective_scan_chunked]
ONE = np.ones((1, 1))


@pytest.mark.parametrize("form", FORMS)
def test_the_formula_written_out(form):
    x, options = draw("selective_scan", np.random.default_rng(0), 6, ())
    want, h = np.zeros((6, 3)), x["initial_state"].copy()
    for t in range(6):
        for e in range(3):
            step = np.log1p(np.exp(x["delta"][t, e] + x["delta_bias"][e]))
            h[e] = np.exp(step * x["A"][e]) * h[e] + step * x["B"][t] * x["u"][t, e]
            z = x["z"][t, e]
            want[t, e] = (h[e] @ x["C"][t] + x["D"][e] * x["u"][t, e]) * z / (1 + np.exp(-z))
    o, state = form(**x, **options)
    np.testing.assert_allclose(o, want, atol=1e-13)
    np.testing.assert_allclose(state, h, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_b_is_discretised_to_first_order_and_a_exactly(form):
    # zero-order hold would write (1 - e^-2) / 1 = 0.86 where this writes Δ B = 2
    o, state = form(ONE, 2 * ONE, -ONE, ONE, ONE, initial_state=ONE)
    assert o == state == np.exp(-2) + 2


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_multiplies_the_skip_too(form):
    assert form(ONE, 0 * ONE, -ONE, ONE, ONE, D=3 * ONE[0], z=np.zeros((1, 1))).o == 0
    assert form(ONE, 0 * ONE, -ONE, ONE, ONE, D=3 * ONE[0]).o == 3


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_0_keeps_the_state(form):
    x, _ = draw("selective_scan", np.random.default_rng(0), 9)
    x["delta"][...], x["delta_bias"][...] = 0, 0
    np.testing.assert_array_equal(form(**x).state, x["initial_state"])


@pytest.mark.parametrize("form", FORMS)
def test_a_negative_step_makes_the_state_grow(form):
    assert form(0 * ONE, -ONE, -ONE, ONE, ONE, initial_state=ONE).state == np.exp(1)


def test_float16_is_computed_in_float32_and_rounded_once():
    x, options = draw("selective_scan", np.random.default_rng(0), 40)
    small = {name: y.astype(np.float16) for name, y in x.items()}
    wide = {name: y.astype(np.float32) for name, y in small.items()}
    got, want = (refattn.selective_scan(**y, **options) for y in (small, wide))
    assert got.o.dtype == np.float16 and got.state.dtype == np.float32
    np.testing.assert_array_equal(got.o, want.o.astype(np.float16))
    np.testing.assert_array_equal(got.state, want.state)
