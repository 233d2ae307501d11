"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


def numbers(*shape, count, dtype=np.int64):
    """Different places below `count` for each query."""
    return np.broadcast_to(np.arange(count)[: shape[-1]], shape).astype(dtype)


NAN = float("nan")
QKV = {"q": x(2, 4, 5, 8), "k": x(2, 2, 7, 8), "v": x(2, 2, 7, 6)}
TENSORS = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "q is int": ({"q": x(2, 4, 5, 8, dtype=np.int64)}, TypeError, "q has dtype int64"),
    "k has one axis": ({"k": x(8)}, ValueError, r"k has shape \(8,\)"),
    "dtypes differ": ({"v": x(2, 2, 7, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "batches differ": ({"q": x(3, 4, 5, 8)}, ValueError, "batch axes .* differ"),
    "D differs": ({"k": x(2, 2, 7, 9)}, ValueError, "one D >= 1"),
    "Tk of k and v differ": ({"v": x(2, 2, 6, 6)}, ValueError, "k has 7 keys and v has 6 values"),
    "scale is NaN": ({"scale": NAN}, ValueError, "scale is nan"),
    "scale is an array": ({"scale": x(4)}, TypeError, "scale must be a number, got ndarray"),
}
HEADS = {"Hk does not divide H": ({"q": x(2, 3, 5, 8)}, ValueError, "3 query heads cannot share 2 key heads")}


def indices(lead, n, count):
    """What may be wrong with indices of n places below `count`."""
    good = numbers(*lead, n, count=count)
    high, low, twice = (np.where(np.arange(n) == 1, wrong, good) for wrong in (count, -2, 0))
    return {
        "indices are floats": ({"indices": good.astype(float)}, TypeError, "indices is float64; wanted an integer"),
        "indices are a list": ({"indices": [0]}, TypeError, "indices is list; wanted an integer array"),
        "indices are bools": ({"indices": good.astype(bool)}, TypeError, "indices is bool"),
        "indices of another number": ({"indices": good[..., 1:]}, ValueError, "indices has shape"),
        "indices of other queries": ({"indices": good[..., 1:, :]}, ValueError, "indices has shape"),
        "an index is too high": (
            {"indices": high},
            ValueError,
            f"indices holds {count}; wanted -1 or 0 to {count - 1}",
        ),
        "an index is too low": ({"indices": low}, ValueError, "indices holds -2"),
        "an index twice": ({"indices": twice}, ValueError, "indices names one place twice for the same query"),
    }


TOPK = {
    "n_keys is 0": ({"n_keys": 0}, ValueError, "n_keys is 0; wanted at least 1"),
    "n_keys is a float": ({"n_keys": 3.0}, TypeError, "n_keys must be an integer, got float"),
    "n_keys is a bool": ({"n_keys": True}, TypeError, "n_keys must be an integer, got bool"),
    "mask is float": ({"mask": x(5, 7)}, TypeError, "mask is float64"),
    "mask has another shape": ({"mask": x(5, 6, dtype=bool)}, ValueError, r"mask has shape \(5, 6\)"),
    "softcap is 0": ({"softcap": 0.0}, ValueError, "softcap is 0.0"),
    "sinks of other heads": ({"sinks": x(2)}, ValueError, r"sinks has shape \(2,\); wanted \(4,\)"),
}
MOBA = {
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0; wanted at least 1"),
    "chunk is a float": ({"chunk": 2.0}, TypeError, "chunk must be an integer"),
    "top_k is 0": ({"top_k": 0}, ValueError, "top_k is 0"),
    "top_k is text": ({"top_k": "2"}, TypeError, "top_k must be an integer"),
}
NSA = {
    "gates of two branches": ({"gates": x(2, 4, 5, 2)}, ValueError, r"gates has shape .*wanted \(2, 4, 5, 3\)"),
    "gates of key heads": ({"gates": x(2, 2, 5, 3)}, ValueError, "gates has shape"),
    "gates of another dtype": ({"gates": x(2, 4, 5, 3, dtype=np.float32)}, TypeError, "dtypes differ"),
    "gates are a number": ({"gates": 1.0}, TypeError, "gates must be an array"),
    "block_size is 0": ({"block_size": 0}, ValueError, "block_size is 0"),
    "stride is a float": ({"stride": 1.0}, TypeError, "stride must be an integer"),
    "select_block is negative": ({"select_block": -4}, ValueError, "select_block is -4"),
    "no room for the pinned blocks": ({"n_selected": 2}, ValueError, "n_selected is 2; wanted at least 3"),
    "window is 0": ({"window": 0}, ValueError, "window is 0"),
    "stride does not divide block_size": (
        {"stride": 4},
        ValueError,
        "block_size is 2; wanted a multiple of stride",
    ),
    "stride does not divide select_block": ({"select_block": 3}, ValueError, "select_block is 3; wanted a multiple of"),
    "w_k of query heads": (
        {"w_k": x(4, 2)},
        ValueError,
        r"w_k has shape .*wanted \(2, 2\) = \(Hk, block",
    ),
    "w_v of another length": ({"w_v": x(2, 3)}, ValueError, "w_v has shape"),
    "w_v is int": ({"w_v": x(2, 2, dtype=int)}, TypeError, "w_v has dtype int"),
    "k_selected of another length": ({"k_selected": x(2, 2, 6, 8)}, ValueError, "k_selected has shape"),
    "v_selected of another width": ({"v_selected": x(2, 2, 7, 8)}, ValueError, "v_selected has shape"),
    "k_window of another dtype": ({"k_window": x(2, 2, 7, 8, dtype=np.float32)}, TypeError, "dtypes differ"),
    "v_window of other heads": ({"v_window": x(2, 4, 7, 6)}, ValueError, "v_window has shape"),
}
BUCKETS = np.zeros((2, 4, 2, 5), int)
LSH = {
    "qk is int": ({"qk": x(2, 4, 5, 8, dtype=int)}, TypeError, "qk has dtype int"),
    "qk has one axis": ({"qk": x(8)}, ValueError, r"qk has shape \(8,\)"),
    "D is 0": ({"qk": x(2, 4, 5, 0)}, ValueError, "wanted D >= 1"),
    "v of other heads": ({"v": x(2, 2, 5, 6)}, ValueError, "v has shape"),
    "v of another length": ({"v": x(2, 4, 6, 6)}, ValueError, "v has shape"),
    "v of another dtype": ({"v": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "chunk is 0": ({"chunk": 0}, ValueError, "chunk is 0"),
    "chunk is a float": ({"chunk": 4.0}, TypeError, "chunk must be an integer"),
    "causal is a number": ({"causal": 1}, TypeError, "causal must be True or False, got int"),
    "scale is inf": ({"scale": float("inf")}, ValueError, "scale is inf"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number"),
    "neither rotations nor buckets": ({"rotations": None}, ValueError, "either rotations or buckets, got none"),
    "rotations and buckets": ({"buckets": BUCKETS}, ValueError, "either rotations or buckets, got both"),
    "rotations of another D": ({"rotations": x(2, 7, 4)}, ValueError, "rotations has shape"),
    "rotations of one axis too few": ({"rotations": x(8, 4)}, ValueError, "rotations has shape"),
    "rotations of another dtype": ({"rotations": x(2, 8, 4, dtype=np.float32)}, TypeError, "dtypes differ"),
    "no rounds": ({"rotations": x(0, 8, 4)}, ValueError, "wanted a round and a column"),
    "no buckets": ({"rotations": x(2, 8, 0)}, ValueError, "wanted a round and a column"),
    "buckets are floats": ({"rotations": None, "buckets": x(2, 4, 2, 5)}, TypeError, "buckets is float64"),
    "buckets are a list": ({"rotations": None, "buckets": [0]}, TypeError, "buckets is list"),
    "buckets of other tokens": ({"rotations": None, "buckets": BUCKETS[..., 1:]}, ValueError, "buckets has shape"),
    "buckets without rounds": ({"rotations": None, "buckets": BUCKETS[..., 0, :]}, ValueError, "buckets has shape"),
    "buckets below 0": ({"rotations": None, "buckets": BUCKETS - 1}, ValueError, "a number below 0"),
}
SIZES = {"block_size": 2, "stride": 2, "select_block": 2, "n_selected": 3, "window": 3}
OPERATIONS = {
    "topk_attention": (QKV | {"n_keys": 3}, [TENSORS, HEADS, TOPK, indices((2, 4, 5), 3, 7)]),
    "moba_attention": (QKV | {"chunk": 2, "top_k": 2}, [TENSORS, HEADS, MOBA, indices((2, 4, 5), 2, 4)]),
    "nsa_attention": (
        QKV | {"gates": x(2, 4, 5, 3)} | SIZES,
        [TENSORS, HEADS, NSA, indices((2, 2, 5), 3, 4)],
    ),
    "lsh_attention": ({"qk": x(2, 4, 5, 8), "v": x(2, 4, 5, 6), "rotations": x(2, 8, 4), "chunk": 4}, [LSH]),
}
