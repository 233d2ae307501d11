from xml.etree import ElementTree

import numpy as np
import pytest

from refattn import masks


def test_a_small_picture_shows_every_pair():
    assert masks.causal().picture(3, 4) == "██··\n███·\n████"
    assert masks.window(0, 0).picture(2, 2) == "█·\n·█"


def test_a_picture_follows_the_dense_pattern():
    mask = masks.from_array(np.random.default_rng(0).random((9, 13)) < 0.5)
    drawn = [[character == "█" for character in line] for line in mask.picture(9, 13).splitlines()]
    np.testing.assert_array_equal(drawn, mask.dense(9, 13))


def test_a_large_picture_has_shades():
    picture = masks.causal().picture(128, 128, width=32)
    rows = picture.splitlines()
    assert len(rows) == 32
    assert {len(row) for row in rows} == {32}
    assert rows[0] == "▒" + 31 * "·"  # of 4 x 4 pairs, 10 are visible
    assert rows[-1] == 31 * "█" + "▒"


def test_one_visible_pair_in_many_shows():
    visible = np.zeros((100, 100), bool)
    visible[57, 3] = True
    drawn = masks.from_array(visible).picture(100, 100, width=10)
    assert drawn.count("░") == 1
    assert drawn.count("·") == 99


def test_one_hidden_pair_in_many_shows():
    visible = np.ones((100, 100), bool)
    visible[57, 3] = False
    assert masks.from_array(visible).picture(100, 100, width=10).count("▓") == 1


@pytest.mark.parametrize(("Tq", "Tk", "width"), [(65, 65, 64), (1, 200, 64), (200, 1, 64), (7, 1000, 1), (63, 64, 64)])
def test_a_picture_keeps_to_its_width(Tq, Tk, width):
    rows = masks.causal().picture(Tq, Tk, width).splitlines()
    assert 1 <= len(rows) <= width
    assert {len(row) for row in rows} <= set(range(1, width + 1))


def test_sequences_follow_each_other():
    assert masks.padding([1, 2]).picture(2, 2) == "█·\n█·\n\n██\n██"


def test_nothing_to_draw():
    assert masks.causal().picture(0, 0).strip() == ""


def squares(svg):
    """The squares of each shade that an SVG document draws, by class."""
    root = ElementTree.fromstring(svg)
    found = [element for element in root.iter(f"{SVG}rect") if element.get("class") == "seen"]
    return root, [(float(e.get("x")), float(e.get("y")), float(e.get("width")), e.get("opacity")) for e in found]


SVG = "{http://www.w3.org/2000/svg}"


def test_an_svg_has_a_rectangle_for_each_run_of_keys():
    root, found = squares(masks.window(1, 0).svg(3, 4, size=244))  # 34 + 10 pixels beside 4 squares of 50
    assert [(x, width) for x, _, width, _ in found] == [(34, 100), (84, 100), (134, 100)]
    assert len({y for _, y, _, _ in found}) == 3
    assert {opacity for *_, opacity in found} == {None}
    assert root.get("width") == "244"
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert words[0] == "window(1, 0)"
    assert {"keys →", "queries →", "3 × 4"} <= set(words)
    assert root.find(f"{SVG}title").text == "window(1, 0), 3 queries, 4 keys"


def test_an_svg_of_many_pairs_has_shades():
    visible = np.zeros((128, 128), bool)
    visible[0, 0] = visible[64:, :64] = True
    root, found = squares(masks.from_array(visible).svg(128, 128))
    assert [opacity for *_, opacity in found] == ["0.4", *[None] * 32]  # 1 of 4 pairs, and 32 rows of squares
    assert "a square is 2 × 2 pairs" in {element.text for element in root.iter(f"{SVG}text")}


def test_an_svg_of_several_patterns_has_a_panel_for_each():
    root, found = squares(masks.padding([1, 2, 3, 4, 5]).svg(1, 5, size=400))
    assert len(found) == 5
    assert [y for _, y, _, _ in found[:4]] == [found[0][1]] * 4 and found[4][1] > found[0][1]
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert words[-5:] == ["[0, 0]", "[1, 0]", "[2, 0]", "[3, 0]", "[4, 0]"]


def test_an_svg_escapes_what_it_quotes():
    named = masks.from_function(lambda i, j: i < j)  # its repr has <lambda>
    root, _ = squares(named.svg(3, 3))
    assert "<lambda>" in root.find(f"{SVG}title").text


@pytest.mark.parametrize(("Tq", "Tk"), [(0, 0), (0, 5), (5, 0), (1, 1), (1, 500), (500, 1)])
def test_an_svg_of_every_size(Tq, Tk):
    root, found = squares(masks.window(None, None).svg(Tq, Tk))
    assert (len(found) > 0) == (Tq * Tk > 0)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(x + w <= width + 0.1 and y <= height for x, y, w, _ in found)


def test_density():
    np.testing.assert_array_equal(masks.causal().density(4, 6, 2, 4), [[1 - 1 / 8, 0], [1, 0.75]])
    assert masks.padding([1, 2]).density(3, 2, 2, 2).tolist() == [[[[0.5], [0.5]]], [[[1.0], [1.0]]]]
    assert masks.causal().density(0, 4, 2, 2).shape == (0, 2)
    half = masks.from_function(lambda i, j: (i + j) % 2 == 0)
    np.testing.assert_array_equal(half.density(5, 5, 2, 2)[:2, :2], 0.5)
