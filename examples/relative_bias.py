"""Learn a T5 bias: attention that finds its tokens by distance alone, from nothing but examples of its answers."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
n_buckets, H, T, Dv = 8, 2, 24, 6
q = k = np.zeros((H, T, 1))  # no content to match: the bias is all there is
options = {"bidirectional": False, "max_distance": 16}


def answer(table, v):
    bias = refattn.t5_bias(table, T, T, **options)
    return refattn.attention(q, k, v, bias=bias, mask=refattn.masks.causal(), scale=1.0), bias


teacher = np.zeros((n_buckets, H))
teacher[1, 0], teacher[4, 1] = 4.0, 4.0  # head 0 reads the token before, head 1 what is four or five tokens back
table = np.zeros((n_buckets, H))
for step in range(301):
    v = rng.normal(size=(H, T, Dv))
    (o, bias), (want, _) = answer(table, v), answer(teacher, v)
    loss = ((o - want) ** 2).mean()
    if step % 100 == 0:
        print(f"step {step:>3}: loss {loss:.6f}, head 0 likes bucket {table[:, 0].argmax()}")
    do = 2 * (o - want) / o.size
    g = refattn.attention_vjp(do, q, k, v, bias=bias, mask=refattn.masks.causal(), scale=1.0)
    table -= 20.0 * refattn.t5_bias_vjp(g.dbias, n_buckets, **options)

table -= table[0] - teacher[0]  # a softmax does not notice what all buckets share
print("learnt:", table.T.round(1), "taught:", teacher.T, sep="\n")
assert loss < 1e-4 and (table.argmax(axis=0) == teacher.argmax(axis=0)).all()
