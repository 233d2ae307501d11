"""Decode with a cache of latents: the answers of the expanded heads, from a small part of their bytes."""

import math

import numpy as np

import refattn
from refattn.masks import causal

rng = np.random.default_rng(0)
H, T, prompt = 8, 40, 32
Dn, Dr, L, Dv = 16, 8, 32, 16
q_nope, q_rope = rng.normal(size=(H, T, Dn)), rng.normal(size=(H, T, Dr))
c_kv, k_rope = rng.normal(size=(T, L)), rng.normal(size=(T, Dr))
w_uk, w_uv = rng.normal(size=(H, L, Dn)) / math.sqrt(L), rng.normal(size=(H, L, Dv)) / math.sqrt(L)
t = np.arange(T)
q_rope, k_rope = refattn.rope(q_rope, t), refattn.rope(k_rope, t)

whole = refattn.mla_attention_expanded(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, mask=causal())

# One "head" for all: the latents stand where keys do, the rotated keys where values do.
cache = refattn.KVCache((), kv_heads=1, capacity=T, head_dim=L, v_head_dim=Dr, dtype=np.float64)
pieces, start = [], 0
with refattn.use_backend("auto"):
    while start < T:
        stop = prompt if start == 0 else start + 1
        c, k = cache.append(c_kv[None, start:stop], k_rope[None, start:stop])
        q = q_nope[:, start:stop], q_rope[:, start:stop]
        pieces.append(refattn.mla_attention(*q, c[0], k[0], w_uk, w_uv, mask=causal()))
        start = stop

expanded = T * H * (Dn + Dr + Dv) * 8
print(f"{cache.nbytes} bytes hold {T} tokens; {H} heads with keys and values of their own need {expanded}")
error = abs(np.concatenate(pieces, axis=1) - whole).max()
print(f"the prompt at once and {T - prompt} tokens one by one differ from one expanded pass by {error:.1e}")
assert error < 1e-12 and cache.nbytes * 8 == expanded
