"""Formats: every 16-bit pattern there and back, rounding as ml_dtypes has it, and arrays of bare bits."""

import itertools

import numpy as np
import pytest

from refattn.testing import Contract, check
from refattn.testing.formats import LARGEST, STORED, TINY, UNIT, decode, encode, round_to, storage, ulp
from refattn.testing.mutants import correct

BITS = np.arange(2**16, dtype=np.uint16)


def hard_numbers():
    """Return float32 numbers around every point where rounding to 16 bits changes: ties, and a step either side."""
    upper = BITS.astype(np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001], np.uint32)
    return (upper[:, None] | lower).view(np.float32).ravel()


def as_bits(x):
    return x if x.dtype == np.uint16 else x.view(np.uint16)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_pattern_comes_back(name):
    x = BITS.view(storage(name)) if name == "float16" else BITS
    numbers = decode(x, name)
    back = as_bits(encode(numbers, name, uint16=True))
    real = ~np.isnan(numbers)
    np.testing.assert_array_equal(back[real], BITS[real])
    assert np.isnan(decode(encode(numbers, name), name)[~real]).all()
    assert real.sum() == {"bfloat16": 2**16 - 2 * 127, "float16": 2**16 - 2 * 1023}[name]


def test_bfloat16_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = hard_numbers()
    with np.errstate(invalid="ignore"):
        theirs = x.astype(ml_dtypes.bfloat16)
    assert encode(x, "bfloat16").dtype == ml_dtypes.bfloat16
    real = ~np.isnan(x)
    np.testing.assert_array_equal(as_bits(encode(x, "bfloat16"))[real], as_bits(theirs)[real])
    np.testing.assert_array_equal(encode(x, "bfloat16", uint16=True)[real], as_bits(theirs)[real])
    assert np.isnan(decode(encode(x, "bfloat16"), "bfloat16")[~real]).all()
    with np.errstate(invalid="ignore"):
        numbers = BITS.view(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(decode(BITS, "bfloat16"), numbers)


def test_ties_go_to_even():
    """1 + 2⁻⁸ lies halfway between two bfloat16 numbers, 1 and 1 + 2⁻⁷; 1 + 3·2⁻⁸ between that one and the next."""
    x = 1 + np.array([1, 1 + 2**-10, 3, 3 - 2**-10]) * 2.0**-8
    np.testing.assert_array_equal(round_to(x, "bfloat16"), 1 + np.array([0, 1, 2, 1]) * 2.0**-7)
    np.testing.assert_array_equal(round_to(1 + (x - 1) / 8, "float16"), 1 + np.array([0, 1, 2, 1]) * 2.0**-10)
    np.testing.assert_array_equal(round_to(1 + (x - 1) / 8, "tf32"), 1 + np.array([0, 1, 2, 1]) * 2.0**-10)
    np.testing.assert_array_equal(round_to(-x, "bfloat16"), -round_to(x, "bfloat16"))


def test_tf32_is_float16_with_the_range_of_float32():
    """10 bits after the first, as float16; checked by rounding the mantissa in float64."""
    x = hard_numbers()
    x = x[np.isfinite(x) & (np.abs(x) < 1e38)]
    mantissa, exponent = np.frexp(x.astype(np.float64))
    normal = np.abs(x) >= 2.0**-126
    want = np.ldexp(np.rint(mantissa * 2**11) / 2**11, exponent)
    np.testing.assert_array_equal(round_to(x, "tf32")[normal], want[normal])
    np.testing.assert_array_equal(round_to(round_to(x, "tf32"), "tf32"), round_to(x, "tf32"))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32", "float32", "float64"])
def test_rounding_is_within_a_unit_and_the_smallest_number(name):
    x = hard_numbers()[::7]
    x = x[np.isfinite(x)].astype(np.float64)
    x = x[np.abs(x) <= LARGEST[name]]
    error = np.abs(round_to(x, name) - x)
    assert (error <= UNIT[name] * np.abs(x) + TINY[name]).all()
    assert (error <= ulp(x, name) / 2).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_units_and_largest_numbers(name):
    one = encode(np.array([1.0]), name)
    assert round_to(1 + UNIT[name], name) == 1
    assert round_to(1 + 3 * UNIT[name], name) == 1 + 4 * UNIT[name]
    assert ulp(1.0, name) == 2 * UNIT[name] and ulp(1.5, name) == 2 * UNIT[name] and ulp(2.0, name) == 4 * UNIT[name]
    assert np.isfinite(round_to(LARGEST[name], name)) and round_to(LARGEST[name], name) == LARGEST[name]
    assert one.dtype == storage(name)
    if name in ("float16", "bfloat16"):
        assert np.isinf(round_to(LARGEST[name] * (1 + UNIT[name]), name))


def test_an_overflow_is_quiet():
    assert np.isinf(round_to(1e6, "float16")) and np.isinf(round_to(3.4e38, "bfloat16"))
    assert np.isinf(round_to(1e300, "tf32")) and np.isneginf(round_to(-np.inf, "tf32"))
    signalling = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    for name in UNIT:
        assert np.isnan(round_to(signalling, name)).all()
    assert np.isnan(round_to(np.nan, "bfloat16")) and np.isneginf(round_to(-np.inf, "bfloat16"))


def test_shapes_and_strides_are_kept():
    x = np.arange(24.0).reshape(2, 3, 4)
    for name, uint16 in itertools.product(STORED, (False, True)):
        for view in (x, x.T, x[::-1, :, 1::2], x[0, 0, 0], x[:0]):
            there = encode(view, name, uint16)
            assert there.shape == np.shape(view) and there.dtype == storage(name, uint16)
            np.testing.assert_array_equal(decode(there, name), view)
    assert round_to(x.T, "tf32").shape == (4, 3, 2)
    assert round_to(1.0, "tf32").shape == ()


def test_wide_numbers():
    assert decode(np.uint16([0x3F80]), "bfloat16", np.longdouble).dtype == np.longdouble
    assert decode(np.float16([2]), "float16", np.float32).dtype == np.float32


def test_tf32_is_no_format_of_arrays():
    with pytest.raises(ValueError, match="format 'tf32' is none that arrays are stored in; wanted one of float32"):
        storage("tf32")


attend = correct("attention")


def on_bits(q, k, v, *, causal=False, bias=None, seqlens_k=None, mask=None, sinks=None):
    """An attention kernel on bfloat16 arrays that are uint16 arrays to Python."""
    assert {x.dtype for x in (q, k, v)} == {np.dtype(np.uint16)}
    wide = (decode(x, "bfloat16", np.float32) for x in (q, k, v))
    o, lse = attend(*wide, causal=causal, bias=bias, seqlens_k=seqlens_k, mask=mask, sinks=sinks)
    return encode(o, "bfloat16", uint16=True), lse


def test_a_kernel_on_bits_is_judged():
    """It keeps the weights in float32, which is more than bfloat16 asks for."""
    left_out = ("needle", "shape", "keys", "edge", "stairs")
    contract = Contract(dtype="bfloat16", uint16=True, p="float32")
    report = check(on_bits, contract, "quick", only=lambda id: not id.split("/")[1].startswith(left_out))
    assert report.ok, str(report)
    assert report.count("PASS") > 60


def test_a_wrong_kernel_on_bits_fails():
    def kernel(q, k, v):
        return on_bits(q, k, v)[0] + np.uint16(1)

    report = check(kernel, Contract(dtype="bfloat16", uint16=True), "quick", only="attention/normal_plain".__eq__)
    assert not report.ok


def test_bits_are_an_answer_to_ml_dtypes_too():
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

    def kernel(q, k, v):
        assert q.dtype.name == "bfloat16"
        o, lse = attend(q, k, v)
        return o.view(np.uint16), lse

    assert check(kernel, Contract(dtype="bfloat16"), "quick", only="attention/normal_plain".__eq__).ok
