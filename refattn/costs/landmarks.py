"""Linformer and Nyströmformer as costs see them: softmax over few keys in place of all of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.arrays import check_count
from refattn.costs.mechanisms import SOFTMAX_FLOPS, Call, Matrix, Mechanism, Softmax, Work

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

INVERSE_STEPS = 6
"""Iterations of the pseudo-inverse in Nyströmformer."""


@dataclass(frozen=True)
class Linformer(Mechanism):
    """Linformer (Wang et al., 2020, arXiv:2006.04768, eq. 7): E and F make `rank` keys of `length`, for all heads."""

    length: int
    rank: int

    name = "linformer_attention"
    softmax = True

    def __post_init__(self) -> None:
        check_count("Linformer", "length", self.length)
        check_count("Linformer", "rank", self.rank)

    def matrices(self, m: "Transformer") -> list[Matrix]:
        return Softmax().matrices(m)

    def other_params(self, m: "Transformer") -> int:
        return 2 * self.rank * self.length + m.value_width

    def pairs(self, m: "Transformer", call: Call) -> int:
        return call.batch * m.heads * call.new * self.rank

    def matrix_entries(self, m: "Transformer", seq: int) -> int:
        return seq * self.rank

    def work(self, m: "Transformer", call: Call) -> Work:
        D, Dv, heads = m.head_width, m.value_width, call.batch * m.heads
        seen = self.pairs(m, call)
        folded = 2 * heads * call.keys * self.rank
        return Work((2 * seen + folded) * D, (2 * seen + folded) * Dv, SOFTMAX_FLOPS * seen, 0, seen)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return tokens * m.kv * (m.head_width + m.value_width)


@dataclass(frozen=True)
class Nystrom(Mechanism):
    """Nyströmformer (Xiong et al., 2021, arXiv:2102.03902, eq. 13): three softmaxes with `landmarks` on a side."""

    landmarks: int

    name = "nystrom_attention"
    softmax = True

    def __post_init__(self) -> None:
        check_count("Nystrom", "landmarks", self.landmarks)

    def matrices(self, m: "Transformer") -> list[Matrix]:
        return Softmax().matrices(m)

    def other_params(self, m: "Transformer") -> int:
        return m.value_width

    def pairs(self, m: "Transformer", call: Call) -> int:
        return call.batch * m.heads * self.landmarks * (call.new + call.keys + self.landmarks)

    def matrix_entries(self, m: "Transformer", seq: int) -> int:
        return self.landmarks * (2 * seq + self.landmarks)

    def work(self, m: "Transformer", call: Call) -> Work:
        D, Dv, n, heads = m.head_width, m.value_width, self.landmarks, call.batch * m.heads
        seen = self.pairs(m, call)
        inverse = INVERSE_STEPS * 4 * 2 * n**3 * heads
        values = 2 * heads * (n * call.keys + n * n + call.new * n) * Dv
        return Work(2 * seen * D + inverse, values, SOFTMAX_FLOPS * seen, 0, seen)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return tokens * m.kv * (m.head_width + m.value_width)
