"""FlashAttention 3: each difference by hand. The lines are those of Dao-AILab/flash-attention at commit 0251105."""

import inspect

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects import flash_attn, flash_attn_3

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape)


def inputs(B=2, Tq=3, Tk=5, H=4, Hk=2, D=8, Dv=6):
    return draw(B, Tq, H, D), draw(B, Tk, Hk, D), draw(B, Tk, Hk, Dv)


def reference(q, k, v, **options):
    """`refattn.attention`, from and to the layout (B, T, H, D)."""
    o, lse = refattn.attention(*(x.swapaxes(-3, -2) for x in (q, k, v)), **options, return_lse=True)
    return o.swapaxes(-3, -2), lse


def check(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, {}),
        ({"causal": True}, {"mask": masks.causal()}),
        ({"window_size": (1, 1)}, {"mask": masks.window(1, 1)}),
        ({"window_size": (2, -1), "causal": True}, {"mask": masks.window(2, 0)}),
        ({"softcap": 0.5, "softmax_scale": 0.7}, {"softcap": 0.5, "scale": 0.7}),
        ({"softcap": -1.0}, {}),
    ],
)
def test_options(options, ours):
    q, k, v = inputs()
    got = flash_attn_3.flash_attn_func(q, k, v, **options, return_attn_probs=True)
    check(got, reference(q, k, v, **ours))
    np.testing.assert_array_equal(flash_attn_3.flash_attn_func(q, k, v, **options), got[0])  # out alone


def test_a_row_that_sees_nothing_has_lse_minus_infinity():  # softmax.h:151
    q, k, v = inputs(Tq=4, Tk=2)
    out, lse = flash_attn_3.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert not out[:, :2].any() and (lse[..., :2] == -np.inf).all() and np.isfinite(lse[..., 2:]).all()


def test_no_keys_at_all_have_lse_plus_infinity():  # flash_api.cpp:1193
    q, k, v = inputs(Tk=0)
    out, lse = flash_attn_3.flash_attn_func(q, k, v, return_attn_probs=True)
    assert not out.any() and (lse == np.inf).all()


def test_a_sum_that_is_nan_has_lse_minus_infinity():  # softmax.h:151
    q, k, v = inputs()
    q[0, 1] = np.nan
    out, lse = flash_attn_3.flash_attn_func(q, k, v, return_attn_probs=True)
    assert np.isnan(out[0, 1]).all() and (lse[0, :, 1] == -np.inf).all()


@pytest.mark.parametrize("size", [(1, -1), (-1, 2), (-1, 1)])
def test_windows_are_exact_where_queries_outnumber_keys(size):  # flash_api.cpp:152, :796
    q, k, v = inputs(Tq=9, Tk=2, Dv=8)
    left, right = (None if n < 0 else n for n in size)
    got = flash_attn_3.flash_attn_func(q, k, v, window_size=size, return_attn_probs=True)
    check(got, reference(q, k, v, mask=masks.window(left, right)))
    other = flash_attn.flash_attn_func(q, k, v, window_size=size)
    assert np.allclose(other, got[0]) == (size == (-1, 1))  # FlashAttention 2 lets the others see more, or less


def test_chunks():  # mask.h:116
    q, k, v = inputs(Tq=5, Tk=6)
    i, j = np.arange(5)[:, None] + 1, np.arange(6)
    same = i // 2 == j // 2
    check(
        flash_attn_3.flash_attn_func(q, k, v, attention_chunk=2, return_attn_probs=True), reference(q, k, v, mask=same)
    )
    check(
        flash_attn_3.flash_attn_func(q, k, v, attention_chunk=2, causal=True, return_attn_probs=True),
        reference(q, k, v, mask=same & (j <= i)),
    )


def test_qv_adds_to_the_scores():  # flash_attn_interface.py:574
    q, k, v = inputs()
    qv = draw(2, 3, 4, 6)
    out, lse = flash_attn_3.flash_attn_func(q, k, v, qv=qv, return_attn_probs=True)
    k4, v4 = k.repeat(2, axis=2), v.repeat(2, axis=2)
    s = (np.einsum("bihd,bjhd->bhij", q, k4) + np.einsum("bihd,bjhd->bhij", qv, v4)) / np.sqrt(8 + 6)
    p = np.exp(s)
    np.testing.assert_allclose(lse, np.log(p.sum(axis=-1)), rtol=1e-12)
    np.testing.assert_allclose(out, np.einsum("bhij,bjhd->bihd", p / p.sum(axis=-1, keepdims=True), v4), rtol=1e-12)


def test_scales_of_float8_change_nothing():  # flash_api.cpp:1115
    q, k, v = inputs()
    two = np.full((2, 2), 2.0, np.float32)
    np.testing.assert_array_equal(
        flash_attn_3.flash_attn_func(q, k, v, q_descale=two, k_descale=two, v_descale=two),
        flash_attn_3.flash_attn_func(q, k, v),
    )


def test_packed_arrays():  # flash_attn_interface.py:471
    q, k, v = inputs(Tq=5, Dv=8)
    packed = np.concatenate([q, k, v], axis=2)
    want = flash_attn_3.flash_attn_func(q, k, v, causal=True)
    np.testing.assert_array_equal(flash_attn_3.flash_attn_qkvpacked_func(packed, causal=True, num_heads_q=4), want)
    same = np.stack([q, q, q], axis=2)
    np.testing.assert_array_equal(flash_attn_3.flash_attn_qkvpacked_func(same), flash_attn_3.flash_attn_func(q, q, q))
    for wrong, options in ((packed, {}), (packed, {"num_heads_q": 3}), (same[:, :, :2], {})):
        with pytest.raises(ValueError, match="num_heads_q"):
            flash_attn_3.flash_attn_qkvpacked_func(wrong, **options)


def test_packed_sequences_and_how_much_of_them_is_used():
    lengths_q, lengths_k, used_q, used_k = (2, 3), (3, 4), np.array([2, 1]), np.array([1, 4])
    rows_q, rows_k = np.cumsum([0, *lengths_q]), np.cumsum([0, *lengths_k])
    q, k, v = draw(5, 4, 8), draw(7, 2, 8), draw(7, 2, 6)
    v[1:3] = k[1:3] = np.nan  # not used
    out, lse = flash_attn_3.flash_attn_varlen_func(
        q, k, v, rows_q, rows_k, 3, 4, used_q, used_k, causal=True, return_attn_probs=True
    )
    assert lse.shape == (4, 5) and not out[3:].any()
    for b in range(2):
        at_q, at_k = slice(rows_q[b], rows_q[b] + used_q[b]), slice(rows_k[b], rows_k[b] + used_k[b])
        check((out[at_q], lse[:, at_q]), reference(q[at_q], k[at_k], v[at_k], mask=masks.causal()))
    with pytest.raises(ValueError, match=r"seqused_k\[0\] is 4"):
        flash_attn_3.flash_attn_varlen_func(q, k, v, rows_q, rows_k, 3, 4, used_q, used_k + 3)


def test_parts_are_combined():
    q, k, v = inputs()
    parts = [
        flash_attn_3.flash_attn_func(q, k[:, at], v[:, at], return_attn_probs=True) for at in (slice(2), slice(2, 5))
    ]
    outs = np.stack([o for o, _ in parts])
    lses = np.stack([lse.swapaxes(1, 2) for _, lse in parts])
    into = np.zeros_like(outs[0])
    out, lse = flash_attn_3.flash_attn_combine(outs, lses, out=into)
    check((out, lse.swapaxes(1, 2)), flash_attn_3.flash_attn_func(q, k, v, return_attn_probs=True))
    np.testing.assert_array_equal(into, out)
    assert flash_attn_3.flash_attn_combine(outs, lses, out_dtype=np.float16)[0].dtype == np.float16


def cached(Tq=2):
    """Return q, the caches and new tokens; lengths 3 and 1 of 6 places."""
    lengths = np.array([3, 1])
    k, v = draw(2, 6, 2, 8), draw(2, 6, 2, 6)
    for b, n in enumerate(lengths):
        k[b, n:] = v[b, n:] = np.nan
    return draw(2, Tq, 4, 8), k, v, draw(2, 2, 2, 8), draw(2, 2, 2, 6), lengths


def test_the_cache_is_that_of_flash_attention_2():
    q, k, v, new_k, new_v, lengths = cached()
    v, new_v = np.where(np.isnan(k), np.nan, k * 2), new_k * 2  # there, v is as wide as k
    angle = np.arange(6)[:, None] * np.array([1.0, 0.1, 0.01, 0.001])
    for options in ({}, {"causal": True}, {"window_size": (2, -1)}, {"rotary_interleaved": False}):
        both = [(k.copy(), v.copy()) for _ in range(2)]
        got = [
            library.flash_attn_with_kvcache(
                q,
                *both[n],
                new_k,
                new_v,
                rotary_cos=np.cos(angle),
                rotary_sin=np.sin(angle),
                cache_seqlens=lengths,
                return_softmax_lse=True,
                **options,
            )
            for n, library in enumerate((flash_attn, flash_attn_3))
        ]
        check(got[1], got[0])
        np.testing.assert_array_equal(both[0], both[1])


def test_a_bound_to_the_right_that_cuts_nothing_turns_no_query():  # flash_api.cpp:797
    q, k, v, new_k, new_v, lengths = cached()
    angle = np.arange(6)[:, None] * np.array([1.0, 0.1, 0.01, 0.001])
    options = {"rotary_cos": np.cos(angle), "rotary_sin": np.sin(angle), "cache_seqlens": lengths}
    caches = [[x.copy() for x in (k, v)] for _ in range(3)]
    plain, near, far = (
        flash_attn_3.flash_attn_with_kvcache(q, *cache, new_k, new_v, **options, **more)
        for cache, more in zip(caches, ({}, {"window_size": (-1, 0)}, {"window_size": (-1, 1)}), strict=True)
    )
    np.testing.assert_array_equal(far, plain)  # the last of 2 queries stands at the last key
    assert not np.allclose(near, plain)


def test_packed_sequences_without_any_key_have_lse_plus_infinity():  # flash_api.cpp:1193
    q, rows = draw(3, 4, 8), np.array([0, 1, 3])
    none = np.array([0, 0, 0])
    for keys, borders, lse in ((0, none, np.inf), (2, np.array([0, 0, 2]), -np.inf)):
        k, v = draw(keys, 2, 8), draw(keys, 2, 6)
        got = flash_attn_3.flash_attn_varlen_func(q, k, v, rows, borders, 2, 2, return_attn_probs=True)
        assert not got[0][0].any() and (got[1][:, 0] == lse).all()


def test_the_cache_takes_packed_queries_and_keys():
    q, k, v, new_k, new_v, lengths = cached()
    table = np.array([[0, 2, 1], [5, 4, 3]])
    pool = [np.full((6, 2, *x.shape[2:]), np.nan) for x in (k, v)]
    for b, t in np.ndindex(2, 6):
        for pages, x in zip(pool, (k, v), strict=True):
            pages[table[b, t // 2], t % 2] = x[b, t]
    rows_q, rows_new = np.array([0, 1, 4]), np.array([0, 2, 3])
    flat_q, flat_k, flat_v = q.reshape(4, 4, 8), new_k.reshape(4, 2, 8)[:3], new_v.reshape(4, 2, 6)[:3]
    out, lse = flash_attn_3.flash_attn_with_kvcache(
        flat_q,
        *pool,
        flat_k,
        flat_v,
        cache_seqlens=lengths,
        page_table=table,
        cu_seqlens_q=rows_q,
        cu_seqlens_k_new=rows_new,
        max_seqlen_q=3,
        causal=True,
        return_softmax_lse=True,
    )
    assert out.shape == (4, 4, 6) and lse.shape == (4, 4)
    for b in range(2):
        at, added = slice(rows_q[b], rows_q[b + 1]), slice(rows_new[b], rows_new[b + 1])
        keys = np.concatenate([k[b, : lengths[b]], flat_k[added]])
        values = np.concatenate([v[b, : lengths[b]], flat_v[added]])
        check((out[at], lse[:, at]), reference(flat_q[at], keys, values, mask=masks.causal()))
        total = len(keys)
        np.testing.assert_array_equal(pool[0][table[b]].reshape(6, 2, 8)[:total], keys)


def test_the_rotation_may_begin_elsewhere():  # seqlen.h:89
    q, k, v, new_k, new_v, lengths = cached()
    angle = np.arange(6)[:, None] * np.array([1.0, 0.1, 0.01, 0.001])
    options = {"rotary_cos": np.cos(angle), "rotary_sin": np.sin(angle), "cache_seqlens": lengths, "causal": True}
    elsewhere = np.array([0, 2])
    flash_attn_3.flash_attn_with_kvcache(q, k, v, new_k, new_v, **options, rotary_seqlens=elsewhere)
    for b, first in enumerate(elsewhere):
        want = refattn.rope(new_k[b].swapaxes(0, 1), first + np.arange(2), theta=1e4, interleaved=True)
        np.testing.assert_allclose(k[b, lengths[b] : lengths[b] + 2], want.swapaxes(0, 1), rtol=1e-12)


def test_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="attention_chunk is -1"):
        flash_attn_3.flash_attn_func(q, k, v, attention_chunk=-1)
    with pytest.raises(ValueError, match="qv has shape"):
        flash_attn_3.flash_attn_func(q, k, v, qv=q)
    with pytest.raises(ValueError, match="value must be"):
        flash_attn_3.flash_attn_with_kvcache(q, k, v, k=k[:, :1], cache_seqlens=np.array([0, 0]))


OPTIONS = "window_size attention_chunk softcap num_splits pack_gqa deterministic sm_margin return_attn_probs"
DESCALE = "q_descale k_descale v_descale "
ARGUMENTS = {  # hopper/flash_attn_interface.py:747-973
    "flash_attn_func": "q k v softmax_scale causal qv " + DESCALE + OPTIONS,
    "flash_attn_qkvpacked_func": "qkv softmax_scale causal " + DESCALE + "window_size attention_chunk softcap "
    "deterministic num_heads_q sm_margin return_attn_probs",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k "
    "softmax_scale causal qv " + DESCALE + OPTIONS,
    "flash_attn_combine": "out_partial lse_partial out out_dtype",
    "flash_attn_with_kvcache": "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx "
    "cache_leftpad page_table cu_seqlens_q cu_seqlens_k_new max_seqlen_q rotary_seqlens " + DESCALE + "softmax_scale "
    "causal window_size attention_chunk softcap rotary_interleaved scheduler_metadata num_splits pack_gqa sm_margin "
    "return_softmax_lse",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_those_of_the_library(name):
    ours = [x for x in inspect.signature(getattr(flash_attn_3, name)).parameters if x != "backend"]
    assert ours == ARGUMENTS[name].split()
