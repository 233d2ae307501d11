"""What a service promises, and whether it keeps it: yes, no, or not told by the simulation."""

from typing import Any, NamedTuple

from refattn.arrays import check_number
from refattn.costs.names import unknown
from refattn.costs.rehearsal import Figure, Simulated
from refattn.costs.units import duration, three


class Slo(NamedTuple):
    """What is promised, in seconds; None where nothing is."""

    ttft_p50: float | None = None
    ttft_p95: float | None = None
    """From arrival to the first token, of 95 % of the requests."""
    tpot_p50: float | None = None
    tpot_p95: float | None = None
    """From token to token after the first, averaged over a request."""

    @classmethod
    def of(cls, given: Any) -> "Slo":
        """Return an Slo from one, a dict, or None; TypeError, ValueError or LookupError for what is none."""
        if given is None or isinstance(given, cls):
            found = cls() if given is None else given
        elif isinstance(given, dict):
            for name in given:
                if name not in cls._fields:
                    raise unknown("promise", name, cls._fields)
            found = cls(**given)
        else:
            raise TypeError(f"serve_plan: slo is {type(given).__name__}; wanted an Slo or a dict")
        for name, x in found.named().items():
            check_number("serve_plan", f"slo {name}", x, above=0)
        return found

    def named(self) -> dict[str, float]:
        """Return what is promised, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}


def label(name: str) -> str:
    """Return what a promise is called.

    Examples
    --------
    >>> label("ttft_p95")
    'TTFT p95'
    """
    what, _, percentile = name.partition("_")
    return f"{what.upper()} {percentile}"


def verdict(
    rate: float, capacity: Figure, simulated: Simulated | None, slo: Slo, highest: Figure | None
) -> tuple[bool | None, str]:
    """Return whether all that is promised is kept, None if that is not told or nothing is promised, and it in words."""
    promised = slo.named()
    if simulated is None:
        most = f"{three(capacity.value)} can be served (simulated, {three(capacity.low)} to {three(capacity.high)})"
        text = f"Unstable: {rate:g} requests/s are asked and {most}; the queue grows without end."
        return (False if promised else None), text + _highest(highest)
    if not promised:
        return None, f"{rate:g} requests/s: {rate / capacity.value:.0%} of what can be served; nothing is promised."
    states: dict[bool | None, list[str]] = {True: [], None: [], False: []}
    for name, limit in promised.items():
        found = getattr(simulated, name)
        if found is None:
            states[True].append(f"no {label(name)}, as outputs are of one token")
            continue
        kept = True if found.high <= limit else False if found.low > limit else None
        span = f"simulated, {duration(found.low)} to {duration(found.high)}"
        states[kept].append(f"{label(name)} {duration(found.value)} ({span}), promised {duration(limit)}")
    rates = _highest(highest)
    if states[False]:
        return False, f"Missed at {rate:g} requests/s: {'; '.join(states[False])}.{rates}"
    if states[None]:
        return None, f"Too close to tell at {rate:g} requests/s: {'; '.join(states[None])}.{rates}"
    return True, f"Kept at {rate:g} requests/s: {'; '.join(states[True])}.{rates}"


def _highest(rate: Figure | None) -> str:
    if rate is None:
        return ""
    if not rate.value:
        return " No rate keeps all that is promised."
    return f" It is kept up to {three(rate.value)} requests/s ({three(rate.low)} to {three(rate.high)})."
