"""Lightning attention on the CPU, which is `retention`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import Recurrent
from refattn_numba.retention import retention


def lightning_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.lightning_attention`."""
    return retention(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def lightning_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.lightning_attention_recurrent`."""
    return retention(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def lightning_attention_chunked(
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
    """As `refattn.lightning_attention_chunked`; there are no chunks here."""
    return retention(q, k, v, log_decay, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
