"""Recurrences by chunks, as one writes them for fast memory: the correct kernels that the mutants are patches of.

Whole chunks are taken as matrices: the weights of the pairs inside, and the state that the chunk begins with (Yang et
al., 2023, arXiv:2312.06635; with the WY form of Yang et al., 2024, arXiv:2406.06484, for delta rules). What is left
over at the end goes token by token; `chunk=None` takes all tokens so. Decays between two tokens are e to a sum of
log-decays, never a quotient of products. 16-bit inputs are computed in float32; operands of the chunks' products are
rounded.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype

_WORKSPACES: dict[Any, Array] = {}
Step = Callable[..., tuple[Array, Array]]


def _shared(x: Array, heads: int) -> Array:
    """Give each of `heads` heads the head that it reads."""
    return x[:, np.arange(heads) // (heads // x.shape[1])]


def _kept(a: Array, S: Array) -> Array:
    """Return a ⊙ S; 0 forgets whatever it is."""
    return np.where(a == 0, np.zeros((), S.dtype), a * S)


def _rounded(x: Array, dtype: Any) -> Array:
    """Round an operand as the inputs are rounded."""
    return x.astype(dtype).astype(x.dtype)


def _state(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a state of zeros, in memory that later calls use again."""
    key = (name, shape, dtype)
    if key not in _WORKSPACES:
        _WORKSPACES[key] = np.zeros(shape, dtype)
    buffer = _WORKSPACES[key]
    buffer.fill(0)
    return buffer


def _begin(initial_state: Array | None, shape: tuple[int, ...], acc: Any) -> Array:
    return _state("state", shape, acc) if initial_state is None else initial_state.astype(acc)


def _tokens(token: Step, whole: Step, chunk: int | None, S: Array, *arrays: Array) -> tuple[Array, Array]:
    """Run over (B, V, T, ...) arrays: whole chunks first, then token by token."""
    T, done, parts = arrays[0].shape[2], 0, []
    if chunk is not None:
        while T - done >= chunk:
            o, S = whole(S, *(x[:, :, done : done + chunk] for x in arrays))
            parts.append(o)
            done += chunk
    for t in range(done, T):
        o, S = token(S, *(x[:, :, t] for x in arrays))
        parts.append(o[:, :, None])
    if not parts:
        B, V, _, r, _ = arrays[0].shape
        parts = [np.zeros((B, V, 0, r, S.shape[-1]), S.dtype)]
    return np.concatenate(parts, axis=2), S


def _gla_token(S: Array, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """S ← e^g ⊙ S + k vᵀ; o = q S for each of the queries that share it."""
    S = _kept(np.exp(g)[..., None], S)
    S = S + k[..., :, None] * v[..., None, :]
    return q @ S, S


def _gla_chunk(dtype: Any, S: Array, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """The same for a chunk: row i weighs its tokens j <= i by q_i · (e^(g_j+1 + ... + g_i) k_j)."""
    B, V, C, r, _ = q.shape
    since = np.zeros_like(g)
    o, start, first = np.zeros((B, V, C, r, v.shape[-1]), S.dtype), np.zeros_like(g[:, :, 0]), _rounded(S, dtype)
    for i in range(C):
        start = start + g[:, :, i]
        since[:, :, :i] += g[:, :, i, None]
        seen = np.s_[:, :, : i + 1]
        weights = q[:, :, i] @ _rounded(np.exp(since[seen]) * k[seen], dtype).swapaxes(-1, -2)
        o[:, :, i] = _rounded(weights, dtype) @ v[seen]
        o[:, :, i] += _rounded(np.exp(start)[:, :, None] * q[:, :, i], dtype) @ first
    S = _kept(np.exp(start)[..., None], S) + _rounded(np.exp(since) * k, dtype).swapaxes(-1, -2) @ v
    return o, S


def _delta_token(S: Array, q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, Array]:
    """S ← e^g ⊙ S; S ← S + k (β (v - Sᵀ k))ᵀ; o = q S."""
    S = _kept(np.exp(g)[..., None], S)
    u = beta[..., None] * (v - (k[..., None, :] @ S)[..., 0, :])
    S = S + k[..., :, None] * u[..., None, :]
    return q @ S, S


def _delta_chunk(dtype: Any, S: Array, q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, Array]:
    """The same for a chunk: u = T v - (T e^(g_1 + ... + g_i) k) S, with T the inverse of a triangular matrix."""
    B, V, C, r, _ = q.shape
    since = np.zeros_like(g)
    inverse, u = np.zeros((B, V, C, C), S.dtype), np.zeros_like(v)
    o, start, first = np.zeros((B, V, C, r, v.shape[-1]), S.dtype), np.zeros_like(g[:, :, 0]), _rounded(S, dtype)
    into = np.zeros_like(k)
    for i in range(C):
        start = start + g[:, :, i]
        since[:, :, :i] += g[:, :, i, None]
        seen = np.s_[:, :, : i + 1]
        near = np.exp(since[seen]) * k[seen]
        into[:, :, i] = np.exp(start) * k[:, :, i]
        overlap = k[:, :, i, None] @ near[:, :, :i].swapaxes(-1, -2)
        inverse[:, :, i, :i] = -(overlap @ inverse[:, :, :i, :i])[:, :, 0]
        inverse[:, :, i, i] = 1
        inverse[:, :, i] *= beta[:, :, i, None]
        row = _rounded(inverse[:, :, i, None, : i + 1], dtype)
        erased = _rounded(row @ _rounded(into[seen], dtype), dtype) @ first
        u[:, :, i] = _rounded((row @ v[seen] - erased)[:, :, 0], dtype)
        weights = q[:, :, i] @ _rounded(near, dtype).swapaxes(-1, -2)
        o[:, :, i] = _rounded(weights, dtype) @ u[seen]
        o[:, :, i] += _rounded(np.exp(start)[:, :, None] * q[:, :, i], dtype) @ first
    S = _kept(np.exp(start)[..., None], S) + _rounded(np.exp(since) * k, dtype).swapaxes(-1, -2) @ u
    return o, S


def _attend(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array | None,
    scale: float | None,
    initial_state: Array | None,
    cu_seqlens: Any,
    chunk: int | None,
) -> tuple[Array, Array]:
    """Return o (B, O, T, W) and the state (B, V, D, W); g is (B, V, T, D or 1)."""
    dtype, acc = q.dtype, compute_dtype(q.dtype)
    (B, V, T, W), D = v.shape, q.shape[-1]
    heads = max(q.shape[1], V)
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    q = (_shared(q, heads).astype(acc) * acc.type(scale)).reshape(B, V, heads // V, T, D).swapaxes(2, 3)
    arrays = [q, _shared(k, V).astype(acc), v.astype(acc), g.astype(acc), *([] if beta is None else [beta.astype(acc)])]
    token = _gla_token if beta is None else _delta_token
    block = _gla_chunk if beta is None else _delta_chunk

    def whole(S: Array, *parts: Array) -> tuple[Array, Array]:
        return block(dtype, S, *parts)

    if cu_seqlens is None:
        o, S = _tokens(token, whole, chunk, _begin(initial_state, (B, V, D, W), acc), *arrays)
    else:
        outputs, states = [], []
        for n, (first, stop) in enumerate(itertools.pairwise(cu_seqlens)):
            begin = None if initial_state is None else initial_state[n : n + 1]
            part = [x[:, :, first:stop] for x in arrays]
            o_n, S_n = _tokens(token, whole, chunk, _begin(begin, (1, V, D, W), acc), *part)
            outputs.append(o_n)
            states.append(S_n.copy())
        o, S = np.concatenate(outputs, axis=2), np.concatenate(states)
    return o.swapaxes(2, 3).reshape(B, heads, T, W).astype(dtype), S.copy()


def simple_gla(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """A decay for each head: log_decay (B, V, T)."""
    return _attend(q, k, v, log_decay[..., None], None, scale, initial_state, cu_seqlens, chunk)


def gated_linear_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """A decay for each key channel: log_decay (B, V, T, D)."""
    return _attend(q, k, v, log_decay, None, scale, initial_state, cu_seqlens, chunk)


def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """No decay; beta (B, V, T)."""
    return _attend(q, k, v, np.zeros_like(beta)[..., None], beta, scale, initial_state, cu_seqlens, chunk)


def gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """A decay for each head."""
    return _attend(q, k, v, log_decay[..., None], beta, scale, initial_state, cu_seqlens, chunk)


def kda(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    scale: float | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """A decay for each key channel, and a delta rule."""
    return _attend(q, k, v, log_decay, beta, scale, initial_state, cu_seqlens, chunk)
