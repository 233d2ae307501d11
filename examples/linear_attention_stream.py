"""A long stream in constant memory: after any number of tokens, linear attention holds one matrix and one vector."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
heads, D, pieces, piece = 2, 16, 50, 100
state, kept, outputs = None, [], []
for _ in range(pieces):
    q, k, v = rng.normal(size=(3, heads, piece, D)).astype(np.float32)
    o, state = refattn.linear_attention_chunked(q, k, v, initial_state=state)
    kept.append((q, k, v))
    outputs.append(o)

# The same in one piece, which needs all tokens at once:
q, k, v = (np.concatenate(parts, axis=-2) for parts in zip(*kept, strict=True))
whole = refattn.linear_attention_chunked(q, k, v)
difference = abs(np.concatenate(outputs, axis=-2) - whole.o).max()

held, cache = state.S.nbytes + state.z.nbytes, k.nbytes + v.nbytes
print(f"{pieces * piece} tokens: {held} bytes of state; keys and values would be {cache} bytes")
print(f"in pieces and in one: o differs by at most {difference:.1e}")
assert held * 100 < cache and difference < 1e-5
