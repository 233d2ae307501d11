"""A kernel that is right in another precision than it declares is told from one that is wrong."""

import numpy as np
import pytest

from refattn.testing import undeclared
from refattn.testing.contract import Contract
from refattn.testing.formats import round_to
from refattn.testing.kit import check
from refattn.testing.mutants import MUTANTS, correct
from refattn.testing.mutants.patch import source
from refattn.testing.verdicts import FAIL, PASS, SUSPECT, UNDECLARED

SOME = (
    "normal_wide",
    "normal_long",
    "normal_split",
    "normal_seqlens",
    "keys_64",
    "window_0",
    "mask_B11K",
    "permuted_keys",
)
"""Enough of the checks for a verdict: normal ones, others, and a relation."""


def judged(kernel, dtype="float32", op="attention", **claims):
    """Return the report of some of the checks."""
    return check(kernel, Contract(op=op, dtype=dtype, **claims), "quick", only=lambda id: id.split("/")[-1] in SOME)


def mutant(name):
    """Return the kernel of a mutant."""
    return next(mutant for mutant in MUTANTS if mutant.name == name).kernel()


def patched(*changes):
    """Return the tiled kernel with several places of its source changed."""
    text = source("attention")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    names = {"__name__": "refattn.testing.mutants.kernel", "round_to": round_to}
    exec(compile(text, "<patched>", "exec"), names)
    return names["tiled_attention"]


def in_tf32(q, k, v, **options):
    """Round the operands of both products to tf32."""
    return kernel_in_tf32(*(round_to(x, "tf32").astype(np.float32) for x in (q, k, v)), **options)


kernel_in_tf32 = patched(("p = p.astype(seq.dtype).astype(acc)", 'p = round_to(p, "tf32").astype(acc)'))

truncating = patched(
    (
        "p = p.astype(seq.dtype).astype(acc)",
        "p = (p.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)",
    ),
    (
        "= o_i.astype(q.dtype)",
        "= (np.ascontiguousarray(o_i).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(q.dtype)",
    ),
)


def in_half(q, k, v):
    """Add everything up in float16, one term after the other."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    s = np.zeros((*q.shape[:3], k.shape[2]), np.float16)
    for d in range(q.shape[-1]):
        s = s + q[..., d, None] * k[..., None, :, d]
    s = s * np.float16(q.shape[-1] ** -0.5)
    m = s.max(axis=-1, keepdims=True)
    p = np.exp(s - m)
    l, o = np.zeros(m.shape, np.float16), np.zeros((*q.shape[:3], v.shape[-1]), np.float16)
    for j in range(k.shape[2]):
        l, o = l + p[..., j, None], o + p[..., j, None] * v[..., None, j, :]
    return o / l, (m + np.log(l.astype(np.float32)))[..., 0]


KERNELS = {
    "P rounded to bfloat16": ("float32", mutant("weights are rounded to bfloat16"), "P in float32"),
    "P rounded to float16": ("float32", mutant("weights are rounded to float16"), "P in float32"),
    "the output rounded to bfloat16": ("float32", mutant("the result passes through bfloat16"), "an output in float32"),
    "scores rounded to float16": ("float32", mutant("scores are rounded to float16"), "scores in float32"),
    "products in tf32": ("float32", in_tf32, "products of operands in float32"),
    "scores rounded to bfloat16": (
        "bfloat16",
        mutant("scores are rounded to the dtype of the inputs"),
        "scores in float32",
    ),
    "the normaliser summed from P in bfloat16": (
        "bfloat16",
        mutant("the sum is taken over the rounded weights"),
        "l_rounded=False",
    ),
    "q times the scale rounded to float16": (
        "float16",
        mutant("queries are scaled and rounded before the product"),
        "q_prescaled=False",
    ),
    "accumulation in float16": ("float16", in_half, "accumulation in float32"),
    "conversions that truncate": ("bfloat16", truncating, "truncates=False"),
}


@pytest.mark.parametrize("what", KERNELS)
def test_a_precision_that_is_not_declared_is_named(what):
    dtype, kernel, declared = KERNELS[what]
    report = judged(kernel, dtype)
    bad = [r for r in report.results if r.bad]
    assert {r.verdict for r in bad} == {UNDECLARED} and not report.ok
    assert {r.message.split(". ")[0] for r in bad} == {f"consistent with {what}; the contract declares {declared}"}


def test_declared_it_is_right():
    assert judged(mutant("weights are rounded to bfloat16"), p="bfloat16").ok
    assert judged(in_tf32, acc="tf32").ok


def test_what_was_found_stays_in_the_message():
    report = judged(mutant("weights are rounded to bfloat16"))
    result = next(r for r in report.results if r.check == "attention/normal_wide")
    assert "beyond the bound" in result.message and result.figures["bound"] > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        *("scale is 0.1 % too large", "scale is 5 % too large", "one is added to the sum", "lse is in base 2"),
        *("window reaches one key too far to the left", "rows that see nothing divide by zero", "mask is ignored"),
    ],
)
def test_a_mistake_is_never_taken_for_a_precision(name, dtype):
    report = judged(mutant(name), dtype)
    assert report.count(FAIL) + report.count(SUSPECT) > 0 and report.count(UNDECLARED) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_mistake_is_taken_for_a_precision(dtype):
    caches, taken = {}, []
    for m in MUTANTS:
        if m.diagnosis is None or not m.op.startswith("attention"):
            continue
        contract = Contract(op=m.op, dtype=dtype)
        report = check(m.kernel(), contract, "quick", only=lambda id: "normal" in id, cache=caches.setdefault(m.op, {}))
        taken += [m.name] if report.count(UNDECLARED) else []
    assert taken == []


@pytest.mark.parametrize(
    "name", ["the sum is inverted in float16", "the exponential is a quadratic between powers of two"]
)
def test_what_no_declaration_describes_fails(name):
    report = judged(mutant(name))
    assert report.count(FAIL) > 0 and report.count(UNDECLARED) == 0


def test_the_backward_pass_is_judged_again_too():
    report = judged(mutant("weights are rounded to float16 in the backward pass"), op="attention_vjp")
    bad = [r for r in report.results if r.bad]
    assert bad and {r.verdict for r in bad} == {UNDECLARED}
    assert bad[0].message.startswith("consistent with P rounded to float16;")


def test_a_large_error_is_not_judged_again(monkeypatch):
    def never(*_):
        raise AssertionError("judged again")

    monkeypatch.setattr(undeclared, "analyse", never)
    monkeypatch.setattr(undeclared, "declarations", never)
    report = judged(mutant("scale is forgotten"))
    assert report.count(FAIL) > 0


def test_a_right_kernel_passes():
    report = judged(correct(), "float16")
    assert report.ok and report.count(PASS) == len(SOME)


def test_no_declaration_is_the_contract_itself():
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        contract = Contract(dtype=dtype)
        others = [other.numerics for _, other in undeclared.declarations(contract)]
        assert others and contract.numerics not in others
