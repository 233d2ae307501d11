"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434, eq. 9-19): one latent vector in place of all heads.

Expanded, keys and values are made of the latent vectors and attended to as ever; absorbed, the matrices that would make
them multiply queries and outputs instead, and all heads read the latent vectors themselves.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.arrays import check_count
from refattn.costs.mechanisms import Call, Matrix, Softmax

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer


@dataclass(frozen=True)
class Latent(Softmax):
    """MLA: c numbers and one rotated key of a token are kept.

    Examples
    --------
    >>> Latent(kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128).kept(None, 1)
    576
    """

    kv_rank: int = 512
    """c, of the latent vector."""
    rope_dim: int = 64
    """dr, of a key that carries the position; all heads share it."""
    nope_dim: int = 128
    """dn, of the part of a key that carries none."""
    value_dim: int = 128
    """dv."""
    q_rank: int | None = None
    """Of the latent vector that queries are made of; None makes them directly."""
    absorbed: bool | None = None
    """None: where each sequence brings one query, as in decoding."""

    name = "latent"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kv_rank", "rope_dim", "nope_dim", "value_dim"):
            check_count("Latent", name, getattr(self, name))
        if self.q_rank is not None:
            check_count("Latent", "q_rank", self.q_rank)

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D, c = m.d_model, self.kv_rank
        queries = m.heads * (self.nope_dim + self.rope_dim)
        q = [Matrix("q", D, queries)]
        if self.q_rank is not None:
            q = [Matrix("q_down", D, self.q_rank), Matrix("q_up", self.q_rank, queries)]
        kv = [Matrix("kv_down", D, c + self.rope_dim), Matrix("kv_up", c, m.heads * (self.nope_dim + self.value_dim))]
        return [*q, *kv, Matrix("o", m.heads * self.value_dim, D)]

    def other_params(self, m: "Transformer") -> int:
        return self.kv_rank + (self.q_rank or 0)  # the norms of the latent vectors

    def is_absorbed(self, call: Call) -> bool:
        """Say whether a call is computed absorbed."""
        return call.new == 1 if self.absorbed is None else self.absorbed

    def projection_flops(self, m: "Transformer", call: Call) -> int:
        plain = [x for x in self.matrices(m) if x.name != "kv_up"]
        made = call.tokens if self.is_absorbed(call) else call.batch * call.keys  # absorbed: the same size, other side
        up = 2 * made * self.kv_rank * m.heads * (self.nope_dim + self.value_dim)
        return up + sum(x.flops(call.tokens) for x in plain)

    def widths(self, m: "Transformer", call: Call) -> tuple[int, int]:
        if self.is_absorbed(call):
            return self.kv_rank + self.rope_dim, self.kv_rank
        return self.nope_dim + self.rope_dim, self.value_dim

    def keys_and_values(self, m: "Transformer", call: Call) -> int:
        return call.keys * m.heads * (self.nope_dim + self.rope_dim + self.value_dim)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return self.cached(tokens) * (self.kv_rank + self.rope_dim)
