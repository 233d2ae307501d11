"""RWKV-5: each head has its rates, and the present token a weight of its own. Three forms, one function."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, T, D = 4, 100, 8
r, k, v = rng.normal(size=(3, H, T, D))
half_life = np.array([1.0, 4.0, 16.0, 64.0])  # in tokens
log_decay = np.repeat(-np.log(2) / half_life[:, None], D, axis=1)  # (H, D), the same for all tokens
u = rng.normal(size=(H, D))

o, state = refattn.rwkv5(r, k, v, log_decay, u)
for other in (
    refattn.rwkv5_recurrent(r, k, v, log_decay, u),
    refattn.rwkv5_chunked(r, k, v, log_decay, u, chunk=32),
):
    assert np.allclose(other.o, o) and np.allclose(other.state, state)

# A head with a half-life of one token has forgotten the first half of the text; one of 64 has not.
late = refattn.rwkv5(*(x[:, 50:] for x in (r, k, v)), log_decay, u).state
missing = [np.linalg.norm(late[h] - state[h]) / np.linalg.norm(state[h]) for h in range(H)]
print("share of the state that is older than 50 tokens:", np.round(missing, 3))
assert missing[0] < 1e-9 and missing[3] > 0.1
