import hashlib

import numpy as np
import pytest

from refattn import dispatch, masks
from refattn.testing import case, cases
from refattn.testing.calls import FAMILIES, QUICK, SIXTEEN, as_float64
from refattn.testing.cases import DTYPES, dtypes_here
from refattn.testing.comparison import arrays
from refattn.testing.problems import PROBLEMS

EVERY = [one for operation in sorted(dispatch.OPERATIONS) for one in cases(operation)]


def digest(one):
    found = hashlib.sha256()
    for x in arrays(one.call()):
        found.update(str((x.shape, x.dtype.name)).encode() + x.tobytes())
    return found.hexdigest()[:16]


def test_ids_are_unique():
    assert len({one.id for one in EVERY}) == len(EVERY) > 2000


@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_every_operation_is_tried_in_every_dtype(operation):
    assert {one.dtype for one in cases(operation)} == set(dtypes_here()) == set(DTYPES)
    assert 0 < len(cases(operation, "quick")) <= len(cases(operation)) / 2


@pytest.mark.parametrize("one", EVERY[:: len(EVERY) // 60], ids=lambda one: one.id)
def test_an_id_is_all_that_it_takes(one):
    assert case(one.id) == one
    assert digest(case(one.id)) == digest(one)


def test_ids_stay_what_they_are():
    """A case that somebody noted down must still be the same one: change its name when it changes."""
    args, _ = case("attention/causal/float64").call()
    np.testing.assert_allclose(args[0][0, 0, 0, :2], FIRST_NUMBERS, rtol=1e-12)


FIRST_NUMBERS = [0.3710369308662966, -1.0694342364019493]


@pytest.mark.parametrize("one", EVERY[:: len(EVERY) // 40], ids=lambda one: one.id)
def test_again_draws_other_numbers_in_the_same_shapes(one):
    first, second = arrays(one.call()), arrays(one.call(again=1))
    assert [(x.shape, x.dtype, x.strides) for x in first] == [(x.shape, x.dtype, x.strides) for x in second]
    floats = [(x, y) for x, y in zip(first, second, strict=True) if x.size > 3 and x.dtype != bool]
    assert not floats or any(not np.array_equal(x, y) for x, y in floats)


def test_the_lists_name_problems_that_are_there():
    assert set(SIXTEEN) <= set(PROBLEMS)
    assert set(QUICK) <= set(PROBLEMS)
    for operation, family in FAMILIES.items():
        assert set(family.sixteen) <= set(family.names), operation
        assert set(family.quick) <= set(family.names), operation
        assert len(set(family.names)) == len(family.names), operation


def test_an_unknown_case_is_refused():
    for wrong in (
        "",
        "attention",
        "attention/causal",
        "attention/cusal/float32",
        "attention/causal/int8",
        "a/causal/float32",
    ):
        with pytest.raises(LookupError, match="no case"):
            case(wrong)
    with pytest.raises(ValueError, match="level is 'deep'"):
        cases("attention", "deep")
    assert cases("no such operation") == []


def visible(args, options):
    return masks.as_mask(options["mask"]).dense(args[0].shape[-2], args[1].shape[-2])


def has(which):
    return [name for name in PROBLEMS if which(*case(f"attention/{name}/float64").call())]


@pytest.mark.parametrize(
    "which",
    [
        lambda args, options: args[0].ndim == 2,
        lambda args, options: args[0].ndim == 3,
        lambda args, options: args[0].ndim == 5,
        lambda args, options: args[0].shape[-2] == 0,
        lambda args, options: args[1].shape[-2] == 0,
        lambda args, options: args[0].shape[-2] > args[1].shape[-2] > 0,
        lambda args, options: 0 < args[0].shape[-2] < args[1].shape[-2],
        lambda args, options: args[0].shape[-1] != args[2].shape[-1],
        lambda args, options: args[0].ndim > 2 and args[0].shape[-3] == 3 * args[1].shape[-3],
        lambda args, options: not args[0].flags.c_contiguous and args[0].flags.f_contiguous,
        lambda args, options: any(stride < 0 for stride in args[0].strides),
        lambda args, options: 0 in args[0].strides,
        lambda args, options: np.isnan(args[1]).any(),
        lambda args, options: np.isinf(args[2]).any(),
        lambda args, options: np.isnan(args[0]).any(),
        lambda args, options: np.isnan(options.get("bias", 0)).any(),
        lambda args, options: np.isneginf(options.get("bias", 0)).any(),
        lambda args, options: options.get("scale") == 0,
        lambda args, options: options.get("scale", 1) < 0,
        lambda args, options: "softcap" in options and "bias" in options and "sinks" in options,
        lambda args, options: options.get("dropout_p", 0) > 0,
        lambda args, options: isinstance(options.get("mask"), np.ndarray) and options["mask"].ndim == 4,
        lambda args, options: (
            "mask" in options and not np.any(getattr(options["mask"], "dense", bool)(1, 1) if 0 else 0)
        ),
    ],
)
def test_the_problems_hold(which):
    assert has(which)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 130])
def test_lengths_around_tiles(size):
    assert has(lambda args, options: args[0].shape[-2] == size)


@pytest.mark.parametrize("D", [1, 8, 33, 64, 72, 80, 128])
def test_widths(D):
    assert has(lambda args, options: args[0].shape[-1] == D)


@pytest.mark.parametrize(
    "shape", [(), (65,), (65, 65), (1, 65), (4, 65, 1), (4, 1, 1), (4, 65, 65), (2, 1, 1, 65), (2, 4, 65, 65)]
)
def test_broadcasts_of_bias(shape):
    assert has(lambda args, options: "bias" in options and options["bias"].shape == shape)


def test_as_float64_keeps_what_is_not_a_float():
    ints, bools, text = np.arange(3), np.ones(2, bool), "causal"
    converted = as_float64((ints, bools, text, None, [np.ones(2, np.float16)]))
    assert converted[0] is ints and converted[1] is bools and converted[2:4] == (text, None)
    assert converted[4][0].dtype == np.float64
