"""The X-ray shows which keys a kernel looks at, whatever it claims."""

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing import Contract, KernelFault, check, xray
from refattn.testing.mutants import correct
from refattn.testing.verdicts import FAIL, PASS

attend = correct("attention")


def causal(q, k, v):
    return attend(q, k, v, causal=True)


@pytest.mark.parametrize(("Tq", "Tk"), [(5, 5), (3, 9), (9, 3), (70, 130), (1, 1), (1, 70)])
def test_causal(Tq, Tk):
    np.testing.assert_array_equal(xray(causal, Tq=Tq, Tk=Tk), masks.causal().dense(Tq, Tk))


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, masks.from_function(lambda i, j: i >= 0)),
        ({"causal": True}, masks.causal()),
        ({"causal": True, "q_offset": 4}, masks.causal(4)),
        ({"window": (7, 2)}, masks.window(7, 2)),
        ({"window": (None, 2)}, masks.window(None, 2)),
        ({"causal": True, "window": (7, 0)}, masks.causal() & masks.window(7, 0)),
        ({"seqlens_k": [33]}, masks.padding([33])),
    ],
)
def test_options(options, mask):
    found = xray(attend, Tq=40, Tk=70, **options)
    assert found.dtype == bool
    np.testing.assert_array_equal(
        found, np.broadcast_to(np.asarray(mask.dense(40, 70)).reshape(-1, 40, 70)[0], (40, 70))
    )


def test_a_mask_of_ones_own():
    mask = np.random.default_rng(0).random((1, 1, 20, 90)) < 0.3
    np.testing.assert_array_equal(xray(attend, Tq=20, Tk=90, mask=mask), mask[0, 0])


def test_a_planted_leak_is_seen():
    def kernel(q, k, v):
        mask = np.tri(q.shape[2], k.shape[2], dtype=bool)
        mask[5, 60] = True  # the future
        mask[50, 3] = False
        return attend(q, k, v, mask=mask[None, None])

    off = xray(kernel, Tq=64, Tk=64) != np.tri(64, dtype=bool)
    assert np.argwhere(off).tolist() == [[5, 60], [50, 3]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    """A weight of one among 500 keys must not vanish."""
    found = xray(causal, Contract(dtype=dtype), Tq=3, Tk=500)
    np.testing.assert_array_equal(found, masks.causal().dense(3, 500))


def test_the_contract_says_what_always_holds_and_the_layout():
    def tokens_first(q, k, v, *, causal=False):
        turned = (x.swapaxes(1, 2) for x in (q, k, v))
        return np.ascontiguousarray(attend(*turned, causal=causal)[0].swapaxes(1, 2))

    contract = Contract(layout="bthd", always={"causal": True})
    np.testing.assert_array_equal(xray(tokens_first, contract, 6, 9), masks.causal().dense(6, 9))


def test_widths_that_a_kernel_takes():
    def kernel(q, k, v):
        if v.shape[3] != 128 or q.shape[3] != 128:
            raise ValueError(f"D = {q.shape[3]}")
        return causal(q, k, v)

    np.testing.assert_array_equal(xray(kernel, Contract(head_dims=(128,)), 40, 300), masks.causal().dense(40, 300))
    with pytest.raises(KernelFault, match="raised ValueError: D = 64"):
        xray(kernel, Tq=4, Tk=4)


def test_a_kernel_that_is_no_kernel():
    with pytest.raises(KernelFault, match="o is NoneType; wanted an array"):
        xray(lambda q, k, v: None)


def test_an_option_reaches_a_kernel_that_hides_its_signature():
    found = xray(lambda *arrays, **options: attend(*arrays, **options), Tq=4, Tk=4, causal=True)
    np.testing.assert_array_equal(found, np.tri(4, dtype=bool))


def only(part):
    return lambda id: id.startswith(part)


def test_the_checks_name_the_first_pair_and_draw_both_masks():
    def kernel(q, k, v, *, causal=False):
        mask = np.ones((q.shape[2], k.shape[2]), bool)
        if causal:
            mask = np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2] + 1, dtype=bool)
        return attend(q, k, v, mask=mask[None, None])

    report = check(kernel, None, "quick", only=only("attention/xray_causal"))
    assert {result.verdict for result in report.results} == {FAIL}
    result = report.results[0]
    assert "lets through 69 pairs that are hidden, and hides 0 that are visible" in result.message
    assert "query 0 sees key 61" in result.message
    (picture,) = result.pictures
    assert picture.values.shape == picture.wanted.shape == (70, 130)
    assert (picture.values & ~picture.wanted).sum() == 69
    assert check(kernel, None, "quick", only=only("attention/xray_plain")).results[0].verdict == PASS


@pytest.mark.parametrize("blind", ["nan", "mean", "any"])
def test_rows_that_see_nothing_show_what_their_contract_says(blind):
    def kernel(q, k, v, *, causal=False):
        o, lse = attend(q, k, v, causal=causal)
        fill = {"nan": np.nan, "mean": v.mean(axis=2, keepdims=True), "any": 7}[blind]
        return np.where(np.isneginf(lse)[..., None], fill, o).astype(q.dtype), lse

    wanted = only("attention/xray_causal_more_queries")
    assert check(kernel, Contract(blind_rows=blind), "quick", only=wanted).ok
    assert not check(kernel, Contract(), "quick", only=wanted).ok


def test_a_backward_kernel_shows_its_mask_in_dv():
    backward = correct("attention_vjp")

    def leaks(do, q, k, v, *, causal=False):
        if not causal:
            return backward(do, q, k, v)
        mask = np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=bool)
        mask[0, -1] = True
        return backward(do, q, k, v, mask=mask[None, None])

    contract = Contract(op="attention_vjp")
    wanted = only("attention_vjp/xray_causal")
    assert check(backward, contract, "quick", only=wanted).ok
    report = check(leaks, contract, "quick", only=wanted)
    assert "lets through 1 pairs that are hidden" in report.results[0].message
    assert "query 0 sees key 129" in report.results[0].message


def test_the_reference_as_a_kernel():
    def kernel(q, k, v):
        return refattn.attention(q, k, v, mask=masks.window(3, 1) & masks.causal())

    np.testing.assert_array_equal(xray(kernel, Tq=9, Tk=9), np.tri(9, dtype=bool) & ~np.tri(9, k=-4, dtype=bool))
