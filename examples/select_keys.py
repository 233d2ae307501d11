"""Attend to the few keys that match best: what that keeps of the softmax, and how a choice is used again."""

import numpy as np

import refattn
from refattn.masks import causal

rng = np.random.default_rng(0)
H, T, D = 4, 256, 32
q, k, v = (rng.normal(size=(H, T, D)) for _ in range(3))
q = 3 * q  # queries that know what they look for

dense, lse = refattn.attention(q, k, v, mask=causal(), return_lse=True)
error = {}
for n_keys in (4, 16, 64, 256):
    few = refattn.topk_attention(q, k, v, n_keys=n_keys, mask=causal())
    kept = np.exp(few.lse - lse)  # the share of the softmax that the chosen keys had
    error[n_keys] = abs(few.o - dense).max()
    print(
        f"{n_keys:>3} keys keep {kept.mean():.1%} of the weights, {kept.min():.1%} at worst; error {error[n_keys]:.1e}"
    )

# The next layer takes over the choice: no row of scores has to be searched again.
few = refattn.topk_attention(q, k, v, n_keys=16, mask=causal())
again = refattn.topk_attention(q + 0.1 * rng.normal(size=q.shape), k, v, n_keys=16, indices=few.indices)
np.testing.assert_array_equal(again.indices, few.indices)
assert error[4] > error[16] > error[64] > error[256] and error[256] < 1e-12
