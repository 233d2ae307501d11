"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants.

The functions of `RIGHT` are right as long as `wrong` is empty, and wrong in the one way that it names.
"""

import itertools
import math
from functools import partial

import numpy as np

import refattn
from refattn.arrays import compute_dtype
from refattn.linear.common import heads_of, outer, share_heads
from refattn.linear.nystrom import _kernels, _means, _pseudo_inverses, _pseudo_inverses_vjp, _softmax_vjp
from refattn.results import LinearState, LinformerGradients, NystromGradients, PerformerState, Recurrent

EVERY = [
    "own token not seen",
    "next token seen",
    "last token dropped",
    "hidden NaN leaks",
    "initial state ignored",
    "initial normaliser ignored",
    "not divided",
    "small number in the denominator",
    "heads taken round robin",
    "state in the dtype of q",
    "state rounded at each token",
    "queries without features",
    "keys without features",
]
LINEAR = [
    *("always divided", "0 / 0 is NaN", "always causal", "never causal", "always elu + 1"),
    *("packed sequences run into each other", "initial state of the first sequence for all"),
]
COSFORMER = [
    *("0 / 0 is NaN", "always causal", "never causal", "start ignored", "cosines only", "sines first in the state"),
    *("length one more", "whole turns", "no relu", "angles of float16"),
]
PERFORMER = [
    *("always causal", "never causal", "sums not rescaled", "initial m ignored", "m ignores the initial one"),
    *("norm of keys forgotten", "scale instead of its root", "scale ignored"),
    *("last feature dropped", "later keys in the stabiliser", "features not divided by the root of M", "m not kept"),
]
CHUNKED = ["tail dropped", "chunks forget the ones before", "state of a chunk for all its tokens"]


def features_of(kind, q, k, given, wrong):
    """Return φ(q), and the features of k or, for Performer, their logarithms."""
    if kind == "linear":
        phi = refattn.elu_plus_one if wrong == "always elu + 1" else given.get("feature_map", refattn.elu_plus_one)
        return phi(q), phi(k)
    if kind == "cosformer":
        length, start = given["length"] + (wrong == "length one more"), given.get("start", 0)
        angle = math.pi / (1 if wrong == "whole turns" else 2) / length
        angle = angle * ((0 if wrong == "start ignored" else start) + np.arange(q.shape[-2]))[:, None]
        angle = angle.astype(np.float16 if wrong == "angles of float16" else np.float64)
        turns = [turn(angle).astype(q.dtype) for turn in (np.cos, np.sin)]
        turns[1] = turns[1] * (wrong != "cosines only")
        turns = turns[::-1] if wrong == "sines first in the state" else turns
        low = -np.inf if wrong == "no relu" else 0
        return tuple(np.concatenate([np.maximum(x, low) * turn for turn in turns], axis=-1) for x in (q, k))
    scale = None if wrong == "scale ignored" else given.get("scale")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scale = scale if wrong == "scale instead of its root" else math.sqrt(scale)
    W = given["projection"].astype(q.dtype) * scale
    logs = [x @ W.T for x in (q, k)]
    if wrong == "last feature dropped":
        logs = [np.concatenate([x[..., :-1], np.full_like(x[..., -1:], -np.inf)], axis=-1) for x in logs]
    logs[0] = logs[0] - (scale * q * scale * q).sum(axis=-1, keepdims=True) / 2
    if wrong != "norm of keys forgotten":
        logs[1] = logs[1] - (scale * k * scale * k).sum(axis=-1, keepdims=True) / 2
    return np.exp(logs[0] - logs[0].max(axis=-1, keepdims=True)), logs[1]


def forward(
    q, k, v, *more, kind, causal=True, normalize=True, initial_state=None, cu_seqlens=None, chunk=None, **given
):
    """A token at a time; what all queries see, if not causal, is had in a first pass."""
    wrong, dtype, wide = given.pop("wrong", ""), q.dtype, compute_dtype(q.dtype)
    given |= dict(zip(("projection",), more, strict=False))
    q, k, v = (x.astype(wide) for x in (q, k, v))
    phi_q, phi_k = features_of(kind, q, k, given, wrong)
    phi_q = q if wrong == "queries without features" and phi_q.shape == q.shape else phi_q
    phi_k = k if wrong == "keys without features" and phi_k.shape == k.shape else phi_k
    causal = (causal or wrong == "always causal") and wrong != "never causal"
    normalize = (normalize or wrong == "always divided") and wrong != "not divided"
    Hv, Ho, T, M = heads_of(v), max(heads_of(q), heads_of(v)), q.shape[-2], phi_k.shape[-1]
    share = round_robin if wrong == "heads taken round robin" else share_heads
    phi_q, phi_k, v = share(phi_q, Ho), share(phi_k, Hv), np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)
    sums, states = np.zeros((*phi_q.shape[:-1], v.shape[-1]), wide), []
    packed = cu_seqlens is not None and wrong != "packed sequences run into each other"
    for n, (first, stop) in enumerate(itertools.pairwise(cu_seqlens if packed else (0, T))):
        S, m = first_state(initial_state, n if cu_seqlens is not None else None, (*v.shape[:-2], M), v, wrong)
        last = stop - (wrong == "last token dropped")
        last = first + (stop - first) // chunk * chunk if wrong == "tail dropped" else last
        S, m = walk(kind, phi_q, phi_k, v, S, m, (first, last, chunk), sums if causal else None, share, wrong)
        if not causal:
            sums[..., first:stop, :] = phi_q[..., first:stop, :] @ share(S, Ho)
        states.append((S, m))
    num, den = sums[..., :-1], sums[..., -1:]
    if wrong == "hidden NaN leaks" and causal:
        num = num + 0 * v[..., :-1].sum(axis=(-3, -2) if v.ndim > 2 else -2, keepdims=True)
    den = den + (1e-6 if wrong == "small number in the denominator" else 0)
    if normalize:
        num = num / den if wrong == "0 / 0 is NaN" else np.where(den == 0, 0, num / np.where(den == 0, 1, den))
    S, m = (np.stack(x) if cu_seqlens is not None else x[0] for x in zip(*states, strict=True))
    if wrong == "state in the dtype of q":
        S, m = S.astype(dtype), np.asarray(m, dtype)
    state = (S[..., :-1], S[..., -1])
    return Recurrent(
        num.astype(dtype), PerformerState(*state, np.asarray(m)) if kind == "performer" else LinearState(*state)
    )


def first_state(given, n, shape, v, wrong):
    S, m = np.zeros((*shape, v.shape[-1]), v.dtype), np.full(shape[:-1], -np.inf, v.dtype)
    if given is None or wrong == "initial state ignored":
        return S, m
    n = 0 if wrong == "initial state of the first sequence for all" and n is not None else n
    parts = [x if n is None else x[n] for x in given]
    S[..., :-1] = parts[0]
    S[..., -1] = 0 if wrong == "initial normaliser ignored" else parts[1]
    if len(parts) > 2:
        m = np.zeros_like(m) if wrong == "initial m ignored" else parts[2].astype(v.dtype)
    return S, m


def walk(kind, phi_q, phi_k, v, S, m, tokens, sums, share, wrong):
    """Add tokens to the state, and write Sᵀ φ(q) of each into `sums`, if given."""
    first, stop, chunk = tokens
    begin, root = S, math.sqrt(phi_k.shape[-1])
    for t in range(first, stop):
        if chunk and (t - first) % chunk == 0:
            S = 0 * S if wrong == "chunks forget the ones before" else S
            begin = S
        old, phi = S, phi_k[..., t, :]
        if kind == "performer":
            was, seen = m, phi_k if wrong == "later keys in the stabiliser" else phi_k[..., t : t + 1, :]
            m = seen.max(axis=(-2, -1)) if wrong == "m ignores the initial one" and t == first else m
            m = np.maximum(m, seen.max(axis=(-2, -1)))
            phi = np.exp(phi - m[..., None]) / (1 if wrong == "features not divided by the root of M" else root)
            fall = np.where(np.isneginf(was), 0, np.exp(was - m))[..., None, None]
            S = S * (1 if wrong == "sums not rescaled" else np.where(fall == 0, 1, fall))
            S = np.where(fall == 0, 0, S)
        new = outer(phi, v[..., t, :])
        S = S + new
        S = S.astype(np.float16).astype(S.dtype) if wrong == "state rounded at each token" else S
        read = old if wrong == "own token not seen" else S
        if wrong == "next token seen" and t + 1 < stop and kind != "performer":
            read = S + outer(phi_k[..., t + 1, :], v[..., t + 1, :])
        read = begin + new if wrong == "state of a chunk for all its tokens" else read
        if sums is not None:
            divisor = root if kind == "performer" else 1
            sums[..., t, :] = (phi_q[..., t, None, :] @ share(read, heads_of(phi_q)))[..., 0, :] / divisor
    return S, 0 * m if wrong == "m not kept" else m


def round_robin(x, heads, axis=-3):
    return x if x.ndim < 3 else np.concatenate([x] * (heads // x.shape[-3]), axis=-3)


BACKWARD = [
    *("dstate ignored", "dz ignored", "initial state ignored", "causal the other way", "denominator held fixed"),
    *("dk and dv of the first query head", "dz of the initial state missing", "dq without the initial state"),
]
PERFORMER_BACK = [
    *("dm ignored", "dm of the initial state missing", "scale's root forgotten", "dprojection of one head"),
    "norms of keys held fixed",
]


def wrong_vjp(do, q, *arrays, kind, wrong, **given):
    """The derivative by the reference of something slightly else."""
    operation = f"{kind}_attention_vjp"
    whole = partial(getattr(refattn, operation), backend="numpy")
    initial, dstate = given.get("initial_state"), given.get("dstate")
    if wrong == "dstate ignored":
        return whole(do, q, *arrays, **given | {"dstate": None})
    if wrong == "dz ignored" and dstate is not None:
        given["dstate"] = dstate._replace(z=0 * dstate.z)
    if wrong == "dm ignored" and dstate is not None:
        given["dstate"] = dstate._replace(m=0 * dstate.m)
    if wrong == "causal the other way":
        given["causal"] = not given.get("causal", True)
    if wrong == "initial state ignored" and initial is not None:
        given["initial_state"] = type(initial)(*(0 * x for x in initial))
    if wrong == "denominator held fixed" and given.get("normalize", True):
        given = given | {"normalize": False}
        plain = {name: x for name, x in given.items() if name != "dstate"}
        ones = np.ones_like(arrays[1])
        if initial is not None:
            plain["initial_state"] = initial._replace(S=np.broadcast_to(initial.z[..., None], initial.S.shape))
        den = refattn.linear_attention(q, arrays[0], ones, **plain, backend="numpy").o
        do = np.where(den == 0, 0, do / np.where(den == 0, 1, den)).astype(do.dtype)
    if wrong == "derivative of the features forgotten":
        phi = given.get("feature_map", refattn.elu_plus_one)
        given["feature_map"] = refattn.FeatureMap("wrong", phi, lambda dphi, x: dphi)
    g = whole(do, q, *arrays, **given)
    if wrong == "dk and dv of the first query head" and heads_of(q) > heads_of(arrays[1]):
        do = np.where(np.arange(heads_of(q)) % (heads_of(q) // heads_of(arrays[1])), 0, 1)[:, None, None] * do
        first = whole(do.astype(q.dtype), q, *arrays, **given)
        g = g._replace(dk=first.dk, dv=first.dv)
    if wrong == "dq without the initial state" and initial is not None:
        g = g._replace(dq=whole(do, q, *arrays, **given | {"initial_state": None}).dq)
    if g.dinitial_state is not None:
        missing = {"dz of the initial state missing": "z", "dm of the initial state missing": "m"}.get(wrong)
        if missing is not None:
            none = {missing: np.zeros_like(getattr(g.dinitial_state, missing))}
            g = g._replace(dinitial_state=g.dinitial_state._replace(**none))
    if wrong == "scale's root forgotten":
        scale = given.get("scale")
        root = math.sqrt(q.shape[-1] ** -0.5 if scale is None else scale)
        g = g._replace(dq=(g.dq / root).astype(q.dtype), dk=(g.dk / root).astype(q.dtype))
    if wrong == "dprojection of one head":
        g = g._replace(dprojection=(g.dprojection / heads_of(q)).astype(g.dprojection.dtype))
    if wrong == "norms of keys held fixed":  # a further dimension, 0 in k and 1 in W, has the sum over features
        k, v, W = arrays
        scale = given.get("scale") or q.shape[-1] ** -0.5
        wide = [np.concatenate([x, np.full_like(x[..., :1], fill)], axis=-1) for x, fill in ((q, 0), (k, 0), (W, 1))]
        along = whole(do, wide[0], wide[1], v, wide[2], **given | {"scale": scale}).dk[..., -1:]
        g = g._replace(dk=(g.dk + math.sqrt(scale) * along * k).astype(k.dtype))
    return g


LINEAR_BACK = [*BACKWARD, "derivative of the features forgotten"]
LINFORMER = [
    *("values mixed with e", "keys mixed with f", "scale of the mixtures", "scale ignored", "last token dropped"),
    *("mixtures of the first head for all", "softmax over queries", "values not divided", "heads taken round robin"),
    *("no maximum subtracted", "products rounded"),
]


def linformer(q, k, v, e, f, *, scale=None, wrong=""):
    dtype, wide = q.dtype, compute_dtype(q.dtype)
    q, k, v, e, f = (x.astype(wide) for x in (q, k, v, e, f))
    e, f = (e if wrong != "keys mixed with f" else f), (f if wrong != "values mixed with e" else e)
    if wrong == "mixtures of the first head for all" and e.ndim > 2:
        e, f = e[0], f[0]
    stop = k.shape[-2] - (wrong == "last token dropped")
    k, v = e[..., :stop] @ k[..., :stop, :], f[..., :stop] @ v[..., :stop, :]
    if wrong == "products rounded":
        k, v = (x.astype(np.float16).astype(wide) for x in (k, v))
    share = round_robin if wrong == "heads taken round robin" else share_heads
    k, v = share(k, heads_of(q)), share(v, heads_of(q))
    scale = q.shape[-1] ** -0.5 if scale is None or wrong == "scale ignored" else scale
    scale = k.shape[-2] ** -0.5 if wrong == "scale of the mixtures" else scale
    s, axis = scale * (q @ k.swapaxes(-1, -2)), -2 if wrong == "softmax over queries" else -1
    top = 0 if wrong == "no maximum subtracted" else s.max(axis=axis, keepdims=True, initial=-np.inf)
    p = np.exp(s - top)
    p = p if wrong == "values not divided" else p / p.sum(axis=axis, keepdims=True)
    return (p @ v).astype(dtype)


LINFORMER_BACK = ["de of dv", "de of the first sequence", "de averaged over heads", "dk not mixed back", "dq unscaled"]


def linformer_vjp(do, q, k, v, e, f, *, scale=None, wrong=""):
    g = refattn.linformer_attention_vjp(do, q, k, v, e, f, scale=scale, backend="numpy")
    de, df, dk = g.de, g.df, g.dk
    if wrong == "de of dv":
        de, df = df, de
    if wrong == "de of the first sequence" and q.ndim > 3 and q.shape[0] > 1:
        de = refattn.linformer_attention_vjp(do[0], q[0], k[0], v[0], e, f, scale=scale, backend="numpy").de
    if wrong == "de averaged over heads" and e.ndim == 2:
        de = (de / heads_of(k)).astype(de.dtype)
    if wrong == "dk not mixed back":
        dk = (f.swapaxes(-1, -2) @ (e @ dk)).astype(k.dtype)
    size = math.sqrt(q.shape[-1]) if scale is None else 1 / scale
    return LinformerGradients((g.dq * size).astype(q.dtype) if wrong == "dq unscaled" else g.dq, dk, g.dv, de, df)


NYSTROM = [
    *(
        "norm of the whole batch",
        "one step less",
        "one step more",
        "the exact pseudo-inverse",
        "tokens left over dropped",
    ),
    *(
        "sums instead of means",
        "first tokens instead of means",
        "A unscaled",
        "F and B exchanged",
        "no pseudo-inverse",
    ),
    *("ordinary attention for few tokens", "scale ignored", "longer segments first", "heads taken round robin"),
    *("start with A", "norms of the start swapped", "segments without tokens"),
]


def nystrom(q, k, v, *, landmarks, iterations=6, scale=None, wrong=""):
    dtype, wide, T = q.dtype, compute_dtype(q.dtype), q.shape[-2]
    if wrong == "ordinary attention for few tokens" and landmarks >= T:
        return refattn.attention(q, k, v, scale=scale, backend="numpy")
    share = round_robin if wrong == "heads taken round robin" else share_heads
    q, k, v = q.astype(wide), share(k.astype(wide), heads_of(q)), share(v.astype(wide), heads_of(q))
    m = landmarks if wrong == "segments without tokens" else min(landmarks, T)
    borders = [-(-n * T // m) for n in range(m + 1)] if m else []
    if wrong == "longer segments first":
        borders = [sum(T // m + (n < T % m) for n in range(upto)) for upto in range(m + 1)]
    if wrong == "tokens left over dropped" and m:
        borders = [n * (T // m) for n in range(m + 1)]

    def marks(x):
        how = {"sums instead of means": np.sum, "first tokens instead of means": lambda y, axis: y[..., 0, :]}
        of = how.get(wrong, np.mean)
        parts = [of(x[..., a:b, :], axis=-2) if b > a else 0 * x[..., 0, :] for a, b in itertools.pairwise(borders)]
        return np.stack(parts, axis=-2) if parts else x

    def softmax(a, b, size):
        s = size * (a @ b.swapaxes(-1, -2))
        p = np.exp(s - s.max(axis=-1, keepdims=True, initial=-np.inf))
        return p / p.sum(axis=-1, keepdims=True)

    size = q.shape[-1] ** -0.5 if scale is None or wrong == "scale ignored" else scale
    q_marks, k_marks = marks(q), marks(k)
    F, B = softmax(q, k_marks, size), softmax(q_marks, k, size)
    A = softmax(q_marks, k_marks, 1.0 if wrong == "A unscaled" else size)
    if wrong == "F and B exchanged":
        F, B = softmax(k, q_marks, size), softmax(k_marks, q, size)
    one = np.eye(A.shape[-1], dtype=wide)
    column = A.sum(axis=-2).max(axis=-1, initial=0)[..., None, None]
    if wrong == "norm of the whole batch":
        column = column.max(initial=0)
    column = column**2 if wrong == "norms of the start swapped" else column
    Z = (A if wrong == "start with A" else A.swapaxes(-1, -2)) / column
    for _ in range(max(iterations - (wrong == "one step less") + (wrong == "one step more"), 0)):
        P = A @ Z
        Z = Z @ (13 * one - P @ (15 * one - P @ (7 * one - P))) / 4
    Z = np.linalg.pinv(A) if wrong == "the exact pseudo-inverse" and np.isfinite(A).all() else Z
    Z = one if wrong == "no pseudo-inverse" else Z
    return (F @ (Z @ (B @ v))).astype(dtype)


NYSTROM_BACK = [
    *("start held fixed", "norm held fixed", "exact pseudo-inverse", "landmarks held fixed", "scale forgotten"),
    *("dk of the first query head", "one step less"),
]


def nystrom_vjp(do, q, k, v, *, landmarks, iterations=6, scale=None, wrong=""):
    iterations = max(iterations - (wrong == "one step less"), 0)
    dtype, H, Hk = q.dtype, heads_of(q), heads_of(k)
    do, q, k, v = (x.astype(compute_dtype(dtype)) for x in (do, q, k, v))
    k, v, size = share_heads(k, H), share_heads(v, H), q.shape[-1] ** -0.5 if scale is None else scale
    means = _means(q, landmarks)
    F, A, B = _kernels(q, k, means, scale)
    steps = _pseudo_inverses(A, iterations)
    Z, W = steps[-1], B @ v
    dY, dZ = F.swapaxes(-1, -2) @ do, F.swapaxes(-1, -2) @ do @ W.swapaxes(-1, -2)
    dA = _pseudo_inverses_vjp(dZ, A, steps)
    if wrong == "exact pseudo-inverse":
        dA = -(Z.swapaxes(-1, -2) @ dZ @ Z.swapaxes(-1, -2))
    if wrong in ("start held fixed", "norm held fixed"):
        dA = dA - start_of(dZ, A, steps, wrong == "norm held fixed")
    dW = Z.swapaxes(-1, -2) @ dY
    size = 1.0 if wrong == "scale forgotten" else size
    sF, sA = size * _softmax_vjp(do @ (Z @ W).swapaxes(-1, -2), F), size * _softmax_vjp(dA, A)
    sB, through = size * _softmax_vjp(dW @ v.swapaxes(-1, -2), B), means.T * (wrong != "landmarks held fixed")
    dq = sF @ (means @ k) + through @ (sA @ (means @ k) + sB @ k)
    sF, sA = sF.swapaxes(-1, -2), sA.swapaxes(-1, -2)
    dk = sB.swapaxes(-1, -2) @ (means @ q) + through @ (sF @ q + sA @ (means @ q))
    dk, dv = (
        x if x.ndim < 3 else x.reshape(*x.shape[:-3], Hk, H // Hk, *x.shape[-2:]) for x in (dk, B.swapaxes(-1, -2) @ dW)
    )
    if dk.ndim > 2:
        dk, dv = dk[..., 0, :, :] if wrong == "dk of the first query head" else dk.sum(axis=-3), dv.sum(axis=-3)
    return NystromGradients(*(x.astype(dtype) for x in (dq, dk, dv)))


def start_of(dZ, A, steps, norm):
    """The share of A's gradient that comes through the start, or through its norm alone."""
    ones, At = np.eye(A.shape[-1]), A.swapaxes(-1, -2)
    for Z in reversed(steps[:-1]):
        P = A @ Z
        R, Pt = 13 * ones - P @ (15 * ones - P @ (7 * ones - P)), P.swapaxes(-1, -2)
        dR = Z.swapaxes(-1, -2) @ dZ / 4
        dP = -15 * dR + 7 * (dR @ Pt + Pt @ dR) - (dR @ Pt @ Pt + Pt @ dR @ Pt + Pt @ Pt @ dR)
        dZ = dZ @ R.swapaxes(-1, -2) / 4 + At @ dP
    columns = A.sum(axis=-2)
    column = columns.max(axis=-1, initial=0)[..., None, None]
    fall = -(dZ * steps[0]).sum(axis=(-2, -1), keepdims=True) / column * (columns[..., None, :] == column)
    return fall if norm else fall + dZ.swapaxes(-1, -2) / column


RIGHT = {
    **{f"{kind}_attention": partial(forward, kind=kind) for kind in ("linear", "cosformer", "performer")},
    "linformer_attention": linformer,
    "nystrom_attention": nystrom,
    "nystrom_attention_vjp": nystrom_vjp,
}
NO_MISTAKE = {  # where there is nothing to get wrong in this way
    ("cosformer", "queries without features"),
    ("cosformer", "keys without features"),
    ("performer", "queries without features"),
    ("performer", "keys without features"),
    ("performer", "next token seen"),
}
WRONG = {
    **{
        f"{kind}_attention": [wrong for wrong in (*EVERY, *own) if (kind, wrong) not in NO_MISTAKE]
        for kind, own in (("linear", LINEAR), ("cosformer", COSFORMER), ("performer", PERFORMER))
    },
    "linformer_attention": LINFORMER,
    "nystrom_attention": NYSTROM,
    "nystrom_attention_vjp": NYSTROM_BACK,
}
FORMS = {
    "linear_attention_chunked": (partial(forward, kind="linear"), [*CHUNKED, *EVERY[:2]]),
    **{f"{kind}_attention_recurrent": (partial(forward, kind=kind), EVERY[:6:2]) for kind in ("linear", "cosformer")},
    "performer_attention_recurrent": (
        partial(forward, kind="performer"),
        ["own token not seen", "sums not rescaled", "m ignores the initial one", "later keys in the stabiliser"],
    ),
    "linear_attention_vjp": (partial(wrong_vjp, kind="linear"), LINEAR_BACK),
    "cosformer_attention_vjp": (
        partial(wrong_vjp, kind="cosformer"),
        [wrong for wrong in BACKWARD if wrong != "denominator held fixed"],
    ),
    "performer_attention_vjp": (
        partial(wrong_vjp, kind="performer"),
        [*(wrong for wrong in BACKWARD if wrong != "denominator held fixed"), *PERFORMER_BACK],
    ),
    "linformer_attention_vjp": (linformer_vjp, LINFORMER_BACK),
}
MUTANTS = {
    f"{operation}: {wrong}": (operation, partial(function, wrong=wrong))
    for operation, (function, mistakes) in {**{name: (RIGHT[name], WRONG[name]) for name in RIGHT}, **FORMS}.items()
    for wrong in mistakes
}
