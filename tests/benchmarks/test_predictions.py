"""Predictions held against measurements, on few cells: what it makes of them, not how fast they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import predictions
from tests.costs.ideal import ideal

CELLS = [
    predictions.Cell(phase, 64, 2, 24, mechanism, backend)
    for phase, mechanism in (
        ("prefill", "softmax"),
        ("prefill", "retention"),
        ("decode", "softmax"),
        ("train", "softmax"),
    )
    for backend in ("numpy", "numba")
]


@pytest.fixture(scope="module")
def records():
    return predictions.held_out(ideal(), CELLS, predictions.measure(CELLS, 0.0))


def test_every_cell_is_measured_and_predicted(records):
    assert [tuple(r[name] for name in predictions.Cell._fields) for r in records] == CELLS
    for r in records:
        assert 0 < r["low"] <= r["predicted"] <= r["high"] and r["measured"] > 0
        assert r["error"] == pytest.approx(r["predicted"] / r["measured"] - 1)
        assert r["covered"] == (r["low"] <= r["measured"] <= r["high"])


def test_the_summary_is_that_of_the_cells(records):
    rows = {row[0]: row[1:] for row in predictions.summary(records)}
    assert rows["all"][0] == len(CELLS) and rows["prefill, numpy"][0] == 2
    assert rows["all"][1] == pytest.approx(np.median([abs(r["error"]) for r in records]))


def test_regret_is_that_of_the_way_predicted_quickest():
    def way(measured, predicted):
        return {
            "phase": "prefill",
            "width": 1,
            "tokens": 1,
            "mechanism": "x",
            "measured": measured,
            "predicted": predicted,
        }

    assert predictions.regrets([way(2.0, 1.0), way(1.0, 3.0)]) == [2.0]
    assert predictions.regrets([way(2.0, 3.0), way(1.0, 1.0)]) == [1.0]


def test_the_page_says_all_of_it(records):
    text = predictions.page(records, predictions.planted(ideal()), ideal(), "a machine")
    for words in ("| all | 8 |", "Wrong calibrations", "of another processor", "The worst cells", "a machine"):
        assert words in text


@pytest.mark.slow
def test_a_small_version_runs_from_calibration_to_page(tmp_path):
    command = [sys.executable, predictions.__file__, "--small", "--seconds", "0.05", "--out", str(tmp_path / "p")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, timeout=600)
    text = (tmp_path / "p.md").read_text()
    assert "| all | 20 |" in text and (tmp_path / "p.json").stat().st_size > 1000
