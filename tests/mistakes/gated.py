"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants.

`forward` and `backward` are right as long as `wrong` is empty, and wrong in the one way that it names.
"""

import itertools
from functools import partial

import numpy as np

import refattn
from refattn.arrays import compute_dtype
from refattn.linear.common import decayed, heads_of, outer, share_heads, sum_heads
from refattn.results import Hgrn2Gradients, Recurrent, RecurrentGradients

EVERY = [
    "read before the update",
    "new token decays too",
    "decay of the token before",
    "decay of the first head for all",
    "scale missing",
    "last token dropped",
    "forgets by a product, so that NaN stays",
    "initial state ignored",
    "initial state does not decay",
    "initial state of the first sequence for all",
    "packed sequences run into each other",
    "heads taken round robin",
    "state transposed in o",
    "state rounded at each token",
    "state in the dtype of q",
]
BACKWARD = [
    "dstate ignored",
    "dstate not decayed",
    "dk without the tokens to come",
    "dq without scale",
    "dq of the state before",
    "dq of the first head of a group",
    "gate of the gradient one token early",
    "gate's gradient without its decay",
    "gate's gradient from the state after",
    "gate of -inf has NaN",
    "sequences share gradients of the state",
]
CHUNKED = ["tail dropped", "decay over whole chunks only", "ratio of products", "state of a chunk for all its tokens"]
KINDS = ("simple_gla", "gated_linear_attention", "retention", "lightning_attention", "hgrn2")


def parts(kind, arrays):
    """Return q, k, v, and gates (..., Hv, T, D or 1) in the dtype of computation."""
    wide = compute_dtype(arrays[0].dtype)
    if kind == "hgrn2":
        q, g, v = (x.astype(wide) for x in arrays)
        return q, -np.expm1(g), v, g
    q, k, v, g = (x.astype(wide) for x in arrays)
    if kind == "simple_gla":
        g = g[..., None]
    elif kind != "gated_linear_attention":
        g = g.reshape(-1, 1, 1) if v.ndim > 2 else g.reshape(1, 1)
        g = np.broadcast_to(g, (*v.shape[:-1], 1))
    return q, k, v, g


def ranges(T, cu_seqlens, wrong):
    if cu_seqlens is None or wrong == "packed sequences run into each other":
        return [slice(0, T)]
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(cu_seqlens)]


def forward(*arrays, kind, scale=None, initial_state=None, cu_seqlens=None, chunk=None, wrong=""):
    dtype = arrays[0].dtype
    q, k, v, g = parts(kind, arrays)
    scale = scale if scale is not None else 1.0 if kind == "hgrn2" else q.shape[-1] ** -0.5
    scale = 1.0 if wrong == "scale missing" else scale
    if wrong == "scale missing" and kind == "hgrn2":
        scale = q.shape[-1] ** -0.5
    if wrong == "decay of the first head for all" and g.ndim > 2:
        g = np.broadcast_to(g[..., :1, :, :], g.shape)
    if wrong == "decay of the token before":
        g = np.concatenate([g[..., :1, :], g[..., :-1, :]], axis=-2)
    Hv, Ho, T = heads_of(v), max(heads_of(q), heads_of(v)), q.shape[-2]
    share = round_robin if wrong == "heads taken round robin" else share_heads
    q, k = share(q, Ho), share(k, Hv)
    o, states = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype), []
    for n, tokens in enumerate(ranges(T, cu_seqlens, wrong)):
        S = np.zeros((*v.shape[:-2], q.shape[-1], v.shape[-1]), q.dtype)
        if initial_state is not None and wrong != "initial state ignored":
            first = 0 if wrong == "initial state of the first sequence for all" else n
            S = initial_state.astype(q.dtype) if cu_seqlens is None else initial_state[first].astype(q.dtype)
        stop = tokens.stop - (wrong == "last token dropped")
        if wrong == "tail dropped":
            stop = tokens.start + (tokens.stop - tokens.start) // chunk * chunk
        begin, G = S, np.zeros_like(g[..., :1, :])[..., 0, :, None] if T else 0
        for t in range(tokens.start, stop):
            gate, new = g[..., t, :, None], outer(k[..., t, :], v[..., t, :])
            if wrong == "initial state does not decay" and t == tokens.start:
                gate = 0 * gate
            if wrong == "decay over whole chunks only" and (t - tokens.start) % chunk:
                gate = 0 * gate
            if chunk and (t - tokens.start) % chunk == 0:
                begin, G = S, 0 * G
            old = S
            if wrong == "ratio of products":  # e^G (begin + Σ k vᵀ e^-G)
                G, begin = G + gate, begin + new * np.exp(-(G + gate))
                S = np.exp(G) * begin
            elif wrong == "new token decays too":
                S = decayed(gate, S + new)
            else:
                kept = np.exp(gate) * S if wrong == "forgets by a product, so that NaN stays" else decayed(gate, S)
                S = kept + new
            if wrong == "state rounded at each token":
                S = S.astype(np.float16).astype(S.dtype)
            read = old if wrong == "read before the update" else S
            read = begin + new if wrong == "state of a chunk for all its tokens" else read
            if wrong == "state transposed in o":
                read = read.swapaxes(-1, -2).reshape(read.shape)
            o[..., t, :] = scale * (q[..., t, None, :] @ share(read, Ho))[..., 0, :]
        states.append(S)
    state = states[0] if cu_seqlens is None else np.stack(states)
    return Recurrent(o.astype(dtype), state.astype(dtype) if wrong == "state in the dtype of q" else state)


def round_robin(x, heads, axis=-3):
    return x if x.ndim < 3 else np.concatenate([x] * (heads // x.shape[-3]), axis=-3)


def backward(do, *arrays, kind, scale=None, initial_state=None, cu_seqlens=None, dstate=None, wrong=""):
    q, k, v, g = parts(kind, arrays)
    H, Hk, Hv, Ho = heads_of(q), heads_of(k), heads_of(v), max(heads_of(q), heads_of(v))
    scale = scale if scale is not None else 1.0 if kind == "hgrn2" else q.shape[-1] ** -0.5
    q, k, do = share_heads(q, Ho), share_heads(k, Hv), do.astype(q.dtype)
    dq, dk, dv, dg = (
        np.zeros_like(q),
        np.zeros_like(k),
        np.zeros_like(v),
        np.zeros((*v.shape[:-1], q.shape[-1]), q.dtype),
    )
    firsts, dS = [], None
    for n, tokens in reversed(list(enumerate(ranges(q.shape[-2], cu_seqlens, wrong)))):
        S = [np.zeros((*v.shape[:-2], q.shape[-1], v.shape[-1]), q.dtype)]
        if initial_state is not None:
            S = [(initial_state if cu_seqlens is None else initial_state[n]).astype(q.dtype)]
        for t in range(tokens.start, tokens.stop):
            S.append(decayed(g[..., t, :, None], S[-1]) + outer(k[..., t, :], v[..., t, :]))
        end = 0 * S[0] if dS is None or wrong != "sequences share gradients of the state" else dS
        if dstate is not None and wrong != "dstate ignored":
            end = end + (dstate if cu_seqlens is None else dstate[n]).astype(q.dtype)
        dS, last = (0 * end, end) if wrong == "dstate not decayed" else (end, 0 * end)
        for t in reversed(range(tokens.start, tokens.stop)):
            old, now, gate = S[t - tokens.start], S[t - tokens.start + 1], g[..., t, :, None]
            size = 1.0 if wrong == "dq without scale" else scale
            dq[..., t, :] = (
                size
                * (share_heads(old if wrong == "dq of the state before" else now, Ho) @ do[..., t, :, None])[..., 0]
            )
            if wrong == "gate of the gradient one token early":
                dS = decayed(gate, dS)
            if wrong == "dk without the tokens to come":
                dS = 0 * dS
            dS = dS + sum_heads(outer(scale * q[..., t, :], do[..., t, :]), Hv)
            dk[..., t, :] = ((dS + last) @ v[..., t, :, None])[..., 0]
            dv[..., t, :] = (k[..., t, None, :] @ (dS + last))[..., 0, :]
            through = (dS * (now if wrong == "gate's gradient from the state after" else old)).sum(axis=-1)
            whole = wrong == "gate's gradient without its decay"
            dg[..., t, :] = through if whole else decayed(g[..., t, :], through)
            if wrong == "gate of -inf has NaN":
                dg[..., t, :] = np.exp(g[..., t, :]) * through
            if wrong != "gate of the gradient one token early":
                dS = decayed(gate, dS)
        firsts.insert(0, dS + last)
    if wrong == "dq of the first head of a group" and q.ndim > 2:
        dq = dq.reshape(*dq.shape[:-3], H, Ho // H, *dq.shape[-2:])[..., 0, :, :]
    dq, dk = sum_heads(dq, H), sum_heads(dk, Hk)
    first = firsts[0] if cu_seqlens is None else np.stack(firsts)
    first = None if initial_state is None else first.astype(initial_state.dtype)
    if kind == "hgrn2":
        found = (dq, dg - decayed(g, dk), dv)
        return Hgrn2Gradients(*(dx.astype(x.dtype) for dx, x in zip(found, arrays, strict=True)), first)
    if kind != "gated_linear_attention":
        dg = dg.sum(axis=-1)
    if kind in ("retention", "lightning_attention"):
        dg = dg.sum(axis=-1).reshape(-1, Hv).sum(axis=0)
    found = (dx.astype(x.dtype) for dx, x in zip((dq, dk, dv, dg), arrays, strict=True))
    return RecurrentGradients(*found, None, first)


def gates_one_dimension_on(q, k, v, log_decay, **options):
    return refattn.gated_linear_attention(q, k, v, np.roll(log_decay, 1, axis=-1), **options, backend="numpy")


def gates_of_the_first_dimension(q, k, v, log_decay, **options):
    return refattn.simple_gla(q, k, v, log_decay[..., 0], **options, backend="numpy")


def keys_without_the_gate(q, log_decay, v, **options):
    k = np.ones_like(log_decay).astype(q.dtype)
    return refattn.gated_linear_attention(q, k, v, log_decay, scale=1.0, **options, backend="numpy")


def dlog_decay_without_the_keys(do, q, log_decay, v, *, scale=1.0, **options):
    k = -np.expm1(log_decay.astype(compute_dtype(q.dtype))).astype(q.dtype)
    g = refattn.gated_linear_attention_vjp(do, q, k, v, log_decay, scale=scale, **options, backend="numpy")
    return Hgrn2Gradients(g.dq, g.dlog_decay, g.dv, g.dinitial_state)


def mean_over_tokens(*arrays, **options):
    g = refattn.retention_vjp(*arrays, **options, backend="numpy")
    return g._replace(dlog_decay=g.dlog_decay / max(arrays[0].shape[-2], 1))


SAME = [(kind, "decay of the token before") for kind in ("retention", "lightning_attention")]
MUTANTS = {
    f"{kind}: {wrong}": (kind, partial(forward, kind=kind, wrong=wrong))
    for kind in KINDS
    for wrong in EVERY
    if (kind, wrong) not in SAME
}
MUTANTS |= {
    f"{kind}_vjp: {wrong}": (f"{kind}_vjp", partial(backward, kind=kind, wrong=wrong))
    for kind in KINDS
    for wrong in BACKWARD
}
MUTANTS |= {
    f"{kind}_chunked: {wrong}": (f"{kind}_chunked", partial(forward, kind=kind, wrong=wrong))
    for kind in KINDS
    for wrong in CHUNKED
}
MUTANTS |= {
    f"{kind}_recurrent: {wrong}": (f"{kind}_recurrent", partial(forward, kind=kind, wrong=wrong))
    for kind in KINDS
    for wrong in EVERY[:2]
}
MUTANTS |= {
    "gated_linear_attention: gates one dimension on": ("gated_linear_attention", gates_one_dimension_on),
    "gated_linear_attention: gates of the first dimension": ("gated_linear_attention", gates_of_the_first_dimension),
    "hgrn2: keys without the gate": ("hgrn2", keys_without_the_gate),
    "hgrn2_vjp: dlog_decay without the keys": ("hgrn2_vjp", dlog_decay_without_the_keys),
    "retention_vjp: mean over tokens": ("retention_vjp", mean_over_tokens),
}
