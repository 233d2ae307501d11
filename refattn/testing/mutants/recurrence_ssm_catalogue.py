"""Mistakes in state spaces and in RWKV: patches of `recurrence_ssm`."""

from refattn.testing.mutants import recurrence_catalogue
from refattn.testing.mutants.patch import Mutant
from refattn.testing.mutants.recurrence_catalogue import wrong

_SOFT = "    if dt_softplus:\n        step = _softplus(step)\n"
_CLIP = "    step = np.clip(step, *(acc.type(limit) for limit in dt_limit))\n"
_BIAS = "    if dt_bias is not None:\n        step = step + dt_bias.astype(acc)[:, None]\n"
_SKIP = "    if D is not None:\n        y = y + D.astype(acc)[:, None, None] * X\n"
_GATE = "    if z is not None:\n        y = y * _silu(z.astype(acc))\n"
_SKIP_1 = "    if D is not None:\n        y = y + D.astype(acc) * U\n"
_SOFT_1 = "    if delta_softplus:\n        step = _softplus(step)\n"
_BIAS_1 = "    if delta_bias is not None:\n        step = step + delta_bias.astype(acc)\n"
_GROUPS = "_shared(B, H).astype(acc), _shared(C, H).astype(acc)"
_OF = "begin = initial_state if initial_state is None or cu_seqlens is None else initial_state[n : n + 1]"
_BEGIN = "if initial_state is None else initial_state.astype(acc)"


def _ssd(name: str, old: str, new: str) -> Mutant:
    return wrong(name, old, new, "ssd")


def _scan(name: str, old: str, new: str) -> Mutant:
    return wrong(name, old, new, "selective_scan")


SSD = (
    _ssd("softplus is forgotten", "if dt_softplus:", "if False:"),
    _ssd("softplus is always applied", "if dt_softplus:", "if True:"),
    _ssd("dt_bias comes after softplus", _BIAS + _SOFT, _SOFT + _BIAS),
    _ssd("dt_limit comes before softplus", _SOFT + _CLIP, _CLIP + _SOFT),
    _ssd("dt_limit is ignored", _CLIP, ""),
    _ssd("dt_limit has no lower end", _CLIP, "    step = np.minimum(step, acc.type(dt_limit[1]))\n"),
    _ssd("softplus is linear from 2 on", "np.where(x > 20, x,", "np.where(x > 2, x,"),
    _ssd("the skip comes after the gate", _SKIP + _GATE, _GATE + _SKIP),
    _ssd("the skip takes Δ x", "D.astype(acc)[:, None, None] * X", "D.astype(acc)[:, None, None] * into"),
    _ssd("the skip of head 0 counts for all", "D.astype(acc)[:, None, None] * X", "D.astype(acc)[:1, None, None] * X"),
    _ssd("the gate is a sigmoid", "x / (1 + np.exp(-x))", "1 / (1 + np.exp(-x))"),
    _ssd("groups are taken in turn", "np.arange(heads) // (heads // x.shape[1])", "np.arange(heads) % x.shape[1]"),
    _ssd("B and C are swapped", _GROUPS, "_shared(C, H).astype(acc), _shared(B, H).astype(acc)"),
    _ssd("B is not multiplied by Δ", "into, keys, queries = step[..., None] * X,", "into, keys, queries = X,"),
    _ssd(
        "packed sequences go on with the last state",
        _OF,
        _OF.replace("begin = ", "begin = states[-1] if states and initial_state is None else "),
    ),
    _ssd("packed sequences all begin with the first state", "initial_state[n : n + 1]", "initial_state[:1]"),
    _ssd("initial_state is ignored", _BEGIN, "if True else initial_state"),
    _ssd(
        "the state at the chunk's start is read undecayed",
        "y[:, :, t] += np.exp(start)[..., None] * (C",
        "y[:, :, t] += (C",
    ),
    _ssd(
        "decays in a chunk are one token short",
        "since[:, :, :t] += g[:, :, t, None]\n        weights",
        "since[:, :, : max(0, t - 1)] += g[:, :, t, None]\n        weights",
    ),
    _ssd(
        "the state leaves a chunk undecayed", "return y, _kept(np.exp(start)[..., None, None], S) + ", "return y, S + "
    ),
    _ssd(
        "a chunk's tokens reach its end undecayed",
        "end = _rows(np.exp(since)[..., None] * B, dtype)",
        "end = _rows(B, dtype)",
    ),
    _ssd(
        "the tail is not decayed",
        "S, t = _begin(begin, (batch, H, N, P), acc), first",
        "S, t = _begin(begin, (batch, H, N, P), acc), first\n"
        "        g[:, :, stop - (stop - first) % (chunk or 1) : stop] *= 0.5",
    ),
    _ssd(
        "the chunk's sums in float16",
        "@ x[:, :, : t + 1])[..., 0, :]",
        "@ x[:, :, : t + 1])[..., 0, :].astype(np.float16)",
    ),
    _ssd("A of head 0 counts for all", "step * A.astype(acc)[:, None]", "step * A.astype(acc)[:1, None]"),
)

SCANS = (
    _scan("softplus is forgotten", "if delta_softplus:", "if False:"),
    _scan("delta_bias comes after softplus", _BIAS_1 + _SOFT_1, _SOFT_1 + _BIAS_1),
    _scan("the skip comes after the gate", _SKIP_1 + _GATE, _GATE + _SKIP_1),
    _scan("the gate is forgotten", _SKIP_1 + "    if z is not None:", _SKIP_1 + "    if False:"),
    _scan("the skip is forgotten", _SKIP_1, ""),
    _scan("the state of a chunk's first token is carried", "h = states[:, -1]", "h = states[:, 0]"),
    _scan("the scan is a sweep short", "while shift < a.shape[1]:", "while 2 * shift < a.shape[1]:"),
    _scan(
        "the carried state decays a token late",
        "states + products * h[:, None]",
        "states + products / a[:, :1] * h[:, None]",
    ),
    _scan(
        "B is discretised by zero-order hold",
        "(step * U)[at][..., None] * keys[at]",
        "np.expm1(step[at][..., None] * A.astype(acc)) / A.astype(acc) * U[at][..., None] * keys[at]",
    ),
    _scan("initial_state is ignored", _BEGIN, "if True else initial_state"),
    _scan("the state is kept in float16", "h = states[:, -1]", "h = states[:, -1].astype(np.float16).astype(acc)"),
    _scan(
        "decays are taken from channel 0",
        "np.exp(step[at][..., None] * A.astype(acc))",
        "np.exp(step[at][..., None] * A.astype(acc)[:1])",
    ),
    _scan(
        "the state is initial_state itself where there is nothing to do",
        "return y.astype(dtype), h.copy()",
        "return y.astype(dtype), h.copy() if T or initial_state is None else initial_state",
    ),
)


def _six(name: str, old: str, new: str) -> Mutant:
    return wrong(name, old, new, "rwkv6")


def _seven(name: str, old: str, new: str) -> Mutant:
    return wrong(name, old, new, "rwkv7")


_UPDATE = "        S = S + K[:, :, t, :, None] * V[:, :, t, None, :]\n"
_READ = "        o[:, :, t] = (R[:, :, t, None] @ S)[..., 0, :]\n"

RWKV = (
    _six("the bonus is forgotten", "(R * u.astype(acc)[:, None] * K)", "(R * K)"),
    _six("the bonus is applied twice", "(R * u.astype(acc)[:, None] * K)", "(R * u.astype(acc)[:, None] ** 2 * K)"),
    _six("the bonus of head 0 counts for all", "u.astype(acc)[:, None]", "u.astype(acc)[:1, None]"),
    _six("the token itself is forgotten", "            o[:, :, t] += own[:, :, t, None] * V[:, :, t]\n", ""),
    _six(
        "decays come before the reading",
        "near = np.exp(since[:, :, :n])",
        "near = np.exp(since[:, :, :n] + g[:, :, t, None])",
    ),
    _six("the state is read with the token's decay", "(np.exp(start) * R", "(np.exp(start + g[:, :, t]) * R"),
    _six("a chunk's keys reach its end undecayed", "last = np.exp(since) * K", "last = K"),
    _six("the state is not carried between chunks", "_kept(np.exp(start)[..., None], S) + (last", "(last"),
    _six("initial_state is ignored", _BEGIN, "if True else initial_state"),
    _six(
        "scale is that of attention",
        "begin:end])\n    return (scale * o)",
        "begin:end])\n    return (R.shape[-1] ** -0.5 * o)",
    ),
    _seven(
        "the erased part is that of the decayed state",
        "read = kappa[:, :, t, None] @ S",
        "read = kappa[:, :, t, None] @ _kept(w[:, :, t, :, None], S)",
    ),
    _seven("a is forgotten", "a.astype(acc) * kappa", "kappa"),
    _seven(
        "a weighs the reading side",
        "w, erase = np.exp(log_decay.astype(acc)), a.astype(acc) * kappa",
        "w, erase, kappa = np.exp(log_decay.astype(acc)), kappa, a.astype(acc) * kappa",
    ),
    _seven("erasing adds", "S) - erase", "S) + erase"),
    _seven("the state is read before the update", _UPDATE + _READ, _READ + _UPDATE),
    _seven(
        "the decay comes last",
        "_kept(w[:, :, t, :, None], S) - erase[:, :, t, :, None] * read",
        "_kept(w[:, :, t, :, None], S - erase[:, :, t, :, None] * read)",
    ),
    _seven("decays are powers of two", "np.exp(log_decay", "np.exp2(log_decay"),
    _seven(
        "values are rounded to two decimals",
        "* V[:, :, t, None, :]\n        o",
        "* np.round(V[:, :, t, None, :], 2)\n        o",
    ),
)

MUTANTS = (*SSD, *SCANS, *RWKV)
ALL = (*recurrence_catalogue.MUTANTS, *MUTANTS)
"""Of both files."""
