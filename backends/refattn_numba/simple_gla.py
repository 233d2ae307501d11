"""Linear attention with one decay per head and token, on the CPU: `scan`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan import scanned


def simple_gla(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.simple_gla`."""
    return scanned(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def simple_gla_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.simple_gla_recurrent`."""
    return simple_gla(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def simple_gla_chunked(
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
    """As `refattn.simple_gla_chunked`; there are no chunks here."""
    return simple_gla(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
