"""Native sparse attention: a blurred view of all, a sharp view of the blocks that matter, and a window.

Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention", 2025,
arXiv:2502.11089, eqs. 5 to 12. The paper's sizes: block_size 32, stride 16, select_block 64, n_selected 16, window 512.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_shape, compute_dtype
from refattn.dense.attention import softmax
from refattn.dense.common import Bools, check_attention, heads_of, repeat_heads, select_matmul, sum_heads
from refattn.dispatch import dispatched
from refattn.masks.given import within
from refattn.results import NsaAttention
from refattn.sparse.select import Indices, attend_each, best, check_indices, keys_of, selected_keys

PINNED = 3
"""How many blocks each query selects whatever they hold: the first, its own, and the one before its own."""


def _check_nsa(
    q: Any,
    k: Any,
    v: Any,
    gates: Any,
    *,
    block_size: Any,
    stride: Any,
    select_block: Any,
    n_selected: Any,
    window: Any,
    w_k: Any = None,
    w_v: Any = None,
    k_selected: Any = None,
    v_selected: Any = None,
    k_window: Any = None,
    v_window: Any = None,
    scale: Any = None,
    indices: Any = None,
    **_rest: Any,
) -> None:
    name = "nsa_attention"
    check_attention(q, k, v, scale=scale, operation=name)
    check_floats(name, 2, q=q, gates=gates)
    check_shape(name, "gates", gates, (*q.shape[:-1], 3), "(..., H, Tq, 3): compression, selection, window")
    for key, size in (("block_size", block_size), ("stride", stride), ("select_block", select_block)):
        check_count(name, key, size)
    check_count(name, "n_selected", n_selected, least=PINNED)
    check_count(name, "window", window)
    for key, size in (("block_size", block_size), ("select_block", select_block)):
        if size % stride:
            raise ValueError(f"{name}: {key} is {size}; wanted a multiple of stride = {stride}")
    for key, w in (("w_k", w_k), ("w_v", w_v)):
        if w is not None:
            check_floats(name, 2, **{"q": q, key: w})
            check_shape(name, key, w, (heads_of(k), int(block_size)), "(Hk, block_size)")
    own = (("k_selected", k_selected, k), ("v_selected", v_selected, v), ("k_window", k_window, k))
    for key, x, like in (*own, ("v_window", v_window, v)):
        if x is not None:
            check_floats(name, 2, **{"q": q, key: x})
            check_shape(name, key, x, like.shape, f"the shape of {key[0]}")
    if indices is not None:
        want = (*k.shape[:-2], q.shape[-2], int(n_selected))
        check_indices(name, indices, want, "(..., Hk, Tq, n_selected)", -(-k.shape[-2] // select_block))


@dispatched(_check_nsa)
def nsa_attention(
    q: Array,
    k: Array,
    v: Array,
    gates: Array,
    *,
    block_size: int,
    stride: int,
    select_block: int,
    n_selected: int,
    window: int,
    w_k: Array | None = None,
    w_v: Array | None = None,
    k_selected: Array | None = None,
    v_selected: Array | None = None,
    k_window: Array | None = None,
    v_window: Array | None = None,
    scale: float | None = None,
    indices: Indices | None = None,
    backend: str = "numpy",
) -> NsaAttention:
    r"""Add up, as the gates say, attention to compressed blocks, to selected blocks, and to the last keys.

    .. math::
        \tilde k_b = \sum_{m=0}^{l-1} w_m k_{bd+m}, \quad
        p_{ib} = \text{softmax}_b(\text{scale} \cdot q_i \cdot \tilde k_b), \quad
        a_{ic} = \sum_{h \in \text{group}} \sum_{m=0}^{l'/d-1} \sum_{n=0}^{l/d-1} p^{(h)}_{i, c l'/d + m - n}

    with l = block_size, d = stride, l' = select_block. Query i stands at t = i + Tk - Tq and sees, causally,

    - compression: the blocks b that end at or before it, b d + l - 1 <= t, with values compressed as the keys are;
    - selection: the keys j <= t of the `n_selected` blocks c of l' keys with the largest importance a_ic. Block 0, the
      block of t and the one before are always among them. Equal importance goes to the lowest block;
    - window: the last `window` keys, itself included.

    Then o_i = Σ_c gate_ic o_ic. The importance is a sum over the query heads that share a key head, so all of them
    select the same blocks. Each p counts as many times as its block and block c have strides in common: eq. 9 of the
    paper, which counts blocks from one.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
        Queries of the last Tq tokens; 2-D is one head.
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        Keys and values, in the dtype of q; query head h reads head h // (H // Hk).
    gates : array, (..., H, Tq, 3)
        The weights of compression, selection and window, as they enter the sum (after the sigmoid).
    block_size, stride : int
        Length of a compressed block, and from one to the next. A block that would reach past the end is left out.
    select_block, n_selected : int
        Length of a block to select, and how many to select, the three that always are included. `stride` divides
        `block_size` and `select_block`.
    window : int
        How many keys the window has.
    w_k, w_v : array, (Hk, block_size), optional
        Weights of the keys and values of a block by their place in it; 1 / block_size (the mean) unless given.
    k_selected, v_selected, k_window, v_window : array, as k and v, optional
        Keys and values of the branch, where it has a projection of its own, as in the paper.
    scale : float, optional
        1 / sqrt(D) unless given.
    indices : int array, (..., Hk, Tq, n_selected), optional
        Select these blocks (-1 is none) instead of choosing; none is then pinned. The future stays hidden.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    NsaAttention
        (o, lse, indices): o (..., H, Tq, Dv) in the dtype of q; lse (..., H, Tq, 3) of each branch by itself; the
        blocks that were selected, int64 (..., Hk, Tq, n_selected), ascending, -1 last. A branch in which a query sees
        nothing has o = 0 and lse = -inf.

    Raises
    ------
    TypeError, ValueError
        As `attention`; for sizes below 1, n_selected below 3, a stride that does not divide, arrays that do not fit.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> q = k = np.zeros((4, 1))
    >>> v, gates = np.array([[1.0], [3.0], [5.0], [7.0]]), np.full((4, 3), [1.0, 100.0, 0.0])
    >>> sizes = dict(block_size=2, stride=2, select_block=2, n_selected=3, window=1)
    >>> o, lse, indices = nsa_attention(q, k, v, gates, **sizes)
    >>> o[3], indices[3]  # the mean of the blocks' means 2 and 6, and 100 times the mean of both blocks' values
    (array([404.]), array([ 0,  1, -1]))
    """
    dtype, compute, H, Hk = q.dtype, compute_dtype(q.dtype), heads_of(q), heads_of(k)
    branches = (k_selected, v_selected, k_window, v_window)
    own = [x if given is None else given for x, given in zip((k, v, k, v), branches, strict=True)]
    k_selected, v_selected, k_window, v_window = (repeat_heads(x, H).astype(compute) for x in own)
    q, k, v, gates = (x.astype(compute) for x in (q, k, v, gates))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype
    Tq, Tk = q.shape[-2], k.shape[-2]
    position = np.arange(Tq) + (Tk - Tq)  # t
    most = -(-(Tq + Tk + 1) // stride) * stride  # a longer block is as good as one of this length
    block_size, select_block = min(block_size, most), min(select_block, most)

    k_compressed = repeat_heads(compress(k, w_k, block_size, stride), H)  # (..., H, compressed, D)
    v_compressed = repeat_heads(compress(v, w_v, block_size, stride), H)
    ends = np.arange(k_compressed.shape[-2]) * stride + block_size - 1
    s = scale * (q @ k_compressed.swapaxes(-1, -2))
    visible: Bools = np.broadcast_to(ends <= position[:, None], s.shape)
    p, lse_compressed = softmax(s, visible, None)  # p_ib                            (..., H, Tq, compressed)
    o_compressed = select_matmul(p, v_compressed, visible)

    blocks = np.arange(-(-Tk // select_block))
    importance = sum_heads(_importance(p, block_size // stride, select_block // stride, len(blocks)), Hk)  # a_ic
    current = position[:, None] // select_block
    allowed = blocks <= current
    if indices is not None:
        allowed = allowed & selected_keys(indices, len(blocks))  # all that is left has room
    pinned = (blocks == 0) | (blocks == current) | (blocks == current - 1)
    indices = best(importance, n_selected, allowed, forced=pinned)  # (..., Hk, Tq, n_selected)
    keys = keys_of(repeat_heads(indices, H), within(select_block, Tq, Tk), position)
    o_selected, lse_selected = attend_each(q, k_selected, v_selected, keys, scale=scale)

    keys = position[:, None] - np.arange(min(window, Tk))  # t, t - 1, ...            (Tq, window)
    o_window, lse_window = attend_each(q, k_window, v_window, np.maximum(keys, -1), scale=scale)

    o = sum(gates[..., c, None] * o_c for c, o_c in enumerate((o_compressed, o_selected, o_window)))  # Σ_c gate_ic o_ic
    lse = np.stack([lse_compressed, lse_selected, lse_window], axis=-1)
    return NsaAttention(np.asarray(o).astype(dtype), lse, indices)


def compress(x: Array, w: Array | None, size: int, stride: int) -> Array:
    """Return Σ_m w_m x_{b stride + m} for every block b that lies wholly in x (..., Hk, T, D)."""
    count = max(0, (x.shape[-2] - size) // stride + 1)
    compressed = np.zeros((*x.shape[:-2], count, x.shape[-1]), x.dtype)
    for b in range(count):
        block = x[..., b * stride : b * stride + size, :]  # (..., Hk, size, D)
        if w is None:
            compressed[..., b, :] = block.mean(axis=-2)
        else:
            weights = w.astype(x.dtype) if x.ndim > 2 else w[0].astype(x.dtype)
            compressed[..., b, :] = np.einsum("...m,...md->...d", weights, block)
    return compressed


def _importance(p: Array, depth: int, ratio: int, count: int) -> Array:
    """Return a_ic of each head: p_{c ratio + m - n} summed over m < ratio and n < depth, of the blocks there are."""
    padded = np.zeros((*p.shape[:-1], depth - 1 + count * ratio), p.dtype)  # from block 1 - depth on
    padded[..., depth - 1 : depth - 1 + p.shape[-1]] = p
    importance = np.zeros((*p.shape[:-1], count), p.dtype)
    for m in range(ratio):
        for n in range(depth):
            importance = importance + padded[..., depth - 1 + m - n :: ratio][..., :count]
    return importance
