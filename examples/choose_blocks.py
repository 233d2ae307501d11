"""Choose the blocks that matter by a look at their means, and attend to those: nearly the answer of all of them."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D, b, keep = 1024, 16, 32, 4
topics = 3 * rng.normal(size=(8, D))
passages = rng.permutation(np.tile(np.arange(8), T // b // 8))  # each of b tokens on one topic, four on each
k = np.repeat(topics[passages], b, axis=0) + 0.5 * rng.normal(size=(T, D))
q, v = k + 0.5 * rng.normal(size=(T, D)), rng.normal(size=(T, 4))

coarse = q.reshape(-1, b, D).mean(axis=1) @ k.reshape(-1, b, D).mean(axis=1).T  # (blocks of queries, of keys)
layout = coarse >= np.sort(coarse, axis=-1)[:, [-keep]]  # the best blocks of each row
o = refattn.block_sparse_attention(q, k, v, layout=layout, block_size=b)

whole = refattn.attention(q, k, v)
error = np.linalg.norm(o - whole) / np.linalg.norm(whole)
first = np.zeros_like(layout)
first[:, :keep] = True  # as many blocks, not chosen
careless = refattn.block_sparse_attention(q, k, v, layout=first, block_size=b)
print(f"{layout.mean():.0%} of the blocks, chosen: {error:.1%} off")
print(f"as many, not chosen: {np.linalg.norm(careless - whole) / np.linalg.norm(whole):.0%} off")

assert layout.mean() < 0.2
assert error < 0.01
