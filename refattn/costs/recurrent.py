"""The linear-time family as costs see it: a state of m × dv numbers a head, and a fixed amount of work a token.

Sequentially, a token adds k ⊗ v to the state and reads it with q: 4·m·dv FLOPs a head. A decay multiplies the state, a
delta rule reads it once more before it writes: what `WORK` says, in units of m·dv. In chunks of C, the visible pairs of
a chunk are computed directly: 4·m·dv + (C + 1)(m + dv).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.arrays import check_count
from refattn.costs.mechanisms import Call, Matrix, Mechanism, Work

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

WORK = {  # FLOPs of a token and head, in units of m·dv
    "linear_attention": 4,
    "performer_attention": 4,
    "cosformer_attention": 4,
    "retention": 5,
    "lightning_attention": 5,
    "simple_gla": 5,
    "gated_linear_attention": 5,
    "hgrn2": 5,
    "delta_rule": 6,
    "gated_delta_rule": 7,
    "kda": 7,
    "rwkv5": 5,
}
NORMALISED = ("linear_attention", "performer_attention", "cosformer_attention")
GATES = {  # which gates an operation takes: a number a head, or one a key channel
    "simple_gla": ("head",),
    "gated_linear_attention": ("key",),
    "hgrn2": ("key",),
    "delta_rule": ("head",),
    "gated_delta_rule": ("head", "head"),
    "kda": ("key", "head"),
}


@dataclass(frozen=True)
class Recurrent(Mechanism):
    """An operation of the linear-time family between the four matrices of attention, with biased gates.

    Examples
    --------
    >>> Recurrent("retention").operation
    'retention'
    """

    operation: str
    features: int | None = None
    """m, what a feature map makes of a key; its width unless given (twice that for cosFormer)."""
    chunk: int | None = None
    """C: counted in chunks; None counts a token at a time."""

    def __post_init__(self) -> None:
        if self.operation not in WORK:
            raise ValueError(f"Recurrent: operation is {self.operation!r}; wanted one of {', '.join(WORK)}")
        for name in ("features", "chunk"):
            if getattr(self, name) is not None:
                check_count("Recurrent", name, getattr(self, name))

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.operation

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D, Dv, H = m.head_width, m.value_width, m.heads
        sizes = [("q", H * D), ("k", H * D), ("v", H * Dv)]
        sizes = [x for x in sizes if (self.operation, x[0]) != ("hgrn2", "k")]  # hgrn2 makes its keys of the gate
        before = [Matrix(name, m.d_model, columns) for name, columns in sizes]
        gates = [
            Matrix(f"{kind}_gate", m.d_model, H * D if kind == "key" else H, True)
            for kind in GATES.get(self.operation, ())
        ]
        return [*before, *gates, Matrix("o", H * Dv, m.d_model)]

    def other_params(self, m: "Transformer") -> int:
        own = 2 * m.heads * m.head_width if self.operation == "rwkv5" else 0  # a decay and a bonus of each channel
        drawn = self.width(m) * m.head_width if self.operation == "performer_attention" else 0
        return m.value_width + own + drawn  # the norm of o

    def width(self, m: "Transformer") -> int:
        """Return m, the features of a key."""
        doubled = 2 if self.operation in ("cosformer_attention", "performer_attention") else 1
        return doubled * m.head_width if self.features is None else self.features

    def work(self, m: "Transformer", call: Call) -> Work:
        D, Dv, C = self.width(m), m.value_width, self.chunk
        each = WORK[self.operation] * D * Dv if C is None else 4 * D * Dv + (C + 1) * (D + Dv)
        each += 2 * D if self.operation in NORMALISED else 0
        mapped = 2 * D * m.head_width * 2 if self.operation == "performer_attention" else 0  # q and k
        exps = {"performer_attention": 2 * D, "kda": D, "gated_linear_attention": D, "hgrn2": D}.get(self.operation, 1)
        tokens = call.tokens * m.heads
        return Work(scan=tokens * (each + mapped), exps=tokens * exps)

    def kept(self, m: "Transformer", tokens: int) -> int:
        D = self.width(m)
        normaliser = D if self.operation in NORMALISED else 0
        maximum = 1 if self.operation == "performer_attention" else 0  # of the logarithms of its features
        return m.heads * (D * m.value_width + normaliser + maximum)


@dataclass(frozen=True)
class Gla(Mechanism):
    """The network of gated linear attention (Yang et al., 2023, arXiv:2312.06635, section 4.4)."""

    gate_rank: int = 16
    expand_k: float = 0.5
    chunk: int | None = None

    name = "gla"

    def sizes(self, m: "Transformer") -> tuple[int, int]:
        """Return the widths of a head's keys and values."""
        return int(m.d_model * self.expand_k) // m.heads, m.d_model // m.heads

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D, (key, value) = m.d_model, self.sizes(m)
        low = [Matrix("gate_down", D, self.gate_rank), Matrix("gate_up", self.gate_rank, m.heads * key, True)]
        names = (("q", key), ("k", key), ("v", value), ("z", value))
        return [*(Matrix(n, D, m.heads * d) for n, d in names), *low, Matrix("o", m.heads * value, D)]

    def other_params(self, m: "Transformer") -> int:
        return self.sizes(m)[1]

    def work(self, m: "Transformer", call: Call) -> Work:
        key, value = self.sizes(m)
        C = self.chunk
        each = 5 * key * value if C is None else 4 * key * value + (C + 1) * (key + value)
        return Work(scan=call.tokens * m.heads * each, exps=call.tokens * m.heads * key)

    def kept(self, m: "Transformer", tokens: int) -> int:
        key, value = self.sizes(m)
        return m.heads * key * value


@dataclass(frozen=True)
class DeltaNet(Mechanism):
    """Gated DeltaNet as in Qwen3-Next, and with `channelwise` Kimi Delta Attention: convolutions, then the rule.

    Yang et al., 2024, arXiv:2412.06464; Kimi Team, 2025, arXiv:2510.26692.
    """

    key_heads: int | None = None
    value_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    conv: int = 4
    channelwise: bool = False
    """A decay for each key channel (KDA), made by a matrix of low rank, as is the gate of the output."""
    chunk: int | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return "kimi_delta" if self.channelwise else "gated_deltanet"

    def sizes(self, m: "Transformer") -> tuple[int, int, int, int]:
        """Return key heads, value heads and their widths."""
        return (
            self.key_heads or m.heads,
            self.value_heads or m.heads,
            self.key_dim or m.head_width,
            self.value_dim or m.value_width,
        )

    def matrices(self, m: "Transformer") -> list[Matrix]:
        (Hk, Hv, d, dv), D = self.sizes(m), m.d_model
        qkv = Matrix("qkv", D, 2 * Hk * d + Hv * dv)
        o = Matrix("o", Hv * dv, D)
        if not self.channelwise:
            return [qkv, Matrix("z", D, Hv * dv), Matrix("beta", D, Hv), Matrix("a", D, Hv), o]
        decay = [Matrix("decay_down", D, dv), Matrix("decay_up", dv, Hv * d)]
        gate = [Matrix("gate_down", D, dv), Matrix("gate_up", dv, Hv * dv)]
        return [qkv, *decay, Matrix("beta", D, Hv), *gate, o]

    def other_params(self, m: "Transformer") -> int:
        Hk, Hv, d, dv = self.sizes(m)
        biases = Hv * d if self.channelwise else Hv
        return self.conv * (2 * Hk * d + Hv * dv) + Hv + biases + dv

    def work(self, m: "Transformer", call: Call) -> Work:
        Hk, Hv, d, dv = self.sizes(m)
        C = self.chunk
        each = 7 * d * dv if C is None else 6 * d * dv + (C + 1) * (2 * d + dv)
        convolved = 2 * self.conv * (2 * Hk * d + Hv * dv)
        return Work(scan=call.tokens * (Hv * each + convolved), exps=call.tokens * Hv * (d if self.channelwise else 1))

    def kept(self, m: "Transformer", tokens: int) -> int:
        Hk, Hv, d, dv = self.sizes(m)
        return Hv * d * dv + (self.conv - 1) * (2 * Hk * d + Hv * dv)
