"""Hugging Face Transformers' eager attention, as transformers 5.24 computes it; its masks are in `transformers_masks`.

Source: https://github.com/huggingface/transformers, models/{llama,gemma2,gpt_oss}/modeling_*.py: there is one
`eager_attention_forward` in each. Here the model's name stands in front of it; Llama's, which most models copy, has the
name itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools, check_attention, repeat_heads
from refattn.dialects.transformers_masks import (
    causal_mask_function,
    eager_mask,
    lowest,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

__all__ = [
    "Module",
    "causal_mask_function",
    "eager_attention_forward",
    "eager_mask",
    "gemma2_eager_attention_forward",
    "gpt_oss_eager_attention_forward",
    "repeat_kv",
    "sliding_window_bidirectional_mask_function",
    "sliding_window_causal_mask_function",
]


@dataclass(frozen=True)
class Module:
    """What eager attention reads off the layer that calls it; any object with these attributes will do.

    Parameters
    ----------
    num_key_value_groups : int
        Query heads per key head.
    head_dim : int, optional
        Read by Gemma 2 if there is no scaling.
    sinks : array, (H,), optional
        Read by gpt-oss.
    training : bool
        Whether dropout drops anything.
    """

    num_key_value_groups: int = 1
    head_dim: int | None = None
    sinks: Array | None = None
    training: bool = False


def eager_attention_forward(
    module: Any,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    dropout_mask: Bools | None = None,
    backend: str = "numpy",
) -> tuple[Array, Array]:
    r"""Compute softmax(scaling · query keyᵀ + attention_mask) value as Llama does, and most models after it.

    .. math::
        p_{ij} = \text{softmax}_j(\text{scaling} \cdot q_i \cdot k_j + \text{mask}_{ij}), \quad o_i = \sum_j p_{ij} v_j

    Parameters
    ----------
    module : object
        The layer; see `Module` for what is read.
    query : array, (B, H, Tq, D)
        Queries.
    key, value : array, (B, Hk, Tk, D), (B, Hk, Tk, Dv)
        Keys and values; H = Hk · module.num_key_value_groups.
    attention_mask : array that broadcasts to (B, H, Tq, Tk), or None
        Added to the scores; see `eager_mask`.
    scaling : float
        Factor of the scores.
    dropout : float
        The probability to drop a weight, while module.training.
    dropout_mask : bool array that broadcasts to (B, H, Tq, Tk), optional
        The weights to keep. The library draws them from torch's generator, which is not here: give them.
    backend : str
        Who computes the output; see `refattn.backends`.

    Returns
    -------
    attn_output : array, (B, Tq, H, Dv)
        Tokens before heads, other than the inputs.
    attn_weights : array, (B, H, Tq, Tk)
        The weights after dropout, in the dtype of query.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not fit, and for dropout in training without a `dropout_mask`.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.attention`:

    - The output has tokens before heads; the weights are returned, and no lse.
    - There is no causal mask but the one in `attention_mask`: None means that everybody sees everything.
    - `attention_mask` is always added. True adds 1, and hides nothing.
    - The usual mask holds finfo(dtype).min, a finite number, where a pair is hidden. A query all of whose keys are
      hidden gets the mean of v. (In float16 as well: next to -65504, scores below 16 round away.)
    - The softmax is float32, so a mask of finfo(float64).min overflows to -inf there: then, as with -inf itself, a
      query whose keys are all hidden gets NaN.
    - NaN and infinities in hidden keys and values reach every query: nothing is selected away.
    - scaling has no default.

    Not reproduced: float64 inputs stay float64 here, in the softmax too; scores are not rounded to 16 bits before it,
    nor weights after it. Keywords that the library accepts and ignores (`sliding_window`, `is_causal`, ...) are not
    accepted.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), np.array([[[[0.0], [4.0]]]])
    >>> eager_attention_forward(Module(), q, k, v, None, 1.0)[0].ravel()  # no mask: not causal either
    array([2., 2.])
    """
    name = "eager_attention_forward"
    return _eager(name, module, query, key, value, attention_mask, scaling, dropout, dropout_mask, backend)


def gemma2_eager_attention_forward(
    module: Any,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    dropout_mask: Bools | None = None,
    backend: str = "numpy",
) -> tuple[Array, Array]:
    """Compute Gemma 2's eager attention: Llama's with a soft cap before the mask, and other positions of arguments.

    Parameters
    ----------
    module, query, key, value, attention_mask, dropout, dropout_mask, backend
        As `eager_attention_forward`.
    scaling : float, optional
        1 / sqrt(module.head_dim) unless given: not of the query's width.
    softcap : float, optional
        The scores saturate at ± softcap.

    Returns
    -------
    attn_output, attn_weights : array
        As `eager_attention_forward`.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `eager_attention_forward`.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 2, 4)), np.array([[[[0.0], [4.0]]]])
    >>> gemma2_eager_attention_forward(Module(head_dim=4), q, k, v, None, softcap=50.0)[0].ravel()
    array([2.])
    """
    name = "gemma2_eager_attention_forward"
    scaling = module.head_dim**-0.5 if scaling is None else scaling
    return _eager(name, module, query, key, value, attention_mask, scaling, dropout, dropout_mask, backend, softcap)


def gpt_oss_eager_attention_forward(
    module: Any,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    dropout_mask: Bools | None = None,
    backend: str = "numpy",
) -> tuple[Array, Array]:
    """Compute gpt-oss's eager attention: Llama's with a sink per head, module.sinks (H,).

    A query all of whose keys are hidden by finfo(dtype).min gets 0: the sink takes all the weight. The softmax is in
    the dtype of query, so float64 masks do not overflow; -inf gives 0, too.

    Parameters
    ----------
    module, query, key, value, attention_mask, scaling, dropout, dropout_mask, backend
        As `eager_attention_forward`.

    Returns
    -------
    attn_output, attn_weights : array
        As `eager_attention_forward`; the weights have no column for the sink, and sum to less than 1.

    Raises
    ------
    TypeError, ValueError, Unsupported
        As `eager_attention_forward`.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 2, 4)), np.array([[[[0.0], [3.0]]]])
    >>> o, p = gpt_oss_eager_attention_forward(Module(sinks=np.zeros(1)), q, k, v, None, 1.0)
    >>> np.round(o.ravel(), 12), np.round(3 * p.ravel(), 12)
    (array([1.]), array([1., 1.]))
    """
    name = "gpt_oss_eager_attention_forward"
    return _eager(
        name, module, query, key, value, attention_mask, scaling, dropout, dropout_mask, backend, sinks=module.sinks
    )


def repeat_kv(hidden_states: Array, n_rep: int) -> Array:
    """Return (B, Hk, T, D) with each head n_rep times in a row, (B, Hk · n_rep, T, D).

    Examples
    --------
    >>> repeat_kv(np.arange(2.0).reshape(1, 2, 1, 1), 2).ravel()
    array([0., 0., 1., 1.])
    """
    if hidden_states.ndim != 4:
        raise ValueError(f"repeat_kv: hidden_states has {hidden_states.ndim} axes; wanted (B, Hk, T, D)")
    check_count("repeat_kv", "n_rep", n_rep, least=0)
    return np.repeat(hidden_states, n_rep, axis=1)


def _eager(
    name: str,
    module: Any,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    scaling: float,
    dropout: float,
    dropout_mask: Bools | None,
    backend: str,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, Array]:
    """Return (output, weights); see `eager_attention_forward`."""
    q, drop = query, dropout if module.training else 0.0
    kept: Any = dropout_mask if drop > 0 else None
    _check(name, module, query, key, value, drop, dropout_mask)
    compute = compute_dtype(query.dtype)
    bias = None if attention_mask is None else np.asarray(attention_mask).astype(compute)
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sinks": sinks, "dropout_p": drop}
    options["dropout_mask"] = kept
    check_attention(query, key, value, bias=bias, operation=name, **options)
    undefined: Any = False
    if bias is not None and sinks is None and bias.shape[-1] > 0:
        with np.errstate(over="ignore"):
            top = bias.astype(np.float32).max(axis=-1, keepdims=True)
        undefined = np.isneginf(top)  # the softmax of nothing but -inf
        lost = top <= max(lowest(query.dtype), float(np.finfo(np.float32).min))  # next to which scores round away
        q = np.where(lost, np.zeros((), q.dtype), q)  # (B, H, Tq, D): the scores become 0
        bias = bias - np.where(lost & ~undefined, top, 0).astype(compute)  # softmax(s) = softmax(s - top)
    with np.errstate(all="ignore"):
        o, lse = attention(q, key, value, bias=bias, **options, return_lse=True, backend=backend)
        s = float(scaling) * (q.astype(compute) @ repeat_heads(key, q.shape[1]).astype(compute).swapaxes(-1, -2))
        s = s if softcap is None else softcap * np.tanh(s / softcap)
        p = np.exp((s if bias is None else s + bias) - lse[..., None])
        p = p if kept is None else np.where(kept, p / (1 - drop), 0)
    o, p = (np.where(undefined, np.nan, x).astype(query.dtype) for x in (o, p))
    return o.swapaxes(1, 2), p


def _check(name: str, module: Any, query: Any, key: Any, value: Any, drop: float, dropout_mask: Any) -> None:
    check_floats(name, 4, query=query, key=key, value=value)
    if query.ndim != 4:
        raise ValueError(f"{name}: query has {query.ndim} axes; wanted (B, H, Tq, D)")
    groups, H, Hk = module.num_key_value_groups, query.shape[1], key.shape[1]
    if Hk * groups != H:
        raise ValueError(f"{name}: {H} query heads do not match {Hk} key heads times num_key_value_groups = {groups}")
    if drop > 0 and dropout_mask is None:
        raise ValueError(f"{name}: dropout is {drop} in training, without a dropout_mask that says what to keep")
