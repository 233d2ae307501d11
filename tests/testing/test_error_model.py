"""The error model: the oracle is right, the bound holds and is not absurd, sigma is the size of real errors."""

from collections import namedtuple

import numpy as np
import pytest

import refattn
from refattn.testing import Contract, check
from refattn.testing.attention.backward import backward_errors, gradients, over, slopes
from refattn.testing.attention.cases import CASES
from refattn.testing.attention.forward import Units, forward_errors
from refattn.testing.attention.judge import analyse
from refattn.testing.attention.oracle import added, truth
from refattn.testing.attention.problem import problem
from refattn.testing.backends import mask_of
from refattn.testing.formats import UNIT, decode, encode, round_to
from refattn.testing.mutants import correct
from refattn.testing.session import Session
from refattn.testing.verdicts import PASS, SUSPECT, UNDECLARED

DIRECT = ("scale", "softcap", "sinks", "dropout_mask", "dropout_p")


def to(x, name, truncates=False):
    """Round float32 numbers to a format, or cut them off."""
    if name in (None, "float32"):
        return x
    if not truncates:
        return round_to(x, name).astype(np.float32)
    if name == "float16":
        near = x.astype(np.float16)
        return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float16(0)), near).astype(np.float32)
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).reshape(x.shape)


def summed(a, b, acc):
    """Return a @ b, summed in one format one term after the other."""
    if acc == "float32":
        return a @ b
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for n in range(a.shape[-1]):
        total = to(total + to(a[..., n, None] * b[..., n, None, :], acc), acc)
    return total


def simple(contract):
    """Return attention in one pass over all keys, in the precision that a contract declares."""
    n = contract.numerics
    lower, cut = n["products"], n["truncates"]
    dtype = contract.dtype

    def kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, bias=None, mask=None, sinks=None):
        group, (B, H, Tq, D), Tk = q.shape[1] // k.shape[1], q.shape, k.shape[2]
        q, k, v = (to(decode(x, dtype, np.float32), lower) for x in (q, k, v))
        k, v = (np.repeat(x, group, axis=1) for x in (k, v))
        scale = np.float32(D**-0.5 if scale is None else scale)
        if n["q_prescaled"]:
            q, scale = to(q * scale, dtype), np.float32(1)
        s = scale * summed(q, k.swapaxes(-1, -2), n["acc"])
        if softcap is not None:
            s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
        s = s if bias is None else s + bias
        s = to(s, n["s"])
        ahead = np.arange(Tq)[:, None] + (Tk - Tq) - np.arange(Tk)
        visible = np.ones((B, H, Tq, Tk), bool) & (True if mask is None else mask)
        left, right = (None, None) if window is None else window
        visible &= (ahead >= (0 if causal else -Tq - Tk)) & (ahead <= (Tq + Tk if left is None else left))
        visible &= ahead >= (-Tq - Tk if right is None else -right)
        s = np.where(visible, s, -np.inf).astype(np.float32)
        m = s.max(axis=-1, keepdims=True, initial=-np.inf)
        m = m if sinks is None else np.maximum(m, sinks[:, None, None])
        m = np.where(np.isneginf(m), np.float32(0), m)
        e = np.exp(s - m)
        p = to(e, n["p"], cut)
        l = (p if n["l_rounded"] else e).sum(axis=-1, keepdims=True)
        l = l if sinks is None else l + np.exp(sinks[:, None, None] - m)
        o = to(summed(p, v, n["acc"]) / np.where(l == 0, 1, l), n["out"], cut)
        return encode(o, dtype, contract.uint16), (m + np.log(l))[..., 0].astype(np.float32)

    return kernel


DECLARED = {
    "tf32": {"products": "tf32"},
    "acc tf32": {"acc": "tf32"},
    "bfloat16 products": {"products": "bfloat16"},
    "p bfloat16": {"p": "bfloat16"},
    "p float16": {"p": "float16"},
    "out bfloat16": {"out": "bfloat16"},
    "out float16": {"out": "float16"},
    "s bfloat16": {"s": "bfloat16"},
    "s float16": {"s": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "bf16 q_prescaled": {"dtype": "bfloat16", "q_prescaled": True},
    "bf16 s": {"dtype": "bfloat16", "s": "bfloat16"},
    "bf16 l_rounded": {"dtype": "bfloat16", "l_rounded": True},
    "bf16 truncates": {"dtype": "bfloat16", "truncates": True},
    "bf16 p float32": {"dtype": "bfloat16", "p": "float32"},
    "fp16": {"dtype": "float16"},
    "fp16 q_prescaled": {"dtype": "float16", "q_prescaled": True},
    "fp16 s": {"dtype": "float16", "s": "float16"},
    "fp16 l_rounded": {"dtype": "float16", "l_rounded": True},
    "fp16 truncates": {"dtype": "float16", "truncates": True},
    "fp16 p float32": {"dtype": "float16", "p": "float32"},
    "fp16 acc": {"dtype": "float16", "acc": "float16"},
    "bf16 acc fp16": {"dtype": "bfloat16", "acc": "float16"},
    "all": {"dtype": "bfloat16", "q_prescaled": True, "s": "bfloat16", "l_rounded": True, "truncates": True},
}


class Noise:
    """Every operation rounded as badly as it may be; `worst` says in which direction."""

    def __init__(self, u, worst, rng):
        self.u, self.worst, self.rng, self.grid = u, worst, rng, None

    def __call__(self, x, unit=None, grid=None):
        """Return x times 1 ± unit; a grid of signs decides where the worst case is one of an element of o."""
        unit = self.u.acc if unit is None else unit
        if not unit:
            return x
        if self.worst == "random":
            return x * (1 + unit * self.rng.choice([-1.0, 1.0], np.shape(x)))
        if self.worst == "uniform":
            return x * (1 + unit * self.rng.uniform(-1.0, 1.0, np.shape(x)))
        if self.worst == "aimed" and grid is not None:
            return x + unit * np.abs(x) * grid
        return x * (1 + unit * (-1 if self.worst == "down" else 1))

    def product(self, a, b, grid=None):
        """Return a @ b, one term after the other."""
        total = np.zeros((*a.shape[:-1], b.shape[-1]))
        for n in range(a.shape[-1]):
            term = self(a[..., n, None] * b[..., n, None, :], grid=grid)
            total = term if n == 0 else self(total + term, grid=grid)
        return total

    def exp(self, x, grid=None):
        return self(np.exp(x), 2 * self.u.exp_ulp * self.u.acc, grid)

    def total(self, x, grid=None):
        """Return the sum over the last axis, one term after the other."""
        total = x[..., :1]
        for n in range(1, x.shape[-1]):
            total = self(total + x[..., n, None])
        return total


def scores_with(noise, p, t, grid):
    """Return the scores, and the slope of the soft cap, every step rounded."""
    u = noise.u
    q, k = noise(t.q, u.products), noise(t.k, u.products)
    if u.q:
        s = noise.product(noise(noise(q * t.scale), u.q), k.swapaxes(-1, -2), grid)
    else:
        s = noise(noise.product(q, k.swapaxes(-1, -2), grid) * noise(t.scale), grid=grid)
    slope = np.ones_like(s)
    cap = p.options.get("softcap")
    if cap is not None:
        tanh = noise(np.tanh(noise(s / cap, grid=grid)), 4 * u.acc, grid)
        slope = noise(1 - noise(tanh**2))
        s = noise(cap * tanh, grid=grid)
    if p.options.get("bias") is not None:
        s = noise(s + t.bias, grid=grid)
    return noise(s, u.s, grid) if u.s else s, slope


def noisy_forward(noise, p, t, grid):
    """Return o and lse of a tiled kernel that rounds every step."""
    u, tile = noise.u, noise.u.tile
    s_all, _ = scores_with(noise, p, t, grid)
    B, H, Tq, Tk = s_all.shape
    sinks = p.options.get("sinks")
    m = np.full((B, H, Tq, 1), -np.inf) if sinks is None else np.zeros((B, H, Tq, 1)) + sinks[:, None, None]
    l, o = np.where(np.isneginf(m), 0.0, 1.0), np.zeros((B, H, Tq, t.v.shape[-1]))
    v = noise(t.v, u.products)
    keep = np.broadcast_to(t.keep, s_all.shape)
    for j in range(0, Tk, tile):
        part = np.s_[..., j : j + tile]
        g = None if grid is None else grid[part]
        s = np.where(t.visible[part], s_all[part], -np.inf)
        m_new = np.maximum(m, s.max(axis=-1, keepdims=True))
        safe = np.where(np.isneginf(m_new), 0, m_new)
        e = np.where(t.visible[part], noise.exp(noise(np.where(t.visible[part], s - safe, 0), grid=g), g), 0)
        shrink = np.where(m == m_new, 1, noise.exp(noise(np.where(np.isneginf(m), -1e3, m - safe))))
        weights = noise(e, u.p, g)
        l = noise(noise(l * shrink) + noise.total(weights if u.l else e))
        dropped = weights if t.keep.size == 1 else noise(weights * keep[part], grid=g)
        o = noise(noise(o * shrink) + noise.product(dropped, v[..., j : j + tile, :]))
        m = m_new
    o = noise(noise(o / np.where(l == 0, 1, l)), u.out)
    with np.errstate(divide="ignore"):
        log = np.where(l > 0, noise(np.log(l), 4 * u.acc), -np.inf)
    return o, noise(np.where(np.isneginf(m), 0, m) + log)[..., 0]


def noisy_backward(noise, p, s, grid):
    """Return the gradients of a kernel that rounds every step and recomputes the weights from lse."""
    u, t = noise.u, s.t
    o, lse = noisy_forward(Noise(Units(**{**u.__dict__, "out": u.out}), noise.worst, noise.rng), p, t, grid)
    scores, slope = scores_with(noise, p, t, grid)
    safe = np.where(np.isneginf(lse), 0, lse)[..., None]
    w = np.where(t.visible, noise.exp(noise(np.where(t.visible, scores - safe, -50.0), grid=grid), grid), 0)
    do = noise(s.do, u.products)
    kept = noise(noise(w * t.keep) if t.keep.size > 1 else w, u.p)
    dp = noise.product(do, noise(t.v, u.products).swapaxes(-1, -2), grid)
    dp = np.where(t.visible, noise(dp * t.keep) if t.keep.size > 1 else dp, 0)
    delta = noise.total(noise(s.do * o))
    if p.options.get("dlse") is not None:
        delta = noise(delta - np.where(t.blind, 0, p.options["dlse"])[..., None])
    ds = np.where(t.visible, noise(w * noise(dp - delta, grid=grid)), 0)
    through = noise(noise(ds * slope) if p.options.get("softcap") is not None else ds, u.p)
    scale, Hk = noise(t.scale), p.k.shape[1]

    def shared(x):
        B, H, T, D = x.shape
        return noise(x.reshape(B, Hk, H // Hk, T, D).sum(axis=2), (H // Hk - 1) * u.acc)

    found = {
        "dq": noise(noise(noise.product(through, noise(t.k, u.products)) * scale), u.out),
        "dk": noise(shared(noise(noise.product(through.swapaxes(-1, -2), noise(t.q, u.products)) * scale)), u.out),
        "dv": noise(shared(noise.product(kept.swapaxes(-1, -2), do)), u.out),
    }
    if p.options.get("bias") is not None:
        total = ds
        for axis, n in enumerate(p.options["bias"].shape):
            if n == 1 and total.shape[axis] > 1:
                total = np.moveaxis(noise.total(np.moveaxis(total, axis, -1)), -1, axis)
        found["dbias"] = noise(total, UNIT["float32"])
    if p.options.get("sinks") is not None:
        with np.errstate(over="ignore"):
            p_sink = noise.exp(noise(p.options["sinks"][:, None] - lse))
        each = np.where(np.isneginf(lse), 0, noise(p_sink * delta[..., 0]))
        found["dsinks"] = -noise.total(np.moveaxis(each, 1, 0).reshape(each.shape[1], -1))[:, 0]
    return found


Arrays = namedtuple("Arrays", "q k v")
SIZES = (2, 4, 2, 11, 37, 8, 6)
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "softcap": {"softcap": 1.5},
    "bias": {"bias": (1, 4, 11, 37)},
    "bias_row": {"bias": (1, 4, 1, 37), "softcap": 3.0},
    "sinks": {"sinks": (4,), "window": (9, 4)},
    "mask": {"mask": True},
    "dropout": {"dropout_p": 0.3},
}
FORMATS = {
    "float32": {},
    "tf32": {"products": "tf32"},
    "bf16 products": {"products": "bfloat16"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "rough": {"dtype": "bfloat16", "q_prescaled": True, "s": "bfloat16", "l_rounded": True},
    "fp16 truncates": {"dtype": "float16", "truncates": True, "acc": "tc_trunc"},
}
SHAPES = {
    "normal": lambda x: x,
    "large scores": lambda x: x._replace(q=x.q * 6),
    "small scores": lambda x: x._replace(q=x.q / 30),
    "values that agree": lambda x: x._replace(v=x.v / 8 + 5),
    "values of one sign": lambda x: x._replace(v=abs(x.v), k=abs(x.k)),
}


def drawn(contract, given, change=lambda x: x, seed=0):
    rng = np.random.default_rng(seed)
    B, H, Hk, Tq, Tk, D, Dv = SIZES
    shapes = (B, H, Tq, D), (B, Hk, Tk, D), (B, Hk, Tk, Dv)
    arrays = change(Arrays(*(rng.standard_normal(shape) for shape in shapes)))
    options = dict(given)
    for name in ("bias", "sinks"):
        if name in options:
            options[name] = rng.standard_normal(options[name])
    if "mask" in options:
        options["mask"] = rng.random((B, 1, Tq, Tk)) < 0.6
        options["mask"][:, :, 3] = False
    if "dropout_p" in options:
        options["dropout_mask"] = rng.random((B, H, Tq, Tk)) < 0.7
    do = rng.standard_normal((B, H, Tq, Dv)) if contract.op.endswith("_vjp") else None
    if do is not None and "causal" in options:
        options["dlse"] = rng.standard_normal((B, H, Tq))
    return problem(contract, *arrays, do=do, **options)


def worst_cases(t, channels):
    """Yield a name, and the signs that push one channel of o furthest up where errors are relative to weights."""
    for worst in ("random", "uniform", "up", "down"):
        yield worst, None
    for channel in channels:
        pull = np.sign(t.v[..., channel][:, :, None, :] - np.nan_to_num(t.o)[..., channel, None])
        for sign in (1, -1):
            yield "aimed", sign * np.broadcast_to(pull, t.visible.shape)


def shares(got, want, bound):
    """Return the largest error as a share of the bound."""
    live = np.isfinite(want)
    assert np.isfinite(got[live]).all()
    assert (np.isneginf(got) == np.isneginf(want)).all()
    return float((np.abs(got[live] - want[live]) / np.maximum(bound, 1e-300)[live]).max())


def largest_shares(format, seed, changes, channels):
    """Return, for each result, how near to its bound the worst roundings carry it."""
    rng, largest = np.random.default_rng(seed), {}

    def note(name, share):
        largest[name] = max(largest.get(name, 0), share)

    forward = Contract(tile=16, **FORMATS[format])
    backward = Contract(op="attention_vjp", tile=16, **FORMATS[format])
    u = Units.of(forward)
    for given in OPTIONS.values():
        for change in changes:
            p = drawn(forward, given, SHAPES[change], seed)
            t = truth(p, forward)
            errors = forward_errors(t, forward)
            for worst, grid in worst_cases(t, channels):
                o, lse = noisy_forward(Noise(u, worst, rng), p, t, grid)
                note("o", shares(o, t.o, errors["bound"]))
                note("lse", shares(lse, t.lse, errors["lse_bound"]))
            p = drawn(backward, given, SHAPES[change], seed)
            s = slopes(p, backward)
            errors = backward_errors(p, backward, s)
            for worst, grid in worst_cases(s.t, channels):
                got = noisy_backward(Noise(u, worst, rng), p, s, grid)
                assert set(got) == set(errors)
                for name, e in errors.items():
                    note(name, shares(got[name], e["o"], e["bound"]))
    return largest


@pytest.mark.parametrize("format", FORMATS)
def test_the_bound_holds_for_the_worst_rounding_of_every_step(format):
    """And says something: no bound is twenty times what the worst roundings reach, that of dsinks apart."""
    largest = largest_shares(format, 0, ("normal", "large scores"), (0,))
    assert set(largest) == {"o", "lse", "dq", "dk", "dv", "dbias", "dsinks"}
    assert max(largest.values()) <= 1, largest
    assert largest.pop("dsinks") > 0.02
    assert min(largest.values()) > 0.05, largest


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_bound_holds_for_many_inputs(format):
    for seed in range(1, 11):
        largest = largest_shares(format, seed, SHAPES, (0, 3))
        assert max(largest.values()) <= 1, (seed, largest)


def exact(x):
    return round_to(x, "float32")


def random_call(n, backward):
    """Return a random problem in float64, with a random choice of options; the arrays are float32 numbers."""
    rng = np.random.default_rng([n, 91])
    Hk, group, B = (int(x) for x in rng.integers(1, 4, 3))
    Tq, Tk, D, Dv = (int(x) for x in rng.integers(1, 24, 4))
    H = Hk * group
    shapes = (B, H, Tq, D), (B, Hk, Tk, D), (B, Hk, Tk, Dv), (B, H, Tq, Dv)
    q, k, v, do = (exact(rng.standard_normal(shape)) for shape in shapes)
    drawn = {
        "causal": True,
        "window": (int(rng.integers(0, 9)), None if n % 3 else int(rng.integers(0, 5))),
        "q_offset": [int(x) for x in rng.integers(-3, Tk + 1, B)],
        "scale": float(rng.uniform(-0.5, 2)),
        "softcap": float(rng.uniform(0.5, 5)),
        "bias": exact(rng.standard_normal([(B, H, Tq, Tk), (1, H, 1, Tk), (1, 1, Tq, Tk), (B, 1, Tq, 1)][n % 4])),
        "mask": rng.random((B, 1, Tq, Tk)) < 0.6,
        "alibi_slopes": exact(rng.uniform(0, 1, H)),
        "sinks": exact(rng.standard_normal(H) * 2),
        "seqlens_k": rng.integers(0, Tk + 1, B),
        "dropout_p": 0.25,
    }
    options = {name: x for name, x in drawn.items() if rng.random() < 0.35}
    if "dropout_p" in options:
        options["dropout_mask"] = rng.random((B, H, Tq, Tk)) < 0.75
    if backward and n % 2:
        options["dlse"] = exact(rng.standard_normal((B, H, Tq)))
    return problem(
        Contract(op="attention_vjp" if backward else "attention", dtype="float64"),
        *(q, k, v),
        do=do if backward else None,
        **options,
    )


FORWARD = Contract(dtype="float64")


@pytest.mark.parametrize("part", range(4))
def test_the_oracle_is_the_reference(part):
    for n in range(part, 60, 4):
        p = random_call(n, backward=False)
        t = truth(p, FORWARD)
        o, lse = reference_with_lse(p)
        np.testing.assert_allclose(t.o.astype(float), o, rtol=1e-12, atol=1e-12, err_msg=str(n))
        np.testing.assert_allclose(t.lse.astype(float), lse, rtol=1e-12, atol=1e-12, err_msg=str(n))


def reference_with_lse(p):
    options = {name: p.options[name] for name in DIRECT if name in p.options}
    if {"bias", "alibi_slopes"} & set(p.options):
        options["bias"] = added(p, FORWARD, np.float64)
    return refattn.attention(p.q, p.k, p.v, mask=mask_of(p), **options, return_lse=True)


@pytest.mark.parametrize("part", range(4))
def test_the_gradients_of_the_oracle_are_those_of_the_reference(part):
    contract = Contract(op="attention_vjp", dtype="float64")
    for n in range(part, 60, 4):
        p = random_call(n, backward=True)
        found = gradients(p, slopes(p, contract))
        options = {name: p.options[name] for name in (*DIRECT, "dlse") if name in p.options}
        if {"bias", "alibi_slopes"} & set(p.options):
            options["bias"] = added(p, FORWARD, np.float64)
        want = refattn.attention_vjp(p.do, p.q, p.k, p.v, mask=mask_of(p), **options)._asdict()
        for name, x in found.items():
            right = want[name] if name != "dbias" else over(want[name], p.options["bias"].shape)
            np.testing.assert_allclose(x.astype(float), right, rtol=1e-11, atol=1e-11, err_msg=f"{n} {name}")
        assert ("dbias" in found) == ("bias" in p.options) and ("dsinks" in found) == ("sinks" in p.options)


def by_hand(p, mp):
    """Return o and lse of one head, written out term by term."""
    _, _, _, Tq, Tk, D, Dv = p.sizes
    scale = 1 / mp.sqrt(mp.mpf(D)) if "scale" not in p.options else mp.mpf(p.options["scale"])
    cap, sinks, bias = (p.options.get(name) for name in ("softcap", "sinks", "bias"))
    o, lse = np.zeros((Tq, Dv), object), np.zeros(Tq, object)
    for i in range(Tq):
        logits = {}
        for j in range(Tk):
            if p.options.get("causal") and j > i + Tk - Tq:
                continue
            s = scale * sum(mp.mpf(float(p.q[0, 0, i, d])) * mp.mpf(float(p.k[0, 0, j, d])) for d in range(D))
            s = s if cap is None else mp.mpf(cap) * mp.tanh(s / mp.mpf(cap))
            logits[j] = s if bias is None else s + mp.mpf(float(np.broadcast_to(bias, (1, 1, Tq, Tk))[0, 0, i, j]))
        l = sum(mp.exp(s) for s in logits.values()) + (0 if sinks is None else mp.exp(mp.mpf(float(sinks[0]))))
        for c in range(Dv):
            o[i, c] = sum(mp.exp(s) * mp.mpf(float(p.v[0, 0, j, c])) for j, s in logits.items()) / l
        lse[i] = mp.log(l)
    return o, lse


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"softcap": 1.25, "scale": 3.0}, {"sinks": [2.5]}, {"softcap": 0.75, "bias": True}],
    ids=lambda options: "_".join(options) or "plain",
)
def test_the_oracle_is_the_formula_with_many_digits(options, dtype):
    """In 50 digits where mpmath is installed, and otherwise in long double."""
    mp = multiprecision()
    rng = np.random.default_rng(3)
    q, k, v = (exact(rng.standard_normal((1, 1, T, 3)) * 3) for T in (4, 5, 5))
    given = dict(options) | ({"bias": exact(rng.standard_normal((1, 1, 4, 5)))} if "bias" in options else {})
    p = problem(Contract(dtype=dtype), q, k, v, **given)
    t = truth(p, Contract(dtype=dtype))
    o, lse = by_hand(p, mp)
    allowed = 1e-14 if dtype == "float32" else 200 * float(np.finfo(np.longdouble).eps)
    error = max(abs(mp.mpf(str(x)) - y) for x, y in zip(t.o.ravel(), o.ravel(), strict=True))
    error = max(error, *(abs(mp.mpf(str(x)) - y) for x, y in zip(t.lse.ravel(), lse, strict=True)))
    assert error < allowed


def multiprecision():
    try:
        import mpmath
    except ImportError:
        return LongDouble
    mpmath.mp.dps = 50
    return mpmath.mp


class LongDouble:
    """The few functions of mpmath that are used here, in long double."""

    mpf, sqrt, exp, log, tanh = np.longdouble, np.sqrt, np.exp, np.log, np.tanh


def z_rms(kernel, contract, id, seed):
    report = check(kernel, contract, "quick", seed=seed, only=id.__eq__)
    return report.results[0].figures["z_rms"]


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("bfloat16", 0.4, 1.1), ("float16", 0.4, 1.1), ("float32", 0.3, 4.0)]
)
def test_sigma_is_the_size_of_real_errors(dtype, low, high, tile):
    kernel = correct("attention", tile_k=tile, tile_q=tile)
    for name in ("plain", "causal", "softcap", "sinks", "bias", "scale", "long", "dropout"):
        assert low < z_rms(kernel, Contract(dtype=dtype), f"attention/normal_{name}", tile) < high, name


@pytest.mark.parametrize(("dtype", "high"), [("bfloat16", 1.15), ("float16", 1.15), ("float32", 4.0)])
def test_sigma_of_gradients_is_the_size_of_real_errors(dtype, high):
    contract, kernel = Contract(op="attention_vjp", dtype=dtype), correct("attention_vjp")
    for name in ("plain", "softcap", "sinks", "bias"):
        report = check(kernel, contract, "quick", only=f"attention_vjp/normal_{name}".__eq__)
        figures = report.results[0].figures
        for part in ("dq", "dk", "dv"):
            assert 0.3 < figures[f"{part}_z_rms"] < high, (name, part)


def scores_of(kernel, contract, case, seed=0):
    """Return the estimate and T of every score test of one case."""
    contract = contract.with_options_of(kernel)
    p = CASES[case].problem(contract, seed)
    analysis = analyse(p, contract)
    error = Session(kernel, contract).call(p)["o"] - analysis.parts["o"].want
    return {d.name: d.estimate(error) for d in analysis.directions["o"]}


def a_thousandth_too_steep(q, k, v):
    return correct("attention")(q, k, v, scale=(1 + 1e-3) / np.sqrt(q.shape[-1]))[0]  # lse alone would show it


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["normal_plain", "normal_wide"])
def test_a_scale_that_is_a_thousandth_too_large_is_measured(case, dtype):
    contract = Contract(dtype=dtype)
    for seed in range(3):
        theta, t = scores_of(a_thousandth_too_steep, contract, case, seed)["log_scale"]
        assert abs(theta - 1e-3) < 2e-4 and t > 6
        right = scores_of(lambda q, k, v: correct("attention")(q, k, v), contract, case, seed)
        assert max(abs(t) for _, t in right.values()) < 6
    only = f"attention/{case}".__eq__
    assert not check(a_thousandth_too_steep, contract, "quick", only=only, fail_fast=True).ok


def test_a_wrong_scale_hides_below_the_bound_of_bfloat16():
    report = check(a_thousandth_too_steep, Contract(dtype="bfloat16"), "quick", only="attention/normal_plain".__eq__)
    assert report.results[0].verdict == SUSPECT
    assert report.results[0].figures["bound"] < 1
    assert "log scale of o is off by +" in report.results[0].message


def test_a_kernel_that_rounds_is_not_one_that_cuts_off():
    """The mean of the error is part of the model, and not just room for it."""
    contract = Contract(dtype="bfloat16", truncates=True)
    theta, t = scores_of(simple(Contract(dtype="bfloat16")), contract, "normal_plain")["normaliser"]
    assert 0.5 * 2.0**-7 < theta < 2.0**-7 and t > 6
    found = scores_of(simple(contract), contract, "normal_plain")
    assert max(abs(t) for _, t in found.values()) < 3


def test_other_scores_are_measured():
    attend, contract = correct("attention"), Contract(dtype="bfloat16")

    def larger(q, k, v):
        o, lse = attend(*(x.astype(np.float32) for x in (q, k, v)))
        return (o * np.float32(1.002)).astype(q.dtype), lse

    def last_key(q, k, v):
        bias = np.zeros((1, 1, 1, k.shape[2]), np.float32)
        bias[..., -1] = np.log(0.9)
        return attend(q, k, v, bias=bias)

    theta, t = scores_of(larger, contract, "normal_plain")["normaliser"]
    assert abs(theta - 2e-3) < 4e-4 and t > 6
    theta, t = scores_of(last_key, contract, "normal_plain")["last_key"]
    assert abs(theta - 0.1) < 0.02 and t > 6


DETAILS = ("normal_", "needle_200", "stairs", "shape_", "values_", "ties", "hull", "permuted_keys", "softcap")


@pytest.mark.parametrize("name", DECLARED)
def test_a_kernel_that_does_what_it_declares_passes(name):
    contract = Contract(nan=False, **DECLARED[name])
    narrow = contract.numerics["acc"] == "float16"
    wanted = ("normal_plain", "normal_causal", "normal_sinks") if narrow else DETAILS
    report = check(simple(contract), contract, "quick", seed=11, only=lambda id: id.split("/")[1].startswith(wanted))
    assert report.ok, str(report)
    assert report.count(PASS) > (2 if narrow else 25)
    figures = [result.figures for result in report.results]
    assert max(f.get("bound", 0) for f in figures) > 0.005, "the bound says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DECLARED if "acc fp16" not in name and name != "fp16 acc"])
def test_a_kernel_that_does_what_it_declares_passes_everything(name):
    contract = Contract(nan=False, **DECLARED[name])
    for seed in range(1, 6):
        report = check(simple(contract), contract, "quick", seed=seed)
        assert report.ok, f"seed {seed}\n{report}"


UNDER = {
    "tf32": "products in tf32",
    "acc tf32": "products in tf32",
    "bfloat16 products": "q, k, P and v rounded to bfloat16 for the products",
    "p bfloat16": "P rounded to bfloat16",
    "p float16": "P rounded to float16",
    "out bfloat16": "the output rounded to bfloat16",
    "out float16": "the output rounded to float16",
    "s bfloat16": "scores rounded to bfloat16",
}


@pytest.mark.parametrize("name", UNDER)
def test_the_same_kernel_fails_without_its_declaration(name):
    kernel, contract = simple(Contract(**DECLARED[name])), Contract(nan=False)
    report = check(kernel, contract, "quick", only=lambda id: id.startswith("attention/normal_wide"))
    assert not report.ok
    (result,) = report.results
    assert result.verdict == UNDECLARED, str(report)
    assert f"consistent with {UNDER[name]}" in result.message
