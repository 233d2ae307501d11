"""What position does to cosFormer's weights, and how to decode with its state: a token needs its place."""

import numpy as np

import refattn

length, D = 64, 8

# Keys that are all alike, and values that name the token: o is the row of weights.
same, who = np.ones((length, 1)), np.eye(length)
weights = refattn.cosformer_attention(same, same, who, length=length, causal=False).o
for i in (0, 32, 63):
    row = weights[i] / weights[i].max()
    print(f"query {i:2}:", "".join("·" if w < 0.05 else str(int(9 * w + 0.5)) for w in row[::4]))
assert (weights.argmax(axis=-1) == np.arange(length)).all() and (weights >= 0).all()

# A prompt in parallel, then a token at a time from the state, each at its position.
rng = np.random.default_rng(0)
q, k, v = rng.normal(size=(3, length, D))
whole = refattn.cosformer_attention(q, k, v, length=length).o
prompt = 40
o, state = refattn.cosformer_attention(q[:prompt], k[:prompt], v[:prompt], length=length)
rows = [o]
for t in range(prompt, length):
    step = q[t : t + 1], k[t : t + 1], v[t : t + 1]
    o, state = refattn.cosformer_attention_recurrent(*step, length=length, start=t, initial_state=state)
    rows.append(o)
print("decoded and in one piece differ by at most", abs(np.concatenate(rows) - whole).max())
assert np.allclose(np.concatenate(rows), whole)
