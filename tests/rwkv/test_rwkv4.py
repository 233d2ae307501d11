"""RWKV-4: what the mean is, that both forms say the same, and its derivative."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import Rwkv4State
from refattn.testing import check
from refattn.testing.contract import Contract
from tests.mistakes.rwkv import failures_of_what_is_right

quickly = settings(max_examples=25, deadline=None, derandomize=True)
FORMS = (refattn.rwkv4, refattn.rwkv4_recurrent)


def problem(seed, T, batch=(2,), E=3):
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, *batch, T, E))
    w, u = rng.exponential(0.5, E), rng.normal(size=E)
    num, m = rng.normal(size=(2, *batch, E))
    return (w, u, k, v), Rwkv4State(num, rng.uniform(0.5, 2, (*batch, E)), m)


def single(state):
    return Rwkv4State(*(x.astype(np.float32) for x in state))


def same(a, b):
    for x, y in zip((a.o, *a.state), (b.o, *b.state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 5, 63])
def test_the_mean_written_out(form, T):
    (w, u, k, v), state = problem(0, T, batch=(), E=2)
    o, last = form(w, u, k, v, initial_state=state)
    for e in range(2):
        for i in range(T):
            p = [np.exp(k[j, e] - (i - 1 - j) * w[e]) for j in range(i)] + [np.exp(u[e] + k[i, e])]
            first = np.exp(state.max[e] - i * w[e])
            num = first * state.num[e] + sum(p * v[: i + 1, e])
            np.testing.assert_allclose(o[i, e], num / (first * state.den[e] + sum(p)), rtol=1e-10)
    p = np.exp(k - np.arange(T - 1, -1, -1)[:, None] * w)
    whole = np.exp(state.max - T * w) * state.num + (p * v).sum(axis=0)
    np.testing.assert_allclose(last.num * np.exp(last.max), whole, rtol=1e-9, atol=1e-9)


@quickly
@given(seed=st.integers(0, 99), T=st.integers(0, 9), at=st.integers(0, 9), given_state=st.booleans())
def test_forms_agree_and_resume(seed, T, at, given_state):
    (w, u, k, v), state = problem(seed, T)
    state, at = state if given_state else None, min(at, T)
    whole = refattn.rwkv4(w, u, k, v, initial_state=state)
    for form in FORMS:
        same(form(w, u, k, v, initial_state=state), whole)
        first = form(w, u, k[:, :at], v[:, :at], initial_state=state)
        rest = form(w, u, k[:, at:], v[:, at:], initial_state=first.state)
        same(rest._replace(o=np.concatenate([first.o, rest.o], axis=-2)), whole)


@pytest.mark.parametrize("form", FORMS)
def test_extreme_exponents_in_float32(form):
    f = np.float32
    zero, v = np.zeros(1, f), np.array([[1.0], [3.0], [8.0]], f)
    for key in (-80, 0, 80):
        np.testing.assert_allclose(form(zero, zero, np.full((3, 1), key, f), v).o[:, 0], [1, 2, 4], rtol=1e-6)
    np.testing.assert_allclose(form(zero, zero, np.array([[80], [-80], [-80]], f), v).o[:, 0], [1, 1, 1])
    np.testing.assert_allclose(form(zero, zero, np.array([[-80], [80], [-80]], f), v).o[:, 0], [1, 3, 3])
    sums = form(zero + 1e4, zero, np.zeros((3, 1), f), v)  # forgets all but the last
    np.testing.assert_allclose(sums.o[:, 0], [1, 2, 5.5])
    assert sums.state.den == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_infinite_rate_forgets_nan(form):
    inf, zero = np.full(1, np.inf), np.zeros(1)
    k, v = np.zeros((4, 1)), np.array([[1.0], [np.nan], [3.0], [5.0]])
    o, state = form(inf, zero, k, v)
    assert np.isnan(o[1:3]).all() and o[0, 0] == 1 and o[3, 0] == 4 and state.num == 5
    k[1], v[1] = np.nan, 2.0
    assert form(inf, zero, k, v).o[3, 0] == 4


@pytest.mark.parametrize("form", FORMS)
def test_nothing_seen_is_zero(form):
    zero = np.zeros(1)
    o, state = form(zero, zero, np.array([[-np.inf], [0.0]]), np.array([[7.0], [3.0]]))
    assert o[:, 0].tolist() == [0, 3] and state == (3, 1, 0)


def pulled(x, do, dstate):
    o, last = refattn.rwkv4(*x[:4], initial_state=Rwkv4State(*x[4:]))
    return sum((a * b).sum() for a, b in zip((do, *dstate), (o, *last), strict=True))


@pytest.mark.parametrize("T", [0, 1, 6])
@pytest.mark.parametrize("batch", [(), (2, 1)])
def test_gradients_by_central_differences(T, batch):
    args, state = problem(3, T, batch)
    x, rng = [*args, *state], np.random.default_rng(1)
    do, dstate = rng.normal(size=args[3].shape), Rwkv4State(*rng.normal(size=(3, *state.num.shape)))
    g = refattn.rwkv4_vjp(do, *args, initial_state=state, dstate=dstate)
    for n, (dx, a) in enumerate(zip((*g[:4], *g.dinitial_state), x, strict=True)):
        assert dx.shape == a.shape and dx.dtype == a.dtype
        step = rng.normal(size=a.shape)
        ahead, behind = ([*x[:n], a + h * step, *x[n + 1 :]] for h in (1e-6, -1e-6))
        moved = (pulled(ahead, do, dstate) - pulled(behind, do, dstate)) / 2e-6
        np.testing.assert_allclose((dx * step).sum(), moved, rtol=1e-6, atol=1e-7, err_msg=str(n))


def test_gradients_of_stretches_chain():
    (w, u, k, v), state = problem(5, 8)
    do, at = np.random.default_rng(2).normal(size=v.shape), 3
    whole = refattn.rwkv4_vjp(do, w, u, k, v, initial_state=state)
    middle = refattn.rwkv4(w, u, k[:, :at], v[:, :at], initial_state=state).state
    late = refattn.rwkv4_vjp(do[:, at:], w, u, k[:, at:], v[:, at:], initial_state=middle)
    pull = late.dinitial_state
    np.testing.assert_allclose(pull.max, middle.num * pull.num + middle.den * pull.den, rtol=1e-9)
    early = refattn.rwkv4_vjp(do[:, :at], w, u, k[:, :at], v[:, :at], initial_state=state, dstate=pull)
    np.testing.assert_allclose(np.concatenate([early.dk, late.dk], axis=1), whole.dk, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(early.dw + late.dw, whole.dw, rtol=1e-9)
    np.testing.assert_allclose(early.dinitial_state.num, whole.dinitial_state.num, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("T", [1, 6])
def test_the_output_is_linear_in_the_values(T):
    (w, u, k, v), state = problem(6, T)
    o = refattn.rwkv4(w, u, k, v, initial_state=state).o
    g = refattn.rwkv4_vjp(np.cos(o), w, u, k, v, initial_state=state)
    right = (g.dv * v).sum() + (g.dinitial_state.num * state.num).sum()
    np.testing.assert_allclose(right, (np.cos(o) * o).sum(), rtol=1e-11)


def test_only_num_and_den_times_e_to_the_max_matter():
    (w, u, k, v), state = problem(7, 5)
    moved = Rwkv4State(state.num / np.exp(3), state.den / np.exp(3), state.max + 3)
    for form in FORMS:
        np.testing.assert_allclose(
            form(w, u, k, v, initial_state=moved).o, form(w, u, k, v, initial_state=state).o, rtol=1e-12
        )


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_leave_no_trace(form):
    (w, u, k, v), state = problem(8, 7)
    want = form(w, u, k, v, initial_state=state).o
    k[:, 4:], v[:, 5:] = np.nan, np.inf
    np.testing.assert_array_equal(form(w, u, k, v, initial_state=state).o[:, :4], want[:, :4])


@pytest.mark.parametrize("rate", [0.0, 1e4, np.inf])
def test_gradients_of_rates_at_their_ends_are_finite(rate):
    (w, u, k, v), state = problem(9, 6)
    dstate = Rwkv4State(*np.random.default_rng(3).normal(size=(3, *state.num.shape)))
    x = [y.astype(np.float32) for y in (np.full_like(w, rate), u, 80 * k, v)]
    g = refattn.rwkv4_vjp(x[3], *x, initial_state=single(state), dstate=single(dstate))
    assert all(np.isfinite(y).all() for y in (*g[:4], *g.dinitial_state))
    assert (g.dw == 0).all() == (rate > 0)  # e^-w is 0 in float32 for the others


@pytest.mark.parametrize("form", FORMS)
def test_each_form_passes_the_kit(form):
    """The kit has a recurrence of its own, in wide floats."""
    contract = Contract(op="rwkv4").with_options_of(form, refattn.testing.kit.operation("rwkv4").options)

    def kernel(*arrays, initial_state=None):
        return form(*arrays, initial_state=None if initial_state is None else Rwkv4State(*initial_state))

    report = check(kernel, contract, "quick")
    assert report.ok, str(report)
    assert report.count("PASS") > 30


@pytest.mark.parametrize("operation", ["rwkv4", "rwkv4_recurrent", "rwkv4_vjp"])
def test_what_the_mutants_are_made_from_is_right(operation):
    assert failures_of_what_is_right(operation) == []
