"""Bytes that stay: the matrix of scores, what one call allocates, the cache, activations, weights and optimizer.

B sequences of N tokens, H heads, D the width of the model, b bytes a number.
"""

from typing import TYPE_CHECKING

import numpy as np

from refattn import dispatch
from refattn.arrays import FLOATS, check_count
from refattn.costs.names import unknown

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "int4": 0.5}

OPTIMIZERS = {  # bytes a parameter: weights, gradients, and what the optimizer keeps
    "adam-mixed": 2 + 2 + 4 + 4 + 4,  # 16-bit weights and gradients; a 32-bit copy and two moments (arXiv:1910.02054)
    "adam-mixed-fp32-gradients": 2 + 4 + 4 + 4 + 4,  # gradients added up in 32 bits, as Megatron-LM does
    "adam-fp32": 4 + 4 + 4 + 4,
    "adam-8bit": 2 + 2 + 4 + 1 + 1,  # moments in 8 bits (arXiv:2110.02861), but for their scales
    "sgd-momentum-fp32": 4 + 4 + 4,
    "sgd-fp32": 4 + 4,
}


def itemsize(dtype: str) -> float:
    """Return the bytes of a number of `dtype`; LookupError for one that is not known.

    Examples
    --------
    >>> itemsize("bfloat16"), itemsize("int4")
    (2, 0.5)
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in ITEMSIZE:
        raise unknown("dtype", name, ITEMSIZE)
    return ITEMSIZE[name]


def _check(batch: int, seq: int) -> None:
    check_count("costs", "batch", batch)
    check_count("costs", "seq", seq)


def attention_matrix_bytes(m: "Transformer", batch: int, seq: int, dtype: str) -> int:
    """Return B·H·N²·b, or 0 where no layer has scores; for Linformer and Nyström, the matrices that they make."""
    _check(batch, seq)
    entries = max(mechanism.matrix_entries(m, seq) for mechanism in m.mechanism)
    return int(batch * m.heads * entries * itemsize(dtype))


def kv_cache_bytes(m: "Transformer", batch: int, seq: int, dtype: str) -> int:
    r"""Return what all layers keep of B sequences of `seq` tokens, each layer by its own rule.

    Keys and values: K(d + dv) numbers a token, at most a window of them. MLA: c + dr. A linear state: m·dv, and m where
    it is normalised; Mamba: E·n + E(k - 1); RWKV: H·d².
    """
    _check(batch, seq)
    return int(batch * sum(mechanism.kept(m, seq) for mechanism in m.mechanism) * itemsize(dtype))


def activation_bytes(
    m: "Transformer", batch: int, seq: int, recompute: str, tensor_parallel: int, sequence_parallel: bool
) -> int:
    """Return what one of `tensor_parallel` devices keeps of all layers from forward to backward, in 16 bits.

    Korthikanti et al., 2022, arXiv:2205.05198, section 4: for a plain layer (F = 4 D, as many key heads as heads) it is
    sbh(10 + 24/t + 5as/(ht)); "selective" drops 5as/h; "full" keeps the input of each layer, 2sbh; with
    `sequence_parallel` all of it is divided by t. "attention", FlashAttention's, drops 5as/h and keeps 4·a·s·b of
    log-sum-exp. Other sizes: each array by its own size. A mask of dropout counts a byte a number. What scans keep
    inside is not counted, only what goes into and comes out of them.

    Raises
    ------
    ValueError
        For a `recompute` that is none.
    """
    _check(batch, seq)
    check_count("activation_bytes", "tensor_parallel", tensor_parallel)
    if recompute not in ("none", "attention", "selective", "full"):
        raise ValueError(f"activation_bytes: recompute is {recompute!r}; wanted none, attention, selective or full")
    tokens, t, D = batch * seq, tensor_parallel, m.d_model
    if recompute == "full":
        return m.layers * 2 * tokens * D
    whole = split = 0
    for layer, mechanism in enumerate(m.mechanism):
        feed = m.feed(layer)
        whole += tokens * (2 * D + 2 * D + D)  # input of the norm, of mixing; a mask of dropout
        split += tokens * 2 * mechanism.stored(m)
        if feed:
            whole += tokens * (2 * D + 2 * D + D)
            hidden = sum(x.columns for x in feed if x.name not in ("down", "v", "router", "shared_gate"))
            inside = sum(x.rows for x in feed if x.name in ("down", "v"))
            split += tokens * 2 * (hidden + inside)
        if mechanism.softmax:
            heads = m.heads * batch
            split += 4 * heads * seq if recompute == "attention" else 0
            if recompute == "none":
                split += 5 * heads * mechanism.matrix_entries(m, seq)
    return (whole + split) // t if sequence_parallel else whole + split // t


def training_state_bytes(m: "Transformer", optimizer: str) -> int:
    """Return weights, gradients and the optimizer's numbers; LookupError for an optimizer that is not known.

    Examples
    --------
    >>> sorted(OPTIMIZERS)[:2], OPTIMIZERS["adam-mixed"]
    (['adam-8bit', 'adam-fp32'], 16)
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    return m.params() * OPTIMIZERS[optimizer]


MATRICES = 5
"""Score matrices that attention on numpy holds at its peak: s, s masked, e^(s - m), that over l, and p."""


def peak_attention_bytes(m: "Transformer", batch: int, seq: int, dtype: str, backend: str, causal: bool) -> int:
    """Return what one call of `refattn.attention` allocates at most, its result included, for the sizes of m's heads.

    numpy: five matrices of scores in the dtype of computation, which pairs are visible (a byte each), and q, k and v in
    that dtype with the key heads repeated. Another backend says it of itself, in ``peak_attention_bytes``. The tests
    hold both against tracemalloc.

    Raises
    ------
    LookupError
        For a backend that is not known, or does not say.
    """
    _check(batch, seq)
    if dtype not in FLOATS:
        raise unknown("dtype of arrays", dtype, FLOATS)
    if backend not in dispatch.backends():
        raise unknown("backend", backend, dispatch.backends())
    B, H, N, D, Dv = batch, m.heads, seq, m.head_width, m.value_width
    if backend == dispatch.REFERENCE:
        size = max(4, ITEMSIZE[dtype])
        visible = N * N if causal else B * H * N * N
        return int(MATRICES * B * H * N * N * size + visible + B * H * N * (2 * D + Dv) * size)
    says = getattr(dispatch.load(backend), "peak_attention_bytes", None)
    if says is None:
        raise LookupError(f"peak_attention_bytes: backend {backend!r} does not say what it allocates")
    return int(says(B, H, m.kv, N, D, Dv, dtype))
