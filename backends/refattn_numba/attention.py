"""Softmax attention on the CPU: the flash kernels behind the plain names; see `refattn_numba.flash`."""

from typing import Any

from refattn.arrays import Array
from refattn.results import AttentionGradients
from refattn_numba.flash import attend, flash_attention, pull_back
from refattn_numba.layout import problem


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """As `refattn.attention`, in memory that does not grow with Tq · Tk."""
    o, lse = flash_attention(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    return (o, lse) if return_lse else o


def attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Array | None = None,
    dropout_p: float = 0.0,
    dlse: Array | None = None,
) -> AttentionGradients:
    """As `refattn.attention_vjp`: forward once more, then backward."""
    call = problem(
        q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_mask=dropout_mask,
        dropout_p=dropout_p,
    )  # fmt: skip
    ((o, lse),) = attend(call, q, k, v)  # o in the compute dtype: rounded, it would spoil delta = do·o
    return pull_back(call, do, q, k, v, o, lse, bias, sinks, dlse)
