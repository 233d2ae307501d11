"""Mistakes in linear attention with gates and in delta rules: patches of `recurrence`."""

from refattn.testing.mutants.patch import SOURCES, Mutant

_HERE = "refattn.testing.mutants."
SOURCES.update(
    {
        op: (f"{_HERE}recurrence", op)
        for op in ("simple_gla", "gated_linear_attention", "delta_rule", "gated_delta_rule", "kda")
    }
)
SOURCES.update({op: (f"{_HERE}recurrence_ssm", op) for op in ("ssd", "selective_scan", "rwkv6", "rwkv7")})

GLA, SIMPLE, DELTA, GATED = "gated_linear_attention", "simple_gla", "delta_rule", "gated_delta_rule"
_WHOLE = "o, S = whole(S, *(x[:, :, done : done + chunk] for x in arrays))"
_DECAYED = "    S = _kept(np.exp(g)[..., None], S)\n"
_ADDED = "    S = S + k[..., :, None] * v[..., None, :]\n"
_WEIGHTS = "weights = q[:, :, i] @ _rounded(np.exp(since[seen]) * k[seen], dtype).swapaxes(-1, -2)"
_SEEN = "        since[:, :, :i] += g[:, :, i, None]\n        seen = np.s_[:, :, : i + 1]\n        weights"
_FIRST = "@ v[seen]\n        o[:, :, i] += _rounded(np.exp(start)[:, :, None] * q[:, :, i], dtype) @ first"
_RETURN = ".astype(dtype), S.copy()"
_SCALED = ".astype(acc) * acc.type(scale))"
_PACKED = "part = [x[:, :, first:stop] for x in arrays]"
_BEGIN = "begin = None if initial_state is None else initial_state[n : n + 1]"
_BUFFER = "    buffer.fill(0)\n    return buffer"
_NEW = "u = beta[..., None] * (v - (k[..., None, :] @ S)[..., 0, :])"


ROUNDED = dict.fromkeys(("float16", "bfloat16"), "the rounding of operands, which is declared, is as large")


def wrong(name: str, old: str, new: str, op: str = GLA) -> Mutant:
    """Return a mutant; roundings to float16 inside a call are lost among those of 16-bit operands."""
    hidden = ("sums in float16", "on the way", "inverse is rounded", "a chunk in float16")
    return Mutant(name, "recurrences", old, new, op, equivalent=ROUNDED if any(h in name for h in hidden) else {})


CHUNKS = (
    wrong("the tail is left out of the state", "o, S = token(S, ", "o, _ = token(S, "),
    wrong("the tail is left out of o", "parts.append(o[:, :, None])", "parts.append(0 * o[:, :, None])"),
    wrong("the tail begins with no state", "o, S = token(S, ", "o, S = token(S * (t > done), "),
    wrong("the state is not carried between chunks", "o, S = whole(S, ", "o, S = whole(0 * S, "),
    wrong(
        "the state is carried undecayed from chunk to chunk",
        "S = _kept(np.exp(start)[..., None], S) + _rounded(np.exp(since) * k, dtype).swapaxes(-1, -2) @ v",
        "S = S + _rounded(np.exp(since) * k, dtype).swapaxes(-1, -2) @ v",
    ),
    wrong(
        "the state misses the last chunk",
        _WHOLE,
        f"before = S\n            {_WHOLE}\n            S = before if done + chunk == T else S",
    ),
    wrong(
        "the state misses the last chunk of head 0",
        _WHOLE,
        f"before = S\n            {_WHOLE}\n            if done + chunk == T:\n                S[:, 0] = before[:, 0]",
        SIMPLE,
    ),
    wrong("a token decays itself in a chunk", _SEEN, _SEEN.replace("[:, :, :i] +=", "[:, :, : i + 1] +=")),
    wrong("decays in a chunk are one token short", _SEEN, _SEEN.replace("[:, :, :i] +=", "[:, :, : max(0, i - 1)] +=")),
    wrong("a token does not see itself in a chunk", _WEIGHTS, f"{_WEIGHTS}\n        weights[..., -1] = 0"),
    wrong(
        "a token sees the next one in a chunk",
        _WEIGHTS + "\n        o[:, :, i] = _rounded(weights, dtype) @ v[seen]",
        "ahead = np.s_[:, :, : i + 2]\n"
        "        weights = q[:, :, i] @ _rounded(np.exp(since[ahead]) * k[ahead], "
        "dtype).swapaxes(-1, -2)\n        o[:, :, i] = _rounded(weights, dtype) @ v[ahead]",
    ),
    wrong(
        "decays in a chunk are quotients of products",
        "np.exp(since[seen]) * k[seen], dtype",
        "np.exp(start)[:, :, None] / np.exp(np.cumsum(g[seen], axis=2)) * k[seen], dtype",
    ),
    wrong(
        "decays in a chunk are differences of sums",
        "np.exp(since[seen]) * k[seen], dtype",
        "np.exp(start[:, :, None] - np.cumsum(g[seen], axis=2)) * k[seen], dtype",
    ),
    wrong(
        "the state at the chunk's start is read undecayed", _FIRST, _FIRST.replace("np.exp(start)[:, :, None] * ", "")
    ),
    wrong(
        "the state at the chunk's start is read a decay short",
        _FIRST,
        _FIRST.replace("np.exp(start)", "np.exp(start - g[:, :, i])"),
        SIMPLE,
    ),
    wrong(
        "hidden pairs of a chunk are multiplied by 0",
        "o[:, :, i] = _rounded(weights, dtype) @ v[seen]",
        "weights = np.concatenate([weights, np.zeros((B, V, r, C - i - 1), S.dtype)], axis=-1)\n"
        "        o[:, :, i] = _rounded(weights, dtype) @ v",
    ),
    wrong(
        "sums over a chunk in float16",
        "o[:, :, i] = _rounded(weights, dtype) @ v[seen]",
        "o[:, :, i] = _rounded(_rounded(weights, dtype) @ v[seen], np.float16)",
    ),
    wrong(
        "the state is kept in float16 between chunks",
        "done += chunk",
        "done += chunk\n            S = _rounded(S, np.float16)",
    ),
)

STEPS = (
    wrong("the decay comes after the update", _DECAYED + _ADDED, _ADDED + _DECAYED),
    wrong(
        "the state is read before the update",
        _ADDED + "    return q @ S, S",
        "    return q @ S, S + k[..., :, None] * v[..., None, :]",
    ),
    wrong(
        "the state is read before decay and update",
        _DECAYED + _ADDED + "    return q @ S, S",
        "    o = q @ S\n" + _DECAYED + _ADDED + "    return o, S",
    ),
    wrong("decays are powers of two", _DECAYED + _ADDED, _DECAYED.replace("exp", "exp2") + _ADDED),
    wrong("decays are rounded to two decimals", "g.astype(acc), *(", "np.round(g.astype(acc), 2), *("),
    wrong("decays are clipped at -5", "g.astype(acc), *(", "np.maximum(g, -5).astype(acc), *("),
    wrong("decays are clipped at -20", "g.astype(acc), *(", "np.maximum(g, -20).astype(acc), *("),
    wrong(
        "the decay of channel 0 counts for all",
        "return _attend(q, k, v, log_decay, None,",
        "return _attend(q, k, v, log_decay[..., :1], None,",
    ),
    wrong(
        "the decay of head 0 counts for all",
        "return _attend(q, k, v, log_decay[..., None], None,",
        "return _attend(q, k, v, np.repeat(log_decay[:, :1, :, None], v.shape[1], 1), None,",
        SIMPLE,
    ),
)

CALLS = (
    wrong(
        "initial_state is ignored",
        "if initial_state is None else initial_state.astype(acc)",
        "if True else initial_state",
    ),
    wrong(
        "initial_state is added at the end",
        "cu_seqlens is None:\n        o, S = _tokens(token, whole, chunk, _begin(initial_state,",
        "cu_seqlens is None:\n        o, S = _tokens(token, whole, chunk, _begin(None,",
    ),
    wrong(
        "initial_state of sequence 0 counts for all",
        "else initial_state.astype(acc)",
        "else np.repeat(initial_state[:1], len(initial_state), 0).astype(acc)",
        SIMPLE,
    ),
    wrong(
        "initial_state is rounded to float16",
        "else initial_state.astype(acc)",
        "else initial_state.astype(np.float16).astype(acc)",
    ),
    wrong("scale is forgotten", _SCALED, ".astype(acc))"),
    wrong("scale is applied twice", _SCALED, _SCALED.replace("scale)", "scale**2)", 1)),
    wrong("scale as given is ignored", "if scale is None else float(scale)", "if True else float(scale)"),
    wrong("scale is that of the values", "1 / math.sqrt(D) if", "1 / math.sqrt(W) if"),
    wrong("scale is 0.1 % too large", _SCALED, _SCALED.replace("scale)", "1.001 * scale)", 1)),
    wrong(
        "shared heads are taken in turn",
        "np.arange(heads) // (heads // x.shape[1])",
        "np.arange(heads) % x.shape[1]",
        SIMPLE,
    ),
    wrong(
        "query heads are grouped in turn",
        ".reshape(B, V, heads // V, T, D).swapaxes(2, 3)",
        ".reshape(B, heads // V, V, T, D).transpose(0, 2, 3, 1, 4)",
    ),
    wrong(
        "packed sequences go on with the last state",
        _BEGIN,
        "begin = initial_state[n : n + 1] if initial_state is not None else states[-1] if states else None",
    ),
    wrong("packed sequences all begin with the first state", "initial_state[n : n + 1]", "initial_state[:1]"),
    wrong(
        "packed sequences are cut at borders of chunks",
        _PACKED + "\n            o_n, S_n = _tokens(token, whole, chunk, _begin(begin, (1, V, D, W), acc), *part)",
        "lead = first % (chunk or 1)\n"
        "            part = [x[:, :, first - lead : stop] for x in arrays]\n"
        "            o_n, S_n = _tokens(token, whole, chunk, _begin(begin, (1, V, D, W), acc), "
        "*part)\n            o_n = o_n[:, :, lead:]",
    ),
    wrong(
        "packed sequences lose their last token",
        "first:stop] for x in arrays]",
        "first : max(first, stop - 1)] for x in arrays]\n"
        "            part = [np.concatenate([x, 0 * y[:, :, first:stop][:, :, x.shape[2] :]], "
        "axis=2) for x, y in zip(part, arrays, strict=True)]",
    ),
    wrong(
        "the state is initial_state itself where there is nothing to do",
        _RETURN,
        ".astype(dtype), S.copy() if T or initial_state is None else initial_state",
    ),
    wrong(
        "the state is the workspace of the next call",
        _RETURN,
        '.astype(dtype), _WORKSPACES.__setitem__(("state", S.shape, S.dtype), S) or S',
    ),
    wrong("the state of zeros is not cleared", _BUFFER, "    buffer += 1e-3\n    return buffer"),
    wrong(
        "a call begins with the last state of its shape",
        _RETURN,
        '.astype(dtype), _WORKSPACES.setdefault(("state", S.shape, S.dtype), S.copy())',
        SIMPLE,
    ),
    wrong("NaN in q is swallowed", "arrays = [q, ", "arrays = [np.nan_to_num(q), "),
    wrong("NaN in v is swallowed", "v.astype(acc), g", "np.nan_to_num(v.astype(acc)), g"),
    wrong(
        "o is rounded to float16 on the way", "return o.swapaxes(2, 3)", "return o.astype(np.float16).swapaxes(2, 3)"
    ),
    wrong("the state comes back rounded to float16", _RETURN, ".astype(dtype), _rounded(S, np.float16)"),
    wrong("the state of another sequence comes back", _RETURN, ".astype(dtype), S[::-1].copy()"),
)

DELTAS = (
    wrong("the delta is that of the undecayed state", _DECAYED + f"    {_NEW}\n", f"    {_NEW}\n" + _DECAYED, GATED),
    wrong("beta is forgotten", "u = beta[..., None] * (v - ", "u = (v - ", DELTA),
    wrong("beta weighs the values alone", "u = beta[..., None] * (v - (", "u = (beta[..., None] * v - (", DELTA),
    wrong(
        "beta is applied twice",
        "inverse[:, :, i] *= beta[:, :, i, None]",
        "inverse[:, :, i] *= beta[:, :, i, None] ** 2",
        DELTA,
    ),
    wrong(
        "beta of head 0 counts for all", "[beta.astype(acc)])]", "[np.repeat(beta[:, :1], V, 1).astype(acc)])]", GATED
    ),
    wrong("the delta adds what it should take away", "(v - (k[..., None, :] @ S)", "(v + (k[..., None, :] @ S)", DELTA),
    wrong(
        "overlaps in a chunk are not decayed",
        "near[:, :, :i].swapaxes(-1, -2)\n",
        "k[:, :, :i].swapaxes(-1, -2)\n",
        GATED,
    ),
    wrong(
        "the inverse stops at the first order",
        "overlap @ inverse[:, :, :i, :i]",
        "overlap * beta[:, :, None, :i]",
        DELTA,
    ),
    wrong(
        "the inverse has no beta of earlier tokens",
        "inverse[:, :, i, :i] = -(",
        "inverse[:, :, i, :i] = -0.5 * (",
        DELTA,
    ),
    wrong(
        "the state is erased with undecayed keys",
        "into[:, :, i] = np.exp(start) * k[:, :, i]",
        "into[:, :, i] = k[:, :, i]",
        GATED,
    ),
    wrong("the state at the chunk's start is not erased", "row @ v[seen] - erased", "row @ v[seen]", DELTA),
    wrong("a chunk's o is made of v", "dtype) @ u[seen]", "dtype) @ v[seen]", DELTA),
    wrong(
        "a chunk's keys reach its end undecayed",
        "_rounded(np.exp(since) * k, dtype).swapaxes(-1, -2) @ u",
        "_rounded(k, dtype).swapaxes(-1, -2) @ u",
        GATED,
    ),
    wrong(
        "the inverse is rounded to float16",
        "row = _rounded(inverse[:, :, i, None, : i + 1], dtype)",
        "row = _rounded(inverse[:, :, i, None, : i + 1], np.float16)",
        DELTA,
    ),
    wrong(
        "keys are normalised again",
        "_shared(k, V).astype(acc), v",
        "_shared(k / (1e-3 + np.linalg.norm(k.astype(acc), axis=-1, keepdims=True)), V).astype(acc), v",
        DELTA,
    ),
    wrong(
        "kda takes the decay of channel 0",
        "log_decay, beta, scale, initial_state, cu_seqlens, chunk)\n",
        "log_decay[..., :1], beta, scale, initial_state, cu_seqlens, chunk)\n",
        "kda",
    ),
)

MUTANTS = (*CHUNKS, *STEPS, *CALLS, *DELTAS)
