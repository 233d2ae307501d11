"""A window for every token, and a few global tokens that have projections of their own.

Beltagy, Peters and Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150, section 3.1 (sliding
window, global attention, linear projections for global attention).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_shape, compute_dtype
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import check_attention, check_attention_vjp
from refattn.dispatch import dispatched
from refattn.results import LongformerGradients
from refattn.sparse.common import Ints, Lists, attend, attend_vjp, check_positions, one_each, strips
from refattn.sparse.global_ import global_and_others


def _check_own(
    operation: str,
    q: Any,
    k: Any,
    v: Any,
    window: Any,
    global_indices: Any,
    q_global: Any,
    k_global: Any,
    v_global: Any,
) -> None:
    check_count(operation, "window", window, least=0)
    check_positions(operation, "global_indices", global_indices)
    if q_global is not None:
        if len(set(global_indices)) < len(global_indices):
            raise ValueError(f"{operation}: global_indices is {global_indices!r}; wanted each once, for q_global")
        shape = (*q.shape[:-2], len(global_indices), q.shape[-1])
        check_floats(operation, 2, q=q, q_global=q_global)
        check_shape(operation, "q_global", q_global, shape, "(..., H, len(global_indices), D)")
    for name, x, like in (("k_global", k_global, k), ("v_global", v_global, v)):
        if x is not None:
            check_floats(operation, 2, **{"q": q, name: x})
            check_shape(operation, name, x, like.shape, f"the shape of {name[0]}")


def _check(
    q: Any,
    k: Any,
    v: Any,
    *,
    window: Any,
    global_indices: Any = (),
    q_global: Any = None,
    k_global: Any = None,
    v_global: Any = None,
    **arguments: Any,
) -> None:
    operation = "longformer_attention"
    check_attention(q, k, v, operation=operation, **arguments)
    _check_own(operation, q, k, v, window, global_indices, q_global, k_global, v_global)


def _check_vjp(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    window: Any,
    global_indices: Any = (),
    q_global: Any = None,
    k_global: Any = None,
    v_global: Any = None,
    **arguments: Any,
) -> None:
    operation = "longformer_attention_vjp"
    check_attention_vjp(do, q, k, v, operation=operation, **arguments)
    _check_own(operation, q, k, v, window, global_indices, q_global, k_global, v_global)


@dispatched(_check)
def longformer_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
    backend: str = "numpy",
) -> Any:
    r"""Attend to `window` keys on each side and to the global tokens; those attend to every key, in their own terms.

    .. math::
        o_i = \sum_{j \in W_i \cup G} p_{ij} v_j \ \text{ for } t_i \notin G, \qquad
        o_i = \sum_j p^g_{ij} v^g_j, \quad s^g_{ij} = \text{scale} \, q^g_i \cdot k^g_j \ \text{ for } t_i \in G

    with the position :math:`t_i = i + T_k - T_q` and its window :math:`W_i = \{j : |j - t_i| \le \text{window}\}`.
    Without projections of their own, equal to
    ``attention(q, k, v, mask=masks.longformer(window, global_indices))``. Time and memory grow with
    Tq (2 window + 1) + (Tq + Tk) len(global_indices).

    Parameters
    ----------
    q : array, (..., H, Tq, D)
    k, v : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv)
        As `attention`.
    window : int
        Keys on each side of a query's position: half of what the paper calls w.
    global_indices : sequence of int
        The positions of the global tokens; those of Tk and beyond name nobody.
    q_global : array, (..., H, len(global_indices), D), optional
        The queries of the global tokens in their own projection, in the order of `global_indices`. The rows of tokens
        that are not among the queries are not read, and those of `q` are not read where `q_global` serves.
    k_global, v_global : array, (..., Hk, Tk, D), (..., Hk, Tk, Dv), optional
        What the global tokens see. Each of the three is the ordinary one where it is not given.
    scale, softcap, sinks, return_lse, backend
        As `attention`.

    Returns
    -------
    o, or (o, lse)
        As `attention`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`; for a negative window or position, arrays that do not fit, and with `q_global` for a position
        that is named twice.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 2)), np.zeros((4, 2)), np.array([[0.0], [2.0], [4.0], [6.0]])
    >>> longformer_attention(q, k, v, window=0, global_indices=[0])  # token 0 sees all; the others it and themselves
    array([[3.],
           [1.],
           [2.],
           [3.]])
    >>> longformer_attention(q, k, v, window=0, global_indices=[0], v_global=v + 100)[0]
    array([103.])
    """
    keys, rows, others = global_and_others(q.shape[-2], k.shape[-2], global_indices)
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks, "return_lse": True}
    o, lse = attend(q, k, v, longformer_lists(others, q.shape[-2], k.shape[-2], window, keys), **options)
    if len(rows) > 0:
        named = _rows_of_q_global(rows, q.shape[-2], k.shape[-2], global_indices)
        o[..., rows, :], lse[..., rows] = attention(
            q[..., rows, :] if q_global is None else q_global[..., named, :],
            k if k_global is None else k_global,
            v if v_global is None else v_global,
            **options,
        )
    return (o, lse) if return_lse else o


@dispatched(_check_vjp)
def longformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    global_indices: Sequence[int] = (),
    q_global: Array | None = None,
    k_global: Array | None = None,
    v_global: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dlse: Array | None = None,
    backend: str = "numpy",
) -> LongformerGradients:
    """Pull cotangents of `longformer_attention`'s results back to its inputs.

    Parameters
    ----------
    do : array, (..., H, Tq, Dv)
        Cotangent of o, in the dtype of q.
    q, k, v, window, global_indices, q_global, k_global, v_global, scale, softcap, sinks
        As given to `longformer_attention`.
    dlse : array, (..., H, Tq), optional
        Cotangent of lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    LongformerGradients
        (dq, dk, dv, dq_global, dk_global, dv_global, dsinks); what was not given has None, and its part is in the
        gradient of the ordinary one.

    Raises
    ------
    TypeError, ValueError
        As `longformer_attention`, and if do or dlse does not have the shape of its result.

    Examples
    --------
    >>> q, k, v = np.zeros((2, 2)), np.zeros((2, 2)), np.array([[0.0], [4.0]])
    >>> g = longformer_attention_vjp(np.ones((2, 1)), q, k, v, window=0, global_indices=[0], v_global=v)
    >>> g.dv, g.dv_global  # token 1 sees both by `v`, token 0 sees both by `v_global`
    (array([[0.5], [0.5]]), array([[0.5], [0.5]]))
    """
    dtype, compute = q.dtype, compute_dtype(q.dtype)
    keys, rows, others = global_and_others(q.shape[-2], k.shape[-2], global_indices)
    named = _rows_of_q_global(rows, q.shape[-2], k.shape[-2], global_indices)
    given = {"q_global": q_global, "k_global": k_global, "v_global": v_global}
    own = {name: None if x is None else x.astype(compute) for name, x in given.items()}
    do, q, k, v = (x.astype(compute) for x in (do, q, k, v))
    options: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "sinks": None if sinks is None else sinks.astype(compute),
    }
    lists = longformer_lists(others, q.shape[-2], k.shape[-2], window, keys)
    ordinary = attend_vjp(do, q, k, v, lists, dlse=dlse, **options)
    special = attention_vjp(
        do[..., rows, :],
        q[..., rows, :] if own["q_global"] is None else own["q_global"][..., named, :],
        k if own["k_global"] is None else own["k_global"],
        v if own["v_global"] is None else own["v_global"],
        dlse=None if dlse is None else dlse[..., rows],
        **options,
    )
    dq, dk, dv, dq_global = ordinary.dq, ordinary.dk, ordinary.dv, None
    if own["q_global"] is None:
        dq[..., rows, :] = special.dq
    else:
        dq_global = np.zeros_like(own["q_global"])
        dq_global[..., named, :] = special.dq
    dk = dk + special.dk if own["k_global"] is None else dk
    dv = dv + special.dv if own["v_global"] is None else dv
    dsinks = None
    if sinks is not None and ordinary.dsinks is not None and special.dsinks is not None:
        dsinks = (ordinary.dsinks + special.dsinks).astype(sinks.dtype)
    return LongformerGradients(
        dq.astype(dtype),
        dk.astype(dtype),
        dv.astype(dtype),
        None if dq_global is None else dq_global.astype(dtype),
        None if own["k_global"] is None else special.dk.astype(dtype),
        None if own["v_global"] is None else special.dv.astype(dtype),
        dsinks,
    )


def longformer_lists(others: Ints, Tq: int, Tk: int, window: int, global_keys: Ints) -> Iterator[Lists]:
    """Yield the keys of the queries that are not global: first their window, then the global keys outside of it."""
    window = min(window, Tq + Tk)  # further out there are no keys
    for i in strips(others, 2 * window + 1 + len(global_keys)):
        position = i[:, None] + Tk - Tq
        near = position + np.arange(-window, window + 1)  # (n, 2 window + 1)
        far = np.broadcast_to(global_keys, (len(i), len(global_keys)))  # (n, G)
        visible = [(near >= 0) & (near < Tk), abs(far - position) > window]
        yield one_each(i, np.concatenate([near, far], axis=-1), np.concatenate(visible, axis=-1))


def _rows_of_q_global(rows: Ints, Tq: int, Tk: int, global_indices: Sequence[int]) -> Ints:
    """Return which row of q_global belongs to each of the global queries `rows`."""
    given = np.asarray(global_indices, np.int64)
    order = np.argsort(given, kind="stable")
    return order[np.searchsorted(given[order], rows + Tk - Tq)]
