"""The matrix-state recurrences on the CPU: what their bits may not depend on, and what is forgotten."""

import itertools
import tracemalloc

import numpy as np
import pytest
import refattn_numba
from numba import njit
from refattn_numba import scan, scan_simd, threads

import refattn

H = 2
SHAPES = {
    # operation: the axes of each argument after q, k and v (H, T, D or W for values); "u" is drawn from both signs
    "simple_gla": {"log_decay": "HT"},
    "gated_linear_attention": {"log_decay": "HTD"},
    "retention": {"log_decay": "H"},
    "lightning_attention": {"log_decay": "H"},
    "delta_rule": {"beta": "HT"},
    "gated_delta_rule": {"log_decay": "HT", "beta": "HT"},
    "kda": {"log_decay": "HTD", "beta": "HT"},
    "linear_attention": {},
    "rwkv5": {"log_decay": "HD", "u": "HD"},
    "rwkv6": {"log_decay": "HTD", "u": "HD"},
    "rwkv7": {"log_decay": "HTD", "kappa_hat": "HTD", "a": "HTD"},
    "hgrn2": {"log_decay": "HTD"},
    "ssd": {"dt": "HT", "A": "H"},
}
OPERATIONS = list(SHAPES)
GATED = [name for name in OPERATIONS if "T" in SHAPES[name].get("log_decay", "")]


def problem(operation, T, D=8, Dv=5, dtype=np.float32, seed=0):
    """Return the arguments of a call, and which axis of each has the tokens."""
    rng = np.random.default_rng(seed)
    sizes = {"H": H, "T": T, "D": D, "W": Dv}

    def draw(axes):
        return rng.standard_normal([sizes[axis] for axis in axes])

    q, k, v = draw("HTD"), draw("HTD"), draw("HTW")
    k /= np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-30)
    own = {}
    for name, axes in SHAPES[operation].items():
        x = draw(axes)
        own[name] = -np.abs(x) if name in ("log_decay", "A") else 1 / (1 + np.exp(-x)) if name in ("beta", "a") else x
    if "kappa_hat" in own:
        own["kappa_hat"] = k.copy()
    if operation == "hgrn2":
        arrays, axes = [q, own["log_decay"], v], ["HTD", "HTD", "HTW"]
    elif operation == "ssd":
        arrays, axes = [v, np.abs(own["dt"]), own["A"], k, q], ["HTW", "HT", "H", "HTD", "HTD"]
    else:
        arrays, axes = [q, k, v, *own.values()], ["HTD", "HTD", "HTW", *SHAPES[operation].values()]
    return [x.astype(dtype) for x in arrays], [text.find("T") for text in axes]


def numba(operation, arrays, **options):
    return getattr(refattn, operation)(*arrays, **options, backend="numba")


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def assert_same(got, want):
    for x, y in zip([got.o, *parts(got.state)], [want.o, *parts(want.state)], strict=True):
        np.testing.assert_array_equal(x, y)


def first_state(operation, D, Dv, dtype=np.float32):
    zero = problem(operation, 3, D, Dv, dtype, seed=1)[0]
    return numba(operation, zero).state


@pytest.fixture(autouse=True)
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_do_not_depend_on_threads(operation, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    arrays, _ = problem(operation, 70, D=33, Dv=200)
    results = []
    for n in (1, 3):
        refattn_numba.set_num_threads(n)
        results.append(numba(operation, arrays))
    assert_same(*results)


@pytest.mark.parametrize("operation", ["simple_gla", "kda"])
def test_nor_on_how_many_columns_are_taken_together(operation, monkeypatch):
    """With more threads than items, items are narrower."""
    arrays, _ = problem(operation, 70, D=33, Dv=50)
    wide = numba(operation, arrays)
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(scan, "SMALL", 0)
    refattn_numba.set_num_threads(7)
    taken = []
    monkeypatch.setattr(scan, "run", lambda *args: [taken.append(len(args[-1])), threads.run(*args)])
    assert_same(numba(operation, arrays), wide)
    assert taken == [len(scan_simd.NARROW)] != [len(scan_simd.WIDE)]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4, 5), (16, 17, 40), (33,)])
def test_a_sequence_may_be_cut_anywhere(operation, cuts):
    T, D, Dv = 45, 33, 72
    arrays, axes = problem(operation, T, D, Dv)
    state = first_state(operation, D, Dv)
    whole = numba(operation, arrays, initial_state=state)
    pieces = []
    for first, stop in zip((0, *cuts), (*cuts, T), strict=True):
        own = [
            x if axis < 0 else x[(slice(None),) * axis + (slice(first, stop),)]
            for x, axis in zip(arrays, axes, strict=True)
        ]
        o, state = numba(operation, own, initial_state=state)
        pieces.append(o)
    assert_same(whole._replace(o=np.concatenate(pieces, axis=-2), state=state), whole)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_forms_are_one(operation):
    arrays, _ = problem(operation, 37)
    whole = numba(operation, arrays)
    assert_same(numba(f"{operation}_recurrent", arrays), whole)
    for chunk in (1, 5, 64):
        assert_same(numba(f"{operation}_chunked", arrays, chunk=chunk), whole)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_head_does_not_depend_on_the_others(operation):
    """Nor does a column of values, but for which of them are computed."""
    arrays, _ = problem(operation, 21, D=7, Dv=80)
    whole = numba(operation, arrays)
    one = numba(operation, [x[1:] for x in arrays])
    assert_same(one, whole._replace(o=whole.o[1:], state=_map(lambda x: x[1:], whole.state)))
    place = 0 if operation == "ssd" else 2
    narrow = numba(operation, [x[..., 70:] if n == place else x for n, x in enumerate(arrays)])
    np.testing.assert_array_equal(narrow.o, whole.o[..., 70:])


def _map(change, state):
    return type(state)(*map(change, state)) if isinstance(state, tuple) else change(state)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 33), (15, 33, 3), (17, 1, 72), (65, 72, 1), (130, 5, 130)])
def test_the_reference(operation, sizes):
    for dtype, bound in ((np.float32, 2e-5), (np.float64, 4e-14)):
        arrays, _ = problem(operation, *sizes, dtype)
        state = first_state(operation, *sizes[1:], dtype)
        got = numba(operation, arrays, initial_state=state)
        exact = [x.astype(float) for x in arrays]
        want = getattr(refattn, f"{operation}_recurrent")(*exact, initial_state=_map(lambda x: x.astype(float), state))
        assert got.o.dtype == dtype
        for x, y in zip([got.o, *parts(got.state)], [want.o, *parts(want.state)], strict=True):
            assert x.dtype == dtype
            np.testing.assert_allclose(x, y, atol=bound * max(1, np.abs(y).max()), rtol=0)


@pytest.mark.parametrize("operation", [name for name in GATED if name != "rwkv7"])
@pytest.mark.parametrize("at", [0, 1, 16, 21, 36])
def test_a_gate_of_minus_infinity_forgets_whatever_there_was(operation, at):
    T, D, Dv = 37, 9, 40
    arrays, _ = problem(operation, T, D, Dv)
    gate, value = (1, 2) if operation == "hgrn2" else (3, 2)
    arrays[gate][:, at] = -np.inf
    state = np.zeros((H, D, Dv), np.float32)
    want = numba(operation, arrays, initial_state=state)
    assert np.isfinite(want.o).all()
    arrays[value][:, :at] = np.nan
    got = numba(operation, arrays, initial_state=state * np.nan)
    first = at + 1 if operation == "rwkv6" else at  # RWKV-6 reads before it forgets
    np.testing.assert_array_equal(got.o[:, first:], want.o[:, first:])
    np.testing.assert_array_equal(got.state, want.state)
    assert np.isnan(got.o[:, :first]).all()


@pytest.mark.parametrize(
    "operation", [name for name in GATED if SHAPES[name]["log_decay"] == "HTD" and name != "rwkv7"]
)
def test_one_gate_forgets_one_row(operation):
    arrays, _ = problem(operation, 2, 4, 40)
    arrays[1 if operation == "hgrn2" else 3][:, 0, 2] = -np.inf
    state = np.zeros((H, 4, 40), np.float32)
    state[:, 2] = np.nan
    assert np.isfinite(numba(operation, arrays, initial_state=state).state).all()
    state[:, 1] = np.nan
    assert np.isnan(numba(operation, arrays, initial_state=state).state[:, 1]).all()


@pytest.mark.parametrize("operation", ["simple_gla", "kda", "rwkv6", "ssd"])
def test_underflow_ends_in_zero(operation):
    arrays, _ = problem(operation, 130)
    place = {"ssd": 2}.get(operation, 3)
    arrays[place][:] = -20
    o, state = numba(operation, arrays)
    assert np.isfinite(o).all() and np.isfinite(state).all()


@pytest.mark.parametrize("heads", [(4, 2, 2), (4, 1, 2), (2, 1, 4), (2, 2, 6), (6, 3, 3)])
@pytest.mark.parametrize("operation", ["simple_gla", "gated_delta_rule"])
def test_heads_that_share(operation, heads, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    refattn_numba.set_num_threads(3)
    rng = np.random.default_rng(0)
    H, Hk, Hv = heads
    q, k, v = (rng.standard_normal((2, n, 19, 6)) / 3 for n in (H, Hk, Hv))
    gates = [-rng.random((2, Hv, 19)), rng.random((2, Hv, 19))][: len(SHAPES[operation])]
    state = rng.standard_normal((2, Hv, 6, 6))
    got = numba(operation, (q, k, v, *gates), initial_state=state)
    want = getattr(refattn, operation)(q, k, v, *gates, initial_state=state)
    np.testing.assert_allclose(got.o, want.o, atol=1e-13)
    np.testing.assert_allclose(got.state, want.state, atol=1e-13)


@pytest.mark.parametrize("operation", ["simple_gla", "kda", "rwkv6", "rwkv7", "ssd"])
def test_packed_sequences_are_computed_as_if_alone(operation):
    borders = np.array([0, 5, 5, 26, 27, 60])
    arrays, axes = problem(operation, 60)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((5, H, 8, 5)).astype(np.float32)
    packed = numba(operation, arrays, cu_seqlens=borders, initial_state=states)
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        own = [x if axis < 0 else x[:, first:stop] for x, axis in zip(arrays, axes, strict=True)]
        one = numba(operation, own, initial_state=states[n])
        assert_same(one, packed._replace(o=packed.o[:, first:stop], state=packed.state[n]))


@pytest.mark.parametrize("operation", ["simple_gla", "kda"])
def test_memory_is_that_of_the_result(operation):
    arrays, _ = problem(operation, 20000, 16, 16)
    numba(operation, arrays)
    tracemalloc.start()
    o, _ = numba(operation, arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * o.nbytes


@pytest.mark.parametrize("operation", ["gated_linear_attention", "gated_delta_rule"])
def test_inputs_of_any_strides(operation):
    arrays, _ = problem(operation, 21)
    odd = [np.repeat(x, 2, axis=1)[:, ::2] for x in arrays]
    assert not odd[0].flags.c_contiguous
    assert_same(numba(operation, odd), numba(operation, arrays))


@pytest.mark.parametrize("operation", ["retention", "delta_rule"])
def test_halves_are_computed_in_float32(operation):
    arrays, _ = problem(operation, 21, dtype=np.float16)
    got, want = numba(operation, arrays), numba(operation, [x.astype(np.float32) for x in arrays])
    assert got.o.dtype == np.float16 and got.state.dtype == np.float32
    assert_same(got, want._replace(o=want.o.astype(np.float16)))


def test_gates_of_the_same_decay_are_one_decay():
    """Retention is simple_gla with equal gates, and RWKV-5 is RWKV-6 with equal gates."""
    arrays, _ = problem("retention", 21)
    (q, k, v, g), T = arrays, 21
    assert_same(numba("simple_gla", (q, k, v, np.repeat(g[:, None], T, axis=1))), numba("retention", arrays))
    (r, k, v, g, u), _ = problem("rwkv5", T, 9)
    same = np.repeat(g[:, None], T, axis=1)
    assert_same(numba("rwkv6", (r, k, v, same, u)), numba("rwkv5", (r, k, v, g, u)))


EXPONENTS = [0.0, -0.0, -1e-8, -0.3466, -0.69, -20.0, -87.0, -100.0, -103.0, -150.0, -1e30, 1.0, 88.0, 89.0, 1e9]


@pytest.mark.parametrize(
    ("dtype", "more"), [(np.float32, [-88.5, -104.5]), (np.float64, [-700.0, -709.5, -740.0, 709.0])]
)
def test_the_exponential(dtype, more):
    rng = np.random.default_rng(0)
    x = np.concatenate([EXPONENTS, more, -rng.random(500), -80 * rng.random(500)])
    x = np.concatenate([x, np.zeros(-len(x) % 64)]).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        want = np.exp(x.astype(np.longdouble))
    y = x.copy()
    assert not _exponentials(y)
    info = np.finfo(dtype)
    inside = want < info.max
    error = np.abs(y[inside] - want[inside])
    assert (error <= 1.5 * info.eps * want[inside] + info.smallest_subnormal).all()
    assert np.isposinf(y[~inside]).all()
    assert y[x == 0].tolist() == [1.0] * int((x == 0).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponential_finds_minus_infinity(dtype):
    for place in (0, 5, 63):
        x = np.full(64, np.nan, dtype)
        x[(place + 1) % 64] = 0
        x[place] = -np.inf
        assert _exponentials(x)
        assert x[place] == 0 and x[(place + 1) % 64] == 1 and np.isnan(x).sum() == 62


def _exponentials(x):
    return njit(lambda x, n: scan_simd.exp_row(x, n))(x, len(x))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 33])
def test_dot_products(size):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40))
    got = njit(lambda x, y, n: scan_simd.dot(x, 2, y, 3, n))(x, y, size)
    np.testing.assert_allclose(got, x[2 : 2 + size] @ y[3 : 3 + size], atol=1e-14)
