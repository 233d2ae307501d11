"""Advice: the verdict by Amdahl's rule, what is ranked how, where it flips, and when it refuses to choose."""

import math

import pytest

from refattn import costs
from refattn.costs import options
from refattn.costs.advice import WORTH, noise
from refattn.costs.hardware import Hardware
from refattn.costs.options import with_window
from refattn.costs.prediction import predict
from tests.costs.ideal import ideal

M = costs.Transformer(layers=2, d_model=256, heads=4, ffn=512, gated=True, name="small")
WIDE = costs.Transformer(layers=2, d_model=1024, heads=4, ffn=8192, gated=True)
CHIP = Hardware("chip", {"bfloat16": 1e12}, 1e11, 1 << 34, 1e12, "a test", "2026")


def test_the_verdict_is_amdahls():
    found = costs.advise(M, lengths=[256] * 19 + [2048], on=ideal())
    now = predict(M, on=ideal(), seq=256)
    assert found.share_p50 == pytest.approx(now.parts["attention"] / now.seconds)
    assert found.limit == pytest.approx(1 / (1 - found.share_p95))
    assert f"{found.share_p95:.0%}" in found.verdict and f"{found.limit:.2f} times" in found.verdict


def test_attention_that_is_not_the_bottleneck():
    found = costs.advise(WIDE, lengths="64", on=ideal())
    assert found.limit < WORTH and found.bottleneck == "ffn"
    assert found.verdict.startswith("Attention is not the bottleneck") and "ffn is" in found.verdict
    assert found.choice is None


def test_the_quicker_backend_is_taken_and_checked_here():
    found = costs.advise(M, lengths="2048", on=ideal())
    assert found.choice.name == "attention on numba" and found.choice.exactness == "exact"
    want = predict(M, on=ideal(), seq=2048).seconds / predict(M, on=ideal(), seq=2048, backend="numba").seconds
    assert found.choice.faster == pytest.approx(want)
    assert found.choice.check == "refattn profile small --seq 2048 --phase prefill --backend numba"


def test_classes_open_one_by_one():
    names = {}
    for exactness in ("exact", "approximate", "retrain"):
        found = costs.advise(M, lengths="8192", on=ideal(), exactness=exactness)
        names[exactness] = {way.name for way in found.options}
        assert {way.exactness for way in found.options} <= {"exact", "approximate", "retrain"}
    assert names["exact"] < names["approximate"] < names["retrain"]
    assert "window of 256 on numba" in names["approximate"] and "retention on numba" in names["retrain"]


def test_within_the_noise_it_does_not_choose():
    sure = ideal(ratios=[0.99, 1.0, 1.01] * 3)
    unsure = ideal(ratios=[0.2, 1.0, 5.0] * 3)
    assert costs.advise(M, lengths="1024", on=sure).choice is not None
    found = costs.advise(M, lengths="1024", on=unsure)
    assert found.choice is None and "within the noise" in found.reason


def test_of_what_is_not_told_apart_the_least_change_is_taken():
    on = ideal(ratios=[0.6, 1.0, 1.7] * 3)
    found = costs.advise(M, lengths="4096", on=on, exactness="retrain")
    quickest = min(found.options, key=lambda option: option.p95.seconds)
    assert found.choice.p95.seconds / quickest.p95.seconds < noise(quickest.p95)
    order = ["exact", "approximate", "retrain"]
    level = [o for o in found.options if o.p95.seconds / quickest.p95.seconds < noise(quickest.p95)]
    assert order.index(found.choice.exactness) == min(order.index(o.exactness) for o in level)


def test_it_flips_where_the_times_cross(monkeypatch):
    monkeypatch.setattr(options, "WINDOWS", ())
    on = ideal(mechanisms=("retention",))
    found = costs.advise(M, lengths="4096", on=on, exactness="retrain")
    ((tokens, old, new),) = found.flips
    assert old == "attention on numba" and new.startswith("retention")
    other = costs.Transformer(layers=2, d_model=256, heads=4, ffn=512, gated=True, mechanism="retention")

    def ahead(seq):
        mine, others = (predict(m, on=on, seq=seq, backend="numba").seconds for m in (M, other))
        return mine - others

    assert ahead(tokens) >= 0 > ahead(tokens * 15 // 16)


def test_demands_come_first():
    found = costs.advise(M, lengths="2048", on=ideal(), exactness="retrain", latency_p95=0.05)
    assert [bool(option.misses) for option in found.options] == sorted(bool(option.misses) for option in found.options)
    slow = next(option for option in found.options if option.name == "attention on numpy")
    assert slow.misses == ["p95 of 50.0 ms"]
    tight = costs.advise(M, lengths="2048", on=ideal(), memory=1000, throughput=1e9)
    assert all(len(option.misses) == 2 for option in tight.options)


def test_what_meets_the_demand_with_the_least_change_is_taken():
    on = ideal(ratios=[0.99, 1.0, 1.01] * 3)
    free = costs.advise(M, lengths="8192", on=on, exactness="retrain")
    assert free.choice.exactness != "exact"
    exact = next(o for o in free.options if o.name == "attention on numba")
    held = costs.advise(M, lengths="8192", on=on, exactness="retrain", latency_p95=1.01 * exact.p95.seconds)
    assert held.choice.name == "attention on numba" and f"{free.choice.name} (" in held.reason
    assert "times as fast again" in held.reason
    easy = costs.advise(M, lengths="64", on=ideal(), latency_p95=1e3)
    assert easy.choice is None or easy.choice.faster >= noise(easy.choice.p95)


def test_memory_and_concurrency():
    found = costs.advise(M, lengths="1000", on=CHIP, exactness="approximate")
    plain, small = (
        next(o for o in found.options if o.name == name) for name in ("flash attention", "keys and values in 8 bits")
    )
    weights, kept = 2 * M.params(), M.kv_cache_bytes(1, 1000)
    assert plain.peak_bytes == weights + kept
    assert plain.concurrency == math.floor((0.9 * CHIP.memory - weights) / kept)
    assert small.concurrency == math.floor((0.9 * CHIP.memory - weights) / (kept / 2))


def test_a_window_reads_less_in_decoding():
    narrow = with_window(M, 256)
    long, short = (predict(m, on=CHIP, seq=100_000, phase="decode").parts["attention"] for m in (M, narrow))
    assert short < long / 100
    mla = costs.Transformer(layers=2, d_model=256, heads=4, mechanism=costs.Latent(kv_rank=64, rope_dim=16))
    assert predict(mla, on=CHIP, seq=100_000, phase="decode").parts["attention"] < long


def test_a_model_without_scores_is_called_by_its_mechanism():
    m = costs.Transformer(layers=2, d_model=256, heads=4, mechanism="mamba2", ffn=0)
    for on in (CHIP, ideal()):
        found = costs.advise(m, lengths="512", on=on, exactness="retrain")
        assert "amba2 is" in found.verdict and all(option.name.startswith("mamba2") for option in found.options)


def test_it_prints_the_verdict_first():
    text = str(costs.advise(M, lengths="512", on=CHIP, exactness="retrain"))
    assert text.startswith("Attention is") and "times as fast" in text and "bound" in text


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"lengths": "0"}, ValueError, "lengths"), ({"lengths": []}, ValueError, "there are none"),
    ({"latency_p95": 0}, ValueError, "latency_p95 is 0"), ({"throughput": -1.0}, ValueError, "throughput"),
    ({"memory": "much"}, TypeError, "memory"), ({"phase": "fill"}, ValueError, "phase is 'fill'"),
    ({"exactness": "roughly"}, ValueError, "exactness is 'roughly'"), ({"batch": 0}, ValueError, "batch is 0"),
    ({"backend": "nunba"}, LookupError, "did you mean numba"), ({"on": 3}, TypeError, "wanted a Hardware"),
])  # fmt: skip
def test_refused(change, error, words):
    with pytest.raises(error, match=words):
        costs.advise(M, **({"lengths": "64", "on": ideal()} | change))
