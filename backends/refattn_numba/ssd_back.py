"""The derivative of Mamba-2 on the CPU: `scan_back` with q = C, k = B, v = Δ x, and back through Δ, skip and gate."""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import SsdGradients
from refattn_numba.scan import scanned
from refattn_numba.scan_back import heads_added, scanned_back
from refattn_numba.ssd import of_head


def ssd_vjp(
    do: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> SsdGradients:
    """As `refattn.ssd_vjp`."""
    dtype = compute_dtype(x.dtype)
    do_, x_, dt_, A_ = (given.astype(dtype, copy=False) for given in (do, x, dt, A))
    rate, skip = of_head(A_, dt), None if D is None else of_head(D.astype(dtype, copy=False), dt)[..., None]
    raw = dt_ if dt_bias is None else dt_ + of_head(dt_bias.astype(dtype, copy=False), dt)
    soft = np.logaddexp(dtype.type(0), raw) if dt_softplus else raw
    low, high = (dtype.type(border) for border in dt_limit)
    step = np.clip(soft, low, high)
    g, v = step * rate, step[..., None] * x_
    options: dict[str, Any] = {"scale": 1.0, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    dy, dz = do_, None
    if z is not None:
        y = scanned(C, B, v, g, **options, rounded=False).o
        y = y if skip is None else y + skip * x_
        z_ = z.astype(dtype, copy=False)
        gate = 1 / (1 + np.exp(-z_))
        dy, dz = do_ * (z_ * gate), do_ * y * (gate * (1 + z_ * (1 / (1 + np.exp(z_)))))
        dz = dz.astype(z.dtype, copy=False)
    found = scanned_back(dy, C, B, v, g, **options, dstate=dstate)
    dg, forgets = np.asarray(found.dg), np.isneginf(g)
    dx = found.dv * step[..., None]
    dx = dx if skip is None else dx + skip * dy
    dstep = np.where(forgets, 0, dg * rate) + np.einsum("...p,...p->...", found.dv, x_)  # was: g = Δ A, v = Δ x
    dstep = np.where((soft < low) | (soft > high), 0, dstep)
    dstep = dstep * (1 / (1 + np.exp(-raw))) if dt_softplus else dstep
    dA = _per_head(np.where(forgets, 0, dg * step))
    return SsdGradients(
        dx.astype(x.dtype, copy=False),
        dstep.astype(dt.dtype, copy=False),
        dA.astype(A.dtype, copy=False),
        heads_added(found.dk, B),
        heads_added(found.dq, C),
        None if D is None else _per_head(np.einsum("...p,...p->...", dy, x_)).astype(D.dtype, copy=False),
        dz,
        None if dt_bias is None else _per_head(dstep).astype(dt_bias.dtype, copy=False),
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )


def _per_head(x: Array) -> Array:
    """Add up (..., H, T) over everything but heads, (H,)."""
    H = x.shape[-2] if x.ndim > 1 else 1
    return np.asarray(x.reshape(math.prod(x.shape[:-2]), H, x.shape[-1]).sum(axis=(0, 2)))
