"""Generate token by token the way an ONNX runtime would: Attention-25 with past and present keys, RoPE before it."""

import numpy as np

from refattn.dialects.onnx import Attention, RotaryEmbedding

HEADS, KV_HEADS, D, TOKENS, WINDOW = 4, 2, 8, 12, 5


def rotary_caches(positions, theta=10000.0):
    """Return cos and sin of the angle of position t and pair n, t θ^(-2n/D)."""
    angle = np.arange(positions)[:, None] * theta ** (-np.arange(0, D, 2) / D)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def main():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, heads, TOKENS, D)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    cos, sin = rotary_caches(TOKENS)
    node = {"is_causal": 1, "left_window_size": WINDOW - 1}

    past_key, past_value = (np.zeros((1, KV_HEADS, 0, D), np.float32) for _ in range(2))
    steps = []
    for t in range(TOKENS):
        token, ids = np.s_[:, :, t : t + 1], np.array([[t]])
        q_t, k_t = (RotaryEmbedding(x[token], cos, sin, ids) for x in (q, k))
        # The past puts the query at position t: causal and window follow it.
        y, past_key, past_value, _ = Attention(q_t, k_t, v[token], None, past_key, past_value, **node, backend="numba")
        steps.append(y)

    ids = np.arange(TOKENS)[None]
    whole, *_ = Attention(RotaryEmbedding(q, cos, sin, ids), RotaryEmbedding(k, cos, sin, ids), v, **node)
    error = np.abs(np.concatenate(steps, axis=2) - whole).max()
    print(f"{TOKENS} steps with a cache of up to {past_key.shape[2]} tokens differ from one pass by {error:.1e}")
    assert error < 1e-6


if __name__ == "__main__":
    main()
