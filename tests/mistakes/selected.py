"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants.

Each operation is written here once more, as dense attention under a mask; without a mistake it passes every case, which
tests/sparse tests.
"""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np

import refattn
from refattn import dispatch, masks
from refattn.arrays import compute_dtype
from refattn.testing import cases
from refattn.testing.conformance import judge


def wide(*arrays):
    return [x.astype(compute_dtype(x.dtype)) for x in arrays]


def grouped(x, q):
    """Repeat the key heads for the query heads that share them."""
    return x if x.ndim == 2 else np.repeat(x, q.shape[-3] // x.shape[-3], axis=-3)


def pick(scores, n, allowed, forced, wrong):
    """Return the places of the n best, by a loop over places: the last to come wins only if it is better."""
    allowed, forced = (np.broadcast_to(x, scores.shape) for x in (allowed, forced))
    nan = -np.inf if wrong == "NaN is the smallest" else np.inf
    rank = np.where(np.isnan(scores), nan, scores)
    rows = []
    for row in np.ndindex(scores.shape[:-1]):
        places = np.flatnonzero(allowed[row])
        places = places[::-1] if wrong == "ties go to the highest index" else places
        order = sorted(places, key=lambda j, row=row: (not forced[row][j], -rank[row][j]))[:n]
        order = order if wrong == "indices in the order of scores" else sorted(order)
        rows.append(order + [-1] * (n - len(order)))
    return np.array(rows, np.int64).reshape(*scores.shape[:-1], n)


def named(indices, n):
    """Return which of n places each query names."""
    return (indices[..., None, :] == np.arange(n)[:, None]).any(axis=-1)


def attend(q, k, v, seen, **options):
    return refattn.attention(q, k, v, mask=seen, **options, return_lse=True, backend="numpy")


TOPK = (
    *(
        "ties go to the highest index",
        "NaN is the smallest",
        "indices in the order of scores",
        "hidden keys are chosen",
    ),
    *("chosen after the softcap", "chosen by magnitude", "scale missing in the choice", "one key fewer"),
    *("sinks forgotten", "the first head of a group chooses", "the mask ignored where indices are given"),
    *("indices ignored", "int32 indices", "-1 names the last key", "heads taken round robin"),
)


def topk(q, k, v, *, n_keys, mask=None, scale=None, softcap=None, sinks=None, indices=None, wrong=""):
    wide_q, wide_k = wide(q, k)
    if wrong == "heads taken round robin" and q.ndim > 2:
        k, v = (np.concatenate([x] * (q.shape[-3] // x.shape[-3]), axis=-3) for x in (k, v))
        wide_k = k.astype(wide_q.dtype)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    s = wide_q @ grouped(wide_k, q).swapaxes(-1, -2) * (1 if wrong == "scale missing in the choice" else factor)
    if wrong == "chosen after the softcap" and softcap is not None:
        s = (softcap * np.tanh(s / softcap)).astype(np.float16)
    s = abs(s) if wrong == "chosen by magnitude" else s
    if wrong == "the first head of a group chooses" and q.ndim > 2:
        group = q.shape[-3] // k.shape[-3]
        s = np.repeat(s[..., ::group, :, :], group, axis=-3)
    Tk = k.shape[-2]
    pattern = masks.as_mask(mask)
    visible = np.broadcast_to(True if pattern is None else pattern.dense(*s.shape[-2:]), s.shape)
    if indices is not None and wrong != "indices ignored":
        given = named(indices, Tk)
        visible = given if wrong == "the mask ignored where indices are given" else visible & given
    allowed = np.ones_like(visible) if wrong == "hidden keys are chosen" else visible
    indices = pick(s, n_keys - (wrong == "one key fewer"), allowed, False, wrong)
    if wrong == "one key fewer":
        indices = np.concatenate([indices, np.full((*indices.shape[:-1], 1), -1)], axis=-1)
    seen = named(indices, Tk) & visible
    if wrong == "-1 names the last key":
        seen[..., -1:] |= (indices < 0).any(axis=-1, keepdims=True)
    sinks = None if wrong == "sinks forgotten" else sinks
    o, lse = attend(q, k, v, seen, scale=scale, softcap=softcap, sinks=sinks)
    return refattn.SelectedAttention(o, lse, indices.astype(np.int32) if wrong == "int32 indices" else indices)


MOBA = (
    *("ties go to the highest index", "NaN is the smallest", "own chunk is not forced", "own chunk is not counted"),
    *("own chunk seen whole", "future chunks chosen", "gate is the largest key", "aligned at the top left"),
    *("last chunk dropped", "the first head of a group chooses", "indices ignored", "own chunk added to indices"),
    "the key under the gate is the first of the chunk",
)


def moba(q, k, v, *, chunk, top_k, scale=None, indices=None, wrong=""):
    wide_q, wide_k = wide(q, k)
    Tq, Tk = q.shape[-2], k.shape[-2]
    count = Tk // chunk if wrong == "last chunk dropped" else -(-Tk // chunk)
    position = np.arange(Tq)[:, None] + (0 if wrong == "aligned at the top left" else Tk - Tq)
    gate = np.zeros((*q.shape[:-1], count), wide_q.dtype)
    for c in range(count):
        keys = grouped(wide_k, q)[..., c * chunk : (c + 1) * chunk, :]
        mean = keys[..., 0, :] if wrong.startswith("the key under the gate") else keys.mean(axis=-2)
        each = wide_q @ keys.swapaxes(-1, -2)
        gate[..., c] = each.max(axis=-1) if "largest" in wrong else (wide_q * mean[..., None, :]).sum(axis=-1)
    if wrong == "the first head of a group chooses" and q.ndim > 2:
        group = q.shape[-3] // k.shape[-3]
        gate = np.repeat(gate[..., ::group, :, :], group, axis=-3)
    chunks, current = np.arange(count), position // chunk
    allowed = np.full((Tq, count), True) if wrong == "future chunks chosen" else chunks <= current
    if indices is not None and wrong != "indices ignored":
        allowed = allowed & named(indices, count)
    forced = False if wrong == "own chunk is not forced" else chunks == current
    if wrong == "own chunk is not counted":
        allowed = allowed & (chunks != current)
    indices = pick(gate, top_k, allowed, forced, wrong)
    names = named(indices, count)
    if wrong in ("own chunk is not counted", "own chunk added to indices"):
        names = names | (chunks == current)
    seen = np.zeros((*q.shape[:-1], Tk), bool)
    for j in range(min(Tk, count * chunk)):
        last = position // chunk * chunk + chunk - 1 if wrong == "own chunk seen whole" else position
        seen[..., j] = names[..., j // chunk] & (j <= last[:, 0])
    return refattn.SelectedAttention(*attend(q, k, v, seen, scale=scale), indices)


NSA = (
    *("ties go to the highest index", "unfinished blocks compressed", "importance of the first head only"),
    *("importance is the largest", "strides in common not counted", "blocks counted from zero"),
    *("first block not pinned", "one local block pinned", "three local blocks pinned", "window one key wider"),
    *("window one key narrower", "own block seen whole", "w_v for the keys", "w_k ignored", "gates in another order"),
    *("own projections ignored", "compressed values are those selected", "gates after the softmax", "indices ignored"),
    *("lse of the whole in each branch", "aligned at the top left", "overlapping blocks ignored"),
)


def nsa(
    q,
    k,
    v,
    gates,
    *,
    block_size,
    stride,
    select_block,
    n_selected,
    window,
    w_k=None,
    w_v=None,
    k_selected=None,
    v_selected=None,
    k_window=None,
    v_window=None,
    scale=None,
    indices=None,
    wrong="",
):
    dtype, Tq, Tk, group = q.dtype, q.shape[-2], k.shape[-2], 1 if q.ndim == 2 else q.shape[-3] // k.shape[-3]
    q, k, v, gates = wide(q, k, v, gates)
    own = [
        x if given is None or "own projections" in wrong else given.astype(q.dtype)
        for x, given in ((k, k_selected), (v, v_selected), (k, k_window), (v, v_window))
    ]
    position = np.arange(Tq)[:, None] + (0 if wrong == "aligned at the top left" else Tk - Tq)
    w_k = w_v if wrong == "w_v for the keys" else None if wrong == "w_k ignored" else w_k
    starts = np.arange(0, max(0, Tk - block_size + 1), stride)
    if wrong == "overlapping blocks ignored":
        starts = starts[:: block_size // stride]
    kc, vc = (compressed(x, w, starts, block_size) for x, w in ((k, w_k), (v, w_v)))
    ready = starts + (0 if wrong == "unfinished blocks compressed" else block_size - 1) <= position
    branches = [attend(q, kc, vc, np.broadcast_to(ready, (*q.shape[:-1], len(starts))), scale=scale)]
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    s = np.where(ready, factor * (q @ grouped(kc, q).swapaxes(-1, -2)), -np.inf)
    p = np.nan_to_num(np.exp(s - np.where(np.isneginf(branches[0][1]), 0, branches[0][1])[..., None]), nan=np.nan)

    count = -(-Tk // select_block)
    importance = np.zeros((*q.shape[:-1], count), q.dtype)
    for c in range(count):
        for b, start in enumerate(starts):
            low, high = max(start, c * select_block), min(start + block_size, (c + 1) * select_block)
            low, high = (
                (low, high)
                if wrong != "blocks counted from zero"
                else (max(start, (c - 1) * select_block), min(start + block_size, c * select_block))
            )
            shared = max(0, high - low) // stride
            if shared:
                importance[..., c] += p[..., b] * (1 if wrong == "strides in common not counted" else shared)
    if q.ndim > 2:
        shape = (*q.shape[:-3], q.shape[-3] // group, group, Tq, count)
        importance = importance.reshape(shape)
        first, largest = importance[..., 0, :, :], importance.max(axis=-3)
        importance = first if "first head" in wrong else largest if "largest" in wrong else importance.sum(axis=-3)
    blocks, current = np.arange(count), position // select_block
    allowed = blocks <= current
    if indices is not None and wrong != "indices ignored":
        allowed = allowed & named(indices, count)
    local = {"one local block pinned": 0, "three local blocks pinned": 2}.get(wrong, 1)
    pinned = ((blocks == 0) & (wrong != "first block not pinned")) | ((blocks <= current) & (blocks >= current - local))
    indices = pick(importance, n_selected, allowed, pinned, wrong)
    names = named(grouped(indices, q), count)
    seen = np.repeat(names, select_block, axis=-1)[..., :Tk]
    back = position - np.arange(Tk)
    last = (current + 1) * select_block - 1 if wrong == "own block seen whole" else position
    branches.append(attend(q, own[0], own[1], seen & (np.arange(Tk) <= last), scale=scale))
    width = window + {"window one key wider": 1, "window one key narrower": -1}.get(wrong, 0)
    branches.append(attend(q, own[2], own[3], (back >= 0) & (back < width), scale=scale))
    if wrong == "compressed values are those selected":
        branches[0] = (branches[1][0], branches[0][1])
    if wrong == "gates in another order":
        gates = gates[..., ::-1]
    if wrong == "gates after the softmax":
        gates = np.exp(gates) / np.exp(gates).sum(axis=-1, keepdims=True)
    o = sum(gates[..., c, None] * branch[0] for c, branch in enumerate(branches))
    lse = np.stack([lse for _, lse in branches], axis=-1)
    if wrong == "lse of the whole in each branch":
        lse = np.broadcast_to(np.logaddexp.reduce(lse, axis=-1, keepdims=True), lse.shape).copy()
    return refattn.NsaAttention(o.astype(dtype), lse, indices)


def compressed(x, w, starts, size):
    w = np.full((1, size), 1 / size, x.dtype) if w is None else w.astype(x.dtype)
    w = w[0] if x.ndim == 2 else np.broadcast_to(w, (x.shape[-3], size))
    parts = [(x[..., start : start + size, :] * w[..., None]).sum(axis=-2) for start in starts]
    return np.stack(parts, axis=-2) if parts else np.zeros((*x.shape[:-2], 0, x.shape[-1]), x.dtype)


LSH = (
    *(
        "a pair counts in each round",
        "a token sees itself",
        "a token alone sees nothing",
        "alone in one round is enough",
    ),
    *("the chunk before is not seen", "the chunk after is seen", "the first chunk sees the last"),
    *("keys not normalised", "chunks of unsorted tokens", "other buckets in the chunk", "negative side first"),
    *("scale missing", "the future is seen", "always causal", "the last round only", "last chunk dropped"),
    *("position does not sort", "buckets ignored"),
)


def lsh(qk, v, *, chunk, rotations=None, causal=True, scale=None, buckets=None, wrong=""):
    q, _ = wide(qk, v)
    T = q.shape[-2]
    if buckets is None:
        turned = q[..., None, :, :] @ rotations.astype(q.dtype)
        sides = [-turned, turned] if wrong == "negative side first" else [turned, -turned]
        buckets = np.concatenate(sides, axis=-1).argmax(axis=-1)
    used = buckets = np.array(buckets, np.int64)
    if wrong == "buckets ignored":
        used = np.zeros_like(buckets)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    k = (q if wrong == "keys not normalised" else q / np.where(norm == 0, 1, norm)).astype(q.dtype)
    key = used * T + (np.arange(T)[::-1] if wrong == "position does not sort" else np.arange(T))
    order = np.broadcast_to(np.arange(T), used.shape) if wrong == "chunks of unsorted tokens" else key.argsort(axis=-1)
    cells = order.argsort(axis=-1) // chunk
    back = cells[..., :, None] - cells[..., None, :]
    near = (back == 0) | ((back == 1) & (wrong != "the chunk before is not seen"))
    near |= (back == -1) & (wrong == "the chunk after is seen")
    if wrong == "the first chunk sees the last":
        near |= (cells[..., :, None] == 0) & (cells[..., None, :] == (T - 1) // chunk)
    near &= (used[..., :, None] == used[..., None, :]) | (wrong == "other buckets in the chunk")
    if wrong == "last chunk dropped" and T % chunk:
        near &= (cells < T // chunk)[..., None, :]
    hidden_future = (causal or wrong == "always causal") and wrong != "the future is seen"
    near &= (np.tri(T, dtype=bool) | (not hidden_future)) & ~np.eye(T, dtype=bool)  # (..., rounds, T, T)
    near = near[..., -1:, :, :] if wrong == "the last round only" else near
    alone = ~near.any(axis=-1, keepdims=True)
    alone = alone.any(axis=-3) if wrong == "alone in one round is enough" else alone.all(axis=-3)
    own = np.eye(T, dtype=bool) & (alone | (wrong == "a token sees itself")) & (wrong != "a token alone sees nothing")
    bias = np.zeros((*q.shape[:-1], T), q.dtype)
    if wrong == "a pair counts in each round":
        bias = np.log(np.maximum(near.sum(axis=-3), 1)).astype(q.dtype)
    scale = 1.0 if wrong == "scale missing" and scale is None else scale
    o, lse = attend(q, k, v.astype(q.dtype), near.any(axis=-3) | own, bias=bias, scale=scale)
    return refattn.LshAttention(o.astype(qk.dtype), lse, buckets)


RIGHT = {"topk_attention": topk, "moba_attention": moba, "nsa_attention": nsa, "lsh_attention": lsh}
WRONG = {"topk_attention": TOPK, "moba_attention": MOBA, "nsa_attention": NSA, "lsh_attention": LSH}
MUTANTS = {
    f"{operation}: {wrong}": (operation, partial(RIGHT[operation], wrong=wrong))
    for operation, mistakes in WRONG.items()
    for wrong in mistakes
}


def failures_of_what_is_right(operation):
    """Return the cases that the implementation without a mistake fails."""
    dispatch.register("right", SimpleNamespace(**{operation: RIGHT[operation]}))
    try:
        results = [judge(case, "right", {}) for case in cases(operation) if case.dtype == "float32"]
    finally:
        dispatch.unregister("right")
    return [f"{result.check}: {result.message}" for result in results if result.verdict != "PASS"]
