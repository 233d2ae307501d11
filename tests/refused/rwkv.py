"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

from refattn.results import Rwkv4State


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


# 2 sequences, 4 heads, 5 tokens, D = 3, Dv = 6
RKV = {
    "r is a list": ({"r": [[0.0]]}, TypeError, "r must be an array, got list"),
    "k is int": ({"k": x(2, 4, 5, 3, dtype=int)}, TypeError, "k has dtype int64; wanted one of float16"),
    "v has another dtype": ({"v": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ.*'v': 'float32'"),
    "heads are shared": ({"k": x(2, 2, 5, 3)}, ValueError, "4, 2, 4 heads; wanted one H"),
    "tokens differ": ({"r": x(2, 4, 6, 3)}, ValueError, "the numbers of tokens differ"),
    "D differs": ({"k": x(2, 4, 5, 4)}, ValueError, "must be one D >= 1"),
    "scale is None": ({"scale": None}, TypeError, "scale must be a number, got NoneType"),
    "scale is inf": ({"scale": float("inf")}, ValueError, "scale is inf"),
    "initial_state is turned": (
        {"initial_state": x(2, 4, 6, 3)},
        ValueError,
        r"initial_state has shape .*\(2, 4, 3, 6\)",
    ),
    "cu_seqlens with a batch": ({"cu_seqlens": np.array([0, 5])}, ValueError, "packed sequences have no batch axes"),
    "log_decay is a list": ({"log_decay": [0.0]}, TypeError, "log_decay must be an array, got list"),
    "log_decay has one axis": ({"log_decay": x(3)}, ValueError, r"log_decay has shape \(3,\)"),
    "an unknown argument": ({"softcap": 1.0}, TypeError, "softcap"),
}
BONUS = {
    "u is narrow": ({"u": x(4, 3, dtype=np.float16)}, TypeError, "u has dtype float16; wanted float64"),
    "u of one head": ({"u": x(3)}, ValueError, r"u has shape \(3,\); wanted \(4, 3\) = \(H, D\)"),
}
ERASE = {
    "kappa_hat has no heads": ({"kappa_hat": x(2, 5, 3)}, ValueError, r"kappa_hat has shape \(2, 5, 3\); wanted"),
    "a per head": ({"a": x(2, 4, 5)}, ValueError, r"a has shape \(2, 4, 5\); wanted \(2, 4, 5, 3\)"),
    "a is narrow": ({"a": x(2, 4, 5, 3, dtype=np.float32)}, TypeError, "a has dtype float32"),
}
CHUNK = {"chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1")}
COTANGENT = {
    "do has another shape": ({"do": x(2, 4, 5, 3)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do is int": ({"do": x(2, 4, 5, 6, dtype=int)}, TypeError, "do has dtype int"),
    "dstate has another shape": ({"dstate": x(2, 4, 6, 3)}, ValueError, r"dstate has shape .*wanted \(2, 4, 3, 6\)"),
    "dstate is narrow": ({"dstate": x(2, 4, 3, 6, dtype=np.float32)}, TypeError, "dstate has dtype float32"),
}


def operations(name, gates, tables):
    good = {"r": x(2, 4, 5, 3), "k": x(2, 4, 5, 3), "v": x(2, 4, 5, 6)} | gates
    grows = {"log_decay": np.full(gates["log_decay"].shape, 0.5)}
    tables = [RKV, *tables, {"log_decay grows": (grows, ValueError, "log_decay holds 0.5; wanted .* at most 0")}]
    return {
        name: (good, tables),
        f"{name}_recurrent": (good, tables),
        f"{name}_chunked": (good, [*tables, CHUNK]),
        f"{name}_vjp": ({"do": x(2, 4, 5, 6)} | good, [*tables, COTANGENT]),
    }


def state(*shape, dtype=np.float64):
    return Rwkv4State(*(x(*shape, dtype=dtype) for _ in range(3)))


MEAN = {
    "k is a list": ({"k": [[0.0]]}, TypeError, "k must be an array, got list"),
    "v of other channels": ({"v": x(2, 5, 4)}, ValueError, r"v has shape \(2, 5, 4\); wanted \(2, 5, 3\)"),
    "k has one axis": ({"k": x(3)}, ValueError, "wanted at least 2 axes"),
    "w is a rate of growth": ({"w": x(3) - 0.5}, ValueError, "w holds -0.5; wanted rates of decay, at least 0"),
    "w per token": ({"w": x(5, 3)}, ValueError, r"w has shape \(5, 3\); wanted \(3,\) = \(E,\)"),
    "u is narrow": ({"u": x(3, dtype=np.float32)}, TypeError, "u has dtype float32; wanted float64"),
    "initial_state is an array": ({"initial_state": x(2, 3)}, TypeError, "initial_state is ndarray; wanted Rwkv4State"),
    "initial_state of one": ({"initial_state": state(3)}, ValueError, r"initial_state.num has shape \(3,\)"),
    "initial_state is narrow": (
        {"initial_state": state(2, 3, dtype=np.float32)},
        TypeError,
        "initial_state.num has dtype float32",
    ),
    "an unknown argument": ({"scale": 1.0}, TypeError, "scale"),
}
MEAN_COTANGENT = {
    "do has another shape": ({"do": x(2, 5, 4)}, ValueError, r"do has shape \(2, 5, 4\)"),
    "dstate is an array": ({"dstate": x(2, 3)}, TypeError, "dstate is ndarray; wanted Rwkv4State"),
}
GOOD = {"w": x(3), "u": x(3), "k": x(2, 5, 3), "v": x(2, 5, 3)}
OPERATIONS = {
    "rwkv4": (GOOD, [MEAN]),
    "rwkv4_recurrent": (GOOD, [MEAN]),
    "rwkv4_vjp": ({"do": x(2, 5, 3)} | GOOD, [MEAN, MEAN_COTANGENT]),
    **operations("rwkv5", {"log_decay": x(4, 3), "u": x(4, 3)}, [BONUS]),
    **operations("rwkv6", {"log_decay": x(2, 4, 5, 3), "u": x(4, 3)}, [BONUS]),
    **operations("rwkv7", {n: x(2, 4, 5, 3) for n in ("log_decay", "kappa_hat", "a")}, [ERASE]),
}
