"""Predictions: by hand on a machine without surprises; calibrations that are damaged, foreign, or wrong."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn import costs
from refattn.costs import measuring, timings
from refattn.costs.calibration import Calibration, CalibrationWarning, between, matmul_seconds
from refattn.costs.hardware import Hardware
from refattn.costs.prediction import SLOWEST, predict
from refattn.costs.steps import steps
from tests.costs.ideal import FLOP, NUMBER, PAIR, TOKEN, ideal

M = costs.Transformer(layers=2, d_model=256, heads=4, ffn=512, gated=True)
CHIP = Hardware("chip", {"bfloat16": 1e12, "float32": 1e11}, 1e10, 1 << 34, 1e10, "a test", "2026")


class TestByHand:
    @pytest.mark.parametrize("backend", ["numpy", "numba"])
    @pytest.mark.parametrize("causal", [False, True])
    def test_the_sum_of_the_steps(self, backend, causal):
        T = 256
        found = predict(M, on=ideal(), seq=T, backend=backend, causal=causal)
        computed = (
            T * T
            if backend == "numpy" or not causal
            else costs.tile_pairs(costs.Softmax().visible(M.call(1, T)), T, T, 64, 128)
        )
        want = {
            "projection": 2 * FLOP * T * 4 * 256 * 256,
            "attention": 2 * PAIR[backend] * 4 * computed,
            "ffn": 2 * (FLOP * T * 3 * 256 * 512 + NUMBER * T * 512),
            "norm": 5 * NUMBER * T * 256,
            "other": 2 * NUMBER * (2 * T * 256 + T * 2 * 256 + T * 4 * 256),  # sums, rotation, reordering
        }
        assert found.parts == pytest.approx(want, rel=1e-6)
        assert found.seconds == pytest.approx(sum(want.values()), rel=1e-6)
        assert found.kind == "predicted"

    def test_batches_and_decoding(self):
        one, four = (predict(M, on=ideal(), batch=batch, seq=128) for batch in (1, 4))
        assert four.seconds == pytest.approx(4 * one.seconds, rel=1e-6)
        step = predict(M, on=ideal(), seq=1024, phase="decode")
        assert step.parts["attention"] == pytest.approx(2 * PAIR["numpy"] * 4 * 1024, rel=1e-6)
        assert step.parts["projection"] == pytest.approx(2 * FLOP * 4 * 256 * 256, rel=1e-6)

    def test_training_is_forward_and_backward(self):
        forward, step = (predict(M, on=ideal(), seq=128, phase=phase) for phase in ("prefill", "train"))
        assert step.parts["projection"] == pytest.approx(3 * forward.parts["projection"])
        assert step.parts["attention"] == pytest.approx(3.5 * forward.parts["attention"])

    def test_a_mixer(self):
        m = costs.Transformer(layers=3, d_model=256, heads=4, mechanism="retention")
        found = predict(m, on=ideal(), seq=100)
        assert found.parts["attention"] == pytest.approx(3 * 100 * 4 * TOKEN, rel=1e-6)

    def test_a_layer_takes_something_beside_its_steps(self):
        on = ideal(layers={"numpy:prefill": 0.5, "numpy:decode": 0.25})
        plain, slow = (predict(M, on=c, seq=64) for c in (ideal(), on))
        assert slow.parts["other"] == pytest.approx(plain.parts["other"] + 2 * 0.5)
        assert slow.bound_by["other"] == "calls"
        assert predict(M, on=on, seq=64, phase="decode").parts["other"] == pytest.approx(0.5, rel=1e-3)

    def test_each_kind_of_block_has_its_own_ratios(self):
        on = ideal()
        on.ratios |= {"numpy:mixing": [2.0] * 9, "numpy:decode": [3.0] * 9, "numpy:train": [4.0] * 9}
        mixer = costs.Transformer(layers=2, d_model=256, heads=4, mechanism="retention")
        for m, phase, factor in ((mixer, "prefill", 2), (M, "decode", 3), (M, "train", 4), (M, "prefill", 1)):
            given = predict(m, on=on, seq=64, phase=phase).seconds
            assert given == pytest.approx(factor * predict(m, on=ideal(ratios=[1.0] * 9), seq=64, phase=phase).seconds)

    def test_the_interval_is_that_of_the_blocks(self):
        found = predict(M, on=ideal(ratios=np.linspace(0.5, 1.5, 101)), seq=64)
        raw = found.seconds / 1.0
        assert (found.low / raw, found.high / raw) == pytest.approx((0.6, 1.4), abs=0.01)
        biased = predict(M, on=ideal(ratios=[2.0] * 9), seq=64)
        assert biased.seconds == pytest.approx(2 * raw) and biased.low == pytest.approx(biased.high)

    def test_farther_than_measured_is_less_certain(self):
        at, beyond = (predict(M, on=ideal(), seq=seq) for seq in (2048, 8192))
        assert beyond.high / beyond.low == pytest.approx(at.high / at.low * 1.1**4)

    def test_hardware_is_a_bound(self):
        found = predict(M, on=CHIP, seq=256)
        want = 0.0
        for step in steps(M, M.call(1, 256)):
            want += step.times * max(step.flops / 1e12, step.exps / 1e10, 2 * step.numbers / 1e10)
        assert (found.seconds, found.low, found.kind) == (pytest.approx(want), found.seconds, "bound")
        assert found.high == pytest.approx(found.seconds / SLOWEST)
        assert found.bound_by["attention"] == "exponentials" or found.bound_by["attention"] == "bandwidth"

    def test_a_matrix_in_memory_takes_longer_and_a_small_cache_less(self):
        flash, whole = (predict(M, on=CHIP, seq=4096, algorithm=a).seconds for a in ("flash", "materialised"))
        assert whole > flash
        wide, narrow = (predict(M, on=CHIP, seq=4096, phase="decode", cache_dtype=d).seconds for d in (None, "int8"))
        assert narrow < wide

    @given(st.integers(1, 1000), st.integers(1, 1000))
    def test_longer_is_not_quicker(self, a, b):
        short, long = sorted((a, b))
        for on in (ideal(), CHIP):
            assert predict(M, on=on, seq=short).seconds <= predict(M, on=on, seq=long).seconds * (1 + 1e-9)


class TestTables:
    @given(st.dictionaries(st.floats(1, 1e9), st.floats(1e-9, 1e3), min_size=1, max_size=6))
    def test_a_curve_goes_through_its_points(self, points):
        curve = sorted(points.items())
        for size, seconds in curve:
            assert between(curve, size) == pytest.approx(seconds, rel=1e-6, abs=1e-14)
        assert between(curve, 2 * curve[-1][0]) == pytest.approx(2 * curve[-1][1])

    @given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
    def test_products_by_their_multiply_adds(self, rows, inner, columns):
        assert matmul_seconds(ideal().matmul, rows, inner, columns) == pytest.approx(FLOP * rows * inner * columns)


class TestFile:
    def test_what_is_saved_is_loaded(self, tmp_path):
        ideal().save(tmp_path / "c.json")
        found = Calibration.load(tmp_path / "c.json", check=False)
        assert predict(M, on=found, seq=99) == predict(M, on=ideal(), seq=99)
        assert [path.name for path in tmp_path.iterdir()] == ["c.json"]

    @pytest.mark.parametrize(("change", "words"), [
        (lambda c: c.pop("matmul"), "lacks the table"),
        (lambda c: c.update(version=0), "of version 0"),
        (lambda c: c.update(bandwidth=-1.0), "no time or rate"),
        (lambda c: c.update(bandwidth="fast"), "no time or rate"),
        (lambda c: c.update(curves={"add": []}), "no points"),
        (lambda c: c.update(speed=3), "unexpected keyword"),
    ])  # fmt: skip
    def test_damaged(self, change, words, tmp_path):
        ideal().save(tmp_path / "c.json")
        content = json.loads((tmp_path / "c.json").read_text())
        change(content)
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            Calibration.load(tmp_path / "c.json", check=False)

    def test_cut_short_or_missing(self, tmp_path):
        (tmp_path / "c.json").write_text('{"matmul": ')
        with pytest.raises(ValueError, match="cut short"):
            Calibration.load(tmp_path / "c.json")
        with pytest.raises(FileNotFoundError):
            Calibration.load(tmp_path / "none.json")

    def test_of_another_machine(self, tmp_path, monkeypatch):
        monkeypatch.setattr(measuring, "canary", lambda c: {"a matrix product": 1.0})
        ideal(machine={"processor": "Pentium", "cores": "1"}).save(tmp_path / "c.json")
        with pytest.warns(CalibrationWarning, match="processor was Pentium"):
            Calibration.load(tmp_path / "c.json")

    def test_that_fits(self, tmp_path, monkeypatch):
        monkeypatch.setattr(measuring, "canary", lambda c: {"a matrix product": 1.2})
        ideal().save(tmp_path / "c.json")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Calibration.load(tmp_path / "c.json").date == "2026-01-01"


SMALL = {
    "ROWS": (16, 256),
    "INNER": (128, 512),
    "COLUMNS": (128, 512),
    "NUMBERS": (1 << 10, 1 << 13, 1 << 16),
    "LENGTHS": (64, 256),
    "WIDTHS": (64,),
}


KDA = costs.Transformer(layers=1, d_model=64, heads=1, mechanism="kda")


@pytest.fixture
def measured(monkeypatch):
    """A calibration of this machine on few sizes."""
    for name, value in SMALL.items():
        monkeypatch.setattr(timings, name, value)
        if hasattr(measuring, name):
            monkeypatch.setattr(measuring, name, value)
    return measuring.calibrate(backends=["numpy"], mechanisms=["retention"])


def test_this_machine_can_be_measured_and_a_wrong_calibration_is_noticed(measured):
    found = predict(M, on=measured, seq=128)
    assert 0 < found.low <= found.seconds <= found.high and set(found.parts) >= {"attention", "ffn"}
    assert measured.machine == measuring.identity()
    wrong = Calibration(**(vars(measured) | {
        "matmul": measured.matmul | {"seconds": (1e6 * np.array(measured.matmul["seconds"])).tolist()},
    }))  # fmt: skip
    assert [line for line in wrong.doubts() if "a matrix product takes" in line]
    slow = Calibration(**(vars(measured) | {
        "curves": {name: [(n, s / 1e6) for n, s in curve] for name, curve in measured.curves.items()},
    }))  # fmt: skip
    assert [line for line in slow.doubts() if "attention on numpy takes" in line]


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda: predict(M, on=ideal(), seq=0), ValueError, "seq is 0"),
    (lambda: predict(M, on=ideal(), seq=8, batch=-1), ValueError, "batch is -1"),
    (lambda: predict(M, on=ideal(), seq=8, phase="fill"), ValueError, "phase is 'fill'"),
    (lambda: predict(M, on=ideal(), seq=8, backend="nunba"), LookupError, "did you mean numba"),
    (lambda: predict(M, on=ideal(), seq=8, dtype="float16"), LookupError, "dtype in this calibration"),
    (lambda: predict(M, on=CHIP, seq=8, dtype="int4"), LookupError, "int4"),
    (lambda: predict(M, on=CHIP, seq=8, algorithm="flush"), ValueError, "algorithm is 'flush'"),
    (lambda: predict(M, on="h100", seq=8), TypeError, "wanted a Hardware"),
    (lambda: predict(KDA, on=ideal(), seq=8), LookupError, "--mechanisms kda"),
    (lambda: measuring.calibrate(backends=["nunba"]), LookupError, "did you mean numba"),
    (lambda: measuring.calibrate(mechanisms=["retenton"]), LookupError, "did you mean retention"),
    (lambda: measuring.calibrate("/no/such/folder/c.json"), FileNotFoundError, "no such folder"),
])  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
