"""RWKV-5, -6 and -7: each form is the recurrence, whatever the lengths, cuts and chunks; and the derivatives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn.testing import check
from refattn.testing.contract import Contract
from tests.mistakes.rwkv import failures_of_what_is_right

quickly = settings(max_examples=20, deadline=None, derandomize=True)
NAMES = ("rwkv5", "rwkv6", "rwkv7")
SUFFIXES = ("", "_recurrent", "_chunked")
every = pytest.mark.parametrize("name", NAMES)
ARGUMENTS = {
    "rwkv5": ("r", "k", "v", "log_decay", "u"),
    "rwkv6": ("r", "k", "v", "log_decay", "u"),
    "rwkv7": ("r", "k", "v", "log_decay", "kappa_hat", "a"),
}


def form(name, suffix=""):
    return getattr(refattn, name + suffix)


def problem(name, seed, T, batch=(), H=2, D=3, Dv=2, forget=0.15):
    """Return the arguments by name, and a state; some gates are -inf and some 0."""
    rng = np.random.default_rng(seed)
    heads = () if H is None else (H,)
    shape = (*batch, *heads, T, D)
    x = {"r": rng.normal(size=shape), "k": rng.normal(size=shape), "v": rng.normal(size=(*shape[:-1], Dv))}
    gates = (H or 1, D) if name == "rwkv5" else shape
    g = -rng.exponential(size=gates) * (rng.random(gates) < 0.8)
    x["log_decay"] = np.where(rng.random(gates) < forget, -np.inf, g)
    if name == "rwkv7":
        kappa = rng.normal(size=shape)
        x |= {"kappa_hat": kappa / np.sqrt((kappa**2).sum(-1, keepdims=True)), "a": rng.uniform(size=shape)}
    else:
        x["u"] = rng.normal(size=(H or 1, D))
    return x, rng.normal(size=(*batch, *heads, D, Dv))


def cut(name, x, t):
    still = ("u", "log_decay") if name == "rwkv5" else ("u",)
    return {n: y if n in still else y[..., t, :] for n, y in x.items()}


def token_by_token(name, x, S, scale=1.0):
    """The recurrence written out for one head, in Python."""
    o = []
    for t in range(len(x["r"])):
        r, k, v = (x[n][t] for n in "rkv")
        w = np.exp(x["log_decay"][0] if name == "rwkv5" else x["log_decay"][t])
        if name == "rwkv7":
            kappa, a = x["kappa_hat"][t], x["a"][t]
            S = (np.diag(w) - np.outer(a * kappa, kappa)) @ S + np.outer(k, v)
            o.append(scale * S.T @ r)
        else:
            o.append(scale * (S + np.diag(x["u"][0]) @ np.outer(k, v)).T @ r)
            S = np.diag(w) @ S + np.outer(k, v)
    return np.array(o), S


def same(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


@every
@pytest.mark.parametrize("T", [1, 7, 63])
def test_one_head_is_the_recurrence(name, T):
    x, state = problem(name, 0, T, H=None)
    o, last = token_by_token(name, x, state, 0.7)
    for suffix in SUFFIXES:
        found = form(name, suffix)(**x, scale=0.7, initial_state=state)
        same(found.o, o)
        same(found.state, last)


@every
@quickly
@given(
    seed=st.integers(0, 99),
    T=st.integers(0, 9),
    chunk=st.integers(1, 10),
    at=st.integers(0, 9),
    batch=st.sampled_from([(), (2,), (2, 1)]),
)
def test_forms_agree_and_resume(name, seed, T, chunk, at, batch):
    x, state = problem(name, seed, T, batch)
    state, at = state if seed % 2 else None, min(at, T)
    whole = form(name)(**x, initial_state=state)
    for suffix in SUFFIXES:
        options = {"chunk": chunk} if suffix == "_chunked" else {}
        found = form(name, suffix)(**x, initial_state=state, **options)
        same(found.o, whole.o)
        same(found.state, whole.state)
        first = form(name, suffix)(**cut(name, x, slice(0, at)), initial_state=state, **options)
        rest = form(name, suffix)(**cut(name, x, slice(at, T)), initial_state=first.state, **options)
        same(np.concatenate([first.o, rest.o], axis=-2), whole.o)
        same(rest.state, whole.state)


@every
@quickly
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), chunk=st.integers(1, 5))
def test_packed_sequences_are_a_loop(name, seed, lengths, chunk):
    borders = np.cumsum([0, *lengths])
    x, _ = problem(name, seed, borders[-1])
    rng = np.random.default_rng(seed)
    states, dstate = rng.normal(size=(2, len(lengths), 2, 3, 2))
    do = rng.normal(size=x["v"].shape)
    tokens = [slice(a, b) for a, b in itertools.pairwise(borders)]
    for suffix in SUFFIXES:
        options = {"chunk": chunk} if suffix == "_chunked" else {}
        packed = form(name, suffix)(**x, initial_state=states, cu_seqlens=borders, **options)
        for n, t in enumerate(tokens):
            alone = form(name, suffix)(**cut(name, x, t), initial_state=states[n], **options)
            same(packed.o[:, t], alone.o)
            same(packed.state[n], alone.state)
    g = form(name, "_vjp")(do, **x, initial_state=states, cu_seqlens=borders, dstate=dstate)
    alone = [
        form(name, "_vjp")(do[:, t], **cut(name, x, t), initial_state=states[n], dstate=dstate[n])
        for n, t in enumerate(tokens)
    ]
    still = ("du", "dlog_decay") if name == "rwkv5" else ("du",)
    for field in g._fields[:-1]:
        several = [getattr(one, field) for one in alone]
        same(getattr(g, field), sum(several) if field in still else np.concatenate(several, axis=-2))
    same(g.dinitial_state, np.stack([one.dinitial_state for one in alone]))


def test_rwkv6_with_constant_gates_is_rwkv5():
    x, state = problem("rwkv5", 1, 9, (2,))
    wide = x | {"log_decay": np.broadcast_to(x["log_decay"][:, None], x["r"].shape)}
    do = np.random.default_rng(0).normal(size=x["v"].shape)
    for suffix in SUFFIXES:
        five, six = form("rwkv5", suffix)(**x, initial_state=state), form("rwkv6", suffix)(**wide, initial_state=state)
        same(five.o, six.o)
        same(five.state, six.state)
    same(refattn.rwkv5_vjp(do, **x).dlog_decay, refattn.rwkv6_vjp(do, **wide).dlog_decay.sum(axis=(0, 2)))


def test_rwkv7_that_erases_nothing_is_gated_linear_attention():
    x, state = problem("rwkv7", 2, 9, (2,))
    want = refattn.gated_linear_attention(x["r"], x["k"], x["v"], x["log_decay"], scale=1.0, initial_state=state)
    for suffix in SUFFIXES:
        found = form("rwkv7", suffix)(**x | {"a": 0 * x["a"]}, initial_state=state)
        same(found.o, want.o)
        same(found.state, want.state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rwkv7_that_replaces_what_it_writes_is_the_delta_rule(suffix):
    """A unit key, removed and written beta times. With decays it is not KDA, which decays before it erases."""
    x, state = problem("rwkv7", 3, 9, forget=0)
    beta, unit = np.random.default_rng(0).uniform(size=x["r"].shape[:-1]), x["kappa_hat"]
    g = x["log_decay"]
    x |= {"log_decay": 0 * g, "a": np.broadcast_to(beta[..., None], g.shape), "k": beta[..., None] * unit}
    found = form("rwkv7", suffix)(**x, initial_state=state)
    want = refattn.delta_rule(x["r"], unit, x["v"], beta, scale=1.0, initial_state=state)
    same(found.o, want.o)
    same(found.state, want.state)
    g = np.minimum(g, -0.5)
    kda = refattn.kda(x["r"], unit, x["v"], g, beta, scale=1.0, initial_state=state)
    assert abs(form("rwkv7", suffix)(**x | {"log_decay": g}, initial_state=state).o - kda.o).max() > 0.01


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rwkv6_forgets_nan(suffix):
    x, state = problem("rwkv6", 4, 8, H=None, forget=0)
    clean = form("rwkv6", suffix)(**x, initial_state=state)
    x["log_decay"][5] = -np.inf
    want = form("rwkv6", suffix)(**x, initial_state=state)
    x["v"][2], x["k"][3], state[1] = np.nan, np.nan, np.nan
    found = form("rwkv6", suffix)(**x, initial_state=state)
    assert np.isnan(found.o[2:6]).all()
    same(found.o[6:], want.o[6:])  # the gate of token 5 acts after token 5 has read
    same(found.state, want.state)
    assert not np.allclose(clean.state, want.state)
    g = refattn.rwkv6_vjp(np.where(np.arange(8) > 5, 1.0, 0.0)[:, None] * x["v"], **x, initial_state=state)
    assert np.isfinite(g.dk[6:]).all() and (g.dlog_decay[5] == 0).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rwkv7_erases_from_what_it_is_about_to_forget(suffix):
    x, state = problem("rwkv7", 5, 6, H=None, forget=0)
    x["log_decay"][3] = -np.inf
    x["v"][1, 0] = np.nan
    o, last = form("rwkv7", suffix)(**x, initial_state=state)
    assert np.isnan(o[1:, 0]).all() and np.isnan(last[:, 0]).all()
    assert np.isfinite(o[:, 1]).all() and np.isfinite(last[:, 1]).all() and np.isfinite(o[0]).all()


@every
@pytest.mark.parametrize("gate", [0.0, -20.0, -1e4])
def test_gates_at_their_ends_in_float32(name, gate):
    x, _ = problem(name, 6, 130, H=None)
    x = {n: y.astype(np.float32) for n, y in x.items()}
    x |= {"log_decay": np.full_like(x["log_decay"], gate)}
    wide = {n: y.astype(np.float64) for n, y in x.items()}
    want = form(name, "_recurrent")(**wide)
    size = abs(want.o).max()
    for suffix in SUFFIXES:
        found = form(name, suffix)(**x)
        assert found.o.dtype == found.state.dtype == np.float32
        assert abs(found.o - want.o).max() < 1e-4 * size


@every
@pytest.mark.parametrize(("T", "batch", "H"), [(0, (), 2), (1, (2,), 2), (6, (), None), (5, (2, 1), 2)])
def test_gradients_by_central_differences(name, T, batch, H):
    x, state = problem(name, 7, T, batch, H, forget=0.2)
    x["log_decay"] = np.where(x["log_decay"] > -0.01, -0.3, x["log_decay"])
    assert np.isneginf(x["log_decay"]).any() or T < 2
    rng = np.random.default_rng(8)
    do, dstate = rng.normal(size=x["v"].shape), rng.normal(size=state.shape)
    g = form(name, "_vjp")(do, **x, scale=0.8, initial_state=state, dstate=dstate)
    x["initial_state"] = state

    def pulled(**x):
        o, last = form(name)(**x, scale=0.8)
        return (do * o).sum() + (dstate * last).sum()

    for n, y in x.items():
        dx, step = getattr(g, f"d{n}"), np.where(np.isfinite(y), rng.normal(size=y.shape), 0)
        assert dx.shape == y.shape and dx.dtype == y.dtype
        moved = (pulled(**x | {n: y + 1e-6 * step}) - pulled(**x | {n: y - 1e-6 * step})) / 2e-6
        np.testing.assert_allclose((dx * step).sum(), moved, rtol=1e-6, atol=1e-6, err_msg=n)


@pytest.mark.parametrize("name", ["rwkv5", "rwkv6"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_gates_that_always_forget(name, suffix):
    """Rows whose gates are all -inf hold what the token before wrote and no more, be the rest NaN."""
    x, state = problem(name, 12, 7, H=None, forget=0)
    x["log_decay"][:] = -np.inf
    x["v"][2], x["k"][2], state[:] = np.nan, np.nan, np.nan
    o, last = form(name, suffix)(**x, initial_state=state)
    assert np.isnan(o[[0, 2, 3]]).all()
    for t in (1, 4, 5, 6):
        seen = np.outer(x["k"][t - 1], x["v"][t - 1]) + np.outer(x["u"][0] * x["k"][t], x["v"][t])
        same(o[t], seen.T @ x["r"][t])
    same(last, np.outer(x["k"][6], x["v"][6]))
    g = form(name, "_vjp")(x["r"] @ np.ones((3, 2)), **x, initial_state=state)
    assert (g.dlog_decay == 0).all() and np.isfinite(g.dk[[0, 4, 5, 6]]).all()
    same(g.dinitial_state, np.outer(x["r"][0], x["r"][0] @ np.ones((3, 2))))  # token 0 alone has read it


@every
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_later_tokens_leave_no_trace(name, suffix):
    x, state = problem(name, 10, 9)
    options = {"chunk": 4} if suffix == "_chunked" else {}
    want = form(name, suffix)(**x, initial_state=state, **options).o
    for n in set(x) - {"u"} - ({"log_decay"} if name == "rwkv5" else set()):
        x[n] = x[n].copy()
        x[n][..., 6:, :] = np.nan
    np.testing.assert_array_equal(
        form(name, suffix)(**x, initial_state=state, **options).o[..., :6, :], want[..., :6, :]
    )


@every
def test_it_is_linear_in_the_values_and_the_state(name):
    """The dot products of (v, initial_state) and of (o, state) with their gradients are the same number."""
    x, state = problem(name, 11, 9, (2,), forget=0.3)
    o, last = form(name)(**x, scale=0.6, initial_state=state)
    do, dstate = np.cos(o), np.sin(last)
    g = form(name, "_vjp")(do, **x, scale=0.6, initial_state=state, dstate=dstate)
    left = (do * o).sum() + (dstate * last).sum()
    np.testing.assert_allclose((g.dv * x["v"]).sum() + (g.dinitial_state * state).sum(), left, rtol=1e-11)


@every
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtypes(name, dtype):
    x, _ = problem(name, 13, 70)
    x = {n: y.astype(dtype) for n, y in x.items()}
    want = form(name)(**{n: y.astype(np.float64) for n, y in x.items()})
    x["log_decay"] = x["log_decay"].astype(np.float32)
    for suffix in SUFFIXES:
        o, state = form(name, suffix)(**x)
        assert o.dtype == dtype and state.dtype == np.float32
        np.testing.assert_allclose(state, want.state, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(o, want.o, atol=1e-3, rtol=2 * np.finfo(dtype).eps)
    g = form(name, "_vjp")(x["v"], **x)
    assert g.dlog_decay.dtype == np.float32 and g.dv.dtype == g.dr.dtype == dtype


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_form_passes_the_kit(name, suffix):
    """The kit has a recurrence of its own, in wide floats."""
    call = form(name, suffix)
    contract = Contract(op=name).with_options_of(call, refattn.testing.kit.operation(name).options)

    def kernel(*arrays, cu_seqlens=None, **options):
        if cu_seqlens is None:
            return call(*arrays, **options)
        o, state = call(*(x[0] if x.ndim > 2 else x for x in arrays), cu_seqlens=cu_seqlens, **options)
        return o[None], state

    report = check(kernel, contract, "quick")
    assert report.ok, str(report)
    assert report.count("PASS") > 40


@pytest.mark.parametrize("operation", [name + suffix for name in NAMES for suffix in (*SUFFIXES, "_vjp")])
def test_what_the_mutants_are_made_from_is_right(operation):
    assert failures_of_what_is_right(operation) == []


@every
def test_a_gradient_not_asked_for_is_none(name):
    x, _ = problem(name, 9, 3)
    g = form(name, "_vjp")(np.ones_like(x["v"]), **x)
    assert g.dinitial_state is None and g._fields == (*(f"d{n}" for n in ARGUMENTS[name]), "dinitial_state")
