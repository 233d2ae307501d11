"""A prompt that is read in chunks, and keys that are read in parts, give what one pass over all of it gives."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refattn
from refattn import dispatch, masks

ANY_CHUNK = {  # masks by position: they mean the same whether the queries come at once or not
    "causal": masks.causal(),
    "window": masks.causal() & masks.window(3, 0),
    "window and first": masks.causal() & (masks.window(2, 0) | masks.global_tokens([0])),
}
quick = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CUTS = st.lists(st.integers(0, 24), max_size=6).map(sorted)
OPTIONS = st.fixed_dictionaries(
    {"mask": st.sampled_from(list(ANY_CHUNK.values()))},
    optional={"softcap": st.floats(0.5, 5), "scale": st.floats(-2, 2), "sinks": st.just(np.linspace(-1, 1, 4))},
)


def has(backend, operation):
    """Skip where the backend lacks the operation."""
    reason = dispatch.why_not(backend, operation, {})
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")
    return backend


def draw(T, seed=0, H=4, Hk=2, D=5, Dv=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in ((H, T, D), (Hk, T, D), (Hk, T, Dv))]


def chunks(T, cuts):
    """Return the slices between the cuts; some may be empty."""
    inside = [min(cut, T) for cut in cuts]
    return [slice(*pair) for pair in itertools.pairwise([0, *inside, T])]


def close(got, want):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


@quick
@given(T=st.integers(0, 24), cuts=CUTS, options=OPTIONS, seed=st.integers(0, 99))
def test_a_cache_filled_in_chunks(anywhere, T, cuts, options, seed):
    q, k, v = draw(T, seed)
    cache = refattn.KVCache((), kv_heads=2, capacity=24, head_dim=5, v_head_dim=3, dtype=np.float64)
    parts = []
    for chunk in chunks(T, cuts):
        keys, values = cache.append(k[:, chunk], v[:, chunk])
        parts.append(refattn.attention(q[:, chunk], keys, values, **options, return_lse=True, backend=anywhere))
    o, lse = (np.concatenate(xs, axis=1) for xs in zip(*parts, strict=True))
    close((o, lse), refattn.attention(q, k, v, **options, return_lse=True))


@quick
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    cuts=CUTS,
    page_size=st.integers(1, 9),
    options=OPTIONS,
    seed=st.integers(0, 99),
)
def test_pages_filled_in_chunks(anywhere, lengths, cuts, page_size, options, seed):
    has(anywhere, "paged_attention")
    cache = refattn.PagedKVCache(100, page_size, kv_heads=2, head_dim=5, v_head_dim=3, dtype=np.float64)
    sequences = [(cache.allocate(), *draw(T, seed + n)) for n, T in enumerate(lengths)]
    parts = [[] for _ in lengths]
    for n in range(len(cuts) + 1):
        for (sequence, q, k, v), had in zip(sequences, parts, strict=True):  # in turn, so that the pages interleave
            chunk = chunks(q.shape[1], cuts)[n]
            cache.append(sequence, k[:, chunk], v[:, chunk])
            had.append(
                refattn.paged_attention(
                    q[None, :, chunk], *cache.view([sequence]), **options, return_lse=True, backend=anywhere
                )
            )
    for (_, q, k, v), had in zip(sequences, parts, strict=True):
        o, lse = (np.concatenate(xs, axis=2)[0] for xs in zip(*had, strict=True))
        close((o, lse), refattn.attention(q, k, v, **options, return_lse=True))


@quick
@given(
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=4), cuts=CUTS, options=OPTIONS, seed=st.integers(0, 99)
)
def test_chunks_of_several_prompts_packed_into_one_call(anywhere, lengths, cuts, options, seed):
    has(anywhere, "attention_varlen")
    prompts = [draw(T, seed + n) for n, T in enumerate(lengths)]
    parts = [[] for _ in lengths]
    for n in range(len(cuts) + 1):
        cut = [chunks(T, cuts)[n] for T in lengths]
        packed = [  # of each prompt the queries of the chunk, and the keys and values up to its end
            np.concatenate(
                [x[side][:, i if side == 0 else slice(i.stop)] for x, i in zip(prompts, cut, strict=True)], 1
            )
            for side in range(3)
        ]
        counts = [i.stop - i.start for i in cut], [i.stop for i in cut]
        borders = [np.concatenate([[0], np.cumsum(count)]) for count in counts]
        o, lse = refattn.attention_varlen(
            *(x.swapaxes(0, 1) for x in packed), *borders, **options, return_lse=True, backend=anywhere
        )
        for had, rows in zip(parts, itertools.pairwise(borders[0]), strict=True):
            had.append((o[slice(*rows)].swapaxes(0, 1), lse[:, slice(*rows)]))
    for (q, k, v), had in zip(prompts, parts, strict=True):
        got = (np.concatenate(xs, axis=1) for xs in zip(*had, strict=True))
        close(got, refattn.attention(q, k, v, **options, return_lse=True))


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_a_prefix_is_read_once_for_all_that_continue_it(anywhere, page_size):
    has(anywhere, "paged_attention")
    prefix, endings = 20, [draw(30, seed) for seed in range(3)]
    for q, k, v in endings[1:]:
        q[:, :prefix], k[:, :prefix], v[:, :prefix] = (x[:, :prefix] for x in endings[0])
    cache = refattn.PagedKVCache(90, page_size, kv_heads=2, head_dim=5, v_head_dim=3, dtype=np.float64)
    prompt = cache.allocate()
    cache.append(prompt, endings[0][1][:, :prefix], endings[0][2][:, :prefix])
    forks = [cache.fork(prompt) for _ in endings]
    cache.free(prompt)
    for t in range(prefix, 30):
        for fork, (_, k, v) in zip(forks, endings, strict=True):
            cache.append(fork, k[:, t : t + 1], v[:, t : t + 1])
        q = np.stack([x[0][:, t : t + 1] for x in endings])
        o = refattn.paged_attention(q, *cache.view(forks), mask=masks.causal(), backend=anywhere)
        for got, (q, k, v) in zip(o, endings, strict=True):
            close([got], [refattn.attention(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1])])
    shared = prefix // page_size
    assert 90 - cache.pages_free == shared + 3 * (-(-30 // page_size) - shared)


@quick
@given(Tq=st.integers(0, 6), Tk=st.integers(0, 24), num_splits=st.integers(1, 30), options=OPTIONS)
def test_keys_split_into_any_number_of_runs(anywhere, Tq, Tk, num_splits, options):
    (q, _, _), (_, k, v) = draw(Tq), draw(Tk, seed=1)
    got = refattn.attention_split_kv(q, k, v, num_splits=num_splits, **options, return_lse=True, backend=anywhere)
    close(got, refattn.attention(q, k, v, **options, return_lse=True))


@quick
@given(Tq=st.integers(1, 6), Tk=st.integers(0, 24), cuts=CUTS, order=st.randoms(use_true_random=False), options=OPTIONS)
def test_keys_cut_anywhere_and_merged_in_any_order(anywhere, Tq, Tk, cuts, order, options):
    (q, _, _), (_, k, v) = draw(Tq), draw(Tk, seed=1)
    want = refattn.attention(q, k, v, **options, return_lse=True)
    sinks, visible = options.pop("sinks", None), options.pop("mask").dense(Tq, Tk)
    parts = [
        refattn.attention(q, k[:, j], v[:, j], mask=visible[:, j], **options, return_lse=True, backend=anywhere)
        for j in chunks(Tk, cuts)
    ]
    order.shuffle(parts)
    close(refattn.merge_attention(*parts, sinks=sinks, backend=anywhere), want)
