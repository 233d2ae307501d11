"""Mistakes in the backward pass: a factor or a term left out, a sum over the wrong axis; see `hypotheses`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention import hypotheses_results, hypotheses_scores  # noqa: F401 (two get another way here)
from refattn.testing.attention.backward import Slopes, gradients, over
from refattn.testing.attention.hypotheses import (
    Given,
    Mistake,
    Results,
    also,
    backward,
    enter,
    option,
    scale_of,
    steps,
    without,
)


def times(factor: Callable[[Given], float | None], *names: str) -> Mistake:
    """Multiply some gradients."""

    def changed(given: Given) -> Results | None:
        by = factor(given)
        return None if by is None or by == 1 else {n: by * given.right[n] for n in names if n in given.right}

    return backward(changed)


def _over_scale(given: Given) -> float | None:
    return 1 / scale_of(given.p) if scale_of(given.p) else None


def _factors() -> None:
    for names in (("dq",), ("dk",), ("dq", "dk")):
        both = " and ".join(names)
        lack, have = ("lacks", "has") if len(names) == 1 else ("lack", "have")
        enter(f"{both} without scale", f"{both} {lack} the scale", times(_over_scale, *names))
        enter(f"{both} scaled twice", f"{both} {have} the scale twice", times(lambda given: scale_of(given.p), *names))
    for name in ("dq", "dk", "dv", "dbias", "dsinks"):
        enter(f"{name} sign", f"{name} has the wrong sign", times(lambda given: -1.0, name))
        enter(f"{name} twice", f"{name} is twice what it should be", times(lambda given: 2.0, name))
    enter("dbias scaled", "dbias is multiplied by the scale", times(lambda given: scale_of(given.p), "dbias"))
    enter("dbias without scale", "dbias is divided by the scale", times(_over_scale, "dbias"))
    enter(
        "group averaged", "dk and dv are averaged over the query heads that share a key head", times(_share, "dk", "dv")
    )
    enter("dk averaged", "dk is averaged over the query heads that share a key head", times(_share, "dk"))
    enter("dv averaged", "dv is averaged over the query heads that share a key head", times(_share, "dv"))


def _share(given: Given) -> float:
    return given.p.k.shape[1] / given.p.q.shape[1]


def _sums() -> None:
    def of_one_head(name: str, which: int) -> Mistake:
        """Take one query head of each group, where all should be added up."""

        def changed(given: Given) -> Results | None:
            s, t = given.s, given.s.t
            group = given.p.q.shape[1] // given.p.k.shape[1]
            if group == 1:
                return None
            weights, rows = (s.ds * s.chain, t.q) if name == "dk" else (t.p * t.keep, s.do)
            return {name: (weights.swapaxes(-1, -2) @ rows)[:, which % group :: group]}

        return backward(changed)

    for name in ("dk", "dv"):
        for word, which in (("first", 0), ("last", -1)):
            enter(
                f"{name} of the {word} head",
                f"{name} is that of the {word} query head of each group, not the sum over the group",
                of_one_head(name, which),
            )
    enter("dbias averaged", "dbias is averaged over the axes along which the bias was broadcast", backward(_mean_bias))
    enter(
        "dbias of the first sequence",
        "dbias is that of the first sequence, not the sum over sequences",
        backward(_bias_of("B")),
    )
    enter("dbias of the first head", "dbias is that of the first head, not the sum over heads", backward(_bias_of("H")))
    enter(
        "dsinks of the first sequence",
        "dsinks is that of the first sequence",
        backward(lambda given: _sinks(given, given.s.pull, [0])),
    )
    enter("dsinks averaged", "dsinks is averaged over sequences and queries", backward(_mean_sinks))


def _mean_bias(given: Given) -> Results | None:
    if "dbias" not in given.right:
        return None
    return {"dbias": given.right["dbias"] * (given.right["dbias"].size / given.s.ds.size)}


def _bias_of(axis: str) -> Callable[[Given], Results | None]:
    """Sum dbias without one axis: its first entry stands for all, where the bias was broadcast along it."""

    def changed(given: Given) -> Results | None:
        bias, ds = given.p.options.get("bias"), given.s.ds
        if bias is None:
            return None
        n = {"B": 0, "H": 1}[axis]
        shape = (1,) * (4 - bias.ndim) + bias.shape
        if shape[n] != 1 or ds.shape[n] == 1:
            return None
        return {"dbias": over(ds[:1] if n == 0 else ds[:, :1], bias.shape)}

    return changed


def _sinks(given: Given, pull: Array, sequences: Any = slice(None)) -> Results | None:
    if given.p.options.get("sinks") is None:
        return None
    return {"dsinks": -(given.t.p_sink * pull)[sequences].sum(axis=(0, 2, 3))}


def _mean_sinks(given: Given) -> Results | None:
    found = _sinks(given, given.s.pull)
    return None if found is None else {"dsinks": found["dsinks"] / (given.p.q.shape[0] * given.p.q.shape[2])}


def _terms() -> None:
    def delta_missing(given: Given, s: Slopes) -> Slopes:
        return replace(s, ds=s.t.p * s.dp)

    def dlse(given: Given) -> Array:
        return np.where(given.t.blind, 0, given.p.options["dlse"])[..., None]

    def squared(given: Given, s: Slopes) -> Slopes | None:
        return None if given.p.options.get("softcap") is None else replace(s, chain=s.t.scale * s.t.slope**2)

    def not_squared(given: Given, s: Slopes) -> Slopes | None:
        if given.p.options.get("softcap") is None:
            return None
        return replace(s, chain=s.t.scale * (1 - np.sqrt(np.maximum(1 - s.t.slope, 0))))

    def no_slope(given: Given, s: Slopes) -> Slopes | None:
        return None if given.p.options.get("softcap") is None else replace(s, chain=np.asarray(s.t.scale))

    def no_weights(given: Given, s: Slopes) -> Slopes:
        return replace(s, ds=np.where(s.t.visible, s.dp - s.pull, 0))

    def powers_of_two(given: Given, s: Slopes) -> Slopes:
        p = np.where(s.t.visible, np.exp2(np.where(s.t.visible, s.t.s - _lse(given), 0)), 0)
        return replace(s, t=replace(s.t, p=p), ds=p * (s.dp - s.pull))

    def lse_base_2(given: Given, s: Slopes) -> Slopes:
        p = np.where(s.t.visible, np.exp(np.where(s.t.visible, s.t.s - _lse(given) / np.log(2), 0)), 0)
        return replace(s, t=replace(s.t, p=p), ds=p * (s.dp - s.pull))

    enter("delta missing", "ds lacks delta: it is p dp, not p (dp - delta)", steps(delta_missing))
    enter("delta without dropout", "delta is taken without the dropout", steps(_undropped))
    enter("p missing in ds", "ds is dp - delta: it lacks the factor p", steps(no_weights))
    enter("softcap slope missing", "the slope of the soft cap is left out", steps(no_slope))
    enter("softcap slope wrong", "the slope of the soft cap is 1 - |tanh|, not 1 - tanh²", steps(not_squared))
    enter("softcap slope twice", "the slope of the soft cap is applied twice", steps(squared))
    enter("dlse ignored", "dlse is ignored", without("dlse"))
    enter("dlse sign", "dlse enters with the wrong sign", option("dlse", lambda x, p: -x))
    enter("dbias behind the softcap", "dbias has the slope of the soft cap", backward(_behind))
    enter("dsinks without delta", "dsinks lacks delta", backward(lambda given: _sinks(given, np.ones(1))))
    enter(
        "dsinks without dlse",
        "dsinks lacks dlse",
        backward(lambda given: _sinks(given, given.s.pull + dlse(given)) if "dlse" in given.p.options else None),
    )
    enter("dv without dropout", "dv is taken from weights that were not dropped", backward(_dv))
    also("lse base 2", steps(powers_of_two), steps(lse_base_2))
    also("sinks ignored", backward(_sinks_forgotten))


def _tiles() -> None:
    def dq(n: int) -> Mistake:
        """Take dq of the last n keys, or of what is left of them."""

        def changed(given: Given) -> Results | None:
            s, start = given.s, (given.p.k.shape[2] - 1) // n * n
            if start <= 0:
                return None
            return {"dq": (s.ds * s.chain)[..., start:] @ s.t.k[..., start:, :]}

        return backward(changed)

    def over_queries(kept: Callable[[int], slice], names: tuple[str, ...]) -> Mistake:
        """Add up over some of the queries only."""

        def changed(given: Given) -> Results | None:
            s, some = given.s, kept(given.p.q.shape[2])
            if len(range(*some.indices(given.p.q.shape[2]))) == given.p.q.shape[2]:
                return None
            through = s.ds * np.broadcast_to(s.chain, s.ds.shape)
            found = {
                "dq": np.zeros_like(given.right["dq"]),
                "dk": through[:, :, some].swapaxes(-1, -2) @ s.t.q[:, :, some],
                "dv": (s.t.p * s.t.keep)[:, :, some].swapaxes(-1, -2) @ s.do[:, :, some],
            }
            found["dq"][:, :, some] = given.right["dq"][:, :, some]
            if "dbias" in given.right:
                found["dbias"] = np.zeros_like(s.ds)
                found["dbias"][:, :, some] = s.ds[:, :, some]
            return {name: found[name] for name in names if name in found}

        return backward(changed)

    def of_tiles(n: int) -> None:
        enter(
            f"dq of the last key tile of {n}", f"dq is that of the last tile of {n} keys, not the sum over tiles", dq(n)
        )
        also(
            f"queries after a multiple of {n} missing",
            over_queries(lambda T: slice(0, T // n * n), ("dq", "dk", "dv", "dbias")),
        )
        for name in ("dk", "dv"):
            enter(
                f"{name} of the last query tile of {n}",
                f"{name} is that of the last tile of {n} queries, not the sum over tiles",
                over_queries(lambda T: slice(max(0, (T - 1) // n * n), T), (name,)),
            )

    for n in (16, 32, 64, 128):
        of_tiles(n)


def _lse(given: Given) -> Array:
    return np.where(np.isneginf(given.t.lse), 0, given.t.lse)[..., None]


def _undropped(given: Given, s: Slopes) -> Slopes | None:
    if given.p.options.get("dropout_mask") is None:
        return None
    dp = np.where(s.t.visible, s.do @ s.t.v.swapaxes(-1, -2), 0)
    pull = s.pull + (s.t.p * (dp - s.dp)).sum(axis=-1, keepdims=True)
    return replace(s, pull=pull, ds=s.t.p * (s.dp - pull))


def _behind(given: Given) -> Results | None:
    bias = given.p.options.get("bias")
    if bias is None or given.p.options.get("softcap") is None:
        return None
    return {"dbias": over(given.s.ds * given.t.slope, bias.shape)}


def _dv(given: Given) -> Results | None:
    if given.p.options.get("dropout_mask") is None:
        return None
    dv = given.t.p.swapaxes(-1, -2) @ given.s.do
    return {"dv": dv.reshape(*given.p.k.shape[:2], -1, *dv.shape[2:]).sum(axis=2)}


def _sinks_forgotten(given: Given) -> Results | None:
    """Leave the sinks out of lse; dsinks is taken from that lse."""
    sinks = given.p.options.get("sinks")
    if sinks is None:
        return None
    other = Given(given.p.with_options(sinks=None), given.contract)
    with np.errstate(over="ignore"):
        share = np.where(other.t.blind, 0, np.exp(sinks[:, None] - other.t.lse))[..., None]
    found = gradients(other.p, other.s)
    return found | {"dsinks": -(share * other.s.pull).sum(axis=(0, 2, 3))}


_factors()
_sums()
_terms()
_tiles()
