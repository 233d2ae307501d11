"""One query, many keys: cut the keys into parts, attend to each in a thread of its own, and merge the answers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, Hk, Tk, D = 8, 2, 20_000, 64
q = rng.normal(size=(H, 1, D)).astype(np.float32)
k, v = (rng.normal(size=(Hk, Tk, D)).astype(np.float32) for _ in range(2))
sinks = np.full(H, 10.0, np.float32)  # a large share for no key at all

parts = [slice(start, start + 4000) for start in range(0, Tk, 4000)]
with ThreadPoolExecutor() as pool:
    results = list(pool.map(lambda part: refattn.attention(q, k[:, part], v[:, part], return_lse=True), parts))
for part, (_, lse) in zip(parts, results, strict=True):
    print(f"keys {part.start:>6} to {part.stop:<6} lse of head 0: {lse[0, 0]:.4f}")

o, lse = refattn.merge_attention(*results, sinks=sinks)  # sinks enter once, here
print(f"all keys and the sink   lse of head 0: {lse[0, 0]:.4f}")
print(f"the sink's share of head 0: {np.exp(sinks[0] - lse[0, 0]):.1%}")

whole, whole_lse = refattn.attention(q, k, v, sinks=sinks, return_lse=True)
split = refattn.attention_split_kv(q, k, v, sinks=sinks, num_splits=5, backend="numba")  # the same in one call
np.testing.assert_allclose(lse, whole_lse, rtol=1e-6)
np.testing.assert_allclose(o, whole, atol=1e-6)
np.testing.assert_allclose(split, whole, atol=1e-6)
assert np.allclose(np.logaddexp.reduce([part_lse for _, part_lse in results] + [sinks[:, None]]), lse)
