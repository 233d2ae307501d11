"""Find one passage in a long document: a question in the first block, which is global, reads all of it."""

import numpy as np

import refattn
from refattn import masks

rng = np.random.default_rng(0)
T, D, block_size = 2048, 32, 16
k = np.sign(rng.normal(size=(T, D)))  # each token has a code
q = 0.1 * rng.normal(size=(T, D))
needle = 1234
q[0] = 8 * k[needle]  # token 0 asks for the code of one
v = np.arange(T, dtype=float)[:, None]  # the value of a token is its position

bigbird = {"block_size": block_size, "n_random": 2, "seed": 1}
o = refattn.bigbird_attention(q, k, v, **bigbird)
print(f"token 0 found what it asked for at {o[0, 0]:.1f}")

q[100] = 8 * k[needle]  # a token in the middle asks the same, and its blocks do not hold the answer
elsewhere = refattn.bigbird_attention(q, k, v, **bigbird)[100, 0]
mask = masks.bigbird(**bigbird)
print(f"token 100, which does not see it, answers {elsewhere:.1f}")
print(f"{mask.pairs(T, T) / T**2:.1%} of all pairs")

assert round(o[0, 0]) == needle
assert abs(elsewhere - needle) > 50
assert not mask.dense(T, T)[100, needle]
