"""The operations on channels on the CPU: what their bits may not depend on, what is forgotten, and their arithmetic."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import refattn_numba
from numba import njit, types
from numba.extending import intrinsic
from refattn_numba import channels_simd, threads

import refattn
from tests.backends.test_numba_mutants import compiles, hold, judged, killed  # noqa: F401
from tests.mistakes.numba_channels import ALL, COMPILED

OPERATIONS = ["causal_conv1d", "selective_scan", "s4d", "rwkv4"]
PACKED = ["causal_conv1d", "selective_scan"]


def problem(operation, T, E=37, N=5, dtype=np.float32, seed=0):
    """Return the arguments of a call, whether each has tokens, and its options."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    if operation == "causal_conv1d":
        return [normal(T, E), normal(E, N), normal(E)], [True, False, False], {"activation": "silu"}
    if operation == "s4d":
        steps = np.abs(normal(E))
        arrays = [normal(T, E), steps, -np.abs(normal(E, N)), normal(E, N), normal(E, N), normal(E, N)]
        return arrays, [True] + [False] * 5, {"D": normal(E)}
    if operation == "rwkv4":
        return [np.abs(normal(E)), normal(E), normal(T, E), normal(T, E)], [False, False, True, True], {}
    arrays = [normal(T, E), normal(T, E), -np.abs(normal(E, N)), normal(T, N), normal(T, N)]
    options = {"D": normal(E), "delta_bias": normal(E), "delta_softplus": True}
    return arrays, [True, True, False, True, True], options


def numba(operation, arrays, **options):
    return getattr(refattn, operation)(*arrays, **options, backend="numba")


def leaves(found):
    return [y for x in found for y in leaves(x)] if isinstance(found, tuple) else [found]


def assert_same(got, want):
    for x, y in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_array_equal(x, y)


def gradient(operation, arrays, options, backend="numba"):
    """Return the derivative for a gradient of o and of the state that are all ones and more."""
    o, state = getattr(refattn, operation)(*arrays, **options)
    ones = type(state)(*map(np.ones_like, state)) if isinstance(state, tuple) else np.ones_like(state)
    return getattr(refattn, f"{operation}_vjp")(np.cos(o), *arrays, **options, dstate=ones, backend=backend)


@pytest.fixture(autouse=True)
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_do_not_depend_on_threads(operation, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    arrays, _, options = problem(operation, 70, E=100)
    results = []
    for n in (1, 3):
        refattn_numba.set_num_threads(n)
        results.append((*numba(operation, arrays, **options), *gradient(operation, arrays, options)))
    assert_same(*map(tuple, results))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("cuts", [(0, 1, 2), (32, 33), (64,)])
def test_a_sequence_may_be_cut_anywhere(operation, cuts):
    T = 69
    arrays, tokens, options = problem(operation, T)
    whole, state, parts = numba(operation, arrays, **options), None, []
    for first, stop in zip((0, *cuts), (*cuts, T), strict=True):
        own = [x[first:stop] if has else x for x, has in zip(arrays, tokens, strict=True)]
        o, state = numba(operation, own, initial_state=state, **options)
        parts.append(o)
    assert_same((np.concatenate(parts), state), tuple(whole))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("T", [0, 1, 31, 65, 130])
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 4e-5), (np.float64, 1e-13)])
def test_the_reference(operation, T, dtype, bound):
    arrays, _, options = problem(operation, T, dtype=dtype)
    pairs = [(numba(operation, arrays, **options), getattr(refattn, operation)(*arrays, **options))]
    pairs.append((gradient(operation, arrays, options), gradient(operation, arrays, options, "numpy")))
    for got, want in pairs:
        for x, y in zip(leaves(got), leaves(want), strict=True):
            if y is not None:
                assert x.dtype == y.dtype
                np.testing.assert_allclose(x, y, rtol=0, atol=bound * np.abs(y[np.isfinite(y)]).max(initial=1))


@pytest.mark.parametrize("operation", PACKED)
def test_packed_sequences_are_computed_as_if_alone(operation):
    borders = np.array([0, 5, 5, 26, 27, 60])
    arrays, tokens, options = problem(operation, 60)
    packed = numba(operation, arrays, cu_seqlens=borders, **options)
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        own = [x[first:stop] if has else x for x, has in zip(arrays, tokens, strict=True)]
        assert_same(tuple(numba(operation, own, **options)), (packed.o[first:stop], packed.state[n]))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_channel_does_not_depend_on_the_others(operation):
    arrays, _, options = problem(operation, 21)
    whole = numba(operation, arrays, **options)
    arrays[2 if operation == "rwkv4" else 0][:, 3] = np.nan
    got = numba(operation, arrays, **options)
    others = np.arange(37) != 3
    assert np.isnan(got.o[:, 3]).all()
    np.testing.assert_array_equal(got.o[:, others], whole.o[:, others])


def test_a_decay_of_zero_forgets_whatever_there_was():
    (u, delta, A, B, C), _, _ = problem("selective_scan", 9)
    delta = np.abs(delta)
    A[:, 2] = -np.inf
    state = np.ones((37, 5), np.float32)
    want = numba("selective_scan", (u, delta, A, B, C), initial_state=state)
    state[:, 2] = np.nan
    assert_same(tuple(numba("selective_scan", (u, delta, A, B, C), initial_state=state)), tuple(want))


def test_a_negative_step_makes_a_state_grow():
    (u, delta, A, B, C), _, _ = problem("selective_scan", 9, dtype=np.float64)
    got, want = (refattn.selective_scan(u, -np.abs(delta), A, B, C, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_allclose(got.o, want.o, rtol=1e-11)


def arithmetic(name):
    @intrinsic
    def apply(typing, x):
        def generate(context, builder, signature, args):
            at = channels_simd.Body(context, builder, "x", signature, args)
            at.store(getattr(at, name)(at.load(at.pointer("x"))), at.pointer("x"))
            return context.get_dummy_value()

        return types.void(x), generate

    return njit(lambda x: apply(x))


NUMBERS = [0.0, -0.0, 1e-30, 0.3, 1.0, 5.5, 20.0, 88.0, 127.4, 1e9, np.inf]


@pytest.mark.parametrize("scales", [channels_simd.SCALES, False])
@pytest.mark.parametrize(
    ("name", "exact"), [("exp2", np.exp2), ("softplus", lambda x: np.logaddexp(0, x)), ("sigmoid", None)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic(name, exact, dtype, scales, monkeypatch):
    monkeypatch.setattr(channels_simd, "SCALES", scales)
    exact = exact or (lambda x: 1 / (1 + np.exp(-x)))
    call, W = arithmetic(name), channels_simd.channels_of(np.dtype(dtype))
    x = np.array([*NUMBERS, *(-x for x in NUMBERS), -140.0, -148.5, -1070.0, np.nan])
    x = np.concatenate([x, np.zeros(-len(x) % W)]).astype(dtype)
    y = x.copy()
    for first in range(0, len(x), W):
        part = y[first : first + W].copy()
        call(part)
        y[first : first + W] = part
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.longdouble)).astype(dtype)
    eps, least = np.finfo(dtype).eps, np.finfo(dtype).smallest_subnormal
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(y[np.isinf(want)], want[np.isinf(want)])
    slack = 1e-37 if name == "sigmoid" and dtype == np.float32 else 1e-300 if name == "sigmoid" else least
    assert (np.abs(y[finite] - want[finite]) <= 3 * eps * np.abs(want[finite]) + slack).all()


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: f"{mistake.module}: {mistake.name}")
def test_the_mistake_is_failed(judged, mistake):  # noqa: F811
    assert not compiles(mistake)
    hold(killed(judged, mistake, cached=True))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", COMPILED, ids=lambda mistake: f"{mistake.module}: {mistake.name}")
def test_the_compiled_mistake_is_failed(judged, mistake):  # noqa: F811
    assert compiles(mistake)
    hold(killed(judged, mistake, cached=False))


def features(operation, heads, T, seed=0):
    """Return the arguments and options of attention by features or landmarks, and a gradient of o, in float64."""
    rng, (H, Hk, Hv), lead = np.random.default_rng(seed), heads, (2,)
    q, k, v = (rng.standard_normal((*lead, h, T, 5)) for h in heads)
    do = rng.standard_normal((*lead, max(H, Hv), T, 5))
    if operation == "linformer_attention":
        return [q, k, v, *rng.standard_normal((2, Hk, 3, T))], {}, do
    if operation == "nystrom_attention":
        return [q, k, v], {"landmarks": 3}, do
    M = 10 if operation == "cosformer_attention" else 7
    state = [np.abs(rng.standard_normal(shape)) for shape in ((*lead, Hv, M, 5), (*lead, Hv, M), (*lead, Hv))]
    if operation == "cosformer_attention":
        return [q, k, v], {"length": 99, "start": 2, "initial_state": refattn.results.LinearState(*state[:2])}, do
    first = refattn.results.PerformerState(*state)
    return [q, k, v, rng.standard_normal((7, 5))], {"initial_state": first}, do


@pytest.mark.parametrize("operation", ["linformer", "nystrom", "cosformer", "performer"])
@pytest.mark.parametrize("heads", [(2, 2, 2), (4, 2, 2), (2, 1, 4)])
@pytest.mark.parametrize("T", [1, 37])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_features(operation, heads, T, causal):
    operation = f"{operation}_attention"
    if "state" not in str(features(operation, heads, T)[1]) and heads[1] != heads[2]:
        heads = (4, 1, 1)
    arrays, options, do = features(operation, heads, T)
    options |= {} if causal or "initial_state" not in options else {"causal": False}
    dstate = {"dstate": options["initial_state"]} if "initial_state" in options else {}
    for name, given, more in ((operation, arrays, {}), (f"{operation}_vjp", [do, *arrays], dstate)):
        got, want = (getattr(refattn, name)(*given, **options, **more, backend=who) for who in ("numba", "numpy"))
        for x, y in zip(leaves(got), leaves(want), strict=True):
            if y is not None:
                assert x.dtype == y.dtype
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-10 * np.abs(y).max(initial=1))


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
from tests.backends.test_numba_channels import OPERATIONS, test_the_reference
for operation in OPERATIONS:
    test_the_reference(operation, 65, np.float32, 4e-5)
    test_the_reference(operation, 65, np.float64, 1e-13)
"""


@pytest.mark.slow  # each compiles the kernels anew
@pytest.mark.parametrize(("features", "want"), [({"avx2": True}, (32, 16)), ({"neon": True}, (16, 32)), ({}, (16, 16))])
def test_other_registers(features, want, tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = PROGRAM.format(features=features, want=want)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
