"""Multi-head attention: four projections around `attention`.

Vaswani et al., 2017, arXiv:1706.03762, section 3.2.2; with fewer key heads, Ainslie et al., 2023, arXiv:2305.13245.
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_shape, compute_dtype
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.common import Bools, check_attention
from refattn.dispatch import dispatched
from refattn.masks import Mask
from refattn.results import MultiHeadGradients


def check_multi_head(
    x: Any,
    w_q: Any,
    w_k: Any,
    w_v: Any,
    w_o: Any,
    *,
    heads: Any,
    kv_heads: Any = None,
    context: Any = None,
    b_q: Any = None,
    b_k: Any = None,
    b_v: Any = None,
    b_o: Any = None,
    operation: str = "multi_head_attention",
    **arguments: Any,
) -> None:
    """Refuse what `multi_head_attention` cannot take."""
    check_count(operation, "heads", heads)
    kv_heads = heads if kv_heads is None else kv_heads
    check_count(operation, "kv_heads", kv_heads)
    given = {"b_q": b_q, "b_k": b_k, "b_v": b_v, "b_o": b_o}
    check_floats(operation, 1, **{name: x for name, x in given.items() if x is not None}, x=x)
    check_floats(operation, 2, x=x, w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o)
    if context is not None:
        check_floats(operation, 2, context=context, x=x)
    if x.shape[-1] == 0 or w_o.shape[-1] == 0:
        raise ValueError(f"{operation}: x {x.shape} and w_o {w_o.shape} must have a last axis of 1 or more")
    source = x if context is None else context
    if source.shape[:-2] != x.shape[:-2]:
        raise ValueError(f"{operation}: x {x.shape} and context {source.shape} differ in their batch axes")
    widths = {}
    for name, w, n in (("w_q", w_q, heads), ("w_k", w_k, kv_heads), ("w_v", w_v, kv_heads)):
        model = (x if name == "w_q" else source).shape[-1]
        if w.ndim != 2 or w.shape[0] != model or w.shape[1] % n or w.shape[1] == 0:
            raise ValueError(f"{operation}: {name} has shape {w.shape}; wanted ({model}, a multiple of {n} heads)")
        widths[name] = w.shape[1] // n
    check_shape(operation, "w_o", w_o, (heads * widths["w_v"], *w_o.shape[1:2]), "(heads * Dv, d_out)")
    for name, b, w in (("b_q", b_q, w_q), ("b_k", b_k, w_k), ("b_v", b_v, w_v), ("b_o", b_o, w_o)):
        if b is not None:
            check_shape(operation, name, b, (w.shape[1],), "one per column of its matrix")
    batch = x.shape[:-2]
    q = np.broadcast_to(np.zeros((), x.dtype), (*batch, heads, x.shape[-2], widths["w_q"]))
    k = np.broadcast_to(np.zeros((), x.dtype), (*batch, kv_heads, source.shape[-2], widths["w_k"]))
    v = np.broadcast_to(np.zeros((), x.dtype), (*batch, kv_heads, source.shape[-2], widths["w_v"]))
    check_attention(q, k, v, operation=operation, **arguments)


def _check_vjp(do: Any, x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, **arguments: Any) -> None:
    check_multi_head(x, w_q, w_k, w_v, w_o, operation="multi_head_attention_vjp", **arguments)
    check_floats("multi_head_attention_vjp", 2, do=do, x=x)
    check_shape("multi_head_attention_vjp", "do", do, (*x.shape[:-1], w_o.shape[1]), "(..., T, d_out)")


@dispatched(check_multi_head)
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
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    backend: str = "numpy",
) -> Array:
    r"""Project to heads, attend in each, and project back.

    .. math::
        \text{MultiHead}(x) = \text{Concat}(o_1, \dots, o_H) W^O, \quad
        o_h = \text{attention}(x W^Q_h, y W^K_h, y W^V_h)

    with y = x, or the context in cross attention.

    Parameters
    ----------
    x : array, (..., Tq, d_model)
        Tokens.
    w_q, w_k, w_v : array, (d_model, H * D), (d_context, Hk * D), (d_context, Hk * Dv)
        Head h owns the columns h * D to (h + 1) * D. (A torch Linear keeps the transpose.)
    w_o : array, (H * Dv, d_out)
        The way back.
    heads, kv_heads : int
        H and Hk; Hk is H unless given.
    context : array, (..., Tk, d_context), optional
        Where keys and values come from, x unless given.
    b_q, b_k, b_v, b_o : array, optional
        Added after each projection, one number per column.
    mask, bias, scale, softcap, sinks, dropout_mask, dropout_p
        As `attention`.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    array, (..., Tq, d_out)
        In the dtype of x.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `attention`, and for matrices that do not fit.

    Examples
    --------
    >>> x, one = np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2)
    >>> multi_head_attention(x, one * 0, one, one, one, heads=2)  # no query: both heads take the mean
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    dtype = x.dtype
    x, w_q, w_k, w_v, w_o = _computed(x, w_q, w_k, w_v, w_o)
    context, b_q, b_k, b_v, b_o = _computed(context, b_q, b_k, b_v, b_o)
    source = x if context is None else context

    q = split_heads(_linear(x, w_q, b_q), heads)  # x W^Q                                  (..., H, Tq, D)
    k = split_heads(_linear(source, w_k, b_k), kv_heads or heads)
    v = split_heads(_linear(source, w_v, b_v), kv_heads or heads)
    o = attention(
        q,
        k,
        v,
        mask=mask,
        bias=_computed(bias)[0],
        scale=scale,
        softcap=softcap,
        sinks=_computed(sinks)[0],
        dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )
    return _linear(concat_heads(o), w_o, b_o).astype(dtype)  # Concat(o_1 ... o_H) W^O


@dispatched(_check_vjp)
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
    mask: Mask | Bools | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Bools | None = None,
    dropout_p: float = 0.0,
    backend: str = "numpy",
) -> MultiHeadGradients:
    """Pull the cotangent of `multi_head_attention`'s result back to its inputs.

    Parameters
    ----------
    do : array, (..., Tq, d_out)
        Cotangent of the result, in the dtype of x.
    x, w_q, w_k, w_v, w_o, heads, kv_heads, context, b_q, b_k, b_v, b_o
        As given to `multi_head_attention`.
    mask, bias, scale, softcap, sinks, dropout_mask, dropout_p
        As given to it.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    MultiHeadGradients
        Without a context, dx holds what came by way of the keys and values too.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `multi_head_attention`.

    Examples
    --------
    >>> x, one = np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2)
    >>> multi_head_attention_vjp(np.ones((2, 2)), x, one * 0, one, one, one, heads=2).dw_o
    array([[1., 1.],
           [1., 1.]])
    """
    dtype, given = x.dtype, (bias, sinks)
    do, x, w_q, w_k, w_v, w_o = _computed(do, x, w_q, w_k, w_v, w_o)
    context, b_q, b_k, b_v, b_o, bias, sinks = _computed(context, b_q, b_k, b_v, b_o, bias, sinks)
    source, kv_heads = (x if context is None else context), kv_heads or heads
    q, k, v = (
        split_heads(_linear(y, w, b), n)
        for y, w, b, n in ((x, w_q, b_q, heads), (source, w_k, b_k, kv_heads), (source, w_v, b_v, kv_heads))
    )
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sinks": sinks,
        "dropout_mask": dropout_mask,
        "dropout_p": dropout_p,
    }
    o = attention(q, k, v, **options)

    do_heads, dw_o, db_o = _linear_vjp(do, concat_heads(o), w_o)  # was: concat(o) @ w_o + b_o
    g = attention_vjp(split_heads(do_heads, heads), q, k, v, **options)
    dx_q, dw_q, db_q = _linear_vjp(concat_heads(g.dq), x, w_q)  # was: q = x @ w_q + b_q
    dx_k, dw_k, db_k = _linear_vjp(concat_heads(g.dk), source, w_k)
    dx_v, dw_v, db_v = _linear_vjp(concat_heads(g.dv), source, w_v)
    grads = MultiHeadGradients(
        dx=dx_q + dx_k + dx_v if context is None else dx_q,
        dw_q=dw_q,
        dw_k=dw_k,
        dw_v=dw_v,
        dw_o=dw_o,
        db_q=None if b_q is None else db_q,
        db_k=None if b_k is None else db_k,
        db_v=None if b_v is None else db_v,
        db_o=None if b_o is None else db_o,
        dcontext=None if context is None else dx_k + dx_v,
        dbias=g.dbias,
        dsinks=g.dsinks,
    )
    like = [dtype] * 10 + [None if x is None else x.dtype for x in given]
    rounded: list[Any] = [None if x is None else x.astype(t) for x, t in zip(grads, like, strict=True)]
    return MultiHeadGradients(*rounded)


def _computed(*arrays: Any) -> tuple[Any, ...]:
    """Return the arrays in the dtype in which one computes with them, None as None."""
    return tuple(None if x is None else x.astype(compute_dtype(x.dtype)) for x in arrays)


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    return x @ w if b is None else x @ w + b


def _linear_vjp(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, rows.T @ drows, drows.sum(axis=0)  # was: y = x @ w + b


def split_heads(x: Array, heads: int) -> Array:
    """(..., T, H * D) -> (..., H, T, D)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)


def concat_heads(o: Array) -> Array:
    """(..., H, T, D) -> (..., T, H * D)."""
    o = o.swapaxes(-2, -3)
    return o.reshape(*o.shape[:-2], o.shape[-2] * o.shape[-1])
