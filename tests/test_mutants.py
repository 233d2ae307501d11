"""A test of the conformance run: implementations that are wrong in one place must each be failed by it.

`attend` and `attend_vjp` are right as long as `wrong` is empty, and wrong in the one way that it names.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import refattn
from refattn import dispatch, masks
from refattn.arrays import compute_dtype
from refattn.dense.common import per_head, select_matmul, sum_to
from refattn.testing import cases
from refattn.testing.conformance import judge
from refattn.testing.verdicts import FAIL, PASS
from tests.mistakes import delta, features, gated, latent, packed, rwkv, selected, sparse, ssm

FORWARD = [
    "causal aligned to the top left",
    "mask one key too wide",
    "mask one key too narrow",
    "mask ignored by the last query",
    "heads taken round robin",
    "sink counted twice",
    "sink forgotten",
    "sink missing in lse",
    "scale missing",
    "scale 1 / D",
    "scale a thousandth too large",
    "softcap after bias",
    "softcap before scale",
    "bias scaled",
    "bias of the first head for all",
    "last key dropped",
    "keys padded with zeros to a multiple of 16",
    "mask added, so that NaN leaks",
    "hidden values multiplied by zero",
    "mask of -1e9",
    "blind rows are NaN",
    "lse in base 2",
    "lse in the dtype of q",
    "no maximum subtracted",
    "maximum not carried over to earlier tiles",
    "dropout changes lse",
    "dropout does not rescale",
    "weights rounded to half precision",
    "output rounded to half precision",
    "output in float64",
    "output transposed in memory only",
    "q scaled in place",
    "one buffer for all results",
    "a result that changes from call to call",
    "second sequence computed from the first",
]
BACKWARD = [
    "dk of the first head of a group",
    "delta forgotten",
    "dlse ignored",
    "dlse added with the wrong sign",
    "dq without scale",
    "slope of the softcap forgotten",
    "dbias averaged",
    "dbias scaled",
    "dsinks with the wrong sign",
    "dropout only in dv",
    "hidden keys multiplied by zero",
    "dq of a blind row is NaN",
    "dv from undropped weights",
]


def attend(
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    scale=None,
    softcap=None,
    sinks=None,
    dropout_mask=None,
    dropout_p=0.0,
    return_lse=False,
    wrong="",
):
    dtype, compute = q.dtype, compute_dtype(q.dtype)
    if wrong == "q scaled in place":
        q *= 2
    s, visible, _ = scores(q, k, mask, bias, scale, softcap, wrong)
    v = heads(v.astype(compute), q, wrong)
    p, lse = softmax(s, visible, sinks, wrong)
    if dropout_mask is not None:
        p = np.where(dropout_mask, p if wrong == "dropout does not rescale" else p / (1 - dropout_p), 0)
        if wrong == "dropout changes lse":
            with np.errstate(divide="ignore"):
                lse = lse + np.log(p.sum(axis=-1))
    if wrong == "weights rounded to half precision":
        p = p.astype(np.float16).astype(compute)
    o = p @ v if wrong == "hidden values multiplied by zero" else select_matmul(p, v, visible)
    if wrong == "blind rows are NaN":
        o[np.isneginf(lse)] = np.nan
    if wrong == "output rounded to half precision":
        o = o.astype(np.float16)
    if wrong == "second sequence computed from the first" and o.ndim > 3:
        o[1:] = o[:1]
    lse = (
        lse / math.log(2)
        if wrong == "lse in base 2"
        else lse.astype(dtype if wrong == "lse in the dtype of q" else compute)
    )
    o = finish(o.astype(np.float64 if wrong == "output in float64" else dtype), wrong)
    return (o, lse) if return_lse else o


def scores(q, k, mask, bias, scale, softcap, wrong):
    """Return s, which pairs are visible, and the slope of the softcap."""
    compute = compute_dtype(q.dtype)
    q, k = q.astype(compute), heads(k.astype(compute), q, wrong)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scale *= {"scale missing": math.sqrt(q.shape[-1]), "scale 1 / D": q.shape[-1] ** -0.5}.get(wrong, 1)
    scale *= 1.001 if wrong == "scale a thousandth too large" else 1
    s = q @ k.swapaxes(-1, -2) * compute.type(scale)
    b = np.zeros((), compute) if bias is None else bias.astype(compute)
    if wrong == "bias of the first head for all" and b.ndim > 2:
        b = b[..., :1, :, :]
    if wrong == "bias scaled":
        b = b * compute.type(scale)
    t = slope = None
    if softcap is not None:
        x = s + b if wrong == "softcap after bias" else s / scale if wrong == "softcap before scale" else s
        t = np.tanh(x / softcap)
        s = softcap * t * (scale if wrong == "softcap before scale" else 1)
        slope = 1 - t**2
        b = 0 * b if wrong == "softcap after bias" else b
    return s + b, seen(mask, s, wrong), 1.0 if slope is None else slope


def seen(mask, s, wrong):
    pattern = masks.as_mask(mask)
    if wrong == "causal aligned to the top left" and pattern == masks.causal():
        pattern = masks.causal(0)
    visible = (
        np.ones(s.shape, bool) if pattern is None else np.array(np.broadcast_to(pattern.dense(*s.shape[-2:]), s.shape))
    )
    if pattern is not None and s.shape[-1] > 1 and s.shape[-2] > 0:
        if wrong == "mask one key too wide":
            visible[..., 1:] |= visible[..., :-1].copy()
        if wrong == "mask one key too narrow":
            visible[..., :-1] &= visible[..., 1:].copy()
        if wrong == "mask ignored by the last query":
            visible[..., -1, :] = True
    if wrong == "last key dropped" and s.shape[-1] > 1:
        visible[..., -1] = False
    return visible


def heads(x, q, wrong):
    if q.ndim == 2:
        return x
    group = q.shape[-3] // x.shape[-3]
    if wrong == "heads taken round robin":
        return np.concatenate([x] * group, axis=-3)
    return np.repeat(x, group, axis=-3)


def softmax(s, visible, sinks, wrong):
    low = -1e9 if wrong == "mask of -1e9" else -np.inf
    with np.errstate(invalid="ignore"):
        s = s + np.where(visible, 0, low) if wrong == "mask added, so that NaN leaks" else np.where(visible, s, low)
    m = s.max(axis=-1, keepdims=True, initial=-np.inf)
    sink = np.full((1, 1), -np.inf)
    if sinks is not None and wrong != "sink forgotten":
        sink = per_head(sinks.astype(s.dtype), s.ndim)
    m = np.maximum(m, sink)
    m = np.where(np.isneginf(m) | (wrong == "no maximum subtracted"), 0, m)
    p, p_sink = np.exp(s - m), np.exp(sink - m)
    if wrong == "maximum not carried over to earlier tiles":
        first = s[..., :16]
        p[..., :16] = np.exp(first - first.max(axis=-1, keepdims=True, initial=-1e30))
    l = p.sum(axis=-1, keepdims=True) + p_sink * (2 if wrong == "sink counted twice" else 1)
    if wrong == "keys padded with zeros to a multiple of 16":
        l = l + (-s.shape[-1] % 16) * np.exp(-m)
    with np.errstate(divide="ignore"):
        lse = (m + np.log(l - p_sink if wrong == "sink missing in lse" else l))[..., 0]
    p = p / np.where(l == 0, 1, l)
    if wrong not in ("mask added, so that NaN leaks", "mask of -1e9"):
        p = np.where(visible, p, 0)  # beside NaN too
    return p.astype(s.dtype), lse.astype(s.dtype)


BUFFERS = {}
CALLS = []


def finish(o, wrong):
    if wrong == "one buffer for all results":
        room = BUFFERS.setdefault((o.shape, o.dtype), o)
        room[...] = o
        return room
    if wrong == "a result that changes from call to call":
        CALLS.append(None)
        return np.nextafter(o, np.inf, dtype=o.dtype) if len(CALLS) % 3 == 0 and o.dtype != "bfloat16" else o
    return np.asfortranarray(o) if wrong == "output transposed in memory only" else o


def attend_vjp(
    do,
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    scale=None,
    softcap=None,
    sinks=None,
    dropout_mask=None,
    dropout_p=0.0,
    dlse=None,
    wrong="",
):
    dtype, compute = q.dtype, compute_dtype(q.dtype)
    s, visible, slope = scores(q, k, mask, bias, scale, softcap, "")
    p, lse = softmax(s, visible, sinks, "")
    q, do = q.astype(compute), do.astype(compute)
    kv_shape, value_shape = k.shape, v.shape
    k, v = (heads(x.astype(compute), q, "") for x in (k, v))
    scale = compute.type(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    keep = 1.0 if dropout_mask is None else np.where(dropout_mask, 1 / (1 - dropout_p), 0).astype(compute)
    across = visible.swapaxes(-1, -2)
    dv = select_matmul((p if wrong == "dv from undropped weights" else p * keep).swapaxes(-1, -2), do, across)
    with np.errstate(invalid="ignore"):
        dp = np.where(visible, do @ v.swapaxes(-1, -2) * (1 if wrong == "dropout only in dv" else keep), 0)
    pull = (p * dp).sum(axis=-1, keepdims=True) * (0 if wrong == "delta forgotten" else 1)
    if dlse is not None and wrong != "dlse ignored":
        pull = pull - dlse[..., None] * (-1 if wrong == "dlse added with the wrong sign" else 1)
    ds = np.where(visible, p * (dp - pull), 0)
    through = np.where(visible, scale * ds * (1 if wrong == "slope of the softcap forgotten" else slope), 0)
    multiply = (lambda a, b, _: a @ b) if wrong == "hidden keys multiplied by zero" else select_matmul
    dq = multiply(through / scale if wrong == "dq without scale" else through, k, visible)
    dk = select_matmul(through.swapaxes(-1, -2), q, across)
    if wrong == "dq of a blind row is NaN":
        dq[np.isneginf(lse)] = np.nan
    dbias = None if bias is None else sum_to(scale * ds if wrong == "dbias scaled" else ds, bias.shape)
    if wrong == "dbias averaged" and bias is not None:
        dbias = dbias * bias.size / ds.size
    dsinks = None
    if sinks is not None:
        p_sink = np.exp(per_head(sinks.astype(compute), s.ndim) - lse[..., None])
        pulled = np.where(np.isneginf(lse)[..., None], 0, p_sink * pull) * (1 if "dsinks" in wrong else -1)
        each = np.atleast_1d(pulled.sum(axis=(-2, -1)))  # (..., H)
        dsinks = each.sum(axis=tuple(range(each.ndim - 1))).astype(sinks.dtype)
    first = wrong == "dk of the first head of a group"
    dk, dv = grouped(dk, kv_shape, first), grouped(dv, value_shape, False)
    dbias = None if bias is None else dbias.astype(bias.dtype)
    return refattn.AttentionGradients(dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), dbias, dsinks)


def grouped(dx, shape, first):
    if dx.ndim == 2:
        return dx
    dx = dx.reshape(*shape[:-3], shape[-3], dx.shape[-3] // shape[-3], *shape[-2:])
    return dx[..., 0, :, :] if first else dx.sum(axis=-3)


def rope_of_float32_angles(x, positions, *, theta=10000.0, rotary_dim=None, interleaved=False):
    return turn(x, positions, theta, rotary_dim, interleaved, angle=np.float32)


def rope_of_the_whole_width(x, positions, *, theta=10000.0, rotary_dim=None, interleaved=False):
    return turn(x, positions, theta, rotary_dim, interleaved, width=x.shape[-1])


def rope_always_interleaved(x, positions, *, theta=10000.0, rotary_dim=None, interleaved=False):
    return turn(x, positions, theta, rotary_dim, True)


def rope_the_other_way(x, positions, *, theta=10000.0, rotary_dim=None, interleaved=False):
    return turn(x, -positions.astype(np.int64), theta, rotary_dim, interleaved)


def turn(x, positions, theta, rotary_dim, interleaved, angle=np.float64, width=None):
    n = x.shape[-1] if rotary_dim is None else rotary_dim
    frequency = (theta ** (-np.arange(0, n, 2) / (width or max(n, 1)))).astype(angle)
    phi = positions[..., None].astype(angle) * frequency
    phi = phi[..., None, :, :] if positions.ndim > 1 else phi
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    y = x.astype(compute_dtype(x.dtype))
    cos, sin = np.cos(phi).astype(y.dtype), np.sin(phi).astype(y.dtype)
    y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
    return y.astype(x.dtype)


def merge_without_maximum(*parts, sinks=None):
    weights = [np.exp(lse) for _, lse in parts]
    extra = 0 if sinks is None else np.exp(per_head(sinks, parts[0][0].ndim)[..., 0])
    total = sum(weights) + extra
    o = sum(w[..., None] * o for w, (o, _) in zip(weights, parts, strict=True))
    with np.errstate(divide="ignore"):
        return (o / np.where(total == 0, 1, total)[..., None]).astype(parts[0][0].dtype), np.log(total)


def merge_with_a_sink_for_each_part(*parts, sinks=None):
    with_sinks = [refattn.merge_attention(part, sinks=sinks, backend="numpy") for part in parts]
    return refattn.merge_attention(*with_sinks, backend="numpy")


def split_without_the_rest(q, k, v, *, num_splits=4, **options):
    """Keys beyond num_splits equal runs are forgotten."""
    visible = np.ones((q.shape[-2], k.shape[-2]), bool)
    visible[:, k.shape[-2] // num_splits * num_splits :] = False
    mask = masks.from_array(visible) & (masks.as_mask(options.pop("mask", None)) or masks.window(None, None))
    return refattn.attention(q, k, v, mask=mask, **options, backend="numpy")


def heads_without_output_bias(*args, b_o=None, **options):
    return refattn.multi_head_attention(*args, **options, backend="numpy")


def heads_over_a_reversed_context(*args, context=None, **options):
    context = None if context is None else context[..., ::-1, :]
    return refattn.multi_head_attention(*args, context=context, **options, backend="numpy")


def heads_in_the_other_order(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, **options):
    D = w_q.shape[1] // heads
    turned = [w.reshape(w.shape[0], D, -1).swapaxes(1, 2).reshape(w.shape) for w in (w_q, w_k)]
    return refattn.multi_head_attention(
        x, *turned, w_v, w_o, heads=heads, kv_heads=kv_heads, **options, backend="numpy"
    )


OTHERS = {
    "rope": [rope_of_float32_angles, rope_of_the_whole_width, rope_always_interleaved, rope_the_other_way],
    "rope_vjp": [rope_of_the_whole_width, lambda dy, positions, **o: refattn.rope(dy, positions, **o, backend="numpy")],
    "merge_attention": [merge_without_maximum, merge_with_a_sink_for_each_part],
    "attention_split_kv": [split_without_the_rest],
    "multi_head_attention": [heads_without_output_bias, heads_over_a_reversed_context, heads_in_the_other_order],
}
MUTANTS = {
    **{f"attention: {wrong}": ("attention", attend, wrong) for wrong in FORWARD},
    **{f"attention_vjp: {wrong}": ("attention_vjp", attend_vjp, wrong) for wrong in BACKWARD},
    **{
        f"{operation}: {mutant.__name__}": (operation, mutant, None)
        for operation, mutants in OTHERS.items()
        for mutant in mutants
    },
}
for kind in (sparse, selected, packed, latent, gated, delta, features, ssm, rwkv):
    MUTANTS |= {name: (operation, function, None) for name, (operation, function) in kind.MUTANTS.items()}
EQUIVALENT = {"attention: output transposed in memory only"}  # layout of a result is nobody's business


@pytest.fixture
def mutant():
    yield lambda operation, function: dispatch.register("mutant", SimpleNamespace(**{operation: function}))
    dispatch.unregister("mutant")


def results(operation):
    """Judge the quick cases and then the others, those in float64 and 16 bits left out."""
    quick = cases(operation, "quick")
    rest = [case for case in cases(operation) if case.dtype == "float32" and case not in quick]
    return (judge(case, "mutant", {}) for case in [*quick, *rest])


def with_wrong(function, wrong):
    return lambda *args, **options: function(*args, **options, wrong=wrong)


@pytest.mark.parametrize(("operation", "function"), [("attention", attend), ("attention_vjp", attend_vjp)])
def test_what_the_mutants_are_made_from_is_right(mutant, operation, function):
    mutant(operation, function)
    failed = [f"{result.check}: {result.message}" for result in results(operation) if result.verdict != PASS]
    assert failed == []


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_failed(mutant, name):
    operation, function, wrong = MUTANTS[name]
    mutant(operation, function if wrong is None else with_wrong(function, wrong))
    failed = next((result for result in results(operation) if result.verdict == FAIL), None)
    if name in EQUIVALENT:
        assert failed is None, failed
    else:
        assert failed is not None, "survived"
        assert "unexpected keyword" not in failed.message
        assert failed.message.startswith("raised") == ("in place" in name), failed
