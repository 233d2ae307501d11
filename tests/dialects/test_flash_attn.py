"""FlashAttention 2: each difference by hand. The lines are those of Dao-AILab/flash-attention at commit 0251105."""

import inspect

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects import flash_attn

RNG = np.random.default_rng(0)


def draw(B=2, Tq=3, Tk=5, H=4, Hk=2, D=8, Dv=8):
    return RNG.standard_normal((B, Tq, H, D)), RNG.standard_normal((B, Tk, Hk, D)), RNG.standard_normal((B, Tk, Hk, Dv))


def reference(q, k, v, **options):
    """`refattn.attention`, from and to the layout (B, T, H, D)."""
    o, lse = refattn.attention(*(x.swapaxes(-3, -2) for x in (q, k, v)), **options, return_lse=True)
    return o.swapaxes(-3, -2), lse


def check(got, want):
    for ours, theirs in zip(got[:2], want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"softmax_scale": 0.7}, {"softcap": 0.5}, {"softcap": -1.0}])
def test_layout_causal_scale_and_cap(options):
    q, k, v = draw()
    ours = {
        "mask": masks.causal() if "causal" in options else None,
        "scale": options.get("softmax_scale"),
        "softcap": 0.5 if options.get("softcap", 0) > 0 else None,  # flash_api.cpp:130, anything else is none
    }
    out, lse, weights = flash_attn.flash_attn_func(q, k, v, **options, return_attn_probs=True)
    check((out, lse), reference(q, k, v, **ours))
    assert out.shape == q.shape and lse.shape == (2, 4, 3) and weights is None
    np.testing.assert_array_equal(flash_attn.flash_attn_func(q, k, v, **options), out)


def test_a_row_that_sees_nothing_has_lse_plus_infinity():  # softmax.h:180
    q, k, v = draw(Tq=4, Tk=2)
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert not out[:, :2].any() and (lse[..., :2] == np.inf).all() and np.isfinite(lse[..., 2:]).all()
    out, lse, _ = flash_attn.flash_attn_func(q, k[:, :0], v[:, :0], return_attn_probs=True)  # flash_api.cpp:527
    assert not out.any() and (lse == np.inf).all()


def test_a_sum_that_is_nan_has_lse_plus_infinity():  # softmax.h:180
    q, k, v = draw()
    q[0, 1] = np.nan
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True)
    assert np.isnan(out[0, 1]).all() and (lse[0, :, 1] == np.inf).all() and np.isfinite(lse[1]).all()


WINDOWS = {
    (1, 1): masks.window(1, 1),
    (2, -1): masks.window(2, None),
    (-1, 0): masks.causal(),
    (0, 0): masks.window(0, 0),
}


@pytest.mark.parametrize("size", WINDOWS)
def test_windows_count_as_ours(size):
    q, k, v = draw()
    got = flash_attn.flash_attn_func(q, k, v, window_size=size, return_attn_probs=True)
    o, lse = reference(q, k, v, mask=WINDOWS[size])
    check(got, (o, np.where(np.isneginf(lse), np.inf, lse)))


def test_causal_puts_an_end_to_the_window():  # flash_api.cpp:427
    q, k, v = draw()
    got = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(2, 3), return_attn_probs=True)
    check(got, reference(q, k, v, mask=masks.window(2, 0)))


def visible_by(lse):
    return np.isfinite(lse).all(axis=(0, 1)).tolist()


def test_where_queries_outnumber_keys_an_open_side_ends_after_as_many_keys_as_there_are():  # flash_api.cpp:159
    q, k, v = draw(Tq=9, Tk=2)  # query 0 stands at -7
    lse = flash_attn.flash_attn_func(q, k, v, window_size=(1, -1), return_attn_probs=True)[1]
    assert visible_by(lse) == [i - 7 + 2 >= 0 for i in range(9)]  # right is 2 = Tk, though it was unbounded


def test_where_queries_outnumber_keys_a_wide_window_is_none():  # flash_api.cpp:422
    q, k, v = draw(Tq=9, Tk=2)
    got = flash_attn.flash_attn_func(q, k, v, window_size=(-1, 2), return_attn_probs=True)
    check(got, reference(q, k, v))  # query 0, at -7, sees key 1, which lies 8 to its right
    lse = flash_attn.flash_attn_func(q, k, v, window_size=(-1, 1), return_attn_probs=True)[1]
    assert visible_by(lse) == [i - 7 + 1 >= 0 for i in range(9)]


def test_alibi_is_a_distance_unless_causal():  # mask.h:184
    q, k, v = draw()
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    bias = refattn.alibi_bias(slopes.astype(np.float64), 3, 5)
    for options, mask in (({}, None), ({"window_size": (1, 1)}, masks.window(1, 1))):
        got = flash_attn.flash_attn_func(q, k, v, **options, alibi_slopes=slopes, return_attn_probs=True)
        check(got, reference(q, k, v, bias=bias, mask=mask))


def test_alibi_shifts_lse_when_causal():  # mask.h:182, alibi.h:48
    q, k, v = draw()
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    got = flash_attn.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes, return_attn_probs=True)
    bias = refattn.alibi_bias(slopes.astype(np.float64), 3, 5)
    o, lse = reference(q, k, v, bias=bias, mask=masks.causal())
    check(got, (o, lse + slopes[:, None] * (np.arange(3) + 5 - 3)))
    windowed = flash_attn.flash_attn_func(
        q, k, v, causal=True, window_size=(1, -1), alibi_slopes=slopes, return_attn_probs=True
    )  # with a left window another kernel runs, which knows distances
    check(
        windowed, reference(q, k, v, bias=refattn.alibi_bias(slopes.astype(np.float64), 3, 5), mask=masks.window(1, 0))
    )


def test_one_causal_query_keeps_its_kernel_only_for_alibi():  # flash_api.cpp:426
    q, k, v = draw(Tq=1)
    slopes = np.full(4, 0.5, np.float32)
    lse = flash_attn.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes, return_attn_probs=True)[1]
    plain = flash_attn.flash_attn_func(q, k, v, alibi_slopes=slopes, return_attn_probs=True)[1]
    np.testing.assert_allclose(lse, plain + 0.5 * 4, rtol=1e-12)


def test_slopes_of_each_sequence():
    q, k, v = draw()
    slopes = RNG.random((2, 4)).astype(np.float32)
    out = flash_attn.flash_attn_func(q, k, v, alibi_slopes=slopes)
    for b in range(2):
        one = flash_attn.flash_attn_func(q[b : b + 1], k[b : b + 1], v[b : b + 1], alibi_slopes=slopes[b])
        np.testing.assert_array_equal(out[b], one[0])


def test_dropout_is_a_mask_that_is_given():
    q, k, v = draw()
    keep = RNG.random((2, 4, 3, 5)) < 0.5
    got = flash_attn.flash_attn_func(q, k, v, 0.5, dropout_mask=keep, return_attn_probs=True)
    check(got, reference(q, k, v, dropout_mask=keep, dropout_p=0.5))


def test_packed_arrays():
    q, k, v = draw(Tq=5, H=2)
    want = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(2, -1), softcap=2.0)
    options = {"causal": True, "window_size": (2, -1), "softcap": 2.0}
    np.testing.assert_array_equal(flash_attn.flash_attn_kvpacked_func(q, np.stack([k, v], 2), **options), want)
    np.testing.assert_array_equal(flash_attn.flash_attn_qkvpacked_func(np.stack([q, k, v], 2), **options), want)
    flat, borders = [x.reshape(10, 2, 8) for x in (q, k, v)], np.array([0, 5, 10])
    varlen = flash_attn.flash_attn_varlen_kvpacked_func(
        flat[0], np.stack(flat[1:], 1), borders, borders, 5, 5, **options
    )
    np.testing.assert_array_equal(varlen, want.reshape(10, 2, 8))
    varlen = flash_attn.flash_attn_varlen_qkvpacked_func(np.stack(flat, 1), borders, 5, **options)
    np.testing.assert_array_equal(varlen, want.reshape(10, 2, 8))


def packed(lengths_q=(2, 0, 3), lengths_k=(3, 2, 1), H=4, Hk=2, D=8):
    q, k, v = (RNG.standard_normal((sum(n), h, D)) for n, h in ((lengths_q, H), (lengths_k, Hk), (lengths_k, Hk)))
    return q, k, v, np.cumsum([0, *lengths_q]), np.cumsum([0, *lengths_k])


@pytest.mark.parametrize("alibi", [False, True])
def test_packed_sequences_are_sequences(alibi):
    q, k, v, rows_q, rows_k = packed()
    slopes = RNG.random((3, 4)).astype(np.float32) if alibi else None
    options = {"causal": True, "return_attn_probs": True}
    out, lse, weights = flash_attn.flash_attn_varlen_func(q, k, v, rows_q, rows_k, 3, 3, alibi_slopes=slopes, **options)
    assert lse.shape == (4, 5) and weights is None
    for b in (0, 2):
        at_q, at_k = slice(rows_q[b], rows_q[b + 1]), slice(rows_k[b], rows_k[b + 1])
        one = [x[None] for x in (q[at_q], k[at_k], v[at_k])]
        got = flash_attn.flash_attn_func(*one, alibi_slopes=None if slopes is None else slopes[b], **options)
        check((out[at_q], lse[:, at_q]), (got[0][0], got[1][0]))
    assert (lse[:, 2:4] == np.inf).all()  # three queries, one key


def in_pages(x, borders, table, page):
    """Scatter the sequences of x over the pages of a pool; what is left free is NaN."""
    pool = np.full((table.max() + 1, page, *x.shape[1:]), np.nan)
    for b, pages in enumerate(table):
        for t, row in enumerate(range(borders[b], borders[b + 1])):
            pool[pages[t // page], t % page] = x[row]
    return pool


def test_packed_sequences_may_lie_in_pages():
    q, k, v, rows_q, rows_k = packed()
    table = np.array([[4, 0], [1, 5], [2, 3]], np.int32)
    pages = [in_pages(x, rows_k, table, 2) for x in (k, v)]
    options = {"causal": True, "return_attn_probs": True}
    got = flash_attn.flash_attn_varlen_func(q, *pages, rows_q, rows_k, 3, 3, block_table=table, **options)
    check(got, flash_attn.flash_attn_varlen_func(q, k, v, rows_q, rows_k, 3, 3, **options)[:2])


REFUSED = {
    "softcap with dropout": ({"softcap": 1.0, "dropout_p": 0.1}, ValueError, "softcap does not go with dropout"),
    "slopes": ({"alibi_slopes": np.ones(3, np.float32)}, ValueError, "alibi_slopes has shape"),
    "dropout without a mask": ({"dropout_p": 0.1}, ValueError, "without a dropout_mask"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    options, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        flash_attn.flash_attn_func(*draw(), **options)


def test_refused_borders():
    q, k, v, rows_q, rows_k = packed()
    for borders, message in (
        (np.array([0, 3, 2, 5]), "falls"),
        (np.array([1, 2, 3, 5]), "0 first"),
        (np.array([0, 2, 4, 9]), "there are 5 rows"),
        (np.array([0, 5]), "cu_seqlens_k has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            flash_attn.flash_attn_varlen_func(q, k, v, borders, rows_k, 3, 3)
    with pytest.raises(TypeError, match="wanted integers"):
        flash_attn.flash_attn_varlen_func(q, k, v, rows_q * 1.0, rows_k, 3, 3)
    with pytest.raises(ValueError, match="third axis from the end"):
        flash_attn.flash_attn_kvpacked_func(q[None], k[None, :, None])


OPTIONS = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs "
ARGUMENTS = {  # flash_attn/flash_attn_interface.py:1019-1499
    "flash_attn_func": "q k v " + OPTIONS,
    "flash_attn_kvpacked_func": "q kv " + OPTIONS,
    "flash_attn_qkvpacked_func": "qkv " + OPTIONS,
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k " + OPTIONS + "block_table",
    "flash_attn_varlen_kvpacked_func": "q kv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k " + OPTIONS,
    "flash_attn_varlen_qkvpacked_func": "qkv cu_seqlens max_seqlen " + OPTIONS,
    "flash_attn_with_kvcache": "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx "
    "cache_leftpad block_table softmax_scale causal window_size softcap rotary_interleaved alibi_slopes num_splits "
    "return_softmax_lse",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_those_of_the_library(name):
    ours = [x for x in inspect.signature(getattr(flash_attn, name)).parameters if x not in ("dropout_mask", "backend")]
    assert ours == ARGUMENTS[name].split()
