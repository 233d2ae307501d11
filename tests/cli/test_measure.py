import time

import numpy as np
import pytest

import refattn
from refattn.cli import measure, problem
from refattn.masks import causal, from_array, padding, parse


def test_extra_bytes():
    assert 2**20 <= measure.extra_bytes(lambda: (np.ones(2**17), np.ones(2**17) * 2)[1]) < 2**20 + 10_000
    assert measure.extra_bytes(lambda: np.ones(2**17)) < 10_000


@pytest.mark.parametrize("mask", [None, causal(), parse("window(10, 0) | global_tokens([70])"), padding([5, 150])])
def test_the_tiles_counted_are_those_computed(mask):
    q, k = np.ones((2, 4, 100, 2)), np.ones((2, 2, 150, 2))
    areas = []
    refattn.flash_attention(
        q, k, k, mask=mask, on_tile=lambda t: areas.append((t.i.stop - t.i.start) * (t.j.stop - t.j.start))
    )
    given = problem.Problem(q, k, k, "", {} if mask is None else {"mask": mask})
    assert given.tile_pairs(64, 64, together=True) == 8 * sum(areas)
    apart = given.tile_pairs(64, 64, together=False)
    assert given.visible_pairs <= apart <= 8 * sum(areas)


def test_visible_pairs_of_every_lead():
    q = np.ones((2, 4, 3, 2))
    rng = np.random.default_rng(0)
    for lead in [(), (2, 1), (1, 4), (2, 4), (4,)]:
        seen = rng.random((*lead, 3, 3)) < 0.5
        given = problem.Problem(q, q, q, "", {"mask": from_array(seen)})
        assert given.visible_pairs == np.broadcast_to(seen, (2, 4, 3, 3)).sum()


def test_rounds_go_over_all_in_shuffled_order(monkeypatch):
    order = []
    rows = [measure.Row(name, "numpy") for name in "abc"]
    monkeypatch.setattr(measure, "_call", lambda given, row: lambda: order.append(row.variant))
    assert measure.time_rounds(None, rows, 0, 0, lambda text, share: None) == 5
    rounds = ["".join(order[n : n + 3]) for n in range(0, 15, 3)]
    assert all(sorted(one) == list("abc") for one in rounds) and len(set(rounds)) > 1
    assert all(len(row.seconds) == 5 for row in rows)


def test_rounds_end_with_the_time(monkeypatch):
    row = measure.Row("a", "numpy")
    monkeypatch.setattr(measure, "_call", lambda given, row: lambda: time.sleep(0.01))
    rounds = measure.time_rounds(None, [row], 0.2, 0, lambda text, share: None)
    assert 5 < rounds <= 20


def test_a_long_round_is_enough(monkeypatch):
    row = measure.Row("a", "numpy")
    monkeypatch.setattr(measure, "_call", lambda given, row: lambda: time.sleep(0.01))
    monkeypatch.setattr(measure, "LONG_ROUND", 0.001)
    assert measure.time_rounds(None, [row], 0, 0, lambda text, share: None) == 1


def test_rounds_have_an_end(monkeypatch):
    row = measure.Row("a", "numpy")
    monkeypatch.setattr(measure, "_call", lambda given, row: lambda: None)
    assert measure.time_rounds(None, [row], 1e9, 0, lambda text, share: None) == measure.MOST_ROUNDS


def test_progress_goes_forward(backends):
    given = problem.Problem(*(np.ones((1, 70, 2)) for _ in range(3)), "", {})
    seen = []
    rows = measure.candidates(list(measure.VARIANTS), ["numpy"])
    measure.compare(given, rows, 0, 0, lambda text, share: seen.append((share, text)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert any("attention on numpy" in text for _, text in seen)
