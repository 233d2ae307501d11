"""A pass as a list of steps, each with the sizes that its time depends on: what `prediction` adds up.

The steps are those of the networks in `refattn.models`: matrices on every token, mixing, norms, the nonlinearity of the
feed-forward part, residual sums, and rotation and reordering of heads.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from refattn.costs.mechanisms import Call, Mechanism, Softmax
from refattn.costs.pairs import tile_pairs

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

COMPONENTS = ("projection", "attention", "ffn", "norm", "head", "other")
TILE = (64, 128)  # queries and keys that a compiled kernel computes together
TILED = 1 << 14  # keys beyond which half a tile a row no longer shows
NORM_FLOPS, ACTIVATION_FLOPS, ROPE_FLOPS = 6, 8, 3  # of a number


class Step(NamedTuple):
    """Something that is done `times` times in a pass."""

    component: str
    """Of `COMPONENTS`; "attention" is any mixing of tokens."""
    kind: str
    """matmul, attention, mixing, norm, activation, add, rope or heads."""
    times: int
    rows: int = 0
    """Of a product; else how many numbers, or tokens."""
    inner: int = 0
    """Of a product; else the width of a head."""
    columns: int = 0
    """Of a product; else the heads of all sequences."""
    keys: int = 0
    pairs: int = 0
    """In tiles that a kernel computes, of all heads."""
    name: str = ""
    """A form of attention (full, causal, window, decode), or a mechanism."""
    flops: int = 0
    exps: int = 0
    numbers: int = 0
    """Read and written, once."""
    value: int = 0
    """The width of a head's values."""


def steps(m: "Transformer", call: Call) -> list[Step]:
    """Return the steps of a forward pass.

    Examples
    --------
    >>> from refattn.costs import Transformer
    >>> m = Transformer(layers=2, d_model=64, heads=4)
    >>> products = [step for step in steps(m, m.call(1, 8)) if step.kind in ("matmul", "attention")]
    >>> sum(step.times * step.flops for step in products) == m.forward_flops(1, 8)["total"]
    True
    """
    found: list[Step] = []
    for (mechanism, experts), layers in _alike(m).items():
        layer = next(n for n in range(m.layers) if (m.mechanism[n], m.has_experts(n)) == (mechanism, experts))
        found += [_matmul("projection", layers, x.rows, x.columns, call) for x in mechanism.matrices(m)]
        found += _mixing(m, mechanism, call, layers)
        feed = m.feed(layer)
        found += [_matmul("ffn", layers, x.rows, x.columns, call) for x in feed]
        hidden = sum(x.rows for x in feed if x.name in ("down", "v")) * call.tokens
        if feed:
            kind = "swiglu" if m.gated else "gelu"
            moved = (3 if m.gated else 2) * hidden
            work = ACTIVATION_FLOPS * hidden
            found.append(Step("ffn", "activation", layers, hidden, name=kind, flops=work, exps=hidden, numbers=moved))
        norms = m.norms if feed else min(m.norms, 1)
        found.append(_norm(m, call, layers * norms))
        found.append(Step("other", "add", layers * norms, call.tokens * m.d_model, numbers=3 * call.tokens * m.d_model))
    if m.more_norms:
        found.append(_norm(m, call, m.more_norms))
    if m.vocab and m.logits:
        found.append(_matmul("head", 1, m.d_model, m.vocab, call))
    return found


def _alike(m: "Transformer") -> Counter[tuple[Mechanism, bool]]:
    return Counter((mechanism, m.has_experts(n)) for n, mechanism in enumerate(m.mechanism))


def _matmul(component: str, times: int, inner: int, columns: int, call: Call) -> Step:
    moved = call.tokens * (inner + columns) + inner * columns
    flops = 2 * call.tokens * inner * columns
    return Step(component, "matmul", times, call.tokens, inner, columns, flops=flops, numbers=moved, keys=call.batch)


def _norm(m: "Transformer", call: Call, times: int) -> Step:
    n = call.tokens * m.d_model
    return Step(
        "norm", "norm", times, n, name="layer_norm" if m.bias else "rms_norm", flops=NORM_FLOPS * n, numbers=2 * n
    )


def _mixing(m: "Transformer", mechanism: Mechanism, call: Call, layers: int) -> list[Step]:
    work = mechanism.work(m, call)
    flops = work.scores + work.values + work.scan
    state = 2 * call.batch * mechanism.kept(m, call.keys)
    if not isinstance(mechanism, Softmax):
        moved = call.tokens * mechanism.stored(m) + state
        heads, width = call.batch * m.heads, m.head_width
        return [
            Step(
                "attention", "mixing", layers, call.new, width, heads, call.keys, mechanism.pairs(m, call),
                mechanism.name, flops, work.exps, moved,
            )
        ]  # fmt: skip
    (d, dv), heads = mechanism.widths(m, call), call.batch * m.heads
    keys = mechanism.cached(call.keys) if call.new == 1 else call.keys
    form = "decode" if call.new == 1 else "window" if mechanism.window or mechanism.mask or call.mask else None
    form = form or ("causal" if call.causal else "full")
    mask = mechanism.visible(call)
    tiled = mechanism.pairs(m, call)
    if call.keys <= TILED:
        patterns = 1 if mask is None else math.prod(mask.lead)
        tiled = tile_pairs(mask, call.new, call.keys, *TILE) * (heads // patterns)
    read = mechanism.kept(m, keys) if call.new == 1 else mechanism.keys_and_values(m, call)
    moved = call.tokens * m.heads * (d + dv) + call.batch * read
    found = [
        Step(
            "attention", "attention", layers, call.new, d, heads, keys, tiled, form, flops,
            work.exps, moved, dv,
        )
    ]  # fmt: skip
    rotated = call.tokens * (m.heads + m.kv) * d
    if not m.positions:
        found.append(Step("other", "rope", layers, rotated, flops=ROPE_FLOPS * rotated, numbers=2 * rotated))
    reordered = call.tokens * (m.heads * (d + dv) + m.kv * (d + dv))
    return [*found, Step("other", "heads", layers, reordered, numbers=2 * reordered)]
