"""Multi-head attention on the CPU: NumPy's matrix products around the flash kernels."""

from typing import Any

from refattn.arrays import Array, compute_dtype
from refattn.results import MultiHeadGradients
from refattn_numba.attention import attention
from refattn_numba.flash import flash_attention, flash_attention_vjp


def multi_head_attention(
    x: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    w_o: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: Array | None = None,
    b_q: Array | None = None,
    b_k: Array | None = None,
    b_v: Array | None = None,
    b_o: Array | None = None,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
) -> Array:
    """As `refattn.multi_head_attention`."""
    dtype = x.dtype
    x, w_q, w_k, w_v, w_o, context, b_q, b_k, b_v, b_o = _computed(x, w_q, w_k, w_v, w_o, context, b_q, b_k, b_v, b_o)
    source = x if context is None else context
    q = _heads(_project(x, w_q, b_q), heads)
    k, v = (_heads(_project(source, w, b), kv_heads or heads) for w, b in ((w_k, b_k), (w_v, b_v)))
    o = attention(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    return _project(_joined(o), w_o, b_o).astype(dtype, copy=False)


def multi_head_attention_vjp(
    do: Array,
    x: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    w_o: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: Array | None = None,
    b_q: Array | None = None,
    b_k: Array | None = None,
    b_v: Array | None = None,
    b_o: Array | None = None,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
) -> MultiHeadGradients:
    """As `refattn.multi_head_attention_vjp`."""
    dtype = x.dtype
    do, x, w_q, w_k, w_v, w_o = _computed(do, x, w_q, w_k, w_v, w_o)
    context, b_q, b_k, b_v, b_o = _computed(context, b_q, b_k, b_v, b_o)
    source, kv_heads = (x if context is None else context), kv_heads or heads
    q = _heads(_project(x, w_q, b_q), heads)
    k, v = (_heads(_project(source, w, b), kv_heads) for w, b in ((w_k, b_k), (w_v, b_v)))
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sinks": sinks,
        "dropout_mask": dropout_mask,
        "dropout_p": dropout_p,
    }
    o, lse = flash_attention(q, k, v, **options)
    grads = flash_attention_vjp(_heads(do @ w_o.T, heads), q, k, v, o, lse, **options)
    dq, dk, dv = (_joined(g) for g in (grads.dq, grads.dk, grads.dv))
    dx, dsource = dq @ w_q.T, dk @ w_k.T + dv @ w_v.T
    projected = {
        "dx": dx + dsource if context is None else dx,
        "dw_q": _rows(x).T @ _rows(dq),
        "dw_k": _rows(source).T @ _rows(dk),
        "dw_v": _rows(source).T @ _rows(dv),
        "dw_o": _rows(_joined(o)).T @ _rows(do),
        "db_q": None if b_q is None else _rows(dq).sum(axis=0),
        "db_k": None if b_k is None else _rows(dk).sum(axis=0),
        "db_v": None if b_v is None else _rows(dv).sum(axis=0),
        "db_o": None if b_o is None else _rows(do).sum(axis=0),
        "dcontext": None if context is None else dsource,
    }
    rounded = {name: None if x is None else x.astype(dtype, copy=False) for name, x in projected.items()}
    return MultiHeadGradients(**rounded, dbias=grads.dbias, dsinks=grads.dsinks)


def _computed(*arrays: Any) -> tuple[Any, ...]:
    return tuple(None if x is None else x.astype(compute_dtype(x.dtype), copy=False) for x in arrays)


def _project(x: Array, w: Array, b: Array | None) -> Array:
    y = _rows(x) @ w
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1])


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)


def _joined(x: Array) -> Array:
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
