"""Mixture of block attention: which chunks are looked at, and that the rest is attention under their mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from tests.mistakes.selected import failures_of_what_is_right

CAUSAL = masks.causal()


def draw(seed, batch=(), H=4, Hk=2, Tq=17, Tk=17, D=3, Dv=2):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in ((*batch, H, Tq, D), (*batch, Hk, Tk, D), (*batch, Hk, Tk, Dv))]


def mask_of(indices, Tq, Tk, chunk):
    return refattn.selected_keys(indices, Tk, size=chunk) & CAUSAL.dense(Tq, Tk)


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([(), (2,), (1, 2)]),
    Hk=st.integers(1, 2),
    Tq=st.integers(0, 12),
    Tk=st.integers(0, 12),
    chunk=st.integers(1, 6),
    top_k=st.integers(1, 5),
)
def test_it_is_attention_under_the_mask_of_what_was_chosen(seed, batch, Hk, Tq, Tk, chunk, top_k):
    q, k, v = draw(seed, batch, 2 * Hk, Hk, Tq, Tk)
    o, lse, indices = refattn.moba_attention(q, k, v, chunk=chunk, top_k=top_k)
    close((o, lse), refattn.attention(q, k, v, mask=mask_of(indices, Tq, Tk, chunk), return_lse=True))
    k = np.repeat(k, 2, axis=-3)
    for row in np.ndindex(q.shape[:-1]):
        t = row[-1] + Tk - Tq
        past = [k[row[:-1]][c * chunk : (c + 1) * chunk].mean(axis=0) for c in range(max(0, t // chunk))]
        gates = [q[row] @ mean for mean in past]
        best = sorted(range(len(past)), key=lambda c, gates=gates: -gates[c])[: top_k - 1]
        want = sorted([*best, t // chunk] if t >= 0 else [])
        assert indices[row].tolist() == want + [-1] * (top_k - len(want))


def test_by_hand():
    k = np.array([[0.0], [2.0], [5.0], [5.0], [1.0], [0.0]])
    o, lse, indices = refattn.moba_attention(np.array([[0.1]]), k, k, chunk=2, top_k=2)
    np.testing.assert_array_equal(indices, [[1, 2]])  # 5 is the larger mean; chunk 2 is the query's own
    weights = np.exp([0.5, 0.5, 0.1, 0.0])
    np.testing.assert_allclose(o, [[weights @ [5, 5, 1, 0] / weights.sum()]])
    np.testing.assert_allclose(lse, [np.log(weights.sum())])


def test_every_chunk_is_causal_attention():
    q, k, v = draw(0, Tq=9)
    o, lse, _ = refattn.moba_attention(q, k, v, chunk=5, top_k=4)
    close((o, lse), refattn.attention(q, k, v, mask=CAUSAL, return_lse=True))


def test_one_chunk_each_is_local_attention():
    q, k, v = draw(1)
    o, lse, _ = refattn.moba_attention(q, k, v, chunk=5, top_k=1)
    same = np.arange(17)[:, None] // 5 == np.arange(17) // 5
    close((o, lse), refattn.attention(q, k, v, mask=same & CAUSAL.dense(17, 17), return_lse=True))


def test_equal_gates_go_to_the_earliest_chunk():
    q, k, v = draw(2, H=1, Hk=1)
    indices = refattn.moba_attention(q, np.ones_like(k), v, chunk=2, top_k=3).indices
    np.testing.assert_array_equal(indices[0, -1], [0, 1, 8])


def test_the_scale_does_not_choose():
    q, k, v = draw(3)
    want = refattn.moba_attention(q, k, v, chunk=3, top_k=3).indices
    for scale in (0.0, -1.0, 7.0):
        np.testing.assert_array_equal(refattn.moba_attention(q, k, v, chunk=3, top_k=3, scale=scale).indices, want)


def test_token_by_token_is_one_pass():
    q, k, v = draw(4)
    want = refattn.moba_attention(q, k, v, chunk=4, top_k=2)
    for t in range(17):
        one = slice(t, t + 1)
        o, lse, indices = refattn.moba_attention(q[:, one], k[:, : t + 1], v[:, : t + 1], chunk=4, top_k=2)
        close((o, lse), (want.o[:, one], want.lse[:, one]))
        np.testing.assert_array_equal(indices, want.indices[:, one])


@pytest.mark.parametrize("poison", [1e4, np.nan, np.inf])
def test_the_future_changes_no_bit(poison):
    q, k, v = draw(5)
    want = refattn.moba_attention(q, k, v, chunk=4, top_k=3)
    k[:, 10], v[:, 10] = poison, poison
    got = refattn.moba_attention(q, k, v, chunk=4, top_k=3)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x[:, :10], y[:, :10])
    assert (got.o[:, 10:] != want.o[:, 10:]).any()


def test_a_nan_in_the_past_is_chosen():
    q, k, v = draw(6)
    k[:, 5] = np.nan
    o, _, indices = refattn.moba_attention(q, k, v, chunk=4, top_k=2)
    assert np.isnan(o[:, 5:]).all() and not np.isnan(o[:, :5]).any()
    np.testing.assert_array_equal(indices[:, 8:12], np.broadcast_to([1, 2], (4, 4, 2)))
    own = refattn.moba_attention(q, k, v, chunk=4, top_k=1)
    np.testing.assert_array_equal(
        own.indices[0, :, 0], np.arange(17) // 4
    )  # even a NaN does not displace the own chunk


def test_indices_are_used_again():
    q, k, v = draw(7)
    first = refattn.moba_attention(q, k, v, chunk=4, top_k=3)
    again = refattn.moba_attention(q, k, v, chunk=4, top_k=3, indices=first.indices)
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)


def test_given_indices_neither_force_nor_show_the_future():
    q, k, v = draw(8)
    o, lse, used = refattn.moba_attention(q, k, v, chunk=4, top_k=2, indices=np.broadcast_to([3, 1], (4, 17, 2)))
    assert [used[0, i].tolist() for i in (3, 4, 12)] == [[-1, -1], [1, -1], [1, 3]]
    assert (o[:, :4] == 0).all() and (lse[:, :4] == -np.inf).all()
    close((o, lse), refattn.attention(q, k, v, mask=mask_of(used, 17, 17, 4), return_lse=True))


def test_gradients_are_those_of_attention_under_the_mask():
    q, k, v = inputs = draw(9)
    rng = np.random.default_rng(10)
    do, dlse = rng.normal(size=(4, 17, 2)), rng.normal(size=(4, 17))
    sizes = {"chunk": 4, "top_k": 2}
    indices = refattn.moba_attention(q, k, v, **sizes).indices
    gradients = refattn.attention_vjp(do, q, k, v, mask=mask_of(indices, 17, 17, 4), dlse=dlse)
    for n, dx in enumerate(gradients[:3]):
        step = 1e-6 * rng.normal(size=dx.shape)
        ahead, behind = (
            refattn.moba_attention(*(x + d if m == n else x for m, x in enumerate(inputs)), **sizes)
            for d in (step, -step)
        )
        np.testing.assert_array_equal(ahead.indices, behind.indices)
        moved = (do * (ahead.o - behind.o)).sum() + (dlse * (ahead.lse - behind.lse)).sum()
        np.testing.assert_allclose(moved, 2 * (dx * step).sum(), rtol=1e-6)


def test_the_mistakes_are_made_from_what_is_right():
    assert failures_of_what_is_right("moba_attention") == []
