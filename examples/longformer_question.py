"""A question of four tokens before a document: they are global, and look with projections of their own."""

import numpy as np

import refattn
from refattn import masks

rng = np.random.default_rng(0)
T, width, heads, D = 1500, 24, 3, 8
question = range(4)
x = rng.normal(size=(T, width))


def project(w):
    """Return the heads (H, T, D) of all tokens in one projection."""
    return (x @ w).reshape(T, heads, D).swapaxes(0, 1)


w_q, w_k, w_v, w_q_global, w_k_global, w_v_global = rng.normal(size=(6, width, width)) / np.sqrt(width)
q, k, v = project(w_q), project(w_k), project(w_v)
own = {
    "q_global": project(w_q_global)[:, question],
    "k_global": project(w_k_global),
    "v_global": project(w_v_global),
}

o = refattn.longformer_attention(q, k, v, window=64, global_indices=question, **own)
ordinary = refattn.longformer_attention(q, k, v, window=64, global_indices=question)
changed = np.flatnonzero((o != ordinary).any(axis=(0, 2)))
pairs = masks.longformer(64, question).pairs(T, T)
print(f"the projections of their own change tokens {changed.tolist()} alone")
print(f"{pairs} of {T * T} pairs, {pairs / T**2:.1%}")

assert changed.tolist() == list(question)
dense = refattn.attention(q, k, v, mask=masks.longformer(64, question))
np.testing.assert_allclose(ordinary, dense, atol=1e-12)
