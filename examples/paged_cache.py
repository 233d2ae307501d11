"""Three answers to one prompt: they share the pages of the prompt, and each takes pages of its own as it grows."""

import numpy as np

import refattn
from refattn.masks import causal

rng = np.random.default_rng(0)
H, Hk, D, prompt, answers, steps = 6, 2, 16, 40, 3, 12
cache = refattn.PagedKVCache(n_pages=12, page_size=16, kv_heads=Hk, head_dim=D)
alone = [refattn.KVCache((), Hk, capacity=64, head_dim=D) for _ in range(answers)]  # for comparison: one cache each


def tokens(heads, T):
    return rng.normal(size=(heads, T, D)).astype(np.float32)


first = cache.allocate()
k, v = tokens(Hk, prompt), tokens(Hk, prompt)
cache.append(first, k, v)
for other in alone:
    other.append(k, v)
sequences = [first, *(cache.fork(first) for _ in range(answers - 1))]
print(f"{answers} sequences of {prompt} tokens hold {12 - cache.pages_free} pages")

for step in range(steps):
    q = np.stack([tokens(H, 1) for _ in sequences])  # (B, H, 1, D)
    separate = []
    for sequence, other, q_b in zip(sequences, alone, q, strict=True):
        k, v = tokens(Hk, 1), tokens(Hk, 1)
        cache.append(sequence, k, v)  # the first time, the half full page of the prompt is copied
        separate.append(refattn.attention(q_b, *other.append(k, v), mask=causal()))
    o = refattn.paged_attention(q, *cache.view(sequences), mask=causal())
    np.testing.assert_allclose(o, separate, atol=1e-5)
    if step % 4 == 0:
        lengths = cache.seqlens(sequences).tolist()
        print(f"lengths {lengths}, {12 - cache.pages_free} pages\n{cache.page_table(sequences)}")

print(f"apart they would hold {answers * -(-(prompt + steps) // 16)} pages")
assert 12 - cache.pages_free == 2 + 2 * answers  # two full pages of the prompt are stored once
for sequence in sequences:
    cache.free(sequence)
assert cache.pages_free == 12
