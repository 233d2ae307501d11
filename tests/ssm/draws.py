"""Problems of state spaces for the tests beside this file: every option given, in float64 unless cast."""

import numpy as np

SCANS = ("selective_scan", "ssd")
FORMS = ("", "_recurrent", "_chunked")
TOKENS = {"do": -2, "u": -2, "delta": -2, "x": -2, "dt": -1, "B": -2, "C": -2, "z": -2}
"""Which axis, from the end, has the tokens."""


def draw(operation, rng, T=9, batch=(2,), sequences=None):
    """The arrays of a call, and its other keywords; `sequences` packed ones have states of their own."""
    lead = batch if sequences is None else (sequences,)

    def n(*shape):
        return rng.normal(size=shape)

    if operation.startswith("selective_scan"):
        tokens, E, N = (*batch, T), 3, 2
        x = {"u": n(*tokens, E), "delta": n(*tokens, E), "A": -np.exp(n(E, N)), "B": n(*tokens, N), "C": n(*tokens, N)}
        x |= {"D": n(E), "z": n(*tokens, E), "delta_bias": n(E), "initial_state": n(*lead, E, N)}
        return x, {"delta_softplus": True}
    if operation.startswith("ssd"):
        H, G, N, P = 4, 2, 3, 2
        x = {"x": n(*batch, H, T, P), "dt": n(*batch, H, T), "A": -np.exp(n(H))}
        x |= {"B": n(*batch, G, T, N), "C": n(*batch, G, T, N), "D": n(H), "z": n(*batch, H, T, P), "dt_bias": n(H)}
        x |= {"initial_state": n(*lead, H, N, P)}
        return x, {"dt_softplus": True, "dt_limit": (0.2, 2.0)}
    if operation.startswith("s4d"):
        E, N = 3, 2
        x = {"u": n(*batch, T, E), "delta": np.exp(n(E)), "A_real": -np.exp(n(E, N)), "A_imag": 2 * n(E, N)}
        return x | {"C_real": n(E, N), "C_imag": n(E, N), "D": n(E), "initial_state": n(*lead, E, N, 2)}, {}
    E, K = 3, 4
    x = {"x": n(*batch, T, E), "weight": n(E, K), "bias": n(E), "initial_state": n(*lead, K - 1, E)}
    return x, {"activation": "silu"}


def token_axes(x):
    """Which of the arrays have tokens, and on which axis; the steps of S4D are one for each channel."""
    return {name: axis for name, axis in TOKENS.items() if name != "delta" or "A_real" not in x}


def part(x, first, stop):
    """The arrays of tokens first to stop, without an initial state."""
    places = {name: (..., slice(first, stop), *[slice(None)] * (-axis - 1)) for name, axis in token_axes(x).items()}
    return {name: y[places[name]] if name in places else y for name, y in x.items() if name != "initial_state"}
