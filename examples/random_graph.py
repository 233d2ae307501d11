"""Three keys drawn at random spread news through a thousand tokens in a few layers: random graphs are small worlds."""

import numpy as np

import refattn

T, n_keys = 1000, 3
q = np.zeros((T, 1))


def layers_until_all_know(draws):
    """Count the layers until a signal at token 0 has reached every token; each layer draws by its own seed."""
    known = np.zeros((T, 1))
    known[0] = 1
    for layer, seed in enumerate(draws, start=1):
        heard = refattn.random_attention(q, q, known, n_keys=n_keys, seed=seed)
        known = ((known + heard) > 0).astype(float)  # a residual connection: what is known stays known
        print(f"layer {layer}: {int(known.sum()):>4} of {T} tokens")
        if known.all():
            return layer
    return None


layers = layers_until_all_know(range(40))
by_window = T // (n_keys - 1)  # a window of the same cost moves news two tokens a layer
print(f"{layers} layers; a causal window of {n_keys} keys takes {by_window}")

again = refattn.random_attention(q, q, np.eye(T), n_keys=n_keys, seed=7)
assert np.array_equal(again, refattn.random_attention(q, q, np.eye(T), n_keys=n_keys, seed=7))  # a draw is a value
assert (np.count_nonzero(again, axis=1) == n_keys).all()
assert layers is not None and layers < 20
