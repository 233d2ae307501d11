"""The comparator alone: verdicts, figures and places for results that somebody else computed."""

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing import Contract, compare
from refattn.testing.formats import decode, encode
from refattn.testing.verdicts import FAIL, PASS, SUSPECT


def drawn(dtype="float32", sizes=(2, 4, 2, 40, 70, 32), **options):
    rng = np.random.default_rng(0)
    B, H, Hk, Tq, Tk, D = sizes
    shapes = {"q": (B, H, Tq, D), "k": (B, Hk, Tk, D), "v": (B, Hk, Tk, D)}
    return {name: encode(rng.standard_normal(shape), dtype) for name, shape in shapes.items()} | options


def attended(x, dtype="float32", **options):
    """Return o and lse as a kernel in this dtype would."""
    wide = (decode(x[name], dtype, np.float64) for name in "qkv")
    o, lse = refattn.attention(*wide, **options, return_lse=True)
    return encode(o, dtype), lse.astype(np.float64 if dtype == "float64" else np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_the_right_result_passes(dtype):
    x = drawn(dtype)
    result = compare(attended(x, dtype), x, Contract(dtype=dtype), statistics=True)
    assert (result.verdict, result.message, result.check) == (PASS, "", "attention/compared")
    assert 0 < result.figures["bound"] < 1 and 0 < result.figures["lse_bound"] < 1
    assert compare(attended(x, dtype)[0], x, Contract(dtype=dtype)).verdict == PASS


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"causal": True}, {"mask": masks.causal()}),
        ({"window": (5, 2)}, {"mask": masks.window(5, 2)}),
        ({"scale": 0.3}, {"scale": 0.3}),
        ({"softcap": 2.0, "sinks": [1.0, 2.0, 0.0, -1.0]}, {"softcap": 2.0, "sinks": np.array([1.0, 2.0, 0.0, -1.0])}),
        ({"seqlens_k": [30, 70]}, {"mask": masks.padding([30, 70])}),
        ({"mask": np.tri(40, 70, dtype=bool)}, {"mask": masks.causal(0)}),
        ({"causal": True, "q_offset": 3}, {"mask": masks.causal(3)}),
        ({"bias": np.ones((1, 4, 1, 70)) * np.arange(70)}, {"bias": np.ones((1, 4, 1, 70)) * np.arange(70)}),
    ],
    ids=lambda options: "_".join(options),
)
def test_options_are_those_of_the_call(options, given):
    x = drawn()
    got = attended(x, **given)
    assert compare(got, x | options).verdict == PASS
    assert compare(got, x).verdict == FAIL


def test_the_place_of_a_mistake_is_named():
    x = drawn()
    o, lse = attended(x)
    o[1, 2, 39, 5] += 1e-3
    result = compare((o, lse), x)
    assert result.verdict == FAIL
    assert result.message.startswith("o[1, 2, 39, 5] is ")
    assert "all in sequence 1, head 2, token 39, channel 5" in result.message
    assert result.figures["bound"] > 1
    assert [picture.title for picture in result.pictures] == ["log10(error / bound) of o"]


def test_lse_is_judged_too():
    x = drawn()
    o, lse = attended(x)
    result = compare((o, lse + np.float32(1e-3)), x)
    assert result.verdict == FAIL and result.message.startswith("lse[")
    assert compare((o, lse / np.float32(np.log(2))), x, Contract(lse="base2")).verdict == PASS
    assert compare((o, lse * 7), x, Contract(lse=None)).verdict == PASS


def test_statistics_speak_when_asked():
    """A scale that is a thousandth too large hides below the bound in bfloat16."""
    x = drawn("bfloat16", (2, 4, 2, 70, 150, 64))
    o, _ = attended(x, "bfloat16", scale=1.001 / 8)
    contract = Contract(dtype="bfloat16")
    assert compare(o, x, contract).verdict == PASS
    result = compare(o, x, contract, statistics=True)
    assert result.verdict == SUSPECT
    assert "log scale of o is off by +" in result.message
    assert {"z_rms", "z_max", "log_scale"} <= set(result.figures)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (lambda o, lse: o[:1], "o has shape (1, 4, 40, 32); wanted (2, 4, 40, 32)"),
        (lambda o, lse: o.astype(np.float64), "o has dtype float64; wanted float32"),
        (lambda o, lse: (o, lse, o), "returned 3 results; wanted o or (o, lse)"),
        (lambda o, lse: None, "o is NoneType; wanted an array"),
        (lambda o, lse: {"o": o}, "o is dict; wanted an array"),
        (lambda o, lse: (o, lse[:, :, None]), "lse has shape (2, 4, 1, 40); wanted (2, 4, 40)"),
    ],
)
def test_what_is_no_result_fails(got, message):
    x = drawn()
    result = compare(got(*attended(x)), x)
    assert (result.verdict, result.message) == (FAIL, message)


def test_nan_and_blind_rows():
    x = drawn(causal=True, q_offset=-3)
    o, lse = attended(x, mask=masks.causal(-3))
    assert (o[:, :, :3] == 0).all()
    assert compare((o, lse), x).verdict == PASS
    spoiled = o.copy()
    spoiled[0, 1, 2, 3] = np.nan
    assert compare((spoiled, lse), x).message.startswith("o[0, 1, 2, 3] is nan; wanted 0")
    spoiled[:, :, :3] = np.nan
    assert compare((spoiled, lse), x, Contract(blind_rows="nan")).verdict == PASS
    assert compare((spoiled, lse), x, Contract(blind_rows="any")).verdict == PASS
    spoiled[:, :, :3] = 1e-9
    assert "sees nothing, and is not 0" in compare((spoiled, lse), x).message
    spoiled[:, :, :3] = np.repeat(x["v"], 2, axis=1).mean(axis=2, keepdims=True)
    assert compare((spoiled, lse), x, Contract(blind_rows="mean")).verdict == PASS
    spoiled[:, :, 1] += 1e-3
    assert compare((spoiled, lse), x, Contract(blind_rows="mean")).verdict == FAIL


def test_inputs_in_another_precision_are_rounded_first():
    """Arrays of float64 stand for what the kernel got: the nearest numbers of its dtype."""
    rng = np.random.default_rng(4)
    x = {name: rng.standard_normal((1, 1, 9, 8)) for name in "qkv"}
    rounded = {name: encode(array, "float16") for name, array in x.items()}
    assert compare(attended(rounded, "float16"), x, Contract(dtype="float16")).verdict == PASS


def gradients_of(x, **options):
    wide = {name: np.float64(array) for name, array in x.items() if name in ("do", "q", "k", "v")}
    return refattn.attention_vjp(**wide, **options)


def test_gradients():
    x = drawn(do=np.random.default_rng(1).standard_normal((2, 4, 40, 32)).astype(np.float32))
    contract = Contract(op="attention_vjp")
    got = [g.astype(np.float32) for g in gradients_of(x)[:3]]
    result = compare(got, x, contract, statistics=True)
    assert (result.verdict, result.check) == (PASS, "attention_vjp/compared")
    assert {"dq_bound", "dk_bound", "dv_bound"} <= set(result.figures)
    got[1] = got[1] * np.float32(1.001)
    assert compare(got, x, contract).message.startswith("dk[")
    bias, sinks, dlse = np.ones((1, 4, 1, 70), np.float32), np.ones(4, np.float32), np.ones((2, 4, 40), np.float32)
    given = {"bias": bias, "sinks": sinks, "dlse": dlse}
    full = gradients_of(x, **{name: np.float64(array) for name, array in given.items()})
    assert compare([g.astype(np.float32) for g in full], x | given, contract).verdict == PASS
    short = compare([g.astype(np.float32) for g in full[:3]], x | given, contract)
    assert short.message == "returned 3 results; wanted 5: dq, dk, dv, dbias, dsinks"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.pop("k"), ValueError, "compare: inputs lack k; wanted q, k, v and options"),
        (lambda x: x.update(casual=True), TypeError, "compare: inputs name casual; wanted some of q, k, v, do, causal"),
        (lambda x: x.update(q=x["q"][0]), ValueError, r"compare: q is \(4, 40, 32\); wanted an array of 4 axes"),
        (lambda x: x.update(q=[1.0]), ValueError, "compare: q is list; wanted an array of 4 axes"),
        (lambda x: x.update(k=x["k"][..., :5]), ValueError, "do not fit; wanted"),
        (lambda x: x.update(v=x["v"][:, :, :5]), ValueError, "do not fit; wanted"),
        (lambda x: x.update(q=x["q"][:, :3]), ValueError, "do not fit; wanted"),
        (lambda x: x.update(do=x["q"][..., :5]), ValueError, r"compare: do \(2, 4, 40, 5\) does not fit"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, message):
    x = drawn()
    got = attended(x)
    change(x)
    with pytest.raises(error, match=message):
        compare(got, x)


def test_other_operations_are_refused():
    x = drawn()
    with pytest.raises(ValueError, match="compare: inputs lack do; wanted q, k, v, do and options"):
        compare(attended(x), x, Contract(op="attention_vjp"))
    with pytest.raises(ValueError, match=r"compare: contract\.op is 'retention'; wanted attention or attention_vjp"):
        compare(attended(x), x, Contract(op="retention"))


def test_inputs_are_left_alone():
    x = drawn(causal=True)
    before = {name: array.tobytes() for name, array in x.items() if name != "causal"}
    compare(attended(x, mask=masks.causal()), x)
    assert before == {name: array.tobytes() for name, array in x.items() if name != "causal"}
