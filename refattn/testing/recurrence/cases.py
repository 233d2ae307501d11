"""The curated problems of the linear-time family: each aims at a way in which kernels have been wrong.

A case is one recipe for many operations; its id is "operation/name". It is reproducible from id and seed.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.recurrence.draw import Draw
from refattn.testing.recurrence.family import FAMILIES
from refattn.testing.recurrence.problem import Problem, problem

Arrays = dict[str, Array]
Build = Callable[[Draw, Arrays, dict[str, Any]], object]
"""Changes the usual arrays and the options of a problem in place."""


@dataclass(frozen=True)
class Case:
    """One curated problem for every operation that takes what it needs."""

    name: str
    build: Build
    sizes: dict[str, int]
    needs: tuple[str, ...] = ()
    """The options that it passes."""
    ops: tuple[str, ...] | None = None
    """The operations that it is for; all unless given."""
    args: tuple[str, ...] = ()
    """Arguments that the operation must have."""
    level: str = "quick"
    normal: bool = True
    """Whether statistics of the error mean something."""
    scored: bool = False
    """Whether score tests are made of it."""
    features: tuple[str, ...] = ()
    dirty: bool = False
    """Whether a call with large values comes first, to leave something in the kernel's workspace."""

    def suits(self, op: str) -> bool:
        """Say whether there is such a problem for an operation."""
        if self.ops is not None and op not in self.ops:
            return False
        return all(FAMILIES[op].takes(name) for name in (*self.needs, *self.args))

    def problem(self, contract: Contract, seed: int) -> Problem:
        """Return the call: the same for the same seed, on every machine."""
        rng = np.random.default_rng([zlib.crc32(f"{contract.op}/{self.name}".encode()), seed])
        draw = Draw(rng, contract, FAMILIES[contract.op], self.sizes)
        arrays, options = draw.arrays(), {}  # type: tuple[Arrays, dict[str, Any]]
        self.build(draw, arrays, options)
        arrange = options.pop("arrange", None)
        return problem(
            contract, contract.op, arrays, normal=self.normal, scored=self.scored, arrange=arrange, **options
        )

    def loud(self, p: Problem, contract: Contract) -> Problem:
        """Return the call that comes before a dirty case."""
        other = replace(self, build=lambda x, a, o: _times(a, p.family.tokens, 8.0), dirty=False)
        return other.problem(contract, 12345)


CASES: dict[str, Case] = {}
GATED = ("retention", "simple_gla", "gated_linear_attention", "gated_delta_rule", "kda", "rwkv6", "rwkv7")
DELTAS = ("delta_rule", "gated_delta_rule", "kda")
SUMS = ("retention", "simple_gla", "gated_linear_attention")
KEYED = ("linear_attention", *SUMS, *DELTAS)


def case(name: str, build: Build | None = None, *needs: str, sizes: str = "", **fields: Any) -> None:
    """Enter a case; sizes are written as "T=130 D=32"."""
    if name in CASES:
        raise ValueError(f"there is a case {name!r} already")
    read = {word.split("=")[0]: int(word.split("=")[1]) for word in sizes.split()}
    fields.setdefault("scored", name.startswith("normal"))
    CASES[name] = Case(name, build or (lambda x, a, o: None), read, needs, **fields)


def put(**values: Any) -> Build:
    """Return a change that fills whole arrays with a number."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        for name, value in values.items():
            a[name] = np.full_like(a[name], value)

    return build


def options(**values: Any) -> Build:
    """Return a change that sets options: a function of the draw makes its value, the name of an array draws it."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        for name, value in values.items():
            o[name] = x.like(name) if value is like else value(x) if callable(value) else value

    return build


def like() -> None:
    """Stand for numbers as an option usually holds."""


def states(x: Draw) -> Any:
    """Return initial states."""
    return x.states()


def each(*builds: Build) -> Build:
    """One change after the other."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        for one in builds:
            one(x, a, o)

    return build


def _times(a: Arrays, names: tuple[str, ...], factor: float) -> None:
    for name in names:
        a[name] = a[name] * factor


def _scaled(names: str, factor: float) -> Build:
    return lambda x, a, o: _times(a, tuple(name for name in names.split() if name in a), factor)


def _normal() -> None:
    """Problems as networks have them."""
    long = "T=130 D=32 W=32 P=32 H=4 B=1"
    case("normal", sizes=long)
    case("normal_grouped", sizes="T=70 H=4 G=2 V=2", ops=KEYED, features=("gqa",))
    case("normal_values", sizes="T=70 H=2 G=2 V=4", ops=KEYED, features=("gqa",))
    case("normal_groups", sizes="T=70 H=4 G=2", ops=("ssd",), features=("gqa",))
    case("normal_scale", options(scale=0.23), "scale", sizes="T=70")
    case("normal_initial", options(initial_state=states), "initial_state", sizes="T=70")
    case(
        "normal_initial_grouped",
        options(initial_state=states),
        "initial_state",
        sizes="T=20 H=4 G=2 V=2",
        ops=KEYED,
        features=("gqa",),
    )
    case("normal_sums", options(normalize=False, initial_state=states), "normalize", "initial_state", sizes="T=70")
    case("normal_long", sizes="T=600 B=1", level="standard")
    case("normal_very_long", sizes="T=4100 B=1 H=1", level="deep", scored=False)
    case("normal_wide", sizes="T=70 D=64 W=64 P=64 B=1", level="standard")
    case("wide", sizes="T=20 D=96 W=80 P=80 N=40 E=150 H=1 B=1", features=("value_dims",))
    borders = (0, 0, 37, 37, 38, 101, 130, 130)

    def packed(initial: bool) -> Build:
        def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
            o["cu_seqlens"] = [min(n, x.sizes["T"]) for n in borders]
            if initial:
                o["initial_state"] = x.states(sequences=len(borders) - 1)

        return build

    fields: dict[str, Any] = {"sizes": "T=130 B=1", "features": ("empty",)}
    case("packed", packed(False), "cu_seqlens", **fields)
    case("packed_initial", packed(True), "cu_seqlens", "initial_state", **fields)
    case("packed_loud", each(packed(False), _early(40)), "cu_seqlens", normal=False, **fields)


def _early(stop: int) -> Build:
    """Make the values of the first tokens large: who does not forget them shows it."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        name = x.family.linear[0]
        axis = next(f.axes for f in x.family.arrays if f.name == name).index("T")
        a[name][(*[slice(None)] * axis, slice(None, min(stop, x.sizes["T"] // 4 + 1)))] *= 1000

    return build


def _lengths() -> None:
    """Lengths about those of chunks, with and without a state to begin with."""
    for T in (1, 2, 15, 16, 17, 63, 64, 65, 257):
        level = "standard" if T == 63 else "quick"
        case(f"length_{T}", sizes=f"T={T} B=1", level=level)
        if T in (1, 2, 16, 17, 65):
            case(f"length_{T}_initial", options(initial_state=states), "initial_state", sizes=f"T={T}", dirty=T == 17)
    case("length_0", options(initial_state=states), "initial_state", sizes="T=0", features=("empty",))
    case("length_0_none", sizes="T=0", features=("empty",))


def some(name: str, *values: float, share: float = 1.0) -> Build:
    """Return a change that draws a share of an array's numbers from a few values."""

    def build(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        chosen = x.rng.choice(values, a[name].shape)
        a[name] = np.where(x.rng.random(a[name].shape) < share, chosen, a[name])

    return build


def _gates() -> None:
    """Decays from all to nothing, and deltas likewise."""
    gate: dict[str, Any] = {"args": ("log_decay",), "sizes": "T=70"}
    case("decay_0", put(log_decay=0.0), **gate)
    case("decay_20", put(log_decay=-20.0), **gate)
    case("decay_30", put(log_decay=-30.0), **gate)
    case("decay_mixed", some("log_decay", 0.0, -0.01, -1.0, -20.0, -30.0), **gate)
    case(
        "decay_any",
        lambda x, a, o: a.update(log_decay=-x.rng.uniform(0.3, 3, a["log_decay"].shape)),
        scored=True,
        **gate,
    )
    case("decay_strong", some("log_decay", -1.0, -2.0, -3.0), **gate)
    case("decay_inf", some("log_decay", -np.inf, share=0.1), **gate)
    inf = each(put(log_decay=-np.inf), options(initial_state=states))
    case("decay_all_inf", inf, "initial_state", args=("log_decay",), sizes="T=20")

    def late(x: Draw, a: Arrays, o: dict[str, Any]) -> None:
        g = a["log_decay"]
        if g.ndim > 1:  # the tokens that are forgotten are much larger than those that are not
            g[:, :, x.sizes["T"] // 2] = -np.inf
            a["v"][:, :, : x.sizes["T"] // 2] *= 1000

    case("decay_inf_loud", late, args=("log_decay",), sizes="T=40")
    case("decay_initial", each(some("log_decay", -1.0, -0.1), options(initial_state=states)), "initial_state", **gate)
    for value in (0.0, 1.0):
        case(f"beta_{value:g}", put(beta=value), args=("beta",), sizes="T=70")
        case(f"a_{value:g}", put(a=value), ops=("rwkv7",), sizes="T=40")
    case("beta_mixed", some("beta", 0.0, 1.0, 0.5), args=("beta",), sizes="T=70")
    case("beta_0_initial", each(put(beta=0.0), options(initial_state=states)), "initial_state", args=("beta",))
    case("beta_2", put(beta=1.9), args=("beta",), sizes="T=40", normal=False)  # reflects: an eigenvalue of about -1
