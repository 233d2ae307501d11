"""RWKV-7 on the CPU: `scan_erase`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.scan_erase import erased


def rwkv7(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.rwkv7`."""
    return erased(
        r,
        k,
        v,
        log_decay,
        per_key=True,
        kappa=kappa_hat,
        share=a,
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )


def rwkv7_recurrent(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.rwkv7_recurrent`."""
    return rwkv7(r, k, v, log_decay, kappa_hat, a, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def rwkv7_chunked(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.rwkv7_chunked`; there are no chunks here."""
    return rwkv7(r, k, v, log_decay, kappa_hat, a, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
