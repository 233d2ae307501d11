"""Kernels in other layouts compute what the reference does, and get nothing in their unused slots but NaN."""

import inspect

import numpy as np
import pytest

import refattn
from refattn.testing.adapters import KernelFault, from_layout
from refattn.testing.adapters.layouts import nans

B, H, HK, TQ, TK, D, DV = 3, 4, 2, 5, 37, 8, 6
LENGTHS = [[37, 37, 37], [37, 0, 16], [1, 17, 5]]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((B, H, TQ, DV), (B, H, TQ, D), (B, HK, TK, D), (B, HK, TK, DV))
    return [rng.standard_normal(shape) for shape in shapes]


def tokens_first(q, k, v, *, causal=False, bias=None):
    """An attention kernel on (B, T, H, D)."""
    assert all(x.flags.c_contiguous for x in (q, k, v))
    turned = (x.swapaxes(1, 2) for x in (q, k, v))
    mask = refattn.masks.causal() if causal else None
    o, lse = refattn.attention(*turned, mask=mask, bias=bias, return_lse=True)
    return np.ascontiguousarray(o.swapaxes(1, 2)), lse


def tokens_first_vjp(do, q, k, v, *, bias=None, dlse=None):
    turned = (x.swapaxes(1, 2) for x in (do, q, k, v))
    dq, dk, dv, dbias, _ = refattn.attention_vjp(*turned, bias=bias, dlse=dlse)
    return *(x.swapaxes(1, 2) for x in (dq, dk, dv)), dbias


def packed(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal=False, sinks=None, bias=None, q_offset=None):
    """An attention kernel on (total, H, D), a sequence at a time."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == np.int32
    o, lse = np.zeros((*q.shape[:2], v.shape[2]), q.dtype), np.zeros(q.shape[1::-1])
    for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False):
        one = (x[rows].swapaxes(0, 1) for x, rows in ((q, slice(a, b)), (k, slice(c, d)), (v, slice(c, d))))
        mask = refattn.masks.causal() if causal else None
        part, lse[:, a:b] = refattn.attention(*one, mask=mask, sinks=sinks, return_lse=True)
        o[a:b] = part.swapaxes(0, 1)
    return o, lse


def packed_vjp(do, q, k, v, *, cu_seqlens_q, cu_seqlens_k, dlse=None, sinks=None):
    dq, dk, dv, dsinks = np.zeros_like(q), np.full_like(k, 7), np.full_like(v, 7), 0
    for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False):
        rows = (slice(a, b), slice(a, b), slice(c, d), slice(c, d))
        one = (x[r].swapaxes(0, 1) for x, r in zip((do, q, k, v), rows, strict=True))
        got = refattn.attention_vjp(*one, sinks=sinks, dlse=None if dlse is None else dlse[:, a:b])
        for whole, x, r in zip((dq, dk, dv), got[:3], rows[1:], strict=True):
            whole[r] = x.swapaxes(0, 1)
        dsinks = dsinks + got.dsinks if sinks is not None else None
    return (dq, dk, dv) if sinks is None else (dq, dk, dv, dsinks)


def paged(q, k_pages, v_pages, *, page_table, seqlens_k, causal=False, mask=None):
    """An attention kernel on pages, a sequence at a time."""
    assert page_table.dtype == seqlens_k.dtype == np.int32
    o, lse = np.zeros((*q.shape[:3], v_pages.shape[3])), np.zeros(q.shape[:3])
    for b, n in enumerate(seqlens_k):
        k, v = (x[page_table[b]].reshape(-1, *x.shape[2:])[:n].swapaxes(0, 1) for x in (k_pages, v_pages))
        o[b], lse[b] = refattn.attention(q[b], k, v, mask=refattn.masks.causal() if causal else mask, return_lse=True)
    return o, lse


def wanted(q, k, v, lengths, *, causal=False, **options):
    mask = refattn.masks.padding(lengths)
    if causal:
        mask = mask & refattn.masks.causal(np.asarray(lengths) - q.shape[2])
    return refattn.attention(q, k, v, mask=mask, return_lse=True, **options)


def same(got, want):
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_first(arrays, causal):
    q, k, v = arrays[1:]
    bias = np.random.default_rng(1).standard_normal((1, H, TQ, TK))
    mask = refattn.masks.causal() if causal else None
    got = from_layout(tokens_first, "bthd")(q, k, v, causal=causal, bias=bias)
    same(got, refattn.attention(q, k, v, mask=mask, bias=bias, return_lse=True))


def test_tokens_first_backward(arrays):
    bias, dlse = np.ones((1, H, TQ, TK)), np.random.default_rng(1).standard_normal((B, H, TQ))
    got = from_layout(tokens_first_vjp, "bthd")(*arrays, bias=bias, dlse=dlse)
    same(got, refattn.attention_vjp(*arrays, bias=bias, dlse=dlse)[:4])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, *LENGTHS])
def test_packed(arrays, lengths, causal):
    q, k, v = arrays[1:]
    sinks = np.linspace(-1, 1, H)
    options = {} if lengths is None else {"seqlens_k": lengths}
    for x in (k, v):  # what lies beyond the lengths must not be packed
        for b, n in enumerate(lengths or ()):
            x[b, :, n:] = np.nan
    got = from_layout(packed, "packed")(q, k, v, causal=causal, sinks=sinks, **options)
    same(got, wanted(q, np.nan_to_num(k), np.nan_to_num(v), lengths or [TK] * B, causal=causal, sinks=sinks))


@pytest.mark.parametrize("lengths", [None, *LENGTHS])
def test_packed_backward(arrays, lengths):
    sinks, dlse = np.linspace(-1, 1, H), np.random.default_rng(1).standard_normal((B, H, TQ))
    options = {"sinks": sinks, "dlse": dlse}
    got = from_layout(packed_vjp, "packed")(*arrays, **options, **({"seqlens_k": lengths} if lengths else {}))
    mask = refattn.masks.padding(lengths or [TK] * B)
    want = refattn.attention_vjp(*arrays, mask=mask, **options)
    same(got, (*want[:3], want.dsinks))
    for x in got[1:3]:
        for b, n in enumerate(lengths or ()):
            assert not x[b, :, n:].any()


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, *LENGTHS])
def test_paged(arrays, lengths, causal, page):
    q, k, v = arrays[1:]
    options = {} if lengths is None else {"seqlens_k": np.array(lengths)}
    got = from_layout(paged, "paged", page=page)(q, k, v, causal=causal, **options)
    same(got, wanted(q, k, v, lengths or [TK] * B, causal=causal))


def test_what_no_sequence_has_is_nan(arrays):
    q, k, v = arrays[1:]
    lengths = [37, 0, 16]
    seen = {}

    def kernel(q, k_pages, v_pages, *, page_table, seqlens_k):
        seen.update(k=k_pages, v=v_pages, table=page_table, lengths=seqlens_k)
        return q

    from_layout(kernel, "paged", page=16)(q, k, v, seqlens_k=lengths)
    pages, table = seen["k"], seen["table"]
    assert table.shape == (B, 3) and table.min() >= 0 and table.max() < len(pages)
    used = [table[b, n] for b in range(B) for n in range(-(-lengths[b] // 16))]
    assert len(set(used)) == len(used) == 4 and used != sorted(used)
    unused = [n for n in range(len(pages)) if n not in used]
    assert unused and np.isnan(pages[unused]).all()
    assert set(table[1]) <= set(unused)
    assert np.isnan(pages[table[0, 2], 37 - 32 :]).all() and np.isfinite(pages[table[0, 2], : 37 - 32]).all()
    assert np.isnan(seen["v"][unused]).all()


def test_a_kernel_that_reads_a_page_too_many_is_seen(arrays):
    def greedy(q, k_pages, v_pages, *, page_table, seqlens_k):
        return paged(q, k_pages, v_pages, page_table=page_table, seqlens_k=seqlens_k + 1)[0]

    o = from_layout(greedy, "paged")(*arrays[1:], seqlens_k=[36, 3, 0])
    assert np.isnan(o).all()


@pytest.mark.parametrize("layout", ["bthd", "packed", "paged"])
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 3, 0)])
def test_empty(layout, shape):
    batch, keys = shape[0], shape[3]
    q, k = np.ones((batch, H, TQ, D)), np.ones((batch, HK, keys, D))
    kernel = {"bthd": tokens_first, "packed": packed, "paged": paged}[layout]
    o, lse = from_layout(kernel, layout)(q, k, k)
    assert o.shape == q.shape and lse.shape == q.shape[:3]
    assert not o.any() and (lse == -np.inf).all()


@pytest.mark.parametrize(
    ("kernel", "layout", "inputs", "options"),
    [
        (tokens_first, "bthd", "qkv", {"causal", "bias"}),
        (tokens_first_vjp, "bthd", ["do", *"qkv"], {"bias", "dlse"}),
        (packed, "packed", "qkv", {"causal", "sinks", "q_offset", "seqlens_k"}),
        (packed_vjp, "packed", ["do", *"qkv"], {"sinks", "dlse", "seqlens_k"}),
        (paged, "paged", "qkv", {"causal", "mask", "seqlens_k"}),
    ],
)
def test_the_signature_names_what_can_be_asked(kernel, layout, inputs, options):
    adapted = from_layout(kernel, layout)
    parameters = inspect.signature(adapted).parameters
    assert list(parameters)[: len(inputs)] == list(inputs)
    assert set(list(parameters)[len(inputs) :]) == options
    assert adapted.__name__ == kernel.__name__


def test_a_kernel_with_all_keywords_takes_all_that_can_be_expressed():
    names = inspect.signature(from_layout(lambda q, k, v, **options: q, "packed")).parameters
    assert "window" in names and "seqlens_k" in names and "bias" not in names and "dropout_mask" not in names


def test_writes_to_an_argument_are_found(arrays):
    def careless(q, k, v):
        q *= 2
        return v

    with pytest.raises(KernelFault, match="wrote to its argument q"):
        from_layout(careless, "bthd")(*arrays[1:])


@pytest.mark.parametrize("cut", ["o", "lse"])
def test_packed_results_of_another_shape_are_found(arrays, cut):
    def short(q, k, v, *, cu_seqlens_q, cu_seqlens_k):
        o, lse = packed(q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        return (o[1:], lse) if cut == "o" else (o, lse.T)

    with pytest.raises(KernelFault, match=rf"^{cut} is \(.*; wanted \("):
        from_layout(short, "packed")(*arrays[1:])


def test_what_is_refused(arrays):
    with pytest.raises(ValueError, match="layout is 'tbhd'; wanted one of bhtd"):
        from_layout(packed, "tbhd")
    with pytest.raises(ValueError, match="page is 0"):
        from_layout(paged, "paged", page=0)
    with pytest.raises(TypeError, match="no backward kernels on pages"):
        from_layout(paged, "paged")(*arrays)
    with pytest.raises(TypeError, match="got 2 arrays"):
        from_layout(tokens_first, "bthd")(*arrays[:2])
    assert from_layout(packed, "bhtd") is packed


def test_nan_in_the_bits_of_bfloat16():
    bits = nans((2,), np.dtype(np.uint16)).astype(np.uint32) << np.uint32(16)
    assert np.isnan(bits.view(np.float32)).all()
