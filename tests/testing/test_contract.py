"""Contracts: what they accept, the defaults they fill in, the options they read off a signature."""

import functools
import json
from dataclasses import fields, replace

import pytest

from refattn.testing import Contract
from refattn.testing.contract import ATTENTION_OPTIONS, CHOICES


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted_and_nothing_else(name):
    for value in CHOICES[name]:
        assert getattr(Contract(**{name: value}), name) == value
    with pytest.raises(ValueError, match=f"Contract: {name} is 'other'; wanted one of "):
        Contract(**{name: "other"})


@pytest.mark.parametrize("name", ["products", "s", "p", "out"])
def test_precisions(name):
    for value in (None, "float32", "tf32", "float16", "bfloat16", "float64"):
        assert getattr(Contract(**{name: value}), name) == value
    with pytest.raises(ValueError, match=f"Contract: {name} is 'fp8'; wanted None or one of 'float64'"):
        Contract(**{name: "fp8"})


@pytest.mark.parametrize("wrong", [{"exp_ulp": -1}, {"tile": 0}, {"seq_multiple": 0}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="exp_ulp, tile and seq_multiple must not be negative or zero"):
        Contract(**wrong)


@pytest.mark.parametrize("wrong", [{"options": (1,)}, {"always": {2: True}}])
def test_options_are_names(wrong):
    with pytest.raises(TypeError, match="options and always name keywords"):
        Contract(**wrong)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"p": "float32", "acc": "float32", "out": "float32", "products": None, "s": None}),
        ({"dtype": "bfloat16"}, {"p": "bfloat16", "acc": "float32", "out": "bfloat16"}),
        ({"dtype": "bfloat16", "p": "float32"}, {"p": "float32", "out": "bfloat16"}),
        ({"dtype": "float64"}, {"p": "float64", "acc": "float64", "out": "float64"}),
        ({"acc": "tf32"}, {"products": "tf32", "p": "tf32", "acc": "float32", "out": "float32"}),
        ({"products": "tf32", "p": "bfloat16"}, {"products": "tf32", "p": "bfloat16"}),
        ({"products": "bfloat16", "acc": "tf32"}, {"products": "bfloat16", "p": "bfloat16"}),
        ({"acc": "tc_trunc"}, {"acc": "float32", "acc_truncates": True}),
        ({"acc": "float16", "dtype": "float16"}, {"acc": "float16", "acc_truncates": False}),
    ],
)
def test_numerics(given, wanted):
    numerics = Contract(**given).numerics
    assert {name: numerics[name] for name in wanted} == wanted
    assert set(numerics) >= {"exp_ulp", "q_prescaled", "l_rounded", "truncates", "acc_truncates", "tile"}


def plain(q, k, v):
    """Nothing but the arrays."""


def some(q, k, v, *, causal=False, scale=None, tile=64):
    """Two options, and a keyword that the kit does not know."""


def positional(q, k, v, causal=False, window=None):
    """Options that may be given by position."""


def everything(q, k, v, **options):
    """Whatever comes."""


def positional_only(q, k, v, causal=False, /):
    """An option that has no name to the caller."""


class Callable:
    """A kernel with state."""

    def __call__(self, q, k, v, *, sinks=None):
        """Do nothing."""

    def method(self, q, k, v, *, bias=None):
        """Do nothing."""


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        (plain, ()),
        (some, ("causal", "scale")),
        (positional, ("causal", "window")),
        (positional_only, ()),
        (everything, ATTENTION_OPTIONS),
        (Callable(), ("sinks",)),
        (Callable().method, ("bias",)),
        (functools.partial(some, scale=2.0), ("causal", "scale")),
        (max, ()),
    ],
)
def test_options_of_a_kernel(kernel, wanted):
    assert Contract().with_options_of(kernel).options == wanted
    assert Contract(options=("mask",)).with_options_of(kernel).options == ("mask",)


def test_options_of_another_operation():
    def backward(do, q, k, v, *, dlse=None, causal=False):
        """Take what only backward kernels take."""

    assert Contract().with_options_of(backward, (*ATTENTION_OPTIONS, "dlse")).options == ("causal", "dlse")


def test_described_holds_what_is_not_the_default():
    contract = Contract(dtype="float16", lse=None, head_dims=(64, 128), always={"window": (5, None)})
    assert contract.described() == {
        "op": "attention",
        "dtype": "float16",
        "lse": None,
        "head_dims": [64, 128],
        "always": {"window": [5, None]},
    }
    assert json.loads(json.dumps(contract.described())) == contract.described()
    assert Contract().described() == {"op": "attention", "dtype": "float32"}


def test_every_field_can_be_described():
    for field in fields(Contract):
        if field.name in CHOICES and field.name not in ("op", "dtype"):
            other = [value for value in CHOICES[field.name] if value != getattr(Contract(), field.name)]
            assert Contract(**{field.name: other[0]}).described()[field.name] == other[0]


def test_a_contract_does_not_change():
    with pytest.raises(AttributeError):
        Contract().dtype = "float16"
    assert replace(Contract(), dtype="float16") == Contract(dtype="float16") != Contract()
