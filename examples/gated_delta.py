"""Read a document in chunks, then go on a token at a time: where the topic changes, one gate clears the memory."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
B, H, T, D, Dv = 2, 4, 300, 16, 32
q, k, v = (rng.normal(size=(B, H, T, width)).astype(np.float32) for width in (D, D, Dv))
q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))  # as Qwen3-Next does, outside the operation
log_decay = -0.05 * rng.exponential(size=(B, H, T)).astype(np.float32)
beta = rng.uniform(0, 1, size=(B, H, T)).astype(np.float32)
log_decay[..., 200] = -np.inf  # a new topic

prompt = slice(0, 250)
o, state = refattn.gated_delta_rule_chunked(
    q[..., prompt, :], k[..., prompt, :], v[..., prompt, :], log_decay[..., prompt], beta[..., prompt], chunk=64
)
steps = [o]
for t in range(250, T):
    step = (q[..., t : t + 1, :], k[..., t : t + 1, :], v[..., t : t + 1, :], log_decay[..., t : t + 1])
    o, state = refattn.gated_delta_rule_recurrent(*step, beta[..., t : t + 1], initial_state=state)
    steps.append(o)
once = np.concatenate(steps, axis=-2)

topic = slice(200, T)
alone = refattn.gated_delta_rule(
    q[..., topic, :], k[..., topic, :], v[..., topic, :], log_decay[..., topic], beta[..., topic]
)
print("from the second topic alone:", abs(once[..., topic, :] - alone.o).max())
print(f"the memory: {state.nbytes:,} bytes; keys and values of {T} tokens: {k.nbytes + v.nbytes:,}")
assert abs(once[..., topic, :] - alone.o).max() < 1e-5 and abs(state - alone.state).max() < 1e-5
