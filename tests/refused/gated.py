"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


# 2 sequences, 4 query, 2 key and 2 value heads, 5 tokens, D = 3, Dv = 6
Q, K, V = x(2, 4, 5, 3), x(2, 2, 5, 3), x(2, 2, 5, 6)
QV = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "q is int": ({"q": x(2, 4, 5, 3, dtype=int)}, TypeError, "q has dtype int64; wanted one of float16"),
    "q has one axis": ({"q": x(3)}, ValueError, r"q has shape \(3,\); wanted at least 2 axes"),
    "v has another dtype": ({"v": x(2, 2, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ.*'v': 'float32'"),
    "axes differ": ({"q": x(4, 5, 3)}, ValueError, "differ in their number of axes"),
    "batches differ": ({"q": x(3, 4, 5, 3)}, ValueError, "batch axes .* differ"),
    "tokens differ": ({"q": x(2, 4, 6, 3)}, ValueError, "the numbers of tokens differ"),
    "heads do not divide": ({"q": x(2, 3, 5, 3)}, ValueError, "3 query, 2 key and 2 value heads"),
    "no query heads": ({"q": x(2, 0, 5, 3)}, ValueError, "0 query, 2 key"),
    "scale is NaN": ({"scale": float("nan")}, ValueError, "scale is nan; wanted a finite number"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    "log_decay is a list": ({"log_decay": [0.0]}, TypeError, "log_decay must be an array, got list"),
    "log_decay is a narrow one": ({"log_decay": x(2, dtype=np.float16)}, TypeError, "log_decay has dtype float16; wan"),
    "log_decay has two axes": ({"log_decay": x(2, 1)}, ValueError, r"log_decay has shape \(2, 1\); wanted"),
    "initial_state has another shape": (
        {"initial_state": x(2, 2, 6, 3)},
        ValueError,
        r"initial_state has shape \(2, 2, 6, 3\); wanted \(2, 2, 3, 6\) = \(..., Hv, D, Dv\)",
    ),
    "initial_state is narrow": ({"initial_state": x(2, 2, 3, 6, dtype=np.float32)}, TypeError, "initial_state has dty"),
    "cu_seqlens with a batch": ({"cu_seqlens": np.array([0, 5])}, ValueError, "packed sequences have no batch axes"),
    "cu_seqlens is a list": ({"cu_seqlens": [0, 5]}, TypeError, "cu_seqlens is list; wanted an array of integers"),
    "cu_seqlens falls": ({"cu_seqlens": np.array([0, 3, 2, 5])}, ValueError, r"cu_seqlens is \[0, 3, 2, 5\]"),
    "cu_seqlens ends early": ({"cu_seqlens": np.array([0, 4])}, ValueError, "borders that rise from 0 to T = 5"),
    "an unknown argument": ({"softcap": 1.0}, TypeError, "softcap"),
}
KEYS = {
    "k is None": ({"k": None}, TypeError, "k must be an array, got NoneType"),
    "D differs": ({"k": x(2, 2, 5, 4)}, ValueError, r"must be one D >= 1: q \(2, 4, 5, 3\), k \(2, 2, 5, 4\)"),
    "more key heads than value heads": ({"k": x(2, 4, 5, 3)}, ValueError, "wanted Hv a multiple of Hk"),
}
CHUNK = {
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1"),
    "chunk is a float": ({"chunk": 64.0}, TypeError, "chunk must be an integer, got float"),
}
COTANGENT = {
    "do has another shape": ({"do": x(2, 2, 5, 6)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do is int": ({"do": x(2, 4, 5, 6, dtype=int)}, TypeError, "do has dtype int"),
    "dstate has another shape": ({"dstate": x(2, 4, 3, 6)}, ValueError, r"dstate has shape .*wanted \(2, 2, 3, 6\)"),
    "dstate is narrow": ({"dstate": x(2, 2, 3, 6, dtype=np.float32)}, TypeError, "dstate has dtype float32"),
}


def of_gates(good, wanted):
    grows = good.copy()
    grows.flat[-1] = 0.5
    return {
        "log_decay grows": ({"log_decay": grows}, ValueError, "log_decay holds 0.5; wanted logs of decays, at most 0"),
        "log_decay of other heads": ({"log_decay": np.concatenate([good, good], axis=-1)}, ValueError, wanted),
    }


def operations(name, good, tables):
    return {
        name: (good, tables),
        f"{name}_recurrent": (good, tables),
        f"{name}_chunked": (good, [*tables, CHUNK]),
        f"{name}_vjp": ({"do": x(2, 4, 5, 6)} | good, [*tables, COTANGENT]),
    }


GATES = {
    "simple_gla": (x(2, 2, 5), r"wanted \(2, 2, 5\) = \(..., Hv, T\)"),
    "gated_linear_attention": (x(2, 2, 5, 3), r"wanted \(2, 2, 5, 3\) = \(..., Hv, T, D\)"),
    "retention": (x(2), r"wanted \(2,\) = \(Hv,\), one per value head"),
    "lightning_attention": (x(2), r"wanted \(2,\) = \(Hv,\), one per value head"),
}
OPERATIONS = operations(
    "hgrn2",
    {"q": Q, "log_decay": x(2, 2, 5, 3), "v": V},
    [QV, of_gates(x(2, 2, 5, 3), r"wanted \(2, 2, 5, 3\)"), {"scale": ({"scale": None}, TypeError, "got NoneType")}],
)
for name, (gates, wanted) in GATES.items():
    OPERATIONS |= operations(name, {"q": Q, "k": K, "v": V, "log_decay": gates}, [QV, KEYS, of_gates(gates, wanted)])
