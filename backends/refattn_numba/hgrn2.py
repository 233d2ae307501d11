"""HGRN2 on the CPU: gated linear attention whose keys are 1 - e^g."""

from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import Recurrent
from refattn_numba.scan import scanned


def hgrn2(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.hgrn2`."""
    g = log_decay.astype(compute_dtype(q.dtype), copy=False)
    return scanned(q, -np.expm1(g), v, g, per_key=True, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def hgrn2_recurrent(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.hgrn2_recurrent`."""
    return hgrn2(q, log_decay, v, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


def hgrn2_chunked(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.hgrn2_chunked`; there are no chunks here."""
    return hgrn2(q, log_decay, v, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
