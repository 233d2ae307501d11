"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

import numpy as np

from refattn import masks


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


def ints(*values, dtype=np.int32):
    return np.array(values, dtype)


SCORES = {  # what both layouts share
    "q is a list": ({"q": [[[0.0]]]}, TypeError, "q must be an array, got list"),
    "q is int": ({"q": x(5, 4, 8, dtype=int)}, TypeError, "q has dtype int64; wanted one of float16"),
    "mask is an array": ({"mask": x(5, 7, dtype=bool)}, TypeError, "mask is bool; wanted a mask value"),
    "mask is text": ({"mask": "causal()"}, TypeError, "mask is str; wanted a mask value"),
    "mask per sequence": ({"mask": masks.padding([1, 2])}, ValueError, r"mask has leading axes \(2, 1\); wanted none"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    "scale is inf": ({"scale": float("inf")}, ValueError, "scale is inf"),
    "softcap is 0": ({"softcap": 0}, ValueError, "softcap is 0; wanted a finite number above 0"),
    "sinks of other heads": ({"sinks": x(3)}, ValueError, r"sinks has shape \(3,\); wanted \(4,\)"),
    "sinks are int": ({"sinks": x(4, dtype=int)}, TypeError, "sinks has dtype int64"),
    "sinks are inf": ({"sinks": np.full(4, np.inf)}, ValueError, "sinks holds inf"),
    "an unknown argument": ({"bias": x(5, 7)}, TypeError, "bias"),
}
PACKED = {
    "documents of other length": (
        {"mask": masks.document([0, 0, 0, 1])},
        ValueError,
        "sequence 1: document: ids has 4 entries, but there are 3 keys",
    ),
    "q has two axes": ({"q": x(5, 8)}, ValueError, r"q has shape \(5, 8\); wanted \(total_q, H, D\)"),
    "q has a batch axis": ({"q": x(1, 5, 4, 8)}, ValueError, r"q has shape \(1, 5, 4, 8\)"),
    "k has two axes": ({"k": x(7, 8)}, ValueError, r"k has shape \(7, 8\); wanted \(total_k, Hk, D\)"),
    "v has four axes": ({"v": x(7, 2, 6, 1)}, ValueError, r"v has shape .*; wanted \(total_k, Hk, Dv\)"),
    "dtypes differ": ({"k": x(7, 2, 8, dtype=np.float32)}, TypeError, "dtypes differ.*'k': 'float32'"),
    "totals of k and v differ": ({"v": x(6, 2, 6)}, ValueError, "k has 7 keys and v has 6 values"),
    "D differs": ({"k": x(7, 2, 9)}, ValueError, r"one D >= 1: q \(5, 4, 8\), k and v \(7, 2, 9\)"),
    "D is 0": ({"q": x(5, 4, 0), "k": x(7, 2, 0)}, ValueError, "one D >= 1"),
    "heads of k and v differ": ({"v": x(7, 1, 6)}, ValueError, "the same number of heads"),
    "Hk does not divide H": ({"q": x(5, 3, 8)}, ValueError, "3 query heads cannot share 2 key heads"),
    "no key heads": ({"k": x(7, 0, 8), "v": x(7, 0, 6)}, ValueError, "4 query heads cannot share 0 key heads"),
    "no query heads": ({"q": x(5, 0, 8)}, ValueError, "0 query heads cannot share 2 key heads"),
    "borders are a list": ({"cu_seqlens_q": [0, 2, 5]}, TypeError, "cu_seqlens_q must be an array, got list"),
    "borders are None": ({"cu_seqlens_k": None}, TypeError, "cu_seqlens_k must be an array, got NoneType"),
    "borders are float": ({"cu_seqlens_q": x(3)}, TypeError, "cu_seqlens_q has dtype float64; wanted integers"),
    "borders are bool": ({"cu_seqlens_k": x(3, dtype=bool)}, TypeError, "cu_seqlens_k has dtype bool"),
    "borders have two axes": (
        {"cu_seqlens_q": x(1, 3, dtype=int)},
        ValueError,
        r"cu_seqlens_q has shape \(1, 3\); wanted \(B \+ 1,\)",
    ),
    "borders are a number": ({"cu_seqlens_q": x(dtype=int)}, ValueError, r"cu_seqlens_q has shape \(\)"),
    "borders are empty": ({"cu_seqlens_q": ints()}, ValueError, r"cu_seqlens_q is empty; wanted \(B \+ 1,\) numbers"),
    "borders do not begin with 0": ({"cu_seqlens_q": ints(1, 2, 5)}, ValueError, r"cu_seqlens_q\[0\] is 1; wanted 0"),
    "borders are negative": ({"cu_seqlens_k": ints(-1, 4, 7)}, ValueError, r"cu_seqlens_k\[0\] is -1; wanted 0"),
    "borders fall": ({"cu_seqlens_k": ints(0, 8, 7)}, ValueError, "cu_seqlens_k falls from 8 to 7 at sequence 1"),
    "borders fall below 0": ({"cu_seqlens_q": ints(0, -1, 5)}, ValueError, "cu_seqlens_q falls from 0 to -1"),
    "unsigned borders fall": (
        {"cu_seqlens_q": ints(0, 6, 5, dtype=np.uint8)},
        ValueError,
        "cu_seqlens_q falls from 6 to 5",
    ),
    "tokens beyond the last border": (
        {"cu_seqlens_q": ints(0, 2, 4)},
        ValueError,
        r"cu_seqlens_q\[-1\] is 4; wanted 5, as q has tokens",
    ),
    "last border beyond the tokens": (
        {"cu_seqlens_k": ints(0, 4, 8)},
        ValueError,
        r"cu_seqlens_k\[-1\] is 8; wanted 7, as k has tokens",
    ),
    "lengths for borders": ({"cu_seqlens_q": ints(2, 3)}, ValueError, r"cu_seqlens_q\[0\] is 2"),
    "other numbers of sequences": (
        {"cu_seqlens_k": ints(0, 7)},
        ValueError,
        "cu_seqlens_q has 2 sequences and cu_seqlens_k 1; wanted the same number",
    ),
    "padding beyond the keys": (
        {"mask": masks.padding(4)},
        ValueError,
        "sequence 1: padding: a length is 4, but there are 3 keys",
    ),
}
COTANGENT = {
    "do is packed heads first": ({"do": x(4, 5, 6)}, ValueError, r"do has shape \(4, 5, 6\); wanted \(5, 4, 6\)"),
    "do has the width of q": ({"do": x(5, 4, 8)}, ValueError, r"do has shape \(5, 4, 8\)"),
    "do has another dtype": ({"do": x(5, 4, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "do is int": ({"do": x(5, 4, 6, dtype=int)}, TypeError, "do has dtype int64"),
    "dlse has tokens first": (
        {"dlse": x(5, 4)},
        ValueError,
        r"dlse has shape \(5, 4\); wanted \(4, 5\) = \(H, total_q\)",
    ),
    "dlse is int": ({"dlse": x(4, 5, dtype=int)}, TypeError, "dlse has dtype int64"),
}
PAGED = {
    "documents of other length": (
        {"mask": masks.document([0] * 5)},
        ValueError,
        "sequence 0: document: ids has 5 entries, but there are 4 keys",
    ),
    "q has three axes": ({"q": x(4, 5, 8)}, ValueError, r"q has shape \(4, 5, 8\); wanted \(B, H, Tq, D\)"),
    "k_pages have three axes": (
        {"k_pages": x(9, 2, 8)},
        ValueError,
        r"k_pages has shape \(9, 2, 8\); wanted \(n_pages, page_size, Hk, D\)",
    ),
    "v_pages are int": ({"v_pages": x(3, 3, 2, 6, dtype=int)}, TypeError, "v_pages has dtype int64"),
    "dtypes differ": ({"v_pages": x(3, 3, 2, 6, dtype=np.float32)}, TypeError, "dtypes differ.*'v_pages': 'float32'"),
    "other numbers of pages": ({"v_pages": x(4, 3, 2, 6)}, ValueError, "k_pages .* and v_pages .* not the same pages"),
    "pages of other sizes": ({"v_pages": x(3, 2, 2, 6)}, ValueError, "k_pages .* and v_pages .* not the same pages"),
    "pages without slots": (
        {"k_pages": x(3, 0, 2, 8), "v_pages": x(3, 0, 2, 6)},
        ValueError,
        r"k_pages has shape \(3, 0, 2, 8\); wanted pages of one slot at least",
    ),
    "heads of k and v differ": ({"v_pages": x(3, 3, 1, 6)}, ValueError, "the same number of heads"),
    "heads before slots": (
        {"k_pages": x(2, 3, 3, 8), "v_pages": x(2, 3, 3, 6)},
        ValueError,
        "4 query heads cannot share 3 key heads",
    ),
    "D differs": ({"k_pages": x(3, 3, 2, 9)}, ValueError, r"one D >= 1: q \(2, 4, 5, 8\), k_pages and v_pages"),
    "page_table is a list": ({"page_table": [[0, 1], [2, 0]]}, TypeError, "page_table must be an array, got list"),
    "page_table is float": ({"page_table": x(2, 2)}, TypeError, "page_table has dtype float64; wanted integers"),
    "page_table is bool": ({"page_table": x(2, 2, dtype=bool)}, TypeError, "page_table has dtype bool"),
    "page_table has one axis": (
        {"page_table": ints(0, 1)},
        ValueError,
        r"page_table has shape \(2,\); wanted \(B, pages",
    ),
    "page_table of other sequences": (
        {"page_table": x(3, 2, dtype=int)},
        ValueError,
        r"page_table has shape \(3, 2\); wanted \(2, 2\) = \(B, pages per sequence\)",
    ),
    "a page that is not there": (
        {"page_table": ints([0, 3], [2, -1])},
        ValueError,
        r"page_table\[0, 1\] is 3; wanted one of 3 pages",
    ),
    "a negative page": (
        {"page_table": ints([0, 1], [-1, 2])},
        ValueError,
        r"page_table\[1, 0\] is -1; wanted one of 3",
    ),
    "seqlens_k are a list": ({"seqlens_k": [4, 3]}, TypeError, "seqlens_k must be an array, got list"),
    "seqlens_k are float": ({"seqlens_k": x(2)}, TypeError, "seqlens_k has dtype float64; wanted integers"),
    "seqlens_k of other sequences": ({"seqlens_k": ints(4)}, ValueError, r"seqlens_k has shape \(1,\); wanted \(2,\)"),
    "seqlens_k are borders": ({"seqlens_k": ints(0, 4, 7)}, ValueError, r"seqlens_k has shape \(3,\); wanted \(2,\)"),
    "seqlens_k have two axes": (
        {"seqlens_k": ints([4], [3])},
        ValueError,
        r"seqlens_k has shape \(2, 1\); wanted \(B,\)",
    ),
    "a negative length": ({"seqlens_k": ints(4, -1)}, ValueError, r"seqlens_k\[1\] is -1; wanted 0 to 6"),
    "a length beyond the table": (
        {"seqlens_k": ints(7, 3)},
        ValueError,
        r"seqlens_k\[0\] is 7; wanted 0 to 6, for which page_table has room \(2 pages of 3\)",
    ),
    "padding beyond the keys": (
        {"mask": masks.padding(4)},
        ValueError,
        "sequence 1: padding: a length is 4, but there are 3 keys",
    ),
}

PACKED_GOOD = {
    "q": x(5, 4, 8),  # 4 heads over 2; sequences of 2 and 3 queries, 4 and 3 keys
    "k": x(7, 2, 8),
    "v": x(7, 2, 6),
    "cu_seqlens_q": ints(0, 2, 5),
    "cu_seqlens_k": ints(0, 4, 7),
}
PAGED_GOOD = {
    "q": x(2, 4, 5, 8),  # pages of 3 slots; sequences of 4 and 3 keys, the last entry of the table unused
    "k_pages": x(3, 3, 2, 8),
    "v_pages": x(3, 3, 2, 6),
    "page_table": ints([0, 1], [2, -1]),
    "seqlens_k": ints(4, 3),
}
OPERATIONS = {
    "attention_varlen": (PACKED_GOOD, [SCORES, PACKED]),
    "attention_varlen_vjp": ({"do": x(5, 4, 6)} | PACKED_GOOD, [SCORES, PACKED, COTANGENT]),
    "paged_attention": (PAGED_GOOD, [SCORES, PAGED]),
}
