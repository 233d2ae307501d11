"""Attention over parts of the keys, put together again; and the cache that decoding appends to.

Splitting the keys: Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023). The rule that merges two parts is the one of
the online softmax, Milakov and Gimelshein, 2018, arXiv:1805.02867, eq. 4.
"""

import itertools
from typing import Any

import numpy as np

from refattn.arrays import FLOATS, Array, check_count, check_floats, check_shape, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools, check_attention, per_head, visible_pairs
from refattn.dispatch import dispatched
from refattn.masks import Mask


def _check_merge(*parts: Any, sinks: Any = None) -> None:
    if not parts:
        raise ValueError("merge_attention: there are no parts; wanted one (o, lse) at least")
    for n, part in enumerate(parts):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise TypeError(f"merge_attention: part {n} is {type(part).__name__}; wanted a pair (o, lse)")
        o, lse = part
        check_floats("merge_attention", 2, **{"parts[0].o": parts[0][0], f"parts[{n}].o": o})
        check_floats("merge_attention", 1, **{f"parts[{n}].lse": lse})
        check_shape("merge_attention", f"parts[{n}].o", o, parts[0][0].shape, "the shape of the first part's o")
        check_shape("merge_attention", f"parts[{n}].lse", lse, parts[0][0].shape[:-1], "(..., H, Tq)")
    if sinks is not None:
        check_floats("merge_attention", 1, sinks=sinks)
        o = parts[0][0]
        check_shape("merge_attention", "sinks", sinks, (o.shape[-3] if o.ndim > 2 else 1,), "(H,)")


def _check_split(q: Any, k: Any, v: Any, **arguments: Any) -> None:
    check_attention(q, k, v, operation="attention_split_kv", **arguments)


@dispatched(_check_merge)
def merge_attention(
    *parts: tuple[Array, Array], sinks: Array | None = None, backend: str = "numpy"
) -> tuple[Array, Array]:
    r"""Merge attention over disjoint sets of keys into attention over all of them.

    .. math::
        \text{lse} = \log \sum_n e^{\text{lse}_n}, \quad o = \sum_n e^{\text{lse}_n - \text{lse}} o_n

    Parameters
    ----------
    *parts : (o, lse), (..., H, Tq, Dv) and (..., H, Tq)
        Results of `attention` with ``return_lse=True`` on the same queries and different keys.
    sinks : array, (H,), optional
        Sinks of the whole, if no part has counted them: they enter once.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o, lse : array
        Of the union of the keys; where no part saw anything, 0 and -inf.

    Raises
    ------
    TypeError, ValueError
        For parts that do not fit each other.

    Examples
    --------
    >>> o, lse = merge_attention((np.array([[2.0]]), np.zeros(1)), (np.array([[4.0]]), np.zeros(1)))
    >>> o, np.exp(lse)
    (array([[3.]]), array([2.]))
    """
    dtype, compute = parts[0][0].dtype, compute_dtype(parts[0][0].dtype)
    lses = np.stack([lse.astype(compute) for _, lse in parts])  # (parts, ..., H, Tq)
    m = lses.max(axis=0)
    sink = np.full((1, 1), -np.inf, compute)
    if sinks is not None:
        sink = per_head(sinks.astype(compute), parts[0][0].ndim)
        m = np.maximum(m, sink[..., 0])
    m = np.where(np.isneginf(m), 0, m)
    weights = np.exp(lses - m)  # e^(lse_n - m)
    l = weights.sum(axis=0) + np.exp(sink[..., 0] - m)
    o = np.zeros(parts[0][0].shape, compute)
    for (o_n, _), w in zip(parts, weights, strict=True):
        o += np.where(w > 0, w / np.where(l == 0, 1, l), 0)[..., None] * np.where((w == 0)[..., None], 0, o_n)
    return o.astype(dtype), m + np.log(l)


@dispatched(_check_split)
def attention_split_kv(
    q: Array,
    k: Array,
    v: Array,
    *,
    num_splits: int = 4,
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    """Cut the keys into `num_splits` runs, attend to each by itself, and merge: what lets one query use many cores.

    Parameters
    ----------
    q, k, v, mask, bias, scale, softcap, sinks, dropout_mask, dropout_p, return_lse
        As `attention`.
    num_splits : int
        How many runs, as equal as they can be; more than Tk leaves some empty. It changes rounding, never meaning.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 2)), np.zeros((3, 2)), np.array([[0.0], [3.0], [6.0]])
    >>> attention_split_kv(q, k, v, num_splits=2)
    array([[3.]])
    """
    scores = (*q.shape[:-1], k.shape[-2])
    visible = visible_pairs(mask, np.empty(scores, bool))
    bias = None if bias is None else np.broadcast_to(bias, scores)
    dropout_mask = None if dropout_mask is None else np.broadcast_to(dropout_mask, scores)
    borders = [split * k.shape[-2] // num_splits for split in range(num_splits + 1)]
    parts = []
    for start, stop in itertools.pairwise(borders):
        part = attention(
            q.astype(compute_dtype(q.dtype)),
            k[..., start:stop, :].astype(compute_dtype(k.dtype)),
            v[..., start:stop, :].astype(compute_dtype(v.dtype)),
            mask=visible[..., start:stop],
            bias=None if bias is None else bias[..., start:stop],
            scale=scale,
            softcap=softcap,
            dropout_mask=None if dropout_mask is None else dropout_mask[..., start:stop],
            dropout_p=dropout_p,
            return_lse=True,
        )
        parts.append(part)
    o, lse = merge_attention(*parts, sinks=sinks)
    o = o.astype(q.dtype)
    return (o, lse) if return_lse else o


class KVCache:
    """Keys and values of the tokens seen so far, in arrays allocated once.

    Parameters
    ----------
    batch : tuple of int
        The axes before the heads; () for one sequence.
    kv_heads, capacity, head_dim : int
        Hk, the most tokens it can hold, D.
    v_head_dim : int, optional
        Dv, head_dim unless given.
    dtype : dtype
        Of what is kept, and of what `append` accepts.

    Examples
    --------
    >>> cache = KVCache((), kv_heads=1, capacity=4, head_dim=2)
    >>> keys, values = cache.append(np.ones((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32))
    >>> len(cache), keys.shape
    (3, (1, 3, 2))
    """

    def __init__(
        self,
        batch: tuple[int, ...],
        kv_heads: int,
        capacity: int,
        head_dim: int,
        v_head_dim: int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        sizes = {"kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim, "v_head_dim": v_head_dim}
        for name, size in sizes.items():
            check_count("KVCache", name, size)
        if not isinstance(batch, tuple):
            raise TypeError(f"KVCache: batch must be a tuple of sizes, () for one sequence, got {batch!r}")
        for size in batch:
            check_count("KVCache", "batch", size, least=0)
        if str(np.dtype(dtype)) not in FLOATS:
            raise TypeError(f"KVCache: dtype is {np.dtype(dtype)}; wanted one of {', '.join(FLOATS)}")
        self._k = np.zeros((*batch, kv_heads, capacity, head_dim), dtype)
        self._v = np.zeros((*batch, kv_heads, capacity, v_head_dim), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        """The most tokens the cache can hold."""
        return self._k.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        return self._k.nbytes + self._v.nbytes

    @property
    def k(self) -> Array:
        """The keys so far, (*batch, Hk, length, D): a view that later appends do not change."""
        return self._k[..., : self._length, :]

    @property
    def v(self) -> Array:
        """The values so far, (*batch, Hk, length, Dv)."""
        return self._v[..., : self._length, :]

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Add the keys and values of the next tokens and return all there are.

        Parameters
        ----------
        k, v : array, (*batch, Hk, T, D), (*batch, Hk, T, Dv)

        Raises
        ------
        TypeError, ValueError
            If dtype or shape do not fit, or the tokens exceed the capacity. The cache is then as it was.
        """
        check_floats("KVCache.append", 3, k=k, v=v, cache=self._k)
        T = k.shape[-2]
        check_shape("KVCache.append", "k", k, (*self._k.shape[:-2], T, self._k.shape[-1]), "(*batch, Hk, T, D)")
        check_shape("KVCache.append", "v", v, (*self._v.shape[:-2], T, self._v.shape[-1]), "(*batch, Hk, T, Dv)")
        if self._length + T > self.capacity:
            raise ValueError(
                f"KVCache.append: {T} tokens do not fit: {self._length} of {self.capacity} places are taken"
            )
        self._k[..., self._length : self._length + T, :] = k
        self._v[..., self._length : self._length + T, :] = v
        self._length += T
        return self.k, self.v
