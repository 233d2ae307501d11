"""RWKV-5 on the CPU: `scan`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan import scanned


def rwkv5(
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
    """As `refattn.rwkv5`."""
    return scanned(
        r,
        k,
        v,
        log_decay,
        per_key=True,
        constant=True,
        u=u,
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )


def rwkv5_recurrent(
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
    """As `refattn.rwkv5_recurrent`."""
    return rwkv5(r, k, v, log_decay, u, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def rwkv5_chunked(
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
    """As `refattn.rwkv5_chunked`; there are no chunks here."""
    return rwkv5(r, k, v, log_decay, u, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
