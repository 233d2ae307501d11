"""RWKV-7 as a machine with registers: write, replace and swap by choosing what is removed and what is written."""

import numpy as np

import refattn

e = np.eye(4)
zero, ones = np.zeros(4), np.ones(4)
write = [(zero, zero, e[n], [10.0 * (n + 1)]) for n in range(4)]  # kappa_hat, a, k, v
replace = [(e[1], ones, e[1], [5.0])]  # all that register 1 holds is removed, 5 is written
soften = [(e[2], ones / 2, zero, [0.0])]  # half of register 2 is removed
flip = (e[0] - e[3]) / np.sqrt(2)  # I - 2 κ κᵀ swaps registers 0 and 3; a = 2 is beyond what the model's sigmoid gives
swap = [(flip, 2 * ones, zero, [0.0])]

program = write + replace + soften + swap
kappa_hat, a, k, v = (np.array(column) for column in zip(*program, strict=True))
r, log_decay = np.zeros_like(k), np.zeros_like(k)
_, state = refattn.rwkv7(r, k, v, log_decay, kappa_hat, a)
print("registers:", state[:, 0].round(6))
assert np.allclose(state[:, 0], [40, 5, 15, 10])

# Half of the program, the rest later, from the state alone:
_, half = refattn.rwkv7_chunked(*(x[:5] for x in (r, k, v, log_decay, kappa_hat, a)), chunk=2)
for t in range(5, len(k)):
    now = (x[t : t + 1] for x in (r, k, v, log_decay, kappa_hat, a))
    _, half = refattn.rwkv7_recurrent(*now, initial_state=half)
assert np.allclose(half, state)
