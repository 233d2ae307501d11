"""The derivatives of RWKV-5, -6 and -7 on the CPU: `scan_back`, and what a token sees of itself."""

import math
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import Rwkv7Gradients, RwkvGradients
from refattn_numba.scan_back import scanned_back


def rwkv5_vjp(
    do: Array,
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RwkvGradients:
    """As `refattn.rwkv5_vjp`: the gates of `rwkv6_vjp` are the same at every token."""
    g = log_decay.astype(compute_dtype(r.dtype), copy=False)
    steps = np.broadcast_to(g[:, None] if r.ndim > 2 else g, r.shape)
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = rwkv6_vjp(do, r, k, v, steps, u, scale=scale, **options)
    return found._replace(dlog_decay=_per_head(found.dlog_decay, u).astype(log_decay.dtype, copy=False))


def rwkv6_vjp(
    do: Array,
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> RwkvGradients:
    """As `refattn.rwkv6_vjp`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = scanned_back(do, r, k, v, log_decay, bonus=True, scale=scale, **options)
    dtype = found.dq.dtype
    do_, r_, k_, v_, u_ = (x.astype(dtype, copy=False) for x in (do, r, k, v, u))
    u_ = u_[:, None] if r.ndim > 2 else u_
    seen = dtype.type(scale) * np.einsum("...d,...d->...", do_, v_)[..., None]  # was: o = ... + scale (r · u k) v
    own = dtype.type(scale) * np.einsum("...d,...d->...", r_, u_ * k_)[..., None]
    return RwkvGradients(
        (found.dq + seen * u_ * k_).astype(r.dtype, copy=False),
        (found.dk + seen * u_ * r_).astype(k.dtype, copy=False),
        (found.dv + own * do_).astype(v.dtype, copy=False),
        np.asarray(found.dg).astype(log_decay.dtype, copy=False),
        _per_head(seen * r_ * k_, u).astype(u.dtype, copy=False),
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )


def rwkv7_vjp(
    do: Array,
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
    dstate: Array | None = None,
) -> Rwkv7Gradients:
    """As `refattn.rwkv7_vjp`."""
    dtype = compute_dtype(r.dtype)
    kappa, share = (x.astype(dtype, copy=False) for x in (kappa_hat, a))
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "dstate": dstate}
    found = scanned_back(do, r, k, v, log_decay, kappa=kappa, gap=share * kappa, scale=scale, **options)
    dgap = np.asarray(found.dgap)  # of a ⊙ kappa
    return Rwkv7Gradients(
        found.dq.astype(r.dtype, copy=False),
        found.dk.astype(k.dtype, copy=False),
        found.dv.astype(v.dtype, copy=False),
        np.asarray(found.dg).astype(log_decay.dtype, copy=False),
        (np.asarray(found.dkappa) + share * dgap).astype(kappa_hat.dtype, copy=False),
        (kappa * dgap).astype(a.dtype, copy=False),
        None if initial_state is None else found.dstate.astype(initial_state.dtype, copy=False),
    )


def _per_head(x: Array, like: Array) -> Array:
    """Add up (..., H, T, D) over everything but heads and keys, (H, D)."""
    H, D = like.shape
    return np.asarray(x.reshape(math.prod(x.shape[:-3]), H, x.shape[-2], D).sum(axis=(0, 2)))
