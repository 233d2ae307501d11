"""Wrong implementations of `rwkv4`, name -> (operation, function); see test_mutants."""

from functools import partial

import numpy as np

from refattn.arrays import compute_dtype
from refattn.results import Recurrent, Rwkv4Gradients, Rwkv4State
from tests.mistakes.delta import dense, short

FORWARD = [
    "bonus forgotten",
    "bonus kept in the sums",
    "bonus on top of the token",
    "token does not see itself",
    "present token decays what it reads",
    "rate is e^w",
    "rate in powers of 2",
    "decay forgotten",
    "decay of the numerator only",
    "decay not in the maximum",
    "maximum not carried",
    "no maximum subtracted",
    "maximum without the bonus",
    "maximum of the first state taken as 0",
    "maximum of all tokens",
    "maximum of -1e38 before the first token",
    "something added to the denominator",
    "initial state ignored",
    "den of the initial state ignored",
    "initial state of the first sequence",
    "state in the dtype of k",
    "o cut to bfloat16",
    "sums in bfloat16",
    "last token dropped",
    "tokens beyond whole chunks of 16 dropped",
    "NaN counts as zero",
    "later values weighed by zero",
    "strides ignored",
    "one rate for all channels",
]
BACKWARD = [
    "dw of the last token",
    "dw without what the state loses",
    "dw without the numerator",
    "dw without the maximum",
    "dw of the first sequence",
    "du of the last token",
    "du averaged over tokens",
    "du without the denominator",
    "dk without the bonus",
    "dk of the bonus only",
    "dk without the denominator",
    "dk without the maximum",
    "dv of the bonus only",
    "dv without the bonus",
    "gradient of the state not decayed",
    "dstate ignored",
    "dstate.max ignored",
    "dstate.den ignored",
    "maximum not held against the sums",
    "dinitial_state.max of zeros",
    "dinitial_state.den with the other sign",
    "dinitial_state always returned",
    "gradients in the dtype of k",
    "NaN counts as zero",
]


def start(state, k, dtype):
    shape = (*k.shape[:-2], k.shape[-1])
    if state is None:
        return np.zeros(shape, dtype), np.zeros(shape, dtype), np.full(shape, -np.inf, dtype)
    return tuple(x.astype(dtype) for x in state)


def e(s, x):
    """Return e^s x; what weighs 0 is gone."""
    return np.where(np.isneginf(s), 0, np.exp(s) * x)


def less(s, rate):
    return np.where(np.isposinf(rate), -np.inf, s - rate)


def forward(w, u, k, v, *, initial_state=None, wrong=""):
    """A token at a time."""
    dtype, T, kind = compute_dtype(k.dtype), k.shape[-2], k.dtype
    if wrong == "strides ignored":
        k, v = (x if x.flags.c_contiguous or x.base is None else dense(x) for x in (k, v))
    num, den, m = start(None if wrong == "initial state ignored" else initial_state, k, dtype)
    if wrong == "den of the initial state ignored":
        den = 0 * den
    if wrong == "initial state of the first sequence" and num.ndim > 1:
        num, den, m = (np.broadcast_to(x[:1], x.shape) for x in (num, den, m))
    m = 0 * den if wrong == "maximum of the first state taken as 0" else m
    m = np.maximum(m, -1e38) if "-1e38" in wrong else m
    w, u, k, v = (x.astype(dtype) for x in (w, u, k, v))
    v = np.nan_to_num(v) if wrong == "NaN counts as zero" else v
    rate = {"rate is e^w": np.exp(w), "decay forgotten": 0 * w, "rate in powers of 2": w * dtype.type(np.log(2))}.get(
        wrong, w
    )
    rate = np.broadcast_to(rate[:1], rate.shape) if wrong == "one rate for all channels" else rate
    u = {"bonus forgotten": 0 * u, "bonus on top of the token": np.logaddexp(0, u).astype(dtype)}.get(wrong, u)
    whole, o = k.max(axis=-2, initial=-np.inf), np.zeros_like(v)
    T = max(T - 1, 0) if wrong == "last token dropped" else T
    T = T // 16 * 16 if wrong == "tokens beyond whole chunks of 16 dropped" and T > 16 else T
    for t in range(T):
        now, val = k[..., t, :], v[..., t, :]
        past = less(m, rate) if wrong == "present token decays what it reads" else m
        own = np.full_like(now, -np.inf) if wrong == "token does not see itself" else u + now
        p = {"maximum without the bonus": np.maximum(past, now), "no maximum subtracted": 0 * now}.get(wrong)
        p = np.maximum(past, own) if p is None else p
        p = np.where(np.isneginf(p), 0, p)
        n, z = e(past - p, num) + e(own - p, val), e(past - p, den) + e(own - p, 1)
        z = z + 1e-3 if wrong == "something added to the denominator" else z
        o[..., t, :] = np.where(z == 0, 0, n / np.where(z == 0, 1, z))
        last, now = less(m, rate), own if wrong == "bonus kept in the sums" else now
        top = np.maximum(last, now)
        top = {"decay not in the maximum": np.maximum(m, now), "no maximum subtracted": 0 * top}.get(wrong, top)
        top = {"maximum not carried": now, "maximum of all tokens": np.maximum(whole, last)}.get(wrong, top)
        num, den = (
            e(last - top, num) + e(now - top, val),
            e((m if "only" in wrong else last) - top, den) + e(now - top, 1),
        )
        num, den, m = (short(num), short(den), top) if wrong == "sums in bfloat16" else (num, den, top)
    if wrong == "later values weighed by zero":
        o = o + 0 * v.sum(axis=-2, keepdims=True)
    o = short(o) if wrong == "o cut to bfloat16" else o
    state = (x.astype(kind if wrong == "state in the dtype of k" else dtype) for x in (num, den, m))
    return Recurrent(o.astype(kind), Rwkv4State(*state))


def backward(do, w, u, k, v, *, initial_state=None, dstate=None, wrong=""):
    """The recurrence backwards: each maximum a constant, but for the last and the first."""
    dtype, T = compute_dtype(k.dtype), k.shape[-2]
    kinds, given = (
        [x.dtype for x in (w, u, k, v)],
        [getattr(x, "dtype", dtype) for x in initial_state or ()] or [dtype] * 3,
    )
    do, w, u, k, v = (x.astype(dtype) for x in (do, w, u, k, v))
    v = np.nan_to_num(v) if wrong == "NaN counts as zero" else v
    states = [start(initial_state, k, dtype)]
    for t in range(T):
        at = np.s_[..., t : t + 1, :]
        states.append(tuple(forward(w, u, k[at], v[at], initial_state=Rwkv4State(*states[-1])).state))
    num, den, m = states[-1]
    zeros = (np.zeros_like(num),) * 3
    dnum, dden, dm = zeros if dstate is None or wrong == "dstate ignored" else (x.astype(dtype) for x in dstate)
    dden = 0 * dden if wrong == "dstate.den ignored" else dden
    dm = 0 * dm if wrong == "dstate.max ignored" else dm
    dm = dm if wrong == "maximum not held against the sums" else dm - num * dnum - den * dden
    dk, dv, dw, du = np.zeros_like(k), np.zeros_like(v), np.zeros_like(k), np.zeros_like(k)  # at each token
    for t in reversed(range(T)):
        (num, den, m), top, now, val = states[t], states[t + 1][2], k[..., t, :], v[..., t, :]
        top = np.where(np.isneginf(top), 0, top)
        last = less(m, w)
        fade, new, older = e(last - top, 1), e(now - top, 1), last >= now
        lost = (0 if wrong == "dw without the numerator" else num * dnum) + den * dden
        dw[..., t, :] = -(0 if wrong == "dw without what the state loses" else e(last - top, lost))
        dw[..., t, :] -= 0 if wrong == "dw without the maximum" else np.where(older & ~np.isposinf(w), dm, 0)
        dk[..., t, :] = new * (val * dnum + (0 if wrong == "dk without the denominator" else dden))
        dk[..., t, :] += 0 if wrong == "dk without the maximum" else np.where(older, 0, dm)
        dv[..., t, :] = new * dnum
        fade = np.ones_like(fade) if wrong == "gradient of the state not decayed" else fade
        dnum, dden, dm = fade * dnum, fade * dden, np.where(older, dm, 0)
        if "of the bonus only" in wrong:
            dk[..., t, :], dv[..., t, :] = (
                (0 * dk[..., t, :], dv[..., t, :]) if "dk" in wrong else (dk[..., t, :], 0 * val)
            )
        own = u + now
        p = np.maximum(m, own)
        n, z = e(m - p, num) + e(own - p, val), e(m - p, den) + e(own - p, 1)
        dn = do[..., t, :] / z
        dz = -dn * n / z
        du[..., t, :] = e(own - p, val * dn + (0 if wrong == "du without the denominator" else dz))
        dk[..., t, :] += 0 if wrong == "dk without the bonus" else e(own - p, val * dn + dz)
        dv[..., t, :] += 0 if wrong == "dv without the bonus" else e(own - p, dn)
        dnum, dden = dnum + e(m - p, dn), dden + e(m - p, dz)
    every = tuple(range(k.ndim - 2))
    dw, du = (x[..., -1:, :] if wrong == f"{name} of the last token" else x for name, x in (("dw", dw), ("du", du)))
    du = du / max(T, 1) if wrong == "du averaged over tokens" else du
    dw = dw.reshape(-1, *dw.shape[-2:])[:1].sum(axis=(0, 1)) if "first" in wrong else dw.sum(axis=(*every, -2))
    found = (dw, du.sum(axis=(*every, -2)), dk, dv)
    if wrong == "gradients in the dtype of k":
        kinds = [kinds[2]] * 4
    num, den, _ = states[0]
    moved = 0 * dm if wrong == "dinitial_state.max of zeros" else dm + num * dnum + den * dden
    first = dnum, -dden if wrong == "dinitial_state.den with the other sign" else dden, moved
    first = Rwkv4State(*(x.astype(kind) for x, kind in zip(first, given, strict=True)))
    first = None if initial_state is None and wrong != "dinitial_state always returned" else first
    return Rwkv4Gradients(*(x.astype(kind) for x, kind in zip(found, kinds, strict=True)), first)


MADE_OF = {"rwkv4": forward, "rwkv4_recurrent": forward, "rwkv4_vjp": backward}
_FEW = [wrong for wrong in FORWARD if "maximum" in wrong or "bonus" in wrong or "decay" in wrong]
_LISTS = {"rwkv4": FORWARD, "rwkv4_recurrent": _FEW, "rwkv4_vjp": BACKWARD}
MUTANTS = {
    f"{operation}: {wrong}": (operation, partial(MADE_OF[operation], wrong=wrong))
    for operation, several in _LISTS.items()
    for wrong in several
}
