"""The operations of a backend as kernels: plain keywords mean what the arguments of refattn mean."""

import inspect

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing import Contract, check
from refattn.testing.attention.oracle import visible_pairs
from refattn.testing.attention.problem import problem
from refattn.testing.backends import KERNELS, backend_kernel, mask_of
from refattn.testing.recurrence import FAMILIES
from refattn.testing.recurrence.draw import Draw

B, H, HK, TQ, TK, D, DV = 2, 4, 2, 13, 29, 16, 12
RNG = np.random.default_rng(0)
Q, K, V, DO = (
    RNG.standard_normal(shape).astype(np.float32)
    for shape in ((B, H, TQ, D), (B, HK, TK, D), (B, HK, TK, DV), (B, H, TQ, DV))
)
BIAS = RNG.standard_normal((1, H, TQ, TK)).astype(np.float32)
ROW = RNG.standard_normal((1, H, 1, TK)).astype(np.float32)
MASK = RNG.random((B, 1, TQ, TK)) < 0.6
KEEP = RNG.random((B, H, TQ, TK)) < 0.7
SINKS = RNG.standard_normal(H).astype(np.float32)
SLOPES = np.float32([0.5, 0.25, 0.1, 0.05])
LENGTHS = np.array([7, 29], np.int32)


def alibi(offset):
    return -SLOPES[:, None, None] * np.abs(np.arange(TQ)[:, None] + offset - np.arange(TK)).astype(np.float32)


OPTIONS = {  # what the kernel gets, and what refattn gets
    "nothing": ({}, {}),
    "causal": ({"causal": True}, {"mask": masks.causal()}),
    "not_causal": ({"causal": False}, {}),
    "causal_offset": ({"causal": True, "q_offset": 3}, {"mask": masks.causal(3)}),
    "causal_offsets": ({"causal": True, "q_offset": [3, 11]}, {"mask": masks.causal([3, 11])}),
    "window": ({"window": (4, 2)}, {"mask": masks.window(4, 2)}),
    "window_one_side": ({"window": (4, None)}, {"mask": masks.window(4, None)}),
    "causal_window": ({"causal": True, "window": (4, 0)}, {"mask": masks.causal() & masks.window(4, 0)}),
    "lengths": ({"seqlens_k": LENGTHS}, {"mask": masks.padding(LENGTHS)}),
    "lengths_causal": (
        {"seqlens_k": LENGTHS, "causal": True},
        {"mask": masks.padding(LENGTHS) & masks.causal(LENGTHS - TQ)},
    ),
    "mask": ({"mask": MASK}, {"mask": MASK}),
    "mask_of_two_axes": ({"mask": MASK[0, 0]}, {"mask": MASK[0, 0]}),
    "mask_of_keys": ({"mask": MASK[0, 0, 0]}, {"mask": MASK[0, 0, :1]}),
    "mask_causal": ({"mask": MASK, "causal": True}, {"mask": MASK & masks.causal().dense(TQ, TK)}),
    "scale": ({"scale": 0.3}, {"scale": 0.3}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "bias": ({"bias": BIAS}, {"bias": BIAS}),
    "bias_of_keys": ({"bias": ROW}, {"bias": ROW}),
    "alibi": ({"alibi_slopes": SLOPES}, {"bias": alibi(TK - TQ)}),
    "alibi_offset": ({"alibi_slopes": SLOPES, "q_offset": 3}, {"bias": alibi(3)}),
    "alibi_bias": ({"alibi_slopes": SLOPES, "bias": BIAS}, {"bias": BIAS + alibi(TK - TQ)}),
    "sinks": ({"sinks": SINKS}, {"sinks": SINKS}),
    "dropout": ({"dropout_mask": KEEP, "dropout_p": 0.3}, {"dropout_mask": KEEP, "dropout_p": 0.3}),
}


def same(x, y, name):
    """Compare to the bit; but two biases are added in another order."""
    if name == "alibi_bias":
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("operation", ["attention", "flash_attention", "attention_split_kv"])
def test_a_forward_operation(operation, name, anywhere):
    options, given = OPTIONS[name]
    kernel = backend_kernel(operation, anywhere)
    if any(option not in inspect.signature(kernel).parameters for option in options):
        assert operation != "attention"
        return
    asked = {} if operation == "flash_attention" else {"return_lse": True}  # which returns lse unasked
    want = getattr(refattn, operation)(Q, K, V, **given, **asked, backend=anywhere)
    for x, y in zip(kernel(Q, K, V, **options), want, strict=True):
        same(x, y, name)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("operation", ["attention_vjp", "flash_attention_vjp"])
def test_a_backward_operation(operation, name, anywhere):
    options, given = OPTIONS[name]
    kernel = backend_kernel(operation, anywhere)
    if any(option not in inspect.signature(kernel).parameters for option in options):
        assert operation != "attention_vjp"
        return
    got = kernel(DO, Q, K, V, **options)
    if operation == "attention_vjp":
        want = refattn.attention_vjp(DO, Q, K, V, **given, backend=anywhere)
    else:
        o, lse = refattn.flash_attention(Q, K, V, **given, backend=anywhere)
        want = refattn.flash_attention_vjp(DO, Q, K, V, o, lse, **given, backend=anywhere)
    for field in ("dq", "dk", "dv"):
        same(getattr(got, field), getattr(want, field), name)
    if "bias" in options:
        assert got.dbias.shape == options["bias"].shape
        summed = want.dbias.sum(axis=2, keepdims=True) if want.dbias.shape != got.dbias.shape else want.dbias
        np.testing.assert_allclose(got.dbias, summed, rtol=1e-6, atol=1e-6)
    else:
        assert got.dbias is None


def test_dlse_reaches_the_backend(anywhere):
    dlse = RNG.standard_normal((B, H, TQ)).astype(np.float32)
    got = backend_kernel("attention_vjp", anywhere)(DO, Q, K, V, dlse=dlse)
    want = refattn.attention_vjp(DO, Q, K, V, dlse=dlse, backend=anywhere)
    np.testing.assert_array_equal(got.dq, want.dq)


def test_splits_reach_the_backend(anywhere):
    got, _ = backend_kernel("attention_split_kv", anywhere)(Q, K, V, num_splits=3)
    want = refattn.attention_split_kv(Q, K, V, num_splits=3, backend=anywhere)
    np.testing.assert_array_equal(got, want)


def test_what_the_contract_reads_off_the_signature():
    kernel = backend_kernel("attention", "numpy")
    options = Contract().with_options_of(kernel).options
    assert {"causal", "q_offset", "window", "seqlens_k", "bias", "sinks", "dropout_mask"} <= set(options)
    assert "num_splits" not in options
    assert "num_splits" in Contract().with_options_of(backend_kernel("attention_split_kv", "numpy")).options
    assert kernel.__name__ == "attention, backend numpy"


@pytest.mark.parametrize("operation", KERNELS)
def test_the_reference_passes_the_kit(operation):
    """A part of it: `refattn.testing.check_backend` runs the rest."""
    wanted = (
        "normal_plain",
        "normal_sinks",
        "normal_alibi",
        "lengths_causal",
        "offset_window",
        "bias_B11K",
        "xray_off",
    )
    wanted = ("normal", "packed", "length_1") if operation in FAMILIES else wanted
    report = check(
        backend_kernel(operation, "numpy"),
        Contract(op=KERNELS[operation]),
        "quick",
        only=lambda id: id.split("/")[1].startswith(wanted),
    )
    assert report.ok, str(report)
    assert report.count("PASS") > 2


@pytest.mark.parametrize("op", ["linear_attention", "rwkv4", "causal_conv1d"])
def test_states_reach_the_operation(op):
    family, kernel = FAMILIES[op], backend_kernel(op, "numpy")
    draw = Draw(np.random.default_rng(0), Contract(op=op), family, {"T": 9})
    arrays, states = [x.astype(np.float32) for x in draw.arrays().values()], draw.states()
    several = isinstance(states, tuple)
    states = tuple(x.astype(np.float32) for x in states) if several else states.astype(np.float32)
    o, last = kernel(*arrays, initial_state=states)
    assert len(last) == len(family.states) if several else last.shape == states.shape
    assert (o != kernel(*arrays)[0]).any()


def test_packed_sequences_reach_the_operation():
    draw = Draw(np.random.default_rng(0), Contract(op="simple_gla"), FAMILIES["simple_gla"], {"B": 1, "T": 9})
    arrays, borders = [x.astype(np.float32) for x in draw.arrays().values()], np.array([0, 4, 9])
    o, states = backend_kernel("simple_gla", "numpy")(*arrays, cu_seqlens=borders)
    want = refattn.simple_gla(*(x[0] for x in arrays), cu_seqlens=borders)
    np.testing.assert_array_equal(o[0], want.o)
    np.testing.assert_array_equal(states, want.state)


MASKS = {
    "causal": {"causal": True},
    "causal with an offset": {"causal": True, "q_offset": 3},
    "causal with offsets": {"causal": True, "q_offset": [3, 11]},
    "causal with a negative offset": {"causal": True, "q_offset": -4},
    "causal with lengths": {"causal": True, "seqlens_k": [7, 29]},
    "causal with lengths and an offset": {"causal": True, "seqlens_k": [7, 29], "q_offset": 5},
    "window": {"window": (4, 2)},
    "window, left": {"window": (4, None)},
    "window, right": {"window": (None, 2)},
    "window without bounds": {"window": (None, None)},
    "window with an offset": {"window": (4, 2), "q_offset": 3},
    "window with lengths": {"window": (4, 2), "seqlens_k": [7, 29]},
    "window with lengths, causal": {"window": (4, 0), "seqlens_k": [7, 29], "causal": True},
    "lengths": {"seqlens_k": [0, 29]},
    "mask": {"mask": MASK},
    "mask of two axes": {"mask": MASK[0, 0]},
    "mask of keys": {"mask": MASK[0, 0, 0]},
    "mask and causal": {"mask": MASK, "causal": True},
    "mask of keys and a window": {"mask": MASK[0, 0, 0], "window": (3, 3)},
    "everything": {"mask": MASK, "causal": True, "window": (9, 3), "seqlens_k": [20, 29], "q_offset": [1, 8]},
}


@pytest.mark.parametrize("name", MASKS)
def test_the_mask_of_options_is_that_of_the_oracle(name):
    p = problem(Contract(), Q, K, V, **MASKS[name])
    found = mask_of(p)
    dense = found if isinstance(found, np.ndarray) else found.dense(TQ, TK)
    np.testing.assert_array_equal(np.broadcast_to(dense, (B, H, TQ, TK)), visible_pairs(p, Contract()))


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"softcap": 2.0}, {"bias": BIAS}])
def test_no_mask_where_none_is_asked_for(options):
    assert mask_of(problem(Contract(), Q, K, V, **options)) is None
