"""What S4D means: a linear differential equation whose input is held for a step, solved exactly."""

import numpy as np
import pytest
import scipy.linalg

import refattn
from refattn.ssm.s4d import _phi_slope
from tests.ssm.draws import draw

FORMS = [refattn.s4d, refattn.s4d_recurrent]


@pytest.mark.parametrize("form", FORMS)
def test_it_solves_the_differential_equation(form):
    """h' = A h + u with u held: the exponential of the matrix [[A, 1], [0, 0]] takes (h, u) through one step."""
    x, _ = draw("s4d", np.random.default_rng(0), 7, ())
    A, C = x["A_real"] + 1j * x["A_imag"], x["C_real"] + 1j * x["C_imag"]
    h, want = x["initial_state"][..., 0] + 1j * x["initial_state"][..., 1], np.zeros((7, 3))
    for t in range(7):
        for e in range(3):
            for n in range(2):
                step = scipy.linalg.expm(x["delta"][e] * np.array([[A[e, n], 1], [0, 0]]))
                h[e, n] = step[0, 0] * h[e, n] + step[0, 1] * x["u"][t, e]
            both = np.concatenate([C[e] * h[e], C[e].conj() * h[e].conj()])  # the other half of the pairs
            want[t, e] = both.sum().real + x["D"][e] * x["u"][t, e]
    got = form(**x)
    np.testing.assert_allclose(got.o, want, atol=1e-12)
    np.testing.assert_allclose(got.state, np.stack([h.real, h.imag], -1), atol=1e-12)


def test_its_kernel_is_the_answer_to_an_impulse():
    x, _ = draw("s4d", np.random.default_rng(0), 9, ())
    impulse = {name: y for name, y in x.items() if name not in ("D", "initial_state")}
    impulse["u"] = np.eye(9, 3)[:, :1] * np.ones(3)
    K = refattn.s4d_recurrent(**impulse).o
    want = np.stack([np.convolve(x["u"][:, e], K[:, e])[:9] for e in range(3)], -1) + x["D"] * x["u"]
    del x["initial_state"]
    np.testing.assert_allclose(refattn.s4d(**x).o, want, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-7, 1e-4])
def test_slow_oscillations_lose_no_digits(form, size):
    """B̄ = (Ā - 1) / A is Δ where ΔA is small; that difference would have lost all of float32."""
    one = np.ones((1, 1), np.float32)
    A = -np.float32(size) * one
    got = form(one, np.array([0.5], np.float32), A, A, one, 0 * one)
    np.testing.assert_allclose(got.state[0, 0, 0], 0.5, rtol=1e-4 if size == 1e-4 else 1e-6)


def test_the_slope_of_b_bar_is_smooth_where_the_series_ends():
    x = np.array([0.999, 1.001]) * np.exp(2j)
    low, high = _phi_slope(x)
    assert abs(low - high) < 2e-3 and abs(_phi_slope(np.zeros(1, complex))[0] - 0.5) < 1e-15
    for z in (1e-3 - 1e-3j, -0.5 + 0.8j, -0.7 + 0.72j, -3 + 9j):
        wide = np.array([z])
        exact = sum((m + 1) * z**m / np.prod(np.arange(1.0, m + 3)) for m in range(60))
        np.testing.assert_allclose(_phi_slope(wide)[0], exact, rtol=1e-9 if abs(z) > 5 else 1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_is_seen_by_later_tokens_of_its_channel_only(form):
    x, _ = draw("s4d", np.random.default_rng(0), 8, ())
    x["u"][3, 1] = np.nan
    seen = np.isnan(form(**x).o)
    assert seen[3:, 1].all() and seen.sum() == 5
