"""What does a kernel do? Probe it, and write down the contract that it keeps; see `infer_contract`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refattn.testing.attention.draw import Draw
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.problem import problem
from refattn.testing.attention.xray import seen_by
from refattn.testing.contract import ATTENTION_OPTIONS, Contract
from refattn.testing.faults import KernelFault
from refattn.testing.probe import SIZE, Probe
from refattn.testing.session import TIMEOUT, Session
from refattn.testing.undeclared import LIKELY, declarations

PACKED = ("cu_seqlens_q", "cu_seqlens_k")
FEW_KEYS = (2, 4, 4, 40, 24, 32)
"""More queries than keys: a causal mask that is aligned with the last key hides all of them from the first queries."""


@dataclass(frozen=True)
class Inference:
    """A contract that a kernel keeps on the probes, and how that was seen."""

    contract: Contract
    findings: list[tuple[str, Any, str]] = field(default_factory=list)
    """Field of the contract, its value, and what showed it."""
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Field of the contract, and why nothing is known."""

    def described(self) -> dict[str, Any]:
        """Return the contract's fields that are not the defaults."""
        return self.contract.described()

    def __str__(self) -> str:
        rows = [(name, repr(value), why) for name, value, why in self.findings]
        rows += [(name, "?", why) for name, why in self.unknown]
        widths = [max((len(row[n]) for row in rows), default=0) for n in (0, 1)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def infer_contract(
    kernel: Callable[..., Any], dtype: str = "float32", *, timeout: float = TIMEOUT, seed: int = 0
) -> Inference:
    """Probe an attention kernel for the contract that it keeps.

    Looked for: layout, scale, whether it is always causal, how a causal mask is aligned, what a window counts, the
    order of soft cap and bias, the base of lse and what it holds, what rows return that see nothing, grouped heads, the
    precision of P and of the products, whether calls repeat.

    Parameters
    ----------
    kernel : callable
        (q, k, v, **options) -> o or (o, lse).
    dtype : str
        Of the arrays that it gets.
    timeout : float
        Seconds that one call may take.
    seed : int
        Of the probes.

    Returns
    -------
    Inference
        Its `contract` is ready for `check`; printed, it says what was seen, and what could not be found out.

    Raises
    ------
    TypeError
        If the kernel cannot be called.
    ValueError
        For a dtype that the kit does not know.

    Examples
    --------
    >>> from refattn import attention, masks
    >>> def kernel(q, k, v, *, causal=False):
    ...     return attention(q, k, v, mask=masks.causal(0) if causal else None)
    >>> infer_contract(kernel).contract.causal
    'top_left'
    """
    if not callable(kernel):
        raise TypeError(f"infer_contract: kernel is {type(kernel).__name__}; wanted something to call")
    probe = Probe(kernel, dtype, timeout, seed)
    if _layout_and_scale(probe):
        options = probe.session(probe.contract).contract.options or ()
        probe.found.append(("options", options, "named in the signature"))
        _masks(probe, options)
        _lse(probe, options)
        _heads(probe)
        if {"softcap", "bias"} <= set(options):
            bias = np.random.default_rng(5).standard_normal((1, 4, 24, 40)) * 2
            loose = probe.choices("softcap", "before_bias", "after_bias")
            probe.first("softcap", loose, softcap=1.5, bias=bias)
        for name, look in (("p", _precision), ("deterministic", _repeats)):
            try:
                look(probe)
            except KernelFault as fault:
                probe.unknown.append((name, str(fault)))
    return Inference(probe.contract, probe.found, probe.unknown)


def _layout_and_scale(probe: Probe) -> bool:
    """Find the layout, and with it the scale and whether the kernel is always causal: each moves o."""
    faults = []
    layouts = ["packed"] if _names(probe.kernel, PACKED) else ["paged"] if _names(probe.kernel, ("page_table",)) else []
    for layout in [*layouts, "bhtd", "bthd"]:
        for scale in ("1/sqrt(D)", "1", "1/D"):
            for causal in (None, "bottom_right", "top_left"):
                always = {"causal": True} if causal else {}
                contract = replace(
                    probe.contract, layout=layout, default_scale=scale, always=always, causal=causal or "bottom_right"
                )
                text = probe.wrong(replace(contract, blind_rows="any", lse=None))
                if text is None:
                    probe.contract = contract
                    probe.found.append(("layout", layout, "o is right within a bound of bfloat16"))
                    probe.found.append(("default_scale", scale, "o is right within a bound of bfloat16"))
                    if causal:
                        probe.found.append(("always", always, f"o is that of a causal mask, {causal}"))
                        probe.found.append(("causal", causal, "o is right within a bound of bfloat16"))
                    return True
                faults.append(f"{layout}: {text}")
                if probe.hung:
                    probe.unknown.append(("layout", faults[-1]))
                    return False
    probe.unknown.append(("layout", f"no layout and scale fit; {faults[0][:160]}"))
    return False


def _names(kernel: Callable[..., Any], wanted: tuple[str, ...]) -> bool:
    return (
        bool(Contract().with_options_of(kernel, wanted).options)
        and not Contract().with_options_of(kernel, ("refattn_takes_anything",)).options
    )


def _masks(probe: Probe, options: tuple[str, ...]) -> None:
    loosened = {"blind_rows": "any", "lse": None}
    windowed: dict[str, Any] = {"window": (5, 0)} | ({"causal": True} if "causal" in options else {})
    for name, values, given in (
        ("causal", ("bottom_right", "top_left"), {"causal": True}),
        ("window", ("sides", "total"), windowed),
    ):
        if name in options:
            probe.first(name, probe.choices(name, *values, **loosened), **given)
            probe.contract = replace(probe.contract, blind_rows="zero", lse="natural")
    blind = _blind(probe, options)
    if blind is None:
        probe.unknown.append(("blind_rows", "no option can hide every key of a query"))
        return
    size, given = blind
    probe.first("blind_rows", probe.choices("blind_rows", "zero", "nan", "mean", "any", lse=None), size, **given)
    probe.contract = replace(probe.contract, lse="natural")


def _blind(probe: Probe, options: tuple[str, ...]) -> tuple[tuple[int, ...], dict[str, Any]] | None:
    """Return the size and the options of a call in which some query sees nothing."""
    if "mask" in options:
        mask = np.ones((1, 1, 24, 40), bool)
        mask[:, :, ::4] = False
        return SIZE, {"mask": mask}
    if "seqlens_k" in options:
        return SIZE, {"seqlens_k": [0, 40]}
    if {"causal", "q_offset"} <= set(options):
        return SIZE, {"causal": True, "q_offset": -7}
    if "causal" in (*options, *probe.contract.always) and probe.contract.causal == "bottom_right":
        return FEW_KEYS, {"causal": True}
    return None


def _lse(probe: Probe, options: tuple[str, ...]) -> None:
    try:
        returned = probe.call(probe.problem(probe.contract), probe.contract).parts
    except KernelFault as fault:
        probe.unknown.append(("lse", str(fault)))
        return
    if "lse" not in returned:
        probe.note("lse", None, "the kernel returns o alone")
        return
    if not probe.first("lse", probe.choices("lse", "natural", "base2")):
        probe.contract = replace(probe.contract, lse=None)  # it is something else: not judged
        return
    if "sinks" in options:
        probe.first("lse_sinks", probe.choices("lse_sinks", True, False), sinks=[1.0, 2.0, 3.0, 2.5])
    blind = _blind(probe, options)
    if blind is not None:
        size, given = blind
        probe.first("lse_blind", probe.choices("lse_blind", "-inf", "+inf", "any"), size, **given)


def _heads(probe: Probe) -> None:
    text = probe.wrong(replace(probe.contract, gqa=True), (2, 4, 2, 24, 40, 32))
    why = "4 query heads read 2 key heads" if text is None else f"2 key heads for 4 query heads: {text}"[:140]
    probe.note("gqa", text is None, why)


def _precision(probe: Probe) -> None:
    """Find the narrowest precision that describes the error, and not merely allows it."""
    contract = probe.contract
    p = probe.problem(contract, (2, 8, 8, 60, 200, 64))
    output = probe.call(p, contract)
    wide = replace(contract, p="float64" if contract.dtype == "float64" else "float32")
    for what, other in [("P as accumulated", wide), ("P in the dtype of q", contract), *declarations(contract)]:
        findings = judge(analyse(p, other), output, other)
        rms = findings.figures.get("z_rms", np.inf)
        limit = LIKELY[1] if contract.dtype in ("float16", "bfloat16") or other is not wide else 4.0
        if not findings.wrong and not findings.suspect and LIKELY[0] < rms < limit:
            probe.contract = other
            probe.found.append(("p", other.numerics["p"], f"{what}: the error is {rms:.2f} times what that predicts"))
            return
    probe.unknown.append(("p", "the error is not that of any precision the kit knows"))


def _repeats(probe: Probe) -> None:
    session, p = probe.session(probe.contract), probe.problem(probe.contract)
    bits = {probe.call(p, probe.contract, session).bits("o").tobytes() for _ in range(4)}
    probe.note("deterministic", len(bits) == 1, f"{len(bits)} different results of 4 calls")


def xray(
    kernel: Callable[..., Any], contract: Contract | None = None, Tq: int = 64, Tk: int = 64, **options: Any
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the effective mask of a kernel: which query sees which key.

    All weights are made equal (q = 0) and each value names its key, so that o says which keys were seen; see
    `refattn.testing.attention.xray`.

    Parameters
    ----------
    kernel : callable
        (q, k, v, **options) -> o or (o, lse).
    contract : Contract, optional
        For its dtype, layout and `always`; float32 unless given.
    Tq, Tk : int
        How many queries and keys.
    **options
        What the kernel gets besides, such as causal=True.

    Returns
    -------
    bool array, (Tq, Tk)
        Of the first head of the first sequence.

    Raises
    ------
    KernelFault
        If the kernel raises, hangs, or returns no result.

    Examples
    --------
    >>> from refattn import attention, masks
    >>> xray(lambda q, k, v: attention(q, k, v, mask=masks.causal()), Tq=2, Tk=3).astype(int)
    array([[1, 1, 0],
           [1, 1, 1]])
    """
    contract = Contract() if contract is None else contract
    if contract.layout != "bhtd":
        from refattn.testing.adapters.layouts import from_layout

        kernel = from_layout(kernel, contract.layout)
    contract = contract.with_options_of(kernel, ATTENTION_OPTIONS)
    contract = replace(contract, options=tuple(dict.fromkeys([*(contract.options or ()), *options])))
    draw = Draw(np.random.default_rng(0), contract)
    q, k, v = draw.qkv(1, 1, 1, Tq, Tk)
    return np.asarray(seen_by(Session(kernel, contract), problem(contract, q, k, v, **options))[0, 0, :Tq, :Tk])
