"""Heads of Mamba-2 read three documents packed into one sequence, and go on with each from its own state."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, G, N, P = 4, 1, 8, 6
lengths = np.array([20, 7, 33])
borders = np.concatenate([[0], np.cumsum(lengths)])
T = borders[-1]
A, D, dt_bias = -rng.uniform(1, 16, size=H), np.ones(H), np.log(np.expm1(rng.uniform(0.001, 0.1, size=H)))
heads = {"A": A, "D": D, "dt_bias": dt_bias, "dt_softplus": True}
x, dt = rng.normal(size=(H, T, P)), rng.normal(size=(H, T))
B, C = rng.normal(size=(2, G, T, N))

o, states = refattn.ssd_chunked(x, dt, B=B, C=C, **heads, cu_seqlens=borders, chunk=16)
print("states of", *(f"{length} tokens," for length in lengths), "each", states.shape[1:])

# The next token of the second document: the batch axis of its state is the document's place in the pack.
more = {"x": rng.normal(size=(H, 1, P)), "dt": rng.normal(size=(H, 1))}
more |= {"B": rng.normal(size=(G, 1, N)), "C": rng.normal(size=(G, 1, N))}
step, _ = refattn.ssd_recurrent(**more, **heads, initial_state=states[1])

# The same without packing and without a state: the document and its next token as one matrix of pairs.
own = slice(borders[1], borders[2])
document = {"x": x[:, own], "dt": dt[:, own], "B": B[:, own], "C": C[:, own]}
longer = {name: np.concatenate([document[name], more[name]], axis=1) for name in more}
whole = refattn.ssd(**longer, **heads).o
assert np.allclose(whole[:, :-1], o[:, own]) and np.allclose(whole[:, -1:], step)
