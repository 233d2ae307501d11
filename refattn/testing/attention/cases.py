"""The curated problems: each aims at a way in which kernels have been wrong. A case is reproducible from id and seed.

`CASES` has one entry per id. Builders get a `Draw`, which knows the contract's limits: a kernel that takes only widths
of 128 and lengths in multiples of 64 still gets every case, in the nearest shape that it takes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.draw import Draw
from refattn.testing.attention.problem import Problem, problem
from refattn.testing.contract import Contract

LEVELS = ("quick", "standard", "deep")


Built = tuple[tuple[Array, Array, Array], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One curated problem."""

    name: str
    build: Callable[[Draw], Built]
    needs: tuple[str, ...] = ()
    """The options that it passes."""
    level: str = "quick"
    """The lowest level that runs it."""
    backward: bool = False
    """Whether backward kernels get it too."""
    forward: bool = True
    """Whether forward kernels get it."""
    normal: bool = False
    dirty: bool = False
    """Whether another call of the same shapes comes first, to leave something in the kernel's workspace."""
    features: tuple[str, ...] = ()
    """What the contract must not rule out: empty, strided, nan."""

    def problem(self, contract: Contract, seed: int) -> Problem:
        """Return the call: the same for the same seed, on every machine."""
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed])
        draw = Draw(rng, contract)
        (q, k, v), options = self.build(draw)
        arrange, do = options.pop("arrange", None), None
        if contract.op.endswith("_vjp"):
            do = options.pop("do", None)
            do = rng.standard_normal((*q.shape[:3], v.shape[3])) if do is None else do
        else:
            options = {name: o for name, o in options.items() if name not in ("do", "dlse")}
        return problem(contract, q, k, v, do=do, normal=self.normal, arrange=arrange, **options)


CASES: dict[str, Case] = {}


def case(name: str, build: Callable[[Draw], Built], *needs: str, **fields: Any) -> None:
    """Enter a case."""
    if name in CASES:
        raise ValueError(f"there is a case {name!r} already")
    CASES[name] = Case(name, build, needs, **fields)


def _normal() -> None:
    """Standard normal problems: statistics and score tests apply."""
    shape = (2, 4, 2, 70, 150)

    def enter(
        name: str, options: Callable[[Draw, int, int, int, int], dict[str, Any]], *needs: str, **fields: Any
    ) -> None:
        size: Any = fields.pop("size", shape)

        def build(x: Draw) -> Built:
            q, k, v = x.qkv(*size)
            B, H, Tq = q.shape[:3]
            return (q, k, v), options(x, B, H, Tq, k.shape[2])

        case(f"normal_{name}", build, *needs, normal=True, backward=True, **fields)

    enter("plain", lambda x, B, H, Tq, Tk: {})
    enter("causal", lambda x, B, H, Tq, Tk: {"causal": True}, "causal", size=(2, 4, 2, 130, 130))
    enter("causal_offset", lambda x, B, H, Tq, Tk: {"causal": True}, "causal")
    enter("window", lambda x, B, H, Tq, Tk: {"causal": True, "window": (33, 0)}, "causal", "window")
    enter("window_sides", lambda x, B, H, Tq, Tk: {"window": (20, 7)}, "window", size=(1, 4, 2, 130, 150))
    enter("softcap", lambda x, B, H, Tq, Tk: {"softcap": 2.0}, "softcap")
    enter("sinks", lambda x, B, H, Tq, Tk: {"sinks": x.normal(H) + 3}, "sinks")
    enter(
        "alibi",
        lambda x, B, H, Tq, Tk: {"causal": True, "alibi_slopes": 2.0 ** -np.arange(1, H + 1)},
        *("causal", "alibi_slopes"),
    )
    enter("bias", lambda x, B, H, Tq, Tk: {"bias": x.normal(B, H, Tq, Tk)}, "bias")
    enter("scale", lambda x, B, H, Tq, Tk: {"scale": 0.23}, "scale")
    enter("split", lambda x, B, H, Tq, Tk: {"num_splits": 3}, "num_splits", size=(1, 4, 2, 40, 200))
    enter("mask", lambda x, B, H, Tq, Tk: {"mask": x.rng.random((B, 1, Tq, Tk)) < 0.5}, "mask")
    enter(
        "seqlens",
        lambda x, B, H, Tq, Tk: {"seqlens_k": [Tk - 40, Tk], "causal": True},
        *("seqlens_k", "causal"),
        size=(2, 2, 2, 40, 150),
    )
    enter(
        "dropout",
        lambda x, B, H, Tq, Tk: {"dropout_mask": x.rng.random((B, H, Tq, Tk)) < 0.7, "dropout_p": 0.3},
        *("dropout_mask", "dropout_p"),
    )
    enter("long", lambda x, B, H, Tq, Tk: {}, size=(1, 2, 1, 16, 700))
    enter("wide", lambda x, B, H, Tq, Tk: {}, size=(1, 2, 2, 40, 90, 128))
    enter("dlse", lambda x, B, H, Tq, Tk: {"dlse": x.normal(B, H, Tq)}, "dlse", forward=False)
    enter("long_causal", lambda x, B, H, Tq, Tk: {"causal": True}, "causal", size=(1, 2, 1, 600, 600), level="standard")
    enter("very_long", lambda x, B, H, Tq, Tk: {}, size=(1, 2, 1, 8, 4100), level="deep")
    enter("many_heads", lambda x, B, H, Tq, Tk: {}, size=(2, 24, 8, 33, 97, 32), level="standard")


def _needles() -> None:
    """Row i must return v of one key; which one sweeps the edges of tiles, the tail, the diagonal and the window."""

    def needle(Tk: int, D: int, splits: int | None) -> Callable[[Draw], Built]:
        def build(x: Draw) -> Built:
            n = x.T(Tk)
            edges = {j for b in (16, 32, 64, 128) for t in range(0, n, b) for j in (t - 1, t, t + 1) if 0 <= j < n}
            aims = sorted(edges | {n - 1, max(0, n - 2)})
            aims += [n - 1] * (x.T(len(aims)) - len(aims))
            k = x.codes(n, D)
            q = k[aims] * (40 / np.sqrt(k.shape[1]))
            v = x.normal(1, 1, n, k.shape[1])
            return (q[None, None], k[None, None], v), {"num_splits": splits}

        return build

    for Tk, D in ((200, 64), (257, 64), (65, 40)):
        case(f"needle_{Tk}", needle(Tk, D, None), backward=Tk == 200)
        case(f"needle_split_{Tk}", needle(Tk, D, 3), "num_splits")

    def edges(options: dict[str, Any], Tq: int, Tk: int) -> Callable[[Draw], Built]:
        left, right = options.get("window") or (None, None)
        aims = [0, 1, *([] if left is None else [-left, -left - 1]), *([] if right is None else [right, right + 1])]

        def build(x: Draw) -> Built:
            nq, nk = x.T(Tq), x.T(Tk)
            k = x.codes(nk)
            targets = np.arange(nq) + (nk - nq) + np.array(aims)[:, None]
            q = k[np.clip(targets, 0, nk - 1)] * 5  # a head for each aim: last key seen, first hidden
            k = np.broadcast_to(k, (1, x.Hk(1, len(aims)), *k.shape))
            return (q[None], k, x.normal(1, k.shape[1], nk, k.shape[3])), options

        return build

    for name, options in (
        ("causal", {"causal": True}),
        ("window", {"causal": True, "window": (40, 0)}),
        ("window_left", {"causal": True, "window": (40, None)}),
        ("window_both", {"window": (20, 7)}),
        ("window_right", {"window": (None, 5)}),
    ):
        for Tq, Tk in ((150, 150), (70, 333), (1, 129)):
            level = "quick" if name in ("causal", "window", "window_both") or Tq == 70 else "standard"
            case(f"edge_{name}_{Tq}x{Tk}", edges(options, Tq, Tk), *options, level=level, backward=Tq == 150)


def _cotangent(size: float) -> Callable[[Draw], Built]:
    def build(x: Draw) -> Built:
        q, k, v = x.qkv(1, 2, 2, 40, 150)
        by = size if x.contract.dtype != "float16" else np.sqrt(np.sqrt(size))
        return (q, k, v), {"do": by * x.normal(1, 2, q.shape[2], v.shape[3])}

    return build


def _softmax() -> None:
    """What an online softmax gets wrong: a maximum that moves, large scores of either sign, ties."""

    def stairs(step: float) -> Callable[[Draw], Built]:
        def build(x: Draw) -> Built:
            nk, nq = x.T(400), x.T(8)
            q, k, v = x.qkv(1, 1, 1, nq, nk, 32)
            q[...], k[...] = 0, 0
            k[..., 0] = np.arange(nk) * step
            q[..., 0] = np.sqrt(q.shape[-1]) * np.linspace(0.05, 1, nq)
            return (q, k, v), {}

        return build

    for step in (1.5, 20.0, -20.0):
        case(f"stairs_{step:g}", stairs(step))

    def changed(
        change: Callable[[Draw, Array, Array, Array], Any], *size: int, **options: Any
    ) -> Callable[[Draw], Built]:
        def build(x: Draw) -> Built:
            q, k, v = x.qkv(*(size or (1, 2, 2, 40, 200)))
            again = change(x, q, k, v)
            return (q, k, v) if again is None else again, dict(options)

        return build

    def times(a: float, b: float) -> Callable[[Draw, Array, Array, Array], Any]:
        return lambda x, q, k, v: (q * a, k * b, v)

    case("scores_1e4", changed(times(60, 60)))
    case("scores_1e4_split", changed(times(60, 60), num_splits=2), "num_splits")
    case("all_negative", changed(lambda x, q, k, v: (abs(q) * 8, -abs(k) * 8, v)), backward=True)
    case("all_negative_split", changed(lambda x, q, k, v: (abs(q) * 8, -abs(k) * 8, v), num_splits=3), "num_splits")
    case("ties", changed(lambda x, q, k, v: (q, np.repeat(k[:, :, :1], k.shape[2], 2), -abs(v))))
    case("rows_wide_range", changed(lambda x, q, k, v: (q * np.logspace(-2, 2.3, q.shape[2])[:, None], k, v)))
    case("hidden_large", changed(times(200, 200), 1, 1, 1, 64, 64, causal=True), "causal")
    case("softcap_small", changed(times(1, 1), 1, 2, 2, 96, 160, causal=True, softcap=0.5), "causal", "softcap")
    case("softcap_saturated", changed(times(30, 30), softcap=30.0), "softcap", backward=True)
    case("softcap_middle", changed(times(2, 1), softcap=2.0), "softcap")
    case("values_equal", changed(lambda x, q, k, v: (q, k, np.ones_like(v)), 1, 2, 2, 40, 300))
    case(
        "values_equal_split",
        changed(lambda x, q, k, v: (q, k, np.ones_like(v)), 1, 2, 2, 40, 300, num_splits=3),
        "num_splits",
    )
    case(
        "values_huge",
        changed(lambda x, q, k, v: (q * 0.1, k, np.zeros_like(v) + x.big * np.sign(v[:, :, :1])), 1, 2, 2, 40, 300),
    )
    case(
        "values_huge_split",
        changed(
            lambda x, q, k, v: (q * 0.1, k, np.zeros_like(v) + x.big * np.sign(v[:, :, :1])),
            1,
            2,
            2,
            40,
            300,
            num_splits=3,
        ),
        "num_splits",
    )
    for name, size in (("huge", 1e6), ("tiny", 1e-6)):
        case(f"cotangent_{name}", _cotangent(size), backward=True, forward=False)
    case("values_tiny", changed(lambda x, q, k, v: (q, k, v * x.small), 1, 2, 2, 40, 300))
    case("scale_negative", changed(times(1, 1), 1, 2, 2, 20, 70, scale=-0.3), "scale")
    case("scale_zero", changed(times(1, 1), 1, 2, 2, 20, 70, scale=0.0), "scale")
    case("sink_dominant", changed(times(1, 1), 1, 2, 2, 40, 300, sinks=[12.0, -12.0]), "sinks", backward=True)
    case("sink_split", changed(times(1, 1), 1, 2, 2, 40, 300, sinks=[4.0, 2.0], num_splits=3), "sinks", "num_splits")
    case("sinks_minus_inf", changed(times(1, 1), 1, 2, 2, 20, 70, sinks=[-np.inf, 1.0]), "sinks")
    case(
        "alibi_strong",
        changed(times(1, 1), 1, 2, 2, 70, 200, causal=True, alibi_slopes=[4.0, 1.0]),
        *("causal", "alibi_slopes"),
    )
    case("alibi_both_sides", changed(times(1, 1), 1, 2, 2, 70, 110, alibi_slopes=[0.5, 0.03]), "alibi_slopes")


_normal()
_needles()
_softmax()
from refattn.testing.attention import cases_shapes  # noqa: E402, F401 (enters the rest)
