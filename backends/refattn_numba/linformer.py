"""Linformer on the CPU: keys and values projected by products, then `attention`."""

from refattn.arrays import Array, compute_dtype
from refattn.results import LinformerGradients
from refattn_numba.attention import attention, attention_vjp


def linformer_attention(q: Array, k: Array, v: Array, e: Array, f: Array, *, scale: float | None = None) -> Array:
    """As `refattn.linformer_attention`."""
    q_, k_, v_, e_, f_ = (x.astype(compute_dtype(x.dtype), copy=False) for x in (q, k, v, e, f))
    o: Array = attention(q_, e_ @ k_, f_ @ v_, scale=scale)
    return o.astype(q.dtype, copy=False)


def linformer_attention_vjp(
    do: Array, q: Array, k: Array, v: Array, e: Array, f: Array, *, scale: float | None = None
) -> LinformerGradients:
    """As `refattn.linformer_attention_vjp`."""
    do_, q_, k_, v_, e_, f_ = (x.astype(compute_dtype(x.dtype), copy=False) for x in (do, q, k, v, e, f))
    found = attention_vjp(do_, q_, e_ @ k_, f_ @ v_, scale=scale)
    dk, dv = e_.swapaxes(-1, -2) @ found.dk, f_.swapaxes(-1, -2) @ found.dv  # was: E K, F V
    de, df = found.dk @ k_.swapaxes(-1, -2), found.dv @ v_.swapaxes(-1, -2)
    de, df = (dx.reshape(-1, *x.shape).sum(axis=0).astype(x.dtype, copy=False) for dx, x in ((de, e), (df, f)))
    dq, dk, dv = (dx.astype(q.dtype, copy=False) for dx in (found.dq, dk, dv))
    return LinformerGradients(dq, dk, dv, de, df)
