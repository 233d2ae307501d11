"""How FlashAttention 2 settles its options, and its scores: windows, soft cap, ALiBi, and the lse that it returns.

Source: see `refattn.dialects.flash_attn`.
"""

from typing import NamedTuple

import numpy as np

from refattn.arrays import Array, check_floats
from refattn.dialects.common import attend, bounds, nothing_seen
from refattn.masks import window


class Reach(NamedTuple):
    """How far queries look, None for unbounded, and whether the kernel for causal attention is the one that runs."""

    left: int | None
    right: int | None
    causal: bool


def reach(causal: bool, window_size: tuple[int, int], Tq: int, Tk: int, alibi: bool) -> Reach:
    """Settle causal and window_size for the longest Tq and Tk, as flash_api.cpp:422 and :157 do."""
    left, right = (-1 if size >= Tk else size for size in bounds("flash_attn: window_size", window_size))
    if causal and (Tq != 1 or alibi):
        right = 0
    if left < 0 and right < 0:
        return Reach(None, None, False)
    return Reach(Tk if left < 0 else left, Tk if right < 0 else right, left < 0 and right == 0)


class Scores(NamedTuple):
    """How scores come about, the same for every sequence; the slopes (B, H) are a row per sequence."""

    scale: float | None
    softcap: float | None
    slopes: Array | None
    dropout_p: float
    backend: str


def settle(
    name: str,
    B: int,
    H: int,
    scale: float | None,
    softcap: float,
    slopes: Array | None,
    dropout_p: float,
    backend: str,
) -> Scores:
    """Check and settle what makes the scores of B sequences of H heads."""
    if softcap > 0 and dropout_p > 0:
        raise ValueError(f"{name}: softcap does not go with dropout")
    if slopes is not None:
        check_floats(name, 1, alibi_slopes=slopes)
        if slopes.shape not in ((H,), (B, H)):
            raise ValueError(f"{name}: alibi_slopes has shape {slopes.shape}; wanted {(H,)} or {(B, H)}")
        slopes = np.broadcast_to(slopes.astype(np.float64), (B, H))
    return Scores(scale, softcap if softcap > 0 else None, slopes, dropout_p, backend)


def attend_sequence(
    q: Array, k: Array, v: Array, far: Reach, scores: Scores, slopes: Array | None, dropout_mask: Array | None
) -> tuple[Array, Array]:
    """Return out (..., Tq, H, D) and lse (..., H, Tq) for slopes (..., H)."""
    bias = None
    if slopes is not None:
        i, j = np.arange(q.shape[-3])[:, None] + k.shape[-3] - q.shape[-3], np.arange(k.shape[-3])
        bias = slopes[..., None, None] * (j[None, :] if far.causal else -np.abs(i - j))
    o, lse = attend(
        q,
        k,
        v,
        mask=None if far.right is None else window(far.left, far.right),
        bias=bias,
        scale=scores.scale,
        softcap=scores.softcap,
        dropout_mask=dropout_mask if scores.dropout_p > 0 else None,
        dropout_p=scores.dropout_p,
        backend=scores.backend,
    )
    return o, nothing_seen(lse, np.inf)


def unpacked(name: str, argument: str, packed: Array, parts: int, ndim: int) -> list[Array]:
    """Return the `parts` arrays that lie side by side on the third axis from the end."""
    check_floats(name, ndim, **{argument: packed})
    if packed.ndim != ndim or packed.shape[-3] != parts:
        raise ValueError(
            f"{name}: {argument} has shape {packed.shape}; wanted {parts} arrays on the third axis from the end"
        )
    return [packed[..., n, :, :] for n in range(parts)]
