"""FlashInfer: each difference by hand. The lines are those of flashinfer-ai/flashinfer at commit fb28d72."""

import inspect

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.dialects import flashinfer

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape)


def inputs(Tq=3, Tk=5, H=4, Hk=2, D=8, Dv=6):
    return draw(Tq, H, D), draw(Tk, Hk, D), draw(Tk, Hk, Dv)


def reference(q, k, v, **options):
    """`refattn.attention`, from and to the layout (T, H, D), and lse (T, H) to the base 2."""
    o, lse = refattn.attention(*(x.swapaxes(0, 1) for x in (q, k, v)), **options, return_lse=True)
    return o.swapaxes(0, 1), lse.T / np.log(2)


def check(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, {}),
        ({"causal": True}, {"mask": masks.causal()}),  # prefill.cuh:1517
        ({"causal": True, "window_left": 1}, {"mask": masks.window(1, 0)}),
        ({"window_left": 1}, {"mask": masks.window(1, None)}),  # variants.cuh:89, nothing hides what is to the right
        ({"logits_soft_cap": 0.5, "sm_scale": 0.7}, {"softcap": 0.5, "scale": 0.7}),
        ({"logits_soft_cap": 0.0}, {}),
        ({"sm_scale": 0.5, "k_scale": 2.0}, {"scale": 1.0}),
    ],
)
def test_prefill(options, ours):
    q, k, v = inputs()
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, **options, return_lse=True)
    check(got, reference(q, k, v, **ours))
    assert got[0].shape == (3, 4, 6) and got[1].shape == (3, 4)
    np.testing.assert_array_equal(flashinfer.single_prefill_with_kv_cache(q, k, v, **options), got[0])


def test_lse_is_to_the_base_two():  # state.cuh:45
    q, k, v = np.zeros((1, 1, 2)), np.zeros((8, 1, 2)), draw(8, 1, 1)
    assert flashinfer.single_prefill_with_kv_cache(q, k, v, return_lse=True)[1].item() == pytest.approx(3)
    assert flashinfer.single_decode_with_kv_cache(q[0], k, v, return_lse=True)[1].item() == pytest.approx(3)


def test_layouts():
    q, k, v = inputs()
    turned = [x.swapaxes(0, 1) for x in (k, v)]
    for function, query in (
        (flashinfer.single_prefill_with_kv_cache, q),
        (flashinfer.single_decode_with_kv_cache, q[0]),
    ):
        np.testing.assert_array_equal(function(query, *turned, kv_layout="HND"), function(query, k, v))
        with pytest.raises(ValueError, match="kv_layout is 'BHND'"):
            function(query, k, v, kv_layout="BHND")


def test_a_custom_mask_ends_causal():  # prefill.py:1360
    q, k, v = inputs()
    mask = draw(3, 5) > -0.5
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, custom_mask=mask, causal=True, return_lse=True)
    check(got, reference(q, k, v, mask=mask))
    bits = np.packbits(mask.ravel(), bitorder="little")  # prefill.py:1356
    packed = flashinfer.single_prefill_with_kv_cache(q, k, v, packed_custom_mask=bits, return_lse=True)
    check(packed, got)
    windowed = flashinfer.single_prefill_with_kv_cache(q, k, v, custom_mask=mask, window_left=1, return_lse=True)
    check(windowed, reference(q, k, v, mask=mask & masks.window(1, None).dense(3, 5)))


def test_a_row_that_sees_nothing():
    q, k, v = inputs()
    mask = np.ones((3, 5), bool)
    mask[1] = False
    out, lse = flashinfer.single_prefill_with_kv_cache(q, k, v, custom_mask=mask, return_lse=True)
    assert not out[1].any() and (lse[1] == -np.inf).all() and np.isfinite(lse[[0, 2]]).all()


def test_alibi_counts_queries_from_the_first_new_one():  # variants.cuh:70
    q, k, v = inputs()
    i, j = np.arange(3)[:, None], np.arange(5)
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, pos_encoding_mode="ALIBI", return_lse=True)
    check(got, reference(q, k, v, bias=refattn.alibi_slopes(4)[:, None, None] * (j - i)))
    usual = reference(q, k, v, bias=refattn.alibi_bias(refattn.alibi_slopes(4), 3, 5))
    assert not np.allclose(got[0], usual[0])


def test_causal_alibi_has_the_usual_weights_and_another_lse():
    q, k, v = inputs()
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, causal=True, pos_encoding_mode="ALIBI", return_lse=True)
    out, lse = reference(q, k, v, mask=masks.causal(), bias=refattn.alibi_bias(refattn.alibi_slopes(4), 3, 5))
    check(got, (out, lse + refattn.alibi_slopes(4) * (5 - 3) / np.log(2)))
    one = flashinfer.single_decode_with_kv_cache(q[2], k, v, pos_encoding_mode="ALIBI", return_lse=True)
    want = reference(q[2:], k, v, bias=refattn.alibi_slopes(4)[:, None, None] * np.arange(5))  # decode.cuh:91, qo_idx=0
    check(one, (want[0][0], want[1][0]))


def test_alibi_with_a_cap_scales_twice():  # variants.cuh:48, :69-73
    q, k, v = inputs(Hk=4)
    i, j = np.arange(3)[:, None], np.arange(5)
    options = {"pos_encoding_mode": "ALIBI", "logits_soft_cap": 0.8, "sm_scale": 0.3}
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, **options, return_lse=True)
    s = 0.3 * np.einsum("ihd,jhd->hij", q, k) + refattn.alibi_slopes(4)[:, None, None] * (j - i)
    p = np.exp(0.8 * np.tanh(s * 0.3 / 0.8))
    want = np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v)
    check(got, (want, np.log2(p.sum(axis=-1)).T))


@pytest.mark.parametrize(("scale", "theta"), [(None, None), (4.0, 500.0)])
def test_rotation_inside(scale, theta):  # decode.cuh:258, prefill.cuh:2275
    q, k, v = inputs()

    def turned(x, first):
        angle = (first + np.arange(len(x)))[:, None] / (scale or 1) * (theta or 1e4) ** (-np.arange(0, 8, 2) / 8)
        c, s, a, b = np.cos(angle)[:, None], np.sin(angle)[:, None], x[..., :4], x[..., 4:]
        return np.concatenate([a * c - b * s, a * s + b * c], axis=-1)

    options = {"pos_encoding_mode": "ROPE_LLAMA", "rope_scale": scale, "rope_theta": theta, "return_lse": True}
    got = flashinfer.single_prefill_with_kv_cache(q, k, v, causal=True, **options)
    check(got, reference(turned(q, 2), turned(k, 0), v, mask=masks.causal()))
    one = flashinfer.single_decode_with_kv_cache(q[2], k, v, **options)
    check(one, (got[0][2], got[1][2]))


def test_decode_is_the_last_row_and_has_three_scales():
    q, k, v = inputs()
    out, lse = flashinfer.single_decode_with_kv_cache(
        q[2], k, v, q_scale=2.0, k_scale=0.25, v_scale=3.0, window_left=1, return_lse=True
    )
    want = reference(q[2:], k, v, mask=masks.window(1, 0), scale=0.5 / np.sqrt(8))
    check((out, lse), (3 * want[0][0], want[1][0]))
    assert flashinfer.single_prefill_with_kv_cache(q, k, v, o_dtype=np.float16).dtype == np.float16


def paged(lengths=(3, 0, 4), page=2, Hk=2, D=8):
    """Return pages of keys and values, their table, and the keys and values one sequence after the other."""
    k, v = draw(sum(lengths), Hk, D), draw(sum(lengths), Hk, D)
    order = np.array([4, 1, 0, 2], np.int32)
    pages = [np.full((5, page, Hk, D), np.nan) for _ in "kv"]
    counts = [-(-n // page) for n in lengths]
    indptr = np.cumsum([0, *counts])
    borders = np.cumsum([0, *lengths])
    for b, n in enumerate(lengths):
        for t in range(n):
            at = order[indptr[b] + t // page], t % page
            pages[0][at], pages[1][at] = k[borders[b] + t], v[borders[b] + t]
    last = np.array([(n - 1) % page + 1 if n else 0 for n in lengths])
    return pages, indptr, order, last, k, v, borders


OPTIONS = [
    {"causal": True},
    {"causal": True, "pos_encoding_mode": "ALIBI", "window_left": 1},
    {"pos_encoding_mode": "ROPE_LLAMA", "logits_soft_cap": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_is_its_requests(options):
    pages, indptr, indices, last, k, v, borders = paged()
    q, rows = draw(6, 4, 8), np.array([0, 2, 3, 6])
    out, lse = flashinfer.batch_prefill_with_paged_kv_cache(
        q, tuple(pages), rows, indptr, indices, last, **options, return_lse=True
    )
    ragged = flashinfer.batch_prefill_with_ragged_kv_cache(q, k, v, rows, borders, **options, return_lse=True)
    check((out, lse), ragged)
    for b in (0, 2):
        at, at_k = slice(rows[b], rows[b + 1]), slice(borders[b], borders[b + 1])
        one = flashinfer.single_prefill_with_kv_cache(q[at], k[at_k], v[at_k], **options, return_lse=True)
        check((out[at], lse[at]), one)
    assert not out[2].any() and (lse[2] == -np.inf).all()  # no pages, no keys


def test_pages_in_other_layouts():
    pages, indptr, indices, last, *_ = paged()
    q = draw(3, 4, 8)
    want = flashinfer.batch_decode_with_paged_kv_cache(q, tuple(pages), indptr, indices, last)
    for cache, layout in (
        (np.stack(pages, axis=1), "NHD"),
        (tuple(x.swapaxes(1, 2) for x in pages), "HND"),
        (np.stack([x.swapaxes(1, 2) for x in pages], axis=1), "HND"),
    ):
        got = flashinfer.batch_decode_with_paged_kv_cache(q, cache, indptr, indices, last, kv_layout=layout)
        np.testing.assert_array_equal(got, want)


def test_a_batch_decodes_each_request():
    pages, indptr, indices, last, k, v, borders = paged()
    q = draw(3, 4, 8)
    options = {"pos_encoding_mode": "ALIBI", "q_scale": 2.0, "v_scale": 0.5, "return_lse": True}
    out, lse = flashinfer.batch_decode_with_paged_kv_cache(q, tuple(pages), indptr, indices, last, **options)
    for b in range(3):
        at = slice(borders[b], borders[b + 1])
        check((out[b], lse[b]), flashinfer.single_decode_with_kv_cache(q[b], k[at], v[at], **options))


def test_masks_of_a_batch():
    q, rows, borders = draw(5, 4, 8), np.array([0, 2, 5]), np.array([0, 3, 7])
    k, v = draw(7, 2, 8), draw(7, 2, 8)
    masks_of = [draw(2, 3) > -0.5, draw(3, 4) > -0.5]
    flat = np.concatenate([m.ravel() for m in masks_of])
    bits = np.concatenate([np.packbits(m.ravel(), bitorder="little") for m in masks_of])  # a new byte for each
    for options in ({"custom_mask": flat}, {"packed_custom_mask": bits}):
        got = flashinfer.batch_prefill_with_ragged_kv_cache(q, k, v, rows, borders, **options, return_lse=True)
        for b, mask in enumerate(masks_of):
            at, at_k = slice(rows[b], rows[b + 1]), slice(borders[b], borders[b + 1])
            check((got[0][at], got[1][at]), reference(q[at], k[at_k], v[at_k], mask=mask))
    with pytest.raises(ValueError, match=r"custom_mask has shape \(17,\); wanted \(18,\)"):
        flashinfer.batch_prefill_with_ragged_kv_cache(q, k, v, rows, borders, custom_mask=flat[:-1])


def test_more_causal_queries_than_keys():  # prefill.cuh:2533
    q, k, v = inputs(Tq=5, Tk=3)
    with pytest.raises(ValueError, match="3 keys for 5 queries"):
        flashinfer.single_prefill_with_kv_cache(q, k, v, causal=True)
    out, lse = flashinfer.batch_prefill_with_ragged_kv_cache(
        q, k, v, np.array([0, 5]), np.array([0, 3]), causal=True, return_lse=True
    )
    assert not out[:2].any() and (lse[:2] == -np.inf).all() and np.isfinite(lse[2:]).all()


def test_states_are_merged():  # cascade.cuh:104
    q, k, v = inputs()
    whole = flashinfer.single_prefill_with_kv_cache(q, k, v, return_lse=True)
    a, b, none = (
        flashinfer.single_prefill_with_kv_cache(q, k[at], v[at], return_lse=True)
        for at in (slice(2), slice(2, 5), slice(0))
    )
    check(flashinfer.merge_state(*a, *b), whole)
    states = [np.stack(parts, axis=1) for parts in zip(a, none, b, strict=True)]
    check(flashinfer.merge_states(*states), whole)
    out, lse = flashinfer.merge_state(*none, *none)
    assert not out.any() and (lse == -np.inf).all()


REFUSED = {
    "position": ({"pos_encoding_mode": "ROPE"}, ValueError, "wanted NONE, ROPE_LLAMA or ALIBI"),
    "scales of float8": ({"scale_q": np.ones(4)}, TypeError, "float8"),
    "a mask of another shape": ({"custom_mask": np.ones((5, 3), bool)}, ValueError, "custom_mask has shape"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    options, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        flashinfer.single_prefill_with_kv_cache(*inputs(), **options)


def test_refused_pages():
    pages, indptr, indices, last, *_ = paged()
    q = draw(3, 4, 8)
    for changed, message in (
        ((indptr, indices + 3, last), "there are 5 pages"),
        ((indptr, indices, last + 1), "wanted 1 ... 2"),
        ((indptr + 1, indices, last), "0 first"),
        ((indptr, indices, last[:2]), "paged_kv_last_page_len has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            flashinfer.batch_decode_with_paged_kv_cache(q, tuple(pages), *changed)
    with pytest.raises(ValueError, match=r"wanted \(H, D\)"):
        flashinfer.single_decode_with_kv_cache(q, pages[0][0], pages[1][0])


ARGUMENTS = {  # flashinfer/prefill.py:1186, flashinfer/decode.py:555, flashinfer/cascade.py:42
    "single_prefill_with_kv_cache": "q k v scale_q scale_k scale_v o_dtype custom_mask packed_custom_mask causal "
    "kv_layout pos_encoding_mode use_fp16_qk_reduction sm_scale window_left logits_soft_cap rope_scale rope_theta "
    "backend return_lse k_scale v_scale",
    "single_decode_with_kv_cache": "q k v kv_layout pos_encoding_mode use_tensor_cores q_scale k_scale v_scale "
    "window_left logits_soft_cap sm_scale rope_scale rope_theta return_lse backend",
    "merge_state": "v_a s_a v_b s_b backend",
    "merge_states": "v s backend",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_those_of_the_library(name):
    assert list(inspect.signature(getattr(flashinfer, name)).parameters) == ARGUMENTS[name].split()
