"""The comparison finds what is wrong with a result, and lets pass what rounding explains."""

import numpy as np
import pytest

import refattn
from refattn.testing import case
from refattn.testing.bounds import BOUNDS, SLACK
from refattn.testing.calls import as_float64
from refattn.testing.comparison import Wrong, compare_with_reference, leaves, quietly


def result(name):
    one = case(name)
    args, options = one.call()
    return one, [np.array(x) for x in quietly(getattr(refattn, one.operation), args, options)]


def changed(name, change):
    one, parts = result(name)
    parts = change(*parts)
    compare_with_reference(one, tuple(parts))


def put(x, place, value):
    x[place] = value
    return x


CHANGES = {
    "a list": (lambda o, lse: [o.tolist(), lse], "o is list; wanted a NumPy array"),
    "None": (lambda o, lse: [None, lse], "o is NoneType"),
    "o alone": (lambda o, lse: [o], "returned tuple of 0; wanted tuple of o, lse"),
    "another shape": (lambda o, lse: [o[:, :, :-1], lse], r"o is float32 \(2, 4, 64, 16\); wanted float32"),
    "another dtype": (lambda o, lse: [o.astype(np.float64), lse], "o is float64 .*; wanted float32"),
    "lse of another dtype": (lambda o, lse: [o, lse.astype(np.float16)], "lse is float16"),
    "NaN": (lambda o, lse: [put(o, (1, 2, 3, 4), np.nan), lse], r"o\[1, 2, 3, 4\] is nan; wanted .*1 such places"),
    "inf": (lambda o, lse: [o, put(lse, (0, 0, 9), -np.inf)], r"lse\[0, 0, 9\] is -inf"),
    "one number": (
        lambda o, lse: [put(o, (0, 1, 2, 3), o[0, 1, 2, 3] + 1e-4), lse],
        r"o\[0, 1, 2, 3\] .*1 of 8320 too far",
    ),
    "everything": (lambda o, lse: [o * np.float32(1.0001), lse], "too far off"),
    "lse in base 2": (lambda o, lse: [o, lse / np.log(np.float32(2))], "lse.*too far off"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(name):
    change, says = CHANGES[name]
    with pytest.raises(Wrong, match=says):
        changed("attention/causal/float32", change)


def test_what_is_right_passes():
    one, (o, lse) = result("attention/causal/float32")
    assert 0 < compare_with_reference(one, (o, lse)) < 0.5
    assert compare_with_reference(one, (o + np.float32(1e-8), lse)) < 1


def test_a_blind_row_is_exactly_zero():
    one, (o, lse) = result("attention/blind_rows/float32")
    assert compare_with_reference(one, (o, lse)) < 1
    with pytest.raises(Wrong, match=r"o\[0, 0, 5, 0\]"):
        compare_with_reference(one, (put(o.copy(), (0, 0, 5, 0), 1e-30), lse))
    with pytest.raises(Wrong, match=r"lse\[0, 0, 5\] is inf; wanted -inf"):
        compare_with_reference(one, (o, put(lse.copy(), (0, 0, 5), np.inf)))


def test_the_reason_names_gradients_by_their_fields():
    one, parts = result("attention_vjp/grouped_6_2/float32")
    assert np.array(parts[3]).item() is None
    g = refattn.AttentionGradients(parts[0], 2 * parts[1], parts[2], None, None)
    with pytest.raises(Wrong, match=r"^dk\["):
        compare_with_reference(one, g)
    with pytest.raises(Wrong, match="dbias is ndarray; wanted NoneType"):
        compare_with_reference(one, g._replace(dk=parts[1], dbias=np.zeros(3)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once(dtype):
    """Results in 16 bits may be half a unit off, and a 500th of one more; a second rounding shows."""
    one, (o, lse) = result(f"attention/plain/{dtype}")
    assert compare_with_reference(one, (o, lse)) <= 1
    away = (o.view(np.int16) + 1).view(o.dtype)
    with pytest.raises(Wrong, match="too far off"):
        compare_with_reference(one, (away, lse))


@pytest.mark.parametrize(
    "name",
    [
        "attention/causal",
        "attention/softcap_bias_sinks",
        "attention/large_scores",
        "attention_vjp/dropout_everything+dlse",
        "attention_vjp/softcap_saturated",
        "flash_attention_vjp/grouped_6_2+dlse",
        "merge_attention/large_lse",
        "rope/positions_far",
        "multi_head_attention/scores_bias_sinks",
        "multi_head_attention_vjp/biases",
    ],
)
def test_bounds_hold_for_inputs_that_are_a_little_off(name):
    """An exact kernel on inputs that were rounded once more is within two units of the bound."""
    one, eps = case(f"{name}/float64"), 2.0**-30
    args, options = as_float64(one.call())
    rng = np.random.default_rng(0)

    def off(x):
        if isinstance(x, tuple | list):
            return type(x)(off(y) for y in x)
        floats = isinstance(x, np.ndarray) and x.dtype == np.float64
        return x * (1 + eps * rng.uniform(-1, 1, x.shape)) if floats else x

    def call(args, options):
        return leaves(quietly(getattr(refattn, one.operation), args, options))

    bounds = leaves(quietly(BOUNDS[one.operation], (eps, *args), options))
    want, got = call(args, options), call(off(args), {key: off(x) for key, x in options.items()})
    for (part, x), (_, y), (_, bound) in zip(got, want, bounds, strict=True):
        if y is not None:
            with np.errstate(invalid="ignore"):
                error = np.nan_to_num(abs(x - y))
            assert (error <= 3 * eps * bound + 1e-14 * abs(np.nan_to_num(y))).all(), part


def test_the_reference_needs_a_small_part_of_the_bound():
    for name in ("causal", "t300", "d256", "large_scores"):
        one, parts = result(f"attention/{name}/float32")
        assert 0.001 < compare_with_reference(one, tuple(parts)) < 0.5
    assert SLACK <= 8
