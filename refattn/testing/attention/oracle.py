"""What a kernel should return: attention in float64 (long double for float64 kernels), with every step kept.

The meaning is that of `refattn.attention`; a contract may choose otherwise where libraries disagree. A test holds the
oracle against the reference, and both against mpmath.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.problem import Problem, wide_arrays
from refattn.testing.contract import Contract


@dataclass(frozen=True)
class Truth:
    """The right result of one problem, and the steps on the way to it."""

    q: Array
    k: Array
    """(B, H, Tk, D): each query head has its own copy here, and of v."""
    v: Array
    scale: float
    visible: Array
    """bool (B, H, Tq, Tk)."""
    product: Array
    """scale q·k, before the soft cap; 0 where it is not finite."""
    slope: Array
    """d s / d product: 1 without a soft cap."""
    bias: Array
    """What is added to the scores, ALiBi included; broadcasts to (B, H, Tq, Tk)."""
    s: Array
    """Scores after soft cap and bias; 0 where hidden."""
    m: Array
    """(B, H, Tq, 1): the largest logit of a row, sink included; 0 for a blind row."""
    p: Array
    """Weights, 0 where hidden; they add up to less than 1 beside a sink."""
    p_sink: Array
    """(B, H, Tq, 1): the sink's share."""
    keep: Array
    """What dropout multiplies the weights by; broadcasts."""
    lse: Array
    """(B, H, Tq), natural, sinks included; -inf for a blind row."""
    o: Array
    """Before the rule for blind rows; NaN where a NaN is seen."""
    blind: Array
    """bool (B, H, Tq): sees no key and has no sink."""


def wide_dtype(contract: Contract) -> Any:
    """Return the dtype of the oracle."""
    return np.longdouble if contract.dtype == "float64" else np.float64


def offsets(p: Problem, contract: Contract) -> Array:
    """Return by how much key positions are ahead of query positions, (B or 1, 1, 1, 1)."""
    _, _, _, Tq, Tk, _, _ = p.sizes
    given = p.options.get("q_offset")
    if given is not None:
        return np.asarray(given, np.int64).reshape(-1, 1, 1, 1)
    if contract.causal == "top_left":
        return np.zeros((1, 1, 1, 1), np.int64)
    lengths = p.options.get("seqlens_k")
    keys = np.asarray([Tk] if lengths is None else lengths, np.int64)
    return (keys - Tq).reshape(-1, 1, 1, 1)


def visible_pairs(p: Problem, contract: Contract) -> Array:
    """Return which query may look at which key, bool (B, H, Tq, Tk)."""
    B, H, _, Tq, Tk, _, _ = p.sizes
    i, j = np.arange(Tq)[:, None], np.arange(Tk)
    ahead = i + offsets(p, contract) - j  # how many keys back: 0 on the diagonal
    seen = np.ones((1, 1, Tq, Tk), bool)
    if p.options.get("causal"):
        seen = seen & (ahead >= 0)
    left, right = p.options.get("window") or (None, None)
    if left is not None:
        seen = seen & (ahead <= (left - 1 if contract.window == "total" else left))
    if right is not None:
        seen = seen & (ahead >= -right)
    lengths = p.options.get("seqlens_k")
    if lengths is not None:
        seen = seen & (j < np.asarray(lengths).reshape(-1, 1, 1, 1))
    mask = p.options.get("mask")
    if mask is not None:
        seen = seen & mask
    return np.broadcast_to(seen, (B, H, Tq, Tk))


def added(p: Problem, contract: Contract, wide: Any) -> Array:
    """Return bias and ALiBi, which broadcast to (B, H, Tq, Tk)."""
    _, _, _, Tq, Tk, _, _ = p.sizes
    bias = p.options.get("bias")
    total: Array = np.zeros((1, 1, 1, 1), wide) if bias is None else bias.astype(wide)
    slopes = p.options.get("alibi_slopes")
    if slopes is not None:
        distance = np.abs(np.arange(Tq)[:, None] + offsets(p, contract) - np.arange(Tk))
        total = total - slopes.astype(wide)[:, None, None] * distance
    return total


def default_scale(D: int, contract: Contract, wide: Any) -> Any:
    """Return what the product is multiplied by when no scale is given."""
    factor = wide(max(D, 1))
    return {"1/sqrt(D)": 1 / np.sqrt(factor), "1/D": 1 / factor, "1": wide(1)}[contract.default_scale]


def truth(p: Problem, contract: Contract) -> Truth:
    """Return the right result of a problem under a contract."""
    wide = wide_dtype(contract)
    q, k, v = wide_arrays(p, contract, wide)
    given = p.options.get("scale")
    scale = default_scale(q.shape[-1], contract, wide) if given is None else wide(given)
    visible = visible_pairs(p, contract)
    finite_q, finite_k = (np.asarray(np.isfinite(x).all(axis=-1)) for x in (q, k))
    q, k = (np.where(finite[..., None], x, 0) for finite, x in ((finite_q, q), (finite_k, k)))
    broken = visible & ~(finite_q[..., :, None] & finite_k[..., None, :])

    product = scale * (q @ k.swapaxes(-1, -2))
    bias = added(p, contract, wide)
    cap, slope = p.options.get("softcap"), np.ones((1, 1, 1, 1), wide)
    s = product
    if cap is not None:
        first = bias if contract.softcap == "after_bias" else 0
        t = np.tanh((product + np.where(np.isfinite(first), first, 0)) / cap)
        s, slope = cap * t, 1 - t**2
    if cap is None or contract.softcap == "before_bias":
        s = s + bias
    broken = broken | (visible & np.isnan(s))
    visible = visible & ~np.isneginf(s)  # a bias of -inf hides, too
    s = np.where(visible & np.isfinite(s), s, 0)

    sinks = p.options.get("sinks")
    sink = np.full((1, 1, 1, 1), -np.inf, wide) if sinks is None else sinks.astype(wide)[None, :, None, None]
    m = np.maximum(np.where(visible, s, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(np.isneginf(m), 0, m)
    e, e_sink = np.where(visible, np.exp(np.where(visible, s - m, 0)), 0), np.exp(sink - m)
    l = e.sum(axis=-1, keepdims=True) + e_sink
    weights = e / np.where(l == 0, 1, l)
    with np.errstate(divide="ignore"):
        lse = (m + np.log(l))[..., 0]
    keep = np.ones((1, 1, 1, 1), wide)
    if p.options.get("dropout_mask") is not None:
        keep = np.where(p.options["dropout_mask"], wide(1) / (wide(1) - wide(p.options.get("dropout_p", 0.0))), wide(0))
    o = (weights * keep) @ np.where(np.isfinite(v), v, 0)
    if not np.isfinite(v).all():
        o = np.where(visible.astype(wide) @ (~np.isfinite(v)).astype(wide) > 0, np.nan, o)
    rows = broken.any(axis=-1)
    if rows.any():
        o, lse = np.where(rows[..., None], np.nan, o), np.where(rows, np.nan, lse)
    v = np.where(np.isfinite(v), v, 0)
    blind = np.isneginf(lse)
    p_sink = e_sink / np.where(l == 0, 1, l)
    return Truth(q, k, v, scale, visible, product, slope, bias, s, m, weights, p_sink, keep, lse, o, blind)


def declared_output(p: Problem, contract: Contract, t: Truth) -> Array:
    """Return o as the contract wants it: with its rule for rows that see nothing."""
    if contract.blind_rows == "zero" or not t.blind.any():
        return t.o
    fill: Array = np.full((1, 1, 1, 1), np.nan)
    if contract.blind_rows == "mean":
        fill = t.v.sum(axis=-2, keepdims=True) / max(t.v.shape[-2], 1)  # 0 where there are no values
    return np.where(t.blind[..., None], fill, t.o)


def declared_lse(contract: Contract, p: Problem, t: Truth) -> Array:
    """Return the log-sum-exp as the contract wants it, but for its base."""
    lse = t.lse
    if not contract.lse_sinks and p.options.get("sinks") is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            lse = lse + np.log1p(-t.p_sink[..., 0])
    return np.where(t.blind, np.inf, lse) if contract.lse_blind == "+inf" else lse
