"""Splitting the keys and merging the parts, and the cache."""

import itertools

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing import case

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=shape) for shape in ((2, 4, 5, 8), (2, 2, 30, 8), (2, 2, 30, 6)))


def parts(borders, **options):
    pairs = itertools.pairwise([0, *borders, 30])
    return [refattn.attention(Q, K[:, :, a:b], V[:, :, a:b], return_lse=True, **options) for a, b in pairs]


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("borders", [(), (15,), (1, 2, 29), (10, 10, 20), (0, 30), tuple(range(1, 30))])
def test_merged_parts_are_the_whole(borders):
    close(refattn.merge_attention(*parts(borders)), refattn.attention(Q, K, V, return_lse=True))


def test_sinks_enter_once():
    sinks = RNG.normal(size=4)
    want = refattn.attention(Q, K, V, sinks=sinks, return_lse=True)
    close(refattn.merge_attention(*parts((7, 20)), sinks=sinks), want)
    first = refattn.attention(Q, K[:, :, :7], V[:, :, :7], sinks=sinks, return_lse=True)
    rest = refattn.attention(Q, K[:, :, 7:], V[:, :, 7:], return_lse=True)
    close(refattn.merge_attention(first, rest), want)


def test_merging_is_associative_and_commutative():
    a, b, c = parts((9, 18))
    whole = refattn.merge_attention(a, b, c)
    close(refattn.merge_attention(refattn.merge_attention(a, b), c), whole)
    close(refattn.merge_attention(c, refattn.merge_attention(b, a)), whole)


def test_a_part_that_saw_nothing_adds_nothing_not_even_nan():
    whole = refattn.attention(Q, K, V, return_lse=True)
    nothing = (np.full_like(whole[0], np.nan), np.full_like(whole[1], -np.inf))
    for x, y in zip(refattn.merge_attention(nothing, whole, nothing), whole, strict=True):
        np.testing.assert_array_equal(x, y)
    o, lse = refattn.merge_attention(nothing, nothing)
    assert (o == 0).all() and (lse == -np.inf).all()


def test_far_parts_do_not_overflow():
    o = np.ones((1, 2))
    merged, lse = refattn.merge_attention((o, np.array([1e4])), (3 * o, np.array([-1e4])), (5 * o, np.array([1e4])))
    np.testing.assert_allclose(merged, 3 * o)
    np.testing.assert_allclose(lse, 1e4 + np.log(2))


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7, 64, 65, 66, 200])
@pytest.mark.parametrize(
    "name", ["causal", "dropout_everything", "blind_rows_sinks", "array_per_head", "bias_of_keys", "no_keys"]
)
def test_split_is_attention(name, num_splits):
    args, options = case(f"attention/{name}/float64").call()
    got = refattn.attention_split_kv(*args, **options, num_splits=num_splits)
    close(got, refattn.attention(*args, **options))


def test_split_without_lse_returns_o_alone():
    np.testing.assert_array_equal(
        refattn.attention_split_kv(Q, K, V), refattn.attention_split_kv(Q, K, V, return_lse=True)[0]
    )


def test_sixteen_bit_parts_are_rounded_once():
    q, k, v = (x.astype(np.float16) for x in (Q, K, V))
    wide = refattn.attention(*(x.astype(np.float64) for x in (q, k, v)))
    got = refattn.attention_split_kv(q, k, v, num_splits=10)
    assert got.dtype == np.float16
    assert (got == wide.astype(np.float16)).mean() > 0.99


def tokens(T, *, start=0.0, dtype=np.float32):
    k = (start + np.arange(T, dtype=dtype))[:, None] * np.ones((2, 3, 1, 4), dtype)
    return k, 10 * k[..., :2]


def test_a_cache_appends_and_serves_views():
    cache = refattn.KVCache((2,), kv_heads=3, capacity=10, head_dim=4, v_head_dim=2)
    assert len(cache) == 0 and cache.capacity == 10
    assert cache.k.shape == (2, 3, 0, 4)
    k, v = tokens(3)
    keys, values = cache.append(k, v)
    np.testing.assert_array_equal(keys, k)
    np.testing.assert_array_equal(values, v)
    more, _ = cache.append(*tokens(2, start=3.0))
    np.testing.assert_array_equal(more[0, 0, :, 0], np.arange(5))
    np.testing.assert_array_equal(keys, k)  # what was served stays as it was
    assert np.shares_memory(more, keys)
    assert len(cache) == 5
    assert cache.nbytes == 2 * 3 * 10 * (4 + 2) * 4


def test_a_cache_copies_what_it_is_given():
    cache = refattn.KVCache((2,), kv_heads=3, capacity=10, head_dim=4, v_head_dim=2)
    k, v = tokens(3)
    cache.append(k, v)
    k[...] = -1
    np.testing.assert_array_equal(cache.k[0, 0, :, 0], np.arange(3))


def test_a_cache_can_be_filled_to_the_brim_and_by_nothing():
    cache = refattn.KVCache((2,), kv_heads=3, capacity=4, head_dim=4, v_head_dim=2)
    cache.append(*tokens(0))
    cache.append(*tokens(4))
    cache.append(*tokens(0))
    assert len(cache) == cache.capacity == 4


BAD_TOKENS = {
    "too many": (tokens(3), ValueError, "3 tokens do not fit: 2 of 4 places are taken"),
    "keys of other heads": ((tokens(1)[0][:, :2], tokens(1)[1]), ValueError, "k has shape"),
    "values of other heads": ((tokens(1)[0], tokens(1)[1][:, :2]), ValueError, "v has shape"),
    "more values than keys": ((tokens(1)[0], tokens(2)[1]), ValueError, "v has shape"),
    "another batch": ((tokens(1)[0][:1], tokens(1)[1][:1]), ValueError, "k has shape"),
    "another width": ((tokens(1)[0][..., :3], tokens(1)[1]), ValueError, "k has shape"),
    "another dtype": (tokens(1, dtype=np.float64), TypeError, "dtypes differ"),
    "integers": ((tokens(1)[0].astype(np.int64), tokens(1)[1]), TypeError, "k has dtype int64"),
    "a list": (([[[[0.0]]]], tokens(1)[1]), TypeError, "k must be an array"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_refused_append_changes_nothing(name):
    (k, v), error, says = BAD_TOKENS[name]
    cache = refattn.KVCache((2,), kv_heads=3, capacity=4, head_dim=4, v_head_dim=2)
    cache.append(*tokens(2))
    before = cache.k.copy(), cache.v.copy(), cache._k.copy(), cache._v.copy()
    with pytest.raises(error, match=says):
        cache.append(k, v)
    assert len(cache) == 2
    for x, y in zip((cache.k, cache.v, cache._k, cache._v), before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_unused_places_of_a_cache_influence_nothing():
    cache = refattn.KVCache((2,), kv_heads=2, capacity=50, head_dim=8, v_head_dim=6, dtype=np.float64)
    cache._k[...], cache._v[...] = np.nan, np.nan
    cache.append(K, V)
    want = refattn.attention(Q, K, V, mask=masks.causal())
    np.testing.assert_array_equal(refattn.attention(Q, cache.k, cache.v, mask=masks.causal()), want)
