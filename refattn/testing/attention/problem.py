"""One call of an attention kernel: the arrays, and the options as plain keywords."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.faults import KernelFault
from refattn.testing.formats import decode, encode, storage


def result_dtypes(contract: Contract) -> tuple[np.dtype[Any], ...]:
    """Return the dtypes that results in the contract's format may have: bfloat16 may come as uint16, too."""
    own = storage(contract.dtype, contract.uint16)
    return (own, np.dtype(np.uint16)) if contract.dtype == "bfloat16" else (own,)


@dataclass(frozen=True)
class Problem:
    """q (B, H, Tq, D), k (B, Hk, Tk, D), v (B, Hk, Tk, Dv) in the contract's dtype, and what else the kernel gets."""

    q: Array
    k: Array
    v: Array
    options: Mapping[str, Any] = field(default_factory=dict)
    do: Array | None = None
    """The cotangent of o, for a backward kernel."""
    normal: bool = False
    """Drawn from a standard normal distribution, so that statistics of the error mean something."""
    arrange: Callable[[Array], Array] | None = None
    """How the arrays lie in memory: applied to a fresh copy of each before the call."""

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """Return B, H, Hk, Tq, Tk, D, Dv."""
        B, H, Tq, D = self.q.shape
        return B, H, self.k.shape[1], Tq, self.k.shape[2], D, self.v.shape[3]

    def with_options(self, **options: Any) -> "Problem":
        """Return this problem with some options set anew; None takes an option away."""
        merged = {name: x for name, x in {**self.options, **options}.items() if x is not None}
        return replace(self, options=merged)

    def results(
        self, several: list[Any], contract: Contract
    ) -> dict[str, tuple[tuple[int, ...], tuple[np.dtype[Any], ...]]]:
        """Return name, shape and allowed dtypes of each result; see `refattn.testing.session.Call`."""
        B, H, _, Tq, _, _, Dv = self.sizes
        own = result_dtypes(contract)
        wide = np.dtype(np.float64 if contract.dtype == "float64" else np.float32)
        sums = (wide, np.dtype(np.float64))
        if self.do is None:
            if len(several) not in (1, 2):
                raise KernelFault(f"returned {len(several)} results; wanted o or (o, lse)")
            wanted = {"o": ((B, H, Tq, Dv), own), "lse": ((B, H, Tq), sums)}
            return wanted if len(several) == 2 else {"o": wanted["o"]}
        wanted = {"dq": (self.q.shape, own), "dk": (self.k.shape, own), "dv": (self.v.shape, own)}
        for name, option in (("dbias", "bias"), ("dsinks", "sinks")):
            if option in self.options:
                given = self.options[option]
                wanted[name] = (given.shape, tuple(dict.fromkeys((given.dtype, np.dtype(np.float32), *sums))))
        if len(several) > len(wanted):  # a field for every gradient there could be, None for what was not given
            several[3:] = [x for x in several[3:] if x is not None]
        if len(several) != len(wanted):
            raise KernelFault(f"returned {len(several)} results; wanted {len(wanted)}: {', '.join(wanted)}")
        return wanted

    def arguments(self) -> list[Array]:
        """Return fresh arrays, arranged as the problem wants them: do first for a backward kernel."""
        given = [self.q, self.k, self.v] if self.do is None else [self.do, self.q, self.k, self.v]
        copies = [x.copy() for x in given]
        return copies if self.arrange is None else [self.arrange(x) for x in copies]

    def fresh_options(self) -> dict[str, Any]:
        """Return the options with their arrays copied, so that a kernel that writes to one spoils nothing."""
        return {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in self.options.items()}


def problem(
    contract: Contract,
    q: Any,
    k: Any,
    v: Any,
    *,
    do: Any = None,
    normal: bool = False,
    arrange: Callable[[Array], Array] | None = None,
    **options: Any,
) -> Problem:
    """Return a problem with the arrays rounded to the contract's dtype, its `always` options included."""

    def coded(x: Any) -> Array:
        x = np.asarray(x)
        return (
            x if x.dtype == np.uint16 or x.dtype.name == contract.dtype else encode(x, contract.dtype, contract.uint16)
        )

    given = {name: x for name, x in options.items() if x is not None}
    merged = {name: x for name, x in {**contract.always, **given}.items() if x is not None}
    for name in ("bias", "alibi_slopes", "sinks", "dlse"):
        if name in merged:
            wide = np.float64 if contract.dtype == "float64" else np.float32
            merged[name] = np.asarray(merged[name], wide)
    for name in ("seqlens_k",):
        if name in merged:
            merged[name] = np.asarray(merged[name], np.int32)
    return Problem(coded(q), coded(k), coded(v), merged, None if do is None else coded(do), normal, arrange)


def wide_arrays(p: Problem, contract: Contract, wide: Any = np.float64) -> tuple[Array, Array, Array]:
    """Return q, k, v as the numbers that they stand for, k and v with a copy for each query head."""
    H = p.q.shape[1]
    group = H // p.k.shape[1]
    q, k, v = (decode(x, contract.dtype, wide) for x in (p.q, p.k, p.v))
    return q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
