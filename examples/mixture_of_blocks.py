"""Find one remark far back in a long text: MoBA picks its chunk by the mean of the keys, a window has long lost it."""

import numpy as np

import refattn
from refattn.masks import causal, window

rng = np.random.default_rng(0)
Hk, T, D, chunk = 2, 1024, 64, 64
topics = rng.normal(size=(Hk, T // chunk, D))  # what each chunk is about
k = np.repeat(topics, chunk, axis=1) + 0.5 * rng.normal(size=(Hk, T, D))
v = np.repeat(np.arange(T // chunk), chunk)[None, :, None] * np.ones((Hk, T, 1))  # the number of the chunk
asked = 3
q = np.repeat(2 * topics[:, None, asked], 2, axis=0)  # (4, 1, D): the last token asks for the topic of chunk 3

dense = refattn.attention(q, k, v, mask=causal())
moba = refattn.moba_attention(q, k, v, chunk=chunk, top_k=3)
near = refattn.attention(q, k, v, mask=causal() & window(3 * chunk - 1, 0))
for head, chosen in enumerate(moba.indices[:, 0]):
    print(f"head {head} looks at the chunks {chosen.tolist()} of {T // chunk}")
for name, o in (("every key", dense), ("MoBA, 3 chunks", moba.o), ("window of 3 chunks", near)):
    print(f"{name:<18} answers {o.mean():5.2f}")
assert (moba.indices == asked).any(axis=-1).all()
np.testing.assert_allclose(moba.o, dense, atol=0.05)
assert abs(near - asked).min() > 5
