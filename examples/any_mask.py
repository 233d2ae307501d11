"""Sixteen thousand tokens under a mask of one's own: documents, a window, a few tokens that all see."""

import numpy as np

import refattn
from refattn import masks

rng = np.random.default_rng(0)
T, H, D = 16_384, 1, 8
lengths = rng.multinomial(T, np.ones(10) / 10)
documents = np.repeat(np.arange(10), lengths)
mask = masks.causal() & (masks.window(24, 0) & masks.document(documents) | masks.global_tokens([0, 1]))
q, k, v = (rng.normal(size=(H, T, D)).astype(np.float32) for _ in range(3))

o, lse = refattn.sparse_attention(q, k, v, mask, return_lse=True)
pairs = mask.pairs(T, T)
print(f"{pairs} pairs of {T * T}: {pairs / T**2:.2%}")
print(f"their scores take {4 * H * pairs / 2**20:.0f} MiB, those of all pairs {4 * H * T * T / 2**20:,.0f} MiB")

some = np.array([0, 1, 5000, T - 1])  # dense attention for a few queries, to compare
visible = mask.see(some[:, None], np.arange(T), T, T)
np.testing.assert_allclose(o[:, some], refattn.attention(q[:, some], k, v, mask=visible), atol=1e-5)
assert pairs < T**2 / 400
