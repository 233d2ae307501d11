"""A block of Mamba from its two operations: it reads a prompt at once, then goes on a token at a time."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
d_model, E, N, rank, K = 16, 32, 8, 4, 4


def matrix(rows, columns):
    return rng.normal(size=(rows, columns)) / np.sqrt(rows)


w_in, w_x, w_dt, w_out = matrix(d_model, 2 * E), matrix(E, rank + 2 * N), matrix(rank, E), matrix(E, d_model)
weight, bias, D = matrix(E, K), np.zeros(E), np.ones(E)
A = -np.arange(1.0, N + 1) * np.ones((E, 1))
delta_bias = np.log(np.expm1(rng.uniform(0.001, 0.1, size=E)))  # softplus of it is a step


def block(tokens, conv_state=None, state=None):
    """Return what the block makes of tokens (T, d_model), and its two states."""
    u, z = np.split(tokens @ w_in, 2, axis=-1)
    u, conv_state = refattn.causal_conv1d(u, weight, bias, activation="silu", initial_state=conv_state)
    delta, B, C = np.split(u @ w_x, [rank, rank + N], axis=-1)  # the step, and B and C, depend on the token
    steps = {"delta_bias": delta_bias, "delta_softplus": True}
    o, state = refattn.selective_scan(u, delta @ w_dt, A, B, C, D=D, z=z, **steps, initial_state=state)
    return o @ w_out, conv_state, state


text = rng.normal(size=(50, d_model))
whole, _, state = block(text)
said, *states = block(text[:30])
outputs = [said]
for t in range(30, 50):
    one, *states = block(text[t : t + 1], *states)
    outputs.append(one)
kept = sum(x.size for x in states)
print(f"{kept} numbers are kept, after 30 tokens as after 50; keys and values of 50 tokens would be {50 * 2 * d_model}")
assert np.allclose(np.concatenate(outputs), whole)
