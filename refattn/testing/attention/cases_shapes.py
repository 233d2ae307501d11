"""The rest of the curated problems: rows that see nothing, shapes, forms of bias and mask, memory, random mixtures."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing import values
from refattn.testing.attention.cases import Built, case
from refattn.testing.attention.draw import Draw


def sized(*size: Any, **options: Any) -> Callable[[Draw], Built]:
    """Return a builder of standard normal arrays; options that are functions get (draw, q, k, v)."""

    def build(x: Draw) -> Built:
        q, k, v = x.qkv(*size)
        return (q, k, v), {
            name: o(x, q, k, v) if callable(o) and name != "arrange" else o for name, o in options.items()
        }

    return build


def _blind() -> None:
    def sparse(x: Draw, q: Array, k: Array, v: Array) -> Array:
        mask = x.rng.random((1, 1, q.shape[2], k.shape[2])) < 0.03
        mask[..., ::5, :] = False
        return mask

    size = (1, 2, 2, 96, 256)
    case("blind_rows", sized(*size, mask=sparse), "mask", dirty=True, backward=True)
    case("blind_rows_split", sized(*size, mask=sparse, num_splits=4), "mask", "num_splits", dirty=True)
    case("blind_rows_sink", sized(*size, mask=sparse, sinks=[1.0, -2.0]), "mask", "sinks", dirty=True, backward=True)
    case(
        "blind_rows_sink_split",
        sized(*size, mask=sparse, sinks=[1.0, -2.0], num_splits=4),
        *("mask", "sinks", "num_splits"),
        dirty=True,
    )
    case("blind_rows_poisoned", _blind_poisoned, "mask", features=("nan",), backward=True)
    case("blind_tiles", sized(*size, mask=_later_tiles), "mask", dirty=True)
    case("more_queries_causal", sized(1, 2, 2, 90, 50, causal=True), "causal", dirty=True, backward=True)
    case("more_queries_window", sized(1, 2, 2, 90, 50, window=(3, 3)), "window", dirty=True)
    lengths = [0, 1, 64, 65, 130]
    case("lengths", sized(5, 2, 2, 3, 130, seqlens_k=_lengths(lengths)), "seqlens_k", dirty=True, backward=True)
    case(
        "lengths_split",
        sized(5, 2, 2, 3, 130, seqlens_k=_lengths(lengths), num_splits=2),
        *("seqlens_k", "num_splits"),
        dirty=True,
    )
    case(
        "lengths_causal",
        sized(5, 2, 2, 20, 130, seqlens_k=_lengths(lengths), causal=True),
        *("seqlens_k", "causal"),
        dirty=True,
    )
    case(
        "lengths_window",
        sized(3, 2, 2, 20, 130, seqlens_k=_lengths([40, 77, 130]), causal=True, window=(9, 0)),
        *("seqlens_k", "causal", "window"),
    )
    case(
        "lengths_alibi",
        sized(2, 2, 2, 9, 80, seqlens_k=_lengths([33, 80]), alibi_slopes=[0.5, 0.1]),
        *("seqlens_k", "alibi_slopes"),
    )
    case(
        "lengths_poisoned",
        _poisoned,
        "seqlens_k",
        dirty=True,
        backward=True,
        features=("nan",),
    )
    case("mask_poisoned", _mask_poisoned, "mask", features=("nan",), backward=True)
    case("bias_poisoned", _bias_poisoned, "mask", "bias", features=("nan",), backward=True)


def _lengths(wanted: list[int]) -> Callable[[Draw, Array, Array, Array], list[int]]:
    return lambda x, q, k, v: [min(n, k.shape[2]) for n in wanted]


def _later_tiles(x: Draw, q: Array, k: Array, v: Array) -> Array:
    """Some rows see nothing in the first tile, others nothing after it."""
    mask = np.ones((1, 1, q.shape[2], k.shape[2]), bool)
    mask[..., ::3, :64], mask[..., 1::3, 64:], mask[..., 2::9, :192] = False, False, False
    return mask


def _poisoned(x: Draw) -> Built:
    q, k, v = x.qkv(2, 2, 2, 20, 100)
    k[0, :, 37:], v[0, :, 37:] = np.nan, np.inf
    return (q, k, v), {"seqlens_k": [37, k.shape[2]]}


def _blind_poisoned(x: Draw) -> Built:
    q, k, v = x.qkv(1, 2, 2, 40, 100)
    mask = x.rng.random((1, 1, q.shape[2], k.shape[2])) < 0.5
    mask[..., ::5, :] = False
    do = x.normal(1, 2, q.shape[2], v.shape[3])
    q[:, :, ::5], do[:, :, ::5] = np.nan, np.nan
    return (q, k, v), {"mask": mask, "do": do}


def _mask_poisoned(x: Draw) -> Built:
    q, k, v = x.qkv(1, 2, 2, 20, 100)
    k[:, :, 70], v[:, :, 71], v[:, :, 5] = np.nan, np.nan, -np.inf
    mask = np.ones((1, 1, 1, k.shape[2]), bool)
    mask[..., [5, 70, 71]] = False
    return (q, k, v), {"mask": mask}


def _bias_poisoned(x: Draw) -> Built:
    (q, k, v), options = _mask_poisoned(x)
    bias = x.normal(1, 2, q.shape[2], k.shape[2])
    bias[..., 70] = np.nan
    return (q, k, v), options | {"bias": bias}


def _shapes() -> None:
    for Tq, Tk, D, Dv in (
        *((1, 1, 8, 8), (3, 2, 72, 40), (63, 65, 33, 64), (65, 63, 128, 16), (129, 127, 80, 96), (2, 1023, 64, 64)),
        *((17, 16, 64, 64), (16, 33, 64, 32), (31, 32, 16, 64), (64, 128, 64, 64), (33, 129, 24, 24), (5, 257, 64, 8)),
    ):
        causal = True if Tq in (129, 33) else None
        name = f"shape_{Tq}x{Tk}x{D}x{Dv}"
        case(name, sized(2, 6, 2, Tq, Tk, D, Dv, causal=causal), *(("causal",) if causal else ()), backward=Tq < 130)
    case("one_head_for_all", sized(2, 5, 1, 33, 70), backward=True)
    case("wide_256", sized(1, 1, 1, 20, 70, 256), level="standard")
    case("width_1", sized(1, 2, 2, 20, 70, 1, 1), level="standard")
    case("no_keys", sized(2, 2, 2, 5, 0), features=("empty",), backward=True)
    case("no_queries", sized(2, 2, 2, 0, 5), features=("empty",), backward=True)
    case("no_batch", sized(0, 2, 2, 5, 7), features=("empty",), level="standard")
    case("splits_beyond_keys", sized(1, 2, 2, 5, 7, num_splits=9), "num_splits")
    case("splits_causal", sized(1, 2, 2, 60, 200, num_splits=4, causal=True), "num_splits", "causal")
    for Tk in (15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 193, 511, 513):
        case(f"keys_{Tk}", sized(1, 2, 1, 3, Tk), level="quick" if Tk in (16, 64, 128) else "standard")
    for T in (15, 17, 63, 64, 65, 127, 129, 192, 257):
        level = "quick" if T in (64, 65) else "standard"
        case(f"square_{T}_causal", sized(1, 2, 1, T, T, causal=True), "causal", level=level, backward=True)
    case("large", sized(1, 2, 1, 1100, 1300, causal=True), "causal", level="deep")


def _forms() -> None:
    def bias(*axes: str) -> Callable[[Draw, Array, Array, Array], Array]:
        def drawn(x: Draw, q: Array, k: Array, v: Array) -> Array:
            sizes = {"B": q.shape[0], "H": q.shape[1], "Q": q.shape[2], "K": k.shape[2], "1": 1}
            return x.normal(*(sizes[a] for a in axes)) * 2

        return drawn

    size = (2, 4, 2, 40, 100)
    for form in ("BHQK", "1HQK", "B1QK", "11QK", "BH1K", "1H11", "B11K", "QK", "HQK", "BHQ1"):
        level = "quick" if form in ("BHQK", "1HQK", "B11K", "QK") else "standard"
        case(f"bias_{form}", sized(*size, bias=bias(*form)), "bias", level=level, backward=True)
    case("bias_causal", sized(*size, bias=bias(*"BHQK"), causal=True), "bias", "causal")
    case("bias_softcap", sized(*size, bias=bias(*"BHQK"), softcap=1.5), "bias", "softcap", backward=True)
    case("bias_minus_inf", _bias_minus_inf, "bias")
    for form in ("BHQK", "1HQK", "B1QK", "B11K", "QK"):
        level = "quick" if form in ("BHQK", "1HQK", "B11K") else "standard"
        seen = bias(*form)
        case(
            f"mask_{form}",
            sized(*size, mask=lambda x, q, k, v, f=seen: f(x, q, k, v) > 0),
            *("mask",),
            level=level,
            backward=True,
        )
    case(
        "mask_causal",
        sized(*size, mask=lambda x, q, k, v: x.normal(q.shape[2], k.shape[2]) > 0, causal=True),
        "mask",
        "causal",
    )
    case("offset", sized(2, 2, 2, 30, 100, causal=True, q_offset=11), "causal", "q_offset", backward=True)
    case("offset_each", sized(2, 2, 2, 30, 100, causal=True, q_offset=[3, 50]), "causal", "q_offset")
    case("offset_negative", sized(2, 2, 2, 30, 100, causal=True, q_offset=-9), "causal", "q_offset", dirty=True)
    case("offset_window", sized(2, 2, 2, 30, 100, window=(8, 4), q_offset=[20, 60]), "window", "q_offset")
    case(
        "offset_alibi", sized(2, 2, 2, 30, 100, alibi_slopes=[0.5, 0.06], q_offset=[5, 60]), "alibi_slopes", "q_offset"
    )
    case("window_0", sized(1, 2, 2, 70, 100, window=(0, 0)), "window", backward=True)
    case("window_beyond", sized(1, 2, 2, 70, 100, window=(500, 500)), "window")
    case("window_left_only", sized(1, 2, 2, 130, 130, window=(64, None)), "window")
    case("window_64", sized(1, 2, 2, 200, 200, causal=True, window=(63, 0)), "causal", "window", backward=True)
    case("window_65", sized(1, 2, 2, 200, 200, causal=True, window=(64, 0)), "causal", "window")
    case(
        "dropout_shared",
        sized(*size, dropout_mask=lambda x, q, k, v: x.rng.random((q.shape[2], k.shape[2])) < 0.5, dropout_p=0.5),
        "dropout_mask",
        "dropout_p",
        backward=True,
    )
    case(
        "alibi_sinks_softcap",
        sized(
            2, 4, 2, 40, 100, alibi_slopes=[0.5, 0.25, 0.1, 0.02], sinks=[1.0, 2.0, 0.0, -1.0], softcap=3.0, causal=True
        ),
        "alibi_slopes",
        "sinks",
        "softcap",
        "causal",
        backward=True,
    )


def _bias_minus_inf(x: Draw) -> Built:
    q, k, v = x.qkv(1, 2, 2, 20, 80)
    bias = np.where(x.rng.random((2, q.shape[2], k.shape[2])) < 0.4, -np.inf, 0.0)
    bias[:, 3] = -np.inf
    return (q, k, v), {"bias": bias}


def _memory() -> None:
    size = (2, 4, 2, 33, 70)
    for name, arrange in (
        ("spread", values.spread),
        ("backwards", values.backwards),
        ("unaligned", values.unaligned),
        ("tokens_first", values.tokens_first),
        ("fortran", np.asfortranarray),
        ("guarded", values.guarded),
    ):
        case(f"memory_{name}", sized(*size, arrange=arrange), features=("strided",), backward=True)
    case("memory_repeated", _repeated, features=("strided",))
    case("memory_one_of_each", sized(1, 1, 1, 1, 70, arrange=values.sizes_of_one), features=("strided",))
    case("memory_far", sized(3, 2, 2, 6, 40, arrange=values.far_apart), features=("strided",), level="deep")


def _repeated(x: Draw) -> Built:
    q, k, v = x.qkv(2, 4, 2, 33, 70)
    for array in (q, k, v):
        array[1:] = array[:1]
    return (q, k, v), {"arrange": values.repeated}


def _mixtures() -> None:
    """Random sizes with a random choice of options; which is decided by the name, so that `needs` is known."""
    for n in range(72):
        rng = np.random.default_rng([n, 20240817])
        chosen = {"causal": 0.5, "window": 0.3, "softcap": 0.3, "alibi_slopes": 0.3, "sinks": 0.3, "mask": 0.25}
        chosen |= {"bias": 0.25, "scale": 0.25, "num_splits": 0.3, "seqlens_k": 0.25, "q_offset": 0.2}
        needs = tuple(name for name, share in chosen.items() if rng.random() < share)
        case(
            f"mixture_{n}",
            _mixture(n, needs),
            *needs,
            level="quick" if n < 6 else "standard" if n < 24 else "deep",
            dirty=bool(n % 2),
            backward="num_splits" not in needs,
        )


def _mixture(n: int, needs: tuple[str, ...]) -> Callable[[Draw], Built]:
    def build(x: Draw) -> Built:
        rng = x.rng
        Hk, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        Tq, Tk = (int(t) for t in rng.integers(1, 150, 2))
        if n % 3 == 0:
            Tk = Tq
        D = int(rng.choice([16, 32, 40, 64, 72, 128]))
        q, k, v = x.qkv(int(rng.integers(1, 4)), Hk * group, Hk, Tq, Tk, D, D if n % 2 else int(rng.integers(1, 90)))
        B, H, Tq, Tk = *q.shape[:3], k.shape[2]
        drawn: dict[str, Any] = {
            "causal": True,
            "window": (int(rng.integers(0, 90)), None if n % 4 == 1 else int(rng.integers(0, 20))),
            "softcap": float(rng.uniform(0.5, 20)),
            "alibi_slopes": rng.uniform(0, 1, H),
            "sinks": rng.normal(size=H) * 3,
            "mask": rng.random((B, 1, Tq, Tk)) < 0.7,
            "bias": rng.normal(size=(1, H, Tq, Tk)),
            "scale": float(rng.uniform(0.05, 0.5)),
            "num_splits": int(rng.integers(2, 7)),
            "seqlens_k": rng.integers(0, Tk + 1, B),
            "q_offset": int(rng.integers(-5, Tk + 1)),
        }
        return (q, k, v), {name: drawn[name] for name in needs}

    return build


_blind()
_shapes()
_forms()
_memory()
_mixtures()
