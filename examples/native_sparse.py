"""Decode with native sparse attention: how few keys a query reads, and which blocks it selects."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
H, Hk, T, D = 4, 1, 2048, 32
sizes = {"block_size": 32, "stride": 16, "select_block": 64, "n_selected": 8, "window": 128}
q, k, v = rng.normal(size=(H, 1, D)), rng.normal(size=(Hk, T, D)), rng.normal(size=(Hk, T, D))
gates = 1 / (1 + np.exp(-rng.normal(size=(H, 1, 3))))
found = 13
k[:, 64 * found : 64 * (found + 1)] += 0.5 * q.mean(axis=0)  # block 13 has what the group looks for

o, lse, indices = refattn.nsa_attention(q, k, v, gates, **sizes)
compressed = (T - 32) // 16 + 1
read = compressed + 8 * 64 + 128
print(f"of {T} keys, a query reads {compressed} compressed ones, 8 blocks of 64, and a window of 128: {read}")
print(f"the group of {H} heads selects the blocks {indices[0, 0].tolist()} of {T // 64}")
for name, branch in zip(("compression", "selection", "window"), lse.T, strict=True):
    print(f"{name:<12} lse by head {np.round(branch[0], 1)}")
again = refattn.nsa_attention(q, k, v, gates, **sizes, indices=indices)  # as a next step would, without choosing
np.testing.assert_array_equal(again.o, o)
assert {0, found, 30, 31} <= set(indices[0, 0].tolist()) and read < 0.4 * T
