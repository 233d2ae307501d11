"""The kernel for few queries: what its results may not depend on, what it may not touch, and who gets it."""

import inspect
import tracemalloc

import numpy as np
import pytest
import refattn_numba
from refattn_numba import few

import refattn
from refattn import masks

MASKS = [None, masks.causal(), masks.causal() & masks.window(600, 0), masks.padding(777)]


@pytest.fixture
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


def qkv(Tq=2, Tk=1500, H=6, Hk=2, D=64, dtype=np.float32, batch=(), seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, H, Tq, D), (*batch, Hk, Tk, D), (*batch, Hk, Tk, D))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def numba(q, k, v, **options):
    return refattn.attention(q, k, v, return_lse=True, backend="numba", **options)


def assert_same(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


def pool(k, v, page_size, seed=0):
    """Scatter keys and values (Hk, T, D) over pages in random order; what is unused is NaN."""
    Hk, T, D = k.shape
    n = -(-T // page_size)
    table = np.random.default_rng(seed).permutation(n + 3)[:n]
    pages = [np.full((n + 3, page_size, Hk, D), np.nan, k.dtype) for _ in range(2)]
    for x, page in zip((k, v), pages, strict=True):
        for j in range(T):
            page[table[j // page_size], j % page_size] = x[:, j]
    return *pages, table[None]


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_do_not_depend_on_threads(mask, dtype):
    q, k, v = qkv(Tq=4, Tk=3000, dtype=dtype)
    results = []
    for n in (1, 2, 5):
        refattn_numba.set_num_threads(n)
        results.append(numba(q, k, v, mask=mask))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("mask", MASKS)
def test_a_row_does_not_depend_on_its_batch_mates(mask):
    q, k, v = qkv(batch=(3,))
    whole = numba(q, k, v, mask=mask)
    assert_same([x[1] for x in whole], numba(q[1], k[1], v[1], mask=mask))


def test_padding_changes_no_bit():
    q, k, v = qkv(Tq=1)
    assert_same(numba(q, k, v, mask=masks.padding(777)), numba(q, k[:, :777], v[:, :777]))


@pytest.mark.parametrize("mask", MASKS[:3])
@pytest.mark.parametrize("page_size", [1, 16, 100, 2000])
def test_pages_change_no_bit(page_size, mask):
    q, k, v = qkv()
    k_pages, v_pages, table = pool(k, v, page_size)
    o, lse = refattn.paged_attention(
        q[None], k_pages, v_pages, table, np.array([1500]), mask=mask, return_lse=True, backend="numba"
    )
    assert_same((o[0], lse[0]), numba(q, k, v, mask=mask))


@pytest.mark.parametrize("Tq", [2, 20])
def test_pages_of_sequences_of_all_lengths(Tq):
    """Masks that are no intervals, and chunks of a prompt, take the other kernel; the answer is the same."""
    q, k, v = qkv(Tq=Tq, Tk=200)
    k_pages, v_pages, table = pool(k, v, 16)
    lengths, tables = np.array([0, 1, 16, 17, 200]), np.repeat(table, 5, axis=0)
    queries = np.stack([q] * 5)
    for mask in (None, masks.causal(), masks.global_tokens([0]) | masks.window(3, 0)):
        got = refattn.paged_attention(
            queries, k_pages, v_pages, tables, lengths, mask=mask, return_lse=True, backend="numba"
        )
        want = refattn.paged_attention(queries, k_pages, v_pages, tables, lengths, mask=mask, return_lse=True)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, atol=3e-6)


def extra_memory(call):
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_cache_is_read_where_it_lies(dtype):
    """The view of a cache that is half full is strided; neither it nor 16-bit numbers are copied."""
    q, k, v = qkv(Tq=1, Tk=20000, dtype=dtype)
    half = (q, k[:, :10000], v[:, :10000])
    assert extra_memory(lambda: numba(*half)) < k.nbytes / 8
    assert_same(numba(*half), numba(q, k[:, :10000].copy(), v[:, :10000].copy()))


def test_pages_are_read_where_they_lie():
    q, k, v = qkv(Tq=1, Tk=8000)
    k_pages, v_pages, table = pool(k, v, 32)
    lengths = np.array([8000])
    call = lambda: refattn.paged_attention(q[None], k_pages, v_pages, table, lengths, backend="numba")  # noqa: E731
    assert extra_memory(call) < k.nbytes / 8


@pytest.mark.parametrize(
    "odd", [lambda x: x[..., ::-1].copy()[..., ::-1], lambda x: x[:, ::-1].copy()[:, ::-1], np.asfortranarray]
)
def test_any_strides(odd):
    q, k, v = qkv()
    assert_same(numba(odd(q), odd(k), odd(v)), numba(q, k, v))


def test_bytes_that_are_not_aligned():
    q, k, v = qkv()
    raw = np.zeros(k.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(k.shape)
    shifted[:] = k
    assert_same(numba(q, shifted, v), numba(q, k, v))


@pytest.mark.parametrize("mask", MASKS[1:])
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
def test_what_is_hidden_changes_no_bit(mask, wild):
    """Each query has keys that others see and it does not."""
    q, k, v = qkv(Tq=5, Tk=900)
    before = numba(q, k, v, mask=mask)
    visible = mask.dense(5, 900)
    for i in range(5):
        k_wild, v_wild = k.copy(), v.copy()
        k_wild[:, ~visible[i]], v_wild[:, ~visible[i]] = wild, wild
        after = numba(q, k_wild, v_wild, mask=mask)
        np.testing.assert_array_equal(after[0][:, i], before[0][:, i])
        np.testing.assert_array_equal(after[1][:, i], before[1][:, i])


def test_a_visible_nan_reaches_the_rows_that_see_it():
    q, k, v = qkv(Tq=4, Tk=700)
    k[0, 697] = np.nan  # the last three queries of causal attention see it
    o, lse = numba(q, k, v, mask=masks.causal())
    want = np.zeros((6, 4), bool)
    want[:3, 1:] = True
    np.testing.assert_array_equal(np.isnan(lse), want)
    np.testing.assert_array_equal(np.isnan(o).all(axis=-1), want)
    np.testing.assert_array_equal(np.isnan(o).any(axis=-1), want)


@pytest.mark.parametrize("num_splits", [1, 3, 40])
def test_split_kv_is_the_same_call(num_splits):
    q, k, v = qkv(Tq=1)
    got = refattn.attention_split_kv(q, k, v, num_splits=num_splits, return_lse=True, backend="numba")
    assert_same(got, numba(q, k, v))


def test_latent_heads_are_rows_of_one_matrix():
    """More rows of queries than one item takes, and keys that are no multiple of a register wide."""
    rng = np.random.default_rng(0)
    shapes = ((2, 40, 3, 16), (2, 40, 3, 5), (2, 600, 40), (2, 600, 5), (40, 40, 16), (40, 40, 12))
    arrays = [rng.standard_normal(shape).astype(np.float32) / 4 for shape in shapes]
    got = refattn.mla_attention(*arrays, mask=masks.causal(), backend="numba")
    want = refattn.mla_attention(*(x.astype(float) for x in arrays), mask=masks.causal())
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(
    ("fits", "options"),
    [
        (True, {}),
        (True, {"mask": masks.padding(5) & masks.causal(), "softcap": 2.0, "sinks": np.zeros(6, np.float32)}),
        (False, {"mask": masks.global_tokens([0])}),
        (False, {"mask": np.ones((2, 9), bool)}),
        (False, {"bias": np.zeros((2, 9), np.float32)}),
        (False, {"dropout_mask": np.ones((2, 9), bool)}),
    ],
)
def test_the_rule(fits, options):
    q, k, v = qkv(Tk=9, D=8)
    assert (few.attend_few(q, k, v, **options) is not None) == fits
    long = np.repeat(q, few.FEW, axis=-2)
    assert few.attend_few(long, k, v) is None


PROBLEMS = [
    # shapes and masks, and the other options
    ({"Tq": 1, "Tk": 700, "D": 20}, None, {}),
    ({"Tq": 8, "Tk": 65, "H": 2, "D": 7}, masks.causal(), {"scale": -0.3}),
    ({"Tq": 3, "Tk": 130, "H": 14, "D": 33}, masks.causal() & masks.window(70, 0), {"scale": 0.0}),
    ({"Tq": 1, "Tk": 1030, "D": 16}, masks.padding([1030, 600]), {"scale": 0.6}),
    ({"Tq": 4, "Tk": 300, "D": 48}, masks.padding([2, 300]) & masks.causal(), {"softcap": 1.5}),
    ({"Tq": 2, "Tk": 520, "D": 8}, masks.window(3, 3), {"sinks": np.linspace(-2, 6, 6)}),
    ({"Tq": 5, "Tk": 3, "D": 8}, masks.causal(), {"sinks": np.linspace(-2, 2, 6), "softcap": 4.0}),
    ({"Tq": 2, "Tk": 0}, None, {"sinks": np.linspace(-2, 2, 6)}),
    ({"Tq": 0, "Tk": 9}, masks.causal(), {}),
]


def difference(problem, dtype=np.float32):
    """Return how far (o, lse) lies from the reference in float64, at most; inf if NaN or -inf stand elsewhere."""
    shape, mask, options = problem
    q, k, v = qkv(**shape, batch=(2,), dtype=dtype)
    exact = [x.astype(float) for x in (q, k, v)]
    own = {name: x.astype(dtype) if name == "sinks" else x for name, x in options.items()}
    worst = 0.0
    for got, want in zip(
        numba(q, k, v, mask=mask, **own), refattn.attention(*exact, mask=mask, return_lse=True, **options), strict=True
    ):
        if not np.array_equal(np.isneginf(got), np.isneginf(want)) or np.isnan(got).any():
            return np.inf
        finite = np.isfinite(want)
        worst = max(worst, np.abs(got[finite].astype(float) - want[finite]).max(initial=0))
    return worst


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-14), (np.float32, 4e-6), (np.float16, 4e-3)])
def test_the_reference(problem, dtype, bound):
    assert difference(problem, dtype) < bound


def changed(name, **fields):
    """Return a mistake: the named fields of one of the launch's tables become what the functions make of them."""
    return lambda a: a | {name: a[name]._replace(**{f: make(getattr(a[name], f)) for f, make in fields.items()})}


MISTAKES = {
    "last key dropped": changed("spans", stop=lambda x: np.maximum(x - 1, 0)),
    "tail tile dropped": changed("spans", stop=lambda x: x // 64 * 64),
    "windows begin too late": changed("spans", start=lambda x: x + 1),
    "patterns of the first sequence for all": changed("spans", of=lambda x: x * 0),
    "first key head for all": changed("keys", head=lambda x: 0),
    "values of the first head for all": changed("values", head=lambda x: 0),
    "keys of the first sequence for all": changed("keys", pages=lambda x: x * 0),
    "first run of keys for all": changed("parts", split=lambda x: x * 0),
    "last run of keys not added": changed("parts", begin=lambda x: x - (np.arange(len(x)) == len(x) - 1)),
    "sinks forgotten": lambda a: a | {"sinks": None},
    "sinks of the first head for all": lambda a: (
        a | {"sinks": None if a["sinks"] is None else 0 * a["sinks"] + a["sinks"][0]}
    ),
    "softcap forgotten": lambda a: a | {"softcap": None},
    "scale positive": lambda a: a | {"scale": a["scale"] and abs(a["scale"])},
    "scale of 0 taken for none": lambda a: a | {"scale": a["scale"] if a["scale"] else None},
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_the_problems_notice_a_wrong_launch(monkeypatch, mistake):
    right, names = few.stream, inspect.signature(few.stream).parameters
    monkeypatch.setattr(few, "stream", lambda *args: right(**MISTAKES[mistake](dict(zip(names, args, strict=True)))))
    assert any(not difference(problem) < 4e-6 for problem in PROBLEMS)
