r"""Random features for `refattn.performer_attention`: the projection, and exponents kept below their maximum.

Choromanski et al., 2020, arXiv:2009.14794, lemma 1 and section 2.4.
"""

import math

import numpy as np

from refattn.arrays import Array, check_count
from refattn.linear.common import heads_of, scale_of, share_heads
from refattn.linear.features import computed, joined, with_ones
from refattn.results import LinearState, PerformerState


def draw_projection(features: int, D: int, seed: int = 0, orthogonal: bool = True) -> Array:
    r"""Draw the projection of `performer_attention`: rows that are each distributed as N(0, I).

    Parameters
    ----------
    features : int
        M, the number of rows.
    D : int
        Width of queries and keys.
    seed : int
        The same seed draws the same numbers.
    orthogonal : bool
        Make each block of D rows orthogonal, which lowers the variance of the estimate; the lengths of rows stay those
        of Gaussian vectors.

    Returns
    -------
    array, (M, D)
        float64.

    Raises
    ------
    TypeError, ValueError
        For numbers below 1 and a negative seed.

    Examples
    --------
    >>> w = draw_projection(3, 3)
    >>> int((abs(w @ w.T) > 1e-12).sum())  # the diagonal
    3
    """
    for name, x, least in (("features", features, 1), ("D", D, 1), ("seed", seed, 0)):
        check_count("draw_projection", name, x, least=least)
    rng = np.random.default_rng(seed)
    blocks = -(-features // D)
    drawn = rng.normal(size=(blocks, D, D))
    rows = drawn.reshape(-1, D)[:features]
    if not orthogonal:
        return rows
    basis, r = np.linalg.qr(drawn)
    signs = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1)  # makes the bases uniformly distributed
    turned = (basis * signs[..., None, :]).swapaxes(-1, -2).reshape(-1, D)[:features]
    lengths = np.sqrt((rng.normal(size=(features, D)) ** 2).sum(axis=-1, keepdims=True))
    return lengths * turned


def prepared(
    q: Array, k: Array, v: Array, projection: Array, scale: float | None, state: PerformerState | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Return the exponents of q (..., Ho, T, M) and k (..., Hv, T, M), v with ones, and the first state and its m."""
    q_, k_, v_, W = computed(q, k, v, projection)
    root, Hv, Ho = math.sqrt(scale_of(q, scale)), heads_of(v), max(heads_of(q), heads_of(v))
    v_ = with_ones(v_)
    S = joined(None if state is None else LinearState(state.S, state.z), (*v.shape[:-2], len(W), v_.shape[-1]), W.dtype)
    m = np.full(v.shape[:-2], -np.inf, W.dtype) if state is None else state.m.astype(W.dtype)
    return share_heads(exponents(q_ * root, W), Ho), share_heads(exponents(k_ * root, W), Hv), v_, S, m


def exponents(x: Array, W: Array) -> Array:
    """Return W x - |x|² / 2, (..., T, M): the logarithms of the features, before their stabiliser."""
    return x @ W.T - (x * x).sum(axis=-1, keepdims=True) / 2


def exponents_vjp(dl: Array, x: Array, W: Array) -> tuple[Array, Array]:
    """Return the gradients of x and W."""
    dW = dl.swapaxes(-1, -2) @ x
    return dl @ W - dl.sum(axis=-1, keepdims=True) * x, dW.sum(axis=tuple(range(dW.ndim - 2)))


def below(a: Array, m: Array) -> Array:
    """Return a - m for a <= m; -inf where both are."""
    return np.where(np.isneginf(a), -np.inf, a - m)


def features_below(exponents: Array, m: Array) -> Array:
    """Return e^(exponents - m) / √M; m (..., T) has one number a token."""
    return np.exp(below(exponents, m[..., None])) / math.sqrt(exponents.shape[-1])


def weights_of(lq: Array, lk: Array, first: Array, causal: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Return what `performer_attention` weighs with.

    m (..., Hv, T), the stabiliser of the keys that each token sees; the weights (..., Ho, T, T); the logs of what is
    left of the first state at each token (..., Ho, T, 1); φ(q); and the features of k under the last m.
    """
    a, Ho = features_below(lq, lq.max(axis=-1)), heads_of(lq)
    m = np.maximum(np.maximum.accumulate(lk.max(axis=-1), axis=-1), first[..., None])
    if not causal:
        m = np.broadcast_to(m[..., -1:], m.shape)
    after = features_below(lk, np.broadcast_to(m[..., -1:], m.shape))
    through = share_heads(below(first[..., None], m)[..., None], Ho)
    if not causal:
        return m, np.zeros((*a.shape[:-1], 0), a.dtype), through, a, after
    b = share_heads(features_below(lk, m), Ho)
    seen = np.tri(m.shape[-1], dtype=bool)
    s = np.where(seen, share_heads(kept(m), Ho) * (a @ b.swapaxes(-1, -2)), 0)
    return m, s, through, a, after


def kept(m: Array) -> Array:
    """Return e^(m_j - m_i): what token i leaves of what token j <= i has added; 0 elsewhere."""
    seen = np.tri(m.shape[-1], dtype=bool)
    return np.where(seen, np.exp(below(m[..., None, :], m[..., :, None])), 0)
