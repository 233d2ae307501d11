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
