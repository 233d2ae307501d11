"""How nine public suites decide that an attention kernel is right, in miniature.

Each `Rule` has the inputs of one suite (distribution, options, shapes; sequences shortened to 300 at most) and its
criterion, read in the suite's own source, which `Rule.source` names with the commit. Four things are changed, in favour
of the rule wherever it matters: the reference is float64 where a suite takes float32 or another kernel; a causal mask
with Tq != Tk lies as the kernel under test says (bottom right) unless the suite tries both; packed sequences of several
lengths become `seqlens_k`; log-sum-exps are compared in base e. `Rule.dtypes` are those that the suite runs; the others
are judged by the same formula, with the tolerance that `Rule.carried` names.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

import refattn
from refattn.testing.formats import decode, encode, round_to

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Problem:
    """One call: arrays in the kernel's dtype, options, and the float64 result."""

    q: Any
    k: Any
    v: Any
    options: Mapping[str, Any]
    dtype: str
    o64: Any
    lse64: Any


Judge = Callable[[Any, Any, Problem], bool]
"""(o in float64, lse or None, problem) -> whether the suite would accept it."""


@dataclass(frozen=True)
class Case:
    """One shape of a suite. An option that is a function is drawn: it gets the generator and the case."""

    Tq: int
    Tk: int
    H: int = 4
    Hk: int | None = None
    D: int = 64
    Dv: int | None = None
    B: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[np.random.Generator, tuple[int, ...]], Any] | None = None
    """How q, k and v are drawn; as the rule says unless given."""
    special: Callable[[np.random.Generator, "Case"], tuple[Any, Any, Any]] | None = None
    """q, k, v that no distribution describes."""
    judge: Judge | None = None
    """Where the suite judges this case in another way than the rest."""
    dtypes: tuple[str, ...] = DTYPES


@dataclass(frozen=True)
class Rule:
    """A suite's inputs and its criterion."""

    name: str
    source: str
    """Repository, path, commit and lines or functions."""
    shapes: tuple[Case, ...]
    judge: Judge
    dtypes: tuple[str, ...] = DTYPES
    """The precisions that the suite itself runs."""
    carried: str = ""
    """What stands in for a tolerance where the suite does not run a precision."""
    inputs: Callable[[np.random.Generator, tuple[int, ...]], Any] = lambda rng, shape: rng.standard_normal(shape)
    repeats: bool = False
    """Whether a second call must return the same bits."""

    def cases(self, dtype: str) -> list[int]:
        """Return the positions of the cases that are run in `dtype`."""
        return [n for n, case in enumerate(self.shapes) if dtype in case.dtypes]


def runs(rule: Rule, kernel: Callable[..., Any], dtype: str) -> bool:
    """Return True if the kernel passes everything that the rule asks in `dtype`. A kernel that raises does not."""
    with np.errstate(all="ignore"):
        return all(_passes(rule, n, kernel, dtype) for n in rule.cases(dtype))


def _passes(rule: Rule, n: int, kernel: Callable[..., Any], dtype: str) -> bool:
    p = problem(rule.name, n, dtype)
    try:
        o, lse = _call(kernel, p)
        if rule.repeats and not np.array_equal(_call(kernel, p)[0], o, equal_nan=True):
            return False
    except Exception:  # whatever a broken kernel raises, its suite goes red
        return False
    if o.shape != p.o64.shape or (lse is not None and lse.shape != p.lse64.shape):
        return False
    return bool((rule.shapes[n].judge or rule.judge)(o, lse, p))


def _call(kernel: Callable[..., Any], p: Problem) -> tuple[Any, Any]:
    options = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in p.options.items()}
    got = kernel(p.q.copy(), p.k.copy(), p.v.copy(), **options)
    o, lse = got if isinstance(got, tuple) else (got, None)
    return decode(np.asarray(o), p.dtype), None if lse is None else np.asarray(lse, np.float64)


# The float64 result


@cache
def problem(rule_name: str, n: int, dtype: str) -> Problem:
    """Return case `n` of a rule: the same numbers in every process, rounded to `dtype`."""
    rule = RULES[rule_name]
    case = rule.shapes[n]
    rng = np.random.default_rng([zlib.crc32(rule_name.encode()), n])
    Hk = case.Hk or case.H
    if case.special:
        drawn = case.special(rng, case)
    else:
        draw = case.inputs or rule.inputs
        shapes = (case.H, case.Tq, case.D), (Hk, case.Tk, case.D), (Hk, case.Tk, case.Dv or case.D)
        drawn = tuple(draw(rng, (case.B, *shape)) for shape in shapes)
    options = {name: x(rng, case) if callable(x) else x for name, x in case.options.items()}
    q, k, v = (encode(x, dtype) for x in drawn)
    return Problem(q, k, v, options, dtype, *reference(q, k, v, options, dtype))


def reference(q: Any, k: Any, v: Any, options: Mapping[str, Any], dtype: str) -> tuple[Any, Any]:
    """Return o and lse of `refattn.attention` in float64 for a kernel's arrays and keywords."""
    B, H, Tq, _ = q.shape
    arguments = {name: options[name] for name in ("scale", "softcap", "dropout_mask", "dropout_p") if name in options}
    if "sinks" in options:
        arguments["sinks"] = np.asarray(options["sinks"], np.float64)
    wide = (decode(x, dtype) for x in (q, k, v))
    mask, bias = visible(options, B, H, Tq, k.shape[2]), added(options, B, Tq, k.shape[2])
    return refattn.attention(*wide, mask=mask, bias=bias, return_lse=True, **arguments)


def offsets(options: Mapping[str, Any], B: int, Tq: int, Tk: int) -> Any:
    """Return by how much query i stands after key i, (B, 1, 1, 1)."""
    default = np.asarray(options.get("seqlens_k", [Tk] * B)) - Tq
    return np.broadcast_to(options.get("q_offset", default), (B,)).reshape(B, 1, 1, 1)


def visible(options: Mapping[str, Any], B: int, H: int, Tq: int, Tk: int) -> Any:
    """Return the bool mask (B, H, Tq, Tk) that a kernel's keywords describe."""
    i, j = np.arange(Tq)[:, None], np.arange(Tk)
    ahead = i + offsets(options, B, Tq, Tk) - j  # how far key j lies before the place of query i
    seen = np.broadcast_to(np.asarray(options.get("mask", True)), (B, H, Tq, Tk)) & np.ones_like(ahead, bool)
    left, right = options.get("window", (None, None))
    if options.get("causal"):
        seen = seen & (ahead >= 0)
    if left is not None:
        seen = seen & (ahead <= left)
    if right is not None:
        seen = seen & (ahead >= -right)
    if "seqlens_k" in options:
        seen = seen & (j < np.asarray(options["seqlens_k"]).reshape(B, 1, 1, 1))
    return seen


def added(options: Mapping[str, Any], B: int, Tq: int, Tk: int) -> Any:
    """Return what is added to the scores, in float64, or None."""
    bias = None if "bias" not in options else np.asarray(options["bias"], np.float64)
    if "alibi_slopes" not in options:
        return bias
    distance = np.abs(np.arange(Tq)[:, None] + offsets(options, B, Tq, Tk) - np.arange(Tk))
    alibi = -np.asarray(options["alibi_slopes"], np.float64)[:, None, None] * distance
    return alibi if bias is None else alibi + bias


# Baselines: what a suite computes in the kernel's own precision


def _steps(p: Problem) -> tuple[Any, ...]:
    """Return q, k, v in float32 with a copy of k and v per head, the mask, the bias, and the scale."""
    H, D = p.q.shape[1], p.q.shape[3]
    q, k, v = (np.repeat(decode(x, p.dtype, np.float32), H // x.shape[1], axis=1) for x in (p.q, p.k, p.v))
    B, _, Tq, _ = p.q.shape
    bias = added(p.options, B, Tq, k.shape[2])
    scale = np.float32(p.options.get("scale", D**-0.5))
    return q, k, v, visible(p.options, B, H, Tq, k.shape[2]), None if bias is None else bias.astype(np.float32), scale


def _narrow(x: Any, dtype: str) -> Any:
    return round_to(x, dtype).astype(np.float32)


def _softmax(s: Any, seen: Any) -> Any:
    """Return softmax over the visible keys in float32, 0 in a row that sees nothing."""
    s = np.where(seen, s, -np.inf)
    m = s.max(axis=-1, keepdims=True)
    m = np.where(np.isneginf(m), np.float32(0), m)
    e = np.exp(s - m)
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, np.float32(1), total)


def _dropped(weights: Any, p: Problem) -> Any:
    return weights if "dropout_mask" not in p.options else np.where(p.options["dropout_mask"], weights, np.float32(0))


@cache
def flash_baseline(p: Problem) -> Any:
    """Return attention with every intermediate result rounded, the scale applied to k."""
    q, k, v, seen, bias, scale = _steps(p)
    s = _narrow(q @ _narrow(k * scale, p.dtype).swapaxes(-1, -2), p.dtype)
    c = p.options.get("softcap")
    if c:
        s = _narrow(_narrow(np.tanh(_narrow(s / np.float32(c), p.dtype)), p.dtype) * np.float32(c), p.dtype)
    s = s if bias is None else s + bias  # the bias is float32, and so is the sum
    weights = _dropped(_narrow(_softmax(s, seen), p.dtype), p)
    return _narrow(weights @ _narrow(v / np.float32(1 - p.options.get("dropout_p", 0.0)), p.dtype), p.dtype)


@cache
def flex_baseline(p: Problem) -> Any:
    """Return attention in float32 with the weights and the result rounded."""
    q, k, v, seen, bias, scale = _steps(p)
    s = q @ k.swapaxes(-1, -2) * scale
    s = s if bias is None else s + bias
    return _narrow(_narrow(_softmax(s, seen), p.dtype) @ v, p.dtype).astype(np.float64)


@cache
def torch_math(p: Problem) -> Any:
    """Return attention in float32, rounded at the end, the root of the scale applied to q and to k."""
    q, k, v, seen, bias, scale = _steps(p)
    root = np.sqrt(scale)
    s = (q * root) @ (k * root).swapaxes(-1, -2)
    s = s if bias is None else s + bias
    weights = _dropped(_softmax(s, seen), p) / np.float32(1 - p.options.get("dropout_p", 0.0))
    return _narrow(weights @ v, p.dtype).astype(np.float64)


# Judges


def within(atol: float, rtol: float, rounded: bool = False) -> Judge:
    """Accept |o - reference| <= atol + rtol |reference| everywhere; the reference may be rounded to the dtype first."""
    return lambda o, lse, p: _close(o, round_to(p.o64, p.dtype) if rounded else p.o64, atol, rtol)


def by_dtype(**judges: Judge) -> Judge:
    """Judge each precision in its own way."""
    return lambda o, lse, p: judges[p.dtype](o, lse, p)


def and_lse(judge: Judge, atol: float, rtol: float) -> Judge:
    """Ask for a log-sum-exp within a tolerance too, of kernels that return one."""
    return lambda o, lse, p: judge(o, lse, p) and (lse is None or _close(lse, p.lse64, atol, rtol))


def _close(got: Any, want: Any, atol: float, rtol: float) -> bool:
    same = got == want  # infinities
    return bool(np.all(same | (np.abs(got - want) <= atol + rtol * np.abs(want))))


def no_worse_than_flash_baseline(factor: float, atol: float) -> Judge:
    """Accept a largest error of up to `factor` times the baseline's."""

    def judge(o: Any, lse: Any, p: Problem) -> bool:
        want = round_to(p.o64, p.dtype)
        allowed = factor * np.abs(flash_baseline(p) - want).max() + atol
        return bool(np.abs(o - want).max() <= allowed)

    return judge


def torch_tolerances(o: Any, lse: Any, p: Problem) -> bool:
    """Accept what torch's low-precision formula gets wrong, at least its default tolerances; thrice that for odd D."""
    atol = {"float16": 1e-3, "bfloat16": 1e-3, "float32": 1e-5}[p.dtype]
    rtol = {"float16": 1e-3, "bfloat16": 1.6e-2, "float32": 1.3e-6}[p.dtype]
    low, default = torch_math(p), rtol
    deviation = np.abs((p.o64 - low) / p.o64)
    factor = 3 if p.q.shape[-1] % 8 else 1
    atol = factor * max(atol, np.abs(p.o64 - low).max())
    rtol = factor * max(rtol, np.where(np.isnan(deviation), default, deviation).max())
    return _close(o, round_to(p.o64, p.dtype), atol, default if rtol > 1e30 else rtol)


def flex_mean_error(o: Any, lse: Any, p: Problem) -> bool:
    """Accept a mean error of up to 1.1 times the baseline's, 10 times in float32."""
    mine, theirs = (np.abs(p.o64 - x).mean() for x in (o, flex_baseline(p)))
    return bool(mine <= theirs * (10 if p.dtype == "float32" else 1.1))


def rmse_ratio(limit: float) -> Judge:
    """Accept a root mean square error below `limit` times the reference's, or errors of up to 1e-6."""

    def judge(o: Any, lse: Any, p: Problem) -> bool:
        want = round_to(p.o64, p.dtype)
        ratio = np.sqrt(np.mean((o - want) ** 2)) / (np.sqrt(np.mean(want**2)) + 1e-8)
        return bool(np.abs(o - want).max() <= 1e-6 or ratio < limit)

    return judge


def nmse(limit: float) -> Judge:
    """Accept a mean square error of up to `limit` times the result's mean square; neither NaN nor a wrong infinity."""

    def judge(o: Any, lse: Any, p: Problem) -> bool:
        return bool(np.isfinite(o).all() and ((o - p.o64) ** 2).sum() <= limit * (o**2).sum())

    return judge


# Inputs and options that are drawn


def uniform(low: float, high: float) -> Callable[[np.random.Generator, tuple[int, ...]], Any]:
    return lambda rng, shape: rng.uniform(low, high, shape)


def sparse_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Integers from -2 to 2, four of five set to zero."""
    return rng.integers(-2, 3, shape) * (rng.random(shape) >= 0.8)


def per_head(low: float, high: float) -> Callable[[np.random.Generator, Case], Any]:
    return lambda rng, case: rng.uniform(low, high, case.H).astype(np.float32)


def alibi(rng: np.random.Generator, case: Case) -> Any:
    return refattn.alibi_slopes(case.H).astype(np.float32)


def normal_bias(factor: float) -> Callable[[np.random.Generator, Case], Any]:
    return lambda rng, case: factor * rng.standard_normal((1, case.H, case.Tq, case.Tk)).astype(np.float32)


def uniform_bias(low: float, high: float) -> Callable[[np.random.Generator, Case], Any]:
    return lambda rng, case: rng.uniform(low, high, (1, 1, case.Tq, case.Tk)).astype(np.float32)


def alibi_times_bias(rng: np.random.Generator, case: Case) -> Any:
    """llama.cpp's max_bias = 8: the slopes of ALiBi multiply the mask, whatever it holds."""
    return refattn.alibi_slopes(case.H)[:, None, None].astype(np.float32) * uniform_bias(-1, 1)(rng, case)


def relative(rng: np.random.Generator, case: Case) -> Any:
    return (np.arange(case.Tq)[:, None] - np.arange(case.Tk)).astype(np.float32)


def kept(share: float) -> Callable[[np.random.Generator, Case], Any]:
    return lambda rng, case: rng.random((case.B, case.H, case.Tq, case.Tk)) < share


def halves(rng: np.random.Generator, case: Case) -> Any:
    """Two documents of the same length: a query sees its own."""
    return (np.arange(case.Tq)[:, None] < case.Tq // 2) == (np.arange(case.Tk) < case.Tk // 2)


def pattern(f: Callable[[Any, Any], Any]) -> Callable[[np.random.Generator, Case], Any]:
    return lambda rng, case: f(np.arange(case.Tq)[:, None], np.arange(case.Tk)) & np.ones((case.Tq, case.Tk), bool)


def hidden_corner(rng: np.random.Generator, case: Case) -> Any:
    """All but the last query of the first head see the last key only."""
    seen = np.ones((case.B, case.H, case.Tq, case.Tk), bool)
    seen[0, 0, : case.Tq - 1, : case.Tk - 1] = False
    return seen


def very_negative(logit: float) -> Callable[[np.random.Generator, Case], tuple[Any, Any, Any]]:
    """Every product is `logit`, but for the first key's, which is 1024 more."""

    def draw(rng: np.random.Generator, case: Case) -> tuple[Any, Any, Any]:
        k = np.full((1, 1, case.Tk, case.D), logit / case.D)
        k[..., 0, :] = (logit + 1024) / case.D
        return np.ones((1, case.H, case.Tq, case.D)), k, rng.standard_normal((1, 1, case.Tk, case.D))

    return draw


def louder_future(rng: np.random.Generator, case: Case) -> tuple[Any, Any, Any]:
    """Keys of the second half outweigh those of the first by far, and half of the queries must not see them."""
    k = np.full((1, 1, case.Tk, case.D), -8.0)
    k[..., case.Tq // 2 :, :] = 64.0
    return np.full((1, case.H, case.Tq, case.D), 8.0 / case.D), k, rng.standard_normal((1, 1, case.Tk, case.D))


# The nine suites

CAUSAL = {"causal": True}
HALF = ("float16", "bfloat16")

FLASH = Rule(
    name="FlashAttention",
    source="Dao-AILab/flash-attention 0251105, tests/test_flash_attn.py: attention_ref (217-304),"
    " test_flash_attn_output (1121), test_flash_attn_causal (1556), test_flash_attn_splitkv (1850),"
    " test_flash_attn_kvcache (2139)",
    judge=no_worse_than_flash_baseline(2, 0.0),
    dtypes=HALF,
    carried="the same formula, the reference rounded to float32",
    shapes=(
        Case(113, 203, H=6, D=32, B=2),
        Case(128, 217, H=6, D=40, B=2, options=CAUSAL),
        Case(113, 211, H=6, Hk=2, D=59, B=2, options=CAUSAL | {"window": (57, 0)}),
        Case(108, 256, H=6, Hk=1, D=64, options={"window": (90, 31)}),
        Case(256, 128, H=6, Hk=2, D=64, options=CAUSAL),
        Case(200, 200, H=6, D=80, options=CAUSAL | {"alibi_slopes": per_head(0, 0.3)}),
        Case(113, 203, H=6, D=64, options={"alibi_slopes": per_head(0, 0.3)}),
        Case(
            128,
            217,
            H=4,
            Hk=2,
            options=CAUSAL | {"softcap": 50.0},
            special=lambda rng, case: (
                50 * rng.standard_normal((1, 4, 128, 64)),
                rng.standard_normal((1, 2, 217, 64)),
                rng.standard_normal((1, 2, 217, 64)),
            ),
        ),
        Case(97, 97, H=6, D=96, options=CAUSAL | {"dropout_mask": kept(0.83), "dropout_p": 0.17}),
        Case(127, 300, H=6, D=64, options=CAUSAL, judge=no_worse_than_flash_baseline(2, 1e-5)),
        Case(3, 267, H=12, options={"num_splits": 3}, judge=no_worse_than_flash_baseline(2, 1e-5)),
        Case(
            1,
            256,
            H=6,
            Hk=3,
            B=2,
            options={"seqlens_k": np.array([191, 77]), "num_splits": 3},
            judge=no_worse_than_flash_baseline(3, 1e-5),
        ),
        Case(
            64,
            256,
            H=6,
            Hk=1,
            D=59,
            B=2,
            options=CAUSAL | {"seqlens_k": np.array([250, 129]), "window": (101, 0)},
            judge=no_worse_than_flash_baseline(3, 1e-5),
        ),
        Case(
            3,
            199,
            H=6,
            B=2,
            options=CAUSAL | {"seqlens_k": np.array([199, 64]), "alibi_slopes": per_head(0, 0.3)},
            judge=no_worse_than_flash_baseline(5, 1e-5),
        ),
    ),
)

TORCH_SDPA = Rule(
    name="torch SDPA",
    source="pytorch/pytorch 00030eb, test/test_transformers.py: get_tolerances, test_mem_efficient_attention_vs_math_"
    "ref_grads, test_mem_efficient_attention_attn_mask_vs_math_ref_grads, test_flash_attention_vs_math_ref_grads",
    judge=torch_tolerances,
    inputs=uniform(0, 1),
    shapes=(
        Case(4, 8, D=8),
        Case(64, 64, D=16, options=CAUSAL),
        Case(143, 128, D=21),
        Case(256, 256, D=64, options=CAUSAL),
        Case(256, 64, D=72, options={"scale": 1 / 72}),
        Case(64, 256, D=128, options=CAUSAL | {"scale": 1 / 128}),
        Case(128, 128, D=96, B=2, options={"dropout_mask": kept(0.78), "dropout_p": 0.22}),
        Case(8, 256, D=32, B=2),
        Case(152, 65, D=64, options={"bias": uniform_bias(0, 1)}),
        Case(128, 256, D=32, B=2, options={"bias": uniform_bias(0, 1), "scale": 1 / 32}),
    ),
)

FLEX = Rule(
    name="torch flex attention",
    source="pytorch/pytorch 00125ef, test/inductor/test_flex_attention.py: _check_equal, _check_out, test_score_mods,"
    " run_test; test_logsumexp_correctness; torch/_higher_order_ops/flex_attention.py: math_attention (torch 2.13)",
    judge=and_lse(flex_mean_error, 2e-2, 2e-2),
    shapes=(
        Case(256, 256, H=8, B=2),
        Case(256, 256, H=8, B=2, options=CAUSAL),
        Case(255, 255, H=8, B=2, options=CAUSAL),
        Case(256, 256, H=8, options={"mask": pattern(lambda i, j: i <= j)}),
        Case(256, 256, H=8, options={"scale": 2 / 64**0.5}),
        Case(256, 256, H=8, options={"bias": relative}),
        Case(256, 256, H=8, options=CAUSAL | {"bias": relative}),
        Case(256, 256, H=8, options=CAUSAL | {"alibi_slopes": alibi}),
        Case(256, 256, H=4, Hk=2, B=2, options=CAUSAL),
        Case(256, 256, H=4, Hk=1, B=2),
        Case(128, 256, H=8, B=2),
        Case(256, 256, H=8, Dv=128, options=CAUSAL),
        Case(8, 256, H=16, options={"mask": pattern(lambda i, j: i + 125 >= j)}),
        Case(1, 65, H=1, D=16, dtypes=("float32",)),
    ),
)

STRICT, LOOSE = within(1e-3, 1e-3, rounded=True), within(1e-2, 1e-2, rounded=True)
FLASHINFER_STRICT = by_dtype(float32=STRICT, float16=STRICT, bfloat16=LOOSE)

FLASHINFER = Rule(
    name="flashinfer",
    source="flashinfer-ai/flashinfer fb28d72, tests/attention: test_single_prefill.py (76-115, 252-283), test_alibi.py"
    " (50-100), test_logits_cap.py, test_sliding_window.py, test_attention_sink.py (150-245), test_hopper.py",
    judge=FLASHINFER_STRICT,
    dtypes=HALF,
    carried="float16's tolerances; for bfloat16, where most files run float16 only, those of its sink tests",
    shapes=(
        Case(37, 251, H=4, Hk=1, D=64, options=CAUSAL),
        Case(127, 251, H=7, Hk=1, D=64),
        Case(37, 200, H=4, Hk=1, D=128, options=CAUSAL),
        Case(1, 81, H=8, D=128, options={"alibi_slopes": alibi}),
        Case(81, 81, H=4, D=128, options=CAUSAL | {"alibi_slopes": alibi}, judge=LOOSE),
        Case(17, 81, H=8, D=128, options={"alibi_slopes": alibi}, judge=LOOSE),
        Case(1, 81, H=8, D=128, options={"softcap": 1.0}),
        Case(1, 181, H=8, D=128, options={"softcap": 30.0}),
        Case(17, 81, H=4, D=128, options={"softcap": 50.0}, judge=LOOSE),
        Case(1, 199, H=8, Hk=4, options={"window": (13, None)}),
        Case(1, 99, H=4, Hk=1, D=128, options=CAUSAL | {"window": (3, None)}),
        Case(199, 199, H=8, Hk=4, options=CAUSAL | {"window": (43, None)}),
        Case(37, 54, H=8, Hk=1, B=3, options=CAUSAL | {"window": (33, None)}),
        Case(128, 128, H=8, Hk=2, D=128, B=2, options=CAUSAL | {"window": (128, None), "sinks": per_head(0, 5)}),
        Case(16, 16, H=8, D=128, B=2, options={"sinks": per_head(0, 5)}),
        Case(99, 99, H=8, Hk=4, options=CAUSAL, judge=and_lse(FLASHINFER_STRICT, 1e-3, 1e-3)),
        Case(211, 211, H=4, Hk=1, options={"softcap": 30.0}, judge=and_lse(FLASHINFER_STRICT, 1e-3, 1e-3)),
        Case(1, 64, H=16, Hk=1, D=128, special=very_negative(-5.5e4), judge=LOOSE),
        Case(1, 64, H=16, Hk=1, D=128, special=very_negative(-2.45e5), judge=LOOSE),
        Case(32, 32, H=4, Hk=1, D=128, options=CAUSAL, special=louder_future, judge=LOOSE),
    ),
)

FLA = Rule(
    name="fla RMSE ratio",
    source="fla-org/flash-linear-attention bc3b101, fla/utils/_testing.py: get_err_ratio, assert_close;"
    " tests/ops/test_attn.py: test_parallel, test_parallel_swa, test_parallel_sink",
    judge=rmse_ratio(0.005),
    dtypes=("float16",),
    carried="the same ratio",
    shapes=(
        Case(63, 63, H=1, options=CAUSAL | {"scale": 1.0}),
        Case(111, 111, H=2, D=100, B=3, options=CAUSAL | {"scale": 1.0}),
        Case(256, 256, H=8, Hk=2, D=60, options=CAUSAL | {"scale": 0.1}),
        Case(256, 256, H=2, D=128, B=2, options=CAUSAL | {"scale": 0.1}),
        Case(63, 63, H=1, options=CAUSAL | {"window": (15, 0)}),
        Case(111, 111, H=2, D=100, B=3, options=CAUSAL | {"window": (31, 0)}),
        Case(256, 256, H=8, Hk=2, D=128, options=CAUSAL | {"window": (63, 0)}),
        Case(63, 63, H=1, options=CAUSAL | {"sinks": lambda rng, case: rng.standard_normal(1).astype(np.float32)}),
        Case(
            111,
            111,
            H=8,
            Hk=2,
            D=100,
            options=CAUSAL | {"sinks": lambda rng, case: rng.standard_normal(8).astype(np.float32)},
        ),
    ),
)

EIGHTH = {"scale": 0.125}

CUDNN = Rule(
    name="cuDNN front end",
    source="NVIDIA/cudnn-frontend 3929da2, test/python/test_mhas.py (test_sdpa, 590-966);"
    " test/python/sdpa/fp16.py (118-171, 667-682), helpers.py: fill_sparse_small_int, approx_equal",
    judge=and_lse(within(2e-2, 2e-2), 2e-2, 2e-2),
    inputs=lambda rng, shape: rng.standard_normal(shape) - 0.5,
    dtypes=HALF,
    carried="the same tolerances",
    shapes=(
        Case(256, 256, H=6, B=2, options=EIGHTH),
        Case(24, 256, H=6, D=32, Dv=56, B=2, options=EIGHTH | CAUSAL),
        Case(256, 32, H=6, Hk=3, D=128, options=EIGHTH | CAUSAL | {"q_offset": 0}),
        Case(24, 256, H=6, Hk=2, D=64, B=2, options=EIGHTH | CAUSAL | {"window": (63, None)}),
        Case(256, 256, H=6, Hk=1, options=EIGHTH | {"window": (63, 64)}),
        Case(1, 256, H=6, Hk=3, D=56, B=2, options=EIGHTH),
        Case(128, 128, H=6, options=EIGHTH | {"bias": normal_bias(1)}),
        Case(256, 256, H=6, Hk=3, options=EIGHTH | CAUSAL | {"alibi_slopes": alibi}),
        Case(24, 256, H=6, B=2, options=EIGHTH | {"seqlens_k": np.array([201, 37])}),
        Case(24, 256, H=6, Hk=1, B=2, options=EIGHTH | CAUSAL | {"seqlens_k": np.array([150, 64])}),
        Case(64, 64, H=6, options=EIGHTH | {"dropout_mask": kept(0.9), "dropout_p": 0.1}),
        Case(
            200,
            300,
            H=8,
            Hk=2,
            D=128,
            options=EIGHTH | CAUSAL | {"sinks": lambda rng, case: sparse_integers(rng, (8,)).astype(np.float32)},
            inputs=sparse_integers,
        ),
        Case(93, 227, H=4, D=64, Dv=128, options=EIGHTH | {"window": (None, 31)}, inputs=sparse_integers),
    ),
)


LLAMA = Rule(
    name="llama.cpp NMSE",
    source="ggml-org/llama.cpp 0054f92, tests/test-backend-ops.cpp: nmse, init_tensor_uniform, init_tensor_kq_mask,"
    " test_flash_attn_ext (max_nmse_err), make_test_cases_eval",
    judge=nmse(5e-4),
    inputs=uniform(-1, 1),
    shapes=(
        Case(1, 113, D=64, options={"bias": uniform_bias(-1, 1)}),
        Case(3, 113, D=40),
        Case(75, 113, D=72, options={"bias": uniform_bias(-1, 1), "sinks": per_head(-10, 10)}),
        Case(32, 256, H=16, Hk=4, D=64, options={"bias": uniform_bias(-1, 1)}),
        Case(1, 256, H=16, Hk=4, D=128, options={"bias": uniform_bias(-1, 1), "num_splits": 3}),
        Case(75, 256, D=64, B=3, options={"bias": alibi_times_bias}),
        Case(32, 256, D=128, options={"bias": uniform_bias(-1, 1), "softcap": 10.0}),
        Case(3, 256, D=128, options={"softcap": 10.0, "sinks": per_head(-10, 10)}),
        Case(32, 256, D=192, Dv=128, options={"bias": alibi_times_bias, "sinks": per_head(-10, 10)}),
        Case(
            75,
            300,
            D=80,
            options={"bias": uniform_bias(-1, 1), "mask": pattern(lambda i, j: (i < 11) | (j < 150) | (j > 277))},
        ),
    ),
)

PALLAS, MOSAIC = within(5e-2, 1e-7), and_lse(within(2e-3, 1e-3), 2e-3, 1e-3)
UNSCALED = {"scale": 1.0}
MOSAIC_DTYPES = ("float16", "float32")  # 2e-3 is less than the spacing of bfloat16

JAX = Rule(
    name="JAX Pallas",
    source="jax-ml/jax cec06d1, tests/pallas/gpu_ops_test.py: test_fused_attention_fwd;"
    " gpu_attention_test.py: test_gqa; mgpu_attention_test.py: test_flash_attention",
    judge=PALLAS,
    dtypes=("float16",),
    carried="the same tolerances; those of mgpu_attention_test.py not in bfloat16, whose spacing is wider",
    shapes=(
        Case(128, 128, H=1, D=32, options=UNSCALED),
        Case(256, 256, H=2, D=64, options=UNSCALED | CAUSAL),
        Case(128, 128, H=2, D=72, B=2, options=UNSCALED | CAUSAL | {"mask": halves}),
        Case(256, 256, H=2, D=128, options=UNSCALED | {"mask": halves}),
        Case(1, 256, H=16, Hk=4, B=2),
        Case(1, 256, H=8, Hk=1, options={"seqlens_k": np.array([63]), "num_splits": 4}),
        Case(1, 256, H=16, options={"mask": pattern(lambda i, j: j >= 31), "num_splits": 4}),
        Case(256, 256, H=4, Hk=1, D=64, options=UNSCALED | CAUSAL, judge=MOSAIC, dtypes=MOSAIC_DTYPES),
        Case(256, 256, H=6, Hk=3, D=128, options=UNSCALED, judge=MOSAIC, dtypes=MOSAIC_DTYPES),
        Case(256, 256, H=4, D=64, B=2, options=UNSCALED | CAUSAL, judge=MOSAIC, dtypes=MOSAIC_DTYPES),
    ),
)

XFORMERS = Rule(
    name="xformers",
    source="facebookresearch/xformers ca6d2aa, tests/test_mem_eff_attention.py: create_tensors (419), test_forward"
    " (512-611), test_logsumexp (626-700); xformers/ops/fmha/common.py at 00aeeaf: ERROR_ATOL, ERROR_RTOL",
    judge=and_lse(
        by_dtype(float32=within(3e-4, 2e-5), float16=within(4e-3, 4e-4), bfloat16=within(2e-2, 5e-3)), 2e-4, 1e-5
    ),
    inputs=lambda rng, shape: 3 * rng.standard_normal(shape),
    repeats=True,
    shapes=(
        Case(32, 64, H=1, D=32),
        Case(256, 256, H=3, D=128, options=CAUSAL),
        Case(256, 31, H=1, D=32),
        Case(3, 128, H=1, D=32, B=2),
        Case(136, 128, H=1, D=32, options={"bias": normal_bias(3), "mask": hidden_corner}),
        Case(68, 90, H=5, D=64, Dv=36, B=2),
        Case(256, 128, H=1, D=38, options={"bias": normal_bias(3), "mask": hidden_corner}),
        Case(200, 200, H=3, D=72, Dv=40, options=CAUSAL | {"bias": normal_bias(3)}),
        Case(34, 130, H=2, D=64, options=CAUSAL | {"window": (2, None)}),
        Case(72, 132, H=2, D=64, options={"window": (3, 5)}),
        Case(90, 258, H=2, D=128, B=2, options=CAUSAL | {"seqlens_k": np.array([240, 101])}),
        Case(1, 300, H=8, Hk=1, D=128, B=2, options={"seqlens_k": np.array([300, 67]), "num_splits": 4}),
        Case(16, 300, H=1, D=256),
    ),
)

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (FLASH, TORCH_SDPA, FLEX, FLASHINFER, FLA, CUDNN, LLAMA, JAX, XFORMERS)
}
