"""Read a prompt at once, then go on token by token with a cache: the same numbers as all tokens in one pass."""

import numpy as np

import refattn
from refattn.masks import causal, window

rng = np.random.default_rng(0)
H, Hk, T, prompt, D = 6, 2, 48, 40, 32
q = rng.normal(size=(H, T, D)).astype(np.float32)
k, v = (rng.normal(size=(Hk, T, D)).astype(np.float32) for _ in range(2))
positions = np.arange(T)
mask = causal() & window(31, 0)  # the last query is the last key, however many keys there are

q, k = refattn.rope(q, positions), refattn.rope(k, positions)
whole = refattn.attention(q, k, v, mask=mask)

cache = refattn.KVCache((), kv_heads=Hk, capacity=64, head_dim=D)
pieces, start = [], 0
with refattn.use_backend("auto"):
    while start < T:
        stop = prompt if start == 0 else start + 1
        keys, values = cache.append(k[:, start:stop], v[:, start:stop])
        o = refattn.attention(q[:, start:stop], keys, values, mask=mask)  # (H, stop - start, D)
        error = abs(o - whole[:, start:stop]).max()
        print(f"tokens {start:>2} to {stop:<2} attend to {len(cache):>2} cached tokens, differ by {error:.1e}")
        pieces.append(o)
        start = stop
print(f"{len(cache)} of {cache.capacity} places taken, {cache.nbytes} bytes allocated once")
np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)
assert len(cache) == T
