"""Attention among tokens that fall into the same bucket of a random hash.

Kitaev, Kaiser and Levskaya, "Reformer: The Efficient Transformer", 2020, arXiv:2001.04451, section 2 and, for several
rounds of hashing, appendix A.
"""

import math
from typing import Any

import numpy as np

from refattn.arrays import FLOATS, Array, check_count, check_floats, check_number, check_shape, compute_dtype
from refattn.dense.common import Bools
from refattn.dense.decode import merge_attention
from refattn.dispatch import dispatched
from refattn.masks.given import within
from refattn.results import LshAttention
from refattn.sparse.select import Indices, attend_each


def _check_lsh(
    qk: Any,
    v: Any,
    *,
    chunk: Any,
    rotations: Any = None,
    causal: Any = True,
    scale: Any = None,
    buckets: Any = None,
    **_rest: Any,
) -> None:
    name = "lsh_attention"
    check_floats(name, 2, qk=qk, v=v)
    check_shape(name, "v", v, (*qk.shape[:-1], *v.shape[-1:]), "(..., H, T, Dv), as qk")
    if qk.shape[-1] == 0:
        raise ValueError(f"{name}: qk has shape {qk.shape}; wanted D >= 1")
    check_count(name, "chunk", chunk)
    if not isinstance(causal, bool | np.bool_):
        raise TypeError(f"{name}: causal must be True or False, got {type(causal).__name__}")
    if scale is not None:
        check_number(name, "scale", scale)
    if (rotations is None) == (buckets is None):
        raise ValueError(f"{name}: wanted either rotations or buckets, got {'both' if buckets is not None else 'none'}")
    if rotations is not None:
        check_floats(name, 2, qk=qk, rotations=rotations)
        rounds, half = rotations.shape[0], rotations.shape[-1]
        check_shape(name, "rotations", rotations, (rounds, qk.shape[-1], half), "(rounds, D, buckets / 2)")
        if rounds == 0 or half == 0:
            raise ValueError(f"{name}: rotations has shape {rotations.shape}; wanted a round and a column at least")
        return
    if getattr(getattr(buckets, "dtype", None), "kind", "") not in ("i", "u"):
        raise TypeError(f"{name}: buckets is {getattr(buckets, 'dtype', type(buckets).__name__)}; wanted integers")
    rounds = buckets.shape[-2] if buckets.ndim > 1 else 1
    check_shape(name, "buckets", buckets, (*qk.shape[:-2], rounds, qk.shape[-2]), "(..., H, rounds, T)")
    if rounds == 0 or (buckets < 0).any():
        raise ValueError(f"{name}: buckets {buckets.shape} holds no round or a number below 0")


@dispatched(_check_lsh)
def lsh_attention(
    qk: Array,
    v: Array,
    *,
    chunk: int,
    rotations: Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    buckets: Indices | None = None,
    backend: str = "numpy",
) -> LshAttention:
    r"""Attend with each token to those of its bucket that lie near it once the tokens are sorted by bucket.

    .. math::
        h^{(r)}(x) = \text{argmax}([x R_r; -x R_r]), \quad
        k_j = qk_j / |qk_j|, \quad
        s_{ij} = \text{scale} \cdot qk_i \cdot k_j, \quad
        P_i = \bigcup_r P_i^{(r)}, \quad
        o_i = \sum_{j \in P_i} \frac{e^{s_{ij}}}{\sum_{j' \in P_i} e^{s_{ij'}}} v_j

    In each round the tokens are sorted by bucket, and by position within one, and cut into chunks. P_i holds the j of
    i's bucket that stand in the chunk of i or in the one before it (the first chunk has none before it); j <= i where
    causal. Token i itself is left out unless nothing else is in P_i in any round.

    A round r yields o and lse over its own part with s_ij - log N_ij, where N_ij says in how many rounds j is there;
    the rounds are merged by their lse, so that each j counts once.

    Parameters
    ----------
    qk : array, (..., H, T, D)
        Queries, and keys before they are normalised; 2-D is one head. A row of zeros stays zero as a key.
    v : array, (..., H, T, Dv)
        Values, in the dtype of qk.
    chunk : int
        How many sorted tokens a chunk has; the last one may have fewer.
    rotations : array, (rounds, D, buckets / 2), optional
        R of each round, the same for every head, in the dtype of qk; see `draw_rotations`.
    causal : bool
        Whether the future is hidden. What is there still moves the borders of the chunks.
    scale : float, optional
        1 / sqrt(D) unless given.
    buckets : int array, (..., H, rounds, T), optional
        Use these buckets, 0 or more, instead of hashing; `rotations` is then left out.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    LshAttention
        (o, lse, buckets): o (..., H, T, Dv) in the dtype of qk; lse (..., H, T) over P_i; the buckets that were used,
        int64 (..., H, rounds, T).

    Raises
    ------
    TypeError, ValueError
        For shapes and dtypes that do not fit, chunk below 1, both or neither of rotations and buckets.
    Unsupported
        If the backend does not cover this call.

    Examples
    --------
    >>> qk, v = np.ones((4, 1)), np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> lsh_attention(qk, v, buckets=np.array([[0, 1, 0, 0]]), chunk=4).o  # no other 1, so 2 sees itself; (1 + 3) / 2
    array([[1.],
           [2.],
           [1.],
           [2.]])
    """
    dtype, compute = qk.dtype, compute_dtype(qk.dtype)
    q, v = qk.astype(compute), v.astype(compute)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy number would set the dtype
    chunk = within(chunk, 0, q.shape[-2])
    norm = np.sqrt((q * q).sum(axis=-1, keepdims=True))
    k = q / np.where(norm == 0, 1, norm)  # k_j = qk_j / |qk_j|
    if rotations is not None:
        turned = q[..., None, :, :] @ rotations.astype(compute)  # x R_r              (..., H, rounds, T, buckets / 2)
        buckets = np.argmax(np.concatenate([turned, -turned], axis=-1), axis=-1)  # h_r
    buckets = np.array(buckets, np.int64)  # (..., H, rounds, T)

    order = np.argsort(buckets, axis=-1, kind="stable")  # by bucket, then by position
    cells = np.argsort(order, axis=-1) // chunk  # the chunk in which each token stands
    parts, some, own = [], np.zeros(q.shape[:-1], bool), np.arange(q.shape[-2])[:, None]
    for r in range(buckets.shape[-2]):
        j, seen = _neighbours(order[..., r, :], cells[..., r, :], chunk)  # (..., H, T, 2 chunk)
        seen = seen & _together(buckets[..., r, :], cells[..., r, :], j) & (j != own) & ((j <= own) | (not causal))
        N = sum(_together(buckets[..., n, :], cells[..., n, :], j).astype(compute) for n in range(buckets.shape[-2]))
        bias = -np.log(np.where(seen, N, 1))
        parts.append(attend_each(q, k, v, np.where(seen, j, -1), scale=scale, bias=bias))
        some |= seen.any(axis=-1)
    o, lse = merge_attention(*parts)
    o = np.where(some[..., None], o, v)  # nobody else is there: only itself
    lse = np.where(some, lse, scale * (q * k).sum(axis=-1))
    return LshAttention(o.astype(dtype), lse, buckets)


def _neighbours(order: Indices, cells: Indices, chunk: int) -> tuple[Indices, Bools]:
    """Return the tokens in the chunk of each token and in the one before it, and which of the places are taken."""
    places = (cells[..., None] - 1) * chunk + np.arange(2 * chunk)  # (..., T, 2 chunk)
    taken = (places >= 0) & (places < order.shape[-1])
    return np.take_along_axis(order[..., None, :], np.where(taken, places, 0), axis=-1), taken


def _together(buckets: Indices, cells: Indices, j: Indices) -> Bools:
    """Return whether each token i and its j (..., T, n) share a bucket in one round, j one chunk before i or in it."""
    back = cells[..., None] - np.take_along_axis(cells[..., None, :], j, axis=-1)
    same = buckets[..., None] == np.take_along_axis(buckets[..., None, :], j, axis=-1)
    return np.asarray(same & (back >= 0) & (back <= 1))


def draw_rotations(rounds: int, D: int, n_buckets: int, *, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Draw the random rotations that `lsh_attention` hashes with.

    Parameters
    ----------
    rounds : int
        How many times to hash.
    D : int
        Width of what is hashed.
    n_buckets : int
        How many buckets, an even number: each column of a rotation has a bucket for either sign.
    seed : int
        The same seed draws the same numbers, whatever the dtype.
    dtype : dtype
        Of the result.

    Returns
    -------
    array, (rounds, D, n_buckets / 2)
        Independent normal numbers.

    Raises
    ------
    TypeError, ValueError
        For numbers below 1, an odd n_buckets, a negative seed, and a dtype that is not one of floats.

    Examples
    --------
    >>> draw_rotations(2, 16, 8).shape
    (2, 16, 4)
    """
    for name, size in (("rounds", rounds), ("D", D), ("n_buckets", n_buckets)):
        check_count("draw_rotations", name, size)
    check_count("draw_rotations", "seed", seed, least=0)
    if str(np.dtype(dtype)) not in FLOATS:
        raise TypeError(f"draw_rotations: dtype is {np.dtype(dtype)}; wanted one of {', '.join(FLOATS)}")
    if n_buckets % 2:
        raise ValueError(f"draw_rotations: n_buckets is {n_buckets}; wanted an even number")
    return np.random.default_rng(seed).normal(size=(rounds, D, n_buckets // 2)).astype(dtype)
