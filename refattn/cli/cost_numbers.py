"""Numbers of `refattn cost`, which know their unit and their kind, the tables that they stand in, and a call's sums."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from refattn.cli.cost_model import Asked
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.transformer import Transformer


class Number(NamedTuple):
    """A number as it is printed and written."""

    value: float
    unit: str
    kind: str = "exact"


Cell = Number | str | None


@dataclass(frozen=True)
class Section:
    """A table: rows of numbers by name."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def numbers(self) -> Iterator[tuple[str, str, Number]]:
        """Yield (row, column, number)."""
        for row, cells in self.rows.items():
            for column, cell in zip(self.columns, cells, strict=True):
                if isinstance(cell, Number):
                    yield row, column, cell

    def kinds(self) -> list[str]:
        """Return the kinds of its numbers."""
        return list(dict.fromkeys(number.kind for _, _, number in self.numbers()))


def exps(asked: Asked) -> int:
    """Return the exponentials of one forward pass, all layers."""
    call, m = asked.call, asked.model
    works = {mechanism: mechanism.work(m, call).exps for mechanism in set(m.mechanism)}
    return sum(works[mechanism] for mechanism in m.mechanism)


def matrix_bytes(asked: Asked) -> int:
    """Return the bytes of one layer's matrix of scores, of all heads, hidden ones included."""
    call, m = asked.call, asked.model
    if not call.past:
        return m.attention_matrix_bytes(asked.batch, asked.seq, asked.dtype)
    seen = [
        call.keys if x.window is None else min(call.keys, x.window + call.new - 1)
        for x in m.mechanism
        if isinstance(x, Softmax)
    ]
    return int(asked.batch * m.heads * call.new * max(seen, default=0) * asked.size)


def step_flops(asked: Asked, recompute: str = "none") -> dict[str, int]:
    """Return the FLOPs of the call: one pass, or a training step."""
    if asked.phase == "train":
        return asked.model.train_flops(asked.batch, asked.seq, asked.causal, recompute)
    call = asked.call
    return asked.model.forward_flops(call.batch, call.new, call.past, call.causal)


def moved(asked: Asked, algorithm: str) -> dict[str, int]:
    """Return the bytes that the call moves."""
    return asked.model.bytes_moved(asked.batch, asked.seq, asked.phase, algorithm, asked.dtype, asked.causal)


def label(mechanism: Mechanism) -> str:
    """Return a mechanism in a few words."""
    parts = [mechanism.name]
    if isinstance(mechanism, Softmax):
        parts += [] if mechanism.window is None else [f"window {mechanism.window:,}"]
        parts += [] if mechanism.mask is None else [repr(mechanism.mask)]
    return " ".join(parts)


def cache_name(m: Transformer) -> str:
    """Return what the layers keep: keys and values, a state, or both."""
    kinds = {mechanism.softmax for mechanism in m.mechanism}
    return "KV cache" if kinds == {True} else "state" if kinds == {False} else "KV cache and state"
