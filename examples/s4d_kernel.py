"""A filter with a long memory: S4D as one convolution, and the same filter run as a stream, sample by sample."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, E, N = 400, 2, 8
delta = np.array([0.05, 0.005])  # memories of 40 and of 400 samples
A_real, A_imag = np.full((E, N), -0.5), np.pi * np.arange(N) * np.ones((E, 1))  # the initialisation S4D-Lin
C = rng.normal(size=(2, E, N))
filter_ = (delta, A_real, A_imag, *C)

impulse = np.zeros((T, E))
impulse[0] = 1
kernel = refattn.s4d(impulse, *filter_).o
for e in range(E):
    late = np.linalg.norm(kernel[100:, e]) / np.linalg.norm(kernel[:, e])
    print(f"step {delta[e]}: {late:.0%} of the kernel's norm comes later than 100 samples")

signal = np.sin(np.linspace(0, 20, T))[:, None] + 0.1 * rng.normal(size=(T, E))
whole = refattn.s4d(signal, *filter_)

state, samples = None, []
for t in range(T):  # all that is kept is the state, E N complex numbers
    o, state = refattn.s4d_recurrent(signal[t : t + 1], *filter_, initial_state=state)
    samples.append(o)
assert np.allclose(np.concatenate(samples), whole.o) and np.allclose(state, whole.state)
