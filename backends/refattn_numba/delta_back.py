"""The derivatives of the delta rules on the CPU: `scan_back`."""

from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.results import RecurrentGradients
from refattn_numba.scan_back import heads_added, scanned_back


def delta_rule_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.delta_rule_vjp`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    return _erased(do, q, k, v, None, beta, scale=scale, **options)


def gated_delta_rule_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.gated_delta_rule_vjp`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    return _erased(do, q, k, v, log_decay, beta, scale=scale, **options)


def kda_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RecurrentGradients:
    """As `refattn.kda_vjp`: the decays of `gated_delta_rule_vjp` have an axis more."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    return _erased(do, q, k, v, log_decay, beta, scale=scale, **options)


def _erased(
    do: Array, q: Array, k: Array, v: Array, log_decay: Array | None, beta: Array, **options: Any
) -> RecurrentGradients:
    found = scanned_back(do, q, k, v, log_decay, beta=beta, **options)
    initial_state = options["initial_state"]
    return RecurrentGradients(
        heads_added(found.dq, q),
        heads_added(found.dk, k),
        found.dv.astype(v.dtype, copy=False),
        None if log_decay is None else np.asarray(found.dg).astype(log_decay.dtype, copy=False),
        np.asarray(found.dbeta).astype(beta.dtype, copy=False),
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )
