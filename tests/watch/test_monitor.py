"""The monitor: what is counted, how often, under which labels; and what is refused."""

import asyncio
import gc
import importlib.util
import itertools
import logging
import re
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from refattn import costs, dispatch
from refattn.watch import labels, metrics
from refattn.watch.monitor import Monitor, monitor

MODEL = costs.Transformer(layers=2, d_model=8, heads=2, vocab=11)


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture(scope="module")
def ideal():
    """A function that makes a calibration of a machine without surprises."""
    path = Path(__file__).parents[1] / "costs" / "ideal.py"
    spec = importlib.util.spec_from_file_location("ideal_for_the_monitor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ideal


def samples(registry):
    """Return {(name, frozenset of labels): value}, as a scraper reads it."""
    text = generate_latest(registry).decode()
    return {
        (x.name, frozenset(x.labels.items())): x.value
        for family in text_string_to_metric_families(text)
        for x in family.samples
    }


def value(registry, name, phase="prefill", backend="numpy", mechanism="softmax", **more):
    """Return a sample, None where it is not there."""
    found = {"phase": phase, "backend": backend, "mechanism": mechanism} | more
    return samples(registry).get((f"refattn_{name}", frozenset((k, v) for k, v in found.items() if v is not None)))


def seconds(registry, component, phase="prefill", of="sum"):
    return value(registry, f"component_seconds_{of}", phase, component=component)


def busy(duration):
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        pass


def test_the_metrics_are_those_of_the_contract(registry):
    Monitor(MODEL, registry=registry)
    text = generate_latest(registry).decode()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert names == {
        "refattn_component_seconds",
        "refattn_attention_time_ratio",
        "refattn_sequence_length",
        "refattn_flops_total",
        "refattn_bytes_total",
        "refattn_kv_cache_bytes",
        "refattn_peak_bytes",
        "refattn_predicted_seconds_ratio",
        "refattn_info",
    }


def test_a_call_counts_its_parts_once_each(registry):
    watched = Monitor(MODEL, registry=registry)
    attention = watched.wrap(busy, component="attention")
    with watched.call("prefill", seq=5):
        attention(0.002)
        attention(0.002)
        with watched.part("ffn"):
            busy(0.001)
        busy(0.003)
    assert {c: seconds(registry, c, of="count") for c in ("attention", "ffn", "other", "norm")} == {
        "attention": 1,
        "ffn": 1,
        "other": 1,
        "norm": None,
    }
    assert 0.004 <= seconds(registry, "attention") < 1
    assert 0.001 <= seconds(registry, "ffn") < 1
    assert 0.003 <= seconds(registry, "other") < 1


def test_nested_parts_and_calls_take_their_time_out_of_what_is_around_them(registry):
    watched = Monitor(MODEL, registry=registry)
    inner = watched.wrap(busy, component="attention")
    start = time.perf_counter()
    with watched.call("prefill", seq=5), watched.part("projection"):
        busy(0.002)
        inner(0.004)
        with watched.call("decode", seq=6):
            busy(0.003)
    elapsed = time.perf_counter() - start
    assert 0.002 <= seconds(registry, "projection") <= elapsed - 0.007
    assert 0.004 <= seconds(registry, "attention") <= elapsed - 0.005
    assert 0.003 <= seconds(registry, "other", "decode") <= elapsed - 0.006
    whole = sum(x for (name, _), x in samples(registry).items() if name == "refattn_component_seconds_sum")
    assert 0.009 <= whole <= elapsed
    assert value(registry, "attention_time_ratio", "decode") == 0


def test_the_ratio_is_attention_over_all(registry):
    watched = Monitor(registry=registry)
    for attention in (0.003, 0.001):
        with watched.call("prefill"), watched.part("attention"):
            busy(attention)
    with watched.call("prefill"):
        busy(0.004)
    parts = {c: seconds(registry, c) for c in ("attention", "other")}
    ratio = value(registry, "attention_time_ratio")
    assert ratio == pytest.approx(parts["attention"] / sum(parts.values()), rel=1e-6)
    assert 0.004 <= parts["attention"] < parts["attention"] / ratio


def test_flops_and_bytes_are_those_of_the_model(registry):
    watched = Monitor(MODEL, registry=registry)
    for seq, batch in ((5, 1), (5, 1), (7, 3)):
        with watched.call("prefill", seq=seq, batch=batch):
            pass
    for seq in (6, 7):
        with watched.call("decode", seq=seq):
            pass
    with watched.call("train", seq=4, batch=2):
        pass
    prefill = 2 * MODEL.forward_flops(1, 5)["total"] + MODEL.forward_flops(3, 7)["total"]
    decode = [MODEL.forward_flops(1, 1, past)["total"] for past in (5, 6)]
    assert value(registry, "flops_total") == prefill
    assert value(registry, "flops_total", "decode") == sum(decode)
    assert value(registry, "flops_total", "train") == MODEL.train_flops(2, 4)["total"]
    moved = [MODEL.bytes_moved(1, seq, "decode", "materialised", "float32")["total"] for seq in (6, 7)]
    assert value(registry, "bytes_total", "decode") == sum(moved)
    assert value(registry, "sequence_length_sum") == 5 + 5 + 7
    assert value(registry, "sequence_length_count") == 3
    assert value(registry, "sequence_length_bucket", le="4") == 0
    assert value(registry, "sequence_length_bucket", le="8") == 3
    peak = MODEL.peak_attention_bytes(3, 7, "float32", "numpy")
    assert value(registry, "peak_bytes", phase=None) == peak


def test_reading_twice_changes_nothing(registry):
    watched = Monitor(MODEL, registry=registry, predicted=lambda phase, batch, seq: 1e-3)
    with watched.call("prefill", seq=5), watched.part("attention"):
        busy(0.001)
    first = samples(registry)
    assert len(first) > 50
    assert samples(registry) == first


def test_without_a_model_only_times_and_lengths(registry):
    watched = Monitor(registry=registry, mechanism="mla")
    with watched.call("decode", seq=9):
        pass
    assert value(registry, "sequence_length_count", "decode", mechanism="latent") == 1
    assert value(registry, "flops_total", "decode", mechanism="latent") is None
    with pytest.raises(ValueError, match="needs a model"), watched.cache(5):
        pass


def test_what_fails_is_counted_and_passed_on(registry):
    watched = Monitor(MODEL, registry=registry)

    def broken():
        busy(0.001)
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted"), watched.call("prefill", seq=5):
        watched.wrap(broken, component="attention")()
    with pytest.raises(ZeroDivisionError, match="planted"):
        watched.wrap(broken, component="attention", phase="prefill", seq=lambda: 5)()
    assert seconds(registry, "attention", of="count") == 2
    assert seconds(registry, "attention") >= 0.002
    assert value(registry, "sequence_length_count") == 2
    assert value(registry, "flops_total") is None, "nothing was computed to the end"
    with watched.call("prefill", seq=5):  # and nothing of it is left behind
        pass
    assert value(registry, "flops_total") == MODEL.forward_flops(1, 5)["total"]


def test_a_wrapped_function_is_itself(registry):
    watched = Monitor(MODEL, registry=registry)

    def area(width, *, height=2):
        """Return a product."""
        return width * height

    for wrapped in (watched.wrap(area, component="ffn"), watched.wrap(area, component="ffn", phase="train")):
        assert wrapped(3) == 6 and wrapped(3, height=5) == 15
        assert (wrapped.__name__, wrapped.__doc__) == ("area", "Return a product.")
        with pytest.raises(TypeError, match="missing 1 required"):
            wrapped()


def test_a_function_without_a_phase_is_measured_in_calls_only(registry):
    watched, other = Monitor(MODEL, registry=registry), Monitor(MODEL, registry=registry, backend="numba")
    attention = watched.wrap(busy, component="attention")
    attention(0)
    with watched.part("norm"), other.call("prefill", seq=2):
        attention(0)  # a call of another monitor
    assert seconds(registry, "attention", of="count") is None
    assert seconds(registry, "norm", of="count") is None
    assert value(registry, "attention_time_ratio", backend="numba") == 0


def test_a_pass_that_is_wrapped_is_a_call_outside_and_a_part_inside(registry):
    watched = Monitor(MODEL, registry=registry)
    run = watched.wrap(lambda tokens: len(tokens), component="other", phase="prefill", seq=len, batch=lambda tokens: 2)
    assert run("abcde") == 5
    with watched.call("prefill", seq=3):
        run("abcde")
    assert value(registry, "sequence_length_sum") == 5 + 3
    assert value(registry, "flops_total") == MODEL.forward_flops(2, 5)["total"] + MODEL.forward_flops(1, 3)["total"]


def test_coroutines_are_measured_until_they_return(registry):
    watched = Monitor(MODEL, registry=registry)

    async def wait(duration):
        await asyncio.sleep(duration)
        return duration

    part = watched.wrap(wait, component="attention")
    whole = watched.wrap(wait, component="head", phase="decode", seq=lambda duration: 4)

    async def request():
        with watched.call("prefill", seq=3):
            return await part(0.01)

    async def both():
        return await asyncio.gather(request(), request(), whole(0.01))

    assert asyncio.run(both()) == [0.01, 0.01, 0.01]
    assert seconds(registry, "attention", of="count") == 2
    assert 0.02 <= seconds(registry, "attention") < 1, "tasks do not see each other's calls"
    assert seconds(registry, "head", "decode") >= 0.009


def test_what_outlives_its_call_is_no_part_of_it(registry):
    watched = Monitor(MODEL, registry=registry)
    part = watched.wrap(busy, component="attention")
    with watched.call("prefill", seq=3):
        inherited = copy_context()
    inherited.run(part, 0.001)
    assert seconds(registry, "attention", of="count") is None
    inherited.run(watched.wrap(busy, component="attention", phase="decode"), 0.001)
    assert seconds(registry, "attention", "decode", of="count") == 1, "it is a call of its own"


def test_parts_in_threads_of_one_call_never_exceed_its_time(registry):
    watched = Monitor(MODEL, registry=registry)
    part = watched.wrap(time.sleep, component="attention")
    start = time.perf_counter()
    with watched.call("prefill", seq=3), ThreadPoolExecutor(4) as pool:
        for work in [pool.submit(copy_context().run, part, 0.01) for _ in range(8)]:
            work.result()
    elapsed = time.perf_counter() - start
    assert 0.01 <= seconds(registry, "attention") <= elapsed
    assert seconds(registry, "attention") + seconds(registry, "other") <= elapsed


def test_no_call_of_many_threads_is_lost(registry):
    watched = Monitor(MODEL, registry=registry)
    attention = watched.wrap(lambda: None, component="attention")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:

        def work(n):
            for seq in range(1, 501):
                with watched.call("decode", seq=seq):
                    attention()
            return n

        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(work, n) for n in range(8)]
            while not all(x.done() for x in done):
                generate_latest(registry)
        assert sorted(x.result() for x in done) == list(range(8))
    finally:
        sys.setswitchinterval(interval)
    assert seconds(registry, "attention", "decode", of="count") == 8 * 500
    assert seconds(registry, "other", "decode", of="count") == 8 * 500
    assert value(registry, "sequence_length_sum", "decode") == 8 * 500 * 501 // 2
    once = sum(MODEL.forward_flops(1, 1, past)["total"] for past in range(500))
    assert value(registry, "flops_total", "decode") == 8 * once


def test_counters_never_fall_while_they_are_read(registry):
    watched = Monitor(MODEL, registry=registry)
    seen = []
    for seq in itertools.islice(itertools.cycle(range(1, 40)), 200):
        with watched.call("prefill", seq=seq):
            pass
        seen.append(value(registry, "flops_total"))
    assert seen == sorted(seen) and len(set(seen)) == 200


def test_the_ratios_are_of_the_latest_calls():
    ratio = metrics.Ratio()
    assert ratio.read() is None
    ratio.add(64 * 5.0, 64.0, 64)
    assert ratio.read() == ratio.read() == 5, "what was shown stays until there are more calls"
    ratio.add(64.0, 64.0, 64)
    old = (1 - 1 / 64) ** 64  # about 1 / e
    assert ratio.read() == pytest.approx((5 * old + 1) / (old + 1))
    for _ in range(1000):
        ratio.add(3.0, 1.0)
        found = ratio.read()
    assert found == pytest.approx(3, rel=1e-6)


def test_a_rest_of_no_time_is_observed(registry):
    watched = Monitor(MODEL, registry=registry)
    call = watched.call("prefill")
    call.times[labels.COMPONENTS.index("attention")] = 5
    watched.metrics.record(call)
    assert seconds(registry, "other", of="count") == seconds(registry, "attention", of="count") == 1
    assert seconds(registry, "norm", of="count") is None


def test_a_service_that_nobody_reads_keeps_little(registry, monkeypatch):
    monkeypatch.setattr(metrics, "KEPT", 10)
    watched = Monitor(MODEL, registry=registry)
    for seq in range(1, 101):
        with watched.call("prefill", seq=seq):
            pass
    series = watched.metrics.series("prefill", "numpy", "softmax")
    assert len(series.tally) <= 10 and len(watched.metrics._pending) < metrics.TOGETHER
    assert value(registry, "flops_total") == sum(MODEL.forward_flops(1, seq)["total"] for seq in range(1, 101))


def test_the_drift_moves_with_a_planted_delay_and_comes_back(registry):
    watched = Monitor(MODEL, registry=registry, predicted=lambda phase, batch, seq: 1e-4 * seq)

    def calls(n, delay):
        for _ in range(n):
            with watched.call("prefill", seq=10):
                busy(1e-3 + delay)

    calls(20, 0)
    planned = value(registry, "predicted_seconds_ratio")
    calls(20, 0.02)
    slow = value(registry, "predicted_seconds_ratio")
    assert planned >= 1
    assert slow > 1.5 * planned
    for _ in range(10):  # a scrape now and then
        calls(40, 0)
        later = value(registry, "predicted_seconds_ratio")
    assert later < (slow + planned) / 2
    assert value(registry, "predicted_seconds_ratio", "decode") is None


def test_predictions_that_fail_are_logged_and_left_out(registry, caplog):
    def predicted(phase, batch, seq):
        return {3: 1e-3, 4: 0.0, 5: float("nan")}[seq]

    watched = Monitor(MODEL, registry=registry, predicted=predicted)
    with caplog.at_level(logging.WARNING, "refattn"):
        for seq in (3, 4, 5, 6):
            with watched.call("prefill", seq=seq):
                busy(1e-3)
        ratio = value(registry, "predicted_seconds_ratio")
    assert 1 <= ratio < 100
    assert [seq for seq in (3, 4, 5, 6) if f"('prefill', 1, {seq})" in caplog.text] == [4, 5, 6]
    assert value(registry, "sequence_length_count") == 4


def test_a_machine_predicts_for_the_model(registry, ideal):
    watched = Monitor(MODEL, registry=registry, predicted=ideal(), causal=False)
    other = Monitor(MODEL, registry=registry, predicted=costs.hardware("h200"), dtype="bfloat16", backend="numba")
    for one in (watched, other):
        with one.call("prefill", seq=50):
            busy(1e-3)
    whole = sum(seconds(registry, component) or 0 for component in labels.COMPONENTS)
    predicted = costs.predict(MODEL, on=ideal(), seq=50, causal=False).seconds
    assert value(registry, "predicted_seconds_ratio") == pytest.approx(whole / predicted, rel=1e-6)
    assert value(registry, "predicted_seconds_ratio", backend="numba") > 10, "the model is tiny, the device is not"
    with pytest.raises(ValueError, match="needs a model"):
        Monitor(registry=registry, predicted=ideal())
    with pytest.raises(LookupError, match="no dtype in this calibration 'float16'"):
        Monitor(MODEL, registry=registry, predicted=ideal(), dtype="float16")
    mamba = costs.Transformer(layers=1, d_model=8, heads=2, mechanism="mamba")
    with pytest.raises(LookupError, match="no times of mamba"):
        Monitor(mamba, registry=registry, predicted=ideal())


def test_caches_are_counted_while_they_are_held(registry):
    watched = Monitor(MODEL, registry=registry, dtype="bfloat16")
    one, two = MODEL.kv_cache_bytes(1, 10, "bfloat16"), MODEL.kv_cache_bytes(4, 7, "bfloat16")
    with watched.cache(10):
        assert value(registry, "kv_cache_bytes", phase=None) == one
        failing = watched.cache(7, batch=4)
        failing.__enter__()
        assert value(registry, "kv_cache_bytes", phase=None) == one + two
        assert not failing.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert value(registry, "kv_cache_bytes", phase=None) == one
    assert value(registry, "kv_cache_bytes", phase=None) == 0


def test_monitors_on_one_registry_add_up(registry):
    first, second = Monitor(MODEL, registry=registry), Monitor(MODEL, registry=registry)
    third = Monitor(costs.Transformer(layers=1, d_model=8, heads=2, mechanism="mamba2"), registry=registry)
    for watched in (first, second, third):
        with watched.call("prefill", seq=5):
            pass
    assert value(registry, "flops_total") == 2 * MODEL.forward_flops(1, 5)["total"]
    assert value(registry, "sequence_length_count", mechanism="mamba2") == 1
    about = [dict(found) for (name, found) in samples(registry) if name == "refattn_info"]
    assert sorted(x["mechanism"] for x in about) == ["mamba2", "softmax"]


def test_a_registry_goes_when_nobody_has_it():
    registry = CollectorRegistry()
    watched = Monitor(MODEL, registry=registry)
    with watched.call("prefill", seq=2):
        pass
    gone = weakref.ref(registry)
    del registry, watched
    gc.collect()
    assert gone() is None


def test_every_label_is_one_of_a_fixed_set(registry):
    given = ("softmax", "full", "mla", "retention", "window(3, 0)", "rwkv7", costs.Linformer(3, 4), None)
    for mechanism in given:
        watched = Monitor(registry=registry, mechanism=mechanism, backend="numba")
        for phase in labels.PHASES:
            for component in labels.COMPONENTS:
                with watched.call(phase, rest=component):
                    pass
    allowed = {
        "component": set(labels.COMPONENTS),
        "phase": set(labels.PHASES),
        "backend": set(dispatch.backends()),
        "mechanism": set(labels.mechanisms()),
    }
    for name, found in samples(registry):
        for label, text in found:
            if label not in ("le", "version"):
                assert text in allowed[label], (name, label)
    mixed = costs.Transformer(layers=2, d_model=8, heads=2, mechanism=["mamba2", "softmax"])
    assert labels.mechanism_label(None, mixed) == "mixed"


REFUSED = {
    "component": (lambda m: m.wrap(busy, component="atention"), LookupError, "no component 'atention'; did you mean"),
    "component of a part": (lambda m: m.part("user-17"), LookupError, "no component 'user-17'"),
    "component of the rest": (lambda m: m.call("decode", rest="x"), LookupError, "no component 'x'"),
    "phase": (lambda m: m.wrap(busy, component="ffn", phase="decoding"), LookupError, "did you mean decode"),
    "phase of a call": (lambda m: m.call("prefil", seq=3), LookupError, "did you mean prefill"),
    "length": (lambda m: m.call("prefill", seq=0), ValueError, "seq is 0; wanted at least 1"),
    "negative length": (lambda m: m.call("prefill", seq=-3), ValueError, "seq is -3"),
    "length of another type": (lambda m: m.call("prefill", seq=2.5), TypeError, "seq must be an integer"),
    "batch": (lambda m: m.call("prefill", seq=2, batch=0), ValueError, "batch is 0"),
    "no function": (lambda m: m.wrap(3, component="ffn"), TypeError, "wanted a function"),
    "generator": (lambda m: m.wrap(lambda: (yield), component="ffn"), TypeError, "no generator"),
    "length without a phase": (lambda m: m.wrap(busy, component="ffn", seq=len), ValueError, "seq without phase"),
    "batch without a length": (
        lambda m: m.wrap(busy, component="ffn", phase="train", batch=len),
        ValueError,
        "batch without seq",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, registry):
    act, kind, words = REFUSED[what]
    watched = Monitor(MODEL, registry=registry)
    before = samples(registry)
    with pytest.raises(kind, match=re.escape(words)):
        act(watched)
    assert samples(registry) == before


NOT_MADE = {
    "backend": ({"backend": "cuda:7"}, LookupError, "no backend 'cuda:7'"),
    "auto": ({"backend": "auto"}, LookupError, "no backend 'auto'"),
    "mechanism": ({"mechanism": "sofmax"}, LookupError, "did you mean softmax"),
    "mechanism of another type": ({"mechanism": 3}, TypeError, "wanted a Mechanism"),
    "dtype": ({"dtype": "float33"}, LookupError, "no dtype 'float33'"),
    "model": ({"model": "bert"}, TypeError, "model is str"),
    "prediction": ({"predicted": 0.5}, TypeError, "predicted is float"),
}


@pytest.mark.parametrize("what", NOT_MADE)
def test_not_made(what, registry):
    options, kind, words = NOT_MADE[what]
    with pytest.raises(kind, match=re.escape(words)):
        monitor(**options, registry=registry)
    assert samples(registry) == {}


def test_names_that_are_taken_are_refused():
    registry = CollectorRegistry()
    Counter("refattn_flops", "somebody else's", registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Monitor(MODEL, registry=registry)


def test_without_prometheus_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"refattn\[monitor\]"):
        Monitor(MODEL)


def test_the_factory_makes_a_monitor(registry):
    watched = monitor(MODEL, backend="numba", registry=registry)
    assert isinstance(watched, Monitor)
    with watched.call("prefill", seq=5):
        pass
    assert value(registry, "flops_total", backend="numba") == MODEL.forward_flops(1, 5)["total"]
