"""Three kinds of forgetting at the border of a text: nothing, all of the state, or what one half of the keys holds."""

import numpy as np

import refattn

T, D, border = 8, 4, 5
k = np.eye(D)[np.arange(T) % D]  # token t writes under key t % 4
v = np.arange(1.0, T + 1)[:, None]  # its own number
q = np.ones((T, D))  # every token reads everything

keep = np.zeros((T, D))
forget_all, forget_half = keep.copy(), keep.copy()
forget_all[border] = -np.inf
forget_half[border, :2] = -np.inf
for name, gates in (("nothing", keep), ("all", forget_all), ("the first two keys", forget_half)):
    o = refattn.gated_linear_attention(q, k, v, gates, scale=1.0).o[:, 0]
    print(f"forgets {name:<18} {o.astype(int).tolist()}")

o = refattn.gated_linear_attention(q, k, v, forget_all, scale=1.0).o
per_token = refattn.simple_gla(q, k, v, forget_all[:, 0], scale=1.0).o
packed = refattn.gated_linear_attention(q, k, v, keep, scale=1.0, cu_seqlens=np.array([0, border, T])).o
np.testing.assert_array_equal(o, per_token)  # one gate for all dimensions
np.testing.assert_array_equal(o, packed)  # a gate of -inf is the border of two sequences

mean = refattn.hgrn2(np.ones((40, 1)), np.full((40, 1), np.log(0.9)), np.full((40, 1), 7.0)).o
print(f"a running mean of sevens: {mean[0, 0]:.2f} after 1 token, {mean[-1, 0]:.2f} after 40")
assert abs(mean[-1, 0] - 7 * (1 - 0.9**40)) < 1e-12
