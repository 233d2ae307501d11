"""How FlashAttention 3 settles its options, and its scores: windows, chunks, qv, and the lse that it returns.

Source: see `refattn.dialects.flash_attn_3`.
"""

from typing import NamedTuple

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_shape
from refattn.dialects.common import attend, bounds, nothing_seen
from refattn.masks import Mask, chunked, window


class Scores(NamedTuple):
    """How scores come about, the same for every sequence."""

    scale: float | None
    softcap: float
    causal: bool
    window_size: tuple[int, int]
    chunk: int
    backend: str

    def sides(self) -> tuple[int, int]:
        return bounds("flash_attn_3: window_size", self.window_size)

    def mask(self) -> Mask | None:
        """Return who sees whom: a window, and the chunk of each position."""
        left, right = (None if size < 0 else size for size in self.sides())
        right = 0 if self.causal else right
        near = None if left is None and right is None else window(left, right)
        if self.chunk == 0:
            return near
        return chunked(self.chunk) if near is None else near & chunked(self.chunk)

    def moving(self, Tq: int, Tk: int) -> bool:
        """Whether queries stand at successive positions for the rotation: causal, or a window that cuts something."""
        left, right = self.sides()
        one = Tq == 1 and (left < 0 or left >= Tk - 1) and self.chunk == 0
        return (self.causal and not one) or self.chunk > 0 or 0 <= left < Tk - 1 or 0 <= right < Tq - 1


def attend_sequence(name: str, q: Array, k: Array, v: Array, qv: Array | None, scores: Scores) -> tuple[Array, Array]:
    """Return out (..., Tq, H, Dv) and lse (..., H, Tq)."""
    check_count(name, "attention_chunk", scores.chunk, least=0)
    if qv is not None:
        check_floats(name, q=q, qv=qv)
        check_shape(name, "qv", qv, (*q.shape[:-1], v.shape[-1]), "(..., Tq, H, Dv)")
        q, k = np.concatenate([q, qv], axis=-1), np.concatenate([k, v], axis=-1)  # q·k + qv·v
    o, lse = attend(
        q,
        k,
        v,
        mask=scores.mask(),
        scale=scores.scale,
        softcap=scores.softcap if scores.softcap > 0 else None,
        backend=scores.backend,
    )
    return o, nothing_seen(lse, -np.inf)
