"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

import itertools
from functools import partial

import numpy as np

import refattn
from refattn.arrays import compute_dtype
from refattn.results import Recurrent

SCAN = [
    "B by zero-order hold",
    "softplus before the bias",
    "softplus forgotten",
    "gate before the skip",
    "gate is a sigmoid",
    "read before the update",
    "decay of the token before",
    "decays of the channels turned",
    "initial_state forgotten",
    "borders ignored",
    "states of sequences turned",
    "multiplied by zero, so that NaN leaks",
    "state in the dtype of u",
    "computed in the dtype of u",
    "last token missing in the state",
]
HEADS = [
    "groups taken round robin",
    "limits before softplus",
    "limits ignored",
    "upper limit alone",
    "bias after softplus",
    "input without its step",
    "decay without its step",
    "gate before the skip",
    "gate forgotten",
    "read before the update",
    "initial_state forgotten",
    "borders ignored",
    "multiplied by zero, so that NaN leaks",
    "state in the dtype of x",
    "last token missing in the state",
    "decays as a ratio of products",
]
OSCILLATIONS = [
    "B to first order",
    "B by a difference",
    "real part once",
    "C conjugated",
    "real part of C alone",
    "read before the update",
    "initial_state forgotten",
    "skip forgotten",
    "state in the dtype of u",
    "decays alone",
]
FILTER = [
    "taps turned round",
    "one token of the future seen",
    "bias after silu",
    "silu forgotten",
    "initial_state forgotten",
    "borders ignored",
    "state one token early",
    "zeros for the state of few tokens",
    "state in float32",
    "last tap forgotten",
]


def widened(dtype, arrays):
    return [None if x is None else x.astype(dtype) for x in arrays]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_by_one(call, names, cu_seqlens, wrong, args, options):
    """Call for each packed sequence, each with its own state."""
    state, parts = options.pop("initial_state", None), []
    z = options.pop("z", None)
    borders = list(itertools.pairwise(int(x) for x in cu_seqlens))
    for n, (first, stop) in enumerate(borders):
        at = [(..., slice(first, stop), *[slice(None)] * -axis) for axis in names]
        own = [x if axis > 0 else x[i] for x, axis, i in zip(args, names, at, strict=True)]
        gate = {} if z is None else {"z": z[..., first:stop, :]}
        number = len(borders) - 1 - n if wrong == "states of sequences turned" else n
        start = None if state is None else state[number]
        start = parts[-1][1] if wrong == "borders ignored" and n else start
        parts.append(call(*own, **options, **gate, initial_state=start, wrong=wrong))
    return Recurrent(np.concatenate([o for o, _ in parts], axis=-2), np.stack([s for _, s in parts]))


def kept(g, h, wrong):
    if wrong == "multiplied by zero, so that NaN leaks":
        return np.exp(g) * h
    return np.where(np.isneginf(g), 0, np.exp(g) * h)


def finished(y, skip, z, wrong):
    gate = (
        1 if z is None or wrong == "gate forgotten" else sigmoid(z) if wrong == "gate is a sigmoid" else z * sigmoid(z)
    )
    return y * gate + skip if wrong == "gate before the skip" else (y + skip) * gate


def scan(u, delta, A, B, C, *, D=None, z=None, delta_bias=None, delta_softplus=False, cu_seqlens=None, chunk=0, **more):
    wrong, first = more["wrong"], more.get("initial_state")
    if cu_seqlens is not None:
        options = {"D": D, "z": z, "delta_bias": delta_bias, "delta_softplus": delta_softplus, "initial_state": first}
        return one_by_one(scan, (-1, -1, 1, -1, -1), cu_seqlens, wrong, (u, delta, A, B, C), options)
    dtype = u.dtype if wrong == "computed in the dtype of u" else compute_dtype(u.dtype)
    u_, delta, A, B, C, D, z, bias, first = widened(dtype, (u, delta, A, B, C, D, z, delta_bias, first))
    A = A[::-1] if wrong == "decays of the channels turned" else A
    bias = 0 if bias is None else bias
    if wrong == "softplus before the bias" and delta_softplus:
        step = np.logaddexp(dtype.type(0), delta) + bias
    elif delta_softplus and wrong != "softplus forgotten":
        step = np.logaddexp(dtype.type(0), delta + bias)
    else:
        step = delta + bias
    h = np.zeros((*u.shape[:-2], *A.shape), dtype)
    h = h if first is None or wrong == "initial_state forgotten" else first
    y, before = np.zeros_like(u_), h
    for t in range(u.shape[-2]):
        g = step[..., max(t - (wrong == "decay of the token before"), 0), :, None] * A
        width = np.expm1(g) / A if wrong == "B by zero-order hold" else step[..., t, :, None]
        before, h = h, kept(g, h, wrong) + width * u_[..., t, :, None] * B[..., t, None, :]
        read = before if wrong == "read before the update" else h
        y[..., t, :] = (read * C[..., t, None, :]).sum(-1)
    h = before if wrong == "last token missing in the state" else h
    o = finished(y, 0 if D is None else D * u_, z, wrong)
    return Recurrent(
        o.astype(u.dtype), h.astype(u.dtype if wrong == "state in the dtype of u" else compute_dtype(u.dtype))
    )


def heads(x, dt, A, B, C, *, D=None, z=None, dt_bias=None, dt_softplus=False, cu_seqlens=None, chunk=0, **more):
    wrong, first, limit = more["wrong"], more.get("initial_state"), more.get("dt_limit", (0.0, np.inf))
    if cu_seqlens is not None:
        options = {"D": D, "z": z, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": limit}
        args = (x, dt, A, B, C)
        return one_by_one(heads, (-1, 0, 1, -1, -1), cu_seqlens, wrong, args, options | {"initial_state": first})
    if x.ndim == 2:
        alone = [y[None] for y in (x, dt)] + [A] + [y[None] for y in (B, C)]
        more |= {"initial_state": None if first is None else first[None], "z": None if z is None else z[None]}
        o, state = heads(*alone, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, **more)
        return Recurrent(o[0], state[0])
    dtype = compute_dtype(x.dtype)
    x_, dt, A, k, q, D, z, bias, first = widened(dtype, (x, dt, A, B, C, D, z, dt_bias, first))
    H, G, T = x.shape[-3], B.shape[-3], x.shape[-2]
    group = np.arange(H) % G if wrong == "groups taken round robin" else np.arange(H) // (H // G)
    k, q, bias = k[..., group, :, :], q[..., group, :, :], 0 if bias is None else bias[:, None]
    low, high = (-np.inf, np.inf) if wrong == "limits ignored" else limit
    low = -np.inf if wrong == "upper limit alone" else low
    if wrong == "limits before softplus" and dt_softplus:
        step = np.logaddexp(dtype.type(0), np.clip(dt + bias, dtype.type(low), dtype.type(high)))
    else:
        late = wrong == "bias after softplus" and dt_softplus
        raw = dt if late else dt + bias
        raw = np.logaddexp(dtype.type(0), raw) if dt_softplus else raw
        step = np.clip(raw + bias if late else raw, dtype.type(low), dtype.type(high))
    g = A[:, None] * (np.ones_like(step) if wrong == "decay without its step" else step)
    v = x_ if wrong == "input without its step" else step[..., None] * x_
    h = np.zeros((*x.shape[:-2], B.shape[-1], x.shape[-1]), dtype)
    h = h if first is None or wrong == "initial_state forgotten" else first
    y, before, G_ = np.zeros_like(x_), h, np.exp(np.cumsum(g, axis=-1))
    for t in range(T):
        before, h = h, kept(g[..., t, None, None], h, wrong) + k[..., t, :, None] * v[..., t, None, :]
        read = before if wrong == "read before the update" else h
        y[..., t, :] = (q[..., t, :, None] * read).sum(-2)
    if wrong == "decays as a ratio of products" and first is None:
        weights = np.tril(q @ k.swapaxes(-1, -2) * G_[..., :, None] / G_[..., None, :])
        y = weights @ v
    h = before if wrong == "last token missing in the state" else h
    o = finished(y, 0 if D is None else D[:, None, None] * x_, z, wrong)
    return Recurrent(o.astype(x.dtype), h.astype(x.dtype if wrong == "state in the dtype of x" else dtype))


def oscillate(u, delta, *parameters, D=None, initial_state=None, wrong=""):
    dtype = compute_dtype(u.dtype)
    u_, step, D, a, b, c, d, first = widened(dtype, (u, delta, D, *parameters, initial_state))
    A, C = a + 1j * (0 if wrong == "decays alone" else b), c + 1j * (0 if wrong == "real part of C alone" else d)
    C = C.conj() if wrong == "C conjugated" else C
    z = step[:, None] * A
    safe = np.where(z == 0, 1, z)
    phi = np.where(z == 0, 1, np.expm1(z) / safe)
    if wrong == "B by a difference":
        phi = (np.exp(z.astype(np.complex64)) - 1) / safe
    width = step[:, None] * (1 if wrong == "B to first order" else phi)
    h = np.zeros((*u.shape[:-2], *A.shape), np.complex128)
    h = h if first is None or wrong == "initial_state forgotten" else first[..., 0] + 1j * first[..., 1]
    y, twice = np.zeros_like(u_), 1 if wrong == "real part once" else 2
    for t in range(u.shape[-2]):
        before, h = h, np.exp(z) * h + width * u_[..., t, :, None]
        y[..., t, :] = twice * (C * (before if wrong == "read before the update" else h)).real.sum(-1)
    y = y if D is None or wrong == "skip forgotten" else y + D * u_
    state = np.stack([h.real, h.imag], -1)
    return Recurrent(y.astype(u.dtype), state.astype(u.dtype if wrong == "state in the dtype of u" else dtype))


def filtered(x, weight, bias=None, *, activation=None, initial_state=None, cu_seqlens=None, wrong=""):
    if cu_seqlens is not None:
        options = {"bias": bias, "activation": activation, "initial_state": initial_state}
        return one_by_one(filtered, (-1, 1), cu_seqlens, wrong, (x, weight), options)
    K, T = weight.shape[1], x.shape[-2]
    first = np.zeros((*x.shape[:-2], K - 1, x.shape[-1]), x.dtype)
    if initial_state is not None and wrong != "initial_state forgotten":
        first = initial_state
    whole = np.concatenate([first, x, first[..., :1, :] * 0], axis=-2)
    w_, whole_, b = widened(compute_dtype(x.dtype), (weight, whole, bias))
    w_ = w_[:, ::-1] if wrong == "taps turned round" else w_
    late = wrong == "one token of the future seen" and K > 1
    taps = K - 1 if wrong == "last tap forgotten" else K
    y = sum((w_[:, i] * whole_[..., i + late : i + late + T, :] for i in range(taps)), np.zeros(x.shape, w_.dtype))
    soft = activation == "silu" and wrong != "silu forgotten"
    b = 0 if b is None else b
    y = (y * sigmoid(y) if soft else y) + b if wrong == "bias after silu" else y + b
    y = y * sigmoid(y) if soft and wrong != "bias after silu" else y
    stop = T - (wrong == "state one token early" and T > 0)
    state = whole[..., stop : stop + K - 1, :].copy()
    if wrong == "zeros for the state of few tokens" and T < K - 1:
        state[..., : K - 1 - T, :] = 0
    return Recurrent(y.astype(x.dtype), state.astype(np.float32) if wrong == "state in float32" else state)


def without_the_rest(operation, *args, chunk, **options):
    """Tokens beyond whole chunks have o = 0."""
    result = getattr(refattn, operation)(*args, **options, chunk=chunk, backend="numpy")
    o, T = result.o.copy(), result.o.shape[-2]
    o[..., T // chunk * chunk :, :] = 0
    return result._replace(o=o)


def chunks_of_their_own(operation, *args, chunk, **options):
    """Every chunk begins with the initial state."""
    if "cu_seqlens" in options:
        return getattr(refattn, operation)(*args, **options, chunk=chunk, backend="numpy")
    axes, parts = (-2, -1 if operation.startswith("ssd") else -2, None, -2, -2), []
    for c in range(0, max(args[0].shape[-2], 1), chunk):
        at = [... if axis is None else (..., slice(c, c + chunk), *[slice(None)] * (-axis - 1)) for axis in axes]
        gate = {} if options.get("z") is None else {"z": options["z"][..., c : c + chunk, :]}
        own = [x[place] for x, place in zip(args, at, strict=True)]
        parts.append(getattr(refattn, operation)(*own, **{**options, **gate}, chunk=chunk, backend="numpy"))
    return Recurrent(np.concatenate([o for o, _ in parts], axis=-2), parts[-1].state)


def changed(operation, change, *args, **options):
    """The right gradients, but for one of them."""
    right = getattr(refattn, operation)(*args, **options, backend="numpy")
    return right._replace(
        **{name: f(getattr(right, name)) for name, f in change.items() if getattr(right, name) is not None}
    )


def without(operation, *names):
    """The right gradients of a call without some of its arguments, and zeros for these."""

    def call(*args, **options):
        left = {name: x for name, x in options.items() if name not in names}
        right = getattr(refattn, operation)(*args, **left, backend="numpy")
        given = {f"d{name}" for name in names if options.get(name) is not None}
        return right._replace(**{n: np.zeros_like(options[n[1:]]) for n in given if n in right._fields})

    return call


def shifted(x):
    return np.roll(x, 1, axis=-2)


def turned(x):
    return np.ascontiguousarray(x[::-1])


def negative(x):
    return -x


def halved(x):
    return (x / 2).astype(x.dtype)


def off(x):
    """Wrong in one place by what rounding never does."""
    x = x.copy()
    x.reshape(-1)[-1:] += np.asarray(2.0**-5).astype(x.dtype)
    return x


def infected(x):
    """NaN where 0 times inf would stand."""
    return np.where(x == 0, np.nan, x).astype(x.dtype)


def zero(x):
    return np.zeros_like(x)


BACKWARD = {
    "selective_scan_vjp": {
        "du shifted": {"du": shifted},
        "ddelta shifted": {"ddelta": shifted},
        "dA of forgotten states is NaN": {"dA": infected},
        "dA of half the tokens": {"dA": halved},
        "dB off in one place": {"dB": off},
        "dC shifted": {"dC": shifted},
        "dD turned": {"dD": turned},
        "dz negative": {"dz": negative},
        "ddelta_bias halved": {"ddelta_bias": halved},
        "dinitial_state of zeros": {"dinitial_state": zero},
    },
    "ssd_vjp": {
        "dx shifted": {"dx": shifted},
        "ddt off in one place": {"ddt": off},
        "dA of forgotten states is NaN": {"dA": infected},
        "dA turned": {"dA": turned},
        "dB halved": {"dB": halved},
        "dC shifted": {"dC": shifted},
        "dD turned": {"dD": turned},
        "dz off in one place": {"dz": off},
        "ddt_bias turned": {"ddt_bias": turned},
        "dinitial_state negative": {"dinitial_state": negative},
    },
    "s4d_vjp": {
        "du shifted": {"du": shifted},
        "ddelta halved": {"ddelta": halved},
        "dA_real off in one place": {"dA_real": off},
        "dA_imag negative": {"dA_imag": negative},
        "dC_real halved": {"dC_real": halved},
        "dC_imag negative": {"dC_imag": negative},
        "dD turned": {"dD": turned},
        "dinitial_state of zeros": {"dinitial_state": zero},
    },
    "causal_conv1d_vjp": {
        "dx shifted": {"dx": shifted},
        "dweight of the taps turned round": {"dweight": lambda x: np.ascontiguousarray(x[:, ::-1])},
        "dbias halved": {"dbias": halved},
        "dinitial_state shifted": {"dinitial_state": shifted},
    },
}
OTHER = {
    "selective_scan_vjp": {
        "dstate forgotten": ("dstate",),
        "gate forgotten": ("z",),
        "softplus forgotten": ("delta_softplus",),
    },
    "ssd_vjp": {"dstate forgotten": ("dstate",), "skip forgotten": ("D",), "limits forgotten": ("dt_limit",)},
    "s4d_vjp": {"dstate forgotten": ("dstate",), "initial_state forgotten": ("initial_state",)},
    "causal_conv1d_vjp": {"dstate forgotten": ("dstate",), "silu forgotten": ("activation",)},
}

MUTANTS = {
    **{
        f"{op}: {w}": (op, partial(scan, wrong=w))
        for op in ("selective_scan", "selective_scan_recurrent")
        for w in SCAN
    },
    **{f"ssd: {w}": ("ssd", partial(heads, wrong=w)) for w in HEADS},
    **{f"ssd_recurrent: {w}": ("ssd_recurrent", partial(heads, wrong=w)) for w in HEADS[:-1]},
    **{f"{op}: {w}": (op, partial(oscillate, wrong=w)) for op in ("s4d", "s4d_recurrent") for w in OSCILLATIONS},
    **{f"causal_conv1d: {w}": ("causal_conv1d", partial(filtered, wrong=w)) for w in FILTER},
    **{
        f"{op}: {mutant.__name__}": (op, partial(mutant, op))
        for op in ("selective_scan_chunked", "ssd_chunked")
        for mutant in (without_the_rest, chunks_of_their_own)
    },
    **{f"{op}: {w}": (op, partial(changed, op, f)) for op, table in BACKWARD.items() for w, f in table.items()},
    **{f"{op}: {w}": (op, without(op, *names)) for op, table in OTHER.items() for w, names in table.items()},
}
RIGHT = {
    "selective_scan": scan,
    "ssd": heads,
    "s4d": oscillate,
    "causal_conv1d": filtered,
}
"""What the mutants are made of, which is right as long as `wrong` is empty."""
