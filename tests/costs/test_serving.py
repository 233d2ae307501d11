"""Plans of a service: sums by hand, closed forms where they apply, properties, and refusals with numbers."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn.costs.engine import Serving
from refattn.costs.hardware import hardware
from refattn.costs.lengths import Lengths
from refattn.costs.mechanisms import Softmax
from refattn.costs.presets import PRESETS, preset
from refattn.costs.queueing import md1_wait
from refattn.costs.rehearsal import Rehearsal
from refattn.costs.serving import Slo, serve_plan
from refattn.costs.steady import Forms
from refattn.costs.transformer import Transformer

LLAMA = preset("llama-3-8b")
H100 = hardware("h100-sxm")
QUICK = {"requests": 300, "seeds": 3}
LEAST = {"requests": 100, "seeds": 2}


@dataclass(frozen=True)
class Chip:
    """A device whose numbers are round."""

    memory: int = 80 * 10**9
    bandwidth: float = 2e12
    flops: float = 4e14
    name: str = "chip"

    def rate(self, dtype):
        if dtype != "bfloat16":
            raise LookupError(f"chip has no rate for {dtype!r}; there are: bfloat16")
        return self.flops


def forms(m, on, prompt, output, **more):
    prompts, outputs = Lengths.of(prompt), Lengths.of(output)
    return Forms(Serving(m, on, prompts.largest + outputs.largest, **more), prompts, outputs)


class TestMemory:
    def test_llama_3_8b_keeps_128_kib_a_token(self):
        serving = Serving(LLAMA, H100, longest=4096)
        assert (np.diff(serving.kept) == 128 * 1024).all()
        assert serving.weights == 2 * 8_030_261_248

    def test_concurrency_on_80_gb_by_hand(self):
        """72e9 B may be used; 16,060,522,496 are weights; a sequence of 8,192 tokens keeps 2**30."""
        serving = Serving(LLAMA, Chip(), longest=8192, given_activations=0)
        assert serving.concurrency(8192) == (72_000_000_000 - 16_060_522_496) // 2**30 == 52
        plan = serve_plan(LLAMA, on=Chip(), lengths=8000, output=192, requests_per_second=0.1, activations=0, **LEAST)
        assert plan.concurrency == plan.concurrency_p95 == 52 and plan.rows[-1].batch == 52

    def test_8_bit_caches_and_weights(self):
        serving = Serving(LLAMA, Chip(), 8192, given_activations=0, weight_dtype="int8", kv_dtype="float8")
        assert serving.concurrency(8192) == (72_000_000_000 - 8_030_261_248) // 2**29

    def test_activations_of_a_pass(self):
        """8,192 tokens of 2 bytes: the stream, its norm, gate, up and down; logits of 256 requests in 4 bytes."""
        serving = Serving(LLAMA, Chip(), 8192)
        wanted = 8192 * 2 * (2 * 4096 + 14336 + 14336 + 4096) + 256 * 128256 * 4
        assert serving.activations == wanted

    @pytest.mark.parametrize("name", PRESETS)
    def test_caches_are_those_of_the_model_at_every_length(self, name):
        m = preset(name)
        serving = Serving(m, H100, longest=40_000)
        for n in [1, 2, 3, 4095, 4096, 4097, 40_000, *np.random.default_rng(0).integers(5, 40_000, 20).tolist()]:
            assert serving.kept[n] == m.kv_cache_bytes(1, n, "bfloat16")

    @pytest.mark.parametrize("name", ["llama-3-8b", "gemma-2-9b", "deepseek-v3", "mamba-2.8b", "jamba-v0.1"])
    def test_prefill_is_the_models_flops_with_one_token_in_the_head(self, name):
        m = preset(name)
        serving = Serving(m, Chip(bandwidth=1e30), longest=20_000)
        for n in (1, 700, 5000, 13_333, 20_000):
            found = m.forward_flops(1, n)
            wanted = (found["total"] - found["head"] + found["head"] // n) / 4e14
            assert serving.prefill(np.array([n])) == pytest.approx(wanted, rel=1e-4)
            assert serving.prefill_each(np.array([float(n)]))[0] == pytest.approx(wanted, rel=1e-4)
        assert serving.prefill(np.array([700, 5000])) == pytest.approx(serving.prefill_each(np.array([7e2, 5e3])).sum())


class TestSteps:
    def test_the_formula_by_hand(self):
        """KV bytes / BW + max(2·B·P / C, W / BW)."""
        f = forms(LLAMA, Chip(), 1000, 201)
        P, W, kv = 8_030_261_248, 16_060_522_496, 131_072 * (1000 + round(201 / 2))
        assert f.step(1) == pytest.approx(kv / 2e12 + W / 2e12)
        assert f.step(300) == pytest.approx(300 * kv / 2e12 + 2 * 300 * P / 4e14)
        assert W / 2e12 < 2 * 300 * P / 4e14

    def test_what_bounds_a_step(self):
        assert forms(LLAMA, Chip(), 100, 10).row(1).bound_by == "weights"
        assert forms(LLAMA, Chip(bandwidth=1e14), 100, 10).row(64).bound_by == "compute"
        assert forms(LLAMA, Chip(), 8000, 10).row(40).bound_by == "KV cache"

    def test_rows(self):
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, output=100, requests_per_second=1, **LEAST)
        assert [row.batch for row in plan.rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
        for row in plan.rows:
            assert row.tokens_per_second == pytest.approx(row.batch / row.tpot)
            prefill = 1 / row.requests_per_second - 99 * row.tpot / row.batch
            assert prefill == pytest.approx(forms(LLAMA, Chip(), 1000, 100).prefill)
        for fewer, more in itertools.pairwise(plan.rows):
            assert fewer.tpot <= more.tpot and fewer.tokens_per_second < more.tokens_per_second
        assert plan.rows[-1].ttft is None and all(row.ttft > 0 for row in plan.rows[:-1])

    def test_two_devices_are_twice_as_fast_and_hold_twice_as_much(self):
        one = forms(LLAMA, Chip(), 1000, 200)
        two = forms(LLAMA, Chip(), 1000, 200, devices=2)
        assert two.step(8) == pytest.approx(one.step(8) / 2) and two.prefill == pytest.approx(one.prefill / 2)
        assert two.serving.room - one.serving.room == pytest.approx(72e9)
        plan = serve_plan(LLAMA, on=Chip(), lengths=10, devices=16, requests_per_second=1, **LEAST)
        assert any("communication is not modelled" in text for text in plan.assumptions)
        assert any("8 key heads are split over 16 devices" in text for text in plan.assumptions)

    def test_efficiency_divides_times(self):
        one, half = (
            serve_plan(LLAMA, on=Chip(), lengths=500, requests_per_second=1, efficiency=e, **LEAST) for e in (1, 0.5)
        )
        assert half.rows[2].tpot == pytest.approx(2 * one.rows[2].tpot)
        assert (one.kind, half.kind) == ("bound", "predicted")
        assert half.span == (0.5, pytest.approx(0.5 / 0.35))

    def test_experts_that_a_batch_visits(self):
        m = preset("mixtral-8x7b")
        serving = Serving(m, H100, 1000, devices=2)
        assert float(serving.read(1)) == pytest.approx(2 * m.active_params())
        assert float(serving.read(10_000)) == pytest.approx(2 * m.params())
        idle = m.params() - m.active_params()  # of 8 experts 2 are visited; two tokens visit 8(1 - (3/4)²) = 3.5
        assert float(serving.read(2)) == pytest.approx(2 * (m.active_params() + idle * 1.5 / 6))


class TestClosedFormsWhereTheyApply:
    @pytest.mark.parametrize("rho", [0.3, 0.7, 0.9])
    def test_md1_where_answers_are_one_token_and_passes_one_prompt(self, rho):
        prefill = forms(LLAMA, Chip(), 2000, 1).prefill
        serving = Serving(LLAMA, Chip(), 2001, pass_tokens=1)
        rehearsal = Rehearsal(serving, Lengths.of(2000), Lengths.of(1), requests=8000, seeds=8)
        found = rehearsal.at(rho / prefill, 1)
        wanted = md1_wait(rho / prefill, prefill)
        error = (found.wait_mean.high - found.wait_mean.value) / 2.365  # Student's, 7 degrees
        assert error < 0.12 * wanted
        assert abs(found.wait_mean.value - wanted) < 5 * error
        assert found.busy.value == pytest.approx(rho, abs=0.05)
        assert found.ttft_mean.value == pytest.approx(found.wait_mean.value + prefill, rel=1e-9)

    @pytest.mark.parametrize(
        ("prompt", "output", "rate"),
        [(1000, 200, 2.0), ("uniform:100..1500", "uniform:50..350", 6.0), ("lognormal:median=300,p95=2000", 100, 4.0)],
    )
    def test_the_state_at_a_rate(self, prompt, output, rate):
        plan = serve_plan(LLAMA, on=Chip(), lengths=prompt, output=output, requests_per_second=rate, seeds=6)
        steady, found = plan.steady, plan.simulated
        assert steady.running == pytest.approx(found.running.value, rel=0.12)
        assert steady.ttft == pytest.approx(found.ttft_mean.value, rel=0.12)
        assert steady.tpot == pytest.approx(found.tpot_p50.value, rel=0.1)

    @pytest.mark.parametrize("output", [200, "uniform:50..350"])
    def test_capacity(self, output):
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, output=output, requests_per_second=1, seeds=4)
        assert plan.capacity.value == pytest.approx(plan.capacity_formula, rel=0.06)

    def test_capacity_is_between_a_rate_that_settles_and_one_that_does_not(self):
        serving = Serving(LLAMA, Chip(), 1200)
        rehearsal = Rehearsal(serving, Lengths.of(1000), Lengths.of("uniform:1..200"), requests=3000, seeds=2)
        capacity = rehearsal.capacity(256).value
        for factor, grows in ((0.85, False), (1.25, True)):
            run = rehearsal.run(factor * capacity, 0, 256)
            early, late = run.wait[600:900].mean(), run.wait[-300:].mean()
            assert (late > 3 * early) == grows


class TestPromises:
    def test_kept_and_missed(self):
        kept = serve_plan(
            LLAMA, on=Chip(), lengths=1000, requests_per_second=2, slo={"ttft_p95": 1, "tpot_p95": 0.05}, **QUICK
        )
        assert kept.meets is True and kept.verdict.startswith("Kept at 2 requests/s: TTFT p95 ")
        assert kept.highest.value > 2
        missed = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=2, slo=Slo(tpot_p95=0.0085), **QUICK)
        assert missed.meets is False and missed.verdict.startswith("Missed at 2 requests/s: TPOT p95 ")
        assert 0 < missed.highest.value < 2

    def test_the_highest_rate_is_where_the_promise_breaks(self):
        slo = {"tpot_p95": 0.012}
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=1, slo=slo, seeds=4)
        for factor, meets in ((0.85, True), (1.15, False)):
            rate = factor * plan.highest.value
            assert serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=rate, slo=slo, seeds=4).meets is meets

    def test_a_promise_that_not_even_one_request_alone_keeps(self):
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=1, slo=Slo(tpot_p50=0.008), **LEAST)
        assert plan.rows[0].tpot > 0.008
        assert plan.highest.value == 0 and plan.meets is False and "No rate keeps all" in plan.verdict

    def test_too_close_to_tell(self):
        first = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=4, **QUICK)
        slo = Slo(ttft_p95=first.simulated.ttft_p95.value)
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=4, slo=slo, **QUICK)
        assert plan.meets is None and plan.verdict.startswith("Too close to tell at 4 requests/s")

    def test_answers_of_one_token_have_no_time_between_tokens(self):
        plan = serve_plan(
            LLAMA, on=Chip(), lengths=1000, output=1, requests_per_second=4, slo=Slo(0.5, tpot_p95=0.1), **QUICK
        )
        assert plan.rows == [] and plan.simulated.tpot_p95 is None
        assert plan.meets is True and "no TPOT p95, as outputs are of one token" in plan.verdict

    def test_nothing_promised(self):
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=2, **LEAST)
        assert plan.meets is plan.highest is None and plan.verdict.endswith("nothing is promised.")


class TestWhatCannotBeServed:
    def test_weights_that_do_not_fit(self):
        plan = serve_plan(preset("llama-3-70b"), on=Chip(), lengths=1000, requests_per_second=1, slo=Slo(1.0))
        assert not plan.fits and plan.rows == [] and plan.capacity is plan.simulated is None
        assert plan.concurrency == 0 and plan.needed == 2 and plan.verdict.endswith("it needs 2")
        assert plan.meets is False
        more = serve_plan(preset("llama-3-70b"), on=Chip(), lengths=1000, requests_per_second=1, devices=2, **LEAST)
        assert more.fits and more.needed == 2

    def test_needed_devices_by_hand(self):
        """405,853,388,800 parameters in 16 bits and no activations are 11.3 times 72e9 B."""
        m = preset("llama-3.1-405b")
        plan = serve_plan(m, on=Chip(), lengths=10, output=1, requests_per_second=1, activations=0, max_batch=1)
        assert plan.needed == math.ceil(2 * 405_853_388_800 / 72e9) == 12

    def test_weights_that_fit_and_leave_no_room(self):
        small = Chip(memory=19 * 10**9)
        plan = serve_plan(LLAMA, on=small, lengths=4000, requests_per_second=1, activations=10**9)
        assert not plan.fits and "MiB for caches of 516 MiB each" in plan.verdict and plan.needed == 2

    def test_a_rate_beyond_capacity(self):
        plan = serve_plan(LLAMA, on=Chip(), lengths=1000, requests_per_second=500, slo=Slo(ttft_p95=1), **QUICK)
        assert plan.fits and plan.simulated is plan.steady is None and plan.meets is False
        assert plan.verdict.startswith("Unstable: 500 requests/s are asked and ")
        assert f"{plan.capacity.value:.1f} can be served" in plan.verdict
        assert plan.load > 1 and 0 < plan.highest.value < plan.capacity.value

    def test_requests_that_never_fit_are_counted(self):
        chip = Chip(memory=22 * 10**9)
        lengths = [100] * 19 + [30_000]
        plan = serve_plan(LLAMA, on=chip, lengths=lengths, output=10, requests_per_second=1, activations=0, **QUICK)
        assert 0.02 < plan.simulated.rejected < 0.1
        assert any("of the requests are refused" in text for text in plan.assumptions)

    def test_positions_that_the_model_does_not_have(self):
        plan = serve_plan(preset("gpt2"), on=Chip(), lengths=1000, output=100, requests_per_second=1, **LEAST)
        assert any("1,024 positions, and lengths go up to 1,100" in text for text in plan.assumptions)


SMALL = Transformer(layers=4, d_model=256, heads=4, vocab=1000)
WINDOWED = replace(SMALL, mechanism=[Softmax(window=100), None] * 2)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([SMALL, WINDOWED]), st.integers(30, 500), st.integers(1, 2000), st.integers(1, 300))
def test_properties_of_concurrency(m, megabytes, prompt, output):
    room = {"given_activations": 10**6}
    here = forms(m, Chip(memory=megabytes * 10**6), prompt, output, **room)
    larger = forms(m, Chip(memory=(megabytes + 7) * 10**6), prompt, output, **room)
    longer = forms(m, Chip(memory=megabytes * 10**6), prompt + 13, output, **room)
    assert larger.concurrency >= here.concurrency >= longer.concurrency
    assert larger.needed <= here.needed <= longer.needed
    if here.limit and longer.limit:
        assert larger.capacity >= here.capacity * (1 - 1e-12)
        assert here.capacity >= longer.capacity
        assert here.step(2) >= here.step(1)
    windowed = forms(WINDOWED, Chip(memory=megabytes * 10**6), prompt, output, **room)
    assert windowed.concurrency >= forms(SMALL, Chip(memory=megabytes * 10**6), prompt, output, **room).concurrency


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.95))
def test_a_higher_rate_is_never_better(share):
    f = forms(LLAMA, Chip(), 1000, 200)
    low, high = f.steady(share * f.capacity), f.steady(1.02 * share * f.capacity)
    assert low.running < high.running and low.ttft < high.ttft and low.tpot < high.tpot


def test_it_repeats():
    a, b = (serve_plan(LLAMA, on=Chip(), lengths="uniform:1..900", requests_per_second=3, **QUICK) for _ in range(2))
    assert a.simulated == b.simulated and str(a) == str(b)


def test_it_says_how_far_it_is():
    seen = []
    serve_plan(
        LLAMA, on=Chip(), lengths=100, requests_per_second=3, slo=Slo(1), tick=lambda *x: seen.append(x), **LEAST
    )
    shares = [share for _, share in seen]
    assert shares == sorted(shares) and shares[0] == 0 and 0.8 < shares[-1] <= 1


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"requests_per_second": 0}, ValueError, "requests_per_second is 0"),
        ({"requests_per_second": -2.0}, ValueError, "requests_per_second is -2.0"),
        ({"requests_per_second": math.nan}, ValueError, "requests_per_second is nan"),
        ({"requests_per_second": "4"}, TypeError, "requests_per_second must be a number"),
        ({"slo": {"ttft_p95": 0}}, ValueError, "slo ttft_p95 is 0"),
        ({"slo": Slo(tpot_p95=-1)}, ValueError, "slo tpot_p95 is -1"),
        ({"slo": {"ttft_p59": 1}}, LookupError, "no promise 'ttft_p59'; did you mean ttft_p95"),
        ({"slo": 0.5}, TypeError, "slo is float; wanted an Slo or a dict"),
        ({"lengths": []}, ValueError, "there are none"),
        ({"lengths": "long"}, ValueError, "no description of lengths"),
        ({"output": 0}, ValueError, "is 0; wanted 1 to"),
        ({"on": None}, TypeError, "on is NoneType, without rate"),
        ({"m": "llama"}, TypeError, "m is str; wanted a Transformer"),
        ({"dtype": "float32"}, LookupError, "chip has no rate for 'float32'"),
        ({"kv_dtype": "int3"}, LookupError, "no dtype 'int3'"),
        ({"weight_dtype": "int5"}, LookupError, "no dtype 'int5'"),
        ({"devices": 0}, ValueError, "devices is 0"),
        ({"utilisation": 1.5}, ValueError, "utilisation is 1.5; wanted a share of at most 1"),
        ({"efficiency": 0}, ValueError, "efficiency is 0"),
        ({"activations": -1}, ValueError, "activations is -1"),
        ({"max_batch": 0}, ValueError, "max_batch is 0"),
        ({"pass_tokens": 1.5}, TypeError, "pass_tokens must be an integer"),
        ({"requests": 99}, ValueError, "requests is 99; wanted at least 100"),
        ({"seeds": 1}, ValueError, "seeds is 1; wanted at least 2"),
    ],
)
def test_bad_input(more, error, message):
    given_ = {"m": LLAMA, "on": Chip(), "lengths": 100, "requests_per_second": 1} | more
    with pytest.raises(error, match=message):
        serve_plan(given_.pop("m"), **given_)


def test_an_unreadable_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("length\n5\nfive\n")
    with pytest.raises(ValueError, match=r"prompts.csv, line 3: 'five'"):
        serve_plan(LLAMA, on=Chip(), lengths=str(path), requests_per_second=1)
