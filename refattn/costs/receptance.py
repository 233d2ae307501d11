"""RWKV as costs see it: the recurrences of versions 4, 6 and 7, and the channel-mix in place of a feed-forward part.

What is counted as kept is the state of the recurrence. A layer also keeps one row of d_model numbers for each half,
the token before, which the shift mixes in.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.costs.mechanisms import Call, Matrix, Mechanism, Work

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer


@dataclass(frozen=True)
class Rwkv4(Mechanism):
    """RWKV-4 (Peng et al., 2023, arXiv:2305.13048): three numbers a channel, one of them a maximum."""

    inner: int | None = None
    """Channels of the recurrence, d_model unless given."""

    name = "rwkv4"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        E = self.inner or m.d_model
        return [*(Matrix(name, m.d_model, E) for name in "rkv"), Matrix("o", E, m.d_model)]

    def other_params(self, m: "Transformer") -> int:
        mixed = 0 if m.ffn_width == 0 else 2 * m.d_model  # of the channel-mix
        return 3 * m.d_model + 2 * (self.inner or m.d_model) + mixed

    def feed(self, m: "Transformer", width: int) -> list[Matrix]:
        D = m.d_model
        return [Matrix("k", D, width), Matrix("r", D, D), Matrix("v", width, D)]

    def work(self, m: "Transformer", call: Call) -> Work:
        entries = call.tokens * (self.inner or m.d_model)
        return Work(scan=16 * entries, exps=4 * entries)  # eq. 16 to 20 of the appendix: numerator and denominator

    def kept(self, m: "Transformer", tokens: int) -> int:
        return 3 * (self.inner or m.d_model)


@dataclass(frozen=True)
class Rwkv6(Mechanism):
    """RWKV-6 (Peng et al., 2024, arXiv:2404.05892): a matrix a head, whose decay depends on the token."""

    mix_rank: int = 32
    decay_rank: int = 64

    name = "rwkv6"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D = m.d_model
        mixes = [y for n in "kvrgw" for y in _low_rank(f"mix_{n}", D, self.mix_rank)]
        main = [Matrix(n, D, D) for n in "rkvg"]
        return [*mixes, *main, *_low_rank("decay", D, self.decay_rank), Matrix("o", D, D)]

    def other_params(self, m: "Transformer") -> int:
        mixed = 0 if m.ffn_width == 0 else 2 * m.d_model
        return (6 + 2 + 2) * m.d_model + mixed  # mixes; decay and bonus; the norm of heads

    feed = Rwkv4.feed

    def work(self, m: "Transformer", call: Call) -> Work:
        d = m.d_model // m.heads
        each = 5 * d * d + 4 * d  # S ← diag(w) S + k ⊗ v, o = S r; the bonus: (u k · r) v
        return Work(scan=call.tokens * m.heads * each, exps=2 * call.tokens * m.d_model)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return m.d_model * (m.d_model // m.heads)


@dataclass(frozen=True)
class Rwkv7(Mechanism):
    """RWKV-7 (Peng et al., 2025, arXiv:2503.14456): a generalised delta rule."""

    decay_rank: int = 64
    rate_rank: int = 64
    gate_rank: int = 128
    value_rank: int = 0
    """Of the residual from the first layer's values; 0 has none."""

    name = "rwkv7"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D = m.d_model
        ranks = (("decay", self.decay_rank), ("rate", self.rate_rank), ("gate", self.gate_rank))
        low = [y for n, rank in ranks for y in _low_rank(n, D, rank)]
        low += _low_rank("value", D, self.value_rank) if self.value_rank else []
        return [*(Matrix(n, D, D) for n in "rkv"), *low, Matrix("o", D, D)]

    def other_params(self, m: "Transformer") -> int:
        mixed = 0 if m.ffn_width == 0 else m.d_model
        vectors = 6 + 2 + 2 + 1 + 2 + (1 if self.value_rank else 0)  # mixes; biases; removal, replacement; bonus; norm
        return vectors * m.d_model + mixed

    def feed(self, m: "Transformer", width: int) -> list[Matrix]:
        return [Matrix("k", m.d_model, width), Matrix("v", width, m.d_model)]

    def work(self, m: "Transformer", call: Call) -> Work:
        d = m.d_model // m.heads
        each = 9 * d * d + 6 * d  # diag(w) S + (S a) ⊗ b + k ⊗ v, o = S r; the bonus
        return Work(scan=call.tokens * m.heads * each, exps=3 * call.tokens * m.d_model)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return m.d_model * (m.d_model // m.heads)


def _low_rank(name: str, width: int, rank: int) -> list[Matrix]:
    return [Matrix(f"{name}_1", width, rank), Matrix(f"{name}_2", rank, width)]
