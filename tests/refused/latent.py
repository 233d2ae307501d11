"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

from refattn import masks


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


GOOD = {  # 4 heads, 5 queries, 7 tokens, Dn = 8, Dr = 2, L = 6, Dv = 3
    "q_nope": x(2, 4, 5, 8),
    "q_rope": x(2, 4, 5, 2),
    "c_kv": x(2, 7, 6),
    "k_rope": x(2, 7, 2),
    "w_uk": x(4, 6, 8),
    "w_uv": x(4, 6, 3),
}
LATENT = {
    "q_nope is a list": ({"q_nope": [[[0.0]]]}, TypeError, "q_nope must be an array, got list"),
    "q_rope is int": ({"q_rope": x(2, 4, 5, 2, dtype=int)}, TypeError, "q_rope has dtype int64; wanted one of float16"),
    "c_kv is None": ({"c_kv": None}, TypeError, "c_kv must be an array, got NoneType"),
    "k_rope is bool": ({"k_rope": x(2, 7, 2, dtype=bool)}, TypeError, "k_rope has dtype bool"),
    "dtypes differ": ({"w_uk": x(4, 6, 8, dtype=np.float32)}, TypeError, "dtypes differ.*'w_uk': 'float32'"),
    "q_nope has no heads": ({"q_nope": x(5, 8)}, ValueError, r"q_nope has shape \(5, 8\); wanted at least 3 axes"),
    "c_kv has one axis": ({"c_kv": x(6)}, ValueError, r"c_kv has shape \(6,\); wanted at least 2 axes"),
    "w_uk has two axes": ({"w_uk": x(6, 8)}, ValueError, r"w_uk has shape \(6, 8\); wanted at least 3 axes"),
    "w_uv has two axes": ({"w_uv": x(6, 3)}, ValueError, r"w_uv has shape \(6, 3\); wanted at least 3 axes"),
    "queries differ": (
        {"q_rope": x(2, 4, 6, 2)},
        ValueError,
        r"q_rope has shape .*wanted \(2, 4, 5, 2\)",
    ),
    "heads of q_rope differ": ({"q_rope": x(2, 1, 5, 2)}, ValueError, r"q_rope has shape \(2, 1, 5, 2\)"),
    "c_kv has heads": ({"c_kv": x(2, 1, 7, 6)}, ValueError, r"c_kv has shape \(2, 1, 7, 6\); wanted \(2, 7, 6\)"),
    "c_kv of other sequences": ({"c_kv": x(3, 7, 6)}, ValueError, r"c_kv has shape \(3, 7, 6\); wanted \(2, 7, 6\)"),
    "c_kv without its batch": ({"c_kv": x(7, 6)}, ValueError, r"c_kv has shape \(7, 6\); wanted \(2, 7, 6\)"),
    "tokens differ": ({"k_rope": x(2, 6, 2)}, ValueError, r"k_rope has shape \(2, 6, 2\); wanted \(2, 7, 2\)"),
    "k_rope has heads": ({"k_rope": x(2, 4, 7, 2)}, ValueError, r"k_rope has shape \(2, 4, 7, 2\)"),
    "Dr differs": ({"k_rope": x(2, 7, 4)}, ValueError, r"k_rope has shape \(2, 7, 4\); wanted \(2, 7, 2\)"),
    "w_uk of other heads": ({"w_uk": x(2, 6, 8)}, ValueError, r"w_uk has shape \(2, 6, 8\); wanted \(4, 6, 8\)"),
    "w_uk is transposed": ({"w_uk": x(4, 8, 6)}, ValueError, r"w_uk has shape .*\(4, 6, 8\) = \(H, L, Dn\)"),
    "w_uv of another latent": ({"w_uv": x(4, 5, 3)}, ValueError, r"w_uv has shape \(4, 5, 3\); wanted \(4, 6, 3\)"),
    "no heads": (
        {"q_nope": x(2, 0, 5, 8), "q_rope": x(2, 0, 5, 2), "w_uk": x(0, 6, 8), "w_uv": x(0, 6, 3)},
        ValueError,
        "H is 0; wanted at least 1",
    ),
    "L is 0": ({"c_kv": x(2, 7, 0), "w_uk": x(4, 0, 8), "w_uv": x(4, 0, 3)}, ValueError, "L is 0; wanted at least 1"),
    "Dn and Dr are 0": (
        {"q_nope": x(2, 4, 5, 0), "q_rope": x(2, 4, 5, 0), "k_rope": x(2, 7, 0), "w_uk": x(4, 6, 0)},
        ValueError,
        r"Dn \+ Dr is 0; wanted at least 1",
    ),
    "mask is float": ({"mask": x(5, 7)}, TypeError, "mask is float64; wanted a mask value or a bool array"),
    "mask has another shape": ({"mask": x(5, 6, dtype=bool)}, ValueError, r"mask has shape .*\(2, 4, 5, 7\)"),
    "mask for other heads": ({"mask": x(3, 5, 7, dtype=bool)}, ValueError, r"mask has shape \(3, 5, 7\)"),
    "padding beyond the tokens": ({"mask": masks.padding([7, 8])}, ValueError, "a length is 8, but there are 7 keys"),
    "scale is NaN": ({"scale": float("nan")}, ValueError, "scale is nan; wanted a finite number"),
    "scale is a bool": ({"scale": True}, TypeError, "scale must be a number, got bool"),
    "an unknown argument": ({"softcap": 1.0}, TypeError, "softcap"),
}
COTANGENT = {
    "do has another shape": ({"do": x(2, 4, 5, 8)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 3\)"),
    "do has another dtype": ({"do": x(2, 4, 5, 3, dtype=np.float32)}, TypeError, "dtypes differ"),
    "do is int": ({"do": x(2, 4, 5, 3, dtype=int)}, TypeError, "do has dtype int"),
    "dlse has another shape": ({"dlse": x(2, 4, 5, 1)}, ValueError, r"dlse has shape .*wanted \(2, 4, 5\)"),
    "dlse is int": ({"dlse": x(2, 4, 5, dtype=int)}, TypeError, "dlse has dtype int"),
}
OPERATIONS = {
    "mla_attention": (GOOD, [LATENT]),
    "mla_attention_expanded": (GOOD, [LATENT]),
    "mla_attention_vjp": ({"do": x(2, 4, 5, 3)} | GOOD, [LATENT, COTANGENT]),
}
