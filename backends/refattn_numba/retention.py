"""Linear attention with one decay per head, on the CPU: `scan`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan import scanned


def retention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.retention`."""
    return scanned(q, k, v, log_decay, constant=True, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def retention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.retention_recurrent`."""
    return retention(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def retention_chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.retention_chunked`; there are no chunks here."""
    return retention(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
