"""Mistakes in the numba backend's operations on channels, as changes to their source; see tests/mistakes/numba.py."""

from tests.mistakes.numba import Mistake

ALL = [
    Mistake("the steps without their bias", "selective_scan", "bias is not None, bool(soft)", "False, bool(soft)",
            "selective_scan"),
    Mistake("rates for e as if for 2", "selective_scan", "* dtype.type(LOG2E)", "* dtype.type(1)", "selective_scan"),
    Mistake("all sequences begin at the first row", "channels", "np.stack([borders[:-1], ",
            "np.stack([0 * borders[:-1], ", "selective_scan causal_conv1d"),
    Mistake("the taps turned round", "causal_conv1d", "np.empty(x.size, x.dtype), rows(weight.T, x.dtype)",
            "np.empty(x.size, x.dtype), rows(weight.T[::-1], x.dtype)", "causal_conv1d"),
    Mistake("the first input kept, not the last", "causal_conv1d", "own[..., own.shape[-2] - count :, :]",
            "own[..., :count, :]", "causal_conv1d"),
    Mistake("half of the conjugate pairs", "s4d", "step * _phi(step * A), 2 * C)", "step * _phi(step * A), C)", "s4d"),
    Mistake("B as for Euler's rule", "s4d", "(np.exp(step * A), step * _phi(step * A), 2 * C)",
            "(np.exp(step * A), step + 0 * A, 2 * C)", "s4d"),
    Mistake("the maximum begins at 0", "rwkv4", "x[..., 2, :] = most", "x[..., 2, :] = 0", "rwkv4"),
]  # fmt: skip
"""Changes outside what is compiled."""

COMPILED = [
    Mistake("the last token of a sequence dropped", "selective_scan", "table[s, 0], table[s, 1], e, E, N,\n            "
            "space, 0, 0,", "table[s, 0], table[s, 1] - 1, e, E, N,\n            space, 0, 0,", "selective_scan"),
    Mistake("the way back stops before the first chunk", "selective_scan", "for c in range(2 * chunks - 1):",
            "for c in range(2 * chunks - 2):", "selective_scan_vjp"),
    Mistake("the first block of every run", "causal_conv1d", "for t in range(table[item, 3], table[item, 4]):",
            "for t in range(0, table[item, 4] - table[item, 3]):", "causal_conv1d"),
    Mistake("the gradient of max not carried", "rwkv4", "            if n == 0:\n                _add_moved",
            "            if n < 0:\n                _add_moved", "rwkv4_vjp"),
]  # fmt: skip
"""Changes to what is compiled."""
