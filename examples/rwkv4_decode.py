"""RWKV-4 as a running mean: a prompt in one call, then a token at a time from three numbers per channel."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, E = 200, 4
w = np.array([0.0, 0.01, 0.3, 3.0])  # from a mean of all to a mean of the last few
u = np.zeros(E)
k = 30 * rng.normal(size=(T, E))  # e^k reaches beyond what float32 holds
v = np.cumsum(rng.normal(size=(T, E)), axis=0)
k, v, w, u = (x.astype(np.float32) for x in (k, v, w, u))

whole = refattn.rwkv4(w, u, k, v).o
prompt, state = refattn.rwkv4(w, u, k[:150], v[:150])
steps = [prompt]
for t in range(150, T):
    o, state = refattn.rwkv4_recurrent(w, u, k[t : t + 1], v[t : t + 1], initial_state=state)
    steps.append(o)
again = np.concatenate(steps)

with np.errstate(over="ignore", invalid="ignore"):
    naive = np.cumsum(np.exp(k) * v, axis=0) / np.cumsum(np.exp(k), axis=0)  # no decay, no maximum
print("largest difference:", abs(again - whole).max(), "state:", [x.shape for x in state])
assert abs(again - whole).max() < 1e-3 and np.isfinite(whole).all() and np.isnan(naive).any()
