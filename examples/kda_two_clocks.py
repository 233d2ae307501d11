"""Two clocks in one memory: rows of the state that forget in a few tokens, beside rows that keep for a thousand."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D = 1000, 8
half_lives = np.array([4.0] * 4 + [1e5] * 4)  # tokens, per row of the state
log_decay = np.tile(-np.log(2) / half_lives, (T, 1))

names = np.eye(D)
k = np.zeros((T, D))
v, beta = np.zeros((T, 1)), np.zeros(T)
for token, row, value in ((0, 0, 5.0), (1, 7, 9.0), (990, 1, 3.0)):
    k[token], v[token], beta[token] = names[row], value, 1.0  # all other tokens write nothing

slow, quick, recent = names[7], names[0], names[1]
_, state = refattn.kda_chunked(k, k, v, log_decay, beta)
print("of the 9 in a slow row:", slow @ state, "- of the 5 in a quick one:", quick @ state)
print("of the 3 that came ten tokens ago in a quick row:", recent @ state)
assert slow @ state > 8.9 and quick @ state < 1e-30 and abs(recent @ state - 3 * 0.5 ** (9 / 4)) < 1e-12

# One decay for all rows has to choose:
_, state = refattn.gated_delta_rule_chunked(k, k, v, log_decay.mean(axis=-1), beta)
assert slow @ state < 1e-30
