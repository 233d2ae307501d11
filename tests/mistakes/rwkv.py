"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

from functools import partial
from types import SimpleNamespace

import numpy as np

from refattn import dispatch
from refattn.arrays import compute_dtype
from refattn.results import Recurrent, Rwkv7Gradients, RwkvGradients
from refattn.testing import cases
from refattn.testing.conformance import judge
from tests.mistakes import rwkv4
from tests.mistakes.delta import dense, packed, short

FORWARD = [
    "scale forgotten",
    "scale of the width of keys",
    "state transposed",
    "state in the dtype of r",
    "state rounded to bfloat16 at each token",
    "o cut to bfloat16",
    "initial state ignored",
    "initial state of the first sequence",
    "last token dropped",
    "tokens beyond whole chunks of 16 dropped",
    "state carried over borders",
    "empty sequences forget their state",
    "borders one token late",
    "NaN counts as zero",
    "later values weighed by zero",
    "strides ignored",
    "decay forgotten",
    "decay at least e^-10",
    "decay in powers of 2",
    "decay e^(-e^g)",
    "gates in bfloat16",
    "one decay for all rows",
    "decay on the values",
    "write before the decay",
]
BONUS = [
    "bonus after the update",
    "bonus forgotten",
    "bonus on top of the token",
    "bonus is e^u",
    "bonus kept in the state",
    "token does not see itself",
    "present gate acts on its own read",
    "u of the first head for all",
]
ERASE = [
    "decay of the token before",
    "nothing erased",
    "erased with the other sign",
    "decay before the erase",
    "decay of what was erased, too",
    "write before the erase",
    "kappa and a swapped",
    "a forgotten",
    "a squared",
    "one a for all rows",
    "erased at k",
    "erased along k",
    "kappa made a unit vector",
    "k weighed by a",
    "v reduced by what is held",
    "read before the write",
    "read before the erase",
]
PAIRS = [
    "tokens of a short last chunk dropped",
    "state after a chunk not decayed",
    "state read as it was before the chunk",
    "written not decayed to the end of the chunk",
    "chunks forget",
    "decays as a ratio of products",
]
PAIRS_BONUS = ["present gate acts on its own read", "pairs with the diagonal", "decay of the first token in a pair"]
PAIRS_ERASE = [
    "diagonal in the triangular system",
    "two terms of the inverse",
    "triangle transposed",
    "present gate acts before the erase",
    "the state's share of what is erased forgotten",
    "what is erased stays until the next chunk",
    "what is erased comes back after the chunk",
]
BACKWARD = [
    "dr without scale",
    "dstate ignored",
    "dstate added before every sequence",
    "dinitial_state always returned",
    "gradients carried over borders",
    "gradients in the dtype of r",
    "gradient of the state not decayed",
    "dlog_decay without the decay",
    "dlog_decay of the state after the token",
    "dlog_decay of zeros",
    "NaN counts as zero",
    "dk without scale",
]
BACKWARD_BONUS = [
    "dr without the bonus",
    "dr of the state after the token",
    "dk without the bonus",
    "dk of tokens to come with the token itself",
    "dv without the bonus",
    "du of the last token",
    "du of the first sequence",
    "du averaged over tokens",
    "du in the dtype of r before it is added up",
    "what a token reads decays by its own gate",
]
BACKWARD_ERASE = [
    "dr of the state before the token",
    "dkappa_hat of what is removed only",
    "dkappa_hat of what is read only",
    "dkappa_hat without a",
    "da without kappa_hat",
    "da with the other sign",
    "da of the state after the token",
    "gradient of the state not erased",
    "erased gradient decays, too",
    "dk of the token to come",
]
GATES_ADDED = ["dlog_decay of the last token", "dlog_decay of the first sequence", "dlog_decay averaged over tokens"]


def outer(x, y):
    return x[..., :, None] * y[..., None, :]


def forget(g, S, wrong=""):
    """Return diag(e^g) S, (..., D, Dv)."""
    a = np.exp(g)[..., None]
    if wrong == "decay on the values" and a.shape[-2] > 1:
        a = np.resize(a[..., 0], (*a.shape[:-2], S.shape[-1]))[..., None, :]
    return a * S if wrong == "forgotten by multiplying" else np.where(a == 0, 0, a * S)


def gates(g, dtype, wrong):
    """Return the log-decays of a sequence, (..., T, D)."""
    g = g.astype(dtype)
    if wrong == "decay of the token before":
        return np.concatenate([0 * g[..., :1, :], g[..., :-1, :]], axis=-2)
    return {
        "decay forgotten": lambda: 0 * g,
        "decay at least e^-10": lambda: np.maximum(g, -10),
        "decay in powers of 2": lambda: g * dtype.type(np.log(2)),
        "decay e^(-e^g)": lambda: -np.exp(g),
        "gates in bfloat16": lambda: short(g),
        "one decay for all rows": lambda: np.broadcast_to(g.mean(axis=-1, keepdims=True), g.shape),
    }.get(wrong, lambda: g)()


def everywhere(g, r):
    """Return the gates of rwkv5 at each token."""
    return np.broadcast_to(g[:, None] if r.ndim > 2 else g, r.shape)


def bonus(u, r, dtype, wrong=""):
    """Return u (H, D) with an axis for tokens."""
    u = u.astype(dtype)
    u = np.broadcast_to(u[:1], u.shape) if wrong == "u of the first head for all" else u
    u = {"bonus forgotten": np.ones_like(u), "bonus on top of the token": 1 + u, "bonus is e^u": np.exp(u)}.get(
        wrong, u
    )
    u = 0 * u if wrong == "token does not see itself" else u
    return u[:, None] if r.ndim > 2 else u


def start(initial_state, r, v, dtype):
    shape = (*v.shape[:-2], r.shape[-1], v.shape[-1])
    return np.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)


def each_sequence(function, version, arrays, u, states, cu_seqlens, wrong):
    """Call a function for each packed sequence; u is the same for all."""
    arrays = [*arrays[:-1], everywhere(arrays[-1], arrays[-2])] if version == 5 else arrays

    def call(*own, **given):
        return function(*own, *u, **given, wrong=wrong)

    return packed(call, arrays, [-2] * len(arrays), states, cu_seqlens, wrong)


def forward(r, k, v, g, *others, version, scale=1.0, initial_state=None, cu_seqlens=None, form=None, wrong="", **chunk):
    """A token at a time, or in the `form` given."""
    g = everywhere(g, r) if version == 5 else g
    if cu_seqlens is not None:
        tokens, u = ((r, k, v, g, *others), ()) if version == 7 else ((r, k, v, g), others)
        one = partial(forward, version=max(version, 6), scale=scale, form=form, **chunk)
        parts = each_sequence(one, 6, tokens, u, {"initial_state": initial_state}, cu_seqlens, wrong)
        return Recurrent(np.concatenate([part.o for part in parts], axis=-2), np.stack([part.state for part in parts]))
    dtype, T = compute_dtype(r.dtype), r.shape[-2]
    if wrong == "strides ignored":
        r, k, v = (x if x.flags.c_contiguous or x.base is None else dense(x) for x in (r, k, v))
    S = start(None if wrong == "initial state ignored" else initial_state, r, v, dtype)
    scale = {"scale forgotten": 1.0, "scale of the width of keys": r.shape[-1] ** -0.5}.get(wrong, scale)
    r_, k_, v_, g_ = dtype.type(scale) * r.astype(dtype), k.astype(dtype), v.astype(dtype), gates(g, dtype, wrong)
    v_ = np.nan_to_num(v_) if wrong == "NaN counts as zero" else v_
    own = (
        [x.astype(dtype) for x in others]
        if version == 7
        else [np.broadcast_to(bonus(*others, r, dtype, wrong), r.shape)]
    )
    if form is not None:
        o, S = form(r_, k_, v_, g_, *own, S, wrong=wrong, **chunk)
        return Recurrent(o.astype(r.dtype), S)
    T = max(T - 1, 0) if wrong == "last token dropped" else T
    T = T // 16 * 16 if wrong == "tokens beyond whole chunks of 16 dropped" and T > 16 else T
    o, step = np.zeros(v.shape, dtype), erase if version == 7 else read_first
    for t in range(T):
        seen, S = step(S, *(x[..., t, :] for x in (k_, v_, g_, *own)), wrong)
        S = short(S) if wrong == "state rounded to bfloat16 at each token" else S
        o[..., t, :] = (r_[..., t, None, :] @ seen)[..., 0, :]
    if wrong == "later values weighed by zero":
        o = o + 0 * v_.sum(axis=-2, keepdims=True)
    if wrong == "state transposed":
        S = np.ascontiguousarray(S.swapaxes(-1, -2)).reshape(S.shape)
    o = short(o) if wrong == "o cut to bfloat16" else o
    return Recurrent(o.astype(r.dtype), S.astype(r.dtype) if wrong == "state in the dtype of r" else S)


def read_first(S, k, v, g, u, wrong):
    """Return what a token of rwkv5 or rwkv6 reads, and the state after it."""
    new, own, kept = outer(k, v), outer(u * k, v), forget(g, S, wrong)
    after = {"bonus kept in the state": kept + own}.get(wrong, kept + new)
    after = forget(g, S + new) if wrong == "write before the decay" else after
    seen = {"bonus after the update": after, "present gate acts on its own read": kept}.get(wrong, S)
    return seen + own, after


def erase(S, k, v, g, kappa, a, wrong):
    """Return what a token of rwkv7 reads, which is the state after it, and that state."""
    a = np.broadcast_to(a.mean(axis=-1, keepdims=True), a.shape) if wrong == "one a for all rows" else a
    if wrong == "kappa made a unit vector":
        kappa = kappa / np.sqrt((kappa**2).sum(axis=-1, keepdims=True))
    along = {"kappa and a swapped": kappa, "a forgotten": kappa, "a squared": a * a * kappa}.get(wrong, a * kappa)
    along = a * k if wrong == "erased along k" else along
    at = {"kappa and a swapped": a * kappa, "erased at k": k}.get(wrong, kappa)
    held = forget(g, S) if wrong == "decay before the erase" else S
    held = S + outer(k, v) if wrong == "write before the erase" else held
    c = (at[..., None, :] @ held)[..., 0, :]
    gone = outer(along, c) * {"nothing erased": 0, "erased with the other sign": -1}.get(wrong, 1)
    kept = forget(g, S - gone) if wrong == "decay of what was erased, too" else forget(g, S, wrong) - gone
    k = a * k if wrong == "k weighed by a" else k
    after = kept + outer(k, v - c if wrong == "v reduced by what is held" else v)
    after = forget(g, S + outer(k, v)) - gone if wrong == "write before the decay" else after
    return {"read before the write": kept, "read before the erase": S}.get(wrong, after), after


def decays(g, wrong):
    """Return e^G between tokens i and j, with and without the gate of i; before each token, and after."""
    n, G = g.shape[-2], np.cumsum(g, axis=-2)
    a = np.zeros((*g.shape[:-1], n, g.shape[-1]), g.dtype)
    for j in range(n):
        later = np.arange(n)[:, None] - j
        a[..., j, :] = np.where(later < 0, 0, np.exp(np.cumsum(np.where(later > 0, g, 0), axis=-2)))
    if wrong == "decays as a ratio of products":
        a = np.exp(G)[..., :, None, :] / np.exp(G)[..., None, :, :] * np.tri(n, dtype=g.dtype)[..., None]
    shorter = np.concatenate([0 * a[..., :1, :, :], a[..., :-1, :, :]], axis=-3)
    if wrong == "decay of the first token in a pair":
        shorter = (
            a / np.exp(g)[..., :, None, :] * np.exp(g)[..., None, :, :] * np.tri(n, k=-1, dtype=g.dtype)[..., None]
        )
    before = np.exp(np.concatenate([0 * G[..., :1, :], G[..., :-1, :]], axis=-2))
    if wrong == "state read as it was before the chunk":
        before = np.ones_like(before)
    after = np.ones_like(g) if wrong == "written not decayed to the end of the chunk" else a[..., -1, :, :]
    return a, shorter, before, after


def chunks_of(T, chunk, wrong):
    stop = T // chunk * chunk if wrong == "tokens of a short last chunk dropped" and chunk < T else T
    return [slice(first, min(first + chunk, stop)) for first in range(0, stop, chunk)]


def next_state(S, g, wrong):
    kept = S if wrong == "state after a chunk not decayed" else forget(g.sum(axis=-2), S, wrong)
    return 0 * S if wrong == "chunks forget" else kept


def weighed(s, x, seen, wrong):
    """Return s x, of what is seen only."""
    return (
        s @ x if wrong == "forgotten by multiplying" else np.where(seen, s[..., None] * x[..., None, :, :], 0).sum(-2)
    )


def pairs(r, k, v, g, u, S, chunk=64, wrong=""):
    """Chunks of rwkv5 and rwkv6."""
    o = np.zeros_like(v)
    for t in chunks_of(v.shape[-2], chunk, wrong):
        rc, kc, vc, gc, uc = (x[..., t, :] for x in (r, k, v, g, u))
        a, shorter, before, after = decays(gc, wrong)
        n = gc.shape[-2]
        if wrong == "present gate acts on its own read":
            shorter, before = a * np.tri(n, k=-1, dtype=a.dtype)[..., None], before * np.exp(gc)
        shorter = a if wrong == "pairs with the diagonal" else shorter
        s = np.einsum("...id,...ijd,...jd->...ij", rc, shorter, kc)
        o[..., t, :] = weighed(s, vc, (shorter != 0).any(axis=-1)[..., None], wrong)
        o[..., t, :] += (rc * uc * kc).sum(axis=-1, keepdims=True) * vc
        o[..., t, :] += weighed(before * rc, S, before[..., None] != 0, wrong)
        later = after.swapaxes(-1, -2)
        S = next_state(S, gc, wrong) + weighed(later * kc.swapaxes(-1, -2), vc, later[..., None] != 0, wrong)
    return o, S


def triangles(r, k, v, g, kappa, a, S, chunk=64, wrong=""):
    """Chunks of rwkv7, with an inverse for each."""
    o = np.zeros_like(v)
    for t in chunks_of(v.shape[-2], chunk, wrong):
        rc, kc, vc, gc, kap, b = (x[..., t, :] for x in (r, k, v, g, kappa, a * kappa))
        whole, shorter, before, after = decays(gc, wrong)
        n = gc.shape[-2]
        through = before * np.exp(gc)
        if wrong == "present gate acts before the erase":
            shorter, before = whole * np.tri(n, k=-1, dtype=v.dtype)[..., None], through
        A, written = (np.einsum("...id,...ijd,...jd->...ij", kap, shorter, x) for x in (b, kc))
        if wrong == "diagonal in the triangular system":
            A = A + np.eye(n, dtype=v.dtype) * (kap * b).sum(axis=-1)[..., None]
        A = A.swapaxes(-1, -2) if wrong == "triangle transposed" else A
        one = np.eye(n, dtype=v.dtype)
        right = written @ vc + (0 if "share" in wrong else (before * kap) @ S)
        c = (one - A if wrong == "two terms of the inverse" else np.linalg.inv(one + A)) @ right
        s_k, s_b = (np.einsum("...id,...ijd,...jd->...ij", rc, whole, x) for x in (kc, b))
        o[..., t, :] = s_k @ vc - (0 if "stays" in wrong else s_b @ c) + (through * rc) @ S
        gone = 0 if "comes back" in wrong else (after * b).swapaxes(-1, -2) @ c
        S = next_state(S, gc, wrong) + (after * kc).swapaxes(-1, -2) @ vc - gone
    return o, S


def backward(do, r, k, v, g, *others, version, scale=1.0, initial_state=None, cu_seqlens=None, dstate=None, wrong=""):
    """The recurrence backwards."""
    kinds = [x.dtype for x in (r, k, v, g, *others)] + [getattr(initial_state, "dtype", None)]
    dtype, step = compute_dtype(r.dtype), {5: backward_bonus, 6: backward_bonus, 7: backward_erase}[version]
    others = [x.astype(dtype) for x in others]
    arrays = [do, r, k, v, everywhere(g, r) if version == 5 else g, *(others if version == 7 else ())]
    u, states = () if version == 7 else others, {"initial_state": initial_state, "dstate": dstate}
    one = partial(step, scale=scale)
    if cu_seqlens is None:
        found = step(*arrays, *u, scale=scale, **states, wrong=wrong)
    else:
        parts = each_sequence(one, version if version != 5 else 6, arrays, u, states, cu_seqlens, wrong)
        if wrong == "dstate added before every sequence" and dstate is not None:
            parts[0] = (*parts[0][:-1], parts[0][-1] + dstate[0])
        joined = [np.concatenate(xs, axis=-2) for xs in list(zip(*parts, strict=True))[:-1]]
        if version < 7:
            du = [part[4] for part in parts]
            joined[4] = du[0] if wrong == "du of the first sequence" else np.sum(du, axis=0)
        found = (*joined, np.stack([part[-1] for part in parts]))
    *grads, first = found
    if version == 5:
        dg = grads[3]
        dg = dg[..., -1:, :] if wrong == "dlog_decay of the last token" else dg
        dg = dg / max(dg.shape[-2], 1) if wrong == "dlog_decay averaged over tokens" else dg
        dg = dg.sum(axis=-2).reshape(-1, *g.shape)
        grads[3] = dg[0] if wrong == "dlog_decay of the first sequence" else dg.sum(axis=0)
    kept = None if initial_state is None and wrong != "dinitial_state always returned" else first
    kinds = [r.dtype if wrong == "gradients in the dtype of r" else kind for kind in kinds]
    return (Rwkv7Gradients if version == 7 else RwkvGradients)(
        *(x if x is None else x.astype(kind or dtype) for x, kind in zip((*grads, kept), kinds, strict=True))
    )


def wide(do, r, k, v, g, scale, initial_state, dstate, wrong):
    dtype = compute_dtype(r.dtype)
    d, r, k, v, g = (x.astype(dtype) for x in (do, r, k, v, g))
    v = np.nan_to_num(v) if wrong == "NaN counts as zero" else v
    S, dS = start(initial_state, r, v, dtype), start(None if wrong == "dstate ignored" else dstate, r, v, dtype)
    return d * dtype.type(scale), r, k, v, g, S, dS


def pull_of(dS, S, after, g, wrong):
    """Return the gradient of the gates of a token."""
    a = np.ones_like(g) if wrong == "dlog_decay without the decay" else np.exp(g)
    x = (dS * (after if wrong == "dlog_decay of the state after the token" else S)).sum(axis=-1)
    x = 0 * x if wrong == "dlog_decay of zeros" else x
    return a * x if wrong == "forgotten by multiplying" else np.where(np.isneginf(g), 0, a * x)


def backward_bonus(do, r, k, v, g, u, *, scale, initial_state, dstate, wrong):
    """One sequence of rwkv6."""
    d, r, k, v, g, S, dS = wide(do, r, k, v, g, scale, initial_state, dstate, wrong)
    full, states = bonus(u, r, r.dtype), [S]
    for t in range(r.shape[-2]):
        states.append(forget(g[..., t, :], states[-1], wrong) + outer(k[..., t, :], v[..., t, :]))
    dr, dk, dv, dg = (np.zeros(x.shape, x.dtype) for x in (r, k, v, g))
    for t in reversed(range(r.shape[-2])):
        after = outer(r[..., t, :], d[..., t, :]) + dS if "with the token" in wrong else dS
        dk[..., t, :] = (after @ v[..., t, :, None])[..., 0]
        dv[..., t, :] = (k[..., t, None, :] @ dS)[..., 0, :]
        dg[..., t, :] = pull_of(dS, states[t], states[t + 1], g[..., t, :], wrong)
        seen = states[t + (wrong == "dr of the state after the token")]
        dr[..., t, :] = (seen @ d[..., t, :, None])[..., 0]
        read = outer(r[..., t, :], d[..., t, :])
        if wrong == "what a token reads decays by its own gate":
            dS = forget(g[..., t, :], dS + read)
        else:
            dS = (dS if "not decayed" in wrong else forget(g[..., t, :], dS, wrong)) + read
    own = (v * d).sum(axis=-1, keepdims=True)
    dr = dr + (0 if wrong == "dr without the bonus" else own * full * k)
    dr = dr / scale if wrong == "dr without scale" else dr
    dk = dk + (0 if wrong == "dk without the bonus" else own * full * r)
    dk = dk / scale if wrong == "dk without scale" else dk
    dv = dv + (0 if wrong == "dv without the bonus" else (r * full * k).sum(axis=-1, keepdims=True) * d)
    du = own * r * k
    du = short(du) if wrong == "du in the dtype of r before it is added up" else du
    du = du[..., -1:, :] if wrong == "du of the last token" else du
    du = du / max(du.shape[-2], 1) if wrong == "du averaged over tokens" else du
    du = du.sum(axis=-2).reshape(-1, *u.shape)
    return dr, dk, dv, dg, du[0] if wrong == "du of the first sequence" else du.sum(axis=0), dS


def backward_erase(do, r, k, v, g, kappa, a, *, scale, initial_state, dstate, wrong):
    """One sequence of rwkv7."""
    d, r, k, v, g, S, dS = wide(do, r, k, v, g, scale, initial_state, dstate, wrong)
    b, states = a * kappa, [S]
    for t in range(r.shape[-2]):
        states.append(erase(states[-1], *(x[..., t, :] for x in (k, v, g, kappa, a)), wrong)[1])
    dr, dk, dv, dg, dkappa, da = (np.zeros(x.shape, r.dtype) for x in (r, k, v, g, kappa, a))
    for t in reversed(range(r.shape[-2])):
        S, after, kap, bt = states[t], states[t + 1], kappa[..., t, :], b[..., t, :]
        seen = S if wrong == "dr of the state before the token" else after
        dr[..., t, :] = (seen @ d[..., t, :, None])[..., 0] / (scale if wrong == "dr without scale" else 1)
        earlier, dS = dS, dS + outer(r[..., t, :], d[..., t, :])
        dk[..., t, :] = ((earlier if wrong == "dk of the token to come" else dS) @ v[..., t, :, None])[..., 0]
        dk[..., t, :] /= scale if wrong == "dk without scale" else 1
        dv[..., t, :] = (k[..., t, None, :] @ dS)[..., 0, :]
        c = (kap[..., None, :] @ (after if wrong == "da of the state after the token" else S))[..., 0, :]
        db, dc = -(dS @ c[..., None])[..., 0], -(bt[..., None, :] @ dS)[..., 0, :]
        dg[..., t, :] = pull_of(dS, S, after, g[..., t, :], wrong)
        da[..., t, :] = db * {"da without kappa_hat": 1, "da with the other sign": -kap}.get(wrong, kap)
        removed, read = db * a[..., t, :], (S @ dc[..., None])[..., 0]
        removed = db if wrong == "dkappa_hat without a" else removed
        removed = 0 * removed if wrong == "dkappa_hat of what is read only" else removed
        dkappa[..., t, :] = removed + (0 if wrong == "dkappa_hat of what is removed only" else read)
        gone = 0 if wrong == "gradient of the state not erased" else outer(kap, dc)
        kept = dS if wrong == "gradient of the state not decayed" else forget(g[..., t, :], dS)
        dS = forget(g[..., t, :], dS + gone) if wrong == "erased gradient decays, too" else kept + gone
    return dr, dk, dv, dg, dkappa, da, dS


MADE_OF = {
    f"rwkv{version}{suffix}": partial(function, version=version)
    for version in (5, 6, 7)
    for suffix, function in {
        "": forward,
        "_recurrent": forward,
        "_chunked": partial(forward, form=triangles if version == 7 else pairs),
        "_vjp": backward,
    }.items()
} | rwkv4.MADE_OF
"""What the mutants are made from: right as long as nothing is wrong with it."""


def _mutants():
    found = {}
    for version in (5, 6, 7):
        forgets = ["forgotten by multiplying"] if version == 6 else []
        own = [*ERASE] if version == 7 else [*BONUS, *forgets, *(["decay of the token before"] if version == 6 else [])]
        few = ["last token dropped", "state carried over borders", "initial state ignored", "one decay for all rows"]
        mistakes = {
            "": [*FORWARD, *own],
            "_recurrent": [*few, *own],
            "_chunked": [
                *few[1:3],
                *PAIRS,
                *(PAIRS_ERASE if version == 7 else [*PAIRS_BONUS[: version - 3], *forgets]),
            ],
            "_vjp": [*BACKWARD, *(BACKWARD_ERASE if version == 7 else [*BACKWARD_BONUS, *forgets])],
        }
        mistakes["_vjp"] += GATES_ADDED if version == 5 else []
        for suffix, several in mistakes.items():
            for wrong in several:
                operation = f"rwkv{version}{suffix}"
                found[f"{operation}: {wrong}"] = (operation, partial(MADE_OF[operation], wrong=wrong))
    return found


MUTANTS = _mutants() | rwkv4.MUTANTS


def failures_of_what_is_right(operation):
    """Return the problems that what the mutants are made from fails."""
    dispatch.register("right", SimpleNamespace(**{operation: MADE_OF[operation]}))
    try:
        results = [judge(case, "right", {}) for case in cases(operation) if case.dtype == "float32"]
    finally:
        dispatch.unregister("right")
    return [result.check.split("/")[1] for result in results if result.verdict != "PASS"]
