"""What a device can serve: how many requests at once, how fast each gets its tokens, how many a second keep a promise.

Closed forms first, then a simulation of the same engine, whose percentiles no formula gives. See `engine` for what a
pass takes, `steady` for the formulas, `simulation` for how passes are scheduled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refattn.arrays import check_count, check_number
from refattn.costs.engine import Device, Serving
from refattn.costs.lengths import Lengths
from refattn.costs.prediction import SLOWEST
from refattn.costs.promises import Slo, verdict
from refattn.costs.rehearsal import Figure, Rehearsal, Simulated
from refattn.costs.steady import Forms, Row, Steady
from refattn.costs.transformer import Transformer
from refattn.costs.units import duration, size

OUTPUT = 128
"""Tokens of an answer, unless given."""


@dataclass(frozen=True)
class Plan:
    """What `serve_plan` found; print it, or read its fields."""

    serving: Serving
    prompts: Lengths
    output: Lengths
    rate: float
    """Requests a second, as asked."""
    slo: Slo
    fits: bool
    needed: int
    """Devices that hold the weights and one request of mean length."""
    concurrency: int
    """floor((u·M - W - activations) / bytes kept) at mean length."""
    concurrency_p95: int
    """The same where prompt and output are both at their 95th percentile."""
    rows: list[Row]
    capacity: Figure | None
    """Requests a second that can be sustained: simulated, out of a queue that never ends."""
    capacity_formula: float
    """The same by formula."""
    steady: Steady | None
    """By formula at the rate; None where it is beyond the formula's capacity."""
    simulated: Simulated | None
    """At the rate; None where it does not fit or is unstable."""
    highest: Figure | None
    """The highest rate that keeps the SLO; 0 if none does; None if nothing is promised."""
    meets: bool | None
    """Whether the SLO is kept; None where the intervals do not tell, or nothing is promised."""
    verdict: str
    assumptions: list[str]

    @property
    def kind(self) -> str:
        """Of times and rates by formula: "bound" by the roofs, or "predicted" where a part of them is reached."""
        return "bound" if self.serving.efficiency == 1 else "predicted"

    @property
    def span(self) -> tuple[float, float]:
        """How many times a time by formula it may be: from the roofs to where slow kernels stand, 0.35 of them."""
        reached = self.serving.efficiency
        return reached, max(1.0, reached / SLOWEST)

    @property
    def load(self) -> float | None:
        """The rate as a share of the capacity."""
        return None if self.capacity is None or not self.capacity.value else self.rate / self.capacity.value

    def __str__(self) -> str:
        lines = [self.verdict]
        for row in self.rows:
            speed = f"{duration(row.tpot)} a token, {row.tokens_per_second:,.0f} tokens/s, bound by {row.bound_by}"
            lines.append(f"{row.batch:>5,} running: {speed}")
        return "\n".join(lines)


def serve_plan(
    m: Transformer,
    *,
    on: Device,
    lengths: Any,
    requests_per_second: float,
    slo: Any = None,
    output: Any = OUTPUT,
    dtype: str = "bfloat16",
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    devices: int = 1,
    utilisation: float = 0.9,
    efficiency: float = 1.0,
    activations: int | None = None,
    max_batch: int = 256,
    pass_tokens: int = 8192,
    requests: int = 1000,
    seeds: int = 5,
    tick: Callable[[str, float], None] | None = None,
) -> Plan:
    """Plan a service.

    Parameters
    ----------
    m : Transformer
    on : Hardware, or anything with `rate(dtype)`, `bandwidth`, `memory`
    lengths : Lengths, or what `Lengths.of` takes
        Tokens of the prompts.
    requests_per_second : float
        Poisson arrivals.
    slo : Slo or dict, optional
        What is promised, in seconds: ``ttft_p50``, ``ttft_p95``, ``tpot_p50``, ``tpot_p95``.
    output : Lengths, or what `Lengths.of` takes
        Tokens of the answers, drawn apart from the prompts.
    dtype : str
        Of products and activations.
    weight_dtype, kv_dtype : str, optional
        Of what is kept; dtype unless given.
    devices : int
        Rates and memory count so many times; what devices tell each other is not modelled.
    utilisation : float
        The share of memory that may be used.
    efficiency : float
        The share of the rates of `on` that is reached; at 1, times are bounds.
    activations : int, optional
        Bytes of a pass, where they are known better than `Serving.activations` estimates them.
    max_batch, pass_tokens : int
        Requests that may run at once; tokens of one prefill pass.
    requests, seeds : int
        The simulation's requests of one run, at least, and its runs.
    tick : callable, optional
        Takes what is being done and the share done.

    Returns
    -------
    Plan
        What does not fit, or is asked too often, is a plan that says so.

    Raises
    ------
    TypeError, ValueError, LookupError
        For numbers that are none, lengths that cannot be read, unknown dtypes and promises.

    Examples
    --------
    >>> from refattn.costs.hardware import hardware
    >>> from refattn.costs.presets import preset
    >>> plan = serve_plan(preset("llama-3-70b"), on=hardware("h100-sxm"), lengths=1000, requests_per_second=1)
    >>> print(plan)
    llama-3-70b does not fit on 1 × h100-sxm: weights of 131 GiB and activations of 1.37 GiB, of 67.1 GiB; it needs 2
    """
    promised, prompts, answers = Slo.of(slo), Lengths.of(lengths), Lengths.of(output)
    check_number("serve_plan", "requests_per_second", requests_per_second, above=0)
    check_count("serve_plan", "requests", requests, least=100)
    check_count("serve_plan", "seeds", seeds, least=2)
    longest = prompts.largest + answers.largest
    serving = Serving(
        m, on, longest, devices, dtype, weight_dtype, kv_dtype, utilisation, efficiency, max_batch, pass_tokens,
        activations,
    )  # fmt: skip
    forms = Forms(serving, prompts, answers)
    rate, report = float(requests_per_second), tick or (lambda text, share: None)
    capacity = simulated = highest = None
    if forms.limit < 1:
        meets, said = (False if promised.named() else None), _no_room(serving, forms)
    else:
        rehearsal = Rehearsal(serving, prompts, answers, requests, seeds)
        report("the capacity", 0.0)
        capacity = rehearsal.capacity(forms.limit)
        if rate < capacity.value:
            report(f"{rate:g} requests/s", 0.1)
            simulated = rehearsal.at(rate, forms.limit)
        if promised.named():
            highest = rehearsal.highest(
                promised.named(), capacity.value, forms.limit, lambda done: report("other rates", 0.2 + 0.8 * done)
            )
        meets, said = verdict(rate, capacity, simulated, promised, highest)
    return Plan(
        serving=serving,
        prompts=prompts,
        output=answers,
        rate=rate,
        slo=promised,
        fits=forms.limit > 0,
        needed=forms.needed,
        concurrency=forms.concurrency,
        concurrency_p95=forms.concurrency_p95,
        rows=forms.rows() if forms.limit else [],
        capacity=capacity,
        capacity_formula=forms.capacity,
        steady=forms.steady(rate) if forms.limit else None,
        simulated=simulated,
        highest=highest,
        meets=meets,
        verdict=said,
        assumptions=_assumptions(serving, 0.0 if simulated is None else simulated.rejected),
    )


def _no_room(s: Serving, forms: Forms) -> str:
    name = f"{s.m.name or 'the model'} does not fit on {s.devices} × {s.on.name}"
    parts = f"weights of {size(s.weights)} and activations of {size(s.activations)}"
    if s.room >= 0:
        parts += f" leave {size(s.room)} for caches of {size(forms.reserved)} each"
    usable = s.utilisation * s.devices * s.on.memory
    return f"{name}: {parts}, of {size(usable)}; it needs {forms.needed}"


def _assumptions(s: Serving, rejected: float) -> list[str]:
    """Return what the numbers rest on."""
    whole = f"all that {s.on.name} can do is reached; real engines are slower"
    found = [
        whole if s.efficiency == 1 else f"{s.efficiency:.0%} of what {s.on.name} can do is reached",
        f"{s.utilisation:.0%} of memory may be used; activations of a pass are estimated",
        "arrivals are Poisson; prompts and outputs are drawn independently of each other",
        "a request's cache is reserved at its full length when it is admitted; nothing is evicted, no prefix is shared",
        f"a prefill pass takes up to {s.pass_tokens:,} tokens, whole prompts, while decoding stands still",
        f"at most {s.max_batch:,} requests run at once",
    ]
    if rejected:
        found.append(f"{rejected:.2%} of the requests are refused: not even alone do they fit into memory")
    if s.devices > 1:
        found.append(f"{s.devices} devices are {s.devices} times as fast as one; communication is not modelled")
    if s.devices > s.m.kv and any(x.softmax for x in s.m.mechanism):
        found.append(f"{s.m.kv} key heads are split over {s.devices} devices; engines keep copies instead")
    if s.m.positions and s.longest > s.m.positions:
        found.append(f"the model has {s.m.positions:,} positions, and lengths go up to {s.longest:,}: it needs others")
    if s.m.experts is not None:
        found.append("tokens choose experts evenly and independently")
    return found
