"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

INF, NAN = np.inf, np.nan


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


def ints(*values):
    return np.array(values, np.int32)


SCAN = {"u": x(2, 5, 3), "delta": x(2, 5, 3), "A": x(3, 4), "B": x(2, 5, 4), "C": x(2, 5, 4)}
FLAT = {"u": x(5, 3), "delta": x(5, 3), "A": x(3, 4), "B": x(5, 4), "C": x(5, 4)}
SSD = {"x": x(2, 4, 5, 3), "dt": x(2, 4, 5), "A": x(4), "B": x(2, 2, 5, 6), "C": x(2, 2, 5, 6)}
PACKED_SSD = {"x": x(4, 5, 3), "dt": x(4, 5), "A": x(4), "B": x(2, 5, 6), "C": x(2, 5, 6)}
S4D = {"u": x(2, 5, 3), "delta": x(3)} | {f"{part}_{of}": x(3, 4) for part in "AC" for of in ("real", "imag")}
CONV = {"x": x(2, 5, 3), "weight": x(3, 4)}

ABOUT_SCAN = {
    "u is a list": ({"u": [[0.0]]}, TypeError, "u must be an array, got list"),
    "u is int": ({"u": x(2, 5, 3, dtype=int)}, TypeError, "u has dtype int64"),
    "u has one axis": ({"u": x(3)}, ValueError, r"u has shape \(3,\); wanted at least 2 axes"),
    "delta per token": ({"delta": x(2, 5)}, ValueError, r"delta has shape \(2, 5\); wanted \(2, 5, 3\)"),
    "delta is float32": ({"delta": x(2, 5, 3, dtype=np.float32)}, TypeError, "delta has dtype float32; wanted float64"),
    "A is positive": ({"A": x(3, 4) + 0.5}, ValueError, r"A holds 0.5; wanted -exp\(A_log\), at most 0"),
    "A of other channels": ({"A": x(4, 3)}, ValueError, r"A has shape \(4, 3\); wanted \(E, N\), 3 rows"),
    "A without states": ({"A": x(3, 0)}, ValueError, r"A has shape \(3, 0\)"),
    "A is None": ({"A": None}, TypeError, "A must be an array, got NoneType"),
    "B per channel": ({"B": x(2, 5, 3, 4)}, ValueError, r"B has shape \(2, 5, 3, 4\); wanted \(2, 5, 4\)"),
    "C channels first": ({"C": x(2, 4, 5)}, ValueError, r"C has shape \(2, 4, 5\); wanted \(2, 5, 4\)"),
    "C is float32": ({"C": x(2, 5, 4, dtype=np.float32)}, TypeError, "dtypes differ.*'C': 'float32'"),
    "D per state": ({"D": x(3, 4)}, ValueError, r"D has shape \(3, 4\); wanted \(3,\)"),
    "D is a number": ({"D": 1.0}, TypeError, "D must be an array, got float"),
    "z of other channels": ({"z": x(2, 5, 4)}, ValueError, r"z has shape \(2, 5, 4\)"),
    "z is int": ({"z": x(2, 5, 3, dtype=int)}, TypeError, "z has dtype int64"),
    "delta_bias per token": ({"delta_bias": x(5)}, ValueError, r"delta_bias has shape \(5,\); wanted \(3,\)"),
    "delta_softplus is 1": ({"delta_softplus": 1}, TypeError, "delta_softplus is 1; wanted True or False"),
    "initial_state turned": ({"initial_state": x(2, 4, 3)}, ValueError, r"initial_state has shape .*\(2, 3, 4\)"),
    "initial_state is int": ({"initial_state": x(2, 3, 4, dtype=int)}, TypeError, "initial_state has dtype int64"),
    "a batch of packed sequences": ({"cu_seqlens": ints(0, 5)}, ValueError, r"no batch axes, got .*\(2, 5, 3\)"),
    "an unknown argument": ({"A_log": x(3, 4)}, TypeError, "A_log"),
}
BORDERS = {
    "borders are a list": ({"cu_seqlens": [0, 5]}, TypeError, "cu_seqlens is list; wanted an array of integers"),
    "borders are float": ({"cu_seqlens": x(2)}, TypeError, "cu_seqlens is float64"),
    "borders fall": ({"cu_seqlens": ints(0, 4, 3, 5)}, ValueError, r"cu_seqlens is \[0, 4, 3, 5\]; wanted borders"),
    "borders end early": ({"cu_seqlens": ints(0, 4)}, ValueError, "rise from 0 to T = 5"),
    "no borders": ({"cu_seqlens": ints(0)}, ValueError, r"cu_seqlens is \[0\]"),
    "a state for all sequences": (
        {"cu_seqlens": ints(0, 2, 5), "initial_state": x(1, 1, 1)},
        ValueError,
        r"initial_state has shape \(1, 1, 1\); wanted \(2, ",
    ),
}
CHUNK = {
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1"),
    "chunk is a float": ({"chunk": 4.0}, TypeError, "chunk must be an integer, got float"),
}


def cotangents(do, state):
    """What is wrong with do and dstate, of these shapes."""
    return {
        "do is missing a token": ({"do": x(*do[:-2], do[-2] - 1, do[-1])}, ValueError, "do has shape .*; wanted"),
        "do is int": ({"do": x(*do, dtype=int)}, TypeError, "do has dtype int64"),
        "do is None": ({"do": None}, TypeError, "do must be an array, got NoneType"),
        "do is float32": ({"do": x(*do, dtype=np.float32)}, TypeError, "dtypes differ.*'do': 'float32'"),
        "dstate has another shape": ({"dstate": x(*state, 1)}, ValueError, "dstate has shape .*; wanted"),
        "dstate is int": ({"dstate": x(*state, dtype=int)}, TypeError, "dstate has dtype int64"),
    }


ABOUT_SSD = {
    "x is int": ({"x": x(2, 4, 5, 3, dtype=int)}, TypeError, "x has dtype int64"),
    "x has one axis": ({"x": x(3)}, ValueError, "x has shape"),
    "groups do not divide heads": (
        {"B": x(2, 3, 5, 6), "C": x(2, 3, 5, 6)},
        ValueError,
        r"x has shape \(2, 4, 5, 3\) and B \(2, 3, 5, 6\); .*H a multiple of G",
    ),
    "no groups": ({"B": x(2, 0, 5, 6), "C": x(2, 0, 5, 6)}, ValueError, "H a multiple of G"),
    "B without groups": ({"B": x(2, 5, 6)}, ValueError, "x has shape .* and B"),
    "no states": ({"B": x(2, 2, 5, 0), "C": x(2, 2, 5, 0)}, ValueError, "N >= 1"),
    "B tokens first": ({"B": x(2, 5, 2, 6)}, ValueError, "H a multiple of G"),
    "B of fewer tokens": ({"B": x(2, 2, 4, 6)}, ValueError, r"B has shape \(2, 2, 4, 6\); wanted \(2, 2, 5, 6\)"),
    "C of other groups": ({"C": x(2, 4, 5, 6)}, ValueError, r"C has shape \(2, 4, 5, 6\); wanted \(2, 2, 5, 6\)"),
    "C is float32": ({"C": x(2, 2, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ.*'float32'"),
    "dt tokens first": ({"dt": x(2, 5, 4)}, ValueError, r"dt has shape \(2, 5, 4\); wanted \(2, 4, 5\)"),
    "dt is float32": ({"dt": x(2, 4, 5, dtype=np.float32)}, TypeError, "dt has dtype float32"),
    "A is positive": ({"A": x(4) + 1}, ValueError, r"A holds 1.0; wanted -exp\(A_log\)"),
    "A per state": ({"A": x(4, 6)}, ValueError, r"A has shape \(4, 6\); wanted \(4,\)"),
    "A of groups": ({"A": x(2)}, ValueError, r"A has shape \(2,\)"),
    "D per channel": ({"D": x(4, 3)}, ValueError, r"D has shape \(4, 3\); wanted \(4,\)"),
    "z of other heads": ({"z": x(2, 2, 5, 3)}, ValueError, "z has shape"),
    "dt_bias per token": ({"dt_bias": x(5)}, ValueError, r"dt_bias has shape \(5,\)"),
    "dt_softplus is None": ({"dt_softplus": None}, TypeError, "dt_softplus is None; wanted True or False"),
    "limits are one number": ({"dt_limit": 0.5}, TypeError, "dt_limit is 0.5; wanted two numbers"),
    "limits are text": ({"dt_limit": ("0", "1")}, TypeError, "wanted two numbers"),
    "limits are turned": ({"dt_limit": (1.0, 0.5)}, ValueError, r"dt_limit is \(1.0, 0.5\); wanted 0 <= low <= high"),
    "a limit is negative": ({"dt_limit": (-1.0, 0.5)}, ValueError, "wanted 0 <= low <= high"),
    "a limit is NaN": ({"dt_limit": (0.0, NAN)}, ValueError, "wanted 0 <= low <= high"),
    "no finite step": ({"dt_limit": (INF, INF)}, ValueError, "a finite low"),
    "initial_state turned": ({"initial_state": x(2, 4, 3, 6)}, ValueError, r"initial_state has .*\(2, 4, 6, 3\)"),
    "a batch of packed sequences": ({"cu_seqlens": ints(0, 5)}, ValueError, "no batch axes"),
}
ABOUT_S4D = {
    "u has one axis": ({"u": x(3)}, ValueError, "u has shape"),
    "delta per token": ({"delta": x(2, 5, 3)}, ValueError, r"delta has shape \(2, 5, 3\); wanted \(3,\)"),
    "delta is negative": ({"delta": x(3) - 1}, ValueError, "delta holds -1.0; wanted step sizes, at least 0"),
    "delta is inf": ({"delta": x(3) + INF}, ValueError, "delta holds an infinity; wanted finite numbers"),
    "A grows": ({"A_real": x(3, 4) + 1}, ValueError, "A_real holds 1.0; wanted"),
    "A is -inf": ({"A_real": x(3, 4) - INF}, ValueError, "A_real holds an infinity"),
    "A is complex": ({"A_real": x(3, 4) * 1j}, TypeError, "A_real has dtype complex128"),
    "A_imag of other states": ({"A_imag": x(3, 2)}, ValueError, r"A_imag has shape \(3, 2\); wanted \(3, 4\)"),
    "C_real without channels": ({"C_real": x(4)}, ValueError, r"C_real has shape \(4,\)"),
    "C_imag is None": ({"C_imag": None}, TypeError, "C_imag must be an array"),
    "C_real is float32": ({"C_real": x(3, 4, dtype=np.float32)}, TypeError, "C_real has dtype float32; wanted float64"),
    "D per state": ({"D": x(3, 4)}, ValueError, r"D has shape \(3, 4\); wanted \(3,\)"),
    "a state without pairs": ({"initial_state": x(2, 3, 4)}, ValueError, r"initial_state .*wanted \(2, 3, 4, 2\)"),
    "packed sequences": ({"cu_seqlens": ints(0, 5)}, TypeError, "cu_seqlens"),
}
ABOUT_CONV = {
    "x is int": ({"x": x(2, 5, 3, dtype=int)}, TypeError, "x has dtype int64"),
    "weight taps first": ({"weight": x(4, 3)}, ValueError, r"weight has shape \(4, 3\); wanted \(E, K\), 3 rows"),
    "weight of three axes": ({"weight": x(3, 1, 4)}, ValueError, r"weight has shape \(3, 1, 4\); wanted \(E, K\)"),
    "no taps": ({"weight": x(3, 0)}, ValueError, r"weight has shape \(3, 0\)"),
    "bias of other channels": ({"bias": x(4)}, ValueError, r"bias has shape \(4,\); wanted \(3,\)"),
    "bias is int": ({"bias": x(3, dtype=int)}, TypeError, "bias has dtype int64"),
    "activation is relu": ({"activation": "relu"}, ValueError, "activation is 'relu'; wanted 'silu' or None"),
    "activation is True": ({"activation": True}, ValueError, "activation is True"),
    "a state of K inputs": ({"initial_state": x(2, 4, 3)}, ValueError, r"initial_state .*wanted \(2, 3, 3\)"),
    "a state channels first": ({"initial_state": x(2, 3, 3, 1)}, ValueError, "initial_state has shape"),
    "a state in float32": ({"initial_state": x(2, 3, 3, dtype=np.float32)}, TypeError, "dtypes differ"),
    "a batch of packed sequences": ({"cu_seqlens": ints(0, 5)}, ValueError, "no batch axes"),
}


def _forms(name, good, packed, about, do, state):
    own = "u" if name == "selective_scan" else "x"
    return {
        name: (good, [about]),
        f"{name}_recurrent": (
            packed,
            [BORDERS, {k: about[k] for k in ("A is positive", f"{own} is int") if k in about}],
        ),
        f"{name}_chunked": (good, [about, CHUNK]),
        f"{name}_vjp": ({"do": do} | good, [about, cotangents(do.shape, state)]),
    }


OPERATIONS = {
    **_forms("selective_scan", SCAN, FLAT, ABOUT_SCAN, x(2, 5, 3), (2, 3, 4)),
    **_forms("ssd", SSD, PACKED_SSD, ABOUT_SSD, x(2, 4, 5, 3), (2, 4, 6, 3)),
    "s4d": (S4D, [ABOUT_S4D]),
    "s4d_recurrent": (S4D, [ABOUT_S4D]),
    "s4d_vjp": ({"do": x(2, 5, 3)} | S4D, [ABOUT_S4D, cotangents((2, 5, 3), (2, 3, 4, 2))]),
    "causal_conv1d": (CONV, [ABOUT_CONV]),
    "causal_conv1d_vjp": ({"do": x(2, 5, 3)} | CONV, [ABOUT_CONV, cotangents((2, 5, 3), (2, 3, 3))]),
}
