"""Hash tokens into buckets: with more rounds, more of the pairs that matter meet."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D, n_buckets, chunk = 1024, 16, 64, 32
subjects = rng.normal(size=(40, D))
qk = 8 * subjects[rng.integers(0, 40, T)] + rng.normal(size=(T, D))  # each token is about one of 40 subjects
v = rng.normal(size=(T, 8))
k = qk / np.linalg.norm(qk, axis=-1, keepdims=True)

others = ~np.eye(T, dtype=bool) & np.tri(T, dtype=bool)
_, whole = refattn.attention(qk, k, v, mask=others, return_lse=True)
kept = {}
for rounds in (1, 2, 4, 8):
    rotations = refattn.draw_rotations(rounds, D, n_buckets, dtype=np.float64)
    o, lse, buckets = refattn.lsh_attention(qk, v, rotations=rotations, chunk=chunk)
    kept[rounds] = np.exp(np.minimum(lse - whole, 0))[1:].mean()  # the first token has only itself
    pairs = rounds * T * 2 * chunk
    print(f"rounds {rounds}: {kept[rounds]:.1%} of the weights, with {pairs / others.sum():.2f} times the causal pairs")
assert kept[1] < kept[2] < kept[4] < kept[8]
