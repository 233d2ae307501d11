"""The caches of FlashAttention 2: appended to in place, rotated, in rows or in pages."""

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects.flash_attn import flash_attn_with_kvcache

RNG = np.random.default_rng(1)
B, H, HK, D, PLACES = 2, 4, 2, 8, 6
LENGTHS = np.array([3, 1], np.int32)


def draw(*shape):
    return RNG.standard_normal(shape)


def caches(lengths=LENGTHS, rows=B):
    """Keys and values with `lengths` tokens each; what is not used is NaN."""
    k, v = draw(rows, PLACES, HK, D), draw(rows, PLACES, HK, D)
    for b, length in enumerate(lengths):
        k[b, length:] = v[b, length:] = np.nan
    return k, v


def reference(q, keys, values, **options):
    o, lse = refattn.attention(*(x.swapaxes(-3, -2) for x in (q, keys, values)), **options, return_lse=True)
    return o.swapaxes(-3, -2), lse


def tables(positions=PLACES, rotary_dim=8):
    angle = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    return np.cos(angle), np.sin(angle)


def turned(x, positions, interleaved=True, rotary_dim=8):
    """Rotate x (T, H, D) with `refattn.rope`."""
    y = refattn.rope(x.swapaxes(0, 1), np.asarray(positions), interleaved=interleaved, rotary_dim=rotary_dim)
    return y.swapaxes(0, 1)


def test_what_is_not_in_use_is_not_seen():
    q = draw(B, 2, H, D)
    k, v = caches()
    out, lse = flash_attn_with_kvcache(q, k, v, cache_seqlens=LENGTHS, causal=True, return_softmax_lse=True)
    assert lse.shape == (B, H, 2)
    for b, n in enumerate(LENGTHS):
        o, l = reference(q[b], k[b, :n], v[b, :n], mask=masks.causal())
        np.testing.assert_allclose(out[b], o, rtol=1e-12)
        np.testing.assert_allclose(lse[b], np.where(np.isneginf(l), np.inf, l), rtol=1e-12)
    k, v = caches((PLACES, PLACES))  # without lengths, all of it is
    np.testing.assert_allclose(flash_attn_with_kvcache(q, k, v), reference(q, k, v)[0], rtol=1e-12)


def test_new_tokens_are_written_into_the_cache():
    q, new_k, new_v = draw(B, 2, H, D), draw(B, 2, HK, D), draw(B, 2, HK, D)
    k, v = caches()
    before = k.copy()
    out = flash_attn_with_kvcache(q, k, v, new_k, new_v, cache_seqlens=LENGTHS, causal=True)
    for b, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(k[b, n : n + 2], new_k[b])
        np.testing.assert_array_equal(v[b, n : n + 2], new_v[b])
        np.testing.assert_array_equal(k[b, :n], before[b, :n])
        assert np.isnan(k[b, n + 2 :]).all()
        want = reference(q[b], k[b, : n + 2], v[b, : n + 2], mask=masks.causal())[0]  # bottom-right after the append
        np.testing.assert_allclose(out[b], want, rtol=1e-12)


@pytest.mark.parametrize("interleaved", [None, True, False])
@pytest.mark.parametrize("rotary_dim", [8, 4])
@pytest.mark.parametrize("moving", [{"causal": True}, {"window_size": (1, 1)}, {}, {"window_size": (6, 6)}])
def test_rotation(interleaved, rotary_dim, moving):  # flash_fwd_kernel.h:798
    q, new_k, new_v = draw(B, 2, H, D), draw(B, 2, HK, D), draw(B, 2, HK, D)
    k, v = caches()
    options = {} if interleaved is None else {"rotary_interleaved": interleaved}
    pairs = interleaved is not False  # interleaved unless told otherwise
    cos, sin = tables(rotary_dim=rotary_dim)
    out = flash_attn_with_kvcache(q, k, v, new_k, new_v, cos, sin, LENGTHS, **moving, **options)
    mask = {"causal": masks.causal(), "window_size": masks.window(1, 1)}.get(next(iter(moving), ""))
    moves = mask is not None and moving.get("window_size") != (6, 6)  # as wide as the cache: no window
    for b, n in enumerate(LENGTHS):
        at = n + np.arange(2)
        np.testing.assert_allclose(k[b, n : n + 2], turned(new_k[b], at, pairs, rotary_dim), rtol=1e-12)
        np.testing.assert_array_equal(v[b, n : n + 2], new_v[b])
        query = turned(q[b], at if moves else np.full(2, n), pairs, rotary_dim)
        want = reference(query, k[b, : n + 2], v[b, : n + 2], mask=mask if moves else None)[0]
        np.testing.assert_allclose(out[b], want, rtol=1e-11)


def test_rows_of_the_cache_are_chosen():
    q, new = draw(B, 1, H, D), draw(B, 1, HK, D)
    k, v = caches((2, 0, 4), rows=3)
    rows = np.array([2, 0], np.int32)
    out = flash_attn_with_kvcache(q, k, v, new, new, cache_seqlens=np.array([4, 2]), cache_batch_idx=rows)
    for b, (row, n) in enumerate(((2, 5), (0, 3))):
        np.testing.assert_allclose(out[b], reference(q[b], k[row, :n], v[row, :n])[0], rtol=1e-12)
    assert np.isnan(k[1]).all()


def test_what_lies_to_the_left_of_the_beginning_is_not_seen():  # block_info.h:23
    q = draw(B, 2, H, D)
    k, v = caches((5, 5))
    left = np.array([2, 0])
    out = flash_attn_with_kvcache(q, k, v, cache_seqlens=5, cache_leftpad=left, causal=True)
    for b, start in enumerate(left):
        want = reference(q[b], k[b, start:5], v[b, start:5], mask=masks.causal())[0]
        np.testing.assert_allclose(out[b], want, rtol=1e-12)


def test_pages():
    q, new = draw(B, 2, H, D), draw(B, 2, HK, D)
    table = np.array([[4, 0, 2], [1, 5, 3]], np.int32)
    k, v = caches()
    pool = [np.full((6, 2, HK, D), np.nan) for _ in "kv"]
    for b, t in np.ndindex(B, PLACES):
        pool[0][table[b, t // 2], t % 2], pool[1][table[b, t // 2], t % 2] = k[b, t], v[b, t]
    options = {"cache_seqlens": LENGTHS, "causal": True}
    want = flash_attn_with_kvcache(q, k, v, new, new, **options)
    got = flash_attn_with_kvcache(q, *pool, new, new, **options, block_table=table)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(pool[0][table[0]].reshape(PLACES, HK, D), k[0])


def refused(**options):
    q, new = draw(B, 2, H, D), draw(B, 2, HK, D)
    k, v = caches()
    given = {"q": q, "k_cache": k, "v_cache": v, "k": new, "v": new, "cache_seqlens": LENGTHS} | options
    before = [x.copy() for x in (k, v)]
    try:
        flash_attn_with_kvcache(**given)
    finally:
        for x, was in zip((k, v), before, strict=True):
            np.testing.assert_array_equal(x, was)


COS, SIN = tables()
TABLE = np.array([[0], [1]], np.int32)
REFUSED = {
    "a key without a value": ({"v": None}, "value must be"),  # flash_api.cpp:1395
    "an append without lengths": ({"cache_seqlens": None}, "cache_seqlens must be"),  # flash_api.cpp:1396
    "an append past the end": ({"cache_seqlens": np.array([5, 1])}, "needs 7 tokens"),
    "a length past the end": ({"cache_seqlens": np.array([7, 1])}, "lengths of 0 ... 6"),
    "one half of a rotation": ({"rotary_cos": COS}, "go together"),  # flash_api.cpp:1475
    "a rotation without keys": ({"k": None, "v": None, "rotary_cos": COS, "rotary_sin": SIN}, "without a new key"),
    "tables that are too short": ({"rotary_cos": COS[:5], "rotary_sin": SIN[:5]}, "has 5 rows"),  # flash_api.cpp:1470
    "tables that are too wide": ({"rotary_cos": np.ones((6, 5)), "rotary_sin": np.ones((6, 5))}, "rotary_dim at most"),
    "pages with rows": ({"block_table": TABLE, "cache_batch_idx": np.array([0, 1])}, "does not go with"),
    "pages with a left end": ({"block_table": TABLE, "cache_leftpad": np.array([0, 1])}, "does not go with"),
    "a page that is not there": ({"block_table": TABLE + 1}, "lies in"),
    "another number of rows": ({"q": draw(3, 2, H, D)}, "2 rows for 3 sequences"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(what):
    options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        refused(**options)
