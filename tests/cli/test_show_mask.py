import re
from pathlib import Path

import numpy as np
import pytest

from refattn.cli import main
from refattn.masks import parse


def shown(capsys, *words):
    assert main(["show-mask", *words]) == 0
    return capsys.readouterr().out


def test_a_small_mask(capsys):
    assert shown(capsys, "causal() & window(1, 0)", "--t", "4") == (
        "█···\n██··\n·██·\n··██\n\n"
        "causal() & window(1, 0)\n"
        "pairs    7 of 16 visible: density 43.8 %\n"
        "tiles    of 64 × 64: 0 empty, 1 partial, 0 full\n"
    )


def test_tiles_by_kind(capsys):
    out = shown(capsys, "causal()", "--t", "128", "--block", "32")
    assert "tiles    of 32 × 32: 6 empty, 4 partial, 6 full" in out
    assert "pairs    8,256 of 16,384 visible: density 50.4 %" in out


def test_more_keys_than_queries(capsys):
    out = shown(capsys, "causal()", "--tq", "2", "--tk", "4")
    assert out.splitlines()[:2] == ["███·", "████"]
    assert "7 of 8" in out


@pytest.mark.parametrize("width", [10, 16, 100])
def test_a_long_mask_is_drawn_small(capsys, width):
    out = shown(capsys, "causal() & (window(300, 0) | global_tokens([0]))", "--t", "1000", "--width", str(width))
    picture = out.split("\n\n")[0].splitlines()
    assert max(len(line) for line in picture) <= width and len(picture) <= width
    step = -(-1000 // width)
    assert f"picture  {step} × {step} pairs a character" in out
    dense = parse("causal() & (window(300, 0) | global_tokens([0]))").dense(1000, 1000)
    assert f"pairs    {dense.sum():,} of 1,000,000" in out


def test_one_pattern_per_sequence(capsys):
    out = shown(capsys, "padding([1, 2])", "--t", "2")
    assert out.startswith("█·\n█·\n\n██\n██\n")
    assert "pairs    6 of 8" in out
    assert "2 partial" not in out and "1 partial, 1 full" in out


def test_long_sequences_take_no_matrix(capsys):
    out = shown(capsys, "causal() & window(255, 0)", "--t", "65536", "--width", "32")
    assert f"pairs    {65536 * 256 - 256 * 255 // 2:,} of {65536**2:,}" in out


def test_a_picture_in_a_file(capsys, tmp_path):
    file = tmp_path / "mask.svg"
    out = shown(capsys, "bigbird(4)", "--t", "20", "--svg", str(file))
    assert file.read_text(encoding="utf-8") == parse("bigbird(4)").svg(20, 20)
    assert "bigbird(4, 3, [0, -1], 3, 0)\npairs    " in out


def test_a_picture_on_standard_output_stands_alone(capsys):
    assert shown(capsys, "chunked(4)", "--t", "9", "--svg", "-") == parse("chunked(4)").svg(9, 9)


def test_a_file_that_cannot_be_written_is_refused_first(capsys, tmp_path):
    assert main(["show-mask", "causal()", "--svg", str(tmp_path / "none" / "mask.svg")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "--svg cannot be written, there is no such folder" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["casual()"], "no pattern 'casual'; there are"),
        (["causal("], "not an expression of masks"),
        (["causal() & fixed(2, 3)"], "column 12: fixed: summary is 3; wanted at most the 2 keys of a block"),
        (["window(-1, 0)"], "left is -1; wanted at least 0"),
        (["causal", "--t", "4"], "causal needs its brackets"),
        (["document([0, 1])", "--t", "4"], "ids has 2 entries, but there are 4 keys"),
        (["causal()", "--t", "0"], "queries is 0; wanted at least 1"),
        (["causal()", "--tk", "-3"], "keys is -3; wanted at least 1"),
        (["causal()", "--block", "0"], "--block is 0; wanted at least 1"),
        (["causal()", "--width", "0"], "--width is 0; wanted at least 1"),
        (["causal()", "--t", "1000000000"], "wanted at most 131072 of each"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["show-mask", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("refattn: error: ") and message in captured.err
    assert captured.err.count("\n") == 1


def test_the_picture_agrees_with_the_mask(capsys):
    picture = shown(capsys, "~causal()", "--t", "5").split("\n\n")[0].splitlines()
    drawn = np.array([[character == "█" for character in line] for line in picture])
    np.testing.assert_array_equal(drawn, ~np.tril(np.ones((5, 5), bool)))


def test_the_example_in_the_documentation(capsys):
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    mask, options, expected = re.search(r'\$ refattn show-mask "(.+)" (.+)\n((?:.|\n)+?)```', page).groups()
    assert shown(capsys, mask, *options.split()) == expected
