"""Read a long prompt in chunks while another text goes on token by token: nobody waits, and no number changes."""

import numpy as np

import refattn
from refattn.masks import causal, window

rng = np.random.default_rng(0)
H, Hk, D, T, chunk = 6, 2, 16, 100, 32
mask = causal() & window(63, 0)
long_text, short_text = ([rng.normal(size=(heads, T, D)).astype(np.float32) for heads in (H, Hk, Hk)] for _ in range(2))
cache = refattn.PagedKVCache(n_pages=20, page_size=16, kv_heads=Hk, head_dim=D)
reading, writing = cache.allocate(), cache.allocate()


def attend(sequence, text, start, stop):
    """Append some tokens of a text and return the results for them, (H, stop - start, D)."""
    q, k, v = (x[:, start:stop] for x in text)
    cache.append(sequence, k, v)
    return refattn.paged_attention(q[None], *cache.view([sequence]), mask=mask)[0]


pieces, written = [], [attend(writing, short_text, 0, 20)]
for start in range(0, T, chunk):
    stop = min(start + chunk, T)
    pieces.append(attend(reading, long_text, start, stop))
    at = int(cache.seqlens([writing])[0])
    written.append(attend(writing, short_text, at, at + 1))
    scores = H * mask.pairs(stop - start, stop)
    print(f"read {start:>2} to {stop:<3} ({scores:>5} scores), wrote token {at}, {cache.pages_free} pages free")

whole = refattn.attention(*long_text, mask=mask)
pieces, written = np.concatenate(pieces, axis=1), np.concatenate(written, axis=1)
print(f"chunks and one pass differ by {abs(pieces - whole).max():.1e}")
np.testing.assert_allclose(pieces, whole, atol=1e-5)
np.testing.assert_allclose(written, refattn.attention(*short_text, mask=mask)[:, : written.shape[1]], atol=1e-5)
assert written.shape[1] == 20 + len(range(0, T, chunk))
