"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


NAN, INF = float("nan"), float("inf")
GOOD = {"q": x(2, 4, 5, 8), "k": x(2, 2, 5, 8), "v": x(2, 2, 5, 6), "beta": x(2, 2, 5)}
TENSORS = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "k is int": ({"k": x(2, 2, 5, 8, dtype=int)}, TypeError, "k has dtype int"),
    "v has one axis": ({"v": x(6)}, ValueError, r"v has shape \(6,\)"),
    "dtypes differ": ({"v": x(2, 2, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "axes differ": ({"k": x(2, 5, 8)}, ValueError, "q, k, v differ in their number of axes"),
    "batches differ": ({"q": x(3, 4, 5, 8)}, ValueError, "batch axes .* differ"),
    "lengths differ": ({"v": x(2, 2, 4, 6)}, ValueError, "the numbers of tokens differ"),
    "D differs": ({"k": x(2, 2, 5, 9)}, ValueError, "one D >= 1"),
    "D is 0": ({"q": x(2, 4, 5, 0), "k": x(2, 2, 5, 0)}, ValueError, "one D >= 1"),
    "H and Hv share no heads": ({"q": x(2, 3, 5, 8)}, ValueError, "3 query, 2 key and 2 value heads"),
    "Hk does not divide Hv": ({"k": x(2, 4, 5, 8)}, ValueError, "4 query, 4 key and 2 value heads"),
    "beta is a number": ({"beta": 1.0}, TypeError, "beta must be an array, got float"),
    "beta is int": ({"beta": x(2, 2, 5, dtype=int)}, TypeError, "beta has dtype int"),
    "beta of another dtype": ({"beta": x(2, 2, 5, dtype=np.float32)}, TypeError, "beta has dtype float32"),
    "beta of query heads": ({"beta": x(2, 4, 5)}, ValueError, r"beta has shape .*wanted \(2, 2, 5\)"),
    "beta per value entry": ({"beta": x(2, 2, 5, 6)}, ValueError, "beta has shape"),
    "beta of one batch": ({"beta": x(2, 5)}, ValueError, "beta has shape"),
    "scale is NaN": ({"scale": NAN}, ValueError, "scale is nan"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number"),
    "state is (Dv, D)": ({"initial_state": x(2, 2, 6, 8)}, ValueError, r"wanted \(2, 2, 8, 6\)"),
    "state of query heads": ({"initial_state": x(2, 4, 8, 6)}, ValueError, "initial_state has shape"),
    "state in float32": (
        {"initial_state": x(2, 2, 8, 6, dtype=np.float32)},
        TypeError,
        "initial_state has dtype",
    ),
    "state is a number": ({"initial_state": 0.0}, TypeError, "initial_state must be an array"),
    "borders with a batch": ({"cu_seqlens": np.array([0, 5])}, ValueError, "packed sequences have no batch axes"),
}
BORDERS = {
    "borders are floats": (np.array([0.0, 5.0]), TypeError, "cu_seqlens is float64"),
    "borders are a list": ([0, 5], TypeError, "cu_seqlens is list"),
    "borders fall": (np.array([0, 4, 2, 5]), ValueError, "wanted borders that rise"),
    "borders end early": (np.array([0, 4]), ValueError, "from 0 to T = 5"),
    "borders start late": (np.array([1, 5]), ValueError, "from 0 to T = 5"),
    "one border": (np.array([5]), ValueError, "wanted borders"),
}
CHUNK = {
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1"),
    "chunk is a float": ({"chunk": 2.0}, TypeError, "chunk must be an integer, got float"),
    "chunk is a bool": ({"chunk": True}, TypeError, "chunk must be an integer, got bool"),
}
COTANGENTS = {
    "do of value heads": ({"do": x(2, 2, 5, 6)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do of another dtype": ({"do": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "do is a list": ({"do": [0.0]}, TypeError, "do must be an array"),
    "dstate is (Dv, D)": ({"dstate": x(2, 2, 6, 8)}, ValueError, "dstate has shape"),
    "dstate of another dtype": ({"dstate": x(2, 2, 8, 6, dtype=np.float32)}, TypeError, "dstate has dtype float32"),
}


def gates(*shape):
    """What may be wrong with log-decays of this shape."""
    return {
        "log_decay is a list": ({"log_decay": [0.0]}, TypeError, "log_decay must be an array"),
        "log_decay of another dtype": ({"log_decay": x(*shape, dtype=np.float32)}, TypeError, "log_decay has dtype"),
        "log_decay grows": ({"log_decay": x(*shape) + 0.5}, ValueError, "log_decay holds 0.5; wanted logs of decays"),
        "log_decay is inf": ({"log_decay": x(*shape) + INF}, ValueError, "log_decay holds inf"),
        "log_decay per head": ({"log_decay": x(2)}, ValueError, "log_decay has shape"),
        "log_decay of query heads": ({"log_decay": x(2, 4, *shape[2:])}, ValueError, "log_decay has shape"),
        "log_decay with D or without": (
            {"log_decay": x(*shape[:3], 8) if len(shape) == 3 else x(*shape[:3])},
            ValueError,
            "log_decay has shape",
        ),
    }


def borders(good):
    """What may be wrong with the borders of packed sequences; they have no batch axes."""
    alone = {name: y[0] for name, y in good.items()}
    return {what: (alone | {"cu_seqlens": wrong}, error, says) for what, (wrong, error, says) in BORDERS.items()}


OPERATIONS = {}
for name, shape in (("delta_rule", ()), ("gated_delta_rule", (2, 2, 5)), ("kda", (2, 2, 5, 8))):
    for form, more in {"": {}, "_recurrent": {}, "_chunked": CHUNK, "_vjp": COTANGENTS}.items():
        good = {"do": x(2, 4, 5, 6)} | GOOD if form == "_vjp" else dict(GOOD)
        good |= {"log_decay": x(*shape)} if shape else {}
        OPERATIONS[name + form] = (good, [TENSORS, borders(good), gates(*shape) if shape else {}, more])
