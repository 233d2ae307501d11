"""Mistakes in the scans of the numba backend, as changes to their source; see tests/mistakes/numba.py."""

from tests.mistakes.numba import Mistake

LAYOUT = [
    Mistake(
        "query heads round robin",
        "scan_layout",
        "(b * H + n // (Ho // H)) * T + first",
        "(b * H + n % H) * T + first",
        "simple_gla delta_rule",
    ),
    Mistake(
        "key heads round robin",
        "scan_layout",
        "(b * Hk + m // (Hv // Hk)) * T + first",
        "(b * Hk + m % Hk) * T + first",
        "simple_gla delta_rule",
    ),
    Mistake(
        "states round robin", "scan_layout", "m = n // (Ho // Hv)", "m = n % Hv", "simple_gla gated_linear_attention"
    ),
    Mistake("the state of the first sequence for all", "scan_layout", "s * Hv + m,", "s * 0 + m,", "kda"),
    Mistake(
        "packed sequences end a token early",
        "scan_layout",
        "np.diff(borders)[:, None]",
        "np.diff(borders)[:, None] - 1",
        "simple_gla gated_delta_rule",
    ),
]
LAUNCH = [
    Mistake(
        "initial state forgotten", "scan", "first_states(call, initial_state)", "first_states(call, None)", "simple_gla"
    ),
    Mistake("scale without its root", "scan", "1 / math.sqrt(call.D)", "1 / call.D", "simple_gla delta_rule"),
    Mistake("decays instead of keys", "hgrn2", "-np.expm1(g)", "np.exp(g)", "hgrn2"),
    Mistake("values without their steps", "ssd", "share=step", "share=None", "ssd"),
    Mistake("limits before softplus", "ssd", "np.logaddexp(dt.dtype.type(0), step) if soft", "step if soft", "ssd"),
    Mistake("no bonus", "rwkv6", "u=u,", "u=0 * u,", "rwkv6"),
    Mistake("all of a key erased", "rwkv7", "share=a,", "share=0 * a + 1,", "rwkv7"),
    Mistake(
        "the normaliser begins at 0", "linear_attention", "np.zeros(shape) if z is None", "np.zeros(shape) if True",
        "linear_attention",
    ),
]  # fmt: skip
COMPILED = [
    Mistake(
        "a last block of one token dropped",
        "scan",
        "for t0 in range(0, T, BLOCK):",
        "for t0 in range(0, T - 1, BLOCK):",
        "simple_gla gated_linear_attention",
    ),
    Mistake(
        "what is forgotten multiplied by zero", "scan", "if wild and u is None:", "if False:", "gated_linear_attention"
    ),
    Mistake(
        "two tokens at once although one forgets",
        "scan",
        "if t + TOKENS <= tokens and not wild:",
        "if t + TOKENS <= tokens:",
        "simple_gla gated_linear_attention",
    ),
    Mistake(
        "the first gate forgets for all",
        "scan",
        "numbers[row if g.ndim == 1 else row * D + d] == -math.inf:\n            S[",
        "numbers[row if g.ndim == 1 else row * D] == -math.inf:\n            S[",
        "gated_linear_attention kda",
    ),
    Mistake(
        "the bonus of the first key for all", "scan", "own[d] = u[u_at + d]", "own[d] = u[u_at]", "rwkv5 rwkv6"
    ),
    Mistake(
        "a bonus keeps what is forgotten", "scan", "if wild and u is not None:", "if False:", "rwkv6"
    ),
    Mistake(
        "erased under the present key",
        "scan_erase",
        "then = min(t + 1, tokens - 1)",
        "then = t",
        "delta_rule gated_delta_rule",
    ),
    Mistake(
        "nothing read at the start of a block",
        "scan_erase",
        "            read_state(registers, S, D, found, 0, r)",
        "            if t0 == 0:\n                read_state(registers, S, D, found, 0, r)",
        "delta_rule",
    ),
    Mistake(
        "what is forgotten is erased with", "scan_erase", "if kappa is None:", "if False:", "gated_delta_rule kda"
    ),
    Mistake(
        "erased from what has not decayed",
        "scan_erase",
        "found[i] = a[i] * k[k_at + i]",
        "found[i] = k[k_at + i]",
        "kda",
    ),
    Mistake("erased by the share alone", "scan_erase", "gone[:n] *= found[:n]", "gone[:n] *= 1", "rwkv7"),
    Mistake("the skip of the first head for all", "ssd", "skip = D[head % H]", "skip = D[0]", "ssd"),
    Mistake("sigmoid instead of silu", "ssd", "y[begin + n] *= z[begin + n] * ", "y[begin + n] *= ", "ssd"),
    Mistake(
        "divided by the keys before",
        "linear_attention",
        "space[d] += k[k_at + d]\n            if divide:",
        "space[d] += k[k_at + d] if t > 0 else 0\n            if divide:",
        "linear_attention",
    ),
]  # fmt: skip
ALL = [*LAYOUT, *LAUNCH]
