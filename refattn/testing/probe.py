"""Ask a kernel one question at a time: what is wrong under this contract?"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.testing.attention.draw import Draw
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.problem import Problem, problem
from refattn.testing.contract import ATTENTION_OPTIONS, Contract
from refattn.testing.faults import KernelFault
from refattn.testing.session import Hang, Output, Session, captured_output

SIZE = (2, 4, 4, 24, 40, 32)
"""B, H, Hk, Tq, Tk, D of a probe: keys and queries differ in number, so that the alignment of a mask shows."""
ROUGH: dict[str, Any] = {"products": "bfloat16", "out": "bfloat16"}
"""What the meaning is judged in, so that it shows whatever the precision is: mistakes of meaning are much larger."""
IMPATIENT = 1.0
"""Seconds that a call may take once the kernel has hung."""


class Probe:
    """One kernel, and the contract as far as it is known."""

    def __init__(self, kernel: Callable[..., Any], dtype: str, timeout: float, seed: int) -> None:
        self.kernel, self.timeout, self.seed, self.hung = kernel, timeout, seed, False
        self.contract = Contract(dtype=dtype)
        self.found: list[tuple[str, Any, str]] = []
        """Field of the contract, its value, and what showed it."""
        self.unknown: list[tuple[str, str]] = []
        """Field of the contract, and why nothing is known."""

    def note(self, name: str, value: Any, why: str) -> None:
        """Write down one field of the contract."""
        self.contract = replace(self.contract, **{name: value})
        self.found.append((name, value, why))

    def session(self, contract: Contract) -> Session:
        """Return a session with the kernel under a contract, in the contract's layout."""
        kernel = self.kernel
        if contract.layout != "bhtd":
            from refattn.testing.adapters.layouts import from_layout

            kernel = from_layout(kernel, contract.layout)
        timeout = min(self.timeout, IMPATIENT) if self.hung else self.timeout
        return Session(kernel, contract.with_options_of(kernel, ATTENTION_OPTIONS), self.seed, timeout)

    def problem(self, contract: Contract, size: tuple[int, ...] = SIZE, **options: Any) -> Problem:
        """Return a standard normal problem."""
        draw = Draw(np.random.default_rng([77, self.seed]), contract)
        return problem(contract, *draw.qkv(*size), normal=True, **options)

    def call(self, p: Problem, contract: Contract, session: Session | None = None) -> Output:
        """Call the kernel; raise KernelFault if that gives no result."""
        try:
            with captured_output():
                return (session or self.session(contract)).call(p)
        except Hang:
            self.hung = True
            raise

    def wrong(self, contract: Contract, size: tuple[int, ...] = SIZE, **options: Any) -> str | None:
        """Return what is wrong under a contract, or None."""
        p = self.problem(contract, size, **options)
        try:
            output = self.call(p, contract)
        except KernelFault as fault:
            return str(fault)
        rough = replace(contract, **ROUGH)
        findings = judge(analyse(p, rough), output, rough)
        return findings.wrong[0] if findings.wrong else None

    def first(
        self, name: str, candidates: Iterable[tuple[Any, Contract]], size: tuple[int, ...] = SIZE, **options: Any
    ) -> bool:
        """Note the first candidate under which nothing is wrong."""
        last = "no probe was made"
        for value, contract in candidates:
            text = self.wrong(contract, size, **options)
            if text is None:
                self.contract = contract
                self.found.append((name, value, f"o is right within a bound of bfloat16 with {_said(options)}"))
                return True
            last = text
        self.unknown.append((name, f"nothing fits: {last[:140]}"))
        return False

    def choices(self, name: str, *values: Any, **loosened: Any) -> list[tuple[Any, Contract]]:
        """Return each value of a field with the contract that has it."""
        return [(value, replace(self.contract, **{name: value}, **loosened)) for value in values]


def _said(options: dict[str, Any]) -> str:
    plain = [name if not isinstance(x, int | float | tuple) else f"{name}={x}" for name, x in options.items()]
    return ", ".join(plain) or "no options"
