"""Read four times the context of the training: what each scaling does to the fast pairs and to the slow ones."""

import math

import numpy as np

import refattn

D, trained, factor = 64, 512, 4.0
scalings = {
    "none": refattn.linear_frequencies(D, factor=1.0),
    "linear": refattn.linear_frequencies(D, factor=factor),
    "ntk": refattn.ntk_frequencies(D, factor=factor),
    "yarn": refattn.yarn_frequencies(D, factor=factor, original_max_position=trained),
    "llama3": refattn.llama3_frequencies(D, theta=10000.0, factor=factor, original_max_position=trained),
}
old = scalings["none"].frequencies
slow = trained * old < 2 * math.pi  # pairs that did not even turn once: most of their angles were never seen
q = k = np.full((1, D), D**-0.5)
longest = np.array([int(trained * factor) - 1])

print(f"{'':>8}  score lost 1 token apart   furthest angle of the slow pairs   factor of q and k")
seen, lost = {}, {}
for name, (frequencies, m) in scalings.items():
    here, next_one = (refattn.rope(m * x, np.array([at]), frequencies=frequencies) for x, at in ((q, 0), (k, 1)))
    lost[name] = 1 - (here @ next_one.T).item() / m**2
    furthest = longest * frequencies[slow] / ((trained - 1) * old[slow])
    seen[name] = furthest.max() <= 1.01
    print(f"{name:>8} {lost[name]:>25.4f}   {furthest.max():>12.2f} x that of the training   {m:>17.3f}")

assert lost["yarn"] > 0.9 * lost["none"] > 9 * lost["linear"]  # yarn tells neighbours apart as well as before
assert seen == {"none": False, "linear": True, "ntk": False, "yarn": True, "llama3": True}
