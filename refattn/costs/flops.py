"""FLOPs of a model, 2 per multiply-add: integers, from the mask itself.

Totals are of matrix products and scans; the softmax, which no matrix unit computes, is a class of its own beside them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

RECOMPUTED = ("none", "attention", "selective", "full")
PARTS = ("qkvo", "scores", "values", "softmax", "scan", "ffn", "head", "total")


def forward_flops(
    m: "Transformer", batch: int = 1, seq: int = 1, past: int = 0, causal: bool = True, mask: Any = None
) -> dict[str, int]:
    """Return the FLOPs of one pass, exactly.

    Parameters
    ----------
    m : Transformer
    batch, seq : int
        So many sequences of so many new tokens.
    past : int
        Cached tokens before them.
    causal : bool
        A token sees those before it and itself; else all.
    mask : Mask or bool array (seq, past + seq), optional
        What may be seen besides.

    Returns
    -------
    dict of int
        ``qkvo`` (the matrices around mixing), ``scores``, ``values``, ``softmax`` (5 operations a pair), ``scan``
        (recurrences and convolutions), ``ffn``, ``head``, and ``total``, of all but the softmax.

    Raises
    ------
    TypeError, ValueError
        For lengths that are none, and a mask that does not describe them.

    Examples
    --------
    >>> from refattn.costs import Transformer
    >>> m = Transformer(layers=1, d_model=2, heads=1, ffn=8)
    >>> m.forward_flops(batch=1, seq=3)
    {'qkvo': 96, 'scores': 24, 'values': 24, 'softmax': 30, 'scan': 0, 'ffn': 192, 'head': 0, 'total': 336}
    """
    call = m.call(batch, seq, past, causal, mask)
    found = dict.fromkeys(PARTS, 0)
    works = {mechanism: mechanism.work(m, call) for mechanism in set(m.mechanism)}
    for layer, mechanism in enumerate(m.mechanism):
        work = works[mechanism]
        found["qkvo"] += mechanism.projection_flops(m, call)
        for part in ("scores", "values", "softmax", "scan"):
            found[part] += getattr(work, part)
        found["ffn"] += sum(x.flops(call.tokens) for x in m.feed(layer))
    found["head"] = 2 * call.tokens * m.d_model * m.vocab if m.logits else 0
    found["total"] = sum(n for part, n in found.items() if part not in ("softmax", "total"))
    return found


def train_flops(
    m: "Transformer", batch: int = 1, seq: int = 1, causal: bool = True, recompute: str = "none"
) -> dict[str, int]:
    """Return the FLOPs of one step, forward and backward, in the parts of `forward_flops`.

    Parameters
    ----------
    m : Transformer
    batch, seq : int
        So many sequences of so many tokens.
    causal : bool
        As for `forward_flops`.
    recompute : {"none", "attention", "selective", "full"}
        What backward computes again. Nothing: 3 times forward. "attention", as FlashAttention does: the scores once
        more, so that attention's backward is 2.5 times its forward. "selective" (Korthikanti et al., 2022,
        arXiv:2205.05198): scores and values once more. "full": everything once more, 4 times forward.

    Returns
    -------
    dict of int

    Raises
    ------
    TypeError, ValueError
        As `forward_flops`, and for a `recompute` that is none of these.

    Examples
    --------
    >>> from refattn.costs import Transformer
    >>> m = Transformer(layers=1, d_model=2, heads=1)
    >>> [m.train_flops(seq=4, recompute=r)["total"] // m.forward_flops(seq=4)["total"] for r in ("none", "full")]
    [3, 4]
    """
    if recompute not in RECOMPUTED:
        raise ValueError(f"train_flops: recompute is {recompute!r}; wanted one of {', '.join(RECOMPUTED)}")
    factors = dict.fromkeys(PARTS, 4 if recompute == "full" else 3)
    if recompute in ("attention", "selective"):
        again = ("scores", "softmax") if recompute == "attention" else ("scores", "softmax", "values")
        factors |= dict.fromkeys(again, 4)
    found = {part: n * factors[part] for part, n in forward_flops(m, batch, seq, 0, causal).items()}
    found["total"] = sum(n for part, n in found.items() if part not in ("softmax", "total"))
    return found


def crossover_length(m: "Transformer", causal: bool = True) -> int | None:
    """Return the shortest length at which scores and values cost as much as the rest of the layers.

    Parameters
    ----------
    m : Transformer
    causal : bool
        As for `forward_flops`.

    Returns
    -------
    int or None
        Tokens; None where that never happens: where all layers have a window or a state.

    Raises
    ------
    ValueError
        For a mask that describes one length only, such as an array.

    Examples
    --------
    >>> from refattn.costs import Transformer
    >>> Transformer(layers=1, d_model=64, heads=1, ffn=256, gated=True).crossover_length(causal=False)  # 8 d_model
    512
    """

    def crossed(seq: int) -> bool:
        found = forward_flops(m, 1, seq, 0, causal)
        mixed = found["scores"] + found["values"]
        return mixed >= found["total"] - found["head"] - mixed

    longest = next((seq for seq in (2**n for n in range(25)) if crossed(seq)), None)
    if longest is None:
        return None
    low, high = longest // 2, longest  # not crossed at low, crossed at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if crossed(middle) else (middle, high)
    return high


# The bytes: see `refattn.costs.memory`, where each of these is derived.
