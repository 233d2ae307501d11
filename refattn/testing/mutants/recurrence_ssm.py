"""State spaces and RWKV by chunks and token by token: more correct kernels that mutants are patches of.

ssd is gated linear attention with q = C, k = B, v = Δ x (Dao and Gu, 2024, arXiv:2405.21060, section 5); selective_scan
is a scan over pairs (a, b) with (a, b) ∘ (a', b') = (a' a, a' b + b') (Gu and Dao, 2023, arXiv:2312.00752); rwkv6 reads
before the update (Peng et al., 2024, arXiv:2404.05892), rwkv7 after it (Peng et al., 2025, arXiv:2503.14456).
"""

import itertools
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype

_WORKSPACES: dict[Any, Array] = {}


def _shared(x: Array, heads: int) -> Array:
    """Give each of `heads` heads the group that it reads."""
    return x[:, np.arange(heads) // (heads // x.shape[1])]


def _kept(a: Array, S: Array) -> Array:
    """Return a ⊙ S; 0 forgets whatever it is."""
    return np.where(a == 0, np.zeros((), S.dtype), a * S)


def _state(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a state of zeros, in memory that later calls use again."""
    buffer = _WORKSPACES.setdefault((shape, dtype), np.zeros(shape, dtype))
    buffer.fill(0)
    return buffer


def _begin(initial_state: Array | None, shape: tuple[int, ...], acc: Any) -> Array:
    return _state(shape, acc) if initial_state is None else initial_state.astype(acc)


def _softplus(x: Array) -> Array:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def _rows(x: Array, dtype: Any) -> Array:
    """Round an operand as the inputs are rounded."""
    return x.astype(dtype).astype(x.dtype)


def _ssd_chunk(dtype: Any, S: Array, C: Array, B: Array, x: Array, g: Array) -> tuple[Array, Array]:
    """Return y and the state after a chunk; row t weighs its tokens by C_t · B_j e^(g_j+1 + ... + g_t)."""
    y, since, start = np.zeros_like(x), np.zeros_like(g), np.zeros_like(g[:, :, 0])
    first, x = _rows(S, dtype), _rows(x, dtype)
    for t in range(x.shape[2]):
        start = start + g[:, :, t]
        since[:, :, :t] += g[:, :, t, None]
        weights = (B[:, :, : t + 1] @ C[:, :, t, :, None])[..., 0] * np.exp(since[:, :, : t + 1])
        y[:, :, t] = (_rows(weights, dtype)[..., None, :] @ x[:, :, : t + 1])[..., 0, :]
        y[:, :, t] += np.exp(start)[..., None] * (C[:, :, t, None] @ first)[..., 0, :]
    end = _rows(np.exp(since)[..., None] * B, dtype)
    return y, _kept(np.exp(start)[..., None, None], S) + end.swapaxes(-1, -2) @ x


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, np.inf),
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """H ← exp(ΔA) h + Δ B xᵀ; y = hᵀ C + D x, then the gate; state (B, H, N, P)."""
    dtype, acc = x.dtype, compute_dtype(x.dtype)
    (batch, H, T, P), N = x.shape, B.shape[-1]
    step = dt.astype(acc)
    if dt_bias is not None:
        step = step + dt_bias.astype(acc)[:, None]
    if dt_softplus:
        step = _softplus(step)
    step = np.clip(step, *(acc.type(limit) for limit in dt_limit))
    g, X = step * A.astype(acc)[:, None], x.astype(acc)
    into, keys, queries = step[..., None] * X, _shared(B, H).astype(acc), _shared(C, H).astype(acc)
    y = np.zeros((batch, H, T, P), acc)
    borders = [0, T] if cu_seqlens is None else [int(n) for n in cu_seqlens]
    states = []
    for n, (first, stop) in enumerate(itertools.pairwise(borders)):
        begin = initial_state if initial_state is None or cu_seqlens is None else initial_state[n : n + 1]
        S, t = _begin(begin, (batch, H, N, P), acc), first
        while chunk is not None and stop - t >= chunk:
            at = np.s_[:, :, t : t + chunk]
            y[at], S = _ssd_chunk(dtype, S, queries[at], keys[at], into[at], g[at])
            t += chunk
        for i in range(t, stop):
            S = _kept(np.exp(g[:, :, i])[..., None, None], S) + keys[:, :, i, :, None] * into[:, :, i, None, :]
            y[:, :, i] = (queries[:, :, i, None] @ S)[..., 0, :]
        states.append(S.copy())
    if D is not None:
        y = y + D.astype(acc)[:, None, None] * X
    if z is not None:
        y = y * _silu(z.astype(acc))
    return y.astype(dtype), np.concatenate(states)


def _scanned(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the products of a and the states from 0 after each token (axis 1), in log2(T) sweeps."""
    shift = 1
    while shift < a.shape[1]:
        b = np.concatenate([b[:, :shift], a[:, shift:] * b[:, :-shift] + b[:, shift:]], axis=1)
        a = np.concatenate([a[:, :shift], a[:, shift:] * a[:, :-shift]], axis=1)
        shift *= 2
    return a, b


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    initial_state: Array | None = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """H ← exp(ΔA) ⊙ h + (Δ u) Bᵀ; y = h C + D u, then the gate; state (B, E, N)."""
    dtype, acc = u.dtype, compute_dtype(u.dtype)
    (batch, T, E), N = u.shape, A.shape[1]
    step, U = delta.astype(acc), u.astype(acc)
    if delta_bias is not None:
        step = step + delta_bias.astype(acc)
    if delta_softplus:
        step = _softplus(step)
    keys, queries = B.astype(acc)[:, :, None], C.astype(acc)
    h, y = _begin(initial_state, (batch, E, N), acc), np.zeros((batch, T, E), acc)
    for t in range(0, T, chunk or 1):
        at = np.s_[:, t : t + (chunk or 1)]
        a = np.exp(step[at][..., None] * A.astype(acc))
        products, states = _scanned(a, (step * U)[at][..., None] * keys[at])
        states = states + products * h[:, None]
        y[at] = (states @ queries[at][..., None])[..., 0]
        h = states[:, -1]
    if D is not None:
        y = y + D.astype(acc) * U
    if z is not None:
        y = y * _silu(z.astype(acc))
    return y.astype(dtype), h.copy()


def rwkv6(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    u: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    chunk: int | None = 16,
) -> tuple[Array, Array]:
    """O = (S + diag(u) k vᵀ)ᵀ r; then S ← diag(w) S + k vᵀ; state (B, H, D, W)."""
    dtype, acc = r.dtype, compute_dtype(r.dtype)
    (batch, H, T, D), W = r.shape, v.shape[-1]
    R, K, V, g = (x.astype(acc) for x in (r, k, v, log_decay))
    own = (R * u.astype(acc)[:, None] * K).sum(axis=-1)
    S, o = _begin(initial_state, (batch, H, D, W), acc), np.zeros((batch, H, T, W), acc)
    for begin in range(0, T, chunk or 1):
        end = min(T, begin + (chunk or 1))
        since, start = np.zeros_like(g[:, :, begin:end]), np.zeros_like(g[:, :, 0])
        first = _rows(S, dtype) if end - begin > 1 else S
        for t in range(begin, end):
            n = t - begin
            near = np.exp(since[:, :, :n]) * K[:, :, begin:t]
            weights = _rows(near, dtype) @ R[:, :, t, :, None]
            o[:, :, t] = (_rows(weights, dtype).swapaxes(-1, -2) @ V[:, :, begin:t])[..., 0, :]
            o[:, :, t] += ((np.exp(start) * R[:, :, t])[..., None, :] @ first)[..., 0, :]
            o[:, :, t] += own[:, :, t, None] * V[:, :, t]
            start = start + g[:, :, t]
            since[:, :, :n] += g[:, :, t, None]
        last = np.exp(since) * K[:, :, begin:end]
        S = _kept(np.exp(start)[..., None], S) + (last.swapaxes(-1, -2) @ V[:, :, begin:end])
    return (scale * o).astype(dtype), S.copy()


def rwkv7(
    r: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    kappa_hat: Array,
    a: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
) -> tuple[Array, Array]:
    """S ← diag(w) S - (a ⊙ κ)(Sᵀ κ)ᵀ + k vᵀ; o = Sᵀ r; state (B, H, D, W)."""
    dtype, acc = r.dtype, compute_dtype(r.dtype)
    (batch, H, T, D), W = r.shape, v.shape[-1]
    R, K, V, kappa = (x.astype(acc) for x in (r, k, v, kappa_hat))
    S, o = _begin(initial_state, (batch, H, D, W), acc), np.zeros((batch, H, T, W), acc)
    w, erase = np.exp(log_decay.astype(acc)), a.astype(acc) * kappa
    for t in range(T):
        read = kappa[:, :, t, None] @ S
        S = _kept(w[:, :, t, :, None], S) - erase[:, :, t, :, None] * read
        S = S + K[:, :, t, :, None] * V[:, :, t, None, :]
        o[:, :, t] = (R[:, :, t, None] @ S)[..., 0, :]
    return (scale * o).astype(dtype), S.copy()
