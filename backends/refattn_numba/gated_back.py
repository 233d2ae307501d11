"""The derivatives of linear attention with decays, on the CPU: `scan_back`."""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import Hgrn2Gradients, RecurrentGradients
from refattn_numba.scan_back import heads_added, scanned_back


def simple_gla_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.simple_gla_vjp`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = scanned_back(do, q, k, v, log_decay, scale=scale, **options)
    return RecurrentGradients(
        heads_added(found.dq, q),
        heads_added(found.dk, k),
        found.dv.astype(v.dtype, copy=False),
        np.asarray(found.dg).astype(log_decay.dtype, copy=False),
        None,
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )


def gated_linear_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.gated_linear_attention_vjp`: the decays of `simple_gla_vjp` have an axis more."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    return simple_gla_vjp(do, q, k, v, log_decay, scale=scale, **options)


def retention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.retention_vjp`."""
    g = log_decay.astype(compute_dtype(q.dtype), copy=False)
    steps = np.broadcast_to(g[:, None] if v.ndim > 2 else g, v.shape[:-1])
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = simple_gla_vjp(do, q, k, v, steps, scale=scale, **options)
    each = np.asarray(found.dlog_decay).sum(axis=-1).reshape(-1, len(log_decay)).sum(axis=0)
    return found._replace(dlog_decay=each.astype(log_decay.dtype, copy=False))


def lightning_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.lightning_attention_vjp`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    return retention_vjp(do, q, k, v, log_decay, scale=scale, **options)


def hgrn2_vjp(
    do: Array,
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> Hgrn2Gradients:
    """As `refattn.hgrn2_vjp`: what the keys 1 - e^g are pulled to, the gates are, too."""
    g = log_decay.astype(compute_dtype(q.dtype), copy=False)
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = scanned_back(do, q, -np.expm1(g), v, g, scale=scale, **options)
    of_keys = np.where(np.isneginf(g), g.dtype.type(0), np.exp(g) * found.dk)
    return Hgrn2Gradients(
        heads_added(found.dq, q),
        (np.asarray(found.dg) - of_keys).astype(log_decay.dtype, copy=False),
        found.dv.astype(v.dtype, copy=False),
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )
