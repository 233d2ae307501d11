"""Attention to keys that are drawn at random, once and for all.

Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020, arXiv:2007.14062, section 2 (random attention): in
a random graph a few edges per token put any two tokens a few steps apart.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.dense.common import check_attention, check_attention_vjp, heads_of
from refattn.dispatch import dispatched
from refattn.masks.drawn import Random
from refattn.results import AttentionGradients
from refattn.sparse.common import Lists, attend, attend_vjp, check_flag, one_each, strips


def _check_pattern(operation: str, n_keys: Any, seed: Any, per_head: Any) -> None:
    check_count(operation, "n_keys", n_keys)
    check_count(operation, "seed", seed, least=0)
    check_flag(operation, "per_head", per_head)


def _check(q: Any, k: Any, v: Any, *, n_keys: Any, seed: Any = 0, per_head: Any = False, **arguments: Any) -> None:
    check_attention(q, k, v, operation="random_attention", **arguments)
    _check_pattern("random_attention", n_keys, seed, per_head)


def _check_vjp(
    do: Any, q: Any, k: Any, v: Any, *, n_keys: Any, seed: Any = 0, per_head: Any = False, **arguments: Any
) -> None:
    check_attention_vjp(do, q, k, v, operation="random_attention_vjp", **arguments)
    _check_pattern("random_attention_vjp", n_keys, seed, per_head)


@dispatched(_check)
def random_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to `n_keys` keys that each query draws without replacement.

    .. math::
        o_i = \sum_{j \in R_i} p_{ij} v_j, \quad R_i \subset \{0, \dots, T_k - 1\}, \quad
        |R_i| = \min(\text{n\_keys}, T_k)

    Equal to ``attention(q, k, v, mask=masks.random(n_keys, seed))``, and with `per_head` to
    ``masks.random(n_keys, seed, heads=H)``, in time and memory that grow with Tq n_keys. The table of indices is
    `masks.random(...).keys(Tq, Tk)`, the same on every machine and backend.

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    n_keys : int
        Keys per query.
    seed : int
        What the draw depends on, besides Tq and Tk.
    per_head : bool
        Draw for each query head anew; one draw serves all heads otherwise.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for a negative seed or n_keys below 1.

    Examples
    --------
    >>> q, k, v = np.zeros((2, 2)), np.zeros((9, 2)), np.ones((9, 1))
    >>> o, lse = random_attention(q, k, v, n_keys=4, return_lse=True)
    >>> np.exp(lse).round(12)  # equal scores: lse is the logarithm of how many keys a query sees
    array([4., 4.])
    """
    lists = random_lists(q.shape[-2], k.shape[-2], n_keys, seed, heads_of(q) if per_head else None)
    return attend(q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, return_lse=return_lse)


@dispatched(_check_vjp)
def random_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    n_keys: int,
    seed: int = 0,
    per_head: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> AttentionGradients:
    """Pull cotangents of `random_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, n_keys, seed, per_head, scale, softcap, sinks
        As given to `random_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    AttentionGradients
        As `attention_vjp`; dbias is None.

    Raises
    ------
    TypeError, ValueError
        As `random_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((5, 2)), np.zeros((9, 2)), np.zeros((9, 1))
    >>> float(random_attention_vjp(np.ones((5, 1)), q, k, v, n_keys=4).dv.sum())  # each query has one to give
    5.0
    """
    lists = random_lists(q.shape[-2], k.shape[-2], n_keys, seed, heads_of(q) if per_head else None)
    return attend_vjp(do, q, k, v, lists, scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)


def random_lists(Tq: int, Tk: int, n_keys: int, seed: int, heads: int | None) -> Iterator[Lists]:
    """Yield the keys of each query from the table that was drawn."""
    table = Random(n_keys, seed, heads).keys(Tq, Tk)  # (Tq, n), or (H, Tq, n)
    for i in strips(np.arange(Tq), table.shape[-1]):
        keys = table[..., i, :]
        yield one_each(i, keys, np.ones(keys.shape, bool))
