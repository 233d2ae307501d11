"""The delta rule with one decay per head and token, on the CPU: `scan_erase`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan_erase import erased


def gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.gated_delta_rule`."""
    return erased(q, k, v, log_decay, beta=beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def gated_delta_rule_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.gated_delta_rule_recurrent`."""
    return gated_delta_rule(q, k, v, log_decay, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def gated_delta_rule_chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.gated_delta_rule_chunked`; there are no chunks here."""
    return gated_delta_rule(q, k, v, log_decay, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
