"""Mistakes in the backward pass: a factor or a term left out, a sum over the wrong axis, a mask forgotten."""

from collections.abc import Mapping

from refattn.testing.mutants.patch import Mutant

_DELTA = "delta = (do.astype(acc) * o).sum(axis=-1)"
_DQ = "dq[:, i] += seq.scale * _product(ds, k_j, visible)"
_DK = "dk[:, j] += seq.scale * _product("
_DBIAS = "if seq.bias is not None:\n        ds_all[:, i, j] = ds"
_SLOPE = "ds = np.where(visible, ds * slope, 0)"
_DSINKS = "-(p_sink * delta).sum(axis=(0, 2))"
_PULL = "ds = np.where(visible, p * (dp - seq.delta[:, i]), 0)"
_WINDOW = "left, right = (None, None) if window is None else window"
_ROUND = "ds = _rounded(ds, seq.dtype)"
_KEPT = "p_kept = _rounded(p * keep, seq.dtype)"

_STORED = "kernels that keep the result in 16 bits take delta from it"
_FINER = "float16 keeps more digits of a weight than bfloat16, to which it may be rounded"
_NO_STEP = {"float32": "the step rounds to the dtype of the inputs, which is that of the computation"}


def _backward(
    name: str, old: str, new: str, diagnosis: str | None = None, equivalent: Mapping[str, str] | None = None
) -> Mutant:
    return Mutant(name, "backward", old, new, "attention_vjp", diagnosis, equivalent or {})


MEANING = (
    _backward("delta is forgotten", "p * (dp - seq.delta[:, i])", "p * dp", "delta missing"),
    _backward("dlse is ignored", "if dlse is not None:", "if False:", "dlse ignored"),
    _backward("dlse has the wrong sign", "delta - dlse", "delta + dlse", "dlse sign"),
    _backward(
        "dk is that of the first head of its group", "_sum_heads(dk, Hk)", "dk[:, :: H // Hk]", "dk of the first head"
    ),
    _backward(
        "dv is that of the first head of its group", "_sum_heads(dv, Hk)", "dv[:, :: H // Hk]", "dv of the first head"
    ),
    _backward("dk and dv are averaged over their group", ".sum(axis=2)", ".mean(axis=2)", "group averaged"),
    _backward(
        "key heads are dealt out in turn in the backward pass",
        "np.arange(H) // (H // Hk)",
        "np.arange(H) % Hk",
        "heads round robin",
    ),
    _backward("dq lacks the scale", "dq[:, i] += seq.scale * ", "dq[:, i] += ", "dq without scale"),
    _backward("dk lacks the scale", _DK, "dk[:, j] += _product(", "dk without scale"),
    _backward("dk is scaled twice", _DK, "dk[:, j] += seq.scale**2 * _product(", "dk scaled twice"),
    _backward(
        "the slope of the soft cap is left out", _SLOPE, "ds = np.where(visible, ds, 0)", "softcap slope missing"
    ),
    _backward("the slope of the soft cap is not squared", "1 - t**2", "1 - np.abs(t)", "softcap slope wrong"),
    _backward(
        "dbias is averaged over the axes along which it was broadcast",
        "x.sum(axis=axes, keepdims=True)",
        "x.mean(axis=axes, keepdims=True)",
        "dbias averaged",
    ),
    _backward(
        "dbias is that of the first sequence",
        "_sum_to(ds, bias.shape)",
        "_sum_to(ds if bias.shape[:-3] == (B,) else ds[:1], bias.shape)",
        "dbias of the first sequence",
    ),
    _backward(
        "dbias is multiplied by the scale", "ds_all[:, i, j] = ds", "ds_all[:, i, j] = seq.scale * ds", "dbias scaled"
    ),
    _backward(
        "dbias is taken behind the soft cap",
        f"{_DBIAS}\n    {_SLOPE}",
        f"{_SLOPE}\n    {_DBIAS}",
        "dbias behind the softcap",
    ),
    _backward("dsinks has the wrong sign", _DSINKS, _DSINKS[1:], "dsinks sign"),
    _backward("dsinks lacks delta", _DSINKS, "-p_sink.sum(axis=(0, 2))", "dsinks without delta"),
    _backward(
        "dsinks is that of the first sequence",
        _DSINKS,
        "-(p_sink * delta)[0].sum(axis=1)",
        "dsinks of the first sequence",
    ),
    _backward(
        "dv is taken from weights that were dropped", _KEPT, "p_kept = _rounded(p, seq.dtype)", "dv without dropout"
    ),
    _backward("dropped weights get a gradient", "dp = keep * (do_i", "dp = (do_i", "dp without dropout"),
    _backward(
        "dropout is not rescaled in the backward pass", "1 / (1 - seq.dropout_p), 0)", "1, 0)", "dropout not rescaled"
    ),
    _backward("causal is ignored in the backward pass", "if causal:", "if False:", "causal ignored"),
    _backward("causal mask shows the next key in the backward pass", "right = 0", "right = 1", "causal one too wide"),
    _backward(
        "window reaches one key too far to the left in the backward pass",
        _WINDOW,
        f"{_WINDOW}\n        left = None if left is None else left + 1",
        "window left one too wide",
    ),
    _backward(
        "lengths are ignored in the backward pass",
        "length = Tk if seqlens_k is None else int(seqlens_k[b])",
        "length = Tk",
        "seqlens ignored",
    ),
    _backward(
        "offset of the queries is ignored in the backward pass",
        "if q_offset is not None:",
        "if False:",
        "q_offset ignored",
    ),
    _backward("alibi is ignored in the backward pass", "if seq.slopes is not None:", "if False:", "alibi ignored"),
    _backward(
        "bias is ignored in the backward pass",
        "if seq.bias is not None:\n        s = s",
        "if False:\n        s = s",
        "bias ignored",
    ),
    _backward("sinks are ignored in the backward pass", '"sinks": sinks,', '"sinks": None,', "sinks ignored"),
    _backward("lse is taken for one in base 2", "p = np.exp(np.where", "p = np.exp2(np.where", "lse base 2"),
    _backward(
        "rows that see nothing leave nan",
        "safe = np.where(np.isneginf(lse_i), 0, lse_i)",
        "safe = lse_i",
        "blind rows nan",
    ),
)

TILES = (
    _backward(
        "queries of the tail tile are counted twice",
        "_pull(seq, slice(i, i + tile_q),",
        "_pull(seq, slice(max(0, min(i, Tq - tile_q)), i + tile_q),",
    ),
    _backward(
        "queries behind the last whole tile are left out",
        "for i in range(0, Tq, tile_q):",
        "for i in range(0, Tq - Tq % tile_q, tile_q):",
    ),
    _backward(
        "a tail tile of one key is left out in the backward pass",
        "for j in range(0, length, tile_k):",
        "for j in range(0, length - (length % tile_k == 1), tile_k):",
    ),
    _backward("dq is that of the last key tile", "dq[:, i] += ", "dq[:, i] = "),
    _backward("dv is that of the last query tile", "dv[:, j] += ", "dv[:, j] = "),
    _backward(
        "dq adds to what the last call left",
        "dq = np.zeros((B, H, Tq, D), acc)",
        'dq = globals().setdefault("_left", {}).setdefault((B, H, Tq, D, acc), np.zeros((B, H, Tq, D), acc))',
    ),
    _backward("hidden keys are multiplied by zero", "if np.isfinite(x).all():", "if True:"),
    _backward("hidden values are multiplied by zero in ds", _PULL, "ds = p * (dp - seq.delta[:, i])"),
)

PRECISION = (
    _backward(
        "delta is taken from the result in float16",
        _DELTA,
        "delta = (do.astype(acc) * o.astype(np.float16).astype(acc)).sum(axis=-1)",
        equivalent={"float16": _STORED, "bfloat16": _STORED},
    ),
    _backward(
        "weights are rounded to float16 in the backward pass",
        _KEPT,
        "p_kept = _rounded(p * keep, np.float16)",
        equivalent={"float16": "the weights are rounded to float16 anyway", "bfloat16": _FINER},
    ),
    _backward(
        "ds is rounded to float16",
        _ROUND,
        "ds = _rounded(ds, np.float16)",
        equivalent={"float16": "ds is rounded to float16 anyway"},
    ),
    _backward(
        "ds is cut off instead of rounded",
        _ROUND,
        'cut = {"float16": 0xFFFFE000, "bfloat16": 0xFFFF0000}.get(seq.dtype.name, 0xFFFFFFFF)\n'
        "    ds = (np.ascontiguousarray(ds).view(np.uint32) & np.uint32(cut)).view(p.dtype)",
        equivalent=_NO_STEP,
    ),
    _backward("dq is added up in float16", _DQ, f"{_DQ}\n    dq[:, i] = _rounded(dq[:, i], np.float16)"),
    _backward(
        "dv is added up in the dtype of the inputs",
        "ds = _rounded(ds, seq.dtype)",
        "ds = _rounded(ds, seq.dtype)\n    dv[:, j] = _rounded(dv[:, j], seq.dtype)",
        equivalent=_NO_STEP,
    ),
    _backward("dk and dv are summed over their group in float16", ".sum(axis=2)", ".astype(np.float16).sum(axis=2)"),
    _backward("dq is 0.1 % too large", "dq[:, i] += seq.scale * ", "dq[:, i] += 1.001 * seq.scale * "),
)

MUTANTS = MEANING + TILES + PRECISION
