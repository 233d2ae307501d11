"""What operations return besides (o, lse): named tuples that the reference and every backend share."""

from typing import Any, NamedTuple

from refattn.arrays import Array


class AttentionGradients(NamedTuple):
    """What `attention_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    dq: Array
    dk: Array
    dv: Array
    dbias: Array | None
    dsinks: Array | None


class MultiHeadGradients(NamedTuple):
    """What `multi_head_attention_vjp` returns; each has the shape and dtype of its input, None where not given."""

    dx: Array
    dw_q: Array
    dw_k: Array
    dw_v: Array
    dw_o: Array
    db_q: Array | None
    db_k: Array | None
    db_v: Array | None
    db_o: Array | None
    dcontext: Array | None
    dbias: Array | None
    dsinks: Array | None


class LatentGradients(NamedTuple):
    """What `mla_attention_vjp` returns; each has the shape and dtype of its input."""

    dq_nope: Array
    dq_rope: Array
    dc_kv: Array
    dk_rope: Array
    dw_uk: Array
    dw_uv: Array


class SelectedAttention(NamedTuple):
    """What attention to selected keys or chunks returns."""

    o: Array
    lse: Array
    indices: Array


class NsaAttention(NamedTuple):
    """What `nsa_attention` returns; lse (..., H, Tq, 3) has the branches in the order of the gates."""

    o: Array
    lse: Array
    indices: Array


class LshAttention(NamedTuple):
    """What `lsh_attention` returns."""

    o: Array
    lse: Array
    buckets: Array


class LongformerGradients(NamedTuple):
    """What `longformer_attention_vjp` returns; each has the shape and dtype of its input, None where not given."""

    dq: Array
    dk: Array
    dv: Array
    dq_global: Array | None
    dk_global: Array | None
    dv_global: Array | None
    dsinks: Array | None


class Recurrent(NamedTuple):
    """What the operations of the linear-time family return: o, and the state after the last token, in compute dtype."""

    o: Array
    state: Any
    """An array, or a named tuple of arrays where an operation carries several."""


class LinearState(NamedTuple):
    """The state of `linear_attention`: Σ φ(k) vᵀ, and Σ φ(k)."""

    S: Array
    z: Array


class RecurrentGradients(NamedTuple):
    """What the derivatives on q, k and v of the linear-time family return, each like its input; None where not given."""

    dq: Array
    dk: Array
    dv: Array
    dlog_decay: Array | None
    dbeta: Array | None
    dinitial_state: Array | None
