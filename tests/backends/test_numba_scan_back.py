"""The derivatives of matrix-state recurrences on the CPU: what their bits may not depend on, and what is forgotten."""

import itertools
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import refattn_numba
from refattn_numba import scan_back, threads

import refattn
from refattn.results import LinearState
from tests.backends.test_numba_scan import GATED, OPERATIONS, H, problem

SIZES = [(0, 3, 2), (1, 1, 1), (2, 3, 33), (15, 33, 3), (17, 1, 72), (63, 72, 1), (130, 5, 33)]


def drawn(operation, T, D=8, Dv=5, dtype=np.float32, sequences=None):
    """Return do and the arguments of a call, which axis of each has the tokens, and both states."""
    arrays, axes = problem(operation, T, D, Dv, dtype)
    rng = np.random.default_rng(2)
    lead = (H,) if sequences is None else (sequences, H)

    def state():
        S = rng.random((*lead, D, Dv)).astype(dtype)
        return LinearState(S, rng.random((*lead, D)).astype(dtype)) if operation == "linear_attention" else S

    do = rng.standard_normal((H, T, Dv)).astype(dtype)
    return [do, *arrays], [1, *axes], {"initial_state": state(), "dstate": state()}


def numba(operation, arrays, **options):
    return getattr(refattn, f"{operation}_vjp")(*arrays, **options, backend="numba")


def parts(gradients):
    """Return the arrays of a result, by name."""
    found = {}
    for name, x in zip(gradients._fields, gradients, strict=True):
        found |= {name: x} if not isinstance(x, tuple) else {f"{name}.{n}": part for n, part in enumerate(x)}
    return {name: x for name, x in found.items() if x is not None}


def assert_same(got, want):
    got, want = parts(got), parts(want)
    assert got.keys() == want.keys()
    for name, x in got.items():
        np.testing.assert_array_equal(x, want[name], err_msg=name)


def assert_close(got, want, bound, dtype):
    got, want = parts(got), parts(want)
    assert got.keys() == want.keys()
    for name, x in got.items():
        assert x.dtype == dtype and x.shape == want[name].shape, name
        atol = bound * max(1, np.abs(want[name]).max(initial=0))
        np.testing.assert_allclose(x, want[name], atol=atol, rtol=0, err_msg=name)


@pytest.fixture(autouse=True)
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_do_not_depend_on_threads(operation, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    arrays, _, states = drawn(operation, 70, D=33, Dv=72)
    results = []
    for n in (1, 3):
        refattn_numba.set_num_threads(n)
        results.append(numba(operation, arrays, **states))
    assert_same(*results)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_reference(operation, sizes):
    for dtype, bound in ((np.float32, 1e-4), (np.float64, 2e-13)):
        arrays, _, states = drawn(operation, *sizes, dtype)
        got = numba(operation, arrays, **states)
        wide = {name: _map(lambda x: x.astype(float), x) for name, x in states.items()}
        want = getattr(refattn, f"{operation}_vjp")(*(x.astype(float) for x in arrays), **wide)
        assert_close(got, want, bound, dtype)


def _map(change, state):
    return type(state)(*map(change, state)) if isinstance(state, tuple) else change(state)


@pytest.mark.parametrize("operation", ["simple_gla", "kda", "rwkv6", "rwkv7"])
def test_chunks_and_shares_change_rounding_at_most(operation, monkeypatch):
    arrays, _, states = drawn(operation, 70, D=9, Dv=72, dtype=np.float64)
    want = numba(operation, arrays, **states)
    for chunk, items in (((16, 16), 1), ((64, 64), 1), ((16, 16), 100)):
        monkeypatch.setattr(scan_back, "CHUNK", chunk)
        monkeypatch.setattr(scan_back, "ITEMS", items)
        assert_close(numba(operation, arrays, **states), want, 1e-13, np.float64)


@pytest.mark.parametrize("operation", [name for name in GATED if name != "rwkv7"])
@pytest.mark.parametrize("at", [1, 16, 21, 36])
def test_what_a_gate_of_minus_infinity_forgets_pulls_nothing(operation, at):
    arrays, _, states = drawn(operation, 37, 9, 20)
    gate, value = (2, 3) if operation == "hgrn2" else (4, 3)
    arrays[gate][:, at] = -np.inf
    want = numba(operation, arrays, **states)
    arrays[value][:, :at] = np.nan
    states["initial_state"] = states["initial_state"] * np.nan
    got = numba(operation, arrays, **states)
    first = at + 1 if operation == "rwkv6" else at  # RWKV-6 reads before it forgets
    for name, x in parts(got).items():
        if name in ("dq", "dr", "dk", "dv", "dbeta", "dlog_decay"):
            assert np.isfinite(parts(want)[name]).all(), name
            np.testing.assert_array_equal(x[:, first:], parts(want)[name][:, first:], err_msg=name)
    if operation != "hgrn2":  # where the gate also makes the key
        assert (parts(want)["dlog_decay"][:, at] == 0).all()
        assert (parts(got)["dlog_decay"][:, at] == 0).all()
    if operation != "rwkv6":
        assert np.isnan(parts(got)["dq"][:, at - 1]).any()


def test_what_is_forgotten_leaves_no_trace_in_the_next_call():
    """The workspace may be the same memory."""
    arrays, _, states = drawn("kda", 20, 9, 20)
    want = numba("kda", arrays, **states)
    for _ in range(3):
        numba("kda", [x * np.nan for x in arrays[:4]] + arrays[4:], **states)
    assert_same(numba("kda", arrays, **states), want)


@pytest.mark.parametrize("operation", ["simple_gla", "kda", "rwkv6", "ssd"])
def test_underflow_ends_in_zero(operation):
    arrays, _, states = drawn(operation, 130)
    arrays[3 if operation == "ssd" else 4][:] = -20
    for name, x in parts(numba(operation, arrays, **states)).items():
        assert np.isfinite(x).all(), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_packed_sequences_are_computed_as_if_alone(operation):
    borders = np.array([0, 5, 5, 26, 27, 60])
    arrays, axes, states = drawn(operation, 60, sequences=5)
    packed = parts(numba(operation, arrays, cu_seqlens=borders, **states))
    sums = {"dlog_decay" if operation in ("retention", "lightning_attention", "rwkv5") else "", "du", "dA"}
    added = dict.fromkeys(sums, 0)
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        own = [x if axis < 0 else x[:, first:stop] for x, axis in zip(arrays, axes, strict=True)]
        one = numba(operation, own, **{name: _map(lambda x, n=n: x[n], x) for name, x in states.items()})
        for name, x in parts(one).items():
            if name in sums:
                added[name] = added[name] + x
            else:
                whole = packed[name][n] if name.startswith("dinitial") else packed[name][:, first:stop]
                np.testing.assert_allclose(x, whole, atol=2e-6, rtol=2e-6, err_msg=name)
    for name in sums & packed.keys():
        np.testing.assert_allclose(packed[name], added[name], atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("heads", [(4, 2, 2), (4, 1, 2), (2, 1, 4), (2, 2, 6), (6, 3, 3)])
@pytest.mark.parametrize("operation", ["simple_gla", "gated_delta_rule", "linear_attention"])
def test_heads_that_share(operation, heads, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    refattn_numba.set_num_threads(3)
    rng = np.random.default_rng(0)
    Hq, Hk, Hv = heads
    do, q, k, v = (rng.standard_normal((2, n, 19, 6)) / 3 for n in (max(Hq, Hv), Hq, Hk, Hv))
    gates = {"simple_gla": [-rng.random((2, Hv, 19))], "gated_delta_rule": [-rng.random((2, Hv, 19))] * 2}
    arrays = [do, q, k, v, *gates.get(operation, [])]
    if operation == "gated_delta_rule":
        arrays[-1] = -arrays[-1]
    got, want = numba(operation, arrays), getattr(refattn, f"{operation}_vjp")(*arrays)
    assert_close(got, want, 1e-13, np.float64)
    assert got.dinitial_state is None


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("phi", [refattn.elu_plus_one, refattn.relu])
@pytest.mark.parametrize("borders", [None, np.array([0, 4, 4, 21])])
def test_linear_attention(causal, normalize, phi, borders):
    arrays, _, states = drawn("linear_attention", 21, dtype=np.float64, sequences=None if borders is None else 3)
    options = {"causal": causal, "normalize": normalize, "feature_map": phi, "cu_seqlens": borders, **states}
    got = numba("linear_attention", arrays, **options)
    assert_close(got, refattn.linear_attention_vjp(*arrays, **options), 1e-12, np.float64)


def test_weights_that_sum_to_nothing_pull_nothing():
    arrays, _, _ = drawn("linear_attention", 5)
    arrays[1][:] = -1
    got = numba("linear_attention", arrays, feature_map=refattn.relu)
    assert all((x == 0).all() for x in parts(got).values())


def test_memory_is_a_few_times_that_of_the_inputs():
    """And of one state for every chunk of tokens."""
    arrays, _, _ = drawn("simple_gla", 20000, 16, 16)
    numba("simple_gla", arrays)
    tracemalloc.start()
    got = numba("simple_gla", arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * sum(x.nbytes for x in parts(got).values())


@pytest.mark.parametrize("operation", ["gated_linear_attention", "gated_delta_rule", "rwkv7"])
def test_inputs_of_any_strides(operation):
    arrays, _, states = drawn(operation, 21)
    odd = [np.repeat(x, 2, axis=1)[:, ::2] for x in arrays]
    assert not odd[0].flags.c_contiguous
    assert_same(numba(operation, odd, **states), numba(operation, arrays, **states))


@pytest.mark.parametrize("operation", ["retention", "delta_rule", "ssd"])
def test_halves_are_computed_in_float32(operation):
    arrays, _, _ = drawn(operation, 21, dtype=np.float16)
    got, want = numba(operation, arrays), numba(operation, [x.astype(np.float32) for x in arrays])
    assert {x.dtype for x in parts(got).values()} == {np.dtype(np.float16)}
    for name, x in parts(got).items():
        np.testing.assert_array_equal(x, parts(want)[name].astype(np.float16), err_msg=name)


PROGRAM = """
import llvmlite.binding
import numba
real = llvmlite.binding.get_host_cpu_features
class Features(dict):
    def flatten(self):  # what Numba itself compiles for stays the truth
        return real().flatten()
llvmlite.binding.get_host_cpu_features = lambda: Features({features})
import numpy as np
from refattn_numba.vectors import REGISTERS, VECTOR_BYTES
assert (VECTOR_BYTES, REGISTERS) == {want}
from tests.backends.test_numba_scan_back import assert_close, drawn, numba
import refattn
for operation in ("simple_gla", "kda", "rwkv6", "rwkv7"):
    for dtype in (np.float32, np.float64):
        arrays, _, states = drawn(operation, 70, 33, 50, dtype)
        wide = dict((name, x.astype(float)) for name, x in states.items())
        want = getattr(refattn, operation + "_vjp")(*(x.astype(float) for x in arrays), **wide)
        assert_close(numba(operation, arrays, **states), want, 1000 * np.finfo(dtype).eps, dtype)
"""


@pytest.mark.slow  # each compiles the kernels anew
@pytest.mark.parametrize(("features", "want"), [({"avx2": True}, (32, 16)), ({"neon": True}, (16, 32)), ({}, (16, 16))])
def test_on_other_registers(features, want, tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = PROGRAM.format(features=features, want=want)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
