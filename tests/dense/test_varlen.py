"""Packed sequences: each is attention by itself, whatever lies beside it."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refattn
from refattn import dispatch, masks
from refattn import testing as rt
from refattn.testing.adapters import from_layout
from refattn.testing.cases import cases
from refattn.testing.conformance import judge
from tests.mistakes import packed as mistakes

ANY_LENGTHS = {
    "none": None,
    "causal": masks.causal(),
    "causal from the top": masks.causal(0),
    "window": masks.causal() & masks.window(2, 0),
    "both sides": masks.window(1, 3),
    "globals": masks.global_tokens([0, 2]) | masks.window(0, 0),
    "not": ~masks.window(1, 1),
    "array of one": masks.from_array([[True]]),
    "function": masks.from_function(lambda i, j: (i + j) % 3 > 0),
}
HEADS = [(1, 1), (4, 4), (6, 2), (3, 1)]
quick = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def packing(anywhere):
    """Each backend that has the operations of this file."""
    for operation in ("attention_varlen", "attention_varlen_vjp"):
        reason = dispatch.why_not(anywhere, operation, {})
        if reason is not None:
            pytest.skip(f"backend {anywhere}: {reason}")
    return anywhere


def borders(lengths, dtype=np.int32):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def draw(lengths, H=4, Hk=2, D=5, Dv=3, dtype=np.float64, seed=0):
    """Return the arguments of a call with these (queries, keys) for each sequence, and do."""
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths, int).reshape(-1, 2)
    total_q, total_k = (int(total) for total in lengths.sum(axis=0))
    shapes = ((total_q, H, D), (total_k, Hk, D), (total_k, Hk, Dv), (total_q, H, Dv))
    q, k, v, do = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    return (q, k, v, borders(lengths[:, 0]), borders(lengths[:, 1])), do


def one_by_one(args, **options):
    """What the definition says, (o, lse)."""
    q, k, v, cu_q, cu_k = args
    parts = []
    for i, j in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        sequence = (x[slice(*rows)].swapaxes(0, 1) for x, rows in ((q, i), (k, j), (v, j)))
        parts.append(refattn.attention(*sequence, **options, return_lse=True))
    nothing = np.zeros((q.shape[1], 0, v.shape[2])), np.zeros((q.shape[1], 0))
    o, lse = (np.concatenate(xs, axis=1) for xs in zip(nothing, *parts, strict=True))
    return o.swapaxes(0, 1), lse


def one_by_one_vjp(do, args, dlse=None, **options):
    """What the definition says, (dq, dk, dv), and the list of each sequence's dsinks."""
    q, k, v, cu_q, cu_k = args
    dq, dk, dv, dsinks = *(np.zeros_like(x) for x in (q, k, v)), []
    for i, j in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        i, j = slice(*i), slice(*j)
        sequence = (x[rows].swapaxes(0, 1) for x, rows in ((do, i), (q, i), (k, j), (v, j)))
        g = refattn.attention_vjp(*sequence, **options, dlse=None if dlse is None else dlse[:, i])
        dq[i], dk[j], dv[j] = (x.swapaxes(0, 1) for x in g[:3])
        dsinks.append(g.dsinks)
    return (dq, dk, dv), dsinks


def close(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def same_bits(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


LENGTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5)
OPTIONS = st.fixed_dictionaries(
    {"mask": st.sampled_from(list(ANY_LENGTHS.values()))},
    optional={"scale": st.floats(-2, 2), "softcap": st.floats(0.5, 5)},
)


@quick
@given(LENGTHS, st.sampled_from(HEADS), OPTIONS, st.booleans(), st.integers(0, 99))
def test_each_sequence_is_attention(packing, lengths, heads, options, with_sinks, seed):
    args, do = draw(lengths, *heads, seed=seed)
    rng = np.random.default_rng(seed)
    if with_sinks:
        options = options | {"sinks": rng.normal(size=heads[0])}
    got = refattn.attention_varlen(*args, **options, return_lse=True, backend=packing)
    close(got, one_by_one(args, **options))

    dlse = rng.normal(size=got[1].shape)
    g = refattn.attention_varlen_vjp(do, *args, **options, dlse=dlse, backend=packing)
    want, dsinks = one_by_one_vjp(do, args, dlse, **options)
    close(g[:3], want)
    assert g.dbias is None and (g.dsinks is not None) == with_sinks
    if with_sinks:
        close([g.dsinks], [sum(dsinks, np.zeros(heads[0]))])


@pytest.mark.parametrize("lengths", [[(3, 5), (0, 4), (7, 7), (2, 0)], [(30, 70)]], ids=["several", "one"])
def test_packed_self_attention_is_attention_with_documents(packing, lengths):
    args, _ = draw(lengths)
    ids_k, ids_q = (np.repeat(np.arange(len(lengths)), np.diff(cu)) for cu in (args[4], args[3]))
    q, k, v = (x.swapaxes(0, 1) for x in args[:3])
    o, lse = refattn.attention(q, k, v, mask=masks.document(ids_k, ids_q), return_lse=True)
    close(refattn.attention_varlen(*args, return_lse=True, backend=packing), (o.swapaxes(0, 1), lse))


def test_the_last_query_of_each_sequence_is_its_last_key(packing):
    args, _ = draw([(2, 4), (3, 3), (4, 2)], H=1, Hk=1)
    q, k, v, cu_q, cu_k = args
    _, lse = refattn.attention_varlen(0 * q, k, v, cu_q, cu_k, mask=masks.causal(), return_lse=True, backend=packing)
    np.testing.assert_allclose(np.exp(lse), [[3, 4, 1, 2, 3, 0, 0, 1, 2]])  # how many keys each query sees


def test_a_query_without_keys_gets_nothing_or_the_sink(packing):
    args, _ = draw([(2, 0), (1, 3)])
    sinks = np.array([-1.0, 0.0, 1.0, -np.inf])
    o, lse = refattn.attention_varlen(*args, return_lse=True, backend=packing)
    assert (o[:2] == 0).all() and (lse[:, :2] == -np.inf).all() and np.isfinite(lse[:, 2]).all()
    o, lse = refattn.attention_varlen(*args, sinks=sinks, return_lse=True, backend=packing)
    assert (o[:2] == 0).all()
    np.testing.assert_allclose(lse[:, 0], sinks)


def test_no_sequence_at_all(packing):
    args, do = draw([])
    o, lse = refattn.attention_varlen(*args, return_lse=True, backend=packing)
    assert o.shape == (0, 4, 3) and lse.shape == (4, 0)
    g = refattn.attention_varlen_vjp(do, *args, sinks=np.ones(4), backend=packing)
    assert g.dq.shape == (0, 4, 5) and (g.dsinks == 0).all()


def test_without_lse_it_returns_o_alone(packing):
    args, _ = draw([(4, 4), (3, 8)])
    o, _ = refattn.attention_varlen(*args, return_lse=True, backend=packing)
    same_bits([refattn.attention_varlen(*args, backend=packing)], [o])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int64", "uint64", ">i4"])
def test_borders_of_any_integers(packing, dtype):
    args, do = draw([(40, 30), (0, 0), (80, 90)], dtype=np.float32)
    other = (*args[:3], *(cu.astype(dtype) for cu in args[3:]))
    want = refattn.attention_varlen(*args, return_lse=True, backend=packing)
    same_bits(refattn.attention_varlen(*other, return_lse=True, backend=packing), want)
    g = refattn.attention_varlen_vjp(do, *args, backend=packing)
    same_bits(refattn.attention_varlen_vjp(do, *other, backend=packing)[:3], g[:3])


def rearranged(lengths, order):
    """Return the rows of packed queries and of packed keys when the sequences stand in another order."""
    starts = np.concatenate([np.zeros((1, 2), int), np.cumsum(lengths, axis=0)])
    rows = [[np.arange(starts[b, n], starts[b + 1, n]) for b in order] for n in (0, 1)]
    return [np.concatenate(side) for side in rows]


def test_a_sequence_does_not_depend_on_its_neighbours(packing):
    lengths, order = np.array([(5, 9), (40, 70), (0, 3), (1, 1), (17, 17)]), [4, 2, 0, 3, 1]
    args, do = draw(lengths, dtype=np.float32)
    options = {"mask": masks.causal(), "backend": packing}
    o, lse = refattn.attention_varlen(*args, **options, return_lse=True)
    g = refattn.attention_varlen_vjp(do, *args, **options)

    i, j = rearranged(lengths, order)
    q, k, v = args[0][i], args[1][j], args[2][j]
    moved = (q, k, v, *(borders(lengths[order, n]) for n in (0, 1)))
    same_bits(refattn.attention_varlen(*moved, **options, return_lse=True), (o[i], lse[:, i]))
    same_bits(refattn.attention_varlen_vjp(do[i], *moved, **options)[:3], (g.dq[i], g.dk[j], g.dv[j]))


@pytest.mark.parametrize("poison", [1e4, np.nan, np.inf])
def test_nothing_leaks_from_one_sequence_into_another(packing, poison):
    args, do = draw([(5, 9), (6, 8), (4, 4)], dtype=np.float32)
    options = {"mask": masks.window(3, 0), "backend": packing}
    o, lse = refattn.attention_varlen(*args, **options, return_lse=True)
    g = refattn.attention_varlen_vjp(do, *args, **options)
    q, k, v = (x.copy() for x in args[:3])
    q[5:11], k[9:17], v[9:17], do = poison, poison, poison, do.copy()
    do[5:11] = poison
    poisoned = (q, k, v, *args[3:])
    new_o, new_lse = refattn.attention_varlen(*poisoned, **options, return_lse=True)
    new_g = refattn.attention_varlen_vjp(do, *poisoned, **options)
    for i, j in ((slice(0, 5), slice(0, 9)), (slice(11, 15), slice(17, 21))):
        same_bits((new_o[i], new_lse[:, i]), (o[i], lse[:, i]))
        same_bits((new_g.dq[i], new_g.dk[j], new_g.dv[j]), (g.dq[i], g.dk[j], g.dv[j]))
    assert (new_o[5:11] != o[5:11]).any()


def test_sixteen_bit_gradients_are_rounded_once(packing):
    args, do = draw([(3, 3)] * 40, dtype=np.float16)
    sinks = np.linspace(-1, 1, 4).astype(np.float16)
    g = refattn.attention_varlen_vjp(do, *args, sinks=sinks, backend=packing)
    wide = [x.astype(np.float64) for x in (do, *args[:3])]
    want = refattn.attention_varlen_vjp(*wide, *args[3:], sinks=sinks.astype(np.float64))
    assert g.dsinks.dtype == np.float16
    np.testing.assert_array_equal(g.dsinks, want.dsinks.astype(np.float16))
    assert (g.dk == want.dk.astype(np.float16)).mean() > 0.99


GRADIENTS = {
    "plain": ([(3, 5), (2, 2)], {}),
    "causal, grouped": ([(4, 6), (0, 2), (3, 1), (1, 0)], {"mask": masks.causal()}),
    "softcap and scale": ([(3, 5), (4, 2)], {"softcap": 0.9, "scale": 0.8}),
    "sinks": ([(3, 0), (2, 4), (3, 3)], {"mask": masks.causal()}),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_central_differences(packing, name):
    lengths, options = GRADIENTS[name]
    rng = np.random.default_rng(0)
    (q, k, v, *cu), do = draw(lengths)
    inputs = {"q": q, "k": k, "v": v} | ({"sinks": rng.normal(size=4)} if name == "sinks" else {})
    dlse = rng.normal(size=(4, len(q)))

    def forward(inputs):
        x = dict(inputs)
        arrays = (x.pop("q"), x.pop("k"), x.pop("v"))
        o, lse = refattn.attention_varlen(*arrays, *cu, **x, **options, return_lse=True)
        return (do * o).sum() + (dlse * np.where(np.isneginf(lse), 0, lse)).sum()

    sinks = inputs.get("sinks")
    g = refattn.attention_varlen_vjp(do, q, k, v, *cu, sinks=sinks, **options, dlse=dlse, backend=packing)
    for only in inputs:
        dx = rng.normal(size=inputs[only].shape)
        ahead, behind = (forward(inputs | {only: inputs[only] + step * dx}) for step in (1e-6, -1e-6))
        along = getattr(g, f"d{only}") * dx
        assert abs((ahead - behind) / 2e-6 - along.sum()) < 2e-7 * (1 + abs(along).sum()), only


def pattern(causal, window):
    """The mask value for what the kit asks."""
    mask = masks.causal() if causal else None
    if window is not None:
        sides = masks.window(*window)
        mask = sides if mask is None else mask & sides
    return mask


def kernel(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal=False, window=None, scale=None, softcap=None, sinks=None):
    options = {"mask": pattern(causal, window), "scale": scale, "softcap": softcap, "sinks": sinks}
    return refattn.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options, return_lse=True)


def kernel_vjp(
    do,
    q,
    k,
    v,
    *,
    cu_seqlens_q,
    cu_seqlens_k,
    causal=False,
    window=None,
    scale=None,
    softcap=None,
    sinks=None,
    dlse=None,
):
    options = {"mask": pattern(causal, window), "scale": scale, "softcap": softcap, "sinks": sinks, "dlse": dlse}
    g = refattn.attention_varlen_vjp(do, q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    return (*g[:3],) if sinks is None else (*g[:3], g.dsinks)


def about_layout(check):
    """The checks that a mistake in the layout would show in."""
    return any(word in check for word in ("normal", "length", "sink", "nan", "edge_causal"))


@pytest.mark.parametrize(("op", "function"), [("attention", kernel), ("attention_vjp", kernel_vjp)])
def test_the_kit_passes_it_as_a_kernel_on_packed_arrays(op, function):
    report = rt.check(
        from_layout(function, "packed"), rt.Contract(op=op, p="float32"), level="quick", only=about_layout
    )
    assert report.ok, report
    assert report.count("PASS") >= 10


@pytest.mark.parametrize("operation", [name for name in mistakes.RIGHT if "varlen" in name])
def test_what_the_mutants_are_made_from_is_right(operation):
    dispatch.register("right", type("Right", (), {operation: staticmethod(mistakes.RIGHT[operation])}))
    try:
        results = [judge(case, "right", {}) for case in cases(operation, "quick")]
    finally:
        dispatch.unregister("right")
    assert [result for result in results if result.verdict != "PASS"] == []


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(12))
def test_torch_sdpa_of_each_sequence(packing, seed):
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")
    rng = np.random.default_rng(seed)
    Hk, group, D, Dv, B = (int(rng.integers(1, most)) for most in (4, 4, 40, 40, 6))
    causal = bool(rng.random() < 0.5)
    lengths = [(int(Tq), int(rng.integers(1, 60))) for Tq in rng.integers(0, 60, B)]
    args, do = draw(lengths, Hk * group, Hk, D, Dv, seed=seed)
    scale = float(rng.normal()) if rng.random() < 0.5 else None
    options = {"mask": masks.causal(0) if causal else None, "scale": scale}  # torch aligns to the top left
    got = [
        refattn.attention_varlen(*args, **options, backend=packing),
        *refattn.attention_varlen_vjp(do, *args, **options, backend=packing)[:3],
    ]

    q, k, v, do = (torch.from_numpy(x) for x in (*args[:3], do))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    parts = []
    for i, j in zip(itertools.pairwise(args[3].tolist()), itertools.pairwise(args[4].tolist()), strict=True):
        sequence = [x[slice(*rows)].transpose(0, 1)[None] for x, rows in ((q, i), (k, j), (v, j))]
        o = torch.nn.functional.scaled_dot_product_attention(*sequence, is_causal=causal, scale=scale, enable_gqa=True)
        parts.append(o[0].transpose(0, 1))
    o = torch.cat(parts)
    o.backward(do)
    theirs = [o.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    for ours, other in zip(got, theirs, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-11, atol=1e-12 * max(1, np.abs(other).max(initial=0)))
