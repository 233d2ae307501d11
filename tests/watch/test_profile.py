import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest

from refattn import dispatch
from refattn.costs import Softmax, Transformer
from refattn.models.elementwise import add
from refattn.models.layers import linear
from refattn.watch import needs
from refattn.watch import profile as module
from refattn.watch.clock import Clock, ClockedTape, inside
from refattn.watch.network import Network
from refattn.watch.profile import profile, scale_of
from refattn.watch.roofs import Rates, measure_rates
from refattn.watch.verdict import limit

RATES = Rates(1e11, 1e9, memory=1e10, cache=1e11, call=1e-6, operation={"attention": 5e-5, "rope": 2e-5})


def network(mechanism=None, **sizes):
    given = {"layers": 2, "d_model": 32, "heads": 4, "gated": True, "vocab": 11}
    return Network.random(Transformer(**given | sizes, mechanism=mechanism))


def quick(net, **given):
    return profile(net, **{"seq": 32, "rounds": 3, "rates": RATES} | given)


@pytest.fixture
def no_work(monkeypatch):
    """A test in which nothing may run."""

    def ran(*args, **kwargs):
        raise AssertionError("it ran before it refused")

    monkeypatch.setattr(module, "_Run", ran)


class TestClock:
    def test_time_goes_where_it_is_spent(self):
        def slow(x):
            time.sleep(0.05)
            return x

        clock = Clock()
        inside(clock, "ffn")(slow, 1)
        clock(slow, 1)
        inside(clock, "mixing")(linear, np.ones((1, 2)), np.ones((2, 2)))
        assert 0.05 <= clock.seconds["ffn"] < 2 and 0.05 <= clock.seconds["other"] < 2
        assert 0 < clock.seconds["projection"] < 0.05
        assert dict(clock.calls) == {"ffn": 1, "other": 1, "projection": 1}
        assert clock.bytes["projection"] == 8 * (2 + 4 + 2)

    def test_backward_time_goes_to_the_component_of_its_call(self, monkeypatch):
        from refattn.models import layers

        right = layers.linear_vjp

        def slow(*args):
            time.sleep(0.05)
            return right(*args)

        monkeypatch.setattr(layers, "linear_vjp", slow)
        clock = Clock()
        tape = ClockedTape(clock)
        x, w = np.ones((1, 2)), np.ones((2, 2))
        y = inside(tape, "ffn")(linear, x, w)
        z = inside(tape, "norm")(add, y, y)
        gradient = tape.gradients(z, np.ones_like(z))
        np.testing.assert_array_equal(gradient(x), [[4.0, 4.0]])
        assert clock.backward["ffn"] >= 0.05 > clock.backward["norm"] > 0


class TestProfile:
    @pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
    def test_parts_add_up_to_the_whole(self, phase):
        net = network(d_model=128, ffn=512)
        single = quick(net, phase=phase, seq=128, rounds=1)
        assert sum(part.seconds for part in single.parts) == pytest.approx(single.clocked)
        again = [quick(net, phase=phase, seq=128, rounds=1) for _ in range(5)]
        assert min(one.part("other").share for one in again) < 0.9  # what no component owns is not the most
        found = quick(net, phase=phase, seq=128, rounds=5)
        assert sum(part.share for part in found.parts) == pytest.approx(1)
        assert 0 < found.low <= found.seconds <= found.high
        assert all(part.low <= part.seconds <= part.high for part in found.parts)
        back = [part.component for part in found.parts if part.backward > 0]
        assert bool(back) == (phase == "train")

    @pytest.mark.parametrize("mechanism", [None, Softmax(window=5), "mamba", "gated_delta_rule"], ids=str)
    def test_flops_are_those_of_costs(self, mechanism):
        net = network(mechanism)
        m = net.sizes
        names = {"projection": "qkvo", "ffn": "ffn", "head": "head", "scan": "scan"}
        for phase, counted in (
            ("prefill", m.forward_flops(batch=2, seq=16)),
            ("decode", m.forward_flops(batch=2, seq=1, past=15)),
            ("train", m.train_flops(batch=2, seq=16, recompute="attention")),
        ):
            found = quick(net, phase=phase, batch=2, seq=16)
            for part in found.parts:
                wanted = counted.get(names.get(part.component, ""), 0)
                wanted = counted["scores"] + counted["values"] if part.component == "attention" else wanted
                assert part.flops == wanted, part.component
            assert sum(part.flops for part in found.parts) == counted["total"]
            assert part.rate == part.flops / part.seconds

    def test_which_components_there_are(self):
        plain = {"embedding", "norm", "projection", "rope", "attention", "ffn", "head", "other"}
        assert {part.component for part in quick(network()).parts} == plain
        stream = quick(network("retention", vocab=0))
        assert {part.component for part in stream.parts} == {"norm", "projection", "scan", "ffn", "other"}
        with pytest.raises(LookupError, match="no component of this profile 'scann'; did you mean scan"):
            stream.part("scann")

    def test_peak_memory_grows_with_the_matrix_of_scores(self):
        net = network(layers=1)
        matrix = net.sizes.attention_matrix_bytes(seq=256)
        peak = quick(net, seq=256).peak_bytes
        assert 3 * matrix < peak < 8 * matrix
        assert quick(net, seq=256, memory=False).peak_bytes == 0

    def test_numpy_tells_products_and_softmax_apart(self):
        inside_attention = quick(network(), seq=64).inside
        assert list(inside_attention) == ["scores", "values", "softmax"]
        assert inside_attention["scores"] > 0 <= inside_attention["softmax"]
        assert quick(network("mamba")).inside == {}
        assert quick(network(), phase="train").inside == {}

    def test_another_backend_computes(self, monkeypatch):
        monkeypatch.setattr(dispatch, "_registered", {})
        from refattn.dense.attention import attention

        calls = []

        def imitation(q, k, v, **options):
            calls.append(q.shape)
            return attention(q, k, v, **options, backend="numpy")

        dispatch.register("imitation", SimpleNamespace(attention=imitation, LIMITS={"rope": "not here"}))
        with pytest.raises(dispatch.Unsupported, match="rope"):
            quick(network(), backend="imitation")
        found = quick(network(positions=40), backend="imitation")  # learned positions need no rope
        assert calls and found.backend == "imitation" and found.inside == {}

    def test_a_slow_attention_is_seen(self, monkeypatch):
        monkeypatch.setattr(dispatch, "_registered", {})
        from refattn.dense.attention import attention

        def slow(q, k, v, **options):
            time.sleep(0.03)
            return attention(q, k, v, **options, backend="numpy")

        dispatch.register("slow", SimpleNamespace(attention=slow))
        found = quick(network(positions=40, layers=3), backend="slow", seq=8)
        assert found.part("attention").seconds >= 0.09
        assert max(found.parts, key=lambda part: part.share).component == "attention"
        assert found.attention_share[0] > 0.5
        assert found.verdict.startswith("attention is ") and "not the bottleneck" not in found.verdict

    def test_rounds_and_seconds(self):
        net = network()
        assert quick(net, rounds=4).rounds == 4
        assert quick(net, rounds=None, seconds=0).rounds == 3
        assert quick(net, rounds=None, seconds=0.2).rounds > 3

    def test_progress_is_told(self):
        told = []
        quick(network(), tick=lambda text, share: told.append((text, share)))
        shares = [share for _, share in told]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
        assert told[-1][0] == "round 3"

    def test_decoding_does_not_grow(self):
        net = network()
        found = quick(net, phase="decode", seq=20, rounds=6)
        assert found.part("attention").flops == net.sizes.forward_flops(seq=1, past=19)["scores"] * 2


class TestVerdict:
    def found(self, share, **changes):
        found = quick(network())
        parts = [dataclasses.replace(part, share=0.5 if part.component == "ffn" else 0.1) for part in found.parts]
        return dataclasses.replace(found, attention_share=(share, share, share), parts=parts, **changes)

    def test_limit(self):
        assert limit(0.0) == 1 and limit(0.75) == 4
        assert limit(1.0) > 1e9

    def test_above_and_below(self):
        assert self.found(0.5).verdict.endswith("no change to it can give more than 2.00×")
        text = self.found(0.05).verdict
        assert text.startswith("attention is 5% of the time (measured, 5% to 5%)")
        assert text.endswith("more than 1.05×; it is not the bottleneck, ffn is (50%)")
        assert "not the bottleneck" in self.found(0.09).verdict and "not the" not in self.found(0.0910).verdict

    def test_layers_that_did_not_run_count(self):
        m = Transformer(layers=10, d_model=32, heads=4, vocab=4000)
        few = quick(Network.random(m, layers=1), rounds=1)
        once = few.part("head").seconds + few.part("embedding").seconds
        rest = sum(part.seconds for part in few.parts) - once
        assert few.whole == pytest.approx(once + 10 * rest)
        assert few.part("head").share == pytest.approx(few.part("head").seconds / few.whole)
        assert "predicted for all layers" in few.verdict

    def test_layers_that_differ_are_not_scaled(self):
        m = Transformer(layers=4, d_model=32, heads=4, mechanism=[None, "mamba", None, "mamba"])
        assert scale_of(Network.random(m, layers=2)) is None and scale_of(Network.random(m)) == 1
        assert quick(Network.random(m, layers=2)).whole is None
        assert scale_of(Network.random(m, layers=1)) == 4


class TestRoofs:
    def test_which_roof(self):
        none = {"flops": 0, "exps": 0, "nbytes": 0, "calls": 1}
        assert RATES.roof(**none | {"flops": 1e9}) == ("matrix products", 0.01)
        assert RATES.roof(**none | {"exps": 1e9}) == ("exponentials", 1.0)
        assert RATES.roof(**none | {"nbytes": 1e8}) == ("bandwidth", 0.01)
        assert RATES.roof(**none | {"nbytes": 1e5}) == ("bandwidth", 1e-6)  # from a cache
        assert RATES.roof(**none, component="attention") == ("call overhead", 5e-5)
        assert RATES.roof(**none, component="ffn") == ("call overhead", 1e-6)

    def test_rates_are_positive_and_plausible(self):
        rates = measure_rates()
        assert 1e8 < rates.matmul < 1e15 and 1e6 < rates.exps < 1e12
        assert 1e7 < rates.memory < 1e13 and 0 < rates.call < min(rates.operation.values()) < 0.1
        assert rates.source.startswith("measured")

    def test_a_calibration_may_say_them(self):
        on = SimpleNamespace(rate=lambda dtype: {"float32": 7.0}[dtype], exp_rate=8.0, bandwidth=9.0, name="mine")
        rates = measure_rates(on=on)
        assert (rates.matmul, rates.exps, rates.memory, rates.source) == (7.0, 8.0, 9.0, "calibration mine")


class TestRefused:
    @pytest.mark.parametrize(("given", "error", "why"), [
        ({"seq": 0}, ValueError, "seq"),
        ({"batch": 0}, ValueError, "batch"),
        ({"rounds": 0}, ValueError, "rounds"),
        ({"seq": 41}, ValueError, "seq is 41; the model has 40 positions"),
        ({"seconds": -1.0}, ValueError, "seconds is -1.0"),
        ({"seconds": float("nan")}, ValueError, "seconds is nan"),
        ({"phase": "trian"}, ValueError, "phase is 'trian'"),
        ({"backend": "nmpy"}, LookupError, "no backend 'nmpy'; did you mean numpy"),
        ({"seq": 2.5}, TypeError, "seq"),
    ])  # fmt: skip
    def test_arguments(self, no_work, given, error, why):
        with pytest.raises(error, match=why):
            quick(network(positions=40), **given)

    def test_an_encoder_does_not_decode(self, no_work):
        with pytest.raises(ValueError, match="phase is decode"):
            quick(network(logits=False), phase="decode")

    def test_what_does_not_fit_into_memory(self, no_work, monkeypatch):
        monkeypatch.setattr(needs, "free_memory", lambda: 10**6)
        with pytest.raises(ValueError, match=r"a pass needs about .* MiB beside the weights; 977 KiB are free"):
            quick(network(), seq=512)

    def test_needed_memory_is_about_what_is_used(self):
        net = network(layers=1, vocab=0)
        for phase in ("prefill", "train"):
            needed = needs.needed_bytes(net.sizes, 1, 256, phase, "numpy")
            assert 0.5 < needed / quick(net, seq=256, phase=phase).peak_bytes < 2.5

    def test_layers_that_fit(self, monkeypatch):
        m = Transformer(layers=8, d_model=64, heads=4)
        one = needs.weight_bytes(needs.first_layers(m, 1), "prefill")
        assert needs.fitting(m, 1, 8, "prefill", "numba", 1e9) == 8
        assert needs.fitting(m, 1, 8, "prefill", "numba", 0.0) == 1
        monkeypatch.setattr(needs, "free_memory", lambda: 2 * (4 * one))
        assert 1 < needs.fitting(m, 1, 8, "prefill", "numba", 1e9) < 4
        monkeypatch.setattr(needs, "DRAWN", 2 * one)
        monkeypatch.setattr(needs, "free_memory", lambda: None)
        assert needs.fitting(m, 1, 8, "prefill", "numba", 1e9) == 2
