"""Linear attention on the CPU: `scan` without decay on features of queries and keys, then the division."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from refattn.arrays import Array, compute_dtype
from refattn.results import LinearState, Recurrent
from refattn_numba.channels_features import heads_of, shared
from refattn_numba.layout import flat
from refattn_numba.scan import scanned
from refattn_numba.scan_layout import K_ROW, O_ROW, Q_ROW, STATE, TOKENS, layout
from refattn_numba.scan_simd import dot, exp_row
from refattn_numba.simd import fetch_add, lanes_of
from refattn_numba.threads import run

RUN = 4096
"""Numbers that are mapped as one item of work."""

FeatureMap = Callable[[Array], Array]


def elu_plus_one(x: Array) -> Array:
    """Return x + 1 where x > 0, else e^x."""
    y = np.empty(x.size, x.dtype)
    run(_elu_plus_one, -(-x.size // RUN), 20.0 * x.size, RUN, x.dtype, flat(x, x.dtype), y)
    return y.reshape(x.shape)


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: FeatureMap = elu_plus_one,
    causal: bool = True,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.linear_attention`."""
    dtype = compute_dtype(q.dtype)
    if getattr(feature_map, "name", None) == "elu_plus_one":
        feature_map = elu_plus_one
    q_, k_ = (np.asarray(feature_map(x.astype(dtype, copy=False)), dtype) for x in (q, k))
    S, z = (None, None) if initial_state is None else initial_state
    v_ = v.astype(dtype, copy=False)
    if not causal:
        o, state = _all_to_all(q_, k_, v_, S, z, normalize, cu_seqlens)
        return Recurrent(o.astype(q.dtype, copy=False), state)
    found = scanned(q_, k_, v_, scale=1.0, initial_state=S, cu_seqlens=cu_seqlens)
    call = layout(q_, k_, v, cu_seqlens)
    shape = call.state_shape[:-1]
    arrays = [flat(x, dtype) for x in (q_, k_, np.zeros(shape) if z is None else z)]
    o, sums, work = found.o.reshape(-1), np.empty(math.prod(shape), dtype), call.tokens * (2.0 * call.D + call.Dv)
    run(
        _normalize, len(call.heads), work, call.D, dtype, call.heads, *arrays, o, sums, normalize, call.readers, call.Dv
    )
    state = LinearState(found.state, sums.reshape(shape))
    return Recurrent(found.o.astype(q.dtype, copy=False), state)


def _all_to_all(
    q: Array, k: Array, v: Array, S: Array | None, z: Array | None, normalize: bool, cu_seqlens: Any
) -> tuple[Array, LinearState]:
    """Return o and the state where every query reads the state after the last token: plain products."""
    if cu_seqlens is not None:
        parts = []
        for n, (first, stop) in enumerate(itertools.pairwise(int(border) for border in cu_seqlens)):
            own = [x[..., first:stop, :] for x in (q, k, v)]
            parts.append(_all_to_all(*own, None if S is None else S[n], None if z is None else z[n], normalize, None))
        states = (np.stack(x) for x in zip(*(state for _, state in parts), strict=True))
        return np.concatenate([o for o, _ in parts], axis=-2), LinearState(*states)
    k = shared(k, heads_of(v))
    state = LinearState(k.swapaxes(-1, -2) @ v, k.sum(axis=-2))
    if S is not None and z is not None:
        state = LinearState(S.astype(v.dtype, copy=False) + state.S, z.astype(v.dtype, copy=False) + state.z)
    Ho = max(heads_of(q), heads_of(v))
    q = shared(q, Ho)
    o = q @ shared(state.S, Ho)
    if normalize:
        total = (q * shared(state.z[..., None, :], Ho)).sum(axis=-1, keepdims=True)
        o = np.where(total == 0, 0, o / np.where(total == 0, 1, total))
    return o, state


def linear_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: FeatureMap = elu_plus_one,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.linear_attention_recurrent`."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return linear_attention(q, k, v, feature_map=feature_map, normalize=normalize, **options)


def linear_attention_chunked(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: FeatureMap = elu_plus_one,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
) -> Recurrent:
    """As `refattn.linear_attention_chunked`; there are no chunks here."""
    options: dict[str, Any] = {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
    return linear_attention(q, k, v, feature_map=feature_map, normalize=normalize, **options)


@njit(nogil=True, cache=True, error_model="numpy")
def _elu_plus_one(counter, items, space, x, y):
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        at = item * RUN
        size = min(RUN, x.size - at)
        whole = -(-size // lanes_of(y)) * lanes_of(y)
        space[:size] = x[at : at + size]
        space[size:whole] = 0
        exp_row(space, whole)
        for n in range(size):
            y[at + n] = x[at + n] + 1 if x[at + n] > 0 else space[n]


@njit(nogil=True, cache=True, error_model="numpy")
def _normalize(counter, items, space, heads, q, k, start, o, sums, divide, readers, Dv):
    """Add up the keys, and divide o by what its query makes of the sum; where that is 0, o is 0."""
    D = space.size
    while True:
        head = fetch_add(counter)
        if head >= items:
            break
        z_at = heads[head, STATE] * D
        space[:] = start[z_at : z_at + D]
        for t in range(heads[head, TOKENS]):
            q_at, k_at, o_at = (
                (heads[head, Q_ROW] + t) * D,
                (heads[head, K_ROW] + t) * D,
                (heads[head, O_ROW] + t) * Dv,
            )
            for d in range(D):
                space[d] += k[k_at + d]
            if divide:
                total = dot(q, q_at, space, 0, D)
                for n in range(Dv):
                    o[o_at + n] = o[o_at + n] / total if total != 0 else space.dtype.type(0)
        if head % readers == readers - 1:
            sums[z_at : z_at + D] = space
