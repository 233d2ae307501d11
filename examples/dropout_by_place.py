"""Two workers train one layer with dropout: each draws its own heads' part of the mask, and nobody sends any."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
B, H, T, D, p = 2, 8, 33, 16, 0.1
q, k, v, do = rng.normal(size=(4, B, H, T, D))


def step(heads, seed):
    """Run some of the heads forward and backward, with the mask that these heads have in the whole layer."""
    part = [x[:, heads] for x in (do, q, k, v)]
    keep = refattn.dropout_mask((B, len(part[1][0]), T, T), p, seed, start=(0, heads.start, 0, 0))
    o = refattn.attention(*part[1:], mask=refattn.masks.causal(), dropout_mask=keep, dropout_p=p)
    g = refattn.attention_vjp(*part, mask=refattn.masks.causal(), dropout_mask=keep, dropout_p=p)
    return keep, o, g.dq


for seed in (7, 8):  # a seed for each step of the training
    whole = step(slice(0, H), seed)
    workers = [step(slice(0, 3), seed), step(slice(3, H), seed)]
    together = [np.concatenate(parts, axis=1) for parts in zip(*workers, strict=True)]
    print(f"seed {seed}: {1 - whole[0].mean():.2%} of {whole[0].size} weights dropped, by two workers as by one")
    assert (together[0] == whole[0]).all()
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(together, whole, strict=True))
