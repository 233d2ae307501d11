"""`infer_contract` finds out what a kernel does, and the contract it writes down is one that the kernel keeps."""

import time

import numpy as np
import pytest

from refattn.testing import Contract, check, infer_contract
from refattn.testing.attention.problem import problem
from refattn.testing.formats import round_to
from refattn.testing.mutants import correct

attend = correct("attention")
FEW = ("normal_plain", "normal_causal", "normal_window", "edge_causal", "blind_rows", "normal_sinks", "bias_softcap")
MORE = ("normal_wide", "shape_3x2x72x40", "repeat", "hull", "stale_memory", "xray_", "lengths", "some_queries")


def keeps(kernel, inference, *also):
    """Hold a kernel to what was inferred, on the checks that what it is made to do could fail."""
    wanted = (*FEW, *MORE, *also)
    report = check(kernel, inference.contract, "quick", only=lambda id: id.split("/")[1].startswith(wanted))
    assert report.ok, f"{inference}\n{report}"
    assert report.count("PASS") >= 5
    return report


def plain(q, k, v):
    return attend(q, k, v)


def top_left(q, k, v, *, causal=False):
    return attend(q, k, v, causal=causal, q_offset=0)


def always_causal(q, k, v):
    return attend(q, k, v, causal=True)


def always_top_left(q, k, v):
    return attend(q, k, v, causal=True, q_offset=0)


def scale_one(q, k, v, *, causal=False, scale=None):
    return attend(q, k, v, causal=causal, scale=1.0 if scale is None else scale)


def scale_one_over_width(q, k, v, *, causal=False):
    return attend(q, k, v, causal=causal, scale=1 / q.shape[-1])


def base_2(q, k, v, *, causal=False, sinks=None):
    o, lse = attend(q, k, v, causal=causal, sinks=sinks)
    return o, lse / np.float32(np.log(2))


def without_lse(q, k, v, *, mask=None):
    return attend(q, k, v, mask=mask)[0]


def lse_without_sinks(q, k, v, *, sinks=None):
    return attend(q, k, v, sinks=sinks)[0], attend(q, k, v)[1]


def window_of_total(q, k, v, *, causal=False, window=None):
    left, right = (None, None) if window is None else window
    return attend(q, k, v, causal=causal, window=(None if left is None else left - 1, right))


def cap_after_bias(q, k, v, *, softcap=None, bias=None):
    width, (B, H, Tq, _) = q.shape[-1], q.shape
    s = q @ np.repeat(k, H // k.shape[1], axis=1).swapaxes(-1, -2) / np.float32(np.sqrt(width))
    s = s if bias is None else s + bias
    s = s if softcap is None else softcap * np.tanh(s / softcap)
    zeros = [np.zeros((*x.shape[:3], 1), np.float32) for x in (q, k)]
    return attend(*zeros, v, bias=np.broadcast_to(s, (B, H, Tq, k.shape[2])))


def blind(fill):
    def kernel(q, k, v, *, causal=False, mask=None, seqlens_k=None):
        o, lse = attend(q, k, v, causal=causal, mask=mask, seqlens_k=seqlens_k)
        if fill == "mean" and k.shape[2] == 0:
            return o, np.where(np.isneginf(lse), np.inf, lse)
        group = q.shape[1] // k.shape[1]
        other = np.nan if fill == "nan" else np.repeat(v, group, axis=1).mean(axis=2, keepdims=True)
        return np.where(np.isneginf(lse)[..., None], other, o).astype(q.dtype), np.where(np.isneginf(lse), np.inf, lse)

    return kernel


def only_equal_heads(q, k, v):
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"{k.shape[1]} key heads for {q.shape[1]} query heads")
    return attend(q, k, v)


def narrow_weights(q, k, v, *, causal=False):
    """Softmax in float32, its weights rounded to bfloat16."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    s = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1]))
    if causal:
        hidden = np.arange(k.shape[2]) > np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        s = np.where(hidden, -np.inf, s)
    m = s.max(axis=-1, keepdims=True, initial=-1e30)
    e = np.exp(s - m)
    l = e.sum(axis=-1, keepdims=True)
    o = round_to(e, "bfloat16").astype(np.float32) @ v
    with np.errstate(divide="ignore"):
        return np.where(l == 0, 0, o / np.where(l == 0, 1, l)), np.where(l == 0, -np.inf, m + np.log(l))[..., 0]


def tensor_cores(q, k, v, *, causal=False):
    """The operands of both products rounded to tf32."""
    q, k, v = (round_to(x, "tf32").astype(np.float32) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    s = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1]))
    if causal:
        hidden = np.arange(k.shape[2]) > np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        s = np.where(hidden, -np.inf, s)
    m = s.max(axis=-1, keepdims=True, initial=-1e30)
    e = np.exp(s - m)
    l = e.sum(axis=-1, keepdims=True)
    o = round_to(e, "tf32").astype(np.float32) @ v
    with np.errstate(divide="ignore"):
        return np.where(l == 0, 0, o / np.where(l == 0, 1, l)), np.where(l == 0, -np.inf, m + np.log(l))[..., 0]


def restless():
    calls = [0]

    def kernel(q, k, v, *, causal=False):
        calls[0] += 1
        return attend(q, k, v, causal=causal, tile_k=(16, 48, 64)[calls[0] % 3])

    return kernel


def tokens_first(q, k, v, *, causal=False):
    o, lse = attend(*(x.swapaxes(1, 2) for x in (q, k, v)), causal=causal)
    return np.ascontiguousarray(o.swapaxes(1, 2)), lse


def packed(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal=False):
    o, lse = np.zeros((*q.shape[:2], v.shape[2]), q.dtype), np.zeros(q.shape[1::-1], np.float32)
    for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False):
        one = (x[rows].swapaxes(0, 1)[None] for x, rows in ((q, slice(a, b)), (k, slice(c, d)), (v, slice(c, d))))
        part, sums = attend(*one, causal=causal)
        o[a:b], lse[:, a:b] = part[0].swapaxes(0, 1), sums[0]
    return o, lse


KERNELS = {
    "plain": (plain, {}),
    "top_left": (top_left, {"causal": "top_left"}),
    "always_causal": (always_causal, {"always": {"causal": True}, "causal": "bottom_right", "blind_rows": "zero"}),
    "always_top_left": (always_top_left, {"always": {"causal": True}, "causal": "top_left"}),
    "scale_one": (scale_one, {"default_scale": "1"}),
    "scale_one_over_width": (scale_one_over_width, {"default_scale": "1/D"}),
    "base_2": (base_2, {"lse": "base2"}),
    "without_lse": (without_lse, {"lse": None}),
    "lse_without_sinks": (lse_without_sinks, {"lse_sinks": False}),
    "window_of_total": (window_of_total, {"window": "total"}),
    "cap_after_bias": (cap_after_bias, {"softcap": "after_bias"}),
    "blind_nan": (blind("nan"), {"blind_rows": "nan", "lse_blind": "+inf"}),
    "blind_mean": (blind("mean"), {"blind_rows": "mean", "lse_blind": "+inf"}),
    "only_equal_heads": (only_equal_heads, {"gqa": False}),
    "narrow_weights": (narrow_weights, {"p": "bfloat16"}),
    "tensor_cores": (tensor_cores, {"products": "tf32"}),
    "restless": (restless(), {"deterministic": False}),
    "tokens_first": (tokens_first, {"layout": "bthd"}),
    "packed": (packed, {"layout": "packed"}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_kernel_does_is_found_and_kept(name):
    kernel, wanted = KERNELS[name]
    inference = infer_contract(kernel)
    assert {field: getattr(inference.contract, field) for field in wanted} == wanted, str(inference)
    assert {field for field, _ in inference.unknown} <= {"blind_rows"}, str(inference)
    keeps(kernel, inference)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_found_is_kept_in_every_check(name):
    kernel, _ = KERNELS[name]
    report = check(kernel, infer_contract(kernel).contract, "quick")
    assert report.ok, str(report)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    inference = infer_contract(attend, dtype)
    contract = inference.contract
    assert not inference.unknown, str(inference)
    assert (contract.dtype, contract.numerics["p"], contract.causal) == (dtype, dtype, "bottom_right")
    if dtype != "float64":  # whose oracle, in long double, is slow
        assert keeps(attend, inference).ok


def test_weights_that_are_not_rounded_in_half_precision():
    def kernel(q, k, v):
        o, lse = attend(*(x.astype(np.float32) for x in (q, k, v)))
        return o.astype(q.dtype), lse

    inference = infer_contract(kernel, "bfloat16")
    assert inference.contract.numerics["p"] == "float32", str(inference)


def test_a_scale_that_depends_on_the_width_is_right_for_other_widths():
    contract = infer_contract(scale_one_over_width).contract
    assert contract.always == {}
    for width in (8, 128):
        x = [np.random.default_rng(width).standard_normal((1, 2, 9, width)) for _ in range(3)]
        p = problem(contract, *x)
        o = scale_one_over_width(p.q, p.k, p.v)[0]
        s = p.q @ p.k.swapaxes(-1, -2) / width
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        np.testing.assert_allclose(o, e / e.sum(axis=-1, keepdims=True) @ p.v, atol=1e-5)


def raises(q, k, v):
    raise RuntimeError("no device")


def hangs(q, k, v):
    while True:
        time.sleep(0.01)


def hangs_with_a_mask(q, k, v, *, mask=None):
    if mask is not None:
        hangs(q, k, v)
    return attend(q, k, v)


def hangs_on_large_arrays(q, k, v):
    if q.shape[2] > 50:
        hangs(q, k, v)
    return attend(q, k, v)


def only_128(q, k, v):
    if q.shape[3] != 128:
        raise ValueError("D must be 128")
    return attend(q, k, v)


def noise(q, k, v, **options):
    return np.random.default_rng().standard_normal((*q.shape[:3], v.shape[3])).astype(q.dtype)


GARBAGE = {
    "raises": raises,
    "hangs": hangs,
    "noise": noise,
    "only_128": only_128,
    "leaves": lambda q, k, v: exit(3),
    "None": lambda q, k, v: None,
    "text": lambda q, k, v: "o",
    "nan": lambda q, k, v: np.full_like(q, np.nan),
    "shape": lambda q, k, v: q[:1, :1].copy(),
    "no arrays": lambda: None,
    "builtin": max,
    "five": lambda q, k, v: (q, k, v, q, k),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_unknown(name, capfd):
    inference = infer_contract(GARBAGE[name], timeout=0.3)
    assert [field for field, _ in inference.unknown] == ["layout"]
    assert "layout  ?  " in str(inference)
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_later_is_unknown():
    inference = infer_contract(hangs_with_a_mask, timeout=0.3)
    assert dict(inference.unknown) == {"blind_rows": "nothing fits: did not return within 0.3 s"} | dict(
        inference.unknown
    )
    assert inference.contract.gqa and inference.contract.deterministic
    inference = infer_contract(hangs_on_large_arrays, timeout=0.3)
    assert dict(inference.unknown)["p"] == "did not return within 0.3 s"


def test_lse_that_is_something_else():
    def kernel(q, k, v):
        o, lse = attend(q, k, v)
        return o, lse + 1

    inference = infer_contract(kernel)
    assert inference.contract.lse is None
    assert "lse" in dict(inference.unknown)


def test_the_probes_follow_the_seed_and_print():
    once, again = infer_contract(top_left, seed=5), infer_contract(top_left, seed=5)
    assert str(once) == str(again)
    assert once.described() == {"op": "attention", "dtype": "float32", "causal": "top_left", "p": "float32"}
    lines = str(once).splitlines()
    assert len(lines) == len(once.findings) + len(once.unknown)
    assert any(line.startswith("causal") and "'top_left'" in line for line in lines)


def test_what_is_refused():
    with pytest.raises(TypeError, match="infer_contract: kernel is int; wanted something to call"):
        infer_contract(3)
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        infer_contract(plain, "float8")


@pytest.mark.parametrize("scale", ["1/D", "1", "1/sqrt(D)"])
def test_a_declared_scale_is_used_where_none_is_given(scale):
    def kernel(q, k, v, *, scale=None):
        own = {"1/D": 1 / q.shape[-1], "1": 1.0, "1/sqrt(D)": q.shape[-1] ** -0.5}[declared]
        return attend(q, k, v, scale=own if scale is None else scale)

    declared = scale
    wanted = ("normal_plain", "normal_scale", "normal_wide", "scale_zero", "shape_1x1x8x8", "needle_65")
    only = [f"attention/{name}" for name in wanted if name.partition("_")[0] != "needle" or scale == "1/sqrt(D)"]
    assert check(kernel, Contract(default_scale=scale), "quick", only=only.__contains__).ok
    declared = "1" if scale == "1/sqrt(D)" else "1/sqrt(D)"
    report = check(kernel, Contract(default_scale=scale), "quick", only=only.__contains__)
    failed = {result.check.partition("/")[2] for result in report.failures}
    assert failed >= {"normal_plain", "normal_wide"} and not failed & {"normal_scale", "scale_zero"}


def test_a_declared_scale_is_used_in_gradients():
    def backward(do, q, k, v):
        return correct("attention_vjp")(do, q, k, v, scale=1 / q.shape[-1])

    only = ["attention_vjp/normal_plain", "attention_vjp/normal_wide"]
    contract = Contract(op="attention_vjp", default_scale="1/D")
    assert check(backward, contract, "quick", only=only.__contains__).ok
    assert not check(backward, Contract(op="attention_vjp"), "quick", only=only.__contains__).ok
