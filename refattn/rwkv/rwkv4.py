r"""RWKV-4: a mean of the values seen, channel by channel, whose weights decay by a fixed rate and favour the present.

Peng et al., 2023, "RWKV: Reinventing RNNs for the Transformer Era", arXiv:2305.13048, equation 16 (the mean) and
appendix D (the recurrence with a running maximum).

| here | paper |
|---|---|
| w (E,), at least 0 | w, which the paper keeps at least 0 as well |
| u (E,) | u, the bonus of the present token |
| num, den, max | a' and b', the sums divided by e^p, and p |
| o | wkv |
"""

from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_shape, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import check_wide, decayed
from refattn.results import Recurrent, Rwkv4Gradients, Rwkv4State


def _check(operation: str, w: Any, u: Any, k: Any, v: Any, initial_state: Any = None) -> None:
    check_floats(operation, 2, k=k, v=v)
    check_shape(operation, "v", v, k.shape, "that of k, (..., T, E)")
    for name, x in (("w", w), ("u", u)):
        check_wide(operation, name, x, k)
        check_shape(operation, name, x, k.shape[-1:], "(E,)")
    if (w < 0).any():
        raise ValueError(f"{operation}: w holds {w.min()}; wanted rates of decay, at least 0")
    _check_state(operation, "initial_state", initial_state, k)


def _check_state(operation: str, name: str, state: Any, k: Any) -> None:
    if state is None:
        return
    if not isinstance(state, tuple) or len(state) != 3:
        raise TypeError(f"{operation}: {name} is {type(state).__name__}; wanted Rwkv4State(num, den, max)")
    for field, x in zip(Rwkv4State._fields, state, strict=True):
        check_wide(operation, f"{name}.{field}", x, k)
        check_shape(operation, f"{name}.{field}", x, (*k.shape[:-2], k.shape[-1]), "(..., E)")


def check_rwkv4(*arrays: Any, **given: Any) -> None:
    """Refuse what `rwkv4` cannot take."""
    _check("rwkv4", *arrays, **given)


def check_rwkv4_recurrent(*arrays: Any, **given: Any) -> None:
    """Refuse what `rwkv4_recurrent` cannot take."""
    _check("rwkv4_recurrent", *arrays, **given)


def check_rwkv4_vjp(do: Any, w: Any, u: Any, k: Any, v: Any, *, initial_state: Any = None, dstate: Any = None) -> None:
    """Refuse what `rwkv4_vjp` cannot take."""
    _check("rwkv4_vjp", w, u, k, v, initial_state)
    check_floats("rwkv4_vjp", 2, do=do, v=v)
    check_shape("rwkv4_vjp", "do", do, v.shape, "that of v, (..., T, E)")
    _check_state("rwkv4_vjp", "dstate", dstate, k)


def faded(s: Array, tokens: Any, w: Array) -> Array:
    """Return s - tokens · w, the exponents after so many tokens; w = inf takes them to -inf, be they NaN."""
    rate = np.where(tokens > 0, tokens * w, 0).astype(w.dtype)
    return np.where(np.isposinf(rate), -np.inf, s - rate).astype(w.dtype)


def pooled(s: Array, x: Array, z: Array) -> tuple[Array, Array, Array]:
    """Return Σ e^{s - top} x, Σ e^{s - top} z and top, the largest s; (..., n, E) to (..., E)."""
    top = s.max(axis=-2)
    s = s - np.where(np.isneginf(top), 0, top)[..., None, :]
    return decayed(s, x).sum(axis=-2), decayed(s, z).sum(axis=-2), top


def divided(num: Array, den: Array) -> Array:
    """Return num / den, and 0 where nothing has been seen."""
    return np.where(den == 0, 0, num / np.where(den == 0, 1, den))


def start_of(initial_state: Rwkv4State | None, k: Array) -> list[Array]:
    """Return num, den and max before the first token: 0, 0 and -inf unless given."""
    dtype, shape = compute_dtype(k.dtype), (*k.shape[:-2], k.shape[-1])
    if initial_state is None:
        return [np.zeros(shape, dtype), np.zeros(shape, dtype), np.full(shape, -np.inf, dtype)]
    return [x.astype(dtype) for x in initial_state]


@dispatched(check_rwkv4)
def rwkv4(
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    *,
    initial_state: Rwkv4State | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Average the values seen, for each channel by itself, all pairs of tokens in log space.

    .. math::
        o_i = \frac{\sum_{j < i} e^{k_j - (i - 1 - j) w} v_j + e^{u + k_i} v_i}
                   {\sum_{j < i} e^{k_j - (i - 1 - j) w} + e^{u + k_i}}

    Every row of exponents has its largest subtracted. The state comes in as one more token before the first: its
    exponent is max, its value num, and it counts den times.

    Parameters
    ----------
    w : array, (E,)
        Rates of decay, at least 0: a token later weighs e^{-w} times as much; inf forgets all but the last. In the
        dtype of k or that of computation.
    u : array, (E,)
        Added to the exponent of the present token, in the place of what it will decay by.
    k : array, (..., T, E)
        Exponents of the weights; -inf gives none.
    v : array, (..., T, E)
        Values.
    initial_state : Rwkv4State, optional
        num, den, max (..., E), of which num e^max and den e^max matter; 0, 0 and -inf unless given.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., T, E) in the dtype of k, 0 where all weights are 0; and the state after the last token, in that of
        computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Equal keys and no decay give the mean of what came:

    >>> zero, v = np.zeros(1), np.array([[1.0], [3.0], [8.0]])
    >>> o, state = rwkv4(zero, zero, np.zeros((3, 1)), v)
    >>> o[:, 0], state.num, state.den
    (array([1., 2., 4.]), array([12.]), array([3.]))
    """
    dtype, T = compute_dtype(k.dtype), k.shape[-2]
    w, u, k_, v_ = (x.astype(dtype) for x in (w, u, k, v))
    num, den, m = (x[..., None, :] for x in start_of(initial_state, k))
    s, x = np.concatenate([m, k_], axis=-2), np.concatenate([num, v_], axis=-2)  # (..., 1 + T, E)
    z = np.concatenate([den, np.ones_like(v_)], axis=-2)
    ago = np.arange(T, -1, -1, dtype=dtype)[:, None]
    o = np.empty_like(v_)
    for i in range(T):
        past = faded(s[..., : i + 1, :], ago[T - i :], w)  # k_j - (i - 1 - j) w
        present = (u + k_[..., i, :])[..., None, :]
        seen = np.s_[..., : i + 2, :]
        o[..., i, :] = divided(*pooled(np.concatenate([past, present], axis=-2), x[seen], z[seen])[:2])
    return Recurrent(o.astype(k.dtype), Rwkv4State(*pooled(faded(s, ago, w), x, z)))


@dispatched(check_rwkv4_recurrent)
def rwkv4_recurrent(
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    *,
    initial_state: Rwkv4State | None = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`rwkv4` a token at a time, with a running maximum.

    .. math::
        o_t = \frac{e^{m - p} num + e^{u + k_t - p} v_t}{e^{m - p} den + e^{u + k_t - p}}, \quad p = \max(m, u + k_t);
        \qquad m' = \max(m - w, k_t), \quad
        num' = e^{m - w - m'} num + e^{k_t - m'} v_t, \quad den' = e^{m - w - m'} den + e^{k_t - m'}

    Parameters
    ----------
    w, u, k, v, initial_state, backend
        As in `rwkv4`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `rwkv4`.

    Raises
    ------
    TypeError, ValueError
        As `rwkv4`.

    Examples
    --------
    The present token alone has the bonus, here one of log 3:

    >>> zero, v = np.zeros(1), np.array([[0.0], [8.0]])
    >>> rwkv4_recurrent(zero, np.log([3.0]), np.zeros((2, 1)), v).o[:, 0].round(9)
    array([0., 6.])
    """
    dtype = compute_dtype(k.dtype)
    w, u, k_, v_ = (x.astype(dtype) for x in (w, u, k, v))
    num, den, m = start_of(initial_state, k)
    o = np.empty_like(v_)
    for t in range(k.shape[-2]):
        now = k_[..., t, :]
        x, z = np.stack([num, v_[..., t, :]], axis=-2), np.stack([den, np.ones_like(den)], axis=-2)
        o[..., t, :] = divided(*pooled(np.stack([m, u + now], axis=-2), x, z)[:2])
        num, den, m = pooled(np.stack([faded(m, 1, w), now], axis=-2), x, z)
    return Recurrent(o.astype(k.dtype), Rwkv4State(num, den, m))


@dispatched(check_rwkv4_vjp)
def rwkv4_vjp(
    do: Array,
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    *,
    initial_state: Rwkv4State | None = None,
    dstate: Rwkv4State | None = None,
    backend: str = "numpy",
) -> Rwkv4Gradients:
    r"""Return the gradients of `rwkv4`: the recurrence backwards.

    o depends on num e^max and den e^max only, so no maximum inside is differentiated. The last state is three arrays,
    and its max does move: what is left of its gradient, dmax - num dnum - den dden, goes to the exponent that is the
    largest, to the older one where two are equal. It is 0 if dstate is what the next stretch of a sequence gives back.

    Parameters
    ----------
    do : array, (..., T, E)
        Gradient of o.
    w, u, k, v, initial_state, backend
        As in `rwkv4`.
    dstate : Rwkv4State, optional
        Gradients of num, den and max of the last state, zeros unless given.

    Returns
    -------
    Rwkv4Gradients
        dw, du, dk, dv, and dinitial_state if that was given. A rate of inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `rwkv4`, and for `do` or `dstate` of another shape.

    Examples
    --------
    The last of three equal tokens weighs a third:

    >>> zero, zeros = np.zeros(1), np.zeros((3, 1))
    >>> rwkv4_vjp(np.array([[0.0], [0.0], [3.0]]), zero, zero, zeros, zeros).dv[:, 0]
    array([1., 1., 1.])
    """
    dtype, T = compute_dtype(k.dtype), k.shape[-2]
    w_, u_, k_, v_, do_ = (x.astype(dtype) for x in (w, u, k, v, do))
    states = [start_of(initial_state, k)]  # before each token
    for t in range(T):
        within = k_[..., t : t + 1, :], v_[..., t : t + 1, :]
        states.append(list(rwkv4_recurrent(w_, u_, *within, initial_state=Rwkv4State(*states[t])).state))
    dk, dv, dw, du = np.empty_like(k_), np.empty_like(v_), np.zeros_like(w_), np.zeros_like(u_)
    num, den, m = states[T]
    dnum, dden, dm = (np.zeros_like(num),) * 3 if dstate is None else (x.astype(dtype) for x in dstate)
    dm = dm - num * dnum - den * dden
    every = tuple(range(k.ndim - 2))
    for t in reversed(range(T)):
        (num, den, m), m_next, now, val = states[t], states[t + 1][2], k_[..., t, :], v_[..., t, :]
        last = faded(m, 1, w_)
        top = np.where(np.isneginf(m_next), 0, m_next)
        new = decayed(now - top, np.ones_like(now))  # was: num' = e^{m - w - m'} num + e^{k - m'} v
        through = last >= now
        dw = dw - decayed(last - top, num * dnum + den * dden).sum(axis=every)
        dw = dw - np.where(through & ~np.isposinf(w_), dm, 0).sum(axis=every)
        dk[..., t, :] = new * (val * dnum + dden) + np.where(through, 0, dm)
        dv[..., t, :] = new * dnum
        dnum, dden, dm = decayed(last - top, dnum), decayed(last - top, dden), np.where(through, dm, 0)
        top = np.maximum(m, u_ + now)
        top = np.where(np.isneginf(top), 0, top)
        new, old = decayed(u_ + now - top, np.ones_like(now)), decayed(m - top, np.ones_like(now))
        n, d = decayed(m - top, num) + decayed(u_ + now - top, val), decayed(m - top, den) + new
        dn = divided(do_[..., t, :], d)  # was: o = n / d
        dd = -dn * divided(n, d)
        dk_bonus = new * (val * dn + dd)
        dk[..., t, :] += dk_bonus
        dv[..., t, :] += new * dn
        du = du + dk_bonus.sum(axis=every)
        dnum, dden = dnum + old * dn, dden + old * dd
    first = None
    if initial_state is not None:
        found = dnum, dden, dm + num * dnum + den * dden
        first = Rwkv4State(*(dx.astype(x.dtype) for dx, x in zip(found, initial_state, strict=True)))
    return Rwkv4Gradients(dw.astype(w.dtype), du.astype(u.dtype), dk.astype(k.dtype), dv.astype(v.dtype), first)
