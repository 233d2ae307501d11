"""The delta rules: what a write does, and that all forms, splits and packings are one function."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn.testing.recurrence.oracle import delta_scan
from tests.mistakes.delta import failures_of_what_is_right

NAMES = ("delta_rule", "gated_delta_rule", "kda")
FORMS = ("", "_recurrent", "_chunked")
quickly = settings(deadline=None, derandomize=True, max_examples=30)


def call(name, x, form="", **options):
    """Call an operation with those of the arrays that it takes."""
    unused = {"delta_rule": ("log_decay", "log_decays"), "gated_delta_rule": ("log_decays",), "kda": ("log_decay",)}
    given = {"log_decay" if n == "log_decays" else n: y for n, y in x.items() if n not in unused[name]}
    return getattr(refattn, name + form)(*([given.pop("do")] if "do" in given else []), **given, **options)


def draw(seed, T=9, D=3, Dv=2, batch=(), heads=(2, 2, 2), forget=0.0, longest=1.2):
    """Return the arrays of a problem; `log_decay` has one number a token, `log_decays` one per key entry."""
    rng = np.random.default_rng(seed)
    H, Hk, Hv = heads
    x = {"q": rng.normal(size=(*batch, H, T, D)), "k": rng.normal(size=(*batch, Hk, T, D))}
    x["k"] *= longest * rng.uniform(0.5, 1, (*batch, Hk, T, 1)) / np.linalg.norm(x["k"], axis=-1, keepdims=True)
    x |= {"v": rng.normal(size=(*batch, Hv, T, Dv)), "beta": rng.uniform(0, 1, (*batch, Hv, T))}
    for gate, shape in (("log_decay", (*batch, Hv, T)), ("log_decays", (*batch, Hv, T, D))):
        x[gate] = np.where(rng.random(shape) < forget, -np.inf, -rng.exponential(0.5, shape))
    return x | {"initial_state": rng.normal(size=(*batch, Hv, D, Dv))}


def tokens(x, part):
    """Return a part of the tokens, with no state."""
    axes = {"beta": -1, "log_decay": -1}
    cut = {n: y[(..., part, *(slice(None),) * (-axes.get(n, -2) - 1))] for n, y in x.items()}
    return {n: y for n, y in cut.items() if n not in ("initial_state", "dstate")}


def close(got, want, tolerance=1e-10):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


problems = st.builds(
    draw,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(0, 12),
    D=st.integers(1, 4),
    batch=st.sampled_from([(), (2,), (1, 2)]),
    heads=st.sampled_from([(2, 2, 2), (4, 2, 2), (2, 1, 4), (2, 1, 2), (1, 1, 1)]),
    forget=st.sampled_from([0, 0.3]),
)


@pytest.mark.parametrize("name", NAMES)
@quickly
@given(x=problems, chunk=st.integers(1, 14), scale=st.sampled_from([None, 0.3]))
def test_every_form_is_the_definition(name, x, chunk, scale):
    batch, H, Hv = math.prod(x["q"].shape[:-3]), x["q"].shape[-3], x["v"].shape[-3]
    g = {"delta_rule": 0 * x["beta"][..., None], "gated_delta_rule": x["log_decay"][..., None], "kda": x["log_decays"]}
    flat = {n: y.reshape(batch, *y.shape[-3 + (n == "beta") :]) for n, y in {**x, "log_decay": g[name]}.items()}
    size = x["q"].shape[-1] ** -0.5 if scale is None else scale
    q, k = (np.repeat(flat[n], heads // flat[n].shape[1], axis=1) for n, heads in (("q", max(H, Hv)), ("k", Hv)))
    a = np.exp(flat["log_decay"])[..., None]
    o, state = delta_scan(size * q, k, flat["v"], a, flat["beta"], flat["initial_state"])
    for form, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})):
        got = call(name, x, form, scale=scale, **options)
        close((got.o.reshape(o.shape), got.state.reshape(state.shape)), (o, state))


@pytest.mark.parametrize("name", NAMES)
@quickly
@given(x=problems, at=st.integers(0, 12), chunk=st.integers(1, 5))
def test_it_can_be_stopped_and_resumed_anywhere(name, x, at, chunk):
    whole = call(name, x)
    head, tail = tokens(x, slice(0, at)), tokens(x, slice(at, None))
    for form, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})):
        first = call(name, head | {"initial_state": x["initial_state"]}, form, **options)
        then = call(name, tail | {"initial_state": first.state}, form, **options)
        close((np.concatenate([first.o, then.o], axis=-2), then.state), whole)


@pytest.mark.parametrize("form", [*FORMS, "_vjp"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_is_a_loop_over_sequences(name, form):
    x = draw(1, T=17, heads=(2, 1, 4))
    borders = np.array([0, 3, 3, 11, 17])
    rng = np.random.default_rng(2)
    x["initial_state"] = rng.normal(size=(4, 4, 3, 2))
    if form == "_vjp":
        x |= {"do": rng.normal(size=(4, 17, 2)), "dstate": rng.normal(size=(4, 4, 3, 2))}
    options = {"chunk": 4} if form == "_chunked" else {}
    packed = call(name, x, form, cu_seqlens=borders, **options)
    for n, part in enumerate(map(slice, borders[:-1], borders[1:])):
        states = {state: x[state][n] for state in ("initial_state", "dstate") if state in x}
        alone = call(name, tokens(x, part) | states, form, **options)
        for field, y in alone._asdict().items():
            got = getattr(packed, field)
            if y is None:
                assert got is None
            elif field in ("state", "dinitial_state"):
                np.testing.assert_array_equal(got[n], y)
            else:
                axis = -1 if field == "dbeta" or (field == "dlog_decay" and name != "kda") else -2
                np.testing.assert_array_equal(np.take(got, range(part.start, part.stop), axis=axis), y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_key_recalls_its_last_value(name, form):
    """Keys at right angles, beta 1, no decay: reading a key gives what was last written to it, up to rounding."""
    rng = np.random.default_rng(0)
    keys = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    written = rng.integers(0, 8, 40)
    values = rng.normal(size=(40, 3))
    x = {"q": keys[written], "k": keys[written], "v": values, "beta": np.ones(40)}
    x |= {"log_decay": np.zeros(40), "log_decays": np.zeros((40, 8))}
    o, state = call(name, x, form, scale=1.0)
    np.testing.assert_allclose(o, values, rtol=0, atol=1e-14)
    last = np.stack([values[written == key][-1] for key in range(8)])
    np.testing.assert_allclose(keys @ state, last, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_beta_0_writes_nothing(name, form):
    x = draw(3) | {"beta": np.zeros((2, 9)), "log_decay": np.zeros((2, 9)), "log_decays": np.zeros((2, 9, 3))}
    o, state = call(name, x, form)
    np.testing.assert_array_equal(state, x["initial_state"])
    np.testing.assert_allclose(o, x["q"] @ state / np.sqrt(3), rtol=1e-14)


@quickly
@given(x=problems, form=st.sampled_from([*FORMS, "_vjp"]))
def test_one_is_a_case_of_the_other(x, form):
    if form == "_vjp":
        o, state = call("kda", x)
        x = {"do": np.cos(o), "dstate": np.sin(state), **x}
    same = x | {"log_decays": np.repeat(x["log_decay"][..., None], x["q"].shape[-1], axis=-1)}
    gated, kda = call("gated_delta_rule", same, form), call("kda", same, form)
    none = call("gated_delta_rule", x | {"log_decay": 0 * x["beta"]}, form)
    if form == "_vjp":
        close([kda.dlog_decay.sum(axis=-1)], [gated.dlog_decay])
        gated, kda, none = (g._replace(dlog_decay=g.dq) for g in (gated, kda, none))
    close(kda, gated)
    ungated = call("delta_rule", x, form)
    close(none, ungated._replace(dlog_decay=ungated.dq) if form == "_vjp" else ungated)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES[1:])
def test_what_is_forgotten_leaves_no_trace(name, poison, form):
    """At token 5 a gate is -inf: whatever came before, later results and gradients are those of a fresh start."""
    x = draw(4, T=11)
    x["log_decay"][..., 5], x["log_decays"][..., 5, :] = -np.inf, -np.inf
    late = slice(5, None)
    fresh = tokens(x, late)
    want = call(name, fresh, form)
    for array in ("q", "k", "v"):
        x[array][..., :5, :] = poison
    x["beta"][..., :5], x["initial_state"][...] = poison, poison
    for chunk in (1, 3, 5, 64) if form == "_chunked" else (None,):
        got = call(name, x, form, **({} if chunk is None else {"chunk": chunk}))
        close((got.o[..., late, :], got.state), want)
    do, dstate = np.cos(want.o), np.sin(want.state)
    do_ = np.concatenate([np.full((2, 5, 2), poison), do], axis=-2)
    got = call(name, {"do": do_, "dstate": dstate, **x}, "_vjp")
    alone = call(name, {"do": do, "dstate": dstate, **fresh}, "_vjp")
    for field in ("dq", "dk", "dv"):
        np.testing.assert_allclose(getattr(got, field)[..., late, :], getattr(alone, field), rtol=1e-12)
    np.testing.assert_allclose(got.dbeta[..., late], alone.dbeta, rtol=1e-12)
    at = (..., 5, slice(None)) if name == "kda" else (..., 5)
    assert (got.dlog_decay[at] == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_gate_of_nan_is_forgotten_too(name, form):
    x = draw(6, T=11)
    x["log_decay"][..., 2], x["log_decays"][..., 2, :] = np.nan, np.nan
    x["log_decay"][..., 5], x["log_decays"][..., 5, :] = -np.inf, -np.inf
    want = call(name, tokens(x, slice(5, None)), form)
    got = call(name, x, form)
    close((got.o[..., 5:, :], got.state), want)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_forgotten_leaves_no_trace_in_kda(form):
    """Row 0 of the state is NaN and forgotten at once; row 1 stays, so that tokens still see each other."""
    x = draw(5, T=8) | {"initial_state": np.ones((2, 3, 2))}
    x["log_decays"][..., 0, 0] = x["log_decays"][..., 4, 0] = -np.inf
    want = call("kda", x, form)
    x["initial_state"][:, 0] = np.nan
    for got, clean in zip(call("kda", x, form), want, strict=True):
        np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_nan_goes_on_by_way_of_other_rows(chunk):
    """Row 0 is NaN until token 2 forgets it, but token 0 has read it and written to row 1: NaN is there to stay."""
    x = draw(6, T=6)
    x["initial_state"][:, 0] = np.nan
    x["log_decays"][..., 2, 0] = -np.inf
    for form, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})):
        o, state = call("kda", x, form, **options)
        assert np.isnan(o).all() and np.isnan(state).all()


@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_nan_goes_on_by_way_of_other_tokens(chunk):
    """Row 0 is forgotten at token 1 and row 1 at token 2, so token 0 reaches token 2 only by way of token 1."""
    x = draw(6, T=3, D=2) | {"initial_state": np.zeros((2, 2, 2)), "log_decays": np.zeros((2, 3, 2))}
    x["log_decays"][:, 1, 0] = x["log_decays"][:, 2, 1] = -np.inf
    x["v"][:, 0] = np.nan
    for form, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})):
        o, state = call("kda", x, form, **options)
        assert np.isnan(o).all() and np.isnan(state).all(), form


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_gate_that_forgets_has_no_gradient(name):
    x = draw(4, T=11)
    x["log_decay"][..., 5], x["log_decays"][..., 5, 1] = -np.inf, -np.inf
    g = call(name, {"do": np.full((2, 11, 2), np.nan), **x}, "_vjp").dlog_decay
    gate = g[..., 5, 1] if name == "kda" else g[..., 5]
    assert (gate == 0).all() and np.isnan(g).sum() == g.size - gate.size


@pytest.mark.parametrize("name", NAMES)
def test_later_tokens_leave_no_trace(name):
    x = draw(7, T=10)
    early = slice(0, 6)
    want = call(name, tokens(x, early))
    for array in ("q", "k", "v"):
        x[array][..., 6:, :] = np.nan
    x["beta"][..., 6:], x["initial_state"] = np.nan, 0 * x["initial_state"]
    for form, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": 4}), ("_chunked", {"chunk": 64})):
        close([call(name, x, form, **options).o[..., early, :]], [want.o])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_strong_decays_over_many_tokens(name, form):
    """-20 a token over 130 tokens: e^-2600 is 0, and no ratio of such numbers is made."""
    x = draw(8, T=130) | {"log_decay": np.full((2, 130), -20.0), "log_decays": np.full((2, 130, 3), -20.0)}
    o, state = call(name, x, form)
    assert np.isfinite(o).all() and np.isfinite(state).all()
    if name != "delta_rule":
        want = x["k"][..., -1, :, None] * (x["beta"][..., -1, None] * x["v"][..., -1, :])[..., None, :]
        np.testing.assert_allclose(state, want, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_long_keys_with_small_beta(name):
    """Keys of length 1000 with beta 1e-6 write as keys of length 1 with beta 1 do, after a change of units."""
    x = draw(9, T=70, longest=1.0) | {"initial_state": np.zeros((2, 3, 2))}
    far = {n: y.astype(np.float32) for n, y in (x | {"k": 1e3 * x["k"], "beta": 1e-6 * x["beta"]}).items()}
    want = call(name, x).o
    for form in FORMS:
        np.testing.assert_allclose(1e3 * call(name, far, form).o, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_taken_as_they_are(name):
    x = draw(10, longest=0.9) | {"initial_state": np.zeros((2, 3, 2))}
    unit = x | {"k": x["k"] / np.linalg.norm(x["k"], axis=-1, keepdims=True)}
    assert abs(call(name, x).o - call(name, unit).o).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtypes(name, dtype):
    x = {n: y.astype(dtype) for n, y in draw(11, T=70).items()}
    wide = {n: y.astype(np.float64) for n, y in x.items()}
    want = call(name, wide)
    for form in FORMS:
        o, state = call(name, x | {"beta": x["beta"].astype(np.float32)}, form)
        assert o.dtype == dtype and state.dtype == np.float32
        np.testing.assert_allclose(state, want.state, atol=1e-5)
        np.testing.assert_allclose(o, want.o, atol=1e-5, rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("form", [*FORMS, "_vjp"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_mutants_are_made_from_is_right(name, form):
    failed = failures_of_what_is_right(name, form)
    assert [problem for problem in failed if form != "_chunked" or "nan" not in problem] == []
