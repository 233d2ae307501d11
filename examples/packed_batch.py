"""Texts of different lengths in one call, packed instead of padded: less to compute, and the same numbers."""

import numpy as np

import refattn
from refattn.masks import causal, padding

rng = np.random.default_rng(0)
lengths = np.array([37, 5, 90, 12, 61])  # one training batch
H, Hk, D = 4, 2, 16
B, longest, total = len(lengths), lengths.max(), lengths.sum()
q = rng.normal(size=(total, H, D)).astype(np.float32)
k, v = (rng.normal(size=(total, Hk, D)).astype(np.float32) for _ in range(2))
borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

o = refattn.attention_varlen(q, k, v, borders, borders, mask=causal())
g = refattn.attention_varlen_vjp(np.ones_like(o), q, k, v, borders, borders, mask=causal())

exists = np.arange(longest) < lengths[:, None]  # which slots of a padded batch hold a token
padded = []
for x in (q, k, v):
    room = np.zeros((B, longest, *x.shape[1:]), np.float32)
    room[exists] = x
    padded.append(room.swapaxes(1, 2))
o_padded = refattn.attention(*padded, mask=causal() & padding(lengths)).swapaxes(1, 2)[exists]

mask = causal()
print(f"tokens: {total} packed, {B * longest} padded")
seen = sum(map(mask.pairs, lengths, lengths))
print(f"scores per head: {(lengths**2).sum()} packed, {B * longest**2} padded, {seen} visible")
print(f"largest difference: {abs(o - o_padded).max():.1e}")
for b in range(B):
    text = slice(borders[b], borders[b + 1])
    print(f"text {b}: {lengths[b]:>2} tokens, norm of dk {np.linalg.norm(g.dk[text]):.3f}")
assert g.dk.shape == k.shape
np.testing.assert_allclose(o, o_padded, atol=1e-5)
assert (lengths**2).sum() < B * longest**2 / 2
