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
    """The state of `linear_attention` and `cosformer_attention`: Σ φ(k) vᵀ, and Σ φ(k)."""

    S: Array
    z: Array


class PerformerState(NamedTuple):
    """The state of `performer_attention`: that of linear attention divided by e^m, m the largest exponent so far."""

    S: Array
    z: Array
    m: Array


class PerformerGradients(NamedTuple):
    """What `performer_attention_vjp` returns; each has the shape and dtype of its input, None where not given."""

    dq: Array
    dk: Array
    dv: Array
    dprojection: Array
    dinitial_state: PerformerState | None


class LinformerGradients(NamedTuple):
    """What `linformer_attention_vjp` returns; each has the shape and dtype of its input."""

    dq: Array
    dk: Array
    dv: Array
    de: Array
    df: Array


class NystromGradients(NamedTuple):
    """What `nystrom_attention_vjp` returns; each has the shape and dtype of its input."""

    dq: Array
    dk: Array
    dv: Array


class RecurrentGradients(NamedTuple):
    """What the derivatives on q, k and v of the linear-time family return, each like its input, or None."""

    dq: Array
    dk: Array
    dv: Array
    dlog_decay: Array | None
    dbeta: Array | None
    dinitial_state: Any
    """An array, or a named tuple like the state."""


class Hgrn2Gradients(NamedTuple):
    """What `hgrn2_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    dq: Array
    dlog_decay: Array
    dv: Array
    dinitial_state: Array | None


class Rwkv4State(NamedTuple):
    """The state of `rwkv4`: sums of e^k v and of e^k, both divided by e^max, and the largest exponent so far."""

    num: Array
    den: Array
    max: Array


class Rwkv4Gradients(NamedTuple):
    """What `rwkv4_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    dw: Array
    du: Array
    dk: Array
    dv: Array
    dinitial_state: Rwkv4State | None


class RwkvGradients(NamedTuple):
    """What `rwkv5_vjp` and `rwkv6_vjp` return; each has the shape and dtype of its input, None where not given."""

    dr: Array
    dk: Array
    dv: Array
    dlog_decay: Array
    du: Array
    dinitial_state: Array | None


class Rwkv7Gradients(NamedTuple):
    """What `rwkv7_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    dr: Array
    dk: Array
    dv: Array
    dlog_decay: Array
    dkappa_hat: Array
    da: Array
    dinitial_state: Array | None


class S4dGradients(NamedTuple):
    """What `s4d_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    du: Array
    ddelta: Array
    dA_real: Array
    dA_imag: Array
    dC_real: Array
    dC_imag: Array
    dD: Array | None
    dinitial_state: Array | None


class SelectiveScanGradients(NamedTuple):
    """What `selective_scan_vjp` returns; each has the shape and dtype of its input, None where not given."""

    du: Array
    ddelta: Array
    dA: Array
    dB: Array
    dC: Array
    dD: Array | None
    dz: Array | None
    ddelta_bias: Array | None
    dinitial_state: Array | None


class SsdGradients(NamedTuple):
    """What `ssd_vjp` returns; each has the shape and dtype of its input, None where that was not given."""

    dx: Array
    ddt: Array
    dA: Array
    dB: Array
    dC: Array
    dD: Array | None
    dz: Array | None
    ddt_bias: Array | None
    dinitial_state: Array | None


class ConvGradients(NamedTuple):
    """What `causal_conv1d_vjp` returns; each has the shape and dtype of its input, None where not given."""

    dx: Array
    dweight: Array
    dbias: Array | None
    dinitial_state: Array | None
