"""What a profile means: Amdahl's bound on every change to attention, and what the bottleneck is if it is not that."""

from typing import TYPE_CHECKING

from refattn.costs.units import three

if TYPE_CHECKING:
    from refattn.watch.profile import Profile

WORTH = 1.1
"""Below this factor attention is not the bottleneck."""
MIXING = ("attention", "scan")


def limit(share: float) -> float:
    """Return how many times faster everything gets if a share of it takes no time.

    Examples
    --------
    >>> limit(0.5)
    2.0
    """
    return 1 / max(1 - share, 1e-12)


def amdahl(profile: "Profile") -> str:
    """Return the verdict in words, with the quartiles of the share over the rounds."""
    share, low, high = profile.attention_share
    mixing = {part.component: part.seconds for part in profile.parts if part.component in MIXING}
    name = max(mixing, key=lambda component: mixing[component], default="attention")
    kind = "predicted for all layers" if len(profile.network.layers) < profile.network.whole else "measured"
    said = f"{name} is {share:.0%} of the time ({kind}, {low:.0%} to {high:.0%})"
    bound = f"no change to it can give more than {three(limit(share))}×"
    others = [part for part in profile.parts if part.component not in MIXING]
    largest = max(others, key=lambda part: part.share, default=None)
    if limit(share) >= WORTH or largest is None:
        return f"{said}: {bound}"
    return f"{said}: {bound}; it is not the bottleneck, {largest.component} is ({largest.share:.0%})"
