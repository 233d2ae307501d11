"""A filter over a stream that comes in blocks of any length: the state is the last inputs, and nothing else."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, E, K = 100, 3, 5
signal = rng.normal(size=(T, E)).astype(np.float32)
weight = np.full((E, K), 1 / K, np.float32)  # the mean of the last five

whole = refattn.causal_conv1d(signal, weight)
blocks, state, first = [], None, 0
while first < T:
    stop = min(first + int(rng.integers(1, 20)), T)
    o, state = refattn.causal_conv1d(signal[first:stop], weight, initial_state=state)
    blocks.append(o)
    first = stop
print(f"{len(blocks)} blocks of {min(map(len, blocks))} to {max(map(len, blocks))} samples; state {state.shape}")
assert np.array_equal(np.concatenate(blocks), whole.o) and np.array_equal(state, signal[-(K - 1) :])
