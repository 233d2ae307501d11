"""Mistakes in what is computed: the scale, the soft cap, the biases, which head reads which.

Several are conventions of well-known libraries that differ from this one: a window or a causal mask counted from the
first key, lse in base 2.
"""

from refattn.testing.mutants.patch import Mutant

_SCALE = "s *= seq.scale"
_CAP = "s = seq.softcap * np.tanh(s / seq.softcap)"
_BIAS = "s += _tile(seq.bias, i, s.shape[1], j, seq.tile_k).astype(s.dtype)"
_BIAS_OF = "np.broadcast_to(bias, (B, H, Tq, Tk))[b]"
_SLOPES = "alibi_slopes.astype(acc)[:, None, None]"
_DISTANCE = "seq.slopes * np.abs(distance).astype(s.dtype)"
_HEADS = "np.arange(H) // (H // Hk)"


def _semantic(name: str, old: str, new: str, diagnosis: str) -> Mutant:
    return Mutant(name, "semantics", old, new, diagnosis=diagnosis)


MUTANTS = (
    _semantic("scale is forgotten", _SCALE, "s *= 1.0", "scale missing"),
    _semantic("default scale is 1 / D", "1 / math.sqrt(D) if", "1 / D if", "scale 1/D"),
    _semantic("scale is applied twice", _SCALE, "s *= seq.scale**2", "scale applied twice"),
    _semantic("scale is 5 % too large", _SCALE, "s *= 1.05 * seq.scale", "scale off by a factor"),
    _semantic(
        "scale argument is ignored",
        "1 / math.sqrt(D) if scale is None else float(scale)",
        "1 / math.sqrt(D)",
        "scale ignored",
    ),
    _semantic("soft cap is ignored", "if seq.softcap is not None:", "if False:", "softcap ignored"),
    _semantic(
        "soft cap is applied to product and bias",
        f"if seq.softcap is not None:\n        {_CAP}\n    if seq.bias is not None:\n        {_BIAS}",
        f"if seq.bias is not None:\n        {_BIAS}\n    if seq.softcap is not None:\n        {_CAP}",
        "softcap after bias",
    ),
    _semantic(
        "soft cap is applied before the scale",
        f"{_SCALE}\n    if seq.softcap is not None:\n        {_CAP}",
        f"if seq.softcap is not None:\n        {_CAP}\n    {_SCALE}",
        "softcap before scale",
    ),
    _semantic(
        "soft cap is not multiplied back", _CAP, "s = np.tanh(s / seq.softcap)", "softcap without its factor outside"
    ),
    _semantic("bias is ignored", "if seq.bias is not None:", "if False:", "bias ignored"),
    _semantic(
        "bias is multiplied by the scale", "s += _tile(seq.bias", "s += seq.scale * _tile(seq.bias", "bias scaled"
    ),
    _semantic("bias is subtracted", "s += _tile(seq.bias", "s -= _tile(seq.bias", "bias negated"),
    _semantic(
        "every head takes the bias of the first",
        _BIAS_OF,
        "np.broadcast_to(bias, (B, H, Tq, Tk))[b, :1]",
        "bias of the first head",
    ),
    _semantic(
        "every sequence takes the bias of the first",
        _BIAS_OF,
        "np.broadcast_to(bias, (B, H, Tq, Tk))[0]",
        "bias of the first sequence",
    ),
    _semantic(
        "every query takes the bias of the first",
        _BIAS_OF,
        "np.broadcast_to(np.broadcast_to(bias, (B, H, Tq, Tk))[b, :, :1], (H, Tq, Tk))",
        "bias of the first query",
    ),
    _semantic(
        "bias is read column by column",
        _BIAS_OF,
        "np.broadcast_to(bias, (B, H, Tq, Tk))[b].reshape(H, Tk, Tq).swapaxes(-1, -2)",
        "bias transposed",
    ),
    _semantic("alibi is ignored", "if seq.slopes is not None:", "if False:", "alibi ignored"),
    _semantic("alibi favours distant keys", "s -= seq.slopes", "s += seq.slopes", "alibi sign"),
    _semantic(
        "alibi counts queries from the first key",
        "distance = i + seq.offset + ",
        "distance = i + ",
        "alibi without offset",
    ),
    _semantic(
        "alibi slopes are reversed", _SLOPES, "alibi_slopes[::-1].astype(acc)[:, None, None]", "alibi slopes reversed"
    ),
    _semantic(
        "alibi slope of the key head is taken",
        _SLOPES,
        "alibi_slopes.astype(acc)[head_of, None, None]",
        "alibi slopes of the kv heads",
    ),
    _semantic(
        "alibi rewards keys after the query",
        _DISTANCE,
        "seq.slopes * distance.astype(s.dtype)",
        "alibi without absolute value",
    ),
    _semantic(
        "alibi leaves the position of the query out",
        _DISTANCE,
        "seq.slopes * (-j - np.arange(seq.tile_k)).astype(s.dtype)",
        "alibi without the query position",
    ),
    _semantic("key heads are dealt out in turn", _HEADS, "np.arange(H) % Hk", "heads round robin"),
    _semantic(
        "every query head reads the first key head",
        _HEADS,
        "np.zeros(H, int)",
        "every query head reads the first kv head",
    ),
    _semantic(
        "every query head reads the values of the first key head",
        '_padded("values", v[b], head_of,',
        '_padded("values", v[b], 0 * head_of,',
        "values of the first kv head",
    ),
    _semantic(
        "values are those of the next key",
        "v_j = seq.values[",
        "v_j = np.roll(seq.values, -1, axis=1)[",
        "values of the next key",
    ),
    _semantic("the last key is left out", "length=length,", "length=length - 1,", "last key dropped"),
)
