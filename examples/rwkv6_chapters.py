"""RWKV-6: a gate that depends on the token closes a chapter; nothing before it can be read afterwards."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, T, D = 2, 60, 4
r, k, v = rng.normal(size=(3, H, T, D))
u = rng.normal(size=(H, D))
log_decay = -rng.exponential(0.1, size=(H, T, D))
log_decay[:, 29] = -np.inf  # the last token of the first chapter; it is read by token 30, then nothing is left

o, state = refattn.rwkv6_chunked(r, k, v, log_decay, u, chunk=16)
alone = refattn.rwkv6_chunked(*(x[:, 29:] for x in (r, k, v, log_decay)), u, chunk=16)
moved = abs(o[:, 29:] - alone.o).max(axis=(0, 2))
print("without the first chapter, o of token 29 moves by", moved[0], "and those after it by", moved[1:].max())
assert np.allclose(o[:, 30:], alone.o[:, 1:]) and np.allclose(state, alone.state)
assert not np.allclose(o[:, 29], alone.o[:, 0])  # the gate acts after its token has read

# NaN in the first chapter goes with it, and gets no gradient from the second.
v[:, 3] = np.nan
do = np.where(np.arange(T)[:, None] > 29, 1.0, 0.0) * np.ones((H, T, D))
g = refattn.rwkv6_vjp(do, r, k, v, log_decay, u)
assert np.isfinite(refattn.rwkv6_chunked(r, k, v, log_decay, u).o[:, 30:]).all() and (g.dv[:, :29] == 0).all()
