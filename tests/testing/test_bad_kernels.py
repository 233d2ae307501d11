"""Whatever a kernel does is a verdict: one that is clear, about the check in which it happened."""

import os
import sys
import time

import numpy as np
import pytest

from refattn.testing import Contract, KernelFault, check
from refattn.testing.mutants import correct
from refattn.testing.verdicts import FAIL, NOT_RUN, PASS

attend, attend_vjp = correct("attention"), correct("attention_vjp")
PLAIN = "attention/normal_plain"
THREE = (PLAIN, "attention/normal_causal", "attention/normal_wide")


def verdict(kernel, contract=None, id=PLAIN, **options):
    """Return the only result of one check."""
    report = check(kernel, contract, "quick", only=id.__eq__, fail_fast=True, **options)
    (result,) = report.results
    assert report.ok == (result.verdict in (PASS, NOT_RUN))
    return result


def raises(q, k, v):
    raise ZeroDivisionError("no\n   tiles left")


def raises_silently(q, k, v):
    raise RuntimeError


def with_result(change):
    def kernel(q, k, v):
        return change(*attend(q, k, v))

    return kernel


BAD = {
    "raises": (raises, "raised ZeroDivisionError: no tiles left"),
    "raises without a word": (raises_silently, "raised RuntimeError: "),
    "leaves": (lambda q, k, v: sys.exit(3), "raised SystemExit: 3"),
    "stops iterating": (lambda q, k, v: next(iter(())), "raised StopIteration: "),
    "two dimensions": (with_result(lambda o, lse: o[0, 0]), "o has shape (70, 64); wanted (2, 4, 70, 64)"),
    "lse of a wrong shape": (
        with_result(lambda o, lse: (o, lse[..., None])),
        "lse has shape (2, 4, 70, 1); wanted (2, 4, 70)",
    ),
    "float64": (with_result(lambda o, lse: o.astype(np.float64)), "o has dtype float64; wanted float32"),
    "half": (with_result(lambda o, lse: o.astype(np.float16)), "o has dtype float16; wanted float32"),
    "integers": (with_result(lambda o, lse: o.astype(int)), "o has dtype int64; wanted float32"),
    "objects": (with_result(lambda o, lse: o.astype(object)), "o has dtype object; wanted float32"),
    "lse in half": (
        with_result(lambda o, lse: (o, lse.astype(np.float16))),
        "lse has dtype float16; wanted float32",
    ),
    "None": (with_result(lambda o, lse: None), "o is NoneType; wanted an array"),
    "None for lse": (with_result(lambda o, lse: (o, None)), "lse is NoneType; wanted an array"),
    "a string": (with_result(lambda o, lse: "done"), "o is str; wanted an array"),
    "a number": (with_result(lambda o, lse: 0.0), "o is float; wanted an array"),
    "a scalar": (with_result(lambda o, lse: np.float32(0)), "o is float32; wanted an array"),
    "a dictionary": (with_result(lambda o, lse: {"o": o}), "o is dict; wanted an array"),
    "a list of numbers": (with_result(lambda o, lse: [1.0, 2.0]), "o is float; wanted an array"),
    "nested lists": (with_result(lambda o, lse: o.tolist()), "o is list; wanted an array"),
    "nothing": (with_result(lambda o, lse: ()), "returned 0 results; wanted o or (o, lse)"),
    "three results": (with_result(lambda o, lse: (o, lse, o)), "returned 3 results; wanted o or (o, lse)"),
    "a view of an input": (lambda q, k, v: np.broadcast_to(v[:, :1, :1], q.shape), "o is a view of an input"),
    "its input": (lambda q, k, v: q, "o is a view of an input"),
    "prints": (lambda q, k, v: [print("tile", 3), attend(q, k, v)[0]][1:], "wrote to standard output: 'tile 3\\n'"),
    "native code prints": (
        lambda q, k, v: [os.write(1, b"launch\n"), attend(q, k, v)[0]][1:],
        "wrote to standard output: 'launch\\n'",
    ),
    "takes two arrays": (lambda q, k: q, "raised TypeError: "),
    "nan": (with_result(lambda o, lse: o * np.nan), "o[0, 0, 0, 0] is nan; wanted "),
    "infinity in one place": (
        with_result(lambda o, lse: np.where(np.arange(64) == 5, np.float32(np.inf), o)),
        "o[0, 0, 0, 5] is inf; wanted ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_result_is_one_sentence(name, capfd):
    kernel, message = BAD[name]
    result = verdict(kernel)
    assert result.verdict == FAIL
    assert result.message.startswith(message), result.message
    assert len(result.message.splitlines()) == 1 or name in ("nan", "infinity in one place")
    assert capfd.readouterr() == ("", "")


def test_the_message_of_an_exception_is_cut():
    def kernel(q, k, v):
        raise ValueError("x" * 10_000)

    assert len(verdict(kernel).message) < 400


def test_a_fault_keeps_its_words():
    def kernel(q, k, v):
        raise KernelFault("the driver is gone")

    assert verdict(kernel).message == "the driver is gone"


def test_an_interruption_stops_the_run():
    def kernel(q, k, v):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(kernel, None, "quick", only=PLAIN.__eq__)


def test_what_python_prints_is_seen_after_a_fault_too():
    def kernel(q, k, v):
        print("half way")
        raise ValueError("lost")

    assert verdict(kernel).message.splitlines() == [
        "raised ValueError: lost",
        "wrote to standard output: 'half way\\n'",
    ]


def hangs_at(width):
    def kernel(q, k, v, *, causal=False):
        while q.shape[-1] == width:
            time.sleep(0.005)
        return attend(q, k, v, causal=causal)

    return kernel


def test_a_kernel_that_hangs_costs_its_limit_and_the_rest_runs():
    report = check(hangs_at(128), None, "quick", only=THREE.__contains__, timeout=0.5)
    assert [(r.check, r.verdict, r.message) for r in report.results] == [
        (THREE[0], PASS, ""),
        (THREE[1], PASS, ""),
        (THREE[2], FAIL, "did not return within 0.5 s"),
    ]


def test_the_second_hang_costs_less():
    """A good call takes some milliseconds; once the kernel has hung, none may take more than a second."""
    ids = [PLAIN, "attention/normal_wide", "attention/shape_65x63x128x16"]
    report = check(hangs_at(128), None, "quick", only=ids.__contains__, timeout=1.5)
    assert [r.verdict for r in report.results] == [PASS, FAIL, FAIL]
    first, second = (r.message for r in report.results[1:])
    assert first == "did not return within 1.5 s"
    limit = float(second.removeprefix("did not return within ").removesuffix(" s"))
    assert 1 <= limit <= 1.5


def test_a_kernel_that_hangs_in_every_call():
    def kernel(q, k, v):
        while True:
            time.sleep(0.005)

    report = check(kernel, None, "quick", only=lambda id: id in (PLAIN, THREE[2]), timeout=0.2)
    assert [r.message for r in report.results] == ["did not return within 0.2 s"] * 2


def writes(to):
    def kernel(q, k, v, *, bias=None, sinks=None):
        x = {"q": q, "k": k, "v": v, "bias": bias, "sinks": sinks}[to]
        if x is not None:
            x.flat[-1] += 1  # behind what a caller would look at first
        return attend(q, k, v, bias=bias, sinks=sinks)

    return kernel


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("q", "normal_plain"),
        ("k", "normal_plain"),
        ("v", "normal_plain"),
        ("bias", "bias_QK"),
        ("sinks", "normal_sinks"),
    ],
)
def test_a_kernel_that_writes_to_an_input(name, id):
    result = verdict(writes(name), id=f"attention/{id}")
    assert (result.verdict, result.message) == (FAIL, "wrote to an input, or to the memory around it")


@pytest.mark.parametrize("form", ["spread", "guarded", "unaligned"])
def test_a_kernel_that_writes_beside_its_input(form):
    def kernel(q, k, v):
        result = attend(q, k, v)
        room = k
        while isinstance(room.base, np.ndarray):
            room = room.base
        inside = np.zeros(room.shape, bool) if room.shape != k.shape else None
        if inside is not None:
            gap = next(i for i in range(room.size) if not np.shares_memory(room.reshape(-1)[i : i + 1], k))
            room.reshape(-1)[gap] = 7
        return result

    result = verdict(kernel, id=f"attention/memory_{form}")
    assert (result.verdict, result.message) == (FAIL, "wrote to an input, or to the memory around it")
    assert verdict(lambda q, k, v: attend(q, k, v), id=f"attention/memory_{form}").verdict == PASS


def test_a_later_call_that_writes_to_an_earlier_result():
    room = {}

    def kernel(q, k, v):
        o, lse = attend(q, k, v)
        kept = room.setdefault(o.shape, np.empty_like(o))
        kept[...] = o
        return kept, lse

    assert verdict(kernel).verdict == PASS
    for name in ("repeat", "stale_memory", "powers_of_values"):
        result = verdict(kernel, id=f"attention/{name}")
        assert (result.verdict, result.message) == (FAIL, "o lies in the memory of the result of the call before")


BACKWARD = "attention_vjp/normal_bias"


def backward_with(change):
    def kernel(do, q, k, v, *, bias=None):
        return change(attend_vjp(do, q, k, v, bias=bias))

    return kernel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:3], "returned 3 results; wanted 4: dq, dk, dv, dbias"),
        (lambda r: r[0], "returned 1 results; wanted 4: dq, dk, dv, dbias"),
        (lambda r: (*r, None, r[0]), "returned 5 results; wanted 4: dq, dk, dv, dbias"),
        (lambda r: (*r[:3], None), "dbias is NoneType; wanted an array"),
        (lambda r: (r[1], r[0], *r[2:]), "dq has shape (2, 2, 150, 64); wanted (2, 4, 70, 64)"),
        (lambda r: (*r[:3], r[3].sum(axis=0)), "dbias has shape (4, 70, 150); wanted (2, 4, 70, 150)"),
    ],
)
def test_backward_kernels(change, message):
    contract = Contract(op="attention_vjp")
    result = verdict(backward_with(change), contract, BACKWARD)
    assert (result.verdict, result.message) == (FAIL, message)


def test_a_backward_kernel_may_return_none_for_what_was_not_given():
    contract = Contract(op="attention_vjp")
    kernel = backward_with(lambda r: (*r[:3], r[3] if len(r) > 3 else None, None))
    assert verdict(kernel, contract, BACKWARD).verdict == PASS
    assert verdict(kernel, contract, "attention_vjp/normal_plain").verdict == PASS
    bare = verdict(lambda do, q, k, v: attend_vjp(do, q, k, v)[0], contract, "attention_vjp/normal_plain")
    assert bare.message == "returned 1 results; wanted 3: dq, dk, dv"


OPTIONAL = ("normal_plain", "normal_causal", "normal_window", "normal_bias", "normal_dropout", "mixture_0")


def run_optional(kernel, contract=None):
    report = check(kernel, contract, "quick", only=lambda id: id.split("/")[1] in OPTIONAL)
    assert len(report.results) == len(OPTIONAL)
    return {result.check.split("/")[1]: result for result in report.results}


def test_a_kernel_that_takes_any_option():
    results = run_optional(lambda q, k, v, **options: attend(q, k, v, **options))
    assert {result.verdict for result in results.values()} == {PASS}


def test_a_kernel_that_takes_no_option():
    results = run_optional(lambda q, k, v: attend(q, k, v))
    assert results.pop("normal_plain").verdict == PASS
    assert {result.verdict for result in results.values()} == {NOT_RUN}
    assert results["normal_causal"].message == "the kernel does not take causal"
    assert results["normal_window"].message == "the kernel does not take causal, window"
    assert results["normal_dropout"].message == "the kernel does not take dropout_mask, dropout_p"


class Native:
    """What a compiled function looks like: it has no signature that Python can read."""

    __signature__ = "(q, k, v)"

    def __call__(self, *arrays, **options):
        assert not options
        return attend(*arrays)


def test_a_kernel_without_a_signature():
    results = run_optional(Native())
    assert results["normal_plain"].verdict == PASS
    assert results["normal_causal"].message == "the kernel does not take causal"
    builtin = run_optional(max)
    assert builtin["normal_plain"].message.startswith("raised ")
    assert builtin["normal_causal"].verdict == NOT_RUN


def test_options_that_the_contract_names_reach_a_kernel_without_a_signature():
    class Compiled(Native):
        def __call__(self, *arrays, **options):
            assert set(options) <= {"causal", "window"}
            return attend(*arrays, **options)

    results = run_optional(Compiled(), Contract(options=("causal", "window")))
    assert results["normal_window"].verdict == PASS
    assert results["normal_bias"].message == "the kernel does not take bias"


def contiguous(x):
    return x.flags.c_contiguous and x.flags.aligned and x.flags.writeable


LIMITS = {
    "gqa": ({"gqa": False}, lambda q, k, v: "grouped" if q.shape[1] != k.shape[1] else None),
    "empty": ({"empty": False}, lambda q, k, v: "empty" if 0 in (*q.shape, *k.shape) else None),
    "nan": ({"nan": False}, lambda q, k, v: "not finite" if not all(np.isfinite(x).all() for x in (q, k, v)) else None),
    "strided": ({"strided": False}, lambda q, k, v: "strided" if not all(map(contiguous, (q, k, v))) else None),
    "head_dims": ({"head_dims": (128,)}, lambda q, k, v: f"D = {q.shape[3]}" if q.shape[3] != 128 else None),
    "seq_multiple": (
        {"seq_multiple": 64},
        lambda q, k, v: f"T = {q.shape[2]}, {k.shape[2]}" if q.shape[2] % 64 or k.shape[2] % 64 else None,
    ),
    "max_keys": ({"max_keys": 256}, lambda q, k, v: f"Tk = {k.shape[2]}" if k.shape[2] > 256 else None),
    "value_dims": ({"value_dims": False}, lambda q, k, v: "Dv" if q.shape[3] != v.shape[3] else None),
    "all of them": (
        {"gqa": False, "empty": False, "head_dims": (32, 64), "seq_multiple": 16, "max_keys": 250, "value_dims": False},
        lambda q, k, v: (
            f"{q.shape} {k.shape} {v.shape}"
            if q.shape[1] != k.shape[1]
            or 0 in (*q.shape, *k.shape)
            or q.shape[3] not in (32, 64)
            or q.shape[3] != v.shape[3]
            or q.shape[2] % 16
            or k.shape[2] % 16
            or k.shape[2] > 250
            else None
        ),
    ),
}


def limited(op, forbidden):
    """Return a correct kernel that raises for what its contract rules out."""
    kernel = {"attention": attend, "attention_vjp": attend_vjp}[op]

    def checked(*arrays, **options):
        reason = forbidden(*arrays[-3:])
        if reason:
            raise ValueError(reason)
        return kernel(*arrays, **options)

    return checked


REACHED = (
    *("normal_plain", "normal_w", "needle_257", "edge_window_7", "shape_63", "shape_5x", "no_", "memory_spread"),
    *("mask_p", "mixture_0", "mixture_1", "lengths", "hidden_", "nan_", "grouped", "merged", "some_", "decoded"),
    *("stale", "hull", "keys_", "xray_seqlens"),
)


@pytest.mark.parametrize("name", LIMITS)
def test_within_its_declared_limits_a_kernel_passes(name):
    fields, forbidden = LIMITS[name]
    kernel = limited("attention", forbidden)
    report = check(kernel, Contract(**fields), "quick", only=lambda id: id.split("/")[1].startswith(REACHED))
    assert report.ok, str(report)
    assert report.count(PASS) > 20
    undeclared = check(
        kernel, Contract(), "quick", only=lambda id: id.split("/")[1].startswith(REACHED), fail_fast=True
    )
    assert undeclared.results[-1].message.startswith("raised ValueError: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "dtype"), [("attention", "float32"), ("attention", "bfloat16"), ("attention_vjp", "bfloat16")]
)
@pytest.mark.parametrize("name", LIMITS)
def test_within_its_declared_limits_a_kernel_passes_everything(name, op, dtype):
    fields, forbidden = LIMITS[name]
    report = check(limited(op, forbidden), Contract(op=op, dtype=dtype, **fields), "quick")
    assert report.ok, str(report)
    assert report.count(PASS) > 60


ALWAYS = {
    "causal": ({"causal": True}, {}),
    "top left": ({"causal": True}, {"causal": "top_left"}),
    "causal window": ({"causal": True, "window": (33, 0)}, {}),
    "window": ({"window": (20, 7)}, {}),
    "softcap and scale": ({"softcap": 2.0, "scale": 0.23}, {}),
    "splits": ({"num_splits": 3}, {}),
}


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("takes", ["nothing", "mask"])
def test_what_always_holds_is_part_of_every_check(name, takes):
    always, fields = ALWAYS[name]
    given = always | ({"q_offset": 0} if name == "top left" else {})

    def plain(q, k, v):
        return attend(q, k, v, **given)

    def masked(q, k, v, *, mask=None, seqlens_k=None):
        return attend(q, k, v, mask=mask, seqlens_k=seqlens_k, **given)

    kernel, contract = plain if takes == "nothing" else masked, Contract(always=always, **fields)
    skipped = ("needle", "memory", "values", "keys_", "mixture", "bias", "scores", "stairs", "edge")
    report = check(kernel, contract, "quick", only=lambda id: not id.split("/")[1].startswith(skipped))
    assert report.ok, str(report)
    assert report.count(PASS) > 30


def test_what_always_holds_rules_out_other_values():
    always = {"causal": True, "window": (33, 0)}

    def kernel(q, k, v):
        return attend(q, k, v, **always)

    names = ("normal_window", "edge_window_70x333", "xray_window", "xray_causal", "permuted_keys", "nan_value")
    report = check(kernel, Contract(always=always), "quick", only=lambda id: id.split("/")[1] in names)
    said = {r.check.split("/")[1]: (r.verdict, r.message) for r in report.results}
    assert said.pop("normal_window") == said.pop("xray_causal") == (PASS, "")
    assert said.pop("edge_window_70x333") == said.pop("xray_window") == (NOT_RUN, "window is always (33, 0)")
    assert set(said.values()) == {(NOT_RUN, "causal is always True: tokens may not change places")}


def test_a_kernel_that_is_causal_and_does_not_declare_it_fails():
    assert verdict(lambda q, k, v: attend(q, k, v, causal=True)).verdict == FAIL


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_kernel_that_prints_is_not_taken_for_one_that_rounds(dtype):
    def kernel(q, k, v):
        print("tile 3")
        return attend(q, k, v)

    report = check(kernel, Contract(dtype=dtype), "quick", only=PLAIN.__eq__)
    assert [(r.verdict, r.message) for r in report.results] == [(FAIL, "wrote to standard output: 'tile 3\\n'")]


def test_cases_beyond_the_range_of_float16_are_not_run():
    def said(contract):
        names = ("scores_1e4", "values_huge", "values_tiny", "normal_plain")
        report = check(lambda q, k, v: attend(q, k, v), contract, "quick", only=lambda id: id.split("/")[1] in names)
        return {r.check.split("/")[1]: r.message for r in report.results if r.verdict == NOT_RUN}

    assert said(Contract(dtype="bfloat16")) == {}
    found = said(Contract(dtype="bfloat16", acc="float16"))
    assert set(found) == {"scores_1e4", "values_huge"}
    assert found["scores_1e4"].startswith("a product may reach ")
    assert found["values_huge"] == "a sum may reach 2.7e+37, beyond the range of float16"
    assert set(said(Contract(products="float16"))) == {"values_huge"}
    assert set(said(Contract(dtype="bfloat16", s="float16"))) <= {"scores_1e4"}
