"""The masks of Hugging Face Transformers' eager attention, as transformers 5.24 builds them.

Source: https://github.com/huggingface/transformers, masking_utils.py. A mask function says for batch, head, query and
key index (arrays that broadcast) whether the query may look at the key; `eager_mask` turns it into numbers to add.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array

MaskFunction = Callable[[Any, Any, Any, Any], Any]


def causal_mask_function(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Return whether the key stands at the query's position or before it."""
    return kv_idx <= q_idx


def sliding_window_causal_mask_function(sliding_window: int) -> MaskFunction:
    """Return the mask function of the last `sliding_window` keys, the query's own position among them.

    `refattn.masks.window` counts the keys to the left: ``causal() & window(sliding_window - 1, 0)`` is the same.

    Examples
    --------
    >>> eager_mask(1, 3, 3, mask_function=sliding_window_causal_mask_function(2))[0, 0] == 0
    array([[ True, False, False],
           [ True,  True, False],
           [False,  True,  True]])
    """
    return lambda b, h, q_idx, kv_idx: (kv_idx > q_idx - sliding_window) & (kv_idx <= q_idx)


def sliding_window_bidirectional_mask_function(sliding_window: int) -> MaskFunction:
    """Return the mask function of at most `sliding_window` positions between query and key, on both sides.

    Here the size leaves out the query's own position, other than in `sliding_window_causal_mask_function`.
    """
    return lambda b, h, q_idx, kv_idx: abs(q_idx - kv_idx) <= sliding_window


def eager_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Array | None = None,
    dtype: Any = np.float32,
) -> Array:
    """Return what `eager_attention_forward` adds: 0 where a query may look, finfo(dtype).min where not.

    Parameters
    ----------
    batch_size, q_length, kv_length : int
        B, Tq, Tk.
    q_offset, kv_offset : int
        Position of the first query and of the first key. Both 0, whatever the lengths: with a cache of P tokens,
        q_offset = P.
    mask_function : function
        (batch, head, query, key position) -> bool.
    attention_mask : bool array, (B, kv_offset + Tk) or shorter, optional
        True for tokens that are no padding, by position; positions beyond it are padding.
    dtype : dtype
        Of the mask: that of the scores.

    Returns
    -------
    array, (B, 1, Tq, Tk)

    Examples
    --------
    >>> eager_mask(1, 1, 3, q_offset=1)[0, 0] == 0  # the query is the second token
    array([[ True,  True, False]])
    """
    batch = np.arange(batch_size).reshape(-1, 1, 1, 1)
    i = q_offset + np.arange(q_length)[:, None]
    j = kv_offset + np.arange(kv_length)
    seen = np.broadcast_to(
        mask_function(batch, np.zeros((1, 1, 1, 1), int), i, j), (batch_size, 1, q_length, kv_length)
    )
    if attention_mask is not None:
        missing = max(kv_length + kv_offset - attention_mask.shape[-1], 0)
        tokens = np.pad(attention_mask.astype(bool), ((0, 0), (0, missing)))
        seen = seen & tokens[:, None, None, kv_offset : kv_offset + kv_length]
    return np.where(seen, np.zeros((), dtype), np.asarray(lowest(np.dtype(dtype)), dtype))


def lowest(dtype: np.dtype[Any]) -> float:
    """Return finfo(dtype).min; NumPy's finfo does not know bfloat16."""
    return -float.fromhex("0x1.fep127") if dtype.name == "bfloat16" else float(np.finfo(dtype).min)
