"""How far does a word's influence reach? A window moves it a few tokens a layer, windows with gaps much further."""

import numpy as np

import refattn

T = 256
nothing_preferred = np.zeros((T, 1))  # equal scores: each layer takes the mean of what it sees


def spread(layers):
    """Send a signal from the token in the middle through layers of attention; return which tokens it reaches."""
    signal = np.zeros((T, 1))
    signal[T // 2] = 1
    for attend in layers:
        signal = attend(nothing_preferred, nothing_preferred, signal)
    return np.flatnonzero(signal[:, 0]) - T // 2


def near(q, k, v):
    return refattn.local_attention(q, k, v, left=1, right=1)


def with_gaps(step):
    return lambda q, k, v: refattn.dilated_attention(q, k, v, window=1, step=step)


plain = spread([near] * 4)
wide = spread([with_gaps(step) for step in (1, 3, 9, 27)])
print(f"4 layers of 3 keys, neighbours:          {plain.min()} ... {plain.max()}, {len(plain)} tokens")
print(f"4 layers of 3 keys, steps 1, 3, 9, 27: {wide.min()} ... {wide.max()}, {len(wide)} tokens")

assert np.array_equal(plain, np.arange(-4, 5))  # one token a layer
assert np.array_equal(wide, np.arange(-40, 41))  # 3^4 tokens: each sum of ±1, ±3, ±9, ±27 or none of them, once
