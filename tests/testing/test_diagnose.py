"""The diagnosis names the mistake: of the mutants whose meaning is wrong, nearly all uniquely."""

import importlib

import numpy as np
import pytest

from refattn.testing.attention.cases import CASES
from refattn.testing.attention.evidence import Evidence
from refattn.testing.attention.hypotheses import HYPOTHESES, Given
from refattn.testing.attention.hypotheses_factors import FACTORS, SHIFTS
from refattn.testing.contract import Contract
from refattn.testing.diagnose import diagnose
from refattn.testing.kit import check
from refattn.testing.mutants import MUTANTS, correct
from refattn.testing.session import Output, Session
from refattn.testing.verdicts import Report

KNOWN = [mutant for mutant in MUTANTS if mutant.diagnosis is not None and mutant.op.startswith("attention")]
ENOUGH = 0.95
tiled = correct()


def cases_only(id):
    """Leave out the relations, which are no evidence."""
    return id.split("/")[-1] in CASES


def named(mutants, dtype="float32"):
    """Return which mutants are diagnosed rightly, with nothing else as likely, and what is said of the others."""
    caches, right, wrong = {}, [], {}
    for mutant in mutants:
        contract = Contract(op=mutant.op, dtype=dtype)
        report = check(mutant.kernel(), contract, "quick", only=cases_only, cache=caches.setdefault(mutant.op, {}))
        found = diagnose(report)
        first = [d.name for d in found if d.explained >= found[0].explained - 1e-9]
        if first == [mutant.diagnosis]:
            right.append(mutant.name)
        else:
            wrong[mutant.name] = [(d.name, d.explained) for d in found]
    return right, wrong


def first_of(kernel, contract=None, only=cases_only):
    """Return the likeliest diagnosis of a kernel."""
    return diagnose(check(kernel, contract, "quick", only=only))[0]


def test_every_diagnosis_of_a_mutant_is_a_hypothesis():
    names = {*HYPOTHESES, *(factor.name for factor in FACTORS), *(shift.name for shift in SHIFTS)}
    assert {mutant.diagnosis for mutant in KNOWN} - names == set()


def test_hypotheses_say_what_is_wrong_in_words():
    assert all(h.sentence and not h.sentence.endswith(".") and h.ways for h in HYPOTHESES.values())
    sentences = [h.sentence for h in HYPOTHESES.values()]
    assert len(sentences) == len(set(sentences))


def test_a_sample_of_the_mutants_is_named():
    right, wrong = named(KNOWN[::8])
    assert len(right) >= ENOUGH * (len(right) + len(wrong)), wrong


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mutants_are_named(dtype):
    right, wrong = named(KNOWN, dtype)
    assert len(right) >= ENOUGH * (len(right) + len(wrong)), wrong


def test_a_window_that_counts_the_key_itself():
    def kernel(q, k, v, *, causal=False, window=None):
        left, right = (None, None) if window is None else window
        return tiled(q, k, v, causal=causal, window=(None if left is None else max(left - 1, 0), right))

    found = first_of(kernel)
    assert found.name == "window left one too narrow" and found.explained == 1
    assert found.sentence.startswith("the window is one key too narrow on the left")


def test_a_number_of_keys_is_found():
    def kernel(q, k, v, *, causal=False, window=None):
        left, right = (None, None) if window is None else window
        return tiled(q, k, v, causal=causal, window=(None if left is None else left + 3, right))

    assert first_of(kernel).sentence == "the window reaches 3 keys too far to the left"


@pytest.mark.parametrize(
    ("dtype", "by", "sentence"), [("float32", 1.5, "50"), ("float16", 0.98, "2"), ("bfloat16", 1.001, "0.1")]
)
def test_a_factor_is_estimated(dtype, by, sentence):
    def kernel(q, k, v, *, scale=None):
        return tiled(q, k, v, scale=by * (q.shape[-1] ** -0.5 if scale is None else scale))

    found = first_of(kernel, Contract(dtype=dtype))
    assert found.name == "scale off by a factor"
    assert found.sentence == f"the scale is {sentence} % too {'large' if by > 1 else 'small'}"


def test_without_lse_the_output_alone_tells():
    def kernel(q, k, v, *, causal=False):
        return tiled(q, k, v, causal=causal, scale=1.0)[0]

    assert first_of(kernel).name == "scale missing"


def test_two_mistakes_are_both_named():
    def kernel(q, k, v, *, causal=False, window=None, softcap=None):
        left, right = (None, None) if window is None else window
        return tiled(q, k, v, causal=causal, window=(None if left is None else left + 1, right))

    report = check(kernel, level="quick", only=cases_only)
    assert {d.name for d in diagnose(report)} == {"window left one too wide", "softcap ignored"}
    assert {d.name for d in report.diagnoses} == {"window left one too wide", "softcap ignored"}


def test_a_convention_that_is_declared_is_no_mistake():
    def kernel(q, k, v, *, causal=False):
        return tiled(q, k, v, causal=causal, q_offset=0)

    assert check(kernel, Contract(causal="top_left"), "quick", only=cases_only).ok
    assert first_of(kernel).name == "causal top left"
    assert first_of(tiled, Contract(causal="top_left", options=("causal",))).name == "causal bottom right"


def test_an_undeclared_precision_is_named():
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "weights are rounded to bfloat16")
    found = first_of(mutant.kernel(), only=lambda id: "normal" in id)
    assert found.name == "undeclared precision" and found.explained == 1
    assert found.sentence == "consistent with P rounded to bfloat16; the contract declares P in float32"


def test_what_nothing_explains_is_left_open():
    def noise(q, k, v, *, causal=False):
        o, lse = tiled(q, k, v, causal=causal)
        return np.random.default_rng(o.size).standard_normal(o.shape).astype(o.dtype), lse

    def broken(q, k, v, *, causal=False):
        raise ValueError("not today")

    for kernel in (noise, broken):
        report = check(kernel, level="quick", only=cases_only)
        assert not report.ok and diagnose(report) == []


def test_nothing_is_wrong_with_a_right_kernel():
    report = check(tiled, level="quick", only=lambda id: "normal" in id)
    assert report.ok and diagnose(report) == []


def test_a_report_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match="holds no outputs"):
        diagnose(Report("kernel", Contract(), "quick", 0))


def evidence(name, kernel, contract):
    p = CASES[name].problem(contract, 0)
    return Evidence(name, lambda: Given(p, contract), Session(kernel, contract).call(p))


@pytest.mark.parametrize(
    ("op", "name"),
    [("attention", name) for name in ("keys_16", "mixture_4", "offset_window", "lengths_alibi", "dropout_shared")]
    + [("attention", "splits_beyond_keys"), ("attention_vjp", "mixture_4"), ("attention_vjp", "shape_3x2x72x40")],
)
def test_right_results_support_no_hypothesis(op, name):
    kernel = correct(op)
    contract = Contract(op=op).with_options_of(kernel)
    here = evidence(name, kernel, contract)
    predicted = [(h.name, here.predicted(way)) for h in HYPOTHESES.values() for way in h.ways]
    assert any(results is not None for _, results in predicted)
    assert [
        h for h, results in predicted if results is not None and here.differs(results) and here.explained(results)
    ] == []


def test_results_of_a_hypothesis_have_the_shapes_of_the_right_ones():
    contract = Contract(op="attention_vjp").with_options_of(correct("attention_vjp"))
    for name in ("mixture_4", "normal_softcap", "blind_rows_sink", "offset", "window_0"):
        here = evidence(name, correct("attention_vjp"), contract)
        for h in HYPOTHESES.values():
            for results in (here.predicted(way) for way in h.ways):
                assert results is None or {n: x.shape for n, x in results.items()} == {
                    n: x.shape for n, x in here.given.right.items()
                }, h.name


def test_what_the_contract_leaves_open_is_no_evidence():
    contract = Contract(blind_rows="any", lse_blind="any", options=("causal",))
    p = CASES["more_queries_causal"].problem(contract, 0)
    given = Given(p, contract)
    o, lse = given.right["o"].copy(), given.right["lse"].copy()
    o[given.t.blind], lse[given.t.blind] = 7, 7
    here = Evidence("case", lambda: given, Output({"o": o, "lse": lse}, Contract(dtype="float64")))
    assert given.t.blind.any() and here.misfit == 0
    assert not here.differs({"o": o, "lse": lse})


def test_a_nan_may_spread_or_not():
    contract = Contract(options=("causal",))
    p = CASES["more_queries_causal"].problem(contract, 0)
    given = Given(p, contract)
    here = Evidence(
        "case", lambda: given, Output({"o": np.where(given.t.blind[..., None], np.nan, given.right["o"])}, contract)
    )
    assert here.explained({"o": np.full_like(given.right["o"], np.nan)})
    assert not here.explained(given.right)


def test_the_base_of_lse_is_the_contracts():
    def natural(q, k, v, *, causal=False):
        return tiled(q, k, v, causal=causal)

    found = first_of(natural, Contract(lse="base2"), only=lambda id: "normal" in id)
    assert found.sentence == "lse is the natural logarithm"


def test_a_hypothesis_is_entered_once():
    enter = importlib.import_module("refattn.testing.attention.hypotheses").enter
    with pytest.raises(ValueError, match="already"):
        enter("causal ignored", "again")
