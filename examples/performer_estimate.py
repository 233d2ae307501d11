"""How good is a Performer? Its error against softmax attention for more and more random features."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D, draws = 64, 8, 20
q, k, v = rng.normal(size=(3, T, D)) * np.array([0.6, 0.6, 1.0])[:, None, None]
exact = refattn.attention(q, k, v, mask=refattn.masks.causal())


def error(features, orthogonal):
    """Return the root of the mean squared error over several projections."""
    squares = []
    for seed in range(draws):
        w = refattn.draw_projection(features, D, seed=seed, orthogonal=orthogonal)
        squares.append(np.mean((refattn.performer_attention(q, k, v, w).o - exact) ** 2))
    return np.sqrt(np.mean(squares))


print("features  independent  orthogonal")
errors = {}
for features in (8, 32, 128, 512):
    errors[features] = error(features, False), error(features, True)
    print(f"{features:8}  {errors[features][0]:11.4f}  {errors[features][1]:10.4f}")

# A Monte Carlo estimate: 16 times the features, about a quarter of the error.
assert errors[8][1] > errors[32][1] > errors[128][1] > errors[512][1]
assert 2.5 < errors[32][1] / errors[512][1] < 6
