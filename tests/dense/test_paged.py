"""Keys and values on pages are the same keys and values, wherever the pages lie and whatever else lies in them."""

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
    "window": masks.causal() & masks.window(4, 0),
    "globals": masks.global_tokens([0, 3]) | masks.window(1, 0),
    "not": ~masks.window(1, 1),
    "array of one": masks.from_array([[True]]),
}
HEADS = [(1, 1), (4, 4), (6, 2), (3, 1)]
quick = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def paging(anywhere):
    """Each backend that has `paged_attention`."""
    reason = dispatch.why_not(anywhere, "paged_attention", {})
    if reason is not None:
        pytest.skip(f"backend {anywhere}: {reason}")
    return anywhere


def draw(lengths, H=4, Hk=2, Tq=1, D=5, Dv=3, dtype=np.float64, seed=0):
    """Return q (B, H, Tq, D), and for each sequence its keys (T, Hk, D) and values (T, Hk, Dv)."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(len(lengths), H, Tq, D)).astype(dtype)
    keys, values = ([rng.normal(size=(T, Hk, width)).astype(dtype) for T in lengths] for width in (D, Dv))
    return q, keys, values


def paginate(keys, values, page_size, *, spare=2, wide=1, unused=-1, fill=np.nan, seed=0):
    """Return (k_pages, v_pages, page_table, seqlens_k), the pages in any order, `fill` wherever no token is."""
    used = [-(-len(k) // page_size) for k in keys]
    order = np.random.default_rng(seed).permutation(sum(used) + spare)
    table = np.full((len(keys), max(used, default=0) + wide), unused, np.int32)
    shapes = ((len(order), page_size, *x[0].shape[1:]) for x in (keys, values))
    pools = [np.full(shape, fill, float) for shape in shapes]
    for b, n in enumerate(used):
        table[b, :n] = order[sum(used[:b]) : sum(used[: b + 1])]
        for pool, x in zip(pools, (keys[b], values[b]), strict=True):
            page, slot = np.divmod(np.arange(len(x)), page_size)
            pool[table[b, page], slot] = x
    return *(pool.astype(keys[0].dtype) for pool in pools), table, np.array([len(k) for k in keys], np.int32)


def contiguous(q, keys, values, **options):
    """What the definition says, (o, lse)."""
    parts = [
        refattn.attention(q_b, k.swapaxes(0, 1), v.swapaxes(0, 1), **options, return_lse=True)
        for q_b, k, v in zip(q, keys, values, strict=True)
    ]
    return [np.stack(xs) for xs in zip(*parts, strict=True)]


def close(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def same_bits(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


OPTIONS = st.fixed_dictionaries(
    {"mask": st.sampled_from(list(ANY_LENGTHS.values()))},
    optional={"scale": st.floats(-2, 2), "softcap": st.floats(0.5, 5)},
)


@quick
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    page_size=st.integers(1, 22),
    Tq=st.integers(0, 6),
    heads=st.sampled_from(HEADS),
    options=OPTIONS,
    with_sinks=st.booleans(),
    unused=st.sampled_from([-1, 0, 10**6]),
    seed=st.integers(0, 99),
)
def test_pages_of_any_size_in_any_order_are_contiguous_keys(
    paging, lengths, page_size, Tq, heads, options, with_sinks, unused, seed
):
    q, keys, values = draw(lengths, *heads, Tq, seed=seed)
    if with_sinks:
        options = options | {"sinks": np.random.default_rng(seed).normal(size=heads[0])}
    pages = paginate(keys, values, page_size, unused=unused, seed=seed)
    got = refattn.paged_attention(q, *pages, **options, return_lse=True, backend=paging)
    close(got, contiguous(q, keys, values, **options))


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_the_order_of_the_pages_changes_no_bit(paging, page_size):
    q, keys, values = draw([40, 0, 16, 33], Tq=5, dtype=np.float32)
    options = {"mask": masks.causal(), "return_lse": True, "backend": paging}
    want = refattn.paged_attention(q, *paginate(keys, values, page_size), **options)
    for seed in (1, 2):
        got = refattn.paged_attention(q, *paginate(keys, values, page_size, seed=seed, spare=seed, wide=3), **options)
        same_bits(got, want)


@pytest.mark.parametrize("poison", [1e4, np.nan, np.inf, -np.inf])
def test_what_no_sequence_uses_changes_no_bit(paging, poison):
    q, keys, values = draw([35, 16, 1, 0], Tq=4, dtype=np.float32)
    options = {"return_lse": True, "backend": paging}
    want = refattn.paged_attention(q, *paginate(keys, values, 16, fill=0), **options)
    same_bits(refattn.paged_attention(q, *paginate(keys, values, 16, fill=poison), **options), want)


def test_nan_in_one_sequence_stays_there(paging):
    q, keys, values = draw([35, 20, 7], Tq=4, dtype=np.float32)
    options = {"mask": masks.causal(), "return_lse": True, "backend": paging}
    o, lse = refattn.paged_attention(q, *paginate(keys, values, 16), **options)
    keys[1][-2], values[1][-1] = np.nan, np.nan
    new_o, new_lse = refattn.paged_attention(q, *paginate(keys, values, 16), **options)
    same_bits((new_o[[0, 2]], new_lse[[0, 2]]), (o[[0, 2]], lse[[0, 2]]))
    same_bits((new_o[1, :, :2], new_lse[1, :, :2]), (o[1, :, :2], lse[1, :, :2]))  # these do not see the last two keys
    assert np.isnan(new_o[1, :, 2:]).all()


def test_a_page_may_stand_in_two_tables(paging):
    q, keys, values = draw([40, 37], Tq=2, dtype=np.float32)
    keys[1][:32], values[1][:32] = keys[0][:32], values[0][:32]
    k_pages, v_pages, table, lengths = paginate(keys, values, 16)
    options = {"mask": masks.causal(), "return_lse": True, "backend": paging}
    want = refattn.paged_attention(q, k_pages, v_pages, table, lengths, **options)
    k_pages[table[1, :2]], v_pages[table[1, :2]] = np.nan, np.nan  # the second sequence's own copies
    table[1, :2] = table[0, :2]
    same_bits(refattn.paged_attention(q, k_pages, v_pages, table, lengths, **options), want)


def test_a_sequence_may_have_one_page_twice(paging):
    q, keys, values = draw([6])
    k_pages, v_pages, table, lengths = paginate(keys, values, 3)
    table[0, 1] = table[0, 0]
    got = refattn.paged_attention(q, k_pages, v_pages, table, lengths, return_lse=True, backend=paging)
    close(got, contiguous(q, [np.tile(keys[0][:3], (2, 1, 1))], [np.tile(values[0][:3], (2, 1, 1))]))


def test_a_sequence_does_not_depend_on_the_batch(paging):
    q, keys, values = draw([50, 1, 130, 17], Tq=3, dtype=np.float32)
    k_pages, v_pages, table, lengths = paginate(keys, values, 16)
    options = {"mask": masks.causal(), "return_lse": True, "backend": paging}
    o, lse = refattn.paged_attention(q, k_pages, v_pages, table, lengths, **options)
    for b in range(4):
        alone = slice(b, b + 1)
        got = refattn.paged_attention(q[alone], k_pages, v_pages, table[alone], lengths[alone], **options)
        same_bits(got, (o[alone], lse[alone]))


def test_pages_are_a_batch_with_padding(paging):
    lengths = [9, 4, 0, 12]
    q, keys, values = draw(lengths, Tq=3)
    padded = [np.stack([np.pad(x, ((0, 12 - len(x)), (0, 0), (0, 0))) for x in xs]) for xs in (keys, values)]
    mask = masks.padding(lengths) & masks.causal(np.array(lengths) - 3)
    want = refattn.attention(q, *(x.swapaxes(1, 2) for x in padded), mask=mask, return_lse=True)
    got = refattn.paged_attention(q, *paginate(keys, values, 5), mask=masks.causal(), return_lse=True, backend=paging)
    close(got, want)


def test_the_last_query_is_the_last_key_of_its_own_sequence(paging):
    q, keys, values = draw([5, 2, 0], H=1, Hk=1, Tq=3)
    pages = paginate(keys, values, 2)
    _, lse = refattn.paged_attention(0 * q, *pages, mask=masks.causal(), return_lse=True, backend=paging)
    np.testing.assert_allclose(np.exp(lse[:, 0]), [[3, 4, 5], [0, 1, 2], [0, 0, 0]])  # how many keys each query sees


def test_a_query_without_keys_gets_nothing_or_the_sink(paging):
    q, keys, values = draw([0, 4], Tq=2)
    pages, sinks = paginate(keys, values, 3), np.array([-1.0, 0.0, 1.0, -np.inf])
    o, lse = refattn.paged_attention(q, *pages, return_lse=True, backend=paging)
    assert (o[0] == 0).all() and (lse[0] == -np.inf).all() and np.isfinite(lse[1]).all()
    o, lse = refattn.paged_attention(q, *pages, sinks=sinks, return_lse=True, backend=paging)
    assert (o[0] == 0).all()
    np.testing.assert_allclose(lse[0, :, 0], sinks)


def test_without_lse_it_returns_o_alone(paging):
    q, keys, values = draw([4, 9])
    pages = paginate(keys, values, 3)
    o, _ = refattn.paged_attention(q, *pages, return_lse=True, backend=paging)
    same_bits([refattn.paged_attention(q, *pages, backend=paging)], [o])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", ">i4"])
def test_tables_and_lengths_of_any_integers(paging, dtype):
    q, keys, values = draw([40, 3], dtype=np.float32)
    k_pages, v_pages, table, lengths = paginate(keys, values, 16, unused=100)
    want = refattn.paged_attention(q, k_pages, v_pages, table, lengths, return_lse=True, backend=paging)
    others = table.astype(dtype), lengths.astype(dtype)
    same_bits(refattn.paged_attention(q, k_pages, v_pages, *others, return_lse=True, backend=paging), want)


def kernel(
    q, k_pages, v_pages, *, page_table, seqlens_k, causal=False, window=None, scale=None, softcap=None, sinks=None
):
    mask = masks.causal() if causal else None
    if window is not None:
        mask = masks.window(*window) if mask is None else mask & masks.window(*window)
    options = {"mask": mask, "scale": scale, "softcap": softcap, "sinks": sinks, "return_lse": True}
    return refattn.paged_attention(q, k_pages, v_pages, page_table, seqlens_k, **options)


def about_layout(check):
    """The checks that a mistake in the layout would show in."""
    return any(word in check for word in ("normal", "length", "sink", "nan", "edge_causal"))


@pytest.mark.parametrize("page", [1, 16])
def test_the_kit_passes_it_as_a_kernel_on_pages(page):
    report = rt.check(
        from_layout(kernel, "paged", page=page), rt.Contract(p="float32"), level="quick", only=about_layout
    )
    assert report.ok, report
    assert report.count("PASS") >= 10


def test_what_the_mutants_are_made_from_is_right():
    dispatch.register("right", type("Right", (), {"paged_attention": staticmethod(mistakes.RIGHT["paged_attention"])}))
    try:
        results = [judge(case, "right", {}) for case in cases("paged_attention", "quick")]
    finally:
        dispatch.unregister("right")
    assert [result for result in results if result.verdict != "PASS"] == []
