"""`flash_attention` is `attention`, whatever the tiles; and it moves the bytes that it says."""

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing import case

TILES = [(1, 1), (1, 70), (7, 13), (16, 64), (64, 16), (65, 65), (200, 200)]
PROBLEMS = [
    "plain",
    "causal",
    "few_queries_causal",
    "few_keys_causal",
    "nested",
    "array_per_head",
    "blind_rows_sinks",
    "bias_minus_inf",
    "dropout_everything",
    "softcap_bias_sinks",
    "no_keys",
    "no_keys_causal_sinks",
    "no_queries",
    "two_batch_axes_5d",
    "one_head_2d_causal_sinks",
    "nan_values_unseen",
    "nan_queries_blind_sinks",
]


def same(got, want):
    for x, y in zip(got, want, strict=True):
        if y is None:
            assert x is None
        else:
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def call(name):
    args, options = case(f"attention_vjp/{name}/float64").call()
    return *args, options


@pytest.mark.parametrize(("tile_q", "tile_k"), TILES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_flash_is_attention(name, tile_q, tile_k):
    do, q, k, v, options = call(name)
    with np.errstate(invalid="ignore"):
        want = refattn.attention(q, k, v, **options, return_lse=True)
        o, lse = refattn.flash_attention(q, k, v, **options, tile_q=tile_q, tile_k=tile_k)
        same((o, lse), want)
        if tile_q * tile_k > 1:
            g = refattn.flash_attention_vjp(do, q, k, v, o, lse, **options, tile_q=tile_q, tile_k=tile_k)
            same(g, refattn.attention_vjp(do, q, k, v, **options))


def tiles_of(q, k, v, **options):
    seen = []
    o, lse = refattn.flash_attention(q, k, v, on_tile=seen.append, **options)
    return seen, o, lse


def draw(Tq, Tk, D=8, Dv=6, dtype=np.float32):
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape).astype(dtype) for shape in ((2, 4, Tq, D), (2, 2, Tk, D), (2, 2, Tk, Dv)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("Tq", "Tk", "tile_q", "tile_k"), [(64, 64, 16, 16), (50, 70, 16, 32), (10, 10, 64, 64), (7, 9, 1, 1)]
)
def test_bytes_add_up_to_the_formula(Tq, Tk, tile_q, tile_k, dtype):
    """Queries are read once, keys and values once per tile of queries, results are written once."""
    q, k, v = draw(Tq, Tk, dtype=dtype)
    seen, o, lse = tiles_of(q, k, v, tile_q=tile_q, tile_k=tile_k)
    rows = -(-Tq // tile_q)
    assert sum(tile.read for tile in seen) == q.nbytes + rows * (k.nbytes + v.nbytes)
    assert sum(tile.written for tile in seen) == o.nbytes + lse.nbytes
    assert len(seen) == rows * (-(-Tk // tile_k) + 1)


def test_bias_dropout_and_mask_are_counted():
    q, k, v = draw(32, 32)
    bias, keep = np.zeros((4, 32, 32), np.float32), np.ones((1, 32), bool)
    visible = masks.from_array(np.tri(32, dtype=bool) | np.eye(32, k=1, dtype=bool))
    seen, _, _ = tiles_of(
        q,
        k,
        v,
        bias=bias,
        dropout_mask=keep,
        dropout_p=0.0,
        mask=visible | masks.window(None, None),
        tile_q=16,
        tile_k=16,
    )
    plain = q.nbytes + 2 * (k.nbytes + v.nbytes)
    mask_bits = 32 * 32 // 8
    assert sum(tile.read for tile in seen) == plain + bias.nbytes + 2 * keep.nbytes + mask_bits


def test_every_score_is_held_once():
    q, k, v = draw(50, 70)
    seen, _, _ = tiles_of(q, k, v, tile_q=16, tile_k=32)
    held = np.zeros((50, 70), int)
    for tile in seen:
        held[tile.i, tile.j] += 1
    assert (held == 1).all()


def test_empty_tiles_cost_nothing():
    q, k, v = draw(128, 128)
    seen, _, _ = tiles_of(q, k, v, mask=masks.causal() & masks.window(15, 0), tile_q=16, tile_k=16)
    held = np.zeros((8, 8), bool)
    for tile in seen:
        if tile.j.stop > tile.j.start:
            held[tile.i.start // 16, tile.j.start // 16] = True
    np.testing.assert_array_equal(held, np.eye(8, dtype=bool) | np.eye(8, k=-1, dtype=bool))
    keys = 15 * 16  # of the 15 tiles
    mask_bits = 15 * 16 * 16 // 8
    read = q.nbytes + keys * (k.nbytes + v.nbytes) // 128 + mask_bits
    assert sum(tile.read for tile in seen) == read


def test_nothing_visible_reads_nothing_but_queries():
    q, k, v = draw(64, 64)
    seen, o, lse = tiles_of(q, k, v, mask=masks.causal(-100), tile_q=16, tile_k=16)
    assert [tile.j for tile in seen] == [slice(0, 0)] * 4
    assert sum(tile.read for tile in seen) == q.nbytes
    assert (o == 0).all() and (lse == -np.inf).all()


def test_a_poisoned_tile_that_nobody_sees_is_not_read():
    q, k, v = draw(64, 64)
    k[:, :, 48:] = np.nan
    v[:, :, 48:] = np.inf
    o, lse = refattn.flash_attention(q, k, v, mask=masks.padding([48, 48]), tile_q=16, tile_k=16)
    assert np.isfinite(o).all() and np.isfinite(lse).all()


@pytest.mark.parametrize("tile", [1, 5, 64])
def test_the_backward_takes_what_the_forward_gave(tile):
    do, q, k, v, options = call("causal")
    o, lse = refattn.flash_attention(q, k, v, **options, tile_q=tile, tile_k=tile)
    g = refattn.flash_attention_vjp(do, q, k, v, o, lse, **options, dlse=np.ones_like(lse))
    same(g, refattn.attention_vjp(do, q, k, v, **options, dlse=np.ones_like(lse)))
