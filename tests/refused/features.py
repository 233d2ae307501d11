"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

from refattn import FeatureMap, LinearState, PerformerState


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


DOUBLE = FeatureMap("double", lambda y: np.concatenate([y, y], axis=-1), lambda dphi, y: dphi[..., : y.shape[-1]])
# 2 sequences, 4 query, 2 key and 2 value heads, 5 tokens, D = 3, Dv = 6
QKV = {"q": x(2, 4, 5, 3), "k": x(2, 2, 5, 3), "v": x(2, 2, 5, 6)}
DO = {"do": x(2, 4, 5, 6)}
INPUTS = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "q is int": ({"q": x(2, 4, 5, 3, dtype=int)}, TypeError, "q has dtype int64; wanted one of float16"),
    "q has one axis": ({"q": x(3)}, ValueError, r"q has shape \(3,\); wanted at least 2 axes"),
    "k is None": ({"k": None}, TypeError, "k must be an array, got NoneType"),
    "v has another dtype": ({"v": x(2, 2, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ.*'v': 'float32'"),
    "batches differ": ({"k": x(3, 2, 5, 3), "v": x(3, 2, 5, 6)}, ValueError, "batch axes .* differ"),
    "an unknown argument": ({"softcap": 1.0}, TypeError, "softcap"),
}
RECURRENT = INPUTS | {
    "axes differ": ({"v": x(2, 5, 6)}, ValueError, "q, k, v differ in their number of axes"),
    "tokens differ": ({"q": x(2, 4, 4, 3)}, ValueError, "the numbers of tokens differ"),
    "D differs": ({"k": x(2, 2, 5, 4)}, ValueError, r"must be one D >= 1: q \(2, 4, 5, 3\), k \(2, 2, 5, 4\)"),
    "heads do not divide": ({"v": x(2, 3, 5, 6)}, ValueError, "4 query, 2 key and 3 value heads"),
    "more key heads than value heads": ({"k": x(2, 4, 5, 3)}, ValueError, "wanted Hv a multiple of Hk"),
}
COTANGENT = {
    "do has another shape": ({"do": x(2, 2, 5, 6)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do is int": ({"do": x(2, 4, 5, 6, dtype=int)}, TypeError, "do has dtype int"),
}
CAUSAL = {"causal is a number": ({"causal": 1}, TypeError, "causal must be True or False, got int")}
NORMALIZE = {"normalize is None": ({"normalize": None}, TypeError, "normalize must be True or False, got NoneType")}
CHUNK = {
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1"),
    "chunk is a float": ({"chunk": 64.0}, TypeError, "chunk must be an integer, got float"),
}
PACKED = {
    "packed with a batch": ({"cu_seqlens": np.array([0, 5])}, ValueError, "packed sequences have no batch axes"),
    "borders are a list": ({"cu_seqlens": [0, 5]}, TypeError, "cu_seqlens is list; wanted an array of integers"),
    "borders end early": ({"cu_seqlens": np.array([0, 4])}, ValueError, "borders that rise from 0 to T = 5"),
    "one state for two sequences": (
        {name: y[0] for name, y in QKV.items()}
        | {"cu_seqlens": np.array([0, 2, 5]), "initial_state": LinearState(x(2, 3, 6), x(2, 3))},
        ValueError,
        r"initial_state\.S has shape \(2, 3, 6\); wanted \(2, 2, 3, 6\)",
    ),
}
MAPS = {
    "feature_map is a name": ({"feature_map": "relu"}, TypeError, "feature_map must be callable, got str"),
    "feature_map is None": ({"feature_map": None}, TypeError, "feature_map must be callable, got NoneType"),
    "states of other features": (
        {
            "feature_map": DOUBLE,
            "initial_state": LinearState(x(2, 2, 3, 6), x(2, 2, 3)),
        },
        ValueError,
        r"initial_state\.S has shape \(2, 2, 3, 6\); wanted \(2, 2, 6, 6\)",
    ),
}
NO_VJP = {"a map without vjp": ({"feature_map": np.exp}, TypeError, "feature_map has no vjp; wanted a FeatureMap")}


def of_states(name, M, kind=LinearState):
    """What is wrong with a state of M features for 2 value heads."""
    good = {"S": x(2, 2, M, 6), "z": x(2, 2, M), "m": x(2, 2)}
    good = kind(*(good[part] for part in kind._fields))
    narrow = {"z": good.z.astype(np.float32)}
    found = {
        f"{name} is an array": ({name: good.S}, TypeError, f"{name} must be a {kind.__name__}, got ndarray"),
        f"{name} is a tuple": ({name: tuple(good)}, TypeError, f"{name} must be a {kind.__name__}, got tuple"),
        f"{name} of other heads": ({name: good._replace(S=x(2, 4, M, 6))}, ValueError, rf"{name}\.S has shape"),
        f"{name} without z": ({name: good._replace(z=None)}, TypeError, rf"{name}\.z must be an array, got NoneType"),
        f"{name} is narrow": (
            {name: good._replace(**narrow)},
            TypeError,
            rf"{name}\.z has dtype float32; wanted float64",
        ),
    }
    if kind is PerformerState:
        found[f"{name} with m per feature"] = (
            {name: good._replace(m=x(2, 2, M))},
            ValueError,
            rf"{name}\.m has shape .*wanted \(2, 2\)",
        )
    return found


def forms(name, good, tables, M, kind=LinearState, chunked=None):
    """The operation, its forms that are always causal, and its derivative."""
    tables = [RECURRENT, of_states("initial_state", M, kind), *tables]
    found = {
        name: (good, [*tables, CAUSAL]),
        f"{name}_recurrent": (good, [*tables, {"causal is no argument": ({"causal": False}, TypeError, "causal")}]),
        f"{name}_vjp": (DO | good, [*tables, CAUSAL, COTANGENT, of_states("dstate", M, kind)]),
    }
    return found | ({f"{name}_chunked": (good, [*tables, CHUNK])} if chunked else {})


PROJECTION = {
    "projection is a list": ({"projection": [[0.0]]}, TypeError, "projection must be an array, got list"),
    "projection is transposed": (
        {"projection": x(3, 7)},
        ValueError,
        r"projection has shape \(3, 7\); wanted \(3, 3\)",
    ),
    "projection per head": ({"projection": x(2, 7, 3)}, ValueError, r"projection has shape .* = \(M, D\)"),
    "no features": ({"projection": x(0, 3)}, ValueError, r"projection has shape \(0, 3\); wanted .*M >= 1"),
    "projection is narrow": ({"projection": x(7, 3, dtype=np.float32)}, TypeError, "projection has dtype float32"),
    "scale is 0": ({"scale": 0.0}, ValueError, "scale is 0.0; wanted a finite number above 0"),
    "scale is negative": ({"scale": -1.0}, ValueError, "scale is -1.0; wanted a finite number above 0"),
    "packed": ({"cu_seqlens": np.array([0, 5])}, TypeError, "cu_seqlens"),
}
POSITIONS = {
    "length is missing": ({"length": None}, TypeError, "length must be an integer, got NoneType"),
    "length is 0": ({"length": 0}, ValueError, "length is 0; wanted at least 1"),
    "length is a float": ({"length": 9.0}, TypeError, "length must be an integer, got float"),
    "tokens beyond the length": ({"length": 4}, ValueError, "5 tokens from position 0 on go beyond the length of 4"),
    "start beyond the length": ({"start": 5}, ValueError, "5 tokens from position 5 on go beyond the length of 9"),
    "start is negative": ({"start": -1}, ValueError, "start is -1; wanted at least 0"),
    "start is True": ({"start": True}, TypeError, "start must be an integer, got bool"),
}
DENSE = INPUTS | {
    "D differs": ({"k": x(2, 2, 5, 4)}, ValueError, "one D >= 1"),
    "heads do not divide": ({"q": x(2, 3, 5, 3)}, ValueError, "3 query heads cannot share 2 key heads"),
    "heads of k and v differ": ({"v": x(2, 4, 5, 6)}, ValueError, "k and v must have the same number of heads"),
    "scale is NaN": ({"scale": float("nan")}, ValueError, "scale is nan; wanted a finite number"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    "a mask": ({"mask": x(5, 5, dtype=bool)}, TypeError, "mask"),
    "causal": ({"causal": False}, TypeError, "causal"),
}
MIXTURES = {
    "e is None": ({"e": None}, TypeError, "e must be an array, got NoneType"),
    "e is transposed": ({"e": x(5, 4)}, ValueError, r"e has shape \(5, 4\); wanted \(5, 5\) = \(r, Tk\)"),
    "e of the query heads": ({"e": x(4, 4, 5)}, ValueError, r"e has shape \(4, 4, 5\); wanted \(2, 4, 5\)"),
    "e has one axis": ({"e": x(5)}, ValueError, r"e has shape \(5,\)"),
    "no mixtures": ({"e": x(0, 5), "f": x(0, 5)}, ValueError, r"e has shape \(0, 5\); wanted .*r >= 1"),
    "e is narrow": ({"e": x(4, 5, dtype=np.float32)}, TypeError, "e has dtype float32; wanted float64"),
    "f has other rows": ({"f": x(3, 5)}, ValueError, r"e \(4, 5\) and f \(3, 5\) differ in their numbers of rows"),
    "f is int": ({"f": x(4, 5, dtype=int)}, TypeError, "f has dtype int64"),
}
LANDMARKS = {
    "landmarks is 0": ({"landmarks": 0}, ValueError, "landmarks is 0; wanted at least 1"),
    "landmarks is a float": ({"landmarks": 2.0}, TypeError, "landmarks must be an integer, got float"),
    "landmarks is None": ({"landmarks": None}, TypeError, "landmarks must be an integer, got NoneType"),
    "iterations is negative": ({"iterations": -1}, ValueError, "iterations is -1; wanted at least 0"),
    "iterations is True": ({"iterations": True}, TypeError, "iterations must be an integer, got bool"),
    "fewer keys": ({"k": x(2, 2, 3, 3), "v": x(2, 2, 3, 6)}, ValueError, "the numbers of tokens differ"),
}

MIXED, MARKED = QKV | {"e": x(4, 5), "f": x(4, 5)}, QKV | {"landmarks": 2}
OPERATIONS = {
    **forms("linear_attention", QKV, [PACKED, NORMALIZE, MAPS], 3, chunked=True),
    **forms("performer_attention", QKV | {"projection": x(7, 3)}, [PROJECTION], 7, PerformerState),
    **forms("cosformer_attention", QKV | {"length": 9}, [POSITIONS], 6),
    "linformer_attention": (MIXED, [DENSE, MIXTURES]),
    "linformer_attention_vjp": (DO | MIXED, [DENSE, MIXTURES, COTANGENT]),
    "nystrom_attention": (MARKED, [DENSE, LANDMARKS]),
    "nystrom_attention_vjp": (DO | MARKED, [DENSE, LANDMARKS, COTANGENT]),
}
OPERATIONS["linear_attention_vjp"][1].append(NO_VJP)
