"""The masks of `refattn report`: those of the model, and for comparison what others hide, drawn and counted."""

import re
from typing import NamedTuple

from refattn import masks
from refattn.cli.cost_model import Asked
from refattn.costs.mechanisms import Softmax
from refattn.costs.pairs import pairs, tile_pairs
from refattn.masks import Mask
from refattn.masks.svg import STYLE

LONGEST = 16_384
"""Tokens of a picture; what is longer is drawn and counted at this length."""
SIDE = 128
"""Of the tiles."""

__all__ = ["LONGEST", "SIDE", "STYLE", "Seen", "picture", "seen"]


class Seen(NamedTuple):
    """A mask, counted."""

    title: str
    mask: Mask | None
    """None: every pair."""
    own: bool
    """Whether it is one of the model's."""
    tokens: int
    pairs: int
    tiled: int
    """Pairs in tiles that show any."""
    growth: float
    """pairs of twice as many tokens / pairs."""

    @property
    def share(self) -> float:
        """Of all pairs."""
        return self.pairs / self.tokens**2


def seen(asked: Asked) -> list[Seen]:
    """Return the model's masks first, then others."""
    n = min(asked.seq, LONGEST)
    found: dict[str, Seen] = {}
    for mechanism in dict.fromkeys(asked.model.mechanism):
        if not mechanism.softmax:
            continue
        call = asked.model.call(1, n, 0, asked.causal)
        mask = mechanism.visible(call) if isinstance(mechanism, Softmax) else masks.causal() if asked.causal else None
        layers = asked.model.mechanism.count(mechanism)
        title = f"this model: {layers} of {asked.model.layers} layers"
        found.setdefault(repr(mask), _counted(title, mask, True, n))
    width, block = max(1, min(256, n // 8)), max(1, min(64, n // 16))
    for title, mask in (
        ("every pair", None),
        ("causal", masks.causal()),
        (f"causal window of {width}", masks.causal() & masks.window(width - 1, 0)),
        (f"Longformer: {width} to both sides, 1 global token", masks.longformer(width, [0])),
        (f"BigBird: blocks of {block}", masks.bigbird(block)),
    ):
        found.setdefault(repr(mask), _counted(title, mask, False, n))
    return list(found.values())


def _counted(title: str, mask: Mask | None, own: bool, n: int) -> Seen:
    count = pairs(mask, n, n)
    return Seen(title, mask, own, n, count, tile_pairs(mask, n, n, SIDE, SIDE), pairs(mask, 2 * n, 2 * n) / count)


def picture(one: Seen) -> str:
    """Return a mask as SVG that stands in a page with `STYLE`; "" for every pair."""
    if one.mask is None:
        return ""
    text = one.mask.svg(one.tokens, one.tokens, 300)
    text = re.sub(r"<style>.*?</style>\n?", "", text, flags=re.DOTALL)
    return re.sub(r' xmlns="[^"]+"| width="300" height="\d+"', "", text, count=2)
