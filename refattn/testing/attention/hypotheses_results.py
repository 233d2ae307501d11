"""Mistakes in lse, in rows that see nothing, and in how o is written; see `hypotheses`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.hypotheses import Given, Results, convention, enter, forward, scale_of
from refattn.testing.attention.hypotheses_lengths import TILES


def _lse() -> None:
    def lse(change: Callable[[Given, Array], Array | None]) -> Any:
        """Return another lse, o being right."""

        def results(given: Given) -> Results | None:
            changed = change(given, given.right["lse"])
            return None if changed is None else {"lse": changed}

        return forward(results)

    def base(declared: str, factor: float) -> Any:
        return lse(lambda given, x: x * factor if given.contract.lse == declared else None)

    enter("lse base 2", "lse has base 2", base("natural", 1 / np.log(2)))
    enter("lse natural", "lse is the natural logarithm", base("base2", np.log(2)))
    enter("sinks missing in lse", "lse leaves the sinks out", convention(lse_sinks=False).everywhere)
    enter("sinks counted in lse", "lse counts the sinks", convention(lse_sinks=True).everywhere)
    enter(
        "lse missing the maximum",
        "lse lacks the maximum: it is log(l) alone",
        lse(lambda given, x: x - given.t.m[..., 0]),
    )
    enter(
        "lse missing the normaliser",
        "lse is the maximum: it lacks log(l)",
        lse(lambda given, x: _seen(given, given.t.m[..., 0])),
    )
    enter("lse unscaled", "the maximum in lse is that of the scores before the scale", lse(_unscaled))
    enter("lse negated", "lse has the wrong sign", lse(lambda given, x: -x))
    enter("lse is the normaliser", "lse is the normaliser l, not its logarithm", lse(_normaliser))
    enter(
        "lse mixes bases",
        "log2(l) is added to a maximum in natural units, or the other way round",
        lse(_maximum_base_2),
        lse(_sum_base_2),
    )
    enter(
        "lse of blind rows inf",
        "lse of a row that sees nothing is +inf, as in FlashAttention-2",
        lse(_of_blind(np.inf)),
    )
    enter("lse of blind rows zero", "lse of a row that sees nothing is 0", lse(_of_blind(0.0)))
    enter(
        "lse of blind rows finite",
        "lse of a row that sees nothing is a large negative number",
        *(lse(_of_blind(x)) for x in LOWEST),
    )
    enter("lse of blind rows nan", "lse of a row that sees nothing is NaN", lse(_of_blind(np.nan)))


LOWEST = (-1e9, -1e4, -1e30, -65504.0, -3.4028234663852886e38, -1.7014117331926443e38, -1e10, -1e5)
"""What stands for minus infinity in some kernels."""


def _seen(given: Given, x: Array) -> Array:
    return np.where(given.t.blind, given.right["lse"], x)


def _unscaled(given: Given, x: Array) -> Array | None:
    scale = scale_of(given.p)
    return _seen(given, given.t.m[..., 0] * (1 / scale - 1) + x) if scale not in (0, 1) else None


def _normaliser(given: Given, x: Array) -> Array:
    return np.exp(x - given.t.m[..., 0])


def _maximum_base_2(given: Given, x: Array) -> Array:
    m = given.t.m[..., 0]
    return np.asarray(x + m * (1 / np.log(2) - 1))


def _sum_base_2(given: Given, x: Array) -> Array:
    m = given.t.m[..., 0]
    return np.asarray(m + (x - m) / np.log(2))


def _of_blind(value: float) -> Callable[[Given, Array], Array | None]:
    return lambda given, x: np.where(given.t.blind, value, x) if given.t.blind.any() else None


def _blind_rows() -> None:
    def filled(lowest: float, tile: int) -> Any:
        """Give hidden scores a large negative number: rows that see nothing are the mean of values and padding."""

        def results(given: Given) -> Results | None:
            p, t = given.p, given.t
            if not t.blind.any() or given.contract.blind_rows == "mean" or not t.v.shape[-2]:
                return None
            ends = p.options.get("seqlens_k") if tile else None
            ends = np.full(len(p.q), p.k.shape[2]) if ends is None else np.asarray(ends)
            exists = np.arange(p.k.shape[2]) < ends.reshape(-1, 1, 1, 1)
            n = -(-ends // max(tile, 1)) * max(tile, 1)
            n = n.reshape(-1, 1, 1, 1)
            mean = (np.where(exists.swapaxes(-1, -2), t.v, 0)).sum(-2, keepdims=True) / np.maximum(n, 1)
            lse = lowest + np.log(np.maximum(n, 1))[..., 0]
            blind = t.blind & np.asarray(n[..., 0] > 0)
            return {
                "o": np.where(blind[..., None], mean, given.right["o"]),
                "lse": np.where(blind, lse, given.right["lse"]),
            }

        return forward(results)

    def no_number(given: Given) -> Results | None:
        """Let rows that see nothing be NaN; in the backward pass it may reach every key and value."""
        blind = given.t.blind
        if not blind.any() or given.contract.blind_rows == "nan":
            return None
        if given.p.do is None:
            return {"o": np.where(blind[..., None], np.nan, given.right["o"])}
        touched = np.asarray(blind.reshape(len(blind), given.p.k.shape[1], -1).any(axis=-1))[..., None, None]
        rest = {name: np.where(touched, np.nan, given.right[name]) for name in ("dk", "dv")}
        return {"dq": np.where(blind[..., None], np.nan, given.right["dq"])} | rest

    sentence = "rows that see nothing are the mean of the values: hidden scores are a large negative number, not -inf"
    enter("blind rows mean", sentence, *(filled(x, n) for x in LOWEST[:5] for n in (0, 1, *TILES)))
    enter("blind rows nan", "rows that see nothing are NaN: 0 / 0, or -inf less -inf", no_number)
    enter("blind rows zero", "rows that see nothing are 0", convention(blind_rows="zero"))
    enter(
        "blind rows of the first key",
        "rows that see nothing get the value of the first key",
        forward(lambda given: _first_value(given) if given.t.blind.any() and given.t.v.shape[-2] else None),
    )


def _first_value(given: Given) -> Results:
    return {"o": np.where(given.t.blind[..., None], given.t.v[..., :1, :], given.right["o"])}


def _written() -> None:
    def only(kept: Callable[[Given], Array | None], lse: bool = False) -> Any:
        """Write o, and lse, where `kept` is True only."""

        def results(given: Given) -> Results | None:
            where = kept(given)
            if where is None or where.all():
                return None
            found = {"o": np.where(where, given.right["o"], 0)}
            return found | {"lse": np.where(where[..., 0], given.right["lse"], -np.inf)} if lse else found

        return forward(results)

    def queries(n: int, only_one: bool) -> Any:
        def kept(given: Given) -> Array | None:
            Tq = given.p.q.shape[2]
            end = Tq - (Tq % n == 1) if only_one else Tq // n * n
            return (np.arange(Tq) < end)[:, None]

        return only(kept, lse=True)

    def channels(end: Callable[[Given], int]) -> Any:
        return only(lambda given: (np.arange(given.p.v.shape[-1]) < end(given))[None])

    def channels_of(n: int) -> Any:
        return channels(lambda given: given.p.v.shape[-1] // n * n)

    def by_group(given: Given) -> Results | None:
        H, Hk = given.p.q.shape[1], given.p.k.shape[1]
        order = np.arange(H).reshape(Hk, H // Hk).T.ravel()
        return None if (order == np.arange(H)).all() else {"o": given.right["o"][:, order]}

    enter("heads of o reversed", "heads of o are in reverse order", forward(_reversed))
    enter(
        "o zero everywhere", "o is 0 everywhere: it is not written", forward(lambda given: {"o": 0 * given.right["o"]})
    )
    enter("heads of o by group", "heads of o are written in the order (group, key head)", forward(by_group))
    enter(
        "value channels beyond the keys' width missing",
        "channels of o beyond the width of q and k are not written",
        channels(lambda given: given.p.q.shape[-1]),
    )
    for n in (8, 16, 32, 64):
        enter(
            f"value channels after a multiple of {n} missing",
            f"channels of o behind the last multiple of {n} are not written",
            channels_of(n),
        )
    for n in TILES:
        enter(
            f"queries after a multiple of {n} missing",
            f"queries behind the last whole tile of {n} are left out",
            queries(n, False),
        )
        enter(
            f"tail of one query after {n} missing",
            f"a last tile of {n} queries that has one only is left out",
            queries(n, True),
        )


def _reversed(given: Given) -> Results:
    return {name: x[:, ::-1] for name, x in given.right.items()}


_lse()
_blind_rows()
_written()
