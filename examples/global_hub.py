"""One global token is a hub: it reads the whole sequence in one layer, and in the next all others read it."""

import numpy as np

import refattn
from refattn import masks

rng = np.random.default_rng(0)
T, D = 4000, 16
q, k = rng.normal(size=(T, D)), rng.normal(size=(T, D))
v = np.zeros((T, 1))
v[2718] = 1.0  # news at one token

once = refattn.global_attention(q, k, v, indices=[0])
twice = refattn.global_attention(q, k, once, indices=[0])
print(f"tokens that know after one layer: {np.count_nonzero(once)}, after two: {np.count_nonzero(twice)}")
pairs = masks.global_tokens([0]).pairs(T, T)
print(f"{pairs} pairs a layer, {pairs / T**2:.3%} of all")

pooled = refattn.attention(q[:1], k, v)  # what the hub does is attention pooling, as a [CLS] token's
np.testing.assert_allclose(once[:1], pooled)
assert np.count_nonzero(once) == 1 and np.count_nonzero(twice) == T
assert pairs == 2 * T - 1
