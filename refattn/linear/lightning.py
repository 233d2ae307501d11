r"""Lightning attention: linear attention with a constant decay per head and layer, computed in blocks.

Qin et al., 2024, "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language
Models", arXiv:2401.04658, section 3 and algorithm 1; MiniMax, 2025, "MiniMax-01: Scaling Foundation Models with
Lightning Attention", arXiv:2501.08313, section 2.2. What it computes is `retention`; what is new is the order of work
(`lightning_attention_chunked`), and which head decays how fast in which layer (`lightning_log_decay`).

| here | paper |
|---|---|
| S (D, Dv) | kv_s, KV |
| e^{log_decay} | λ |
| before, after | Λ, and λ^B Λ^{-1} |
"""

from functools import partial
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, compute_dtype
from refattn.dense.alibi import alibi_slopes
from refattn.dense.common import select_matmul
from refattn.dispatch import dispatched
from refattn.linear.common import by_sequence, check_of, decayed, first_state, heads_of, scale_of, share_heads
from refattn.linear.retention import log_powers, retention, retention_recurrent, retention_vjp
from refattn.results import Recurrent, RecurrentGradients


def lightning_log_decay(heads: int, layer: int, layers: int) -> Array:
    r"""Return the log-decay of each head in one layer, float64 (H,): ALiBi's slopes, weaker from layer to layer.

    .. math:: g_h = -\text{slope}_h \left(1 - \frac{\text{layer}}{\text{layers} - 1} + 10^{-5}\right)

    As MiniMax-Text-01 has it. The last layer forgets almost nothing; a single layer counts as the first.

    Parameters
    ----------
    heads : int
        H.
    layer : int
        From 0.
    layers : int
        How many there are.

    Returns
    -------
    array, (H,)
        Negative numbers. The operations want them in the dtype of q or that of computation.

    Raises
    ------
    TypeError, ValueError
        If `heads` or `layers` is not a positive integer, or `layer` is none of the layers.

    Examples
    --------
    >>> lightning_log_decay(2, 5, 11).round(4)
    array([-0.0313, -0.002 ])
    """
    check_count("lightning_log_decay", "heads", heads)
    check_count("lightning_log_decay", "layers", layers)
    check_count("lightning_log_decay", "layer", layer, least=0)
    if layer >= layers:
        raise ValueError(f"lightning_log_decay: layer is {layer}; wanted less than layers = {layers}")
    return -alibi_slopes(heads) * (1 - layer / max(layers - 1, 1) + 1e-5)


@dispatched(check_of("lightning_attention", log_decay="H"))
def lightning_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Attend with weights that shrink by λ = e^{log_decay} for each token in between, all pairs at once.

    .. math::
        o_i = \text{scale} \sum_{j \le i} \lambda^{i-j} (q_i \cdot k_j)\, v_j

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries; a matrix is one head.
    k : array, (..., Hk, T, D)
        Keys.
    v : array, (..., Hv, T, Dv)
        Values; `refattn.linear.common` says which heads meet where H, Hk and Hv differ.
    log_decay : array, (Hv,)
        log λ <= 0 of each value head, in the dtype of q or that of computation, as from `lightning_log_decay`.
    scale : float, optional
        1/sqrt(D) unless given; MiniMax-01 has 1.
    initial_state : array, (..., Hv, D, Dv), optional
        The state before the first token, zeros unless given; (N, Hv, D, Dv) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the state after the last token, shaped as
        `initial_state`, in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> lightning_attention(ones, ones, ones, np.log([0.5])).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return retention(q, k, v, log_decay, **options)


@dispatched(check_of("lightning_attention_recurrent", log_decay="H"))
def lightning_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`lightning_attention` a token at a time.

    .. math:: S_t = \lambda S_{t-1} + k_t v_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `lightning_attention`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `lightning_attention`.

    Raises
    ------
    TypeError, ValueError
        As `lightning_attention`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> lightning_attention_recurrent(one, one, one, np.log([0.25]), initial_state=8 * one).o
    array([[3.]])
    """
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return retention_recurrent(q, k, v, log_decay, **options)


@dispatched(check_of("lightning_attention_chunked", log_decay="H"))
def lightning_attention_chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`lightning_attention` in blocks of B tokens: pairs within a block, the state for all that came before it.

    .. math::
        O_\text{intra} = (Q K^T \odot M)\, V, \qquad O_\text{inter} = \Lambda Q S, \qquad
        S \leftarrow \lambda^B S + (\lambda^B \Lambda^{-1} K)^T V

    with M_ij = λ^{i-j} for j <= i, and Λ = diag(λ, λ², ..., λ^B). The powers in λ^B Λ^{-1} are those of the tokens that
    are still to come in the block, B - 1 to 0; no negative power is taken.

    Parameters
    ----------
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `lightning_attention`.
    chunk : int
        B; the last block may have fewer tokens. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `lightning_attention`.

    Raises
    ------
    TypeError, ValueError
        As `lightning_attention`, and for a chunk below 1.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> lightning_attention_chunked(ones, ones, ones, np.log([0.5]), chunk=2).o[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    if cu_seqlens is not None:
        call = partial(lightning_attention_chunked, log_decay=log_decay, scale=scale, chunk=chunk)
        return by_sequence(call, cu_seqlens, [(q, -2), (k, -2), (v, -2)], {"initial_state": initial_state})
    dtype, Hv, Ho, T = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v)), q.shape[-2]
    S = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    g, v_ = log_decay.astype(dtype), v.astype(dtype)
    q_, k_ = share_heads(q.astype(dtype) * scale_of(q, scale), Ho), share_heads(k.astype(dtype), Hv)
    o = np.empty((*q_.shape[:-1], v.shape[-1]), dtype)
    for c in range(0, T, chunk):
        t, n = slice(c, c + chunk), np.arange(min(chunk, T - c))
        M = share_heads(log_powers(g, n[:, None] - n, v.ndim), Ho)  # (Ho, B, B)
        s = decayed(M, q_[..., t, :] @ share_heads(k_[..., t, :], Ho).swapaxes(-1, -2))
        intra = select_matmul(s, share_heads(v_[..., t, :], Ho), ~np.isneginf(M))  # (Q Kᵀ ⊙ M) V
        before = share_heads(log_powers(g, n[:, None] + 1, v.ndim), Ho)
        inter = decayed(before, q_[..., t, :] @ share_heads(S, Ho))  # Λ Q S
        o[..., t, :] = intra + inter
        after = log_powers(g, n[None, ::-1], v.ndim)
        new = select_matmul(decayed(after, k_[..., t, :].swapaxes(-1, -2)), v_[..., t, :], ~np.isneginf(after))
        S = decayed(log_powers(g, np.full((1, 1), len(n)), v.ndim), S) + new  # λ^B S + (λ^B Λ⁻¹ K)ᵀ V
    return Recurrent(o.astype(q.dtype), S)


@dispatched(check_of("lightning_attention_vjp", log_decay="H"))
def lightning_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> RecurrentGradients:
    r"""Return the gradients of `lightning_attention`, which are those of `retention`.

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, k, v, log_decay, scale, initial_state, cu_seqlens, backend
        As in `lightning_attention`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    RecurrentGradients
        As of `retention_vjp`.

    Raises
    ------
    TypeError, ValueError
        As `lightning_attention`, and for `do` or `dstate` of another shape.

    Examples
    --------
    >>> ones = np.ones((3, 1))
    >>> lightning_attention_vjp(ones, ones, ones, ones, np.log([0.5])).dk[:, 0]
    array([1.75, 1.5 , 1.  ])
    """
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return retention_vjp(do, q, k, v, log_decay, **options, dstate=dstate)
