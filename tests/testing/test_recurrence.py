"""The judge of the linear-time family: its oracle by hand and in matrix form, correct kernels, and mistakes."""

import functools
import inspect

import numpy as np
import pytest

from refattn.arrays import compute_dtype
from refattn.testing import kit
from refattn.testing.attention.forward import Units
from refattn.testing.contract import Contract
from refattn.testing.faults import KernelFault
from refattn.testing.formats import round_to
from refattn.testing.mutants import recurrence, recurrence_ssm
from refattn.testing.mutants.recurrence_ssm_catalogue import ALL
from refattn.testing.recurrence import CASES, FAMILIES, OPERATIONS
from refattn.testing.recurrence.errors import Steps, propagate
from refattn.testing.recurrence.judge import analyse, judge, where
from refattn.testing.recurrence.models import rough_result
from refattn.testing.recurrence.oracle import truth
from refattn.testing.recurrence.problem import problem, sequences_of, take
from refattn.testing.recurrence.rough import Rough
from refattn.testing.session import Output, Session
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS

DTYPES = ("float32", "float16", "bfloat16")
CACHES = {}  # (op, dtype) -> what checks keep for the next kernel


def check(kernel, op, dtype="float32", level="quick", seed=0, cache=True, contract=None, **options):
    contract = contract or Contract(op=op, dtype=dtype)
    kept = CACHES.setdefault((op, dtype), {}) if cache else None
    return kit.check(kernel, contract, level, seed=seed, cache=kept, **options)


def one(op, seed=0, case="normal", dtype="float64"):
    return CASES[case].problem(Contract(op=op, dtype=dtype), seed)


# Kernels of the operations that have no chunks here: one token after another.


def linear_attention(q, k, v, *, normalize=True, initial_state=None):
    acc, heads = compute_dtype(q.dtype), max(q.shape[1], v.shape[1])

    def mapped(x, n):
        x = x.astype(acc)
        return np.repeat(np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), n // x.shape[1], axis=1)

    q, k, v, dtype = mapped(q, heads), mapped(k, v.shape[1]), v.astype(acc), q.dtype
    S, z = np.zeros((*v.shape[:2], q.shape[-1], v.shape[-1]), acc), np.zeros((*v.shape[:2], q.shape[-1]), acc)
    if initial_state is not None:
        S, z = (x.astype(acc) for x in initial_state)
    o = np.zeros((*q.shape[:3], v.shape[-1]), acc)
    for t in range(v.shape[2]):
        S, z = S + k[:, :, t, :, None] * v[:, :, t, None], z + k[:, :, t]
        own, den = (np.repeat(x, heads // x.shape[1], axis=1) for x in (S, z))
        o[:, :, t] = (q[:, :, t, None] @ own)[..., 0, :]
        if normalize:
            total = (q[:, :, t] * den).sum(axis=-1, keepdims=True)
            o[:, :, t] = np.where(total == 0, 0, o[:, :, t] / np.where(total == 0, 1, total))
    return o.astype(dtype), (S.copy(), z.copy())


def retention(q, k, v, log_decay, *, scale=None, initial_state=None, chunk=16):
    g = np.broadcast_to(log_decay[None, :, None], v.shape[:3])
    return recurrence.simple_gla(q, k, v, g, scale=scale, initial_state=initial_state, chunk=chunk)


def causal_conv1d(x, weight, bias=None, *, activation=None, initial_state=None):
    acc, (B, T, E), K = compute_dtype(x.dtype), x.shape, weight.shape[1]
    before = np.zeros((B, K - 1, E), acc) if initial_state is None else initial_state.astype(acc)
    whole, y = np.concatenate([before, x.astype(acc)], axis=1), np.zeros(x.shape, acc)
    for i in range(K):
        y += weight[:, i].astype(acc) * whole[:, i : i + T]
    y = y if bias is None else y + bias.astype(acc)
    y = y / (1 + np.exp(-y)) if activation else y
    return y.astype(x.dtype), whole[:, T:].copy()


def rwkv4(w, u, k, v, *, initial_state=None):
    acc, (B, T, E) = compute_dtype(k.dtype), k.shape
    num, den, m = np.zeros((B, E), acc), np.zeros((B, E), acc), np.full((B, E), -np.inf, acc)
    if initial_state is not None:
        num, den, m = (x.astype(acc) for x in initial_state)
    w, u, o = w.astype(acc), u.astype(acc), np.zeros(k.shape, acc)
    for t in range(T):
        k_t, v_t = k[:, t].astype(acc), v[:, t].astype(acc)
        top = np.maximum(m, u + k_t)
        old, new = np.exp(m - top), np.exp(u + k_t - top)
        o[:, t] = (old * num + new * v_t) / (old * den + new)
        top = np.maximum(m - w, k_t)
        old, new = np.exp(m - w - top), np.exp(k_t - top)
        num, den, m = old * num + new * v_t, old * den + new, top
    return o.astype(k.dtype), (num.copy(), den.copy(), m.copy())


CHUNKED = {
    **{op: getattr(recurrence, op) for op in ("simple_gla", "gated_linear_attention", "delta_rule", "kda")},
    "gated_delta_rule": recurrence.gated_delta_rule,
    "retention": retention,
    **{op: getattr(recurrence_ssm, op) for op in ("ssd", "selective_scan", "rwkv6")},
}
PLAIN = {
    "rwkv7": recurrence_ssm.rwkv7,
    "linear_attention": linear_attention,
    "causal_conv1d": causal_conv1d,
    "rwkv4": rwkv4,
}
KERNELS = {
    **{
        f"{op} by chunks of {n}": (op, functools.partial(f, chunk=n)) for op, f in CHUNKED.items() for n in (16, 32, 64)
    },
    **{f"{op} by tokens": (op, functools.partial(f, chunk=None)) for op, f in CHUNKED.items()},
    **{f"{op} by tokens": (op, f) for op, f in PLAIN.items()},
}


def assert_passes(report):
    assert not report.failures, [(r.check, r.verdict, r.message) for r in report.failures]
    assert report.count(PASS) > 25


OFTEN = [(name, "float32") for name in KERNELS if not name.endswith("32")]
OFTEN += [(name, dtype) for dtype in ("float16", "bfloat16") for name in KERNELS if name.endswith(("16", "tokens"))]


@pytest.mark.parametrize(("name", "dtype"), OFTEN)
def test_correct_kernels_pass(name, dtype):
    op, kernel = KERNELS[name]
    assert_passes(check(kernel, op, dtype))


SELDOM = [(name, dtype) for name in KERNELS for dtype in (*DTYPES, "float64")][::3]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), SELDOM)
def test_correct_kernels_pass_at_every_level_and_seed(name, dtype):
    op, kernel = KERNELS[name]
    for seed in (1, 2, 3):
        assert_passes(check(kernel, op, dtype, seed=seed, cache=False))
    forgets = op in ("retention", "selective_scan") or "chunks" not in name
    only = None if forgets else lambda id: not id.endswith("forgets_nan")  # a chunk multiplies NaN by 0
    assert_passes(check(kernel, op, dtype, "deep", cache=False, only=only))


@pytest.mark.parametrize("op", ["gated_linear_attention", "gated_delta_rule", "rwkv6"])
def test_kernels_in_float32_keep_that_promise(op):
    contract = Contract(op=op, dtype="bfloat16", p="float32")
    assert_passes(check(functools.partial(CHUNKED[op], chunk=None), op, contract=contract, cache=False))
    report = check(CHUNKED[op], op, contract=contract, cache=False, fail_fast=True)
    assert not report.ok  # its operands are rounded to bfloat16


NARROW = ("float16", "bfloat16")
NAMES = [f"{mutant.op}: {mutant.name}" for mutant in ALL]


def kills(mutant, dtype):
    report = check(mutant.kernel(), mutant.op, dtype, fail_fast=True)
    return [(result.check, result.verdict) for result in report.failures]


@pytest.mark.parametrize("mutant", ALL, ids=NAMES)
def test_every_mistake_is_noticed(mutant):
    assert kills(mutant, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("mutant", ALL, ids=NAMES)
def test_every_mistake_is_noticed_in_half_precision(mutant, dtype):
    assert bool(kills(mutant, dtype)) is (dtype not in mutant.equivalent)


def test_the_catalogue():
    assert sum(bool(mutant.equivalent) for mutant in ALL) == 4
    assert len(ALL) >= 120 and len(set(NAMES)) == len(ALL)
    for mutant in ALL:
        function = getattr(recurrence, mutant.op, None) or getattr(recurrence_ssm, mutant.op)
        assert inspect.signature(mutant.kernel()) == inspect.signature(function)
        assert mutant.source != mutant.old


# The oracle.


def test_two_tokens_by_hand():
    c = Contract(op="simple_gla", dtype="float64")
    x = {"q": [[1.0], [1.0]], "k": [[2.0], [4.0]], "v": [[3.0], [5.0]]}
    arrays = {name: np.array(rows)[None, None] for name, rows in x.items()}
    half = np.full((1, 1, 2), np.log(0.5))
    o, (S,) = truth(problem(c, "simple_gla", {**arrays, "log_decay": half}), c)
    np.testing.assert_allclose(o.ravel().astype(float), [6, 6 / 2 + 20], rtol=1e-15)
    assert float(S.item()) == pytest.approx(23)
    beta = np.ones((1, 1, 2))
    small = {**arrays, "k": np.ones((1, 1, 2, 1))}
    o, (S,) = truth(problem(c, "delta_rule", {**small, "beta": beta}), c)
    assert o.ravel().astype(float).tolist() == [3, 5] and float(S.item()) == 5  # the same key: the new value replaces
    o, (S,) = truth(problem(c, "delta_rule", {**small, "beta": beta / 2}, scale=2.0), c)
    assert o.ravel().astype(float).tolist() == [3, 2 * (1.5 + (5 - 1.5) / 2)]


def test_one_token_of_the_others_by_hand():
    c = Contract(op="ssd", dtype="float64")
    ones = {"x": np.full((1, 1, 1, 1), 3.0), "dt": np.full((1, 1, 1), 0.5), "A": np.array([-np.log(2.0)])}
    ones |= {"B": np.full((1, 1, 1, 1), 2.0), "C": np.full((1, 1, 1, 1), 7.0)}
    first = np.full((1, 1, 1, 1), 4.0)
    o, (S,) = truth(problem(c, "ssd", ones, D=[10.0], initial_state=first), c)
    state = 4 * 2**-0.5 + 0.5 * 2 * 3
    assert float(S.item()) == pytest.approx(state) and float(o.item()) == pytest.approx(7 * state + 30)
    o, _ = truth(
        problem(c, "ssd", {**ones, "dt": np.full((1, 1, 1), 2.0)}, dt_limit=(0.0, 0.5), initial_state=first), c
    )
    assert float(o.item()) == pytest.approx(7 * state)
    row = np.arange(1.0, 4).reshape(1, 3, 1)
    p = problem(c, "causal_conv1d", {"x": row, "weight": np.array([[100.0, 10.0, 1.0]])})
    o, (S,) = truth(p, c)
    assert o.ravel().tolist() == [1, 12, 123] and S.ravel().tolist() == [2, 3]
    c = Contract(op="rwkv4", dtype="float64")
    p = problem(c, "rwkv4", {"w": [np.log(2.0)], "u": [np.log(3.0)], "k": np.zeros((1, 2, 1)), "v": [[[1.0], [5.0]]]})
    o, (num, den, m) = truth(p, c)
    assert o.ravel().astype(float).tolist() == pytest.approx([1, (1 + 3 * 5) / (1 + 3)])
    assert [float((x * np.exp(m)).item()) for x in (num, den)] == pytest.approx([5.5, 1.5])
    c = Contract(op="rwkv6", dtype="float64")
    ones = {name: np.full((1, 1, 2, 1), n) for name, n in (("r", 1.0), ("k", 2.0), ("v", 3.0), ("log_decay", -np.inf))}
    o, (S,) = truth(problem(c, "rwkv6", {**ones, "u": [[10.0]]}), c)
    assert o.ravel().tolist() == [60, 66] and S.item() == 6  # reads before the decay
    ones |= {"log_decay": np.zeros((1, 1, 2, 1)), "kappa_hat": np.ones((1, 1, 2, 1)), "a": np.full((1, 1, 2, 1), 0.25)}
    o, _ = truth(problem(c, "rwkv7", ones), c)
    assert o.ravel().tolist() == [6, 6 - 0.25 * 6 + 6]


def matrix_form(p, S=0.0):
    """Return o of gated linear attention as a masked product, and its last state."""
    x = {name: np.asarray(a, np.float64) for name, a in p.arrays.items()}
    g = x["log_decay"][..., None] if x["log_decay"].ndim == 3 else x["log_decay"]
    G, T = np.cumsum(g, axis=2), g.shape[2]
    near = np.exp(np.where(np.tri(T, dtype=bool)[..., None], G[:, :, :, None] - G[:, :, None], -np.inf))
    weights = np.einsum(
        "bhid,bhjd,bhijd->bhij", x["q"], x["k"], np.broadcast_to(near, (*near.shape[:4], x["k"].shape[3]))
    )
    o = weights @ x["v"] + (x["q"] * np.exp(G)) @ S
    last = np.exp(G[:, :, -1])[..., None] * S + np.einsum("bhjd,bhjw->bhdw", np.exp(G[:, :, -1:] - G) * x["k"], x["v"])
    return o / np.sqrt(x["q"].shape[3]), last


@pytest.mark.parametrize("op", ["simple_gla", "gated_linear_attention"])
def test_the_recurrence_is_the_matrix(op):
    p = one(op, case="length_17_initial")
    got, want = truth(p, Contract(op=op, dtype="float64")), matrix_form(p, p.initial[0])
    np.testing.assert_allclose(got[0].astype(float), want[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got[1][0].astype(float), want[1], rtol=1e-11, atol=1e-12)


def test_the_delta_rule_is_a_triangular_system():
    p = one("delta_rule", case="length_17")
    x = {name: np.asarray(a, np.float64) for name, a in p.arrays.items()}
    A = np.tril(x["beta"][..., None] * (x["k"] @ x["k"].swapaxes(-1, -2)), -1)
    u = np.linalg.solve(np.eye(17) + A, x["beta"][..., None] * x["v"])
    want = np.tril(x["q"] @ x["k"].swapaxes(-1, -2)) @ u / np.sqrt(x["q"].shape[3])
    got, _ = truth(p, Contract(op="delta_rule", dtype="float64"))
    np.testing.assert_allclose(got.astype(float), want, rtol=1e-11, atol=1e-12)


def test_linear_attention_is_a_mean_of_values():
    p = one("linear_attention", case="length_17")
    q, k, v = (np.asarray(p.arrays[name]) for name in "qkv")
    q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    weights = np.tril(q @ k.swapaxes(-1, -2))
    got, _ = truth(p, Contract(op="linear_attention", dtype="float64"))
    np.testing.assert_allclose(got.astype(float), weights @ v / weights.sum(-1, keepdims=True), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("op", ["ssd", "selective_scan"])
def test_state_spaces_are_gated_linear_attention(op):
    c = Contract(op=op, dtype="float64")
    p = one(op, case="length_17_initial")
    x = {name: np.asarray(a, np.float64) for name, a in p.arrays.items()}
    o, (S,) = truth(p, c)
    if op == "ssd":
        heads, g = p.sizes["H"], x["dt"] * x["A"][:, None]
        arrays = {"q": np.repeat(x["C"], heads, 1), "k": np.repeat(x["B"], heads, 1), "v": x["dt"][..., None] * x["x"]}
        q = problem(c, "simple_gla", {**arrays, "log_decay": g}, scale=1.0, initial_state=p.initial[0])
        want, (last,) = truth(q, c)
    else:  # each channel is a head with values of width 1
        E = p.sizes["E"]
        arrays = {name: np.repeat(x[letter][:, None], E, 1) for name, letter in (("q", "C"), ("k", "B"))}
        arrays["v"] = (x["delta"] * x["u"]).swapaxes(1, 2)[..., None]
        g = x["delta"].swapaxes(1, 2)[..., None] * x["A"][None, :, None]
        q = problem(
            c, "gated_linear_attention", {**arrays, "log_decay": g}, scale=1.0, initial_state=p.initial[0][..., None]
        )
        want, (last,) = truth(q, c)
        want, last = want[..., 0].swapaxes(1, 2), last[..., 0]
    np.testing.assert_allclose(o.astype(float), want.astype(float), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(S.astype(float), last.astype(float), rtol=1e-11, atol=1e-12)


def test_shared_heads_are_copies():
    for case in ("normal_grouped", "normal_values"):
        p = one("gated_delta_rule", case=case)
        c = Contract(op="gated_delta_rule", dtype="float64")
        n = p.sizes["O"]
        copies = {name: np.repeat(a, n // a.shape[1], axis=1) for name, a in p.arrays.items()}
        got, want = truth(p, c), truth(p.changed(**copies), c)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(np.repeat(got[1][0], n // p.sizes["V"], axis=1), want[1][0])


@pytest.mark.parametrize("op", FAMILIES)
def test_a_cut_sequence_is_the_whole_one(op):
    c = Contract(op=op, dtype="float64")
    p = one(op, case="length_17")
    o, states = truth(p, c)
    head, middle = truth(take(p, "T", slice(0, 6)), c)
    tail, last = truth(take(p, "T", slice(6, None)).starting(tuple(x.astype(float) for x in middle)), c)
    axis = p.family.o.index("T")
    np.testing.assert_allclose(np.concatenate([head, tail], axis).astype(float), o.astype(float), rtol=1e-9, atol=1e-9)
    for got, want in zip(last, states, strict=True):
        np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=1e-9, atol=1e-9)


def test_packed_sequences_are_apart():
    p, c = one("ssd", case="packed_initial"), Contract(op="ssd", dtype="float64")
    assert [q.sizes["T"] for q in sequences_of(p)] == [0, 37, 0, 1, 63, 29, 0]
    o, (S,) = truth(p, c)
    np.testing.assert_array_equal(S[0], p.initial[0][0])
    alone, _ = truth(sequences_of(p)[4], c)
    np.testing.assert_array_equal(o[:, :, 38:101], alone)


def test_a_gate_of_minus_infinity_forgets_all():
    p, c = one("kda", case="length_17"), Contract(op="kda", dtype="float64")
    g, v = p.arrays["log_decay"].copy(), p.arrays["v"].copy()
    g[:, :, 9], v[:, :, :9] = -np.inf, np.nan
    o, (S,) = truth(p.changed(log_decay=g, v=v), c)
    want, _ = truth(take(p, "T", slice(9, None)), c)
    np.testing.assert_array_equal(o[:, :, 9:], want)
    assert np.isnan(o[:, :, :9]).all() and np.isfinite(S).all()


# The bound and the deviation.


@pytest.mark.parametrize("op", FAMILIES)
def test_the_error_model_goes_with_the_oracle(op):
    c = Contract(op=op, dtype="float32")
    for case in CASES.values():
        if case.suits(op) and case.level == "quick":
            p = case.problem(c, 0)
            o, states = truth(p, c)
            with np.errstate(all="ignore"):
                rough = rough_result(p, c)
            for want, got in zip((o, *states), rough, strict=True):
                np.testing.assert_allclose(got.x, want, rtol=1e-9, atol=1e-9)
                assert (got.e >= 0).all() and (got.s2 >= 0).all()


def simulated(s, u, rng, runs=300):
    """Return the errors of o when every product and sum of a recurrence is off by a random factor within 1 ± u."""

    def fl(x):
        return x * (1 + u * rng.uniform(-1, 1, (runs, *x.shape[1:])))

    q, k, v, a = (np.repeat(x.x, runs, axis=0) for x in (s.q, s.k, s.v, s.a))
    S, o = np.repeat(s.S, runs, axis=0), []
    for t in range(q.shape[2]):
        S = fl(a[:, :, t] * S)
        if s.b is not None:
            r = fl((s.c[:, :, t, :, None] * S / a[:, :, t]).sum(axis=-2, keepdims=True))
            S = fl(S - fl(s.b[:, :, t, :, None] * r))
        S = fl(S + fl(k[:, :, t, :, None] * v[:, :, t, None]))
        o.append(fl((q[:, :, t, :, None] * S).sum(axis=-2)))
    return np.stack(o, axis=2)


@pytest.mark.parametrize("erase", [False, True])
def test_bound_and_deviation_of_simulated_roundings(erase):
    rng = np.random.default_rng(5)
    q, k, v = (Rough.exact(rng.standard_normal((1, 1, 24, 6))) for _ in "qkv")
    a = Rough.exact(np.full((1, 1, 24, 1, 1), 0.9))
    c = rng.standard_normal((1, 1, 24, 6))
    c = c / np.linalg.norm(c, axis=-1, keepdims=True) if erase else None
    b, error = (0.9 * c, np.zeros((1, 1, 24))) if erase else (None, None)
    s = Steps(q, k, v, a, np.zeros((1, 1, 6, 6)), b, c, error)
    u = Units.of(Contract(dtype="float32"))
    o, _ = propagate(s, u)
    errors = simulated(s, u.acc, rng) - o.x
    assert (np.abs(errors) <= o.e).all()
    ratio = np.sqrt((errors**2).mean(axis=0) / o.s2[0]).mean()
    assert 0.3 < ratio < 1.5


def test_the_bound_of_recalled_values_is_tight():
    p = one("delta_rule", case="rewrite_one_hot", dtype="float32")
    part = analyse(p, Contract(op="delta_rule")).parts["o"]
    assert float(part.bound.max()) < 5e-4


def test_a_scale_off_by_a_thousandth_is_named():
    c = Contract(op="kda", dtype="bfloat16")
    p = one("kda", dtype="bfloat16")
    report = check(lambda q, k, v, g, b: recurrence.kda(q, k, v, g, b, scale=1.001 / np.sqrt(32)), "kda", "bfloat16")
    assert 7e-4 < next(r.figures["amplitude"] for r in report.results if r.check == "kda/normal") < 1.3e-3
    assert not judge(analyse(p, c), Session(recurrence.kda, c).call(p), c).suspect


def test_where_says_what_the_axes_are():
    over = np.zeros((2, 3, 8, 4), bool)
    over[:, 1, 2:5] = True
    assert where(over, "BVDW") == "all in head 1, keys 2-4"
    assert where(over[:, 1], "BTE") == "all in tokens 2-4"
    assert where(np.ones((2, 3), bool), "BT") == "everywhere"


# What the kit says of kernels that do not fit.


def test_what_is_no_result():
    c, p = Contract(op="simple_gla"), one("simple_gla", case="length_2", dtype="float32")
    o, S = recurrence.simple_gla(*p.arguments())
    for result, message in (
        (o, "wanted o and the state"),
        ((o,), "wanted o and the state"),
        ((o, S, S), "returned 3 results"),
        ((o, S.swapaxes(-1, -2)), "state has shape"),
        ((o, S.astype(np.float16)), "state has dtype float16"),
        ((o.astype(np.float64), S), "o has dtype float64"),
        ((o, None), "state is NoneType"),
    ):
        with pytest.raises(KernelFault, match=message):
            Session(lambda *args, result=result: result, c).call(p)


def test_several_states_come_as_a_tuple_or_one_by_one():
    c, p = Contract(op="linear_attention"), one("linear_attention", case="length_2", dtype="float32")
    o, (S, z) = linear_attention(*p.arguments())
    for result in ((o, (S, z)), (o, [S, z]), (o, S, z)):
        output = Session(lambda *args, result=result: result, c).call(p)
        assert sorted(output.parts) == ["normaliser", "o", "state"]
    with pytest.raises(KernelFault, match=r"wanted o and the state \(state, normaliser\)"):
        Session(lambda *args: (o, S), c).call(p)


def test_options_that_a_kernel_lacks_are_not_run():
    report = check(lambda q, k, v, log_decay: recurrence.simple_gla(q, k, v, log_decay), "simple_gla")
    assert report.ok
    reasons = {r.check: r.message for r in report.results if r.verdict == NOT_RUN}
    assert reasons["simple_gla/resumed_half"] == "the kernel does not take initial_state"
    assert reasons["simple_gla/packed"] == "the kernel does not take cu_seqlens"


def test_limits_of_a_contract_are_kept():
    seen = set()

    def kernel(q, k, v, log_decay, *, initial_state=None):
        seen.add((q.shape[1] == k.shape[1] == v.shape[1], q.shape[2] % 16, q.shape[3], v.shape[3] == q.shape[3]))
        return recurrence.simple_gla(q, k, v, log_decay, initial_state=initial_state)

    limits = {
        "gqa": False,
        "seq_multiple": 16,
        "head_dims": (64,),
        "value_dims": False,
        "empty": False,
        "strided": False,
    }
    contract = Contract(op="simple_gla", **limits)
    some = ("length", "normal", "resumed", "permuted", "repeat", "stale")
    report = check(
        kernel, "simple_gla", contract=contract, cache=False, only=lambda id: id.split("/")[1].startswith(some)
    )
    assert report.ok and seen == {(True, 0, 64, True)}, [(r.check, r.message) for r in report.failures]


def test_a_kernel_that_always_has_an_option_is_judged_by_it():
    def kernel(q, k, v, log_decay):
        return recurrence.simple_gla(q, k, v, log_decay, scale=1.0)

    assert not check(kernel, "simple_gla").ok
    assert check(kernel, "simple_gla", contract=Contract(op="simple_gla", always={"scale": 1.0}), cache=False).ok


@pytest.mark.parametrize("op", FAMILIES)
def test_cases_and_ids_are_stable(op):
    checks = OPERATIONS[op].checks(Contract(op=op))
    ids = [c.id for c in checks]
    assert len(set(ids)) == len(ids) > 35 and all(id.startswith(f"{op}/") for id in ids)
    case = CASES["length_17"]
    for a, b in zip(*(case.problem(Contract(op=op), 3).arguments() for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(OPERATIONS[op].options) >= {"initial_state"}


def test_an_output_in_uint16_is_bfloat16():
    c = Contract(op="delta_rule", dtype="bfloat16", uint16=True)
    p = CASES["length_2"].problem(c, 0)
    o, (S,) = truth(p, c)
    raw = (round_to(o, "bfloat16").astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert not judge(analyse(p, c), Output({"o": raw, "state": S.astype(np.float32)}, c), c).wrong


def test_a_kernel_that_raises_fails():
    report = check(lambda q, k, v, log_decay: 1 / 0, "simple_gla")
    assert report.count(FAIL) > 20 and "ZeroDivisionError" in report.failures[0].message
