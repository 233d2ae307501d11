"""Attention within buckets: which tokens see which, and that the rest is attention under that mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from tests.mistakes.selected import failures_of_what_is_right


def draw(seed, batch=(2,), H=2, T=21, D=4, Dv=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*batch, H, T, D)), rng.normal(size=(*batch, H, T, Dv))


def mask_of(buckets, chunk, causal):
    """Return who sees whom, by sorting Python lists: the definition, one pair at a time."""
    *lead, rounds, T = buckets.shape
    seen = np.zeros((*lead, T, T), bool)
    for row in np.ndindex(*lead):
        for r in range(rounds):
            order = sorted(range(T), key=lambda t, where=(*row, r): (buckets[where][t], t))
            for a, i in enumerate(order):
                for b, j in enumerate(order):
                    near = a // chunk - b // chunk in (0, 1) and buckets[(*row, r, i)] == buckets[(*row, r, j)]
                    seen[(*row, i, j)] |= near and i != j and (j < i or not causal)
    return seen | (np.eye(T, dtype=bool) & ~seen.any(axis=-1, keepdims=True))


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([(), (2,)]),
    T=st.integers(0, 13),
    D=st.integers(1, 4),
    rounds=st.integers(1, 4),
    half=st.integers(1, 3),
    chunk=st.integers(1, 8),
    causal=st.booleans(),
)
def test_it_is_attention_under_the_mask_of_the_buckets(seed, batch, T, D, rounds, half, chunk, causal):
    qk, v = draw(seed, batch, T=T, D=D)
    rotations = refattn.draw_rotations(rounds, D, 2 * half, seed=seed, dtype=np.float64)
    o, lse, buckets = refattn.lsh_attention(qk, v, rotations=rotations, chunk=chunk, causal=causal)
    mask = mask_of(buckets, chunk, causal)
    close((o, lse), refattn.attention(qk, normalised(qk), v, mask=mask, return_lse=True))


def test_buckets_are_the_signed_axis_that_is_nearest():
    qk = np.array([[3.0, 1.0], [-3.0, 1.0], [1.0, 2.0], [1.0, -2.0], [1.0, 1.0], [0.0, 0.0]])
    buckets = refattn.lsh_attention(qk, qk, rotations=np.eye(2)[None], chunk=2).buckets
    assert buckets.tolist() == [[0, 2, 1, 3, 0, 0]]  # +x, -x, +y, -y; equal ones go to the first


def test_chunks_look_at_themselves_and_one_back():
    v = np.eye(6)
    buckets = np.zeros((1, 6), int)
    options = {"buckets": buckets, "chunk": 2, "scale": 0.0}
    seen = refattn.lsh_attention(np.ones((6, 1)), v, causal=False, **options).o > 0
    assert seen.astype(int).tolist() == [
        [0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 1, 0],
    ]
    causal = refattn.lsh_attention(np.ones((6, 1)), v, **options).o > 0
    want = seen & np.tri(6, dtype=bool)
    want[0, 0] = True  # the first token has only itself
    np.testing.assert_array_equal(causal, want)


def test_a_token_sees_itself_only_where_there_is_nothing_else_in_any_round():
    v = np.array([[1.0], [2.0], [4.0]])
    one = refattn.lsh_attention(np.ones((3, 1)), v, buckets=np.array([[0, 1, 1]]), chunk=3)
    np.testing.assert_allclose(one.o, [[1.0], [2.0], [2.0]])
    two = refattn.lsh_attention(np.ones((3, 1)), v, buckets=np.array([[0, 1, 1], [0, 0, 1]]), chunk=3)
    np.testing.assert_allclose(two.o, [[1.0], [1.0], [2.0]])  # token 1 sees 0 in round 1, so not itself in round 0


def test_a_pair_that_meets_in_several_rounds_counts_once():
    qk, v = draw(0)
    buckets = np.random.default_rng(1).integers(0, 2, (2, 2, 1, 21))
    once = refattn.lsh_attention(qk, v, buckets=buckets, chunk=5)
    again = refattn.lsh_attention(qk, v, buckets=np.repeat(buckets, 3, axis=-2), chunk=5)
    close(again[:2], once[:2])


def test_one_bucket_and_one_chunk_is_attention_to_all_the_others():
    qk, v = draw(2)
    o, lse, _ = refattn.lsh_attention(qk, v, buckets=np.zeros((2, 2, 1, 21), int), chunk=21, causal=False)
    others = ~np.eye(21, dtype=bool)
    close((o, lse), refattn.attention(qk, normalised(qk), v, mask=others, return_lse=True))


def test_buckets_are_used_again():
    qk, v = draw(3)
    first = refattn.lsh_attention(qk, v, rotations=refattn.draw_rotations(2, 4, 4, dtype=np.float64), chunk=4)
    again = refattn.lsh_attention(qk, v, buckets=first.buckets, chunk=4)
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)


def test_more_rounds_see_more():
    qk, v = draw(4, T=40)
    seen = []
    for rounds in (1, 2, 4):
        rotations = refattn.draw_rotations(rounds, 4, 8, dtype=np.float64)
        seen.append(mask_of(refattn.lsh_attention(qk, v, rotations=rotations, chunk=5).buckets, 5, True).sum())
    assert seen[0] < seen[1] < seen[2]


def test_the_future_is_not_seen_but_moves_the_chunks():
    qk, v = draw(5, batch=(), H=1, T=12)
    buckets = np.zeros((1, 1, 12), int)
    buckets[..., 6:] = 1
    v_late = v.copy()
    v_late[:, 9:] = np.nan
    same = refattn.lsh_attention(qk, v_late, buckets=buckets, chunk=2).o
    before = refattn.lsh_attention(qk, v, buckets=buckets, chunk=2).o
    np.testing.assert_array_equal(same[:, :9], before[:, :9])
    buckets[..., 11] = 0  # the last token moves over to bucket 0, and all of bucket 1 stands one place later
    after = refattn.lsh_attention(qk, v, buckets=buckets, chunk=2).o
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert (after[:, 7:11] != before[:, 7:11]).any()


@pytest.mark.parametrize("causal", [True, False])
def test_what_stands_in_another_bucket_changes_no_bit(causal):
    qk, v = draw(6)
    buckets = np.random.default_rng(7).integers(0, 3, (2, 2, 2, 21))
    buckets[..., 8] = 9
    options = {"buckets": buckets, "chunk": 4, "causal": causal}
    want = refattn.lsh_attention(qk, v, **options)
    qk[..., 8, :], v[..., 8, :] = np.nan, np.nan
    got = refattn.lsh_attention(qk, v, **options)
    rest = np.arange(21) != 8
    np.testing.assert_array_equal(got.o[..., rest, :], want.o[..., rest, :])
    np.testing.assert_array_equal(got.lse[..., rest], want.lse[..., rest])
    assert np.isnan(got.o[..., 8, :]).all()


def test_a_key_has_no_length():
    qk, v = draw(8)
    qk[..., 5, :] = 0
    buckets = np.zeros((2, 2, 1, 21), int)
    want = refattn.lsh_attention(qk, v, buckets=buckets, chunk=30)
    assert np.isfinite(want.o).all()
    longer = qk.copy()
    longer[..., 3, :] *= 4  # as a key it is what it was
    got = refattn.lsh_attention(longer, v, buckets=buckets, chunk=30)
    others = np.arange(21) != 3
    close((got.o[..., others, :], got.lse[..., others]), (want.o[..., others, :], want.lse[..., others]))


def test_gradients_are_those_of_attention_under_the_mask():
    qk, v = draw(9)
    rng = np.random.default_rng(10)
    do, dlse = rng.normal(size=v.shape), rng.normal(size=v.shape[:-1])
    options = {"buckets": rng.integers(0, 3, (2, 2, 2, 21)), "chunk": 4}
    norm, k = np.linalg.norm(qk, axis=-1, keepdims=True), normalised(qk)
    mask = mask_of(options["buckets"], 4, True)
    dq, dk, dv, _, _ = refattn.attention_vjp(do, qk, k, v, mask=mask, dlse=dlse)
    dqk = dq + (dk - k * (k * dk).sum(axis=-1, keepdims=True)) / norm  # was: k = qk / |qk|
    for n, dx in enumerate((dqk, dv)):
        step = 1e-6 * rng.normal(size=dx.shape)
        ahead, behind = (
            refattn.lsh_attention(*(x + d if m == n else x for m, x in enumerate((qk, v))), **options)
            for d in (step, -step)
        )
        moved = (do * (ahead.o - behind.o)).sum() + (dlse * (ahead.lse - behind.lse)).sum()
        np.testing.assert_allclose(moved, 2 * (dx * step).sum(), rtol=1e-6)


def test_rotations_depend_on_the_seed_alone():
    first = refattn.draw_rotations(3, 5, 6)
    assert first.shape == (3, 5, 3) and first.dtype == np.float32
    np.testing.assert_array_equal(first, refattn.draw_rotations(3, 5, 6, dtype=np.float64).astype(np.float32))
    assert (first != refattn.draw_rotations(3, 5, 6, seed=1)).all()


@pytest.mark.parametrize(("sizes", "says"), [((0, 4, 4), "rounds is 0"), ((1, 4, 5), "n_buckets is 5; wanted an even")])
def test_rotations_refuse(sizes, says):
    with pytest.raises(ValueError, match=says):
        refattn.draw_rotations(*sizes)


def test_the_mistakes_are_made_from_what_is_right():
    assert failures_of_what_is_right("lsh_attention") == []


@pytest.mark.peers
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_the_reformer_of_transformers(causal):
    """Theirs looks into every bucket of a chunk, so all tokens share one; its keys have length 1 and its scale is 1."""
    import torch
    from transformers.models.reformer import modeling_reformer

    torch.manual_seed(0)
    H, D, T, chunk = 2, 6, 32, 8
    config = modeling_reformer.ReformerConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        attention_head_size=D,
        num_buckets=4,
        num_hashes=1,
        lsh_attn_chunk_length=chunk,
        lsh_num_chunks_before=1 if causal else 0,  # without causality their first chunk sees the last one
        is_decoder=causal,
        hash_seed=3,
    )
    layer = modeling_reformer.LSHSelfAttention(config).double().eval()
    x = torch.randn(1, T, H * D, dtype=torch.float64)
    qk, v = (
        projection(x).view(T, H, D).transpose(0, 1).detach().numpy() for projection in (layer.query_key, layer.value)
    )
    theirs = layer(x, buckets=torch.zeros((1, H, 1, T), dtype=torch.int64), use_cache=False).hidden_states
    theirs = theirs.view(T, H, D).transpose(0, 1).detach().numpy()
    buckets = np.zeros((H, 1, T), int)
    if not causal:
        buckets[...] = np.arange(T) // chunk  # chunks that do not look back
    o = refattn.lsh_attention(qk, v, buckets=buckets, chunk=chunk, causal=causal, scale=1.0).o
    np.testing.assert_allclose(o, theirs, atol=1e-5)

    found = layer(x, use_cache=False).buckets[0].numpy()  # (H, 1, T)
    torch.manual_seed(3)
    rotations = torch.randn((H, D, 1, 2), dtype=torch.float64).numpy()
    for h in range(H):
        ours = refattn.lsh_attention(qk[h], v[h], rotations=rotations[h].swapaxes(0, 1), chunk=chunk).buckets
        np.testing.assert_array_equal(ours, found[h])
