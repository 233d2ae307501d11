"""What the forms of each state space have in common: they are one function, and may be cut and packed anywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn.testing import check
from refattn.testing.contract import Contract
from tests.ssm.draws import FORMS, SCANS, TOKENS, draw, part, token_axes
from tests.test_gradients import check as check_gradient

QUICK = settings(deadline=None, derandomize=True, max_examples=20)
ALL = (*(f"{name}{form}" for name in SCANS for form in FORMS), "s4d", "s4d_recurrent", "causal_conv1d")
PACKED = tuple(name for name in ALL if "s4d" not in name)
BACKWARD = ("selective_scan_vjp", "ssd_vjp", "s4d_vjp", "causal_conv1d_vjp")
FORGETTING = (*(f"{name}{form}" for name in SCANS for form in FORMS),)


def same(got, want, atol=1e-12):
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if y is not None:
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=atol * max(1, abs(y).max(initial=0)))


@QUICK
@given(operation=st.sampled_from(SCANS), T=st.integers(0, 70), chunk=st.integers(1, 80), seed=st.integers(0, 99))
def test_parallel_recurrent_and_chunked_are_one_function(operation, T, chunk, seed):
    x, options = draw(operation, np.random.default_rng(seed), T)
    whole = getattr(refattn, operation)(**x, **options)
    same(getattr(refattn, f"{operation}_recurrent")(**x, **options), whole)
    same(getattr(refattn, f"{operation}_chunked")(**x, **options, chunk=chunk), whole)


@QUICK
@given(T=st.integers(0, 70), batch=st.sampled_from([(), (2,), (2, 1)]), seed=st.integers(0, 99))
def test_convolution_and_recurrence_are_one_function(T, batch, seed):
    x, _ = draw("s4d", np.random.default_rng(seed), T, batch)
    same(refattn.s4d_recurrent(**x), refattn.s4d(**x))


@QUICK
@given(operation=st.sampled_from(ALL), T=st.integers(0, 20), data=st.data())
def test_a_sequence_may_be_split_and_resumed(operation, T, data):
    x, options = draw(operation, np.random.default_rng(T), T)
    cut, call = data.draw(st.integers(0, T)), getattr(refattn, operation)
    first = call(**part(x, 0, cut), **options, initial_state=x["initial_state"])
    second = call(**part(x, cut, T), **options, initial_state=first.state)
    same((np.concatenate([first.o, second.o], axis=-2), second.state), call(**x, **options))


@QUICK
@given(operation=st.sampled_from(BACKWARD), T=st.integers(0, 20), data=st.data())
def test_gradients_pass_through_a_split(operation, T, data):
    rng = np.random.default_rng(T)
    x, options = draw(operation, rng, T)
    cut, axes = data.draw(st.integers(0, T)), token_axes(x)
    vjp, forward = (getattr(refattn, operation.removesuffix(suffix)) for suffix in ("", "_vjp"))
    last = rng.normal(size=x["initial_state"].shape)
    x["do"] = rng.normal(size=x.get("u", x.get("x")).shape)
    whole = vjp(**x, **options, dstate=last)
    ahead = {name: y for name, y in part(x, 0, cut).items() if name != "do"}
    middle = forward(**ahead, **options, initial_state=x["initial_state"]).state
    second = vjp(**part(x, cut, T), **options, initial_state=middle, dstate=last)
    first = vjp(**part(x, 0, cut), **options, initial_state=x["initial_state"], dstate=second.dinitial_state)
    for name, a, b, y in zip(whole._fields, first, second, whole, strict=True):
        if name == "dinitial_state":
            joined = a
        else:
            joined = np.concatenate([a, b], axes[name[1:]]) if name[1:] in axes else a + b
        same([joined], [y], 1e-11)


@QUICK
@given(operation=st.sampled_from((*PACKED, *(n for n in BACKWARD if "s4d" not in n))), data=st.data())
def test_packed_sequences_know_nothing_of_each_other(operation, data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    borders, rng = np.concatenate([[0], np.cumsum(lengths)]), np.random.default_rng(len(lengths))
    x, options = draw(operation, rng, borders[-1], (), len(lengths))
    if operation.endswith("_vjp"):
        x["do"] = rng.normal(size=x.get("u", x.get("x")).shape)
        options["dstate"] = rng.normal(size=x["initial_state"].shape)
    if operation.endswith("_chunked"):
        options["chunk"] = 4
    call = getattr(refattn, operation)
    got = call(**x, **options, cu_seqlens=borders)
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        own = options | ({"dstate": options["dstate"][n]} if "dstate" in options else {})
        want = call(**part(x, first, stop), **own, initial_state=x["initial_state"][n])
        for name in want._fields:
            axis = -2 if name == "o" else TOKENS.get(name[1:])
            if name in ("state", "dinitial_state"):
                same([getattr(got, name)[n]], [getattr(want, name)])
            elif axis is not None:
                at = (..., slice(first, stop), *[slice(None)] * (-axis - 1))
                same([getattr(got, name)[at]], [getattr(want, name)])


@pytest.mark.parametrize("operation", FORGETTING)
def test_what_is_forgotten_leaves_no_trace(operation):
    x, options = draw(operation, np.random.default_rng(1), 9)
    options.pop("dt_limit", None)
    x["A"][:] = -np.inf
    call, spoilt = getattr(refattn, operation), {name: y.copy() for name, y in x.items()}
    spoilt["initial_state"][...] = np.nan
    for name in ("u", "x", "B"):
        if name in x:
            spoilt[name][..., 3, :] = np.inf if name == "B" else np.nan
    raw = "delta" if "delta" in x else "dt"
    spoilt[raw][(..., 5, slice(None)) if raw == "delta" else (..., 5)] = np.nan
    got, want = call(**spoilt, **options), call(**x, **options)
    clean = [t for t in range(9) if t not in (3, 5)]
    np.testing.assert_array_equal(got.o[..., clean, :], want.o[..., clean, :])
    np.testing.assert_array_equal(got.state, want.state)
    assert np.isnan(got.o[..., [3, 5], :]).all()


@pytest.mark.parametrize("operation", ["selective_scan_vjp", "ssd_vjp"])
def test_what_is_forgotten_has_no_gradient(operation):
    x, options = draw(operation, np.random.default_rng(1), 9)
    x["A"][:], x["initial_state"][...] = -np.inf, np.nan
    x["do"] = np.ones_like(x["z"])
    own = "u" if "u" in x else "x"
    spoilt = {name: y.copy() for name, y in x.items()}
    spoilt["B"][..., 3, :] = np.nan
    got, want = (getattr(refattn, operation)(**y, **options) for y in (spoilt, x))
    assert (got.dA == 0).all() and (got.dinitial_state == 0).all()
    clean = [t for t in range(9) if t != 3]
    for name in (f"d{own}", "dB", "dC"):
        np.testing.assert_array_equal(getattr(got, name)[..., clean, :], getattr(want, name)[..., clean, :])
        assert np.isfinite(getattr(want, name)).all()
    assert np.isfinite(want[1]).all()
    x["do"][..., 6, :] = np.nan
    assert (getattr(refattn, operation)(**x, **options).dA == 0).all()


@pytest.mark.parametrize("operation", [name for name in ALL if "s4d" not in name])
def test_steep_decays_underflow_and_nothing_else(operation):
    x, options = draw(operation, np.random.default_rng(2), 130, ())
    options |= {"dt_limit": (0.0, np.inf)} if "dt_limit" in options else {}
    x = {name: y.astype(np.float32) for name, y in x.items()}
    for name, value in (("A", -20.0), ("delta", 1.0), ("dt", 1.0)):
        if name in x:
            x[name][...] = value
    got = getattr(refattn, operation)(**x, **options)
    assert np.isfinite(got.o).all() and np.isfinite(got.state).all()


@pytest.mark.parametrize("operation", BACKWARD)
@pytest.mark.parametrize(("batch", "T"), [((2,), 5), ((), 7), ((2, 1), 1), ((1,), 0)])
def test_gradients_by_central_differences(operation, batch, T):
    rng = np.random.default_rng(T)
    x, options = draw(operation, rng, T, batch)
    do = rng.normal(size=x.get("u", x.get("x")).shape)
    dstate = rng.normal(size=x["initial_state"].shape)
    vjp, forward = (getattr(refattn, operation.removesuffix(suffix)) for suffix in ("", "_vjp"))

    def gradients(do, dstate, **inputs):
        found = vjp(do, **inputs, **options, dstate=dstate)._asdict()
        return {name: found[f"d{name}"] for name in inputs}

    check_gradient(lambda **inputs: tuple(forward(**inputs, **options)), gradients, x, (do, dstate))
    assert set(vjp(do, **x, **options)._fields) == {f"d{name}" for name in x}


@pytest.mark.parametrize("operation", BACKWARD)
def test_what_was_not_given_has_no_gradient(operation):
    x, options = draw(operation, np.random.default_rng(0), 5)
    optional = [name for name in ("D", "z", "delta_bias", "dt_bias", "bias", "initial_state") if name in x]
    least = {name: y for name, y in x.items() if name not in optional}
    got = getattr(refattn, operation)(np.ones_like(x.get("u", x.get("x"))), **least, **options)
    assert [name for name, y in got._asdict().items() if y is None] == [f"d{name}" for name in optional]


def unbatched(kernel):
    """The kit packs sequences in a batch of one; refattn has no batch axis then."""

    def call(*arrays, cu_seqlens=None, **options):
        if cu_seqlens is None:
            return kernel(*arrays, **options)
        arrays, z = [x[0] if x.ndim > 1 else x for x in arrays], options.pop("z", None)
        z = {} if z is None else {"z": z[0]}
        o, state = kernel(*arrays, **options, **z, cu_seqlens=cu_seqlens)
        return o[None], state

    return call


@pytest.mark.parametrize("operation", [name for name in ALL if "s4d" not in name])
def test_the_kit_passes_it(operation):
    name = operation.removesuffix("_recurrent").removesuffix("_chunked")
    call, contract = getattr(refattn, operation), Contract(op=name)
    contract = contract.with_options_of(call, refattn.testing.kit.operation(name).options)
    report = check(unbatched(call), contract, "quick")
    assert report.ok, str(report)
    assert report.count("PASS") > 50
