"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np

from refattn import dispatch
from refattn.arrays import compute_dtype
from refattn.results import Recurrent, RecurrentGradients
from refattn.testing import cases
from refattn.testing.conformance import judge

FORWARD = [
    "read before the write",
    "beta on the value alone",
    "beta forgotten",
    "beta through a sigmoid",
    "beta at most 1",
    "v not reduced by what is held",
    "scale forgotten",
    "scale of the width of values",
    "scale on the keys, too",
    "keys made unit vectors",
    "state transposed",
    "state in the dtype of q",
    "o in the dtype of computation",
    "o cut to bfloat16",
    "state rounded to bfloat16 at each token",
    "initial state ignored",
    "initial state written to zeros",
    "initial state of the first sequence",
    "heads taken round robin",
    "first head for all",
    "o of the value heads",
    "last token dropped",
    "tokens beyond whole chunks of 16 dropped",
    "state carried over borders",
    "empty sequences forget their state",
    "borders one token late",
    "NaN counts as zero",
    "later values weighed by zero",
    "a result that is a view of the state given",
    "strides ignored",
]
GATED = [
    "write before the decay",
    "held read from the state before the decay",
    "decay in powers of 2",
    "decay of the token before",
    "decay at least e^-10",
    "gates in bfloat16",
    "forgotten by multiplying",
    "decays as a ratio of products",
]
PER_KEY = ["one decay for all rows", "decays of the rows reversed", "decay on the values"]
PARALLEL = [
    "diagonal in the triangular system",
    "two terms of the inverse",
    "beta of the column",
    "triangle transposed",
    "keys of the state not reduced",
    "state after the chunk not decayed",
]
BACKWARD = [
    "dk without the read",
    "dk without the write",
    "dbeta of what is written",
    "dbeta without what is held",
    "dv without beta",
    "dq from the state before the write",
    "dq without scale",
    "dstate ignored",
    "dstate added before every sequence",
    "dinitial_state always returned",
    "gradient of the state not reduced by the key",
    "dk of the first head of a group",
    "dq averaged over a group",
    "gradients carried over borders",
    "gradients in the dtype of q",
    "NaN of later tokens counts as zero",
]
GATED_BACKWARD = [
    "dinitial_state of the decayed state",
    "dlog_decay without the decay",
    "dlog_decay of the written state",
    "dlog_decay with the write's share of dS",
    "gradient of the state not decayed",
    "forgotten by multiplying",
    "dlog_decay of zeros",
]


def spread(x, heads, wrong=""):
    """Give each of the heads the one that it reads; a matrix is one head."""
    if x.ndim < 3:
        return x
    if wrong == "first head for all":
        x = x[..., :1, :, :]
    index = np.arange(heads) * x.shape[-3] // heads
    index = np.arange(heads) % x.shape[-3] if wrong == "heads taken round robin" else index
    return x[..., index, :, :]


def heads_of(x):
    return x.shape[-3] if x.ndim > 2 else 1


def packed(function, arrays, axes, states, cu_seqlens, wrong):
    """Call a function for each sequence, or make a mistake with their borders."""
    borders = np.array(cu_seqlens)
    if wrong == "borders one token late":
        borders[1:-1] = np.minimum(borders[1:-1] + 1, borders[-1])
    parts, carried, spans = [], None, list(enumerate(itertools.pairwise(borders)))
    back = wrong == "gradients carried over borders"
    for n, (first, stop) in reversed(spans) if back else spans:
        own = [x[(..., slice(first, stop), *[slice(None)] * (-axis - 1))] for x, axis in zip(arrays, axes, strict=True)]
        given = {name: None if x is None else x[n] for name, x in states.items()}
        if wrong == "initial state of the first sequence" and given["initial_state"] is not None:
            given["initial_state"] = states["initial_state"][0]
        if wrong in ("state carried over borders", "gradients carried over borders") and carried is not None:
            given["dstate" if back else "initial_state"] = carried
        part = function(*own, **given)
        carried = part[-1]
        if wrong == "empty sequences forget their state" and first == stop:
            part = part._replace(state=np.zeros_like(part.state))
        parts.append(part)
    return parts[::-1] if back else parts


def gates_of(gates, v, dtype, wrong):
    """Return the decays (..., T, D or 1), and beta (..., T, 1)."""
    b = gates[-1].astype(dtype)[..., None]
    g = gates[0].astype(dtype) if len(gates) > 1 else np.zeros_like(b)
    g = g if g.ndim == v.ndim else g[..., None]
    b = {
        "beta forgotten": np.ones_like(b),
        "beta through a sigmoid": 1 / (1 + np.exp(-b)),
        "beta at most 1": np.minimum(b, 1),
    }.get(wrong, b)
    if wrong == "decay in powers of 2":
        g = g * dtype.type(np.log(2))
    if wrong == "decay of the token before":
        g = np.concatenate([0 * g[..., :1, :], g[..., :-1, :]], axis=-2)
    if wrong == "decay at least e^-10":
        g = np.maximum(g, -10)
    if wrong == "gates in bfloat16":
        g = short(g)
    if wrong == "one decay for all rows":
        g = g.mean(axis=-1, keepdims=True)
    if wrong == "decays of the rows reversed":
        g = g[..., ::-1]
    return g, b


def short(x):
    """Cut the numbers to the eight bits of bfloat16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(x.dtype)


def forget(g, S, wrong):
    a = np.exp(g)[..., None]
    if wrong == "decay on the values" and a.shape[-2] > 1:
        a = np.resize(a[..., 0], (*a.shape[:-2], S.shape[-1]))[..., None, :]
    return a * S if wrong == "forgotten by multiplying" else np.where(a == 0, 0, a * S)


def forward(q, k, v, *gates, scale=None, initial_state=None, cu_seqlens=None, chunk=64, wrong=""):
    """A token at a time."""
    if wrong == "strides ignored":
        q, k, v = (x if x.flags.c_contiguous or x.base is None else dense(x) for x in (q, k, v))
    if cu_seqlens is not None:
        axes = [-2, -2, -2, *(-2 if x.ndim == v.ndim else -1 for x in gates)]
        one = partial(forward, scale=scale, wrong=wrong)
        parts = packed(one, (q, k, v, *gates), axes, {"initial_state": initial_state}, cu_seqlens, wrong)
        return Recurrent(np.concatenate([part.o for part in parts], axis=-2), np.stack([part.state for part in parts]))
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    size = q.dtype.type(1) if wrong == "scale forgotten" else 1 / np.sqrt(q.shape[-1])
    size = 1 / np.sqrt(v.shape[-1]) if wrong == "scale of the width of values" else size
    size = dtype.type(size if scale is None else scale)
    shape = (*v.shape[:-2], q.shape[-1], v.shape[-1])
    start = initial_state if wrong != "initial state ignored" else None
    S = np.zeros(shape, dtype) if start is None else start.astype(dtype)
    q_, k_, v_ = spread(q.astype(dtype), Ho, wrong), spread(k.astype(dtype), Hv, wrong), v.astype(dtype)
    if wrong == "keys made unit vectors":
        k_ = k_ / np.sqrt((k_**2).sum(axis=-1, keepdims=True))
    if wrong == "scale on the keys, too":
        k_ = k_ * size
    if wrong == "NaN counts as zero":
        v_ = np.nan_to_num(v_)
    g, b = gates_of(gates, v, dtype, wrong)
    if wrong == "decays as a ratio of products":
        return ratio(q_ * size, k_, v_, g, b, S, Ho, q.dtype)
    o = np.zeros((*q_.shape[:-1], v.shape[-1]), dtype)
    T = q.shape[-2]
    T = max(T - 1, 0) if wrong == "last token dropped" else T
    T = T // 16 * 16 if wrong == "tokens beyond whole chunks of 16 dropped" and T > 16 else T
    for t in range(T):
        kt, old = k_[..., t, :], S
        if wrong != "write before the decay":
            S = forget(g[..., t, :], S, wrong)
        before = S
        held = (kt[..., None, :] @ (old if "before the decay" in wrong else S))[..., 0, :]
        held = 0 * held if wrong == "v not reduced by what is held" else held
        bt = b[..., t, :]
        u = bt * v_[..., t, :] - held if wrong == "beta on the value alone" else bt * (v_[..., t, :] - held)
        S = S + kt[..., :, None] * u[..., None, :]
        if wrong == "write before the decay":
            S = forget(g[..., t, :], S, wrong)
        if wrong == "initial state written to zeros" and t == 0:
            S = S - old
        S = short(S) if wrong == "state rounded to bfloat16 at each token" else S
        read = spread(before if wrong == "read before the write" else S, Ho, wrong)
        o[..., t, :] = size * (q_[..., t, None, :] @ read)[..., 0, :]
    if wrong == "later values weighed by zero":
        o = o + 0 * spread(v_.sum(axis=-2, keepdims=True), Ho)
    if wrong == "o of the value heads":
        o = o[..., : heads_of(v), :, :] if o.ndim > 2 else o
    if wrong == "state transposed":
        S = np.ascontiguousarray(S.swapaxes(-1, -2)).reshape(S.shape)
    if wrong == "a result that is a view of the state given" and initial_state is not None:
        S = initial_state if T == 0 else S
    o = short(o) if wrong == "o cut to bfloat16" else o
    o = o if wrong == "o in the dtype of computation" else o.astype(q.dtype)
    return Recurrent(o, S.astype(q.dtype) if wrong == "state in the dtype of q" else S)


def dense(x):
    """Read memory as if an array with gaps had none."""
    return np.lib.stride_tricks.as_strided(x, x.shape, np.empty(x.shape, x.dtype).strides)


def ratio(q, k, v, g, b, S, Ho, dtype):
    """All pairs at once, with e^(G_i - G_j) as e^G_i / e^G_j."""
    G = np.cumsum(g, axis=-2)
    A = np.tril(b * ((k * np.exp(G)) @ (k / np.exp(G)).swapaxes(-1, -2)), -1)
    u = np.linalg.solve(A + np.eye(A.shape[-1], dtype=A.dtype), b * (v - (k * np.exp(G)) @ S))
    G_ = spread(np.broadcast_to(G, k.shape), Ho)
    s = np.tril((q * np.exp(G_)) @ (spread(k, Ho) / np.exp(G_)).swapaxes(-1, -2))
    o = s @ spread(u, Ho) + (q * np.exp(G_)) @ spread(S, Ho)
    end = np.exp(np.broadcast_to(G, k.shape)[..., -1:, :]) if k.shape[-2] else np.ones((*k.shape[:-2], 1, k.shape[-1]))
    last = end.swapaxes(-1, -2) * (S + (k / np.exp(G)).swapaxes(-1, -2) @ u)
    return Recurrent(o.astype(dtype), last.astype(S.dtype))


def chunked(q, k, v, *gates, scale=None, initial_state=None, cu_seqlens=None, chunk=64, wrong=""):
    """Chunks, with T, w and u. It forgets by multiplying with 0, so that it is right but for NaN."""
    if cu_seqlens is not None:
        axes = [-2, -2, -2, *(-2 if x.ndim == v.ndim else -1 for x in gates)]
        one = partial(chunked, scale=scale, chunk=chunk, wrong=wrong)
        parts = packed(one, (q, k, v, *gates), axes, {"initial_state": initial_state}, cu_seqlens, wrong)
        return Recurrent(np.concatenate([part.o for part in parts], axis=-2), np.stack([part.state for part in parts]))
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    size = dtype.type(1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    S = np.zeros((*v.shape[:-2], q.shape[-1], v.shape[-1]), dtype)
    S = S if initial_state is None else initial_state.astype(dtype)
    q_, k_, v_ = spread(size * q.astype(dtype), Ho), spread(k.astype(dtype), Hv), v.astype(dtype)
    g, b = gates_of(gates, v, dtype, wrong)
    g = np.broadcast_to(g, k_.shape)
    o = np.zeros((*q_.shape[:-1], v.shape[-1]), dtype)
    for first in range(0, q.shape[-2], chunk):
        c = slice(first, first + chunk)
        gc, kc, vc, bc, qc = (x[..., c, :] for x in (g, k_, v_, b, q_))
        n = gc.shape[-2]
        a = np.zeros((*gc.shape[:-1], n, gc.shape[-1]), dtype)  # (..., i, j, D)
        for j in range(n):
            later = np.arange(n)[:, None] - j  # (i, 1)
            a[..., j, :] = np.where(later < 0, 0, np.exp(np.cumsum(np.where(later > 0, gc, 0), axis=-2)))
        before = np.exp(np.cumsum(gc, axis=-2))
        A = np.tril(bc * np.einsum("...id,...ijd,...jd->...ij", kc, a, kc), 0 if "diagonal" in wrong else -1)
        A = A / bc * bc.swapaxes(-1, -2) if wrong == "beta of the column" else A
        A = A.swapaxes(-1, -2) if wrong == "triangle transposed" else A
        one = np.eye(n, dtype=dtype)
        T = one - A if wrong == "two terms of the inverse" else np.linalg.inv(one + A)
        T = T * bc.swapaxes(-1, -2)
        w = T @ (before * kc)
        u = T @ vc - (0 if wrong == "keys of the state not reduced" else w @ S)
        a_ = a if a.ndim < 4 else np.take(a, np.arange(Ho) * Hv // Ho, axis=-4)
        s = np.einsum("...id,...ijd,...jd->...ij", qc, a_, spread(kc, Ho))
        o[..., c, :] = s @ spread(u, Ho) + (spread(before, Ho) * qc) @ spread(S, Ho)
        end = np.ones_like(before[..., -1, :, None]) if "not decayed" in wrong else before[..., -1, :, None]
        S = end * S + (a[..., -1, :, :] * kc).swapaxes(-1, -2) @ u
    return Recurrent(o.astype(q.dtype), S)


def group(dx, heads, wrong=""):
    """Add up what the heads that share one give back."""
    if dx.ndim < 3:
        return dx
    parts = dx.reshape(*dx.shape[:-3], heads, dx.shape[-3] // heads, *dx.shape[-2:])
    if wrong == "dk of the first head of a group":
        return parts[..., 0, :, :]
    return parts.mean(axis=-3) if wrong == "dq averaged over a group" else parts.sum(axis=-3)


def backward(do, q, k, v, *gates, scale=None, initial_state=None, cu_seqlens=None, dstate=None, wrong=""):
    """The recurrence backwards."""
    if cu_seqlens is not None:
        axes = [-2, -2, -2, -2, *(-2 if x.ndim == v.ndim else -1 for x in gates)]
        one, states = partial(backward, scale=scale, wrong=wrong), {"initial_state": initial_state, "dstate": dstate}
        parts = packed(one, (do, q, k, v, *gates), axes, states, cu_seqlens, wrong)
        how = [-2, -2, -2, axes[4], -1, None]
        if wrong == "dstate added before every sequence" and dstate is not None:
            parts[0] = parts[0]._replace(dinitial_state=parts[0].dinitial_state + dstate[0])
        return RecurrentGradients(
            *(
                None if xs[0] is None else np.stack(xs) if axis is None else np.concatenate(xs, axis=axis)
                for xs, axis in zip(zip(*parts, strict=True), how, strict=True)
            )
        )
    dtype, Hv, Ho = compute_dtype(q.dtype), heads_of(v), max(heads_of(q), heads_of(v))
    size = dtype.type(1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    shape = (*v.shape[:-2], q.shape[-1], v.shape[-1])
    S = np.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)
    q_, k_, v_, do_ = spread(q.astype(dtype), Ho), spread(k.astype(dtype), Hv), v.astype(dtype), do.astype(dtype)
    do_ = np.nan_to_num(do_) if wrong == "NaN of later tokens counts as zero" else do_
    v_ = np.nan_to_num(v_) if wrong == "NaN of later tokens counts as zero" else v_
    g, b = gates_of(gates, v, dtype, wrong)
    states, kepts, misses = [S], [], []
    for t in range(q.shape[-2]):
        kepts.append(forget(g[..., t, :], states[-1], wrong))
        misses.append(v_[..., t, :] - (k_[..., t, None, :] @ kepts[-1])[..., 0, :])
        states.append(kepts[-1] + k_[..., t, :, None] * (b[..., t, :] * misses[-1])[..., None, :])
    dS = np.zeros(shape, dtype) if dstate is None or wrong == "dstate ignored" else dstate.astype(dtype)
    dq, dk, dv, db = (np.zeros(x.shape, dtype) for x in (q_, k_, v_, b[..., 0]))
    dg = np.zeros((*v.shape[:-1], g.shape[-1]), dtype)
    for t in reversed(range(q.shape[-2])):
        kept, miss, bt, kt = kepts[t], misses[t], b[..., t, :], k_[..., t, :]
        seen = spread(kept if wrong == "dq from the state before the write" else states[t + 1], Ho)
        dq[..., t, :] = (1 if wrong == "dq without scale" else size) * (seen @ do_[..., t, :, None])[..., 0]
        dS = dS + group(size * q_[..., t, :, None] * do_[..., t, None, :], Hv)
        du = (kt[..., None, :] @ dS)[..., 0, :]
        dv[..., t, :] = du if wrong == "dv without beta" else bt * du
        value = {"dbeta of what is written": bt * miss, "dbeta without what is held": v_[..., t, :]}.get(wrong, miss)
        db[..., t] = (du * value).sum(axis=-1)
        if wrong != "dk without the write":
            dk[..., t, :] += (dS @ (bt * miss)[..., None])[..., 0]
        if wrong != "dk without the read":
            dk[..., t, :] -= (kept @ (bt * du)[..., None])[..., 0]
        whole = dS
        if wrong != "gradient of the state not reduced by the key":
            dS = dS - kt[..., :, None] * (bt * du)[..., None, :]
        pull = (whole if "write's share" in wrong else dS) * (
            states[t] if "without the decay" in wrong else states[t + 1] if "written state" in wrong else kept
        )
        if wrong not in ("forgotten by multiplying", "dlog_decay without the decay", "dlog_decay of the written state"):
            pull = np.where(np.isneginf(g[..., t, :, None]), 0, pull)
        pull = pull.sum(axis=-1)
        dg[..., t, :] = pull if g.shape[-1] > 1 else pull.sum(axis=-1, keepdims=True)
        first = dS
        dS = dS if wrong == "gradient of the state not decayed" else forget(g[..., t, :], dS, wrong)
    if wrong == "dinitial_state of the decayed state" and q.shape[-2]:
        dS = first
    dg = 0 * dg if wrong == "dlog_decay of zeros" else dg
    dg = None if len(gates) == 1 else dg.reshape(gates[0].shape)
    dtypes = [q.dtype, k.dtype, v.dtype, gates[0].dtype, gates[-1].dtype, getattr(initial_state, "dtype", dtype)]
    dtypes = [q.dtype] * 6 if wrong == "gradients in the dtype of q" else dtypes
    none = initial_state is None and wrong != "dinitial_state always returned"
    found = (group(dq, heads_of(q), wrong * ("dq" in wrong)), group(dk, heads_of(k), wrong), dv, dg, db)
    return RecurrentGradients(
        *(None if x is None else x.astype(kind) for x, kind in zip((*found, None if none else dS), dtypes, strict=True))
    )


def _mutants():
    found = {}
    for name in ("delta_rule", "gated_delta_rule", "kda"):
        gated = GATED if name != "delta_rule" else []
        per_key = PER_KEY if name == "kda" else []
        lists = {
            "": (forward, [*FORWARD, *gated, *per_key]),
            "_recurrent": (forward, [*FORWARD[:4], "last token dropped", "state carried over borders", *gated[:3]]),
            "_chunked": (chunked, [wrong for wrong in PARALLEL if gated or "decayed" not in wrong]),
            "_vjp": (backward, [*BACKWARD, *(GATED_BACKWARD if gated else [])]),
        }
        for form, (function, wrongs) in lists.items():
            for wrong in wrongs:
                found[f"{name}{form}: {wrong}"] = (name + form, partial(function, wrong=wrong))
    return found


MUTANTS = _mutants()
RIGHT = {"": forward, "_recurrent": forward, "_chunked": chunked, "_vjp": backward}


def failures_of_what_is_right(operation, form):
    """Return the problems that what the mutants are made from fails."""
    dispatch.register("right", SimpleNamespace(**{operation + form: RIGHT[form]}))
    try:
        results = [judge(case, "right", {}) for case in cases(operation + form) if case.dtype == "float32"]
    finally:
        dispatch.unregister("right")
    return [result.check.split("/")[1] for result in results if result.verdict != "PASS"]
