"""Numbers like those that networks feed to each operation, and sizes that a contract allows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.recurrence.family import FAMILIES, Family

SIZES = {"B": 2, "H": 2, "D": 16, "W": 24, "T": 40, "E": 12, "N": 5, "P": 16, "K": 4}


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + np.exp(-x)))


def unit(x: Array) -> Array:
    """Return rows of length 1."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30))


class Draw:
    """Random numbers for one operation under one contract."""

    def __init__(self, rng: np.random.Generator, contract: Contract, family: Family, sizes: dict[str, int]) -> None:
        self.rng, self.contract, self.family = rng, contract, family
        s = {**SIZES, **sizes}
        s.setdefault("V", s["H"])
        s.setdefault("G", min(s["H"], s["V"]) if family.name != "ssd" else 1)
        if not contract.gqa:
            s["G"] = s["V"] = s["H"]
        if contract.head_dims is not None:
            s["D"] = min(contract.head_dims, key=lambda d: (abs(d - s["D"]), d))
            s["N"] = s["D"] if family.name == "ssd" else s["N"]
        if not contract.value_dims or family.name.startswith("rwkv"):
            s["W"] = s["D"]
        if family.name == "ssd" and "N" not in sizes:
            s["N"] = s["D"]
        m = contract.seq_multiple
        s["T"] = -(-s["T"] // m) * m
        if contract.max_keys is not None:
            s["T"] = min(s["T"], contract.max_keys // m * m)
        s["J"] = s["K"] - 1
        self.sizes = s

    def shape(self, axes: str) -> tuple[int, ...]:
        """Return the shape of an array with these axes."""
        return tuple(self.sizes[letter] for letter in axes)

    def normal(self, axes: str) -> Array:
        """Return standard normal numbers."""
        return self.rng.standard_normal(self.shape(axes))

    def like(self, name: str) -> Array:
        """Return what an argument usually holds."""
        f = next(f for f in self.family.all_fields if f.name == name)
        x = self.normal(f.axes)
        make = USUAL.get((self.family.name, name)) or USUAL.get(("", name))
        return x if make is None else np.asarray(make(x))

    def arrays(self) -> dict[str, Array]:
        """Return every positional argument."""
        return {f.name: self.like(f.name) for f in self.family.arrays}

    def states(self, size: float = 1.0, sequences: int | None = None) -> Any:
        """Return initial states, one for each sequence."""
        found = []
        for f in self.family.states:
            n = self.sizes["B"] if sequences is None else sequences
            x = size * self.rng.standard_normal((n, *self.shape(f.axes[1:])))
            if f.name in ("normaliser", "den"):
                x = np.abs(x) + size * (np.sqrt(self.sizes["D"]) if f.name == "normaliser" else 1)
            if self.family.name == "causal_conv1d":  # inputs that went by: numbers of the inputs' dtype
                x = np.round(np.clip(x, -8, 8) * 8) / 8
            found.append(x / size if f.name == "max" else x)
        return tuple(found) if len(found) > 1 else found[0]


Usual = Callable[[Array], Array]
USUAL: dict[tuple[str, str], Usual] = {
    ("", "log_decay"): lambda x: -0.15 * np.exp(x),
    ("retention", "log_decay"): lambda x: np.log(1 - 2.0 ** -(2 + np.arange(len(x)))),
    ("", "beta"): sigmoid,
    **{(op, "k"): unit for op in ("delta_rule", "gated_delta_rule", "kda")},
    ("", "kappa_hat"): unit,
    ("", "a"): sigmoid,
    ("rwkv7", "k"): lambda x: x / np.sqrt(x.shape[-1]),
    ("", "dt"): lambda x: 0.2 * np.exp(0.5 * x),
    ("", "delta"): lambda x: 0.2 * np.exp(0.5 * x),
    ("", "A"): lambda x: -np.exp(0.5 * x),
    ("", "w"): lambda x: 0.3 * np.exp(x),
    ("", "weight"): lambda x: x / 2,
}
"""What becomes of standard normal numbers."""


def families(*names: str) -> tuple[Family, ...]:
    """Return the families of these operations, or those that take an argument of such a name."""
    return tuple(f for f in FAMILIES.values() if f.name in names or any(f.takes(name) for name in names))
