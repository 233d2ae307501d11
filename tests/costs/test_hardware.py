"""Processors by name: complete rows, rates that can be, and a page that says the same."""

import math
from pathlib import Path

import pytest

from refattn.costs.hardware import HARDWARE, hardware

PAGE = Path(__file__).parents[2] / "docs" / "costs" / "models_and_hardware.md"
WIDTHS = {"float8": 8, "bfloat16": 16, "float16": 16, "tfloat32": 19, "float32": 32}


def sixteen(h):
    return h.peak.get("bfloat16") or h.peak["float16"]


def row(h):
    """Return a processor's row of the page."""
    rates = [h.peak.get(dtype) for dtype in ("float8", "bfloat16", "float32")]
    cells = [f"`{h.name}`", *("—" if rate is None else f"{rate / 1e12:,.0f}" for rate in rates)]
    cells[2] = f"{sixteen(h) / 1e12:,.0f}"
    cells += [f"{h.bandwidth / 1e12:.2f}", f"{h.memory / 1e9:.0f}", f"{sixteen(h) / h.bandwidth:.0f}"]
    cells += ["—" if math.isinf(h.exp_rate) else f"{h.exp_rate / 1e12:.1f}", f"{h.source}, {h.date}"]
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("h", HARDWARE.values(), ids=lambda h: h.name)
class TestRows:
    def test_is_complete(self, h):
        assert HARDWARE[h.name] is h
        assert h.kind in ("gpu", "tpu")
        assert len(h.source) > 10
        assert h.date[:4].isdigit() and 2017 <= int(h.date[:4]) <= 2026
        assert h.note

    def test_can_be(self, h):
        assert set(h.peak) <= set(WIDTHS)
        assert 8e9 <= h.memory <= 300e9 and isinstance(h.memory, int)
        assert 1e11 <= h.bandwidth <= 1e13
        assert 50 <= sixteen(h) / h.bandwidth <= 500  # FLOPs a byte
        assert 1e-3 <= h.memory / h.bandwidth <= 0.1  # seconds to read all of it
        assert math.isinf(h.exp_rate) or 30 <= sixteen(h) / h.exp_rate <= 600

    def test_fewer_bits_are_no_slower(self, h):
        rates = [h.peak[dtype] for dtype in WIDTHS if dtype in h.peak]
        assert rates == sorted(rates, reverse=True)

    def test_is_dense(self, h):
        """With sparsity it would be twice that: more FLOPs a clock than the tensor cores of any part listed have."""
        if h.source.startswith("NVIDIA"):
            clocks = h.exp_rate / 16  # of all multiprocessors
            assert 500 <= sixteen(h) / clocks <= 8_300

    def test_says_which_rates_there_are(self, h):
        assert h.rate(next(iter(h.peak))) > 0
        with pytest.raises(LookupError, match=f"{h.name} has no rate for 'int3'; there are: "):
            h.rate("int3")


def test_published_special_functions():
    """Shah et al., 2024, arXiv:2407.08608: 3.9 T/s beside 989 T/s, so 256 times fewer."""
    h = hardware("h100-sxm")
    assert f"{h.exp_rate / 1e12:.1f}" == "3.9"
    assert h.rate("float16") / h.exp_rate == pytest.approx(256, rel=0.01)


def test_the_second_hopper_has_only_more_memory():
    first, second = hardware("h100-sxm"), hardware("h200")
    assert first.peak == second.peak and first.exp_rate == second.exp_rate
    assert second.bandwidth / first.bandwidth == pytest.approx(1.43, abs=0.01)


@pytest.mark.parametrize(("name", "nearest"), [("h20", "h200"), ("a100", "a100-80gb"), ("L40", "l40s")])
def test_a_misspelt_name_gets_the_nearest(name, nearest):
    with pytest.raises(LookupError, match=f"no hardware '{name}'; did you mean .*{nearest}"):
        hardware(name)


def test_the_page_has_every_row_as_it_is():
    lines = PAGE.read_text(encoding="utf-8").split("## Hardware")[1].splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [row(h) for h in HARDWARE.values()], "\n" + "\n".join(map(row, HARDWARE.values()))
