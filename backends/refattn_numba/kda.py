"""The delta rule with a decay per head, token and key dimension, on the CPU: `scan_erase`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan_erase import erased


def kda(
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
    """As `refattn.kda`."""
    return erased(
        q, k, v, log_decay, per_key=True, beta=beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens
    )


def kda_recurrent(
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
    """As `refattn.kda_recurrent`."""
    return kda(q, k, v, log_decay, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def kda_chunked(
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
    """As `refattn.kda_chunked`; there are no chunks here."""
    return kda(q, k, v, log_decay, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
