"""One layer of retention, three ways: all tokens at once, in chunks, and one token at a time as when it generates."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, T, D = 4, 300, 32
q, k, v = (rng.normal(size=(H, T, D)) for _ in range(3))
log_decay = refattn.retention_log_decay(H)  # γ = 1 - 2^(-5 - h)

parallel = refattn.retention(q, k, v, log_decay)
chunked = refattn.retention_chunked(q, k, v, log_decay, chunk=64)

state, steps = None, []  # a prompt of 200 tokens in one go, then a token a time
for tokens in (slice(0, 200), *(slice(t, t + 1) for t in range(200, T))):
    now = refattn.retention_recurrent(*(x[:, tokens] for x in (q, k, v)), log_decay, initial_state=state)
    state = now.state
    steps.append(now.o)
decoded = np.concatenate(steps, axis=1)

for h, memory in enumerate(-np.log(2) / log_decay):
    print(f"head {h}: a token counts half after {memory:5.1f} tokens")
print(f"state: {state[0].size} numbers a head; a cache of keys and values would have {2 * T * D} by now")
np.testing.assert_allclose(chunked.o, parallel.o, atol=1e-9)
np.testing.assert_allclose(decoded, parallel.o, atol=1e-9)
assert np.allclose(state, parallel.state, atol=1e-9)
