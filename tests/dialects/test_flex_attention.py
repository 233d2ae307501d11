"""FlexAttention: each difference by hand, and against PyTorch's eager mode on random score and mask functions."""

import inspect
import math

import numpy as np
import pytest

import refattn
from refattn.dialects.flex_attention import (
    AuxOutput,
    AuxRequest,
    and_masks,
    create_block_mask,
    create_mask,
    flex_attention,
    or_masks,
)

RNG = np.random.default_rng(0)
BACKENDS = ("numpy", "numba")
WITHOUT_TORCH = "torch is not installed: python -m pip install torch==2.13.0"


def draw(*shape):
    return RNG.standard_normal(shape)


def top_left(b, h, i, j):
    return i >= j


def near(b, h, i, j):
    return abs(i - j) <= 2


def by_head(b, h, i, j):
    return (i + j + h + b) % 3 != 0


MASK_MODS = {"top_left": top_left, "near": near, "by_head": by_head, "nothing": lambda b, h, i, j: (j < 0) & (i >= 0)}
# Operators only, so that the same function serves arrays and torch's scalars under vmap; and numbers that are exact in
# float32, which is what torch makes of an index times a number.
SCORE_MODS = {
    "none": None,
    "alibi": lambda score, b, h, i, j: score - (h + 1) * 0.25 * abs(i - j),
    "squared": lambda score, b, h, i, j: score * score - b,
    "relative": lambda score, b, h, i, j: score + 0.125 * (i - j),
}


def test_a_score_mod_takes_the_place_of_a_bias():
    q, k, v = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3)
    want = refattn.attention(q, k, v, bias=0.125 * (np.arange(3)[:, None] - np.arange(5)))
    np.testing.assert_allclose(flex_attention(q, k, v, SCORE_MODS["relative"]), want, rtol=1e-12)


def test_a_score_mod_takes_the_place_of_a_soft_cap():
    q, k, v = draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 3)
    got = flex_attention(q, k, v, lambda score, b, h, i, j: 0.5 * np.tanh(score / 0.5))
    np.testing.assert_allclose(got, refattn.attention(q, k, v, softcap=0.5), rtol=1e-12)


def test_indices_are_no_positions():
    q, k, v = draw(1, 1, 2, 4), draw(1, 1, 4, 4), draw(1, 1, 4, 3)
    got = flex_attention(q, k, v, block_mask=create_block_mask(top_left, None, None, 2, 4))
    np.testing.assert_array_equal(got, refattn.attention(q, k, v, mask=refattn.masks.causal(offset=0)))
    assert not np.allclose(got, refattn.attention(q, k, v, mask=refattn.masks.causal()))


def test_what_score_mod_says_of_hidden_pairs_does_not_matter():
    q, k, v = draw(1, 1, 3, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 3)
    mask = create_block_mask(top_left, None, None, 3, 3)
    wild = flex_attention(q, k, v, lambda score, b, h, i, j: np.where(i >= j, score, np.nan), mask)
    np.testing.assert_allclose(wild, flex_attention(q, k, v, block_mask=mask), rtol=1e-12)


def test_a_row_that_sees_nothing():
    q, k, v = draw(1, 1, 2, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 3)
    mask = create_block_mask(lambda b, h, i, j: (i == 1) & (j >= 0), None, None, 2, 3)
    for options in ({"block_mask": mask}, {"score_mod": lambda s, b, h, i, j: np.where(i == 1, s, -np.inf)}):
        o, lse = flex_attention(q, k, v, **options, return_lse=True)
        assert not o[0, 0, 0].any() and lse[0, 0, 0] == -np.inf and np.isfinite(lse[0, 0, 1])


def test_a_hidden_value_leaks_and_a_hidden_key_does_not():
    q, k, v = draw(1, 1, 2, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 3)
    mask = create_block_mask(lambda b, h, i, j: j + 0 * i < 2, None, None, 2, 3)
    want = flex_attention(q, k, v, block_mask=mask)
    k[..., 2, :] = np.nan
    np.testing.assert_array_equal(flex_attention(q, k, v, block_mask=mask), want)
    v[..., 2, 1] = np.nan
    got = flex_attention(q, k, v, block_mask=mask)
    assert np.isnan(got[..., 1]).all() and np.isfinite(got[..., [0, 2]]).all()


def test_lse_is_natural_and_comes_in_two_ways():
    q, k, v = np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 4, 2)), draw(1, 1, 4, 1)
    assert flex_attention(q, k, v, return_lse=True)[1].item() == pytest.approx(math.log(4))
    o, aux = flex_attention(q, k, v, SCORE_MODS["relative"], return_aux=AuxRequest(lse=True, max_scores=True))
    assert isinstance(aux, AuxOutput) and o.shape == (1, 1, 1, 1)
    assert aux.max_scores.item() == pytest.approx(0.0)
    assert aux.lse.item() == pytest.approx(math.log(sum(math.exp(-0.125 * j) for j in range(4))))
    assert flex_attention(q, k, v, return_aux=AuxRequest())[1] == AuxOutput(None, None)


def test_sixteen_bits_are_scored_in_thirty_two():
    q, k, v = (x.astype(np.float16) for x in (draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 3)))
    got = flex_attention(q, k, v, lambda score, b, h, i, j: score)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, refattn.attention(q, k, v), rtol=2e-3)


def test_masks_are_put_together():
    i, j = np.arange(4)[:, None], np.arange(5)
    both = create_mask(and_masks(top_left, near), None, None, 4, 5)[0, 0]
    either = create_mask(or_masks(top_left, near), None, None, 4, 5)[0, 0]
    np.testing.assert_array_equal(both, (i >= j) & (abs(i - j) <= 2))
    np.testing.assert_array_equal(either, (i >= j) | (abs(i - j) <= 2))
    assert create_mask(and_masks(), None, None, 2, 2).all() and not create_mask(or_masks(), None, None, 2, 2).any()


def test_blocks_by_hand():
    mask = create_block_mask(top_left, None, None, 5, 4, BLOCK_SIZE=2)
    assert mask.shape == (1, 1, 5, 4) and mask.BLOCK_SIZE == (2, 2)
    assert mask.kv_num_blocks.tolist() == [[[1, 1, 2]]]  # the diagonal; the last row of blocks reaches over the border
    assert mask.kv_indices[0, 0, :, 0].tolist() == [0, 1, 0]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 0]]]
    few = create_block_mask(lambda b, h, i, j: i == j, None, None, 4, 4, BLOCK_SIZE=2)
    assert few.kv_num_blocks.tolist() == [[[1, 1]]] and not few.full_kv_num_blocks.any()
    assert few.sparsity() == pytest.approx(50)
    assert mask.sparsity() == pytest.approx(0)  # 5 blocks of 4 pairs, as many as there are pairs


def ask(q=(1, 2, 3, 4), k=(1, 2, 3, 4), **options):
    return flex_attention(draw(*q), draw(*k), draw(*k), **options)


REFUSED = {
    "three axes": ({"q": (2, 3, 4), "k": (2, 3, 4)}, ValueError, "4 each"),
    "heads": ({"q": (1, 4, 3, 4)}, ValueError, "enable_gqa"),
    "batches": ({"q": (2, 2, 3, 4)}, ValueError, "batch sizes"),
    "another length": (
        {"block_mask": create_block_mask(top_left, None, None, 3, 4)},
        ValueError,
        "block_mask was made for",
    ),
    "both ways to ask for lse": ({"return_lse": True, "return_aux": AuxRequest(lse=True)}, ValueError, "exclude"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    options, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        ask(**options)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match="mask_mod returned int64"):
        create_block_mask(lambda b, h, i, j: i - j, None, None, 2, 2)
    with pytest.raises(ValueError, match="broadcasts to"):
        create_mask(lambda b, h, i, j: np.ones(3, bool), None, None, 2, 2)


@pytest.fixture(scope="module")
def flex():
    pytest.importorskip("torch", reason=WITHOUT_TORCH)
    from torch.nn.attention import flex_attention as module

    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # plain eager mode, nothing compiled
    yield module
    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = False


@pytest.mark.peers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(40))
def test_equals_torch(flex, seed, backend):
    import torch

    rng = np.random.default_rng(seed)
    B, Hk, G, D, Dv, Tq, Tk = (int(rng.integers(1, n)) for n in (3, 3, 3, 9, 9, 20, 20))
    q, k, v = (rng.standard_normal(s) for s in ((B, Hk * G, Tq, D), (B, Hk, Tk, D), (B, Hk, Tk, Dv)))
    score_mod = SCORE_MODS[rng.choice(list(SCORE_MODS))]
    mask_mod = MASK_MODS.get(rng.choice([*MASK_MODS, "none"]))
    options = {"scale": [None, 0.3][seed % 2], "enable_gqa": True}
    masks = [None, None]
    if mask_mod is not None:
        sizes = (B, Hk * G, Tq, Tk)
        masks = [create_block_mask(mask_mod, *sizes), flex.create_block_mask(mask_mod, *sizes, device="cpu")]
    o, aux = flex_attention(q, k, v, score_mod, masks[0], **options, return_aux=AuxRequest(lse=True), backend=backend)
    theirs, more = flex.flex_attention(
        *(torch.from_numpy(x) for x in (q, k, v)),
        score_mod,
        masks[1],
        **options,
        return_aux=flex.AuxRequest(lse=True),  # the greatest scores are not to be had on a CPU
    )
    for ours, other in ((o, theirs), (aux.lse, more.lse)):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("name", MASK_MODS)
@pytest.mark.parametrize("size", [(5, 9, 2), (8, 8, (4, 2)), (3, 3, 128)])
def test_blocks_equal_those_of_torch(flex, name, size):
    Tq, Tk, block = size
    ours = create_block_mask(MASK_MODS[name], 2, 2, Tq, Tk, block)
    theirs = flex.create_block_mask(MASK_MODS[name], 2, 2, Tq, Tk, device="cpu", BLOCK_SIZE=block)
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for field in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field).numpy())
    assert ours.sparsity() == pytest.approx(theirs.sparsity())
    dense = flex.create_mask(MASK_MODS[name], 2, 2, Tq, Tk, device="cpu").numpy()
    np.testing.assert_array_equal(create_mask(MASK_MODS[name], 2, 2, Tq, Tk), dense)


@pytest.mark.peers
@pytest.mark.parametrize("what", ["heads", "batches", "three axes"])
def test_torch_refuses_what_is_refused(flex, what):
    import torch

    shapes = {"q": (1, 2, 3, 4), "k": (1, 2, 3, 4), **REFUSED[what][0]}
    with pytest.raises((ValueError, NotImplementedError)):
        flex.flex_attention(*(torch.zeros(shapes[name], dtype=torch.float64) for name in "qkk"))


@pytest.mark.peers
def test_torch_has_the_same_arguments(flex):
    for ours, theirs, left_out in (
        (flex_attention, flex.flex_attention, {"kernel_options"}),
        (create_mask, flex.create_mask, {"device"}),
    ):
        names = [name for name in inspect.signature(theirs).parameters if name not in left_out]
        assert [name for name in inspect.signature(ours).parameters if name != "backend"] == names
    block = list(inspect.signature(create_block_mask).parameters)
    assert block == [name for name in inspect.signature(flex.create_block_mask).parameters if name in block]


@pytest.mark.peers
def test_keys_of_one_batch_entry_serve_all_with_a_block_mask(flex):
    import torch

    q, k, v = draw(3, 2, 4, 5), draw(1, 2, 4, 5), draw(1, 2, 4, 5)
    ours = flex_attention(q, k, v, block_mask=create_block_mask(by_head, 3, 2, 4, 4))
    mask = flex.create_block_mask(by_head, 3, 2, 4, 4, device="cpu")
    theirs = flex.flex_attention(*(torch.from_numpy(x) for x in (q, k, v)), block_mask=mask)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_hidden_leaks_as_in_torch(flex, where):
    import torch

    q, k, v = (draw(1, 1, 4, 3) for _ in range(3))
    (k if where == "key" else v)[0, 0, 3, 1] = np.nan
    ours = flex_attention(q, k, v, block_mask=create_block_mask(top_left, None, None, 4, 4))
    mask = flex.create_block_mask(top_left, None, None, 4, 4, device="cpu")
    theirs = flex.flex_attention(*(torch.from_numpy(x) for x in (q, k, v)), block_mask=mask).numpy()
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
