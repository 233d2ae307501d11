r"""The expected size of rounding errors where counting them is easy: rotary embedding, and merging partial results.

Each rounding of a number x has mean square `SHARE` (u x)², see `refattn.testing.attention.forward`. The last one, to
the dtype of the result, is not in here.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import per_head
from refattn.dense.rope import frequencies_of
from refattn.testing.attention.forward import SHARE
from refattn.testing.formats import UNIT


def rope_variance(
    x: Array,
    positions: Array,
    y: Array,
    unit: float,
    *,
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    frequencies: Array | None = None,
) -> Array:
    r"""Return the variance of y = rope(x), and of its derivative, which turns the other way.

    In :math:`y_a = x_a \cos\phi - x_b \sin\phi` the cosine, the sine, both products and their sum are rounded; the
    angle, had in float64, is off by a part of itself.
    """
    n = x.shape[-1] if rotary_dim is None else rotary_dim
    angle = positions[..., None] * frequencies_of(frequencies, theta, n)  # (..., T, n/2)
    if positions.ndim > 1:
        angle = angle[..., None, :, :]
    c2, s2 = np.cos(angle) ** 2, np.sin(angle) ** 2
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    a2, b2, turned = x[..., a] ** 2, x[..., b] ** 2, (UNIT["float64"] * angle) ** 2
    var = np.zeros(x.shape)
    var[..., a] = unit**2 * (2 * (a2 * c2 + b2 * s2) + y[..., a] ** 2) + turned * (a2 * s2 + b2 * c2)
    var[..., b] = unit**2 * (2 * (a2 * s2 + b2 * c2) + y[..., b] ** 2) + turned * (a2 * c2 + b2 * s2)
    return SHARE * var


def merge_variance(parts: Any, sinks: Array | None, wants: dict[str, Array], unit: float) -> dict[str, Array]:
    r"""Return the variances of o and lse of `merge_attention`.

    With :math:`w_n = e^{\text{lse}_n - \text{lse}}`, an exponential of an argument g is off by a relative error of mean
    square SHARE u² (g² + 8), which moves o by :math:`w_n (o_n - o)`; the quotient, the products and their sum are
    rounded, and so is the logarithm.
    """
    lses = np.stack([lse for _, lse in parts])
    values = [np.where(np.isfinite(o), o, 0) for o, _ in parts]
    if sinks is not None:
        sink = np.broadcast_to(per_head(sinks, parts[0][0].ndim)[..., 0], lses.shape[1:])
        lses, values = np.concatenate([lses, sink[None]]), [*values, np.zeros_like(values[0])]
    m = lses.max(axis=0)
    m = np.where(np.isfinite(m), m, 0)
    lse, o = np.where(np.isfinite(wants["lse"]), wants["lse"], 0), np.nan_to_num(wants["o"])
    w = np.exp(lses - lse)
    gap = np.where(np.isneginf(lses), 0, lses - m)
    e2 = gap**2 + 8 + len(lses) / 2
    moved = sum((w_n**2 * e_n)[..., None] * (o_n - o) ** 2 for w_n, e_n, o_n in zip(w, e2, values, strict=True))
    sums = sum((w_n**2)[..., None] * o_n**2 for w_n, o_n in zip(w, values, strict=True))
    of_o = moved + (len(lses) / 2 + 2) * sums
    of_lse = (w**2 * e2).sum(axis=0) + m**2 + (lse - m) ** 2 + 1
    return {"o": SHARE * unit**2 * of_o, "lse": SHARE * unit**2 * np.asarray(of_lse)}
