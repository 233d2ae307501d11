"""Random numbers for the curated problems, in sizes that a contract allows."""

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract


class Draw:
    """Random numbers, and sizes that the contract allows."""

    def __init__(self, rng: np.random.Generator, contract: Contract) -> None:
        self.rng, self.contract = rng, contract

    def normal(self, *shape: int) -> Array:
        """Return standard normal numbers."""
        return self.rng.standard_normal(shape)

    def T(self, n: int) -> int:
        """Return n, rounded up to a length that the kernel takes."""
        m = self.contract.seq_multiple
        n = -(-n // m) * m
        return n if self.contract.max_keys is None else min(n, self.contract.max_keys // m * m)

    def D(self, n: int = 64) -> int:
        """Return n, or the nearest width that the kernel takes."""
        dims = self.contract.head_dims
        return n if dims is None else min(dims, key=lambda d: (abs(d - n), d))

    def Hk(self, n: int, H: int) -> int:
        """Return n, or H where heads cannot be grouped."""
        return n if self.contract.gqa else H

    def qkv(
        self, B: int, H: int, Hk: int, Tq: int, Tk: int, D: int = 64, Dv: int | None = None
    ) -> tuple[Array, Array, Array]:
        """Return standard normal arrays of these sizes, as far as the contract allows them."""
        D, Hk, Tq, Tk = self.D(D), self.Hk(Hk, H), self.T(Tq), self.T(Tk)
        Dv = D if Dv is None or not self.contract.value_dims else Dv
        return self.normal(B, H, Tq, D), self.normal(B, Hk, Tk, D), self.normal(B, Hk, Tk, Dv)

    def codes(self, n: int, D: int = 64) -> Array:
        """Return n rows of random signs: any two are nearly orthogonal."""
        return np.sign(self.normal(n, self.D(D)))

    @property
    def big(self) -> float:
        """Return a value near the top of the dtype's range."""
        return {"float16": 5.4e4, "bfloat16": 9e34, "float32": 9e34, "float64": 9e300}[self.contract.dtype]

    @property
    def small(self) -> float:
        """Return a value near its bottom."""
        return {"float16": 3e-5, "bfloat16": 1e-30, "float32": 1e-30, "float64": 1e-290}[self.contract.dtype]
