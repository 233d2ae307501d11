"""Mistakes in the scores: scale, soft cap, bias, ALiBi, sinks; see `hypotheses`."""

from collections.abc import Callable

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.hypotheses import (
    Given,
    Mistake,
    Twist,
    convention,
    distances,
    enter,
    full,
    logits,
    option,
    scale_of,
    without,
)
from refattn.testing.attention.hypotheses_lengths import TILES, column_by_column, row_of_tile, transposed
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract


def scaled(scale: Callable[[Problem], float | None], *, given: bool | None = None) -> Twist:
    """Take another scale, where one is given, where none is, or everywhere."""

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        if given is not None and given != (p.options.get("scale") is not None):
            return None
        other = scale(p)
        return None if other is None else (p.with_options(scale=other), c)

    return Twist(twist)


def _scale() -> None:
    enter("scale missing", "the scale is missing", scaled(lambda p: 1.0), scaled(lambda p: 1.0, given=False))
    enter("scale ignored", "the given scale is ignored for 1 / sqrt(D)", without("scale"))
    enter(
        "scale 1/D",
        "the default scale is 1 / D instead of 1 / sqrt(D)",
        scaled(lambda p: 1 / p.q.shape[-1], given=False),
    )
    enter("scale applied twice", "the scale is applied twice", scaled(lambda p: scale_of(p) ** 2))
    enter(
        "scale is its square root", "the square root of the scale is applied", scaled(lambda p: abs(scale_of(p)) ** 0.5)
    )
    enter(
        "scale inverted", "scores are divided by the scale", scaled(lambda p: 1 / scale_of(p) if scale_of(p) else None)
    )
    enter("scale negated", "the scale has the wrong sign", scaled(lambda p: -scale_of(p)))
    enter("scale without its sign", "a negative scale is taken for a positive one", scaled(lambda p: abs(scale_of(p))))
    enter(
        "scale of zero taken for none",
        "a scale of 0 is taken for none given",
        scaled(lambda p: p.q.shape[-1] ** -0.5 if scale_of(p) == 0 else None, given=True),
    )
    enter("given scale times the default", "the given scale comes on top of 1 / sqrt(D)", _on_top())
    enter(
        "scale of the values' width",
        "the default scale is that of the width of the values",
        scaled(lambda p: p.v.shape[-1] ** -0.5 if p.v.shape[-1] != p.q.shape[-1] else None, given=False),
    )
    enter(
        "scale of the padded width",
        "the default scale is that of a width rounded up",
        *(scaled(_padded(n), given=False) for n in (8, 16, 32, 64, 128)),
        scaled(lambda p: float(2 ** int(np.ceil(np.log2(p.q.shape[-1])))) ** -0.5, given=False),
    )
    enter(
        "scale of the keys' number",
        "the default scale is that of the number of keys, not of the width",
        scaled(lambda p: p.k.shape[2] ** -0.5 if p.k.shape[2] else None, given=False),
    )
    enter(
        "base 2 without log2(e)",
        "weights are powers of 2 instead of e: scores lack the factor log2(e)",
        scaled(lambda p: scale_of(p) * np.log(2)),
        logits(lambda given: given.t.s * np.log(2)),
    )


def _on_top() -> Twist:
    return scaled(lambda p: scale_of(p) * p.q.shape[-1] ** -0.5, given=True)


def _padded(n: int) -> Callable[[Problem], float | None]:
    def scale(p: Problem) -> float | None:
        width = -(-p.q.shape[-1] // n) * n
        return None if width == p.q.shape[-1] else float(width**-0.5)

    return scale


def _softcap() -> None:
    def unscaled(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        cap = p.options.get("softcap")
        return None if cap is None or scale_of(p) == 0 else (p.with_options(softcap=cap * abs(scale_of(p))), c)

    def capped(cap: Callable[[Array, float], Array]) -> Mistake:
        """Cap otherwise; biases come after."""

        def scores(given: Given) -> Array | None:
            c = given.p.options.get("softcap")
            return None if c is None else np.asarray(cap(given.t.product, float(c)) + given.t.bias)

        return logits(scores)

    enter("softcap ignored", "the soft cap is ignored", without("softcap"))
    enter("softcap after bias", "the soft cap is applied to product and bias", convention(softcap="after_bias"))
    enter("softcap before bias", "the soft cap is applied to the product alone", convention(softcap="before_bias"))
    enter("softcap before scale", "the soft cap is applied before the scale", Twist(unscaled))
    enter(
        "softcap without its factor outside",
        "the capped score is not multiplied by the cap: tanh(s / c)",
        capped(lambda s, c: np.tanh(s / c)),
    )
    enter(
        "softcap without its divisor",
        "the score is not divided by the cap: c tanh(s)",
        capped(lambda s, c: c * np.tanh(s)),
    )
    enter("softcap is a clip", "scores are cut off at the cap", capped(lambda s, c: np.clip(s, -c, c)))
    enter(
        "softcap ignored in the tail tile",
        "the last, shorter key tile skips the soft cap",
        *(logits(_uncapped_tail(n)) for n in TILES),
    )
    enter("softcap twice", "the soft cap is applied twice", capped(lambda s, c: c * np.tanh(np.tanh(s / c))))


def _uncapped_tail(n: int) -> Callable[[Given], Array | None]:
    def scores(given: Given) -> Array | None:
        t, Tk = given.t, given.p.k.shape[2]
        if given.p.options.get("softcap") is None or Tk % n == 0:
            return None
        return np.where(np.arange(Tk) >= Tk // n * n, t.product + t.bias, t.s)

    return scores


def _bias() -> None:
    enter("bias ignored", "the bias is ignored", option("bias", lambda b, p: 0 * np.nan_to_num(b)))
    enter("bias scaled", "the bias is multiplied by the scale", option("bias", lambda b, p: b * scale_of(p)))
    enter("bias negated", "the bias is subtracted", option("bias", lambda b, p: -b))
    enter("bias twice", "the bias is added twice", option("bias", lambda b, p: 2 * b))
    enter("bias of the first head", "every head takes the bias of the first", full("bias", lambda b, p: b[:, :1]))
    enter("bias of the first sequence", "every sequence takes the bias of the first", full("bias", lambda b, p: b[:1]))
    enter("bias of the first query", "every query takes the bias of the first", full("bias", lambda b, p: b[:, :, :1]))
    enter(
        "bias transposed",
        "queries and keys of the bias are exchanged",
        full("bias", column_by_column),
        full("bias", transposed),
    )
    enter(
        "bias of the first query tile",
        "every query tile takes the bias of the first",
        *(full("bias", row_of_tile(n)) for n in TILES),
    )
    enter(
        "bias ignored in the tail tile",
        "the last, shorter key tile skips the bias",
        *(full("bias", _without_tail(n)) for n in TILES),
    )
    enter(
        "bias replaces the product",
        "the bias replaces the product of queries and keys",
        logits(lambda given: given.t.bias + 0 * given.t.product if given.p.options.get("bias") is not None else None),
    )


def _without_tail(n: int) -> Callable[[Array, Problem], Array]:
    """Leave the bias out behind the last whole tile of n keys, if there is one."""
    return lambda b, p: np.where(np.arange(b.shape[-1]) >= max(n, b.shape[-1] // n * n), 0, b)


def _alibi() -> None:
    def queries(p: Problem) -> Array:
        return np.arange(p.q.shape[2])[:, None]

    def keys(p: Problem) -> Array:
        return np.arange(p.k.shape[2])

    def within(n: int) -> Callable[[Array, Problem], Array]:
        return lambda ahead, p: np.abs(ahead - queries(p) // n * n)

    def slopes(change: Callable[[Array], Array]) -> Twist:
        return option("alibi_slopes", lambda x, p: change(x))

    enter("alibi ignored", "ALiBi is ignored", without("alibi_slopes"))
    enter("alibi sign", "ALiBi is added instead of subtracted: distant keys are favoured", slopes(lambda x: -x))
    enter("alibi slopes reversed", "the ALiBi slopes are in reverse order", slopes(lambda x: x[::-1]))
    enter("alibi of the first head", "every head has the first ALiBi slope", slopes(lambda x: x[:1].repeat(len(x))))
    enter(
        "alibi slopes of the kv heads",
        "query head h takes the ALiBi slope of its key head's number",
        option("alibi_slopes", _of_kv_heads),
    )
    enter("alibi scaled", "ALiBi is multiplied by the scale", option("alibi_slopes", lambda x, p: x * scale_of(p)))
    enter(
        "alibi without offset",
        "ALiBi counts queries from the first key: |i - j| instead of |i + offset - j|",
        distances(lambda ahead, p: np.abs(queries(p) - keys(p))),
    )
    enter("alibi without absolute value", "ALiBi rewards keys after the query", distances(lambda ahead, p: ahead))
    enter(
        "alibi without the query position",
        "ALiBi is slope * j, without the query: o is right where causal, lse is shifted, as in FlashAttention-2",
        distances(lambda ahead, p: np.broadcast_to(-keys(p), (1, 1, p.q.shape[2], p.k.shape[2]))),
        distances(lambda ahead, p: np.broadcast_to(p.k.shape[2] - 1 - keys(p), (1, 1, p.q.shape[2], p.k.shape[2]))),
    )
    enter(
        "alibi off by one",
        "ALiBi's distance is off by one",
        distances(lambda ahead, p: np.abs(ahead + 1)),
        distances(lambda ahead, p: np.abs(ahead - 1)),
    )
    enter(
        "alibi from the padded length",
        "ALiBi places queries by the padded length, not by their sequence's",
        distances(
            lambda ahead, p: np.abs(queries(p) + p.k.shape[2] - p.q.shape[2] - keys(p)) if _own_lengths(p) else None
        ),
    )
    enter(
        "alibi only before the query", "ALiBi is 0 for keys after the query", distances(lambda a, p: np.maximum(a, 0))
    )


def _of_kv_heads(x: Array, p: Problem) -> Array:
    return x[np.arange(len(x)) // (len(x) // p.k.shape[1])]


def _own_lengths(p: Problem) -> bool:
    return p.options.get("seqlens_k") is not None and p.options.get("q_offset") is None


def _sinks() -> None:
    def sinks(change: Callable[[Array, Problem], Array | None]) -> Twist:
        def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
            given = p.options.get("sinks")
            changed = None if given is None else change(given, p)
            return None if changed is None else (p.with_options(sinks=changed), c)

        return Twist(twist)

    def more(p: Problem) -> Array | None:
        """One more sink for each part of a split after the first."""
        n = p.options.get("num_splits", 1)
        return None if n < 2 else np.full(p.q.shape[1], np.log(n))

    def zeros(of_splits: bool) -> Twist:
        def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
            H, extra = p.q.shape[1], more(p) if of_splits else None
            if p.options.get("sinks") is not None or (of_splits and extra is None):
                return None
            return p.with_options(sinks=np.zeros(H) if extra is None else extra), c

        return Twist(twist)

    enter("sinks ignored", "the sinks are ignored", without("sinks"))
    enter("sinks counted twice", "the sinks are counted twice", sinks(lambda x, p: x + np.log(2)))
    enter(
        "sinks once per split",
        "every part of a split counts the sinks",
        sinks(lambda x, p: None if more(p) is None else x + more(p)),
    )
    enter("sinks scaled", "the sinks are multiplied by the scale", sinks(lambda x, p: x * scale_of(p)))
    enter("sinks divided by the scale", "the sinks are divided by the scale", sinks(_over_scale))
    enter("sinks negated", "the sinks have the wrong sign", sinks(lambda x, p: -x))
    enter("sinks reversed", "the sinks are in reverse order", sinks(lambda x, p: x[::-1]))
    enter("sinks of the first head", "every head has the first sink", sinks(lambda x, p: x[:1].repeat(len(x))))
    enter("sinks of the kv heads", "query head h takes the sink of its key head's number", sinks(_of_kv_heads))
    enter(
        "sinks as weights",
        "the sinks are added to the normaliser as they are, not their exponentials",
        sinks(lambda x, p: np.log(x) if (x > 0).all() else None),
    )
    enter(
        "sink of zero",
        "one is added to the normaliser: a sink of 0 where none is given",
        zeros(False),
        zeros(True),
    )


def _over_scale(x: Array, p: Problem) -> Array | None:
    return x / scale_of(p) if scale_of(p) else None


_scale()
_softcap()
_bias()
_alibi()
_sinks()
