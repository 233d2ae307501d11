"""Mistakes in how precisely something is computed, from 2 units in the last place to a thousandth."""

from collections.abc import Mapping

from refattn.testing.mutants.patch import Mutant

_SCORES = "s = _scores(seq, q_i, k_j, i, j)"
_PRODUCT = "s = q_i @ k_j.swapaxes(-1, -2)"
_SCALE = "s *= seq.scale"
_DEFAULT = "scale = 1 / math.sqrt(D) if scale is None else float(scale)"
_CAP = "s = seq.softcap * np.tanh(s / seq.softcap)"
_EXP = "p = np.exp(s - safe)"
_SHRINK = "shrink = np.exp(m - safe)"
_SUM = "l = l * shrink + p.sum(axis=-1, keepdims=True)"
_ROUND = "p = p.astype(seq.dtype).astype(acc)"
_ADD = "o_i += _product(p, v_j, visible)"
_DIVIDE = "o_i = o_i / np.where(l == 0, 1, l)"
_WRITE = "o[b, :, i : i + tile_q] = o_i.astype(q.dtype)"
_WRITE_LSE = "lse[b, :, i : i + tile_q] = lse_i"

_CUTS = '{"float16": 0xFFFFE000, "bfloat16": 0xFFFF0000}'
_BITS = "bits = {0}.astype(np.float32).view(np.uint32)"
_TO_BFLOAT16 = (
    "((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)"
)

_NO_STEP = {"float32": "the step rounds to the dtype of the inputs, which is that of the computation"}
_ANYWAY = "this is rounded to bfloat16 anyway"
_FINER = "float16 keeps more digits of a weight than bfloat16, to which it may be rounded"
_EXACT = "the inputs have no more digits than tf32 keeps, so nothing is rounded"


def _precision(name: str, old: str, new: str, equivalent: Mapping[str, str] | None = None) -> Mutant:
    return Mutant(name, "precision", old, new, equivalent=equivalent or {})


MUTANTS = (
    _precision(
        "weights are cut off instead of rounded",
        _ROUND,
        f"cut = {_CUTS}.get(seq.dtype.name, 0xFFFFFFFF)\n        p = (p.view(np.uint32) & np.uint32(cut)).view(acc)",
        _NO_STEP,
    ),
    _precision(
        "weights are rounded to float16",
        _ROUND,
        "p = p.astype(np.float16).astype(acc)",
        {"float16": "the weights are rounded to float16 anyway", "bfloat16": _FINER},
    ),
    _precision(
        "weights are rounded to bfloat16",
        _ROUND,
        f"{_BITS.format('p')}\n        p = {_TO_BFLOAT16}.astype(acc)",
        {"bfloat16": _ANYWAY},
    ),
    _precision("the sum is kept in float16", _SUM, f"{_SUM.replace('= ', '= (', 1)}).astype(np.float16).astype(acc)"),
    _precision(
        "the sum is taken over the rounded weights",
        _SUM,
        "l = l * shrink + p.astype(seq.dtype).astype(acc).sum(axis=-1, keepdims=True)",
        _NO_STEP,
    ),
    _precision("scores are rounded to float16", _SCORES, f"{_SCORES}.astype(np.float16).astype(acc)"),
    _precision(
        "scores are rounded to the dtype of the inputs", _SCORES, f"{_SCORES}.astype(seq.dtype).astype(acc)", _NO_STEP
    ),
    _precision(
        "the accumulator is rounded to float16 after every tile",
        _ADD,
        f"{_ADD}\n        o_i[:] = o_i.astype(np.float16)",
    ),
    _precision(
        "the accumulator is kept in the dtype of the inputs",
        _ADD,
        f"{_ADD}\n        o_i[:] = o_i.astype(seq.dtype)",
        _NO_STEP,
    ),
    Mutant(
        "scale is 0.1 % too large", "precision", _SCALE, "s *= 1.001 * seq.scale", diagnosis="scale off by a factor"
    ),
    Mutant(
        "scale is 0.1 % too small", "precision", _SCALE, "s *= 0.999 * seq.scale", diagnosis="scale off by a factor"
    ),
    _precision(
        "scale is rounded to bfloat16",
        _DEFAULT,
        f"{_DEFAULT}\n    {_BITS.format('np.array(scale)')}\n    scale = float({_TO_BFLOAT16})",
    ),
    _precision(
        "queries are scaled and rounded before the product",
        f"{_PRODUCT}\n    {_SCALE}",
        "s = (seq.scale * q_i).astype(seq.dtype).astype(q_i.dtype) @ k_j.swapaxes(-1, -2)",
        {"float32": "the order of the product and the scale is a matter of one rounding in float32"},
    ),
    _precision(
        "the exponential is a quadratic between powers of two",
        _EXP,
        "z = np.maximum((s - safe) * 1.4426950408889634, -5000)\n"
        "        f = z - np.floor(z)\n"
        "        p = np.exp2(np.floor(z)) * (1 + f * (0.6565 + 0.3435 * f))",
    ),
    _precision("log2(e) is rounded to bfloat16", _EXP, "p = np.exp2((s - safe) * 1.4453125)"),
    _precision("log2(e) is rounded to float16", _EXP, "p = np.exp2((s - safe) * 1.4423828125)"),
    _precision("weights below a hundredth are dropped", _EXP, f"{_EXP}\n        p = np.where(p < 0.01, 0, p)"),
    _precision(
        "the soft cap is a quotient of polynomials",
        _CAP,
        "t = np.clip(s / seq.softcap, -3, 3)\n        s = seq.softcap * t * (27 + t * t) / (27 + 9 * t * t)",
    ),
    _precision(
        "the result is cut off instead of rounded",
        _WRITE,
        f"cut = {_CUTS}.get(q.dtype.name, 0xFFFFFFFF)\n"
        "            o_i = (np.ascontiguousarray(o_i).view(np.uint32) & np.uint32(cut)).view(acc)\n"
        f"            {_WRITE}",
        _NO_STEP,
    ),
    _precision(
        "the result passes through bfloat16",
        _WRITE,
        f"{_BITS.format('o_i')}\n            o[b, :, i : i + tile_q] = {_TO_BFLOAT16}.astype(q.dtype)",
        {"bfloat16": _ANYWAY},
    ),
    _precision("lse is rounded to float16", _WRITE_LSE, f"{_WRITE_LSE}.astype(np.float16)"),
    _precision(
        "the sum is inverted in float16",
        _DIVIDE,
        "o_i = o_i * (1 / np.where(l == 0, 1, l)).astype(np.float16).astype(acc)",
        {"bfloat16": "1 / l is normal in float16, and 2**-11 of o is an eighth of the rounding that follows"},
    ),
    _precision(
        "queries and keys are cut to tf32",
        _PRODUCT,
        "bits = [x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000) for x in (q_i, k_j)]\n"
        "    s = (bits[0].view(np.float32) @ bits[1].view(np.float32).swapaxes(-1, -2)).astype(q_i.dtype)",
        {"float16": _EXACT, "bfloat16": _EXACT},
    ),
    _precision(
        "values pass through float16",
        _ADD,
        "o_i += _product(p, v_j.astype(np.float16).astype(acc), visible)",
        {"float16": "the values are in float16 already"},
    ),
    _precision(
        "alibi is rounded to float16",
        "s -= seq.slopes * np.abs(distance).astype(s.dtype)",
        "s -= (seq.slopes * np.abs(distance)).astype(np.float16).astype(s.dtype)",
    ),
    _precision(
        "bias is rounded to float16",
        "j, seq.tile_k).astype(s.dtype)",
        "j, seq.tile_k).astype(np.float16).astype(s.dtype)",
    ),
    _precision("the rescaling is rounded to float16", _SHRINK, f"{_SHRINK}.astype(np.float16).astype(acc)"),
    _precision(
        "results of parts are kept in float16",
        "np.stack([o for o, _ in parts])",
        "np.stack([o.astype(np.float16).astype(o.dtype) for o, _ in parts])",
    ),
)
