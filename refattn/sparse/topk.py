"""Attention to the keys that match best.

Gupta, Dar, Goodman, Ciprut and Berant, "Memory-efficient Transformers via Top-k Attention", 2021, arXiv:2106.06899,
section 2: of each row of scores, the k largest take part in the softmax and the others do not.
"""

import math
from typing import Any

from refattn.arrays import Array, check_count, compute_dtype
from refattn.dense.common import Bools, check_attention, heads_of, repeat_heads, visible_pairs
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import SelectedAttention
from refattn.sparse.select import Indices, attend_each, best, check_indices, selected_keys


def _check_topk(q: Any, k: Any, v: Any, *, n_keys: Any, indices: Any = None, **arguments: Any) -> None:
    check_attention(q, k, v, operation="topk_attention", **arguments)
    check_count("topk_attention", "n_keys", n_keys)
    if indices is not None:
        want = (*q.shape[:-1], int(n_keys))
        check_indices("topk_attention", indices, want, "(..., H, Tq, n_keys)", k.shape[-2])


@dispatched(_check_topk)
def topk_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    mask: Mask | Bools | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    indices: Indices | None = None,
    backend: str = "numpy",
) -> SelectedAttention:
    r"""Attend with each query to the `n_keys` visible keys that match it best.

    .. math::
        s_{ij} = \text{scale} \cdot q_i \cdot k_j, \quad
        I_i = \text{the } n \text{ visible } j \text{ with the largest } s_{ij}, \quad
        o_i = \sum_{j \in I_i} \frac{e^{s_{ij}}}{\sum_{j' \in I_i} e^{s_{ij'}}} v_j

    Equal scores go to the lowest index, and a NaN counts as the largest. The soft cap keeps the order of scores and may
    round different ones to the same number, so the choice is made before it.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
        Queries; 2-D is one head.
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        Keys and values, in the dtype of q; query head h reads head h // (H // Hk).
    n_keys : int
        How many keys each query looks at; where fewer are visible, it looks at those.
    mask : Mask or bool array that broadcasts to (..., H, Tq, Tk), optional
        What may be chosen at all.
    scale, softcap, sinks
        As in `attention`.
    indices : int array, (..., H, Tq, n_keys), optional
        Look at these keys (-1 is none) instead of choosing. What `mask` hides stays hidden.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    SelectedAttention
        (o, lse, indices): o (..., H, Tq, Dv) in the dtype of q; lse (..., H, Tq) over the chosen keys and the sinks;
        the keys that were used, int64 (..., H, Tq, n_keys), ascending, -1 last.

    Raises
    ------
    TypeError, ValueError
        As `attention`; for n_keys below 1, and indices of another shape, out of range, or twice the same.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.array([[1.0]]), np.array([[5.0], [0.0], [5.0]]), np.array([[2.0], [9.0], [4.0]])
    >>> topk_attention(q, k, v, n_keys=2)  # keys 0 and 2 match equally well: the mean of their values
    SelectedAttention(o=array([[3.]]), lse=array([5.69314718]), indices=array([[0, 2]]))
    """
    dtype, compute, H = q.dtype, compute_dtype(q.dtype), heads_of(q)
    q, k, v = (x.astype(compute) for x in (q, repeat_heads(k, H), repeat_heads(v, H)))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype

    s = scale * (q @ k.swapaxes(-1, -2))  # s_ij = scale q_i·k_j                      (..., H, Tq, Tk)
    visible = visible_pairs(mask, s)
    if indices is not None:
        visible = visible & selected_keys(indices, k.shape[-2])  # all that is left has room
    indices = best(s, n_keys, visible)  # I_i                                         (..., H, Tq, n_keys)
    o, lse = attend_each(q, k, v, indices, scale=scale, softcap=softcap, sinks=sinks)
    return SelectedAttention(o.astype(dtype), lse, indices)
