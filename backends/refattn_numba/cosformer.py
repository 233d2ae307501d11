"""cosFormer on the CPU: `scan` without decay on relu features times the cosine and the sine of the position."""

import numpy as np

from refattn.arrays import Array, compute_dtype
from refattn.results import LinearState, Recurrent, RecurrentGradients
from refattn_numba.channels_features import divided, divided_vjp, joined, parted, summed, summed_vjp, with_ones


def cosformer_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    length: int,
    start: int = 0,
    causal: bool = True,
    initial_state: LinearState | None = None,
) -> Recurrent:
    """As `refattn.cosformer_attention`."""
    dtype = compute_dtype(q.dtype)
    phi_q, phi_k = (_features(x.astype(dtype, copy=False), start, length) for x in (q, k))
    v_ = with_ones(v.astype(dtype, copy=False))
    S = joined(initial_state, (*v.shape[:-2], phi_k.shape[-1], v_.shape[-1]), dtype)
    o, last = summed(phi_q, phi_k, v_, S, causal)
    return Recurrent(divided(o).astype(q.dtype, copy=False), parted(last))


def cosformer_attention_recurrent(
    q: Array, k: Array, v: Array, *, length: int, start: int = 0, initial_state: LinearState | None = None
) -> Recurrent:
    """As `refattn.cosformer_attention_recurrent`."""
    return cosformer_attention(q, k, v, length=length, start=start, initial_state=initial_state)


def cosformer_attention_vjp(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    length: int,
    start: int = 0,
    causal: bool = True,
    initial_state: LinearState | None = None,
    dstate: LinearState | None = None,
) -> RecurrentGradients:
    """As `refattn.cosformer_attention_vjp`."""
    dtype = compute_dtype(q.dtype)
    do_, q_, k_, v_ = (x.astype(dtype, copy=False) for x in (do, q, k, v))
    phi_q, phi_k, v_ = _features(q_, start, length), _features(k_, start, length), with_ones(v_)
    shape = (*v.shape[:-2], phi_k.shape[-1], v_.shape[-1])
    S, dlast = joined(initial_state, shape, dtype), joined(dstate, shape, dtype)
    do_ = divided_vjp(do_, summed(phi_q, phi_k, v_, S, causal)[0])
    dphi_q, dphi_k, dv, dS = summed_vjp(do_, phi_q, phi_k, v_, S, dlast, causal)
    dq, dk = (
        _features_vjp(dphi, x, start, length).astype(q.dtype, copy=False) for dphi, x in ((dphi_q, q_), (dphi_k, k_))
    )
    first = None
    if initial_state is not None:
        first = LinearState(*(x.astype(y.dtype) for x, y in zip(parted(dS), initial_state, strict=True)))
    return RecurrentGradients(dq, dk, dv[..., :-1].astype(v.dtype), None, None, first)


def _turns(x: Array, start: int, length: int) -> tuple[Array, Array]:
    """Return the cosine and the sine of each token's angle, (T, 1), made in float64."""
    angle = np.pi / (2 * length) * (start + np.arange(x.shape[-2]))[:, None]
    return np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)


def _features(x: Array, start: int, length: int) -> Array:
    return np.concatenate([np.maximum(x, 0) * turn for turn in _turns(x, start, length)], axis=-1)


def _features_vjp(dphi: Array, x: Array, start: int, length: int) -> Array:
    (cos, sin), D = _turns(x, start, length), x.shape[-1]
    return np.where(x > 0, cos * dphi[..., :D] + sin * dphi[..., D:], 0)
