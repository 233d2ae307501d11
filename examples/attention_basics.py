"""A dictionary that forgives: keys are names, values are years, and a query between two names gets a mix."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
names, years = ["Ada", "Alan", "Grace", "Edsger"], [1815, 1912, 1906, 1930]
k = rng.normal(size=(4, 64)).astype(np.float32)  # a random code for each name             (Tk, D)
v = np.array(years, np.float32)[:, None]  #                                                (Tk, Dv)

shares = [1.0, 0.75, 0.5, 0.25, 0.0]
q = np.stack([share * k[0] + (1 - share) * k[2] for share in shares])  # Ada ... Grace     (Tq, D)
o, lse = refattn.attention(q, k, v, return_lse=True)
p = refattn.attention(q, k, np.eye(4, dtype=np.float32))  # one-hot values: the result is the weights

print("asked for               got  from")
for share, result, row in zip(shares, o[:, 0], p, strict=True):
    weights = "  ".join(f"{name} {weight:6.1%}" for name, weight in zip(names, row, strict=True))
    print(f"{share:4.0%} Ada {1 - share:4.0%} Grace  {result:7.1f}  {weights}")

fast, fast_lse = refattn.attention(q, k, v, return_lse=True, backend="numba")
np.testing.assert_allclose(fast, o, rtol=1e-5)
np.testing.assert_allclose(fast_lse, lse, rtol=1e-5)
assert p.argmax(axis=-1)[0] == 0 and p.argmax(axis=-1)[-1] == 2
