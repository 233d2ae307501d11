"""The sparse forms against torch's scaled_dot_product_attention and transformers' layers, in float64."""

import math

import numpy as np
import pytest

import refattn
from refattn import masks

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers", reason="transformers is missing: python -m pip install transformers")


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12 * max(1, np.abs(theirs).max(initial=0)), rtol=1e-10)


def sdpa(torch, q, k, v, do, visible, scale, bias=None):
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    mask = torch.from_numpy(np.array(visible))
    if bias is not None:
        leaves.append(torch.from_numpy(bias).requires_grad_())
        mask = leaves[-1].masked_fill(~mask, -math.inf)
    o = torch.nn.functional.scaled_dot_product_attention(*leaves[:3], attn_mask=mask, scale=scale, enable_gqa=True)
    o.backward(torch.from_numpy(do))
    return [o, *(leaf.grad for leaf in leaves)]


def draw(seed):
    rng = np.random.default_rng(seed)
    Hk, G, D, Dv = (int(rng.integers(1, n)) for n in (4, 4, 33, 33))
    Tq, Tk = int(rng.integers(1, 100)), int(rng.integers(1, 100))
    q, k, v = (rng.normal(size=(2, h, t, d)) for h, t, d in ((Hk * G, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv)))
    return rng, q, k, v, rng.normal(size=(2, Hk * G, Tq, Dv)), float(rng.normal())


@pytest.mark.parametrize("seed", range(20))
def test_sparse_attention_is_torch_sdpa(torch, seed):
    rng, q, k, v, do, scale = draw(seed)
    lead = [(), (1,), q.shape[1:2], q.shape[:2], (2, 1)][seed % 5]
    visible = rng.random((*lead, q.shape[-2], k.shape[-2])) < rng.choice([0.05, 0.3, 0.9])
    visible[..., 0] = True  # torch answers NaN to a query that sees nothing, refattn 0
    bias = rng.normal(size=(q.shape[1], q.shape[-2], k.shape[-2])) if seed % 2 else None
    theirs = sdpa(torch, q, k, v, do, visible, scale, bias)
    ours = refattn.sparse_attention(q, k, v, visible, bias=bias, scale=scale)
    g = refattn.sparse_attention_vjp(do, q, k, v, visible, bias=bias, scale=scale)
    for x, y in zip([ours, *g[: len(theirs) - 1]], theirs, strict=True):
        close(x, y)


@pytest.mark.parametrize("seed", range(20))
def test_local_attention_is_torch_sdpa(torch, seed):
    rng, q, k, v, do, scale = draw(100 + seed)
    Tq, Tk = min(q.shape[-2], k.shape[-2]), k.shape[-2]  # more queries than keys would leave some blind
    q, do = q[..., :Tq, :].copy(), do[..., :Tq, :].copy()
    left, right = int(rng.integers(0, 40)), int(rng.integers(0, 40))
    back = np.arange(Tq)[:, None] + Tk - Tq - np.arange(Tk)
    theirs = sdpa(torch, q, k, v, do, (back <= left) & (back >= -right), scale)
    ours = refattn.local_attention(q, k, v, left=left, right=right, scale=scale)
    g = refattn.local_attention_vjp(do, q, k, v, left=left, right=right, scale=scale)
    for x, y in zip([ours, *g[:3]], theirs, strict=True):
        close(x, y)


def heads(torch, x, linear, H):
    """Return x (B, T, E) in one projection, as heads (B, H, T, D)."""
    y = linear(torch.from_numpy(x)).detach().numpy()
    return np.ascontiguousarray(y.reshape(*y.shape[:2], H, -1).swapaxes(1, 2))


def joined(dx):
    """Return (B, H, T, D) as (B, T, H D)."""
    return dx.swapaxes(1, 2).reshape(dx.shape[0], dx.shape[2], -1)


def pulled(gradients, linears):
    """Return the gradient of the tokens from those of their projections."""
    return sum(joined(g) @ linear.weight.detach().numpy() for g, linear in zip(gradients, linears, strict=True))


@pytest.mark.parametrize(
    ("seed", "H", "D", "T", "window", "indices"),
    [
        (0, 2, 4, 24, 4, (0,)),
        (1, 3, 8, 32, 2, (0, 31)),
        (2, 1, 16, 40, 10, (5, 17, 18)),
        (3, 4, 2, 12, 6, ()),
        (4, 2, 4, 16, 2, (3, 4, 5, 6, 7)),
    ],
)
def test_longformer(torch, transformers, monkeypatch, seed, H, D, T, window, indices):
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

    softmax = torch.nn.functional.softmax  # theirs rounds the weights to float32; here they shall stay float64
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim))
    torch.manual_seed(seed)
    config = LongformerConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        attention_window=[2 * window],
        attention_probs_dropout_prob=0.0,
    )
    layer = LongformerSelfAttention(config, layer_id=0).double().eval()
    rng = np.random.default_rng(seed)
    x, do = rng.normal(size=(2, T, H * D)), rng.normal(size=(2, T, H * D))
    is_global = np.isin(np.arange(T), indices)[None].repeat(2, axis=0)
    given = torch.from_numpy(x).requires_grad_()
    theirs = layer(
        given,
        attention_mask=torch.from_numpy(np.where(is_global, 10_000.0, 0.0)),
        is_index_masked=torch.zeros(2, T, dtype=torch.bool),
        is_index_global_attn=torch.from_numpy(is_global),
        is_global_attn=len(indices) > 0,
    )[0]
    theirs.backward(torch.from_numpy(do))

    ordinary = [layer.query, layer.key, layer.value]
    special = [layer.query_global, layer.key_global, layer.value_global]
    q, k, v = (heads(torch, x, linear, H) for linear in ordinary)
    q_global, k_global, v_global = (heads(torch, x, linear, H) for linear in special)
    own = {"q_global": q_global[:, :, list(indices)], "k_global": k_global, "v_global": v_global}
    ours = refattn.longformer_attention(q, k, v, window=window, global_indices=indices, **own)
    close(joined(ours), theirs)

    do_heads = do.reshape(2, T, H, D).swapaxes(1, 2).copy()
    g = refattn.longformer_attention_vjp(do_heads, q, k, v, window=window, global_indices=indices, **own)
    dq_global = np.zeros_like(q)
    dq_global[:, :, list(indices)] = g.dq_global
    dx = pulled([g.dq, g.dk, g.dv], ordinary) + pulled([dq_global, g.dk_global, g.dv_global], special)
    close(dx, given.grad)


def bigbird_layer(torch, H, D, block_size, n_random, seed):
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdConfig

    torch.manual_seed(seed)
    config = BigBirdConfig(
        hidden_size=H * D, num_attention_heads=H, block_size=block_size, num_random_blocks=n_random, use_bias=True
    )
    return BigBirdBlockSparseAttention(config, seed=seed).double()


def bigbird_call(torch, layer, x, T, block_size):
    from transformers.models.big_bird.modeling_big_bird import BigBirdModel

    mask = torch.ones(x.shape[0], T, dtype=torch.float64)
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(mask, block_size)
    given = torch.from_numpy(x).requires_grad_()
    o, _ = layer(
        given,
        band_mask=band,
        from_mask=from_mask,
        to_mask=to_mask,
        from_blocked_mask=blocked,
        to_blocked_mask=blocked,
    )
    return given, o


def window_and_globals(blocks):
    a, b = np.arange(blocks)[:, None], np.arange(blocks)
    return (abs(a - b) <= 1) | np.isin(a, (0, blocks - 1)) | np.isin(b, (0, blocks - 1))


@pytest.mark.parametrize(
    ("seed", "H", "D", "blocks", "block_size", "n_random"),
    [(0, 2, 4, 9, 2, 1), (1, 3, 8, 14, 4, 3), (2, 1, 4, 12, 3, 2), (3, 4, 2, 20, 2, 3)],
)
def test_bigbird(torch, transformers, monkeypatch, seed, H, D, blocks, block_size, n_random):
    """In training, where their layer draws blocks; ours is given them as a layout for each head."""
    layer, T = bigbird_layer(torch, H, D, block_size, n_random, seed).train(), blocks * block_size
    rng = np.random.default_rng(seed)
    x, do = rng.normal(size=(2, T, H * D)), rng.normal(size=(2, T, H * D))
    draw, drawn = layer._bigbird_block_rand_mask_with_head, []

    def noted(**arguments):
        drawn.extend(draw(**arguments))
        return drawn

    monkeypatch.setattr(layer, "_bigbird_block_rand_mask_with_head", noted)
    given, theirs = bigbird_call(torch, layer, x, T, block_size)
    theirs.backward(torch.from_numpy(do))

    layout = np.tile(window_and_globals(blocks), (H, 1, 1))
    for head in range(H):
        for a in range(1, blocks - 1):
            layout[head, a, drawn[head][a - 1]] = True
    assert layout.sum() == H * window_and_globals(blocks).sum() + H * (blocks - 2) * n_random  # none drawn twice

    linears = [layer.query, layer.key, layer.value]
    q, k, v = (heads(torch, x, linear, H) for linear in linears)
    close(joined(refattn.block_sparse_attention(q, k, v, layout=layout, block_size=block_size)), theirs)
    do_heads = do.reshape(2, T, H, D).swapaxes(1, 2).copy()
    g = refattn.block_sparse_attention_vjp(do_heads, q, k, v, layout=layout, block_size=block_size)
    close(pulled([g.dq, g.dk, g.dv], linears), given.grad)


@pytest.mark.parametrize("n_random", [1, 3])
def test_bigbird_does_not_draw_in_evaluation(torch, transformers, n_random):
    """Their layer then takes block 0 in place of each random block: it counts 1 + n_random times, as if biased."""
    blocks, block_size, H, D = 12, 3, 2, 4
    layer, T = bigbird_layer(torch, H, D, block_size, n_random, 0).eval(), blocks * block_size
    x = np.random.default_rng(0).normal(size=(2, T, H * D))
    _, theirs = bigbird_call(torch, layer, x, T, block_size)
    q, k, v = (heads(torch, x, linear, H) for linear in (layer.query, layer.key, layer.value))
    bias = np.zeros((T, T))
    bias[block_size:-block_size, :block_size] = math.log(1 + n_random)
    mask = masks.bigbird(block_size, n_random=0)
    close(joined(refattn.sparse_attention(q, k, v, mask, bias=bias)), theirs)
    without = refattn.bigbird_attention(q, k, v, block_size=block_size, n_random=0)
    assert abs(joined(without) - theirs.detach().numpy()).max() > 1e-3
