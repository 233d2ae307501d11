"""Ask every dialect the same tiny questions, and write the answers into docs/dialects/where_libraries_disagree.md.

    python tests/benchmarks/disagreements.py            print the answers
    python tests/benchmarks/disagreements.py --write    put them into the page

A question is asked of a library through the functions of its dialect. `tests/dialects/test_disagree.py` asks the
installed libraries themselves in the same way, and wants the same answers. Queries and keys are zero unless said
otherwise: all scores are equal then, and an output is the mean of the values seen, which a reader checks in the head.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import refattn
from refattn import masks
from refattn.dialects import flash_attn, flash_attn_3, flashinfer, flex_attention, jax, onnx, torch_sdpa, transformers

PAGE = Path(__file__).parents[2] / "docs" / "dialects" / "where_libraries_disagree.md"
BEGIN, END = "<!-- answers: written by tests/benchmarks/disagreements.py -->", "<!-- end of the answers -->"
LIBRARIES = {
    "refattn": refattn,
    "PyTorch SDPA": torch_sdpa,
    "FlexAttention": flex_attention,
    "FlashAttention 2": flash_attn,
    "FlashAttention 3": flash_attn_3,
    "FlashInfer": flashinfer,
    "JAX": jax,
    "ONNX": onnx,
    "Transformers": transformers,
}


class Question(NamedTuple):
    """What is asked, how each library is asked (name, or "name, with what" -> function), and what to know about it."""

    title: str
    what: str
    ask: dict
    remark: str = ""


class Inputs(NamedTuple):
    """Zeros for queries and keys, and one number per key as value, heads before tokens (bhtd) or after them (bthd)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @classmethod
    def of(cls, Tq, values, H=1, Hk=1, D=1, dtype=np.float64):
        """Return q (1, H, Tq, D), k and v (1, Hk, Tk, D); values (Tk,) or (Hk, Tk)."""
        values = np.asarray(values, dtype)
        values = np.broadcast_to(values, (Hk, values.shape[-1]))
        Tk = values.shape[-1]
        v = np.broadcast_to(values[None, :, :, None], (1, Hk, Tk, D)).astype(dtype)
        return cls(np.zeros((1, H, Tq, D), dtype), np.zeros((1, Hk, Tk, D), dtype), v)

    @property
    def bthd(self):
        """The same with tokens before heads."""
        return [np.ascontiguousarray(x.swapaxes(1, 2)) for x in self]

    @property
    def thd(self):
        """The same without the batch: one request."""
        return [x[0] for x in self.bthd]


def eager(library, x, mask, forward="eager_attention_forward", **module):
    """Return the output of an eager forward of Transformers, heads before tokens."""
    module = transformers.Module(num_key_value_groups=x.q.shape[1] // x.k.shape[1], **module)
    scale = x.q.shape[-1] ** -0.5
    return getattr(library, forward)(module, *x, mask, scaling=scale)[0].swapaxes(1, 2)


def top_left(b, h, i, j):
    """Let query i look at the keys j <= i."""
    return i >= j


def block(library, mask_mod, x):
    """Return a block mask for the lengths of x."""
    return library.create_block_mask(mask_mod, None, None, x.q.shape[2], x.k.shape[2])


FEW, MANY = Inputs.of(2, [0, 3, 6, 9]), Inputs.of(4, [2, 4])


def causal(x, offset):
    """Ask every library for causal attention."""
    return {
        "refattn": lambda lib: lib.attention(*x, mask=masks.causal()),
        "FlashAttention 2": lambda lib: lib.flash_attn_func(*x.bthd, causal=True),
        "FlashAttention 3": lambda lib: lib.flash_attn_func(*x.bthd, causal=True),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*x.thd, causal=True),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*x, is_causal=True),
        "FlexAttention, `q_idx >= kv_idx`": lambda lib: lib.flex_attention(*x, block_mask=block(lib, top_left, x)),
        "JAX": lambda lib: lib.dot_product_attention(*x.bthd, is_causal=True),
        "ONNX": lambda lib: lib.Attention(*x, is_causal=1)[0],
        **offset,
    }


Q_CAUSAL = Question(
    "Causal, with fewer queries than keys",
    "2 queries, 4 keys with the values 0 3 6 9: where does the diagonal begin?",
    causal(
        FEW,
        {
            "ONNX, 2 of the keys as past": lambda lib: lib.Attention(
                FEW.q, FEW.k[:, :, 2:], FEW.v[:, :, 2:], None, FEW.k[:, :, :2], FEW.v[:, :, :2], is_causal=1
            )[0],
            "Transformers, mask with `q_offset=2`": lambda lib: eager(
                lib, FEW, lib.eager_mask(1, 2, 4, q_offset=2, dtype=np.float64)
            ),
        },
    ),
)

Q_MANY = Question(
    "Causal, with more queries than keys",
    "4 queries, 2 keys with the values 2 4. Aligned at the bottom right, the first two queries see nothing.",
    causal(
        MANY,
        {
            "FlashInfer, as a batch of one": lambda lib: lib.batch_prefill_with_ragged_kv_cache(
                *MANY.thd, np.array([0, 4]), np.array([0, 2]), causal=True
            )
        },
    ),
)


def unseen(library, x, **options):
    """Return o and lse of the first of 3 causal queries that have 2 keys, which sees nothing."""
    return tuple(y.ravel()[0] for y in library.flash_attn_func(*x.bthd, causal=True, return_attn_probs=True)[:2])


BLIND = Inputs.of(1, [2, 4], dtype=np.float32)
NOTHING = np.zeros((1, 2), bool)
Q_NOTHING = Question(
    "A row that sees nothing",
    "One query, 2 keys with the values 2 4, both hidden (float32): the output, and the lse where one is returned.",
    {
        "refattn": lambda lib: lib.attention(*BLIND, mask=NOTHING, return_lse=True),
        "FlexAttention": lambda lib: lib.flex_attention(
            *BLIND, block_mask=block(lib, lambda b, h, i, j: (i < 0) & (j < 0), BLIND), return_lse=True
        ),
        "FlashAttention 3": lambda lib: unseen(lib, Inputs.of(3, [2, 4], dtype=np.float32)),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*BLIND.thd, custom_mask=NOTHING, return_lse=True),
        "FlashAttention 2": lambda lib: unseen(lib, Inputs.of(3, [2, 4], dtype=np.float32)),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*BLIND, NOTHING),
        "ONNX": lambda lib: lib.Attention(*BLIND, NOTHING)[0],
        "JAX": lambda lib: lib.dot_product_attention(*BLIND.bthd, mask=NOTHING, return_residual=True),
        "Transformers": lambda lib: eager(lib, BLIND, np.full((1, 1, 1, 2), np.finfo(np.float32).min)),
        "Transformers, gpt-oss with a sink": lambda lib: eager(
            lib,
            BLIND,
            np.full((1, 1, 1, 2), np.finfo(np.float32).min),
            "gpt_oss_eager_attention_forward",
            sinks=np.zeros(1, np.float32),
        ),
    },
    "FlashAttention takes no mask: its row is the first of 3 causal queries with 2 keys.",
)

NONE = Inputs.of(1, [])
Q_EMPTY = Question(
    "No keys at all",
    "One query and no key: the output, and the lse where one is returned.",
    {
        "refattn": lambda lib: lib.attention(*NONE, return_lse=True),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*NONE.thd, return_lse=True),
        "FlashAttention 2": lambda lib: lib.flash_attn_func(*NONE.bthd, return_attn_probs=True)[:2],
        "FlashAttention 3": lambda lib: lib.flash_attn_func(*NONE.bthd, return_attn_probs=True),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*NONE),
    },
)

EIGHT = Inputs.of(1, [1] * 8)
Q_LSE = Question(
    "The logarithm of lse",
    "Eight keys with equal scores of 0: the sum of exponentials is 8.",
    {
        "refattn": lambda lib: lib.attention(*EIGHT, return_lse=True)[1],
        "FlexAttention": lambda lib: lib.flex_attention(*EIGHT, return_lse=True)[1],
        "FlashAttention 2": lambda lib: lib.flash_attn_func(*EIGHT.bthd, return_attn_probs=True)[1],
        "FlashAttention 3": lambda lib: lib.flash_attn_func(*EIGHT.bthd, return_attn_probs=True)[1],
        "JAX": lambda lib: lib.dot_product_attention(*EIGHT.bthd, return_residual=True)[1],
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*EIGHT.thd, return_lse=True)[1],
    },
    "PyTorch SDPA, ONNX and Transformers return no lse.",
)

ONE = Inputs.of(1, [2])
Q_SINK = Question(
    "Sinks",
    "One key of score 0 and value 2, and a sink of 0: the output, and the lse (refattn) or the weight (Transformers).",
    {
        "refattn": lambda lib: lib.attention(*ONE, sinks=np.zeros(1), return_lse=True),
        "Transformers, gpt-oss": lambda lib: lib.gpt_oss_eager_attention_forward(
            transformers.Module(sinks=np.zeros(1)), *ONE, None, scaling=1.0
        ),
    },
    "The other functions take none. In refattn the sink is part of lse, so that the weights are exp(s - lse).",
)

FIVE = Inputs.of(5, [0, 3, 6, 9, 12])
Q_WINDOW = Question(
    "A causal window of 2",
    "5 queries and 5 keys with the values 0 3 6 9 12; the last query's answer, where the library is told 2.",
    {
        "refattn, `window(2, 0)`": lambda lib: lib.attention(*FIVE, mask=masks.window(2, 0))[0, 0, 4],
        "FlashAttention 2, `(2, 0)`": lambda lib: lib.flash_attn_func(*FIVE.bthd, window_size=(2, 0))[0, 4],
        "FlashAttention 3, `(2, 0)`": lambda lib: lib.flash_attn_func(*FIVE.bthd, window_size=(2, 0))[0, 4],
        "FlashInfer, `window_left=2`": lambda lib: lib.single_prefill_with_kv_cache(
            *FIVE.thd, causal=True, window_left=2
        )[4],
        "JAX, `local_window_size=2`": lambda lib: lib.dot_product_attention(
            *FIVE.bthd, is_causal=True, local_window_size=2
        )[0, 4],
        "ONNX, `left_window_size=2`": lambda lib: lib.Attention(*FIVE, is_causal=1, left_window_size=2)[0][0, 0, 4],
        "Transformers, `sliding_window=2`": lambda lib: eager(
            lib,
            FIVE,
            lib.eager_mask(1, 5, 5, mask_function=lib.sliding_window_causal_mask_function(2), dtype=np.float64),
        )[0, 0, 4],
    },
    "The mean of 6 9 12 is 9: two keys and the query's own. Transformers counts the own one, and has the mean of 9 12.",
)

Q_BOTH_SIDES = Question(
    "A window of 1, not causal",
    "The same keys; the answer to the query in the middle.",
    {
        "refattn, `window(1, 1)`": lambda lib: lib.attention(*FIVE, mask=masks.window(1, 1))[0, 0, 2],
        "FlashAttention 2, `(1, 1)`": lambda lib: lib.flash_attn_func(*FIVE.bthd, window_size=(1, 1))[0, 2],
        "FlashAttention 3, `(1, 1)`": lambda lib: lib.flash_attn_func(*FIVE.bthd, window_size=(1, 1))[0, 2],
        "JAX, `local_window_size=1`": lambda lib: lib.dot_product_attention(*FIVE.bthd, local_window_size=1)[0, 2],
        "ONNX, both sides 1": lambda lib: lib.Attention(*FIVE, left_window_size=1, right_window_size=1)[0][0, 0, 2],
        "Transformers, `sliding_window=1`": lambda lib: eager(
            lib,
            FIVE,
            lib.eager_mask(1, 5, 5, mask_function=lib.sliding_window_bidirectional_mask_function(1), dtype=np.float64),
        )[0, 0, 2],
        "FlashInfer, `window_left=1`": lambda lib: lib.single_prefill_with_kv_cache(*FIVE.thd, window_left=1)[2],
    },
    "FlashInfer has no bound to the right.",
)

NINE = Inputs.of(9, [2, 4])
Q_OPEN = Question(
    "A window that is open to the right, with more queries than keys",
    "9 queries, 2 keys with the values 2 4, a window of 1 to the left. Query 0 stands 7 places before the first key.",
    {
        "refattn, `window(1, None)`": lambda lib: lib.attention(*NINE, mask=masks.window(1, None)),
        "FlashAttention 3, `(1, -1)`": lambda lib: lib.flash_attn_func(*NINE.bthd, window_size=(1, -1)),
        "FlashInfer, `window_left=1`": lambda lib: lib.single_prefill_with_kv_cache(*NINE.thd, window_left=1),
        "FlashAttention 2, `(1, -1)`": lambda lib: lib.flash_attn_func(*NINE.bthd, window_size=(1, -1)),
    },
    "FlashAttention 2 puts the number of keys in the place of the open bound, which is too near here.",
)

LOWER = np.array([[True, True], [False, True]])
TWO = Inputs.of(2, [2, 4])
Q_BOTH = Question(
    "A mask, and causal",
    "2 queries, 2 keys with the values 2 4, and a mask that hides key 0 from query 1.",
    {
        "refattn": lambda lib: lib.attention(*TWO, mask=masks.causal() & masks.from_array(LOWER)),
        "JAX": lambda lib: lib.dot_product_attention(*TWO.bthd, mask=LOWER[None, None], is_causal=True),
        "ONNX": lambda lib: lib.Attention(*TWO, LOWER, is_causal=1)[0],
        "FlexAttention, `and_masks`": lambda lib: lib.flex_attention(
            *TWO, block_mask=block(lib, lib.and_masks(top_left, lambda b, h, i, j: (i == 0) | (j == 1)), TWO)
        ),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*TWO.thd, custom_mask=LOWER, causal=True),
        "PyTorch SDPA, math path": lambda lib: lib.scaled_dot_product_attention(*TWO, LOWER, is_causal=True),
    },
    "FlashInfer forgets causal. PyTorch's fused kernel for CPUs does not refuse, and applies both.",
)

PAIR = Inputs.of(1, [0, 4])
Q_NUMBERS = Question(
    "A mask of 0 and 1",
    "The same with integers.",
    {
        "refattn": lambda lib: lib.attention(*PAIR, mask=np.array([[0, 1]])),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*PAIR, np.array([[0, 1]])),
        "JAX": lambda lib: lib.dot_product_attention(*PAIR.bthd, mask=np.array([[[[0, 1]]]])),
        "ONNX": lambda lib: lib.Attention(*PAIR, np.array([[0, 1]]))[0],
        "Transformers": lambda lib: eager(lib, PAIR, np.array([[[[0, 1]]]])),
    },
)

Q_TRUE = Question(
    "A mask of False and True",
    "One query, 2 keys with the values 0 4, and the bools False True as mask: to hide the first key, or to add?",
    {
        "refattn": lambda lib: lib.attention(*PAIR, mask=np.array([[False, True]])),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*PAIR, np.array([[False, True]])),
        "JAX": lambda lib: lib.dot_product_attention(*PAIR.bthd, mask=np.array([[[[False, True]]]])),
        "ONNX": lambda lib: lib.Attention(*PAIR, np.array([[False, True]]))[0],
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*PAIR.thd, custom_mask=np.array([[False, True]])),
        "Transformers": lambda lib: eager(lib, PAIR, np.array([[[[False, True]]]])),
    },
    "Transformers' eager forward adds whatever it gets; its models hand it numbers.",
)

POISON = Inputs.of(1, [2, np.nan])
FIRST = np.array([[True, False]])
Q_POISON = Question(
    "NaN behind the mask",
    "One query, 2 keys with the values 2 NaN, of which the second is hidden.",
    {
        "refattn": lambda lib: lib.attention(*POISON, mask=FIRST),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*POISON, FIRST),
        "FlexAttention": lambda lib: lib.flex_attention(
            *POISON, block_mask=block(lib, lambda b, h, i, j: (i + j) < 1, POISON)
        ),
        "JAX": lambda lib: lib.dot_product_attention(*POISON.bthd, mask=FIRST[None, None]),
        "Transformers": lambda lib: eager(lib, POISON, np.array([[[[0.0, -1e300]]]])),
    },
    "A weight of 0 times NaN is NaN. What fused kernels multiply depends on their tiles: they are not asked.",
)

SHARED = Inputs.of(1, [[1], [2]], H=4, Hk=2)
Q_ORDER = Question(
    "Which heads share",
    "4 query heads, 2 key heads with one key each, of values 1 and 2: what each query head reads.",
    {
        "refattn": lambda lib: lib.attention(*SHARED),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*SHARED, enable_gqa=True),
        "FlexAttention": lambda lib: lib.flex_attention(*SHARED, enable_gqa=True),
        "FlashAttention 2": lambda lib: lib.flash_attn_func(*SHARED.bthd),
        "FlashAttention 3": lambda lib: lib.flash_attn_func(*SHARED.bthd),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*SHARED.thd),
        "JAX": lambda lib: lib.dot_product_attention(*SHARED.bthd),
        "ONNX": lambda lib: lib.Attention(*SHARED)[0],
        "Transformers": lambda lib: eager(lib, SHARED, None),
    },
    "Here all agree. PyTorch must be told: `enable_gqa=True`.",
)

SINGLE = Inputs.of(1, [1], H=4)
Q_UNASKED = Question(
    "Sharing without being told",
    "4 query heads without `enable_gqa`: 2 key heads, then 1.",
    {
        "refattn": lambda lib: (lib.attention(*SHARED), lib.attention(*SINGLE)),
        "PyTorch SDPA, 2 key heads": lambda lib: lib.scaled_dot_product_attention(*SHARED),
        "PyTorch SDPA, 1 key head": lambda lib: lib.scaled_dot_product_attention(*SINGLE),
        "FlexAttention, 2 key heads": lambda lib: lib.flex_attention(*SHARED),
        "FlexAttention, 1 key head": lambda lib: lib.flex_attention(*SINGLE),
    },
    "PyTorch broadcasts an axis of 1.",
)

SLOPES = refattn.alibi_slopes(8)  # 1/2, 1/4, 1/8 ...
TALL = Inputs.of(2, [0, 3, 6], H=8, Hk=8)


def alibi(is_causal):
    """Ask for output and lse of head 0, whose slope is 1/2."""
    fa2 = {"causal": is_causal, "alibi_slopes": SLOPES.astype(np.float32), "return_attn_probs": True}
    flashinfer_options = {"causal": is_causal, "pos_encoding_mode": "ALIBI", "return_lse": True}
    mask = masks.causal() if is_causal else None
    return {
        "refattn": lambda lib: tuple(
            y[0, 0] for y in lib.attention(*TALL, mask=mask, bias=lib.alibi_bias(SLOPES, 2, 3), return_lse=True)
        ),
        "FlashAttention 2": lambda lib: (
            lib.flash_attn_func(*TALL.bthd, **fa2)[0][0, :, 0],
            lib.flash_attn_func(*TALL.bthd, **fa2)[1][0, 0],
        ),
        "FlashInfer": lambda lib: tuple(
            y[:, 0] for y in lib.single_prefill_with_kv_cache(*TALL.thd, **flashinfer_options)
        ),
    }


Q_ALIBI = Question(
    "ALiBi, causal",
    "2 queries, 3 keys with the values 0 3 6, slope 1/2: outputs, and lse.",
    alibi(True),
    "The weights are the same. Instead of -slope · distance, FlashAttention 2 adds slope · j, and FlashInfer\n"
    "slope · (j - i), with i from the first of the queries: lse is shifted, and FlashInfer's is to the base 2.",
)

Q_ALIBI_ALL = Question(
    "ALiBi, not causal",
    "The same, everything visible.",
    alibi(False),
    "FlashInfer has no absolute value: what lies to the right of a query gains.",
)

CAPPED = Inputs.of(1, [0, 4], H=8, Hk=8)
CAPPED = CAPPED._replace(q=CAPPED.q + 2.0, k=CAPPED.k + 1.0)  # all products are 2
Q_CAP = Question(
    "ALiBi under a soft cap",
    "One query, 2 keys with the values 0 4 and products of 2, scale 1/2, cap 1, slope 1/2.",
    {
        "refattn": lambda lib: lib.attention(*CAPPED, scale=0.5, softcap=1.0, bias=lib.alibi_bias(SLOPES, 1, 2))[0, 0],
        "FlashAttention 2": lambda lib: lib.flash_attn_func(
            *CAPPED.bthd, softmax_scale=0.5, softcap=1.0, alibi_slopes=SLOPES.astype(np.float32)
        )[0, :, 0],
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(
            *CAPPED.thd, sm_scale=0.5, logits_soft_cap=1.0, pos_encoding_mode="ALIBI"
        )[:, 0],
    },
    "FlashInfer caps the sum of both, after it is scaled a second time.",
)

SCALED = Inputs.of(1, [0, 4])._replace(q=np.ones((1, 1, 1, 1)), k=np.array([0.0, 1.0]).reshape(1, 1, 2, 1))
Q_SCALE = Question(
    "A negative scale",
    "One query of 1, keys 0 and 1 with the values 0 4, scale -1.",
    {
        "refattn": lambda lib: lib.attention(*SCALED, scale=-1.0),
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*SCALED, scale=-1.0),
        "FlexAttention": lambda lib: lib.flex_attention(*SCALED, scale=-1.0),
        "JAX": lambda lib: lib.dot_product_attention(*SCALED.bthd, scale=-1.0),
        "FlashInfer": lambda lib: lib.single_prefill_with_kv_cache(*SCALED.thd, sm_scale=-1.0),
        "ONNX": lambda lib: lib.Attention(*SCALED, scale=-1.0)[0],
    },
    "ONNX multiplies queries and keys by the square root of it.",
)

ANGLE = np.arange(2)[:, None] * np.array([1.0, 0.01])
COS, SIN = np.cos(ANGLE), np.sin(ANGLE)
TOKEN = np.arange(1.0, 5.0).reshape(1, 1, 1, 4)


def appended(library):
    """Return the key that a cache with one token holds after an append with a rotation."""
    k, v = np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1, 4))
    library.flash_attn_with_kvcache(TOKEN, k, v, TOKEN, TOKEN, rotary_cos=COS, rotary_sin=SIN, cache_seqlens=1)
    return k[0, 1]


Q_ROPE = Question(
    "Which dimensions a rotation pairs",
    "The key 1 2 3 4 at position 1, turned by the defaults; angles 1 and 0.01.",
    {
        "refattn": lambda lib: lib.rope(TOKEN, np.array([1])),
        "ONNX": lambda lib: lib.RotaryEmbedding(TOKEN, COS, SIN, np.array([[1]])),
        "FlashAttention 2, cache": appended,
        "FlashAttention 3, cache": appended,
    },
    "Half split: (1, 3) and (2, 4); interleaved: (1, 2) and (3, 4). FlashInfer's `ROPE_LLAMA` is half split.",
)

KEEP = np.array([[False, True]])
Q_DROPOUT = Question(
    "Dropout",
    "One query, 2 keys with the values 0 4; the second weight is kept, probability 1/2: output, and lse.",
    {
        "refattn": lambda lib: lib.attention(*PAIR, dropout_mask=KEEP, dropout_p=0.5, return_lse=True),
        "FlashAttention 2": lambda lib: lib.flash_attn_func(
            *PAIR.bthd, 0.5, dropout_mask=KEEP[None, None], return_attn_probs=True
        )[:2],
        "PyTorch SDPA": lambda lib: lib.scaled_dot_product_attention(*PAIR, dropout_p=0.5, dropout_mask=KEEP),
        "PyTorch SDPA, probability 1": lambda lib: lib.scaled_dot_product_attention(*PAIR, dropout_p=1.0),
        "refattn, probability 1": lambda lib: lib.attention(*PAIR, dropout_mask=KEEP, dropout_p=1.0),
    },
    "A weight that is kept is divided by 1 - p, and lse does not know of it. The libraries draw the mask themselves.",
)

WIDE = Inputs(np.zeros((1, 3, 2, 5)), np.zeros((1, 3, 4, 5)), np.zeros((1, 3, 4, 5)))


def shapes(*arrays):
    """Return shapes as text."""
    return " ".join(str(tuple(int(n) for n in x.shape)).replace(" ", "") for x in arrays)


Q_LAYOUT = Question(
    "Where the heads stand",
    "1 sequence, 3 heads, 2 queries, 4 keys, width 5: the shapes of q, of the output, and of lse if there is one.",
    {
        "refattn": lambda lib: shapes(WIDE.q, *lib.attention(*WIDE, return_lse=True)),
        "PyTorch SDPA": lambda lib: shapes(WIDE.q, lib.scaled_dot_product_attention(*WIDE)),
        "FlexAttention": lambda lib: shapes(WIDE.q, *lib.flex_attention(*WIDE, return_lse=True)),
        "ONNX": lambda lib: shapes(WIDE.q, lib.Attention(*WIDE)[0]),
        "FlashAttention 2": lambda lib: shapes(
            WIDE.bthd[0], *lib.flash_attn_func(*WIDE.bthd, return_attn_probs=True)[:2]
        ),
        "FlashAttention 3": lambda lib: shapes(WIDE.bthd[0], *lib.flash_attn_func(*WIDE.bthd, return_attn_probs=True)),
        "JAX": lambda lib: shapes(WIDE.bthd[0], *lib.dot_product_attention(*WIDE.bthd, return_residual=True)),
        "FlashInfer": lambda lib: shapes(WIDE.thd[0], *lib.single_prefill_with_kv_cache(*WIDE.thd, return_lse=True)),
        "Transformers": lambda lib: shapes(
            WIDE.q, lib.eager_attention_forward(transformers.Module(), *WIDE, None, scaling=1.0)[0]
        ),
    },
)

QUESTIONS = [
    Q_LAYOUT,
    Q_CAUSAL,
    Q_MANY,
    Q_NOTHING,
    Q_EMPTY,
    Q_LSE,
    Q_SINK,
    Q_WINDOW,
    Q_BOTH_SIDES,
    Q_OPEN,
    Q_BOTH,
    Q_TRUE,
    Q_NUMBERS,
    Q_POISON,
    Q_ORDER,
    Q_UNASKED,
    Q_ALIBI,
    Q_ALIBI_ALL,
    Q_CAP,
    Q_SCALE,
    Q_ROPE,
    Q_DROPOUT,
]


def number(x):
    """Print a number in five digits, without a minus at 0."""
    return f"{x + 0.0:.5g}" if x else "0"


def printed(answer):
    """Print an answer: numbers with blanks between them, shapes as they are, several results with bars between them."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, tuple):
        return " | ".join(printed(part) for part in answer)
    return " ".join(number(float(x)) for x in np.asarray(answer, np.float64).ravel())


def asked(ask, library):
    """Return the printed answer of one library, or that it refuses."""
    try:
        with np.errstate(all="ignore"):
            return printed(ask(library))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return "refused"


def answers(question):
    """Return {answer: libraries that give it} in the order of the question."""
    found = {}
    for name, ask in question.ask.items():
        found.setdefault(asked(ask, LIBRARIES[name.split(",")[0]]), []).append(name)
    return found


def text():
    """Return the generated part of the page: for each question what was asked, and who answers what."""
    lines = []
    for question in QUESTIONS:
        lines += [f"## {question.title}", "", question.what, "", "| answer | from |", "|---|---|"]
        for answer, names in answers(question).items():
            cell = answer.replace("|", "\\|")
            lines.append(f"| `{cell}` | {'; '.join(names)} |")
        lines += ["", *([question.remark, ""] if question.remark else [])]
    return "\n".join(lines)


def written(page):
    """Return the text of the page with the answers of today."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text()}\n{END}{rest.split(END)[1]}"


def main():
    """Print the answers, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the answers into the page")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(text() + "\n")


if __name__ == "__main__":
    main()
