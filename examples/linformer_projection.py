"""Learn a Linformer projection: 8 mixtures of 32 keys, by gradient descent towards what softmax attention returns."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D, r, batch = 32, 8, 8, 16
base = rng.normal(size=(3, 1, T, D))  # what inputs have in common: a sum over tokens can be learnt
q, k, v = base + 0.3 * rng.normal(size=(3, batch, T, D))
target = refattn.attention(q, k, v)

means = np.repeat(np.eye(r), T // r, axis=1) / (T // r)  # the start: means of 4 neighbours
e, f = means.copy(), means.copy()


def error(e, f):
    """Return the mean squared error of o."""
    return np.mean((refattn.linformer_attention(q, k, v, e, f) - target) ** 2)


first = error(e, f)
for step in range(201):
    o = refattn.linformer_attention(q, k, v, e, f)
    if step % 50 == 0:
        print(f"step {step:3}: error {np.mean((o - target) ** 2):.5f}")
    g = refattn.linformer_attention_vjp(2 * (o - target) / o.size, q, k, v, e, f)
    e, f = e - g.de, f - g.df

assert error(e, f) < first / 2
