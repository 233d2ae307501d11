"""Mistakes in the online softmax, in lse, sinks and the merging of parts, and in what NaN and infinity do."""

from refattn.testing.mutants.patch import Mutant

_SELECT = "if visible is not None:\n            s = np.where(visible, s, -np.inf)"
_MAXIMUM = "m_new = np.maximum(m, s.max(axis=-1, keepdims=True))"
_SAFE = "safe = np.where(np.isneginf(m_new), 0, m_new)"
_SAFE_COMMENT = "  # nothing seen yet: keep e^-inf, not e^nan"
_WEIGHTS = "p = np.exp(s - safe)"
_SHRINK = "shrink = np.exp(m - safe)"
_SUM = "l = l * shrink + p.sum(axis=-1, keepdims=True)"
_DIVIDE = "o_i = o_i / np.where(l == 0, 1, l)"
_LSE = "lse_i = (m + np.log(l))[..., 0]"
_WRITE_LSE = "lse[b, :, i : i + tile_q] = lse_i"
_SCORES = "s = _scores(seq, q_i, k_j, i, j)"
_FINITE = "if np.isfinite(x).all():"
_FAINT = "one part in a million is far below the rounding of the result"


def _online(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "online_softmax", old, new)


def _sum(name: str, old: str, new: str, diagnosis: str | None = None) -> Mutant:
    return Mutant(name, "sinks_splits_lse", old, new, diagnosis=diagnosis)


def _nan(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "nan", old, new)


ONLINE = (
    _online("the accumulator is not rescaled", "o_i *= shrink", "o_i *= 1"),
    _online("the sum is not rescaled", _SUM, "l = l + p.sum(axis=-1, keepdims=True)"),
    _online("the maximum is replaced before the rescaling", _SHRINK, "shrink = np.exp(m_new - safe)"),
    _online("the accumulator is rescaled twice", "o_i *= shrink", "o_i *= shrink * shrink"),
    _online("the rescaling is a power of two", _SHRINK, "shrink = np.exp2(m - safe)"),
    _online(
        "small steps of the maximum are not rescaled",
        _SHRINK,
        f"{_SHRINK}\n        shrink[safe - m < 0.5] = 1",
    ),
    _online("the sum is overwritten by every tile", _SUM, "l = p.sum(axis=-1, keepdims=True)"),
    _online(
        "weights are taken from the maximum before the tile",
        _WEIGHTS,
        "p = np.exp(s - np.where(np.isneginf(m), safe, m))",
    ),
    _online(
        "the maximum is at least zero", _MAXIMUM, "m_new = np.maximum(np.maximum(m, 0), s.max(axis=-1, keepdims=True))"
    ),
    _online("the maximum is that of the last tile", _MAXIMUM, "m_new = s.max(axis=-1, keepdims=True)"),
    _online("the maximum counts hidden scores", f"{_SELECT}\n        {_MAXIMUM}", f"{_MAXIMUM}\n        {_SELECT}"),
    _online(
        "all queries of a tile share one maximum",
        _MAXIMUM,
        "m_new = np.maximum(m, s.max(axis=(-2, -1), keepdims=True))",
    ),
    _online("a tile that hides a row leaves nan", _SAFE, "safe = m_new"),
    _online(
        "a row that is blind in its first tile stays blind",
        _MAXIMUM,
        f"{_MAXIMUM}\n        s[np.broadcast_to(np.isneginf(m) & (j > start), s.shape)] = -np.inf",
    ),
    _online("hidden scores are -10000", "s, -np.inf)", "s, -1e4).astype(acc)"),
    _online("scores are cut off at 30", _SCORES, f"{_SCORES}\n        s = np.clip(s, -30, 30)"),
    _online("exponents are cut off at -10", _WEIGHTS, "p = np.exp(np.maximum(s - safe, -10))"),
    Mutant(
        "a millionth is added to the sum",
        "online_softmax",
        _DIVIDE,
        "o_i = o_i / (l + 1e-6)",
        equivalent={"float16": _FAINT, "bfloat16": _FAINT},
    ),
)

SUMS = (
    _sum("sinks are ignored", "if sink is not None:", "if False:", "sinks ignored"),
    _sum(
        "sinks count twice", "np.where(np.isneginf(m), 0, 1)", "np.where(np.isneginf(m), 0, 2)", "sinks counted twice"
    ),
    _sum(
        "lse lacks the sinks",
        _LSE,
        "lse_i = (m + np.log(l - (0 if sink is None else np.exp(sink - m))))[..., 0]",
        "sinks missing in lse",
    ),
    _sum("sinks are multiplied by the scale", "m[:] = sink", "m[:] = seq.scale * sink", "sinks scaled"),
    _sum("every head takes the sink of the first", "m[:] = sink", "m[:] = sink[:1]", "sinks of the first head"),
    _sum(
        "the sink of the key head is taken",
        "sinks.astype(acc)[:, None, None]",
        "sinks.astype(acc)[head_of, None, None]",
        "sinks of the kv heads",
    ),
    _sum("every part counts the sinks", "sink if part == 0 else None", "sink", "sinks once per split"),
    _sum(
        "one is added to the sum",
        "m = np.full((H, n, 1), -np.inf, acc)",
        "m = np.zeros((H, n, 1), acc)",
        "sink of zero",
    ),
    _sum("lse is in base 2", _WRITE_LSE, f"{_WRITE_LSE} / math.log(2)", "lse base 2"),
    _sum("lse lacks the maximum", _LSE, "lse_i = np.log(l)[..., 0]", "lse missing the maximum"),
    _sum("lse is the maximum", _LSE, "lse_i = m[..., 0]", "lse missing the normaliser"),
    _sum("lse takes the maximum before the scale", _LSE, "lse_i = (m / seq.scale + np.log(l))[..., 0]", "lse unscaled"),
    _sum(
        "lse of a row that sees nothing is infinite",
        _WRITE_LSE,
        "lse[b, :, i : i + tile_q] = np.where(np.isneginf(lse_i), np.inf, lse_i)",
        "lse of blind rows inf",
    ),
    _sum(
        "parts are averaged without weights",
        "o = (weights[..., None] * o_s).sum(axis=0) / np.where(total == 0, 1, total)[..., None]",
        "o = o_s.mean(axis=0)",
    ),
    _sum("parts are weighed in base 2", "np.exp(lse_s - top)", "np.exp2(lse_s - top)"),
    _sum("parts are weighed without a maximum", "top = lse_s.max(axis=0)", "top = 0 * lse_s[0]"),
    _sum(
        "an empty part counts as one of weight one",
        "np.exp(lse_s - top)",
        "np.exp(np.where(np.isneginf(lse_s), 0, lse_s) - top)",
    ),
    _sum(
        "tiles that do not divide among the parts are lost",
        "step = -(-tiles // num_splits) * tile_k",
        "step = max(tiles // num_splits, 1) * tile_k",
    ),
    _sum(
        "parts overlap by a tile",
        "min(stop, first + (part + 1) * step)",
        "min(stop, first + (part + 1) * step + tile_k)",
    ),
    _sum("merged lse is that of the heaviest part", "return o, top + np.log(total)", "return o, top"),
    _sum("a row that is blind in every part becomes nan", "top = np.where(np.isneginf(top), 0, top)", "pass"),
)

NAN = (
    _nan("hidden values are multiplied by zero", _FINITE, "if True:"),
    _nan("hidden infinite values are multiplied by zero", _FINITE, "if not np.isnan(x).any():"),
    _nan("a nan among the values of a later head is lost", "(~finite).any(axis=(0, 2))", "(~finite)[0, :, 0]"),
    _nan(
        "minus infinity is added to hidden scores",
        "s = np.where(visible, s, -np.inf)",
        "s += np.where(visible, 0, -np.inf)",
    ),
    _nan("a nan among the scores is taken for zero", _SCORES, f"{_SCORES}\n        s[np.isnan(s)] = 0"),
    _nan("a nan in the result is replaced by zero", _DIVIDE, f"{_DIVIDE}\n    o_i[np.isnan(o_i)] = 0"),
    _nan("a nan in lse becomes minus infinity", _LSE, f"{_LSE}\n    lse_i[np.isnan(lse_i)] = -np.inf"),
    _nan(
        "weights are multiplied by the mask",
        f"{_SELECT}\n        {_MAXIMUM}\n        {_SAFE}{_SAFE_COMMENT}\n        {_WEIGHTS}",
        f"{_MAXIMUM}\n        {_SAFE}\n        {_WEIGHTS}\n        p = p * (True if visible is None else visible)",
    ),
    _nan(
        "minus infinity in the bias becomes -10000",
        "s += _tile(seq.bias, i, s.shape[1], j, seq.tile_k).astype(s.dtype)",
        "s += np.maximum(_tile(seq.bias, i, s.shape[1], j, seq.tile_k).astype(s.dtype), -1e4)",
    ),
)

MUTANTS = ONLINE + SUMS + NAN
