"""State spaces and short convolutions as costs see them: S4D, Mamba, Mamba-2, a gated convolution."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.arrays import check_count
from refattn.costs.mechanisms import Call, Matrix, Mechanism, Work

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

SCAN_FLOPS = 9
"""Of a state entry and token in Mamba: Δ·A, Δ·B·u, decay, add, read with C."""


@dataclass(frozen=True)
class Mamba(Mechanism):
    """Mamba (Gu and Dao, 2023, arXiv:2312.00752, Algorithm 2 and Figure 3)."""

    inner: int | None = None
    """E, twice d_model unless given."""
    state: int = 16
    """n."""
    conv: int = 4
    dt_rank: int | None = None
    """d_model / 16, rounded up, unless given."""
    inner_norms: bool = False
    """Norms of Δ, B and C, as in Jamba."""
    bias: bool = False
    """Of the first and the last matrix."""

    name = "mamba"

    def __post_init__(self) -> None:
        _check_sizes(self, "inner", "state", "conv", "dt_rank")

    def sizes(self, m: "Transformer") -> tuple[int, int]:
        """Return E and the rank of Δ."""
        return self.inner or 2 * m.d_model, self.dt_rank or -(-m.d_model // 16)

    def matrices(self, m: "Transformer") -> list[Matrix]:
        E, R = self.sizes(m)
        inside = [Matrix("x", E, R + 2 * self.state), Matrix("dt", R, E, True)]
        return [Matrix("in", m.d_model, 2 * E, self.bias), *inside, Matrix("out", E, m.d_model, self.bias)]

    def other_params(self, m: "Transformer") -> int:
        E, R = self.sizes(m)
        norms = R + 2 * self.state if self.inner_norms else 0
        return E * self.conv + E + E * self.state + E + norms  # convolution and its bias, A, D

    def work(self, m: "Transformer", call: Call) -> Work:
        E, _ = self.sizes(m)
        scanned = SCAN_FLOPS * E * self.state + 2 * self.conv * E
        return Work(scan=call.tokens * scanned, exps=call.tokens * E * self.state)

    def kept(self, m: "Transformer", tokens: int) -> int:
        E, _ = self.sizes(m)
        return E * self.state + E * (self.conv - 1)


@dataclass(frozen=True)
class Mamba2(Mechanism):
    """Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060, Figure 6): one decay a head, B and C shared by groups of heads."""

    inner: int | None = None
    heads: int | None = None
    """Unless given, those of m."""
    state: int = 128
    groups: int = 1
    conv: int = 4
    chunk: int | None = None

    name = "mamba2"

    def __post_init__(self) -> None:
        _check_sizes(self, "inner", "heads", "state", "groups", "conv", "chunk")

    def sizes(self, m: "Transformer") -> tuple[int, int, int]:
        """Return E, the heads, and how many channels are convolved."""
        E = self.inner or 2 * m.d_model
        return E, self.heads or m.heads, E + 2 * self.groups * self.state

    def matrices(self, m: "Transformer") -> list[Matrix]:
        E, H, convolved = self.sizes(m)
        return [Matrix("in", m.d_model, E + convolved + H), Matrix("out", E, m.d_model)]

    def other_params(self, m: "Transformer") -> int:
        E, H, convolved = self.sizes(m)
        return convolved * (self.conv + 1) + 3 * H + E  # A, D and the bias of Δ of each head; the norm

    def work(self, m: "Transformer", call: Call) -> Work:
        E, H, convolved = self.sizes(m)
        n, p, C = self.state, E // H, self.chunk
        each = 5 * n * p if C is None else 4 * n * p + (C + 1) * (n + p)
        return Work(scan=call.tokens * (H * each + 2 * self.conv * convolved), exps=call.tokens * H)

    def kept(self, m: "Transformer", tokens: int) -> int:
        E, _, convolved = self.sizes(m)
        return E * self.state + convolved * (self.conv - 1)


@dataclass(frozen=True)
class S4D(Mechanism):
    """S4D (Gu et al., 2022, arXiv:2206.11893) between two matrices: n complex numbers a channel."""

    state: int = 16

    name = "s4d"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        return [Matrix("in", m.d_model, m.d_model), Matrix("o", m.d_model, m.d_model)]

    def other_params(self, m: "Transformer") -> int:
        return m.d_model * (4 * self.state + 2)  # A and C, real and imaginary; Δ and D

    def work(self, m: "Transformer", call: Call) -> Work:
        return Work(scan=call.tokens * m.d_model * (12 * self.state + 2))  # complex: decay 6, add 2, read 4; D·u

    def kept(self, m: "Transformer", tokens: int) -> int:
        return 2 * m.d_model * self.state


@dataclass(frozen=True)
class Convolution(Mechanism):
    """A causal convolution of few taps, gated by its input, between two matrices."""

    conv: int = 4

    name = "causal_conv1d"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        return [Matrix("in", m.d_model, m.d_model), Matrix("o", m.d_model, m.d_model)]

    def other_params(self, m: "Transformer") -> int:
        return m.d_model * (self.conv + 1)

    def work(self, m: "Transformer", call: Call) -> Work:
        return Work(scan=call.tokens * m.d_model * (2 * self.conv + 1))

    def kept(self, m: "Transformer", tokens: int) -> int:
        return m.d_model * (self.conv - 1)


def _check_sizes(mechanism: Mechanism, *names: str) -> None:
    for name in names:
        if getattr(mechanism, name) is not None:
            check_count(type(mechanism).__name__, name, getattr(mechanism, name))
