"""How many landmarks does a sequence need? The Nyström estimate against softmax attention, smooth tokens and not."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
T, D = 128, 8
noise = rng.normal(size=(3, T, D))
turns = np.arange(T)[:, None] * np.pi / T * np.arange(1, D + 1)
smooth = np.stack([np.cos(turns + phase) for phase in (0.0, 0.3, 0.6)])  # neighbours are alike

errors = {}
print("landmarks  " + "  ".join(f"{m:>8}" for m in (4, 16, 64, 128)))
for name, (q, k, v) in {"smooth": smooth, "noise": noise}.items():
    exact = refattn.attention(q, k, v)
    for m in (4, 16, 64, 128):
        o = refattn.nystrom_attention(q, k, v, landmarks=m, iterations=20)
        errors[name, m] = np.linalg.norm(o - exact) / np.linalg.norm(exact)
    print(f"{name:9}  " + "  ".join(f"{errors[name, m]:8.1e}" for m in (4, 16, 64, 128)))

# Means of neighbours stand for them where neighbours are alike, and only there.
assert errors["smooth", 16] < 0.1 < errors["noise", 16]
assert errors["noise", 128] < errors["noise", 16]
