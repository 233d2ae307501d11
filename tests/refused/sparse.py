"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

from refattn import masks


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


QKV = {"q": x(2, 4, 5, 8), "k": x(2, 2, 7, 8), "v": x(2, 2, 7, 6)}  # 4 heads over 2, 5 queries, 7 keys
DO = {"do": x(2, 4, 5, 6)}

SCORES = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "q is int": ({"q": x(2, 4, 5, 8, dtype=int)}, TypeError, "q has dtype int64; wanted one of float16"),
    "q has one axis": ({"q": x(8)}, ValueError, r"q has shape \(8,\); wanted at least 2 axes"),
    "dtypes differ": ({"k": x(2, 2, 7, 8, dtype=np.float32)}, TypeError, "dtypes differ.*'k': 'float32'"),
    "axes differ": ({"q": x(4, 5, 8)}, ValueError, "q, k, v have 3, 4 and 4 axes"),
    "batches differ": ({"q": x(3, 4, 5, 8)}, ValueError, "batch axes .* differ"),
    "D differs": ({"k": x(2, 2, 7, 9)}, ValueError, "one D >= 1"),
    "D is 0": ({"q": x(2, 4, 5, 0), "k": x(2, 2, 7, 0)}, ValueError, "one D >= 1"),
    "Tk of k and v differ": ({"v": x(2, 2, 6, 6)}, ValueError, "k has 7 keys and v has 6 values"),
    "heads of k and v differ": ({"v": x(2, 4, 7, 6)}, ValueError, "k and v must have the same number of heads"),
    "Hk does not divide H": ({"q": x(2, 3, 5, 8)}, ValueError, "3 query heads cannot share 2 key heads"),
    "scale is NaN": ({"scale": float("nan")}, ValueError, "scale is nan; wanted a finite number"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    "softcap is 0": ({"softcap": 0.0}, ValueError, "softcap is 0.0; wanted a finite number above 0"),
    "sinks of other heads": ({"sinks": x(2)}, ValueError, r"sinks has shape \(2,\); wanted \(4,\)"),
    "sinks is int": ({"sinks": x(4, dtype=int)}, TypeError, "sinks has dtype int"),
    "sinks are inf": ({"sinks": np.full(4, np.inf)}, ValueError, "sinks holds inf"),
    "an unknown argument": ({"tile_q": 64}, TypeError, "tile_q"),
}
COTANGENT = {
    "do has another shape": ({"do": x(2, 4, 5, 8)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do has another dtype": ({"do": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "dlse has another shape": ({"dlse": x(2, 4, 5, 1)}, ValueError, r"dlse has shape .*wanted \(2, 4, 5\)"),
    "dlse is int": ({"dlse": x(2, 4, 5, dtype=int)}, TypeError, "dlse has dtype int"),
}
NO_MASK = {"a mask": ({"mask": masks.causal()}, TypeError, "unexpected keyword argument 'mask'")}


def count(name, least=1):
    """What is refused of an argument that counts."""
    return {
        f"{name} is {least - 1}": ({name: least - 1}, ValueError, f"{name} is {least - 1}; wanted at least {least}"),
        f"{name} is a float": ({name: 2.0}, TypeError, f"{name} must be an integer, got float"),
        f"{name} is a bool": ({name: True}, TypeError, f"{name} must be an integer, got bool"),
    }


def positions(name, negative):
    table = {
        f"{name} are floats": ({name: [0.5]}, TypeError, f"{name} has dtype float64; wanted integers"),
        f"{name} are bools": ({name: [True, False]}, TypeError, f"{name} has dtype bool; wanted integers"),
        f"{name} is a number": ({name: 3}, ValueError, f"{name} is 3; wanted a list of integers"),
        f"{name} is a table": ({name: [[1]]}, ValueError, rf"{name} is \[\[1\]\]; wanted a list of integers"),
        f"{name} is None": ({name: None}, TypeError, f"{name} has dtype object"),
    }
    if not negative:
        table[f"{name} is negative"] = ({name: [-1]}, ValueError, rf"{name} is \[-1\]; wanted .*each 0 or more")
    return table


SPARSE = {
    "mask is None": ({"mask": None}, TypeError, "mask is None; wanted a mask value or a bool array"),
    "mask is float": ({"mask": x(5, 7)}, TypeError, "mask is float64; wanted .*floats go to bias="),
    "mask is text": ({"mask": "causal()"}, TypeError, "mask is str"),
    "mask has another shape": ({"mask": x(5, 6, dtype=bool)}, ValueError, r"mask has shape \(5, 6\)"),
    "mask for other sequences": ({"mask": masks.padding([1, 2, 3])}, ValueError, r"mask has shape \(3, 1, 5, 7\)"),
    "mask of other heads": ({"mask": masks.random(2, heads=2)}, ValueError, r"mask has shape \(2, 5, 7\)"),
    "padding beyond the keys": ({"mask": masks.padding([7, 8])}, ValueError, "a length is 8, but there are 7 keys"),
    "bias is int": ({"bias": x(5, 7, dtype=int)}, TypeError, "bias has dtype int64"),
    "bias has another shape": ({"bias": x(4, 5, 6)}, ValueError, r"bias has shape \(4, 5, 6\)"),
    "dropout without its mask": ({"dropout_p": 0.5}, ValueError, "dropout_p is 0.5 without a dropout_mask"),
    "dropout_mask is float": ({"dropout_mask": x(5, 7)}, TypeError, "dropout_mask must be a bool array"),
    "dropout_mask has another shape": ({"dropout_mask": x(7, 7, dtype=bool)}, ValueError, "dropout_mask has shape"),
}
LOCAL = {
    "no right side": ({"right": 2.0}, TypeError, "right must be an integer, got float"),
    **count("left", 0),
    **count("right", 0),
}
DILATED = count("window", 0) | count("step")
STRIDED = count("local") | count("stride")
FIXED = {
    **count("block"),
    **count("summary"),
    "summary beyond the block": ({"summary": 4}, ValueError, "summary is 4; wanted at most the 3 keys of a block"),
}
RANDOM = {
    **count("n_keys"),
    **count("seed", 0),
    "per_head is a number": ({"per_head": 1}, TypeError, "per_head must be True or False, got int"),
}
GLOBAL = positions("indices", negative=False)
BIGBIRD = {
    **count("block_size"),
    **count("n_window"),
    **count("n_random", 0),
    **count("seed", 0),
    **positions("global_blocks", negative=True),
    "n_window is even": ({"n_window": 2}, ValueError, "n_window is 2; wanted an odd number"),
    "per_head is a number": ({"per_head": 4}, TypeError, "per_head must be True or False, got int"),
}
LONGFORMER = {
    **count("window", 0),
    **positions("global_indices", negative=False),
    "q_global for other tokens": ({"q_global": x(2, 4, 3, 8)}, ValueError, r"q_global has shape .*wanted \(2, 4, 2, 8"),
    "q_global of other heads": ({"q_global": x(2, 2, 2, 8)}, ValueError, r"q_global has shape .*wanted \(2, 4, 2, 8"),
    "q_global of another dtype": ({"q_global": x(2, 4, 2, 8, dtype=np.float32)}, TypeError, "dtypes differ"),
    "q_global is a list": ({"q_global": [0.0]}, TypeError, "q_global must be an array, got list"),
    "q_global and a token twice": (
        {"q_global": x(2, 4, 2, 8), "global_indices": (3, 3)},
        ValueError,
        r"global_indices is \(3, 3\); wanted each once",
    ),
    "k_global for fewer keys": ({"k_global": x(2, 2, 6, 8)}, ValueError, r"k_global has shape .*wanted \(2, 2, 7, 8\)"),
    "k_global of query heads": ({"k_global": x(2, 4, 7, 8)}, ValueError, "k_global has shape"),
    "k_global is int": ({"k_global": x(2, 2, 7, 8, dtype=int)}, TypeError, "k_global has dtype int64"),
    "v_global as wide as keys": (
        {"v_global": x(2, 2, 7, 8)},
        ValueError,
        r"v_global has shape .*wanted \(2, 2, 7, 6\)",
    ),
}
BLOCK_SPARSE = {
    **count("block_size"),
    "layout is int": ({"layout": x(2, 3, dtype=int)}, TypeError, "layout is int64; wanted a bool array"),
    "layout is a list": ({"layout": [[True] * 3] * 2}, TypeError, "layout is list; wanted a bool array"),
    "layout is None": ({"layout": None}, TypeError, "layout is NoneType"),
    "layout has one axis": ({"layout": x(3, dtype=bool)}, ValueError, r"layout has shape \(3,\)"),
    "layout of fewer blocks": (
        {"layout": x(2, 2, dtype=bool)},
        ValueError,
        r"layout has shape \(2, 2\); wanted \(..., 2, 3\)",
    ),
    "layout is transposed": ({"layout": x(3, 2, dtype=bool)}, ValueError, r"layout has shape \(3, 2\)"),
    "layout for other heads": ({"layout": x(2, 2, 3, dtype=bool)}, ValueError, r"layout has shape \(2, 2, 3\)"),
}
FORMS = {
    "sparse_attention": ({"mask": masks.causal()}, [SCORES, SPARSE]),
    "local_attention": ({"left": 2, "right": 1}, [SCORES, NO_MASK, LOCAL]),
    "dilated_attention": ({"window": 2, "step": 2}, [SCORES, DILATED]),
    "strided_attention": ({"local": 2, "stride": 2}, [SCORES, STRIDED]),
    "fixed_attention": ({"block": 3, "summary": 1}, [SCORES, FIXED]),
    "random_attention": ({"n_keys": 2}, [SCORES, RANDOM]),
    "global_attention": ({"indices": [0, 3]}, [SCORES, GLOBAL]),
    "bigbird_attention": ({"block_size": 2}, [SCORES, BIGBIRD]),
    "longformer_attention": ({"window": 1, "global_indices": (0, 3)}, [SCORES, NO_MASK, LONGFORMER]),
    "block_sparse_attention": ({"layout": np.ones((2, 3), bool), "block_size": 3}, [SCORES, NO_MASK, BLOCK_SPARSE]),
}
OPERATIONS = {
    **{name: (QKV | good, tables) for name, (good, tables) in FORMS.items()},
    **{f"{name}_vjp": (DO | QKV | good, [*tables, COTANGENT]) for name, (good, tables) in FORMS.items()},
}
