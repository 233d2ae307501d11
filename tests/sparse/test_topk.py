"""Attention to the best keys: which ones they are, and that the rest is attention under their mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from tests.mistakes.selected import failures_of_what_is_right

CAUSAL = masks.causal()


def draw(seed, batch=(2,), H=4, Hk=2, Tq=9, Tk=13, D=5, Dv=3, whole=False):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=shape) for shape in ((*batch, H, Tq, D), (*batch, Hk, Tk, D), (*batch, Hk, Tk, Dv)))
    return (np.round(q), np.round(k), v) if whole else (q, k, v)


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "batch": st.sampled_from([(), (2,), (2, 1)]),
        "Hk": st.integers(1, 2),
        "Tq": st.integers(0, 7),
        "Tk": st.integers(0, 9),
        "D": st.integers(1, 4),
        "whole": st.booleans(),
    }
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(problems, st.integers(1, 10), st.sampled_from([None, CAUSAL, masks.window(2, 1), ~masks.window(1, 1)]))
def test_it_is_attention_under_the_mask_of_what_was_chosen(problem, n_keys, mask):
    q, k, v = draw(**problem, H=2 * problem["Hk"])
    sinks = np.linspace(-1, 1, q.shape[-3])
    o, lse, indices = refattn.topk_attention(q, k, v, n_keys=n_keys, mask=mask, sinks=sinks, softcap=3.0)
    seen = refattn.selected_keys(indices, k.shape[-2])
    close((o, lse), refattn.attention(q, k, v, mask=seen, sinks=sinks, softcap=3.0, return_lse=True))
    visible = np.broadcast_to(True if mask is None else mask.dense(*seen.shape[-2:]), seen.shape)
    assert not (seen & ~visible).any()
    np.testing.assert_array_equal(seen.sum(axis=-1), np.minimum(visible.sum(axis=-1), n_keys))
    s = q @ np.repeat(k, 2, axis=-3).swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if seen.size:
        worst_chosen = np.where(seen, s, np.inf).min(axis=-1)
        best_left = np.where(visible & ~seen, s, -np.inf).max(axis=-1)
        assert (worst_chosen >= best_left).all()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(problems, st.integers(1, 10))
def test_equal_scores_go_to_the_lowest_index(problem, n_keys):
    q, k, v = draw(**problem | {"whole": True}, H=problem["Hk"])
    _, _, indices = refattn.topk_attention(q, k, v, n_keys=n_keys)
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    for row in np.ndindex(s.shape[:-1]):
        want = sorted(sorted(range(len(s[row])), key=lambda j, row=row: (-s[row][j], j))[:n_keys])
        assert indices[row].tolist() == want + [-1] * (n_keys - len(want))


def test_by_hand():
    q, k = np.array([[1.0], [-1.0]]), np.array([[2.0], [3.0], [1.0]])
    v = np.array([[10.0], [20.0], [30.0]])
    o, lse, indices = refattn.topk_attention(q, k, v, n_keys=1)
    np.testing.assert_array_equal(o, [[20.0], [30.0]])
    np.testing.assert_array_equal(lse, [3.0, -1.0])
    np.testing.assert_array_equal(indices, [[1], [2]])


def test_all_keys_is_attention():
    q, k, v = draw(0)
    o, lse, indices = refattn.topk_attention(q, k, v, n_keys=20, mask=CAUSAL)
    close((o, lse), refattn.attention(q, k, v, mask=CAUSAL, return_lse=True))
    assert indices[0, 0, 0].tolist() == [*range(5), *[-1] * 15]


def test_indices_are_used_again():
    q, k, v = draw(1)
    first = refattn.topk_attention(q, k, v, n_keys=4, mask=CAUSAL)
    again = refattn.topk_attention(q, k, v, n_keys=4, mask=CAUSAL, indices=first.indices)
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    backwards = refattn.topk_attention(q, k, v, n_keys=4, indices=first.indices[..., ::-1].astype(np.int32))
    np.testing.assert_array_equal(backwards.indices, first.indices)
    moved = refattn.topk_attention(q + 1, k, v, n_keys=4, indices=first.indices)
    close(moved[:2], refattn.attention(q + 1, k, v, mask=refattn.selected_keys(first.indices, 13), return_lse=True))


def test_given_indices_stay_under_the_mask():
    q, k, v = draw(2, Tq=13)
    indices = np.broadcast_to([0, 6, -1, 3], (2, 4, 13, 4))
    o, lse, used = refattn.topk_attention(q, k, v, n_keys=4, mask=CAUSAL, indices=indices)
    assert [used[0, 0, i].tolist() for i in (0, 4, 12)] == [[0, -1, -1, -1], [0, 3, -1, -1], [0, 3, 6, -1]]
    mask = refattn.selected_keys(indices, 13) & CAUSAL.dense(13, 13)
    close((o, lse), refattn.attention(q, k, v, mask=mask, return_lse=True))


def test_the_softcap_does_not_choose():
    q, k = np.array([[1.0]]), np.array([[100.0], [200.0], [300.0]])
    assert refattn.topk_attention(q, k, k, n_keys=1, softcap=0.01).indices.item() == 2  # capped, all three are 0.01


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_hidden_changes_no_bit(poison):
    q, k, v = draw(3)
    mask = masks.padding([9, 13]) & CAUSAL
    want = refattn.topk_attention(q, k, v, n_keys=4, mask=mask)
    k[0, :, 9:], v[0, :, 9:] = poison, poison
    for x, y in zip(refattn.topk_attention(q, k, v, n_keys=4, mask=mask), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_values_that_are_not_chosen_change_no_bit():
    q, k, v = draw(4, batch=(), H=1, Hk=1)
    want = refattn.topk_attention(q, k, v, n_keys=3)
    left = ~refattn.selected_keys(want.indices, 13).any(axis=(0, 1))
    assert left.any()
    v[0, left] = np.nan
    for x, y in zip(refattn.topk_attention(q, k, v, n_keys=3), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_nan_that_is_seen_is_chosen():
    q, k, v = draw(5, Tq=13)
    want = refattn.topk_attention(q, k, v, n_keys=2, mask=CAUSAL)
    k[:, :, 7] = np.nan
    o, _, indices = refattn.topk_attention(q, k, v, n_keys=2, mask=CAUSAL)
    np.testing.assert_array_equal(o[..., :7, :], want.o[..., :7, :])
    assert np.isnan(o[..., 7:, :]).all() and (indices[..., 7:, :] == 7).any(axis=-1).all()


def test_minus_infinity_is_better_than_nothing():
    k = np.array([[-np.inf], [-np.inf], [1.0]])
    indices = refattn.topk_attention(
        np.ones((1, 1)), k, np.ones((3, 1)), n_keys=2, mask=np.array([[False, True, True]])
    ).indices
    np.testing.assert_array_equal(indices, [[1, 2]])


def test_gradients_are_those_of_attention_under_the_mask():
    q, k, v = inputs = draw(6)
    rng = np.random.default_rng(7)
    do, dlse = rng.normal(size=(2, 4, 9, 3)), rng.normal(size=(2, 4, 9))
    indices = refattn.topk_attention(q, k, v, n_keys=4, mask=CAUSAL).indices
    gradients = refattn.attention_vjp(do, q, k, v, mask=refattn.selected_keys(indices, 13), dlse=dlse)
    for n, dx in enumerate(gradients[:3]):
        step = 1e-6 * rng.normal(size=dx.shape)
        ahead, behind = (
            refattn.topk_attention(*(x + d if m == n else x for m, x in enumerate(inputs)), n_keys=4, mask=CAUSAL)
            for d in (step, -step)
        )
        np.testing.assert_array_equal(ahead.indices, behind.indices)
        moved = (do * (ahead.o - behind.o)).sum() + (dlse * (ahead.lse - behind.lse)).sum()
        np.testing.assert_allclose(moved, 2 * (dx * step).sum(), rtol=1e-6)


def test_sixteen_bits_are_rounded_once():
    q, k, v = (x.astype(np.float16) for x in draw(8))
    o, lse, indices = refattn.topk_attention(q, k, v, n_keys=3)
    want = refattn.topk_attention(*(x.astype(np.float32) for x in (q, k, v)), n_keys=3)
    assert o.dtype == np.float16 and lse.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_array_equal(o, want.o.astype(np.float16))
    np.testing.assert_array_equal(indices, want.indices)


def test_the_mistakes_are_made_from_what_is_right():
    assert failures_of_what_is_right("topk_attention") == []
