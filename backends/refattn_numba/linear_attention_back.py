"""The derivative of linear attention on the CPU: `scan_back` on features, and back through the division.

With a 1 appended to each value, the state has one column more, the sum of keys: so the division's derivative is that of
one more value.
"""

import itertools
from typing import Any

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import LinearState, RecurrentGradients
from refattn_numba.channels_features import divided_vjp, summed, summed_vjp, with_ones
from refattn_numba.linear_attention import FeatureMap, elu_plus_one
from refattn_numba.scan import scanned
from refattn_numba.scan_back import heads_added, scanned_back


def linear_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: FeatureMap = elu_plus_one,
    causal: bool = True,
    normalize: bool = True,
    initial_state: LinearState | None = None,
    cu_seqlens: Any = None,
    dstate: LinearState | None = None,
) -> RecurrentGradients:
    """As `refattn.linear_attention_vjp`."""
    dtype = compute_dtype(q.dtype)
    do_, wide_q, wide_k, v_ = (x.astype(dtype, copy=False) for x in (do, q, k, v))
    known = feature_map is elu_plus_one or getattr(feature_map, "name", None) == "elu_plus_one"
    phi = elu_plus_one if known else feature_map
    slope: Any = _elu_plus_one_vjp if known else getattr(feature_map, "vjp", None)
    q_, k_ = (np.asarray(phi(x), dtype) for x in (wide_q, wide_k))
    S, dS = (None if x is None else x.S for x in (initial_state, dstate))
    if normalize:
        v_ = with_ones(v_)
        S, dS = _joined(initial_state, dtype), _joined(dstate, dtype)
    options: dict[str, Any] = {"initial_state": S, "cu_seqlens": cu_seqlens}
    if normalize:
        o = scanned(q_, k_, v_, scale=1.0, **options).o if causal else _all_to_all(q_, k_, v_, S, cu_seqlens)
        do_ = divided_vjp(do_, o)
    if causal:
        found = scanned_back(do_, q_, k_, v_, scale=1.0, **options, dstate=dS)
        dq, dk, dv, first = heads_added(found.dq, q_), heads_added(found.dk, k_), found.dv, found.dstate
    else:
        dq, dk, dv, first = _all_to_all_back(do_, q_, k_, v_, S, dS, cu_seqlens)
    if normalize:
        dv, first = dv[..., :-1], LinearState(first[..., :-1], first[..., -1])
    else:
        dz = np.zeros(first.shape[:-1], dtype) if dstate is None else dstate.z.astype(dtype)
        dk, first = dk + heads_added(_of_tokens(dz, k.shape[-2], cu_seqlens), k_), LinearState(first, dz)
    if initial_state is not None:
        first = LinearState(*(dx.astype(x.dtype, copy=False) for dx, x in zip(first, initial_state, strict=True)))
    return RecurrentGradients(
        slope(dq, wide_q).astype(q.dtype, copy=False),
        slope(dk, wide_k).astype(k.dtype, copy=False),
        dv.astype(v.dtype, copy=False),
        None,
        None,
        None if initial_state is None else first,
    )


def _elu_plus_one_vjp(dphi: Array, x: Array) -> Array:
    return np.where(x > 0, dphi, dphi * np.exp(np.minimum(x, 0)))


def _joined(state: LinearState | None, dtype: Any) -> Array | None:
    """Return S and z as one array, (..., Hv, M, Dv + 1)."""
    return None if state is None else np.concatenate([state.S, state.z[..., None]], axis=-1).astype(dtype, copy=False)


def _of_tokens(dz: Array, T: int, cu_seqlens: Any) -> Array:
    """Give each token what the sum of keys of its sequence gets: (..., Hv, M) to (..., Hv, T, M)."""
    if cu_seqlens is None:
        return np.broadcast_to(dz[..., None, :], (*dz.shape[:-1], T, dz.shape[-1]))
    each = np.repeat(dz, np.diff(np.asarray(cu_seqlens).astype(np.int64)), axis=0)  # (T, [Hv,] M)
    return each if each.ndim < 3 else each.swapaxes(0, 1)


def _all_to_all(q: Array, k: Array, v: Array, S: Array | None, cu_seqlens: Any) -> Array:
    """Return what all queries read in the state after the last token."""
    if cu_seqlens is not None:
        parts = _sequences(cu_seqlens, (q, k, v), (S,))
        return np.concatenate([_all_to_all(*own, None) for own in parts], axis=-2)
    return summed(q, k, v, _or_zero(S, v), causal=False)[0]


def _all_to_all_back(
    do: Array, q: Array, k: Array, v: Array, S: Array | None, dS: Array | None, cu_seqlens: Any
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of q, k, v and S of `_all_to_all`."""
    if cu_seqlens is not None:
        parts = [_all_to_all_back(*own, None) for own in _sequences(cu_seqlens, (do, q, k, v), (S, dS))]
        dq, dk, dv = (np.concatenate([part[n] for part in parts], axis=-2) for n in range(3))
        return dq, dk, dv, np.stack([part[3] for part in parts])
    return summed_vjp(do, q, k, v, _or_zero(S, v), _or_zero(dS, v), causal=False)


def _or_zero(S: Array | None, v: Array) -> Array:
    """Return a state to add to; a zero that broadcasts for None."""
    return np.zeros((), v.dtype) if S is None else S


def _sequences(cu_seqlens: Any, tokens: tuple[Array, ...], states: tuple[Array | None, ...]) -> list[list[Any]]:
    """Return the arguments of each packed sequence."""
    borders = itertools.pairwise(int(border) for border in cu_seqlens)
    return [
        [*(x[..., first:stop, :] for x in tokens), *(None if x is None else x[n] for x in states)]
        for n, (first, stop) in enumerate(borders)
    ]
