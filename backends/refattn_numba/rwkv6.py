"""RWKV-6 on the CPU: `scan`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan import scanned


def rwkv6(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.rwkv6`."""
    return scanned(
        r, k, v, log_decay, per_key=True, u=u, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens
    )


def rwkv6_recurrent(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.rwkv6_recurrent`."""
    return rwkv6(r, k, v, log_decay, u, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def rwkv6_chunked(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.rwkv6_chunked`; there are no chunks here."""
    return rwkv6(r, k, v, log_decay, u, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
