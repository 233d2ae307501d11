"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

import math
from functools import partial

import numpy as np

import refattn
from refattn import masks
from refattn.arrays import compute_dtype
from refattn.results import LongformerGradients
from refattn.testing.bounds.sparse import MASKS

GENERAL = [  # what any form can get wrong
    "top left alignment",
    "heads taken round robin",
    "the last query sees what the one before sees",
    "queries beyond whole runs of 16 are zero",
    "sinks counted twice",
    "sinks forgotten",
    "blind rows are NaN",
    "scale forgotten",
    "softcap forgotten",
    "lse in base 2",
    "lse in the dtype of q",
    "lse always returned",
    "hidden values multiplied by zero",
    "a key read twice",
    "one pair forgotten",
    "reads strided arrays as if they were not",
]
GENERAL_BACKWARD = [
    "top left alignment",
    "a key keeps what the last query sends",
    "a key keeps what the last head sends",
    "dlse forgotten",
    "dlse with the wrong sign",
    "dsinks of the last strip alone",
    "dsinks averaged",
    "dk without scale",
    "dbias of zeros",
    "one pair forgotten",
]
WITHOUT_POSITIONS = ("sparse_attention", "block_sparse_attention")  # theirs says itself where a query stands
NOTHING_BLIND = ("random_attention", "bigbird_attention")  # every query sees some key, if there are any


def form(name, q, k, v, *, wrong, return_lse=False, **options):
    """Attend densely under the mask of a form, wrong in one way."""
    visible = pattern(name, q, k, wrong, options)
    options = {key: options[key] for key in DENSE if key in options}
    if wrong == "heads taken round robin" and q.ndim > 2:
        k, v = (np.concatenate([x] * (q.shape[-3] // k.shape[-3]), axis=-3) for x in (k, v))
    if wrong == "reads strided arrays as if they were not":
        q, k, v = (misread(x) for x in (q, k, v))
    if wrong == "scale forgotten":
        options["scale"] = 1.0
    if wrong == "softcap forgotten":
        options.pop("softcap", None)
    sinks = options.pop("sinks", None)
    if wrong == "sinks counted twice" and sinks is not None:
        sinks = sinks + np.asarray(math.log(2), sinks.dtype)
    if sinks is not None and wrong != "sinks forgotten":
        options["sinks"] = sinks
    extra = {}
    if wrong == "a key read twice" and k.shape[-2]:
        bias = np.zeros(k.shape[-2], q.dtype)
        bias[0] = math.log(2)
        extra["bias"] = options.get("bias", 0) + bias
    o, lse = refattn.attention(q, k, v, mask=visible, **options | extra, return_lse=True, backend="numpy")
    if wrong == "hidden values multiplied by zero":
        hidden = np.where(np.isfinite(v), 0, v).sum(axis=-2, keepdims=True)
        o = (o + np.repeat(hidden, o.shape[-3] // v.shape[-3], axis=-3) if o.ndim > 2 else o + hidden).astype(o.dtype)
    if wrong == "queries beyond whole runs of 16 are zero":
        o[..., o.shape[-2] // 16 * 16 :, :] = 0
    if wrong == "blind rows are NaN":
        o[np.isneginf(lse)] = np.nan
    lse = lse / math.log(2) if wrong == "lse in base 2" else lse
    lse = lse.astype(q.dtype if wrong == "lse in the dtype of q" else compute_dtype(q.dtype))
    return (o, lse) if return_lse or wrong == "lse always returned" else o


DENSE = ("bias", "scale", "softcap", "sinks", "dropout_mask", "dropout_p")


def form_vjp(name, do, q, k, v, *, wrong, dlse=None, **options):
    visible = pattern(name, q, k, wrong, options)
    options = {key: options[key] for key in DENSE if key in options}
    if dlse is not None and wrong != "dlse forgotten":
        options["dlse"] = -dlse if wrong == "dlse with the wrong sign" else dlse
    call = partial(refattn.attention_vjp, mask=visible, **options, backend="numpy")
    g = call(do, q, k, v)
    dq, dk, dv, dbias, dsinks = g
    rows = np.arange(q.shape[-2])
    if wrong == "a key keeps what the last query sends":
        last = call(np.where((rows == rows[-1:])[:, None], do, 0).astype(do.dtype), q, k, v)
        dv = np.where(last.dv != 0, last.dv, dv)
    if wrong == "a key keeps what the last head sends" and q.ndim > 2:
        group = q.shape[-3] // k.shape[-3]
        heads = (np.arange(q.shape[-3]) % group == group - 1)[:, None, None]
        dv = call(np.where(heads, do, 0).astype(do.dtype), q, k, v).dv
    if dsinks is not None and wrong == "dsinks of the last strip alone":
        half = (rows >= len(rows) // 2)[:, None]
        late = {} if dlse is None else {"dlse": np.where(half[:, 0], dlse, 0)}
        options = {key: x for key, x in options.items() if key != "dlse"} | late
        dsinks = refattn.attention_vjp(
            np.where(half, do, 0).astype(do.dtype), q, k, v, mask=visible, **options, backend="numpy"
        ).dsinks
    if dsinks is not None and wrong == "dsinks averaged":
        dsinks = (dsinks / max(len(rows), 1)).astype(dsinks.dtype)
    if wrong == "dk without scale":
        dk = (dk * math.sqrt(q.shape[-1])).astype(dk.dtype)
    if wrong == "dbias of zeros" and dbias is not None:
        dbias = np.zeros_like(dbias)
    return refattn.AttentionGradients(dq, dk, dv, dbias, dsinks)


def pattern(name, q, k, wrong, options):
    """Return the pairs of a form, bool (..., H, Tq, Tk), or those of a mistake."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    mask = mistaken(name, q, k, wrong, options)
    mask = MASKS[name](q, **options) if mask is None else mask
    mask = masks.as_mask(mask)
    shape = (*q.shape[:-1], Tk)
    if wrong == "top left alignment":
        visible = mask.dense(Tk, Tk)[..., :Tq, :] if Tq <= Tk else mask.dense(Tq, Tq)[..., :Tk]
    else:
        visible = mask.dense(Tq, Tk)
    visible = np.broadcast_to(visible, shape).copy()
    if wrong == "the last query sees what the one before sees" and Tq > 1:
        visible[..., -1, :] = visible[..., -2, :]
    if wrong == "one pair forgotten" and visible.size:
        at = np.flatnonzero(visible.reshape(-1, Tk)[0])
        visible.reshape(-1, Tk)[0, at[:1]] = False
    return visible


def mistaken(name, q, k, wrong, o):
    """Return the mask of a mistake about the pattern, or None if the mistake is another."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    position = masks.from_function
    off = Tk - Tq
    if wrong == "one key too many before":
        return masks.window(None if o["left"] is None else o["left"] + 1, o["right"])
    if wrong == "one key too few after":
        return masks.window(o["left"], None if o["right"] is None else max(o["right"] - 1, 0))
    if wrong == "left and right swapped":
        return masks.window(o["right"], o["left"])
    if wrong == "none means zero":
        return masks.window(o["left"] or 0, o["right"] or 0)
    if wrong == "window counts positions":
        return masks.window(o["window"], o["window"]) & masks.dilated(o["window"], o["step"])
    if wrong == "one step too far":
        return masks.dilated(o["window"] + 1, o["step"])
    if wrong == "only looks back":
        return masks.dilated(o["window"], o["step"]) & masks.causal()
    if wrong == "multiples of the absolute position":
        local, stride = o["local"], o["stride"]
        return masks.causal() & position(lambda i, j: (i + off - j < local) | (j % stride == 0))
    if wrong == "local one key too wide":
        return masks.strided(o["local"] + 1, o["stride"])
    if wrong == "no causality":
        return masks.strided(o["local"], o["stride"]) | masks.from_function(
            lambda i, j: ((j - i - off) % o["stride"] == 0) & (j - i - off > 0)
        )
    if wrong == "strides only":
        return masks.strided(1, o["stride"])
    if wrong == "summary at the beginning of a block":
        block, summary = o["block"], o["summary"]
        return masks.causal() & position(
            lambda i, j: ((i + off) // block == j // block) | (j % block < summary) & (j >= 0)
        )
    if wrong == "blocks counted from query 0":
        block, summary = o["block"], o["summary"]
        return masks.causal() & position(lambda i, j: (i // block == j // block) | (j % block >= block - summary))
    if wrong == "one summary key":
        return masks.fixed(o["block"], 1)
    if wrong == "sees the rest of its block":
        block = o["block"]
        return masks.fixed(block, o["summary"]) | position(lambda i, j: (i + off) // block == j // block)
    if wrong == "another seed":
        return MASKS[name](q, **o | {"seed": o.get("seed", 0) + 1})
    if wrong == "one draw for all heads":
        return MASKS[name](q, **o | {"per_head": False})
    if wrong == "drawn with replacement":
        table = np.array(masks.random(o["n_keys"], o.get("seed", 0)).keys(Tq, Tk))
        table[:, 1:] = np.where(np.arange(1, table.shape[1]) % 3 == 1, table[:, :-1], table[:, 1:])
        visible = np.zeros((Tq, Tk), bool)
        np.put_along_axis(visible, table, True, axis=-1)
        return visible
    if wrong == "columns only":
        return position(lambda i, j: np.isin(j, np.asarray(o["indices"], int)) & (i >= 0))
    if wrong == "rows only":
        return position(lambda i, j: np.isin(i + off, np.asarray(o["indices"], int)) & (j >= 0))
    if wrong == "the last index forgotten":
        return masks.global_tokens(list(o["indices"])[:-1])
    if wrong == "its own key besides":
        return masks.global_tokens(list(o["indices"])) | masks.window(0, 0)
    if wrong == "global blocks do not look around":
        options = o | {"global_blocks": ()}
        b, nk = o["block_size"], -(-Tk // o["block_size"])
        blocks = [g % nk for g in o.get("global_blocks", (0, -1)) if -nk <= g < nk]
        return MASKS[name](q, **options) | position(lambda i, j: np.isin(j // b, blocks) & (i >= 0))
    if wrong == "negative blocks forgotten":
        return MASKS[name](q, **o | {"global_blocks": [g for g in o.get("global_blocks", (0, -1)) if g >= 0]})
    if wrong == "window of one block":
        return MASKS[name](q, **o | {"n_window": 1})
    if wrong == "one random block too many":
        return MASKS[name](q, **o | {"n_random": o.get("n_random", 3) + 1})
    if wrong == "layout transposed":
        layout = o["layout"]
        square = layout.shape[-1] == layout.shape[-2]
        return masks.block(layout.swapaxes(-1, -2) if square else layout, o["block_size"])
    if wrong == "layout of the first head for all":
        layout = o["layout"]
        return masks.block(layout[..., :1, :, :] if layout.ndim > 2 else layout, o["block_size"])
    if wrong == "last block of keys dropped":
        layout = o["layout"].copy()
        layout[..., -1:] &= layout.shape[-1] <= 1
        return masks.block(layout, o["block_size"])
    return None


def misread(x):
    """Return the first numbers of the memory of x in its shape, as who forgets the strides gets them."""
    if x.size == 0 or x.flags.c_contiguous:
        return x
    base = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    return np.nan_to_num(base.reshape(-1)[: x.size].reshape(x.shape).astype(np.float32)).astype(x.dtype)


def dense_bias(q, k, v, mask, *, wrong, bias=None, dropout_mask=None, dropout_p=0.0, **options):
    """The mistakes that only `sparse_attention` can make."""
    if wrong == "bias of the first head for all" and bias is not None and bias.ndim > 2:
        bias = bias[..., :1, :, :]
    if wrong == "bias forgotten":
        bias = None
    if wrong == "dropout does not rescale":
        dropout_p = 0.0
    if wrong == "dropout of the first head for all" and dropout_mask is not None and dropout_mask.ndim > 2:
        dropout_mask = dropout_mask[..., :1, :, :]
    if wrong == "mask of the first sequence for all":
        mask = masks.from_array(np.array(masks.as_mask(mask).dense(q.shape[-2], k.shape[-2])))
        mask = masks.from_array(mask.visible.array[:1]) if len(mask.lead) == q.ndim - 2 > 1 else mask
    if wrong == "mask of the first head for all":
        array = masks.as_mask(mask).dense(q.shape[-2], k.shape[-2])
        mask = masks.from_array(array[..., :1, :, :] if array.ndim > 2 else array)
    return refattn.attention(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        dropout_mask=dropout_mask,
        dropout_p=dropout_p,
        **options,
        backend="numpy",
    )


OF_SPARSE = [
    "bias of the first head for all",
    "bias forgotten",
    "dropout does not rescale",
    "dropout of the first head for all",
    "mask of the first sequence for all",
    "mask of the first head for all",
]
OF_PATTERN = {
    "local_attention": [
        "one key too many before",
        "one key too few after",
        "left and right swapped",
        "none means zero",
    ],
    "dilated_attention": ["window counts positions", "one step too far", "only looks back"],
    "strided_attention": [
        "multiples of the absolute position",
        "local one key too wide",
        "no causality",
        "strides only",
    ],
    "fixed_attention": [
        "summary at the beginning of a block",
        "blocks counted from query 0",
        "one summary key",
        "sees the rest of its block",
    ],
    "random_attention": ["another seed", "one draw for all heads", "drawn with replacement"],
    "global_attention": ["columns only", "rows only", "the last index forgotten", "its own key besides"],
    "bigbird_attention": [
        "another seed",
        "one draw for all heads",
        "global blocks do not look around",
        "negative blocks forgotten",
        "window of one block",
        "one random block too many",
    ],
    "block_sparse_attention": [
        "layout transposed",
        "layout of the first head for all",
        "last block of keys dropped",
    ],
}


def longformer(q, k, v, *, wrong, window, global_indices=(), return_lse=False, **options):
    own = {name: options.pop(f"{name}_global", None) for name in "qkv"}
    if wrong == "own projections forgotten":
        own = dict.fromkeys("qkv")
    if wrong == "only the queries are projected":
        own["k"] = own["v"] = None
    if wrong == "global queries in ascending order" and own["q"] is not None:
        own["q"] = own["q"][..., np.argsort(np.asarray(global_indices, int)), :]
    given = {f"{name}_global": x for name, x in own.items()}
    if wrong == "window on one side" or wrong == "window one key too wide":
        sides = (window, 0) if wrong == "window on one side" else (window + 1, window + 1)
        o, lse = refattn.attention(
            q,
            k,
            v,
            mask=masks.window(*sides) | masks.global_tokens(global_indices),
            **options,
            return_lse=True,
            backend="numpy",
        )
        right, right_lse = right_longformer(q, k, v, window, global_indices, given, options)
        rows = np.isin(np.arange(q.shape[-2]) + k.shape[-2] - q.shape[-2], global_indices)
        o[..., rows, :], lse[..., rows] = right[..., rows, :], right_lse[..., rows]
    else:
        o, lse = right_longformer(q, k, v, window, global_indices, given, options)
    if wrong == "global tokens counted twice":
        extra = masks.window(window, window) & masks.from_function(lambda i, j: np.isin(j, global_indices) & (i >= 0))
        again = refattn.attention(q, k, v, mask=extra, return_lse=True, backend="numpy")
        o, lse = refattn.merge_attention((o, lse), again, backend="numpy")
    if wrong == "global keys projected for everybody" and own["k"] is not None:
        o, lse = refattn.attention(
            q,
            own["k"],
            v if own["v"] is None else own["v"],
            mask=masks.longformer(window, global_indices),
            **options,
            return_lse=True,
            backend="numpy",
        )
    return (o, lse) if return_lse else o


def right_longformer(q, k, v, window, global_indices, given, options):
    return refattn.longformer_attention(
        q, k, v, window=window, global_indices=global_indices, **given, **options, return_lse=True, backend="numpy"
    )


def longformer_vjp(do, q, k, v, *, wrong, **options):
    if wrong == "dlse forgotten":
        options.pop("dlse", None)
    g = refattn.longformer_attention_vjp(do, q, k, v, **options, backend="numpy")
    if wrong == "dk of the global tokens forgotten" and g.dk_global is not None:
        g = g._replace(dk_global=np.zeros_like(g.dk_global))
    if wrong == "global gradients added to the ordinary ones" and g.dv_global is not None:
        g = g._replace(dv=g.dv + g.dv_global)
    if wrong == "dsinks of the window alone" and g.dsinks is not None:
        rows = np.isin(np.arange(q.shape[-2]) + k.shape[-2] - q.shape[-2], options.get("global_indices", ()))
        dlse = options.pop("dlse", None)
        dlse = {} if dlse is None else {"dlse": np.where(rows, 0, dlse)}
        do = np.where(rows[:, None], 0, do).astype(do.dtype)
        g = g._replace(dsinks=refattn.longformer_attention_vjp(do, q, k, v, **options, **dlse, backend="numpy").dsinks)
    if wrong == "dq of a global token kept" and g.dq_global is not None:
        plain = {key: x for key, x in options.items() if key != "q_global"}
        g = g._replace(dq=refattn.longformer_attention_vjp(do, q, k, v, **plain, backend="numpy").dq)
    return LongformerGradients(*g)


LONGFORMER = [
    "own projections forgotten",
    "only the queries are projected",
    "global queries in ascending order",
    "window on one side",
    "window one key too wide",
    "global tokens counted twice",
    "global keys projected for everybody",
]
LONGFORMER_BACKWARD = [
    "dlse forgotten",
    "dk of the global tokens forgotten",
    "global gradients added to the ordinary ones",
    "dsinks of the window alone",
    "dq of a global token kept",
]


def possible(name, wrong):
    """Whether a form can make the mistake at all."""
    if name in WITHOUT_POSITIONS and wrong == "top left alignment":
        return False
    if name in NOTHING_BLIND and wrong == "blind rows are NaN":
        return False
    return name == "sparse_attention" or wrong != "dbias of zeros"


MUTANTS = {
    f"{name}: {wrong}": (name, partial(form, name, wrong=wrong))
    for name in MASKS
    for wrong in [*GENERAL, *OF_PATTERN.get(name, [])]
    if possible(name, wrong)
}
MUTANTS |= {
    f"{name}_vjp: {wrong}": (f"{name}_vjp", partial(form_vjp, name, wrong=wrong))
    for name in MASKS
    for wrong in GENERAL_BACKWARD
    if possible(name, wrong)
}
MUTANTS |= {f"sparse_attention: {wrong}": ("sparse_attention", partial(dense_bias, wrong=wrong)) for wrong in OF_SPARSE}
MUTANTS |= {
    f"longformer_attention: {wrong}": ("longformer_attention", partial(longformer, wrong=wrong)) for wrong in LONGFORMER
}
MUTANTS |= {
    f"longformer_attention_vjp: {wrong}": ("longformer_attention_vjp", partial(longformer_vjp, wrong=wrong))
    for wrong in LONGFORMER_BACKWARD
}
